//! Whether a chunk of elements travels packed.
//!
//! Rule `packing-pays`: packing a byte takes 1 / P seconds of a thread, and saves (1 - ratio) / R seconds of a connection
//! of rate R; so it pays when R < (1 - ratio) P. P and the ratio are measured with every chunk that is packed, R is what the
//! sender's congestion control knows. While R is not known yet chunks are packed: on a fast link that is the first few, on a
//! slow one most of a blob would otherwise be handed to QUIC before anything is known.

use std::io;
use std::time::Instant;

use bytes::Bytes;
use gradmesh_compression::planes::{Packer, Width};

use super::super::wire::CHUNK_HEAD_BYTES;

/// Shorter chunks are not worth the call.
const BYTES_MIN: usize = 4096;
/// What is assumed of packing before the first chunk: less than what a shared 2 GHz server core does (`planes.rs`).
const FIRST: Experience = Experience {
    bytes_per_s: 200e6,
    ratio: 0.8,
};
/// Weight of the newest chunk in what is known of packing.
const NEWEST: f64 = 0.25;
/// A blob with a chunk that does not become shorter than this is not packed any more.
const RATIO_MAX: f64 = 0.97;

/// What packing has cost and brought lately.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Experience {
    bytes_per_s: f64,
    /// Packed to whole.
    ratio: f64,
}

impl Experience {
    /// Rule `packing-pays`. `link`: bytes a second of the connection, if known.
    fn pays(self, link: Option<f64>) -> bool {
        let most = (1.0 - self.ratio) * self.bytes_per_s;
        self.ratio < RATIO_MAX && link.is_none_or(|link| link < most)
    }

    fn after(self, bytes: usize, packed: usize, seconds: f64) -> Self {
        let mix = |old: f64, new: f64| old + NEWEST * (new - old);
        Self {
            bytes_per_s: mix(self.bytes_per_s, bytes as f64 / seconds.max(1e-9)),
            ratio: mix(self.ratio, packed as f64 / bytes.max(1) as f64),
        }
    }
}

/// Packs the chunks of one answer where it pays.
pub(super) struct Packing {
    width: Width,
    packer: Option<Box<Packer>>,
    experience: Experience,
    useless: bool,
}

impl Packing {
    pub(super) fn new(width: Width) -> Self {
        Self {
            width,
            packer: None,
            experience: FIRST,
            useless: false,
        }
    }

    /// How `chunk` travels: what stands before it, and it or what it was packed to. `left`: bytes from its first to the
    /// blob's end, where an element ends.
    pub(super) async fn dress(
        &mut self,
        chunk: Bytes,
        left: u64,
        link: Option<f64>,
    ) -> io::Result<(Bytes, Bytes)> {
        let mut body = chunk.clone();
        if !self.useless && chunk.len() >= BYTES_MIN && self.experience.pays(link) {
            let skip = skip(left, self.width);
            let (packed, seconds) = self.pack(chunk.clone(), skip).await?;
            self.experience = self.experience.after(chunk.len(), packed.len(), seconds);
            if (packed.len() as f64) < RATIO_MAX * chunk.len() as f64 {
                body = packed.into();
            } else {
                self.useless = true;
            }
        }
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let head: [u8; CHUNK_HEAD_BYTES] = length.to_le_bytes();
        Ok((Bytes::copy_from_slice(&head), body))
    }

    /// On a thread of its own: it takes about a millisecond, which connections should not wait.
    async fn pack(&mut self, chunk: Bytes, skip: usize) -> io::Result<(Vec<u8>, f64)> {
        let (packer, width) = (self.packer.take(), self.width);
        let work = tokio::task::spawn_blocking(move || {
            let mut packer = packer.unwrap_or_else(|| Box::new(Packer::new()));
            let (mut packed, began) = (Vec::new(), Instant::now());
            packer.pack(&chunk, width, skip, &mut packed);
            (packer, packed, began.elapsed().as_secs_f64())
        });
        let (packer, packed, seconds) = work.await.map_err(io::Error::other)?;
        self.packer = Some(packer);
        Ok((packed, seconds))
    }
}

/// Bytes before the first whole element of a chunk that begins `left` bytes before the end of its blob.
pub(in super::super) fn skip(left: u64, width: Width) -> usize {
    (left % width.bytes() as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_pays_below_the_rate_at_which_it_saves_more_time_than_it_takes() {
        let experience = Experience {
            bytes_per_s: 300e6,
            ratio: 0.8,
        };
        assert!(experience.pays(Some(59e6)));
        assert!(!experience.pays(Some(61e6)));
        assert!(experience.pays(None));
        let ratio = 1.0;
        let noise = Experience {
            ratio,
            ..experience
        };
        assert!(!noise.pays(Some(1.0)) && !noise.pays(None));
    }

    #[tokio::test]
    async fn chunk_that_does_not_shrink_travels_as_it_is_and_ends_packing() {
        let mut packing = Packing::new(Width::F32);
        let mut noise = vec![0; 64 * 1024];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let noise = Bytes::from(noise);
        let left = noise.len() as u64;
        let (head, body) = packing.dress(noise.clone(), left, None).await.unwrap();
        assert_eq!(head[..], 65_536_u32.to_le_bytes());
        assert_eq!(body, noise);
        let zeros = Bytes::from(vec![0; 64 * 1024]);
        let (_, body) = packing.dress(zeros.clone(), left, None).await.unwrap();
        assert_eq!(body, zeros);
    }

    #[tokio::test]
    async fn chunk_is_packed_on_a_slow_link_and_not_on_a_fast_one() {
        let zeros = Bytes::from(vec![0; 64 * 1024]);
        let left = zeros.len() as u64;
        let mut packing = Packing::new(Width::Bf16);
        let (_, body) = packing.dress(zeros.clone(), left, Some(5e9)).await.unwrap();
        assert_eq!(body, zeros);
        let (head, body) = packing.dress(zeros, left, Some(1e6)).await.unwrap();
        assert!(body.len() < 33 * 1024);
        assert_eq!(head[..], (body.len() as u32).to_le_bytes());
    }
}
