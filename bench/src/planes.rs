//! Where a general compressor pays: zstd over frames and checkpoints, as their bytes lie and over their high bytes alone.

use std::hint::black_box;
use std::io;
use std::time::Instant;

use anyhow::Context;
use gradmesh_compression::planes::{self, Packer, Unpacker, Width};
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

/// Compresses every payload: as its bytes lie at every level, and as `gradmesh_compression::planes` does it. Speeds count
/// the bytes of the payload.
pub(crate) fn measure(payloads: &[Payload]) -> anyhow::Result<Vec<PlanesRow>> {
    let mut rows = Vec::new();
    for payload in payloads {
        for level in LEVELS {
            let pack = |bytes: &[u8]| zstd::bulk::compress(bytes, level);
            let unpack = |packed: &[u8], whole| zstd::bulk::decompress(packed, whole);
            rows.push(measure_one(payload, false, level, pack, unpack)?);
        }
        let width = match payload.element_bytes {
            2 => Width::Bf16,
            4 => Width::F32,
            _ => continue,
        };
        let skip = payload.bytes.len() % width.bytes();
        let (mut packer, mut unpacker) = (Packer::new(), Unpacker::new());
        let pack = |bytes: &[u8]| {
            let mut packed = Vec::new();
            packer.pack(bytes, width, skip, &mut packed);
            Ok(packed)
        };
        let unpack = |packed: &[u8], whole| {
            let unpacked = unpacker.unpack(packed, whole, width, skip);
            unpacked.map_err(io::Error::other)
        };
        rows.push(measure_one(payload, true, planes::LEVEL, pack, unpack)?);
    }
    Ok(rows)
}

fn measure_one(
    payload: &Payload,
    planes: bool,
    level: i32,
    mut pack: impl FnMut(&[u8]) -> io::Result<Vec<u8>>,
    mut unpack: impl FnMut(&[u8], usize) -> io::Result<Vec<u8>>,
) -> anyhow::Result<PlanesRow> {
    let whole = payload.bytes.len();
    let (mut compress_s, mut decompress_s, mut compressed) = (f64::MAX, f64::MAX, Vec::new());
    for _ in 0..REPEATS {
        let start = Instant::now();
        compressed = pack(&payload.bytes).context("zstd")?;
        compress_s = compress_s.min(start.elapsed().as_secs_f64());

        let start = Instant::now();
        let back = unpack(&compressed, whole).context("zstd")?;
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
