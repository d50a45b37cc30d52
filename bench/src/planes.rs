//! Where a general compressor pays: zstd over frames and checkpoints, as their bytes lie and as byte planes (first the
//! lowest byte of every element, then the next).

use std::hint::black_box;
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};

const LEVELS: [i32; 2] = [1, 3];
/// Timings of each case, of which the best counts: it is the one that other processes disturbed least.
const REPEATS: usize = 3;

/// Bytes that somebody might compress.
pub(crate) struct Payload {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// Of one element; 1 where there are no elements.
    pub(crate) element_bytes: usize,
}

/// zstd of one payload.
pub(crate) struct PlanesRow {
    payload: String,
    planes: bool,
    level: i32,
    /// Compressed to whole.
    ratio: f64,
    compress_bytes_per_s: f64,
    decompress_bytes_per_s: f64,
}

impl PlanesRow {
    pub(crate) const HEADS: [&'static str; 6] = [
        "zstd of",
        "order",
        "level",
        "ratio",
        "compress MB/s",
        "decompress MB/s",
    ];

    pub(crate) fn cells(&self) -> Vec<String> {
        vec![
            self.payload.clone(),
            self.order().to_owned(),
            self.level.to_string(),
            format!("{:.3}", self.ratio),
            format!("{:.0}", self.compress_bytes_per_s / 1e6),
            format!("{:.0}", self.decompress_bytes_per_s / 1e6),
        ]
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "codec": format!("zstd {} {} level {}", self.payload, self.order(), self.level),
            "payload": self.payload,
            "order": self.order(),
            "level": self.level,
            "ratio": self.ratio,
            "compress_bytes_per_s": self.compress_bytes_per_s,
            "decompress_bytes_per_s": self.decompress_bytes_per_s,
        })
    }

    const fn order(&self) -> &'static str {
        if self.planes { "planes" } else { "bytes" }
    }
}

/// Compresses every payload in every order and level. Speeds count the bytes of the payload, and the way to planes and
/// back.
pub(crate) fn measure(payloads: &[Payload]) -> anyhow::Result<Vec<PlanesRow>> {
    let mut rows = Vec::new();
    for payload in payloads {
        for planes in [false, true] {
            if planes && payload.element_bytes == 1 {
                continue;
            }
            for level in LEVELS {
                rows.push(measure_one(payload, planes, level)?);
            }
        }
    }
    Ok(rows)
}

fn measure_one(payload: &Payload, planes: bool, level: i32) -> anyhow::Result<PlanesRow> {
    let whole = payload.bytes.len();
    let (mut compress_s, mut decompress_s, mut compressed) = (f64::MAX, f64::MAX, Vec::new());
    for _ in 0..REPEATS {
        let start = Instant::now();
        compressed = if planes {
            zstd::bulk::compress(&to_planes(&payload.bytes, payload.element_bytes), level)
        } else {
            zstd::bulk::compress(&payload.bytes, level)
        }
        .context("zstd")?;
        compress_s = compress_s.min(start.elapsed().as_secs_f64());

        let start = Instant::now();
        let back = zstd::bulk::decompress(&compressed, whole).context("zstd")?;
        let back = if planes {
            from_planes(&back, payload.element_bytes)
        } else {
            back
        };
        decompress_s = decompress_s.min(start.elapsed().as_secs_f64());
        assert!(
            black_box(back) == payload.bytes,
            "zstd gives back what it took"
        );
    }
    Ok(PlanesRow {
        payload: payload.name.clone(),
        planes,
        level,
        ratio: compressed.len() as f64 / whole as f64,
        compress_bytes_per_s: whole as f64 / compress_s,
        decompress_bytes_per_s: whole as f64 / decompress_s,
    })
}

fn to_planes(bytes: &[u8], element_bytes: usize) -> Vec<u8> {
    let mut planes = Vec::with_capacity(bytes.len());
    for plane in 0..element_bytes {
        planes.extend(bytes.iter().skip(plane).step_by(element_bytes));
    }
    planes
}

fn from_planes(planes: &[u8], element_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; planes.len()];
    let mut rest = planes.iter();
    for plane in 0..element_bytes.min(bytes.len()) {
        // The places on the left, so that no byte is drawn for a place that there is not.
        for (byte, &of_plane) in bytes[plane..]
            .iter_mut()
            .step_by(element_bytes)
            .zip(&mut rest)
        {
            *byte = of_plane;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_gather_the_bytes_of_one_place() {
        let bytes = [1, 2, 3, 4, 5, 6];
        assert_eq!(to_planes(&bytes, 2), [1, 3, 5, 2, 4, 6]);
        assert_eq!(from_planes(&to_planes(&bytes, 2), 2), bytes);
        // The last element may lack bytes, as behind the header of a frame.
        for element_bytes in 1..8 {
            let planes = to_planes(&bytes, element_bytes);
            assert_eq!(from_planes(&planes, element_bytes), bytes);
        }
    }
}
