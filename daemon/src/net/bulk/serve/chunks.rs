//! The bytes of a blob in chunks, from memory or from a file.

use std::io::{self, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, Take};

use super::super::wire::CHUNK_BYTES;
use crate::blob::Blob;

/// Chunks of [`CHUNK_BYTES`], the last one shorter.
pub(super) enum Chunks {
    Memory(Bytes),
    File {
        file: Take<File>,
        left: u64,
        path: Arc<Path>,
    },
}

impl Chunks {
    /// `length` bytes of `blob` from `offset` on, which lie within it.
    pub(super) async fn open(blob: Blob, offset: u64, length: u64) -> io::Result<Self> {
        match blob {
            Blob::Memory(bytes) => {
                // Offset and length lie within bytes in memory, so they fit.
                let offset = usize::try_from(offset).map_err(io::Error::other)?;
                let length = usize::try_from(length).map_err(io::Error::other)?;
                Ok(Self::Memory(bytes.slice(offset..offset + length)))
            }
            Blob::File(range) => {
                let mut file = File::open(&range.path).await?;
                let start = range.offset.checked_add(offset).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidInput, "file range exceeds 2^64 bytes")
                })?;
                file.seek(SeekFrom::Start(start)).await?;
                Ok(Self::File {
                    file: file.take(length),
                    left: length,
                    path: range.path,
                })
            }
        }
    }

    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Memory(rest) => {
                let chunk = rest.split_to(rest.len().min(CHUNK_BYTES));
                Ok((!chunk.is_empty()).then_some(chunk))
            }
            Self::File { left: 0, .. } => Ok(None),
            Self::File { file, left, path } => {
                let length =
                    usize::try_from(*left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
                let mut chunk = BytesMut::with_capacity(length);
                while chunk.len() < length {
                    if file.read_buf(&mut chunk).await? == 0 {
                        let lacking = *left - chunk.len() as u64;
                        return Err(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            format!(
                                "{} is {lacking} bytes shorter than registered",
                                path.display()
                            ),
                        ));
                    }
                }
                *left -= chunk.len() as u64;
                Ok(Some(chunk.freeze()))
            }
        }
    }
}
