//! The bytes of the bulk protocol, version 1. All integers little-endian.
//!
//! ```text
//! request, 59 bytes:   version: u8 = 1, kind: u8, hash: 32 bytes, offset: u64, length: u64, total_max: u64,
//!                      element_bytes: u8
//! response, 9 bytes:   status: u8, total: u64
//!                      then, when status = 0 and kind = 1, the blob from `offset`: min(length, total - offset) bytes
//! ```
//! `total` is the length of the whole blob, also with the statuses "over the cap" (3): `total > total_max`, and "past
//! the end" (4): `offset > total`; with every other status it is 0. One bidirectional stream per request; both sides
//! finish it.
//!
//! **Kinds.** 1 asks for bytes and is answered at once. 2 asks to be told when the blob can be had (`held.rs`): while it
//! is on its way to the server, that answers "held" (6) again and again, each a response of 9 bytes, and then once as it
//! would answer kind 1.
//!
//! **Elements.** With `element_bytes` = 0 the bytes of the blob follow as they are. With 2 or 4 the blob ends in numbers
//! of that width, and its bytes follow in chunks of [`CHUNK_BYTES`], the last one shorter: each a `u32`, how many bytes
//! it has on the wire, and those. If that is as many as the chunk has, they are the chunk; if it is fewer, they are the
//! chunk packed (`gradmesh_compression::planes`); more are refused.

use gradmesh_compression::planes::Width;

use crate::blob::BlobHash;

pub(super) const VERSION: u8 = 1;

pub(super) const REQUEST_BYTES: usize = 59;
pub(super) const RESPONSE_BYTES: usize = 9;
pub(super) const CHUNK_HEAD_BYTES: usize = 4;
/// Unit of packing, of reading files and of taking turns.
pub(super) const CHUNK_BYTES: usize = 256 * 1024;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes, now.
    Blob,
    /// Word when the blob can be had.
    Wait,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) hash: BlobHash,
    /// First byte wanted.
    pub(super) offset: u64,
    /// Bytes wanted at most, from `offset`.
    pub(super) length: u64,
    /// The longest blob that is wanted at all.
    pub(super) total_max: u64,
    /// What the bytes may travel packed as.
    pub(super) elements: Option<Width>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: Status,
    pub(super) total: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// The bytes follow.
    Ok,
    /// The server does not hold the blob.
    NotFound,
    /// The server serves as many streams as it may; ask another peer, or later.
    Busy,
    /// `total` exceeds `total_max`.
    OverCap,
    /// `offset` exceeds `total`.
    PastEnd,
    /// The request makes no sense to the server.
    BadRequest,
    /// The blob is on its way to the server; the answer follows.
    Held,
}

/// The other side sent something that is not this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("version {0} is not spoken here")]
    Version(u8),
    #[error("unknown kind of request {0}")]
    Kind(u8),
    #[error("unknown status {0}")]
    Status(u8),
    #[error("no elements have {0} bytes")]
    ElementBytes(u8),
}

impl Request {
    pub(super) fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut wire = [0; REQUEST_BYTES];
        wire[0] = VERSION;
        wire[1] = match self.kind {
            Kind::Blob => 1,
            Kind::Wait => 2,
        };
        wire[2..34].copy_from_slice(&self.hash);
        wire[34..42].copy_from_slice(&self.offset.to_le_bytes());
        wire[42..50].copy_from_slice(&self.length.to_le_bytes());
        wire[50..58].copy_from_slice(&self.total_max.to_le_bytes());
        wire[58] = match self.elements {
            None => 0,
            Some(Width::Bf16) => 2,
            Some(Width::F32) => 4,
        };
        wire
    }

    pub(super) fn decode(wire: &[u8; REQUEST_BYTES]) -> Result<Self, WireError> {
        let [version, kind, rest @ ..] = wire;
        if *version != VERSION {
            return Err(WireError::Version(*version));
        }
        let kind = match kind {
            1 => Kind::Blob,
            2 => Kind::Wait,
            unknown => return Err(WireError::Kind(*unknown)),
        };
        let (hash, rest) = split::<32>(rest);
        let (offset, rest) = split::<8>(rest);
        let (length, rest) = split::<8>(rest);
        let (total_max, rest) = split::<8>(rest);
        let ([element_bytes], _) = split::<1>(rest);
        let elements = match element_bytes {
            0 => None,
            2 => Some(Width::Bf16),
            4 => Some(Width::F32),
            unknown => return Err(WireError::ElementBytes(unknown)),
        };
        Ok(Self {
            kind,
            hash,
            offset: u64::from_le_bytes(offset),
            length: u64::from_le_bytes(length),
            total_max: u64::from_le_bytes(total_max),
            elements,
        })
    }
}

impl Response {
    pub(super) fn encode(&self) -> [u8; RESPONSE_BYTES] {
        let mut wire = [0; RESPONSE_BYTES];
        wire[0] = match self.status {
            Status::Ok => 0,
            Status::NotFound => 1,
            Status::Busy => 2,
            Status::OverCap => 3,
            Status::PastEnd => 4,
            Status::BadRequest => 5,
            Status::Held => 6,
        };
        wire[1..].copy_from_slice(&self.total.to_le_bytes());
        wire
    }

    pub(super) fn decode(wire: &[u8; RESPONSE_BYTES]) -> Result<Self, WireError> {
        let [status, total @ ..] = wire;
        let status = match status {
            0 => Status::Ok,
            1 => Status::NotFound,
            2 => Status::Busy,
            3 => Status::OverCap,
            4 => Status::PastEnd,
            5 => Status::BadRequest,
            6 => Status::Held,
            unknown => return Err(WireError::Status(*unknown)),
        };
        Ok(Self {
            status,
            total: u64::from_le_bytes(*total),
        })
    }
}

/// The first `N` bytes, and the rest. `wire` is part of an array whose length the callers above fix.
fn split<const N: usize>(wire: &[u8]) -> ([u8; N], &[u8]) {
    let (head, rest) = wire
        .split_first_chunk::<N>()
        .expect("a fixed-size message holds its fields");
    (*head, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_bytes_are_pinned() {
        let request = Request {
            kind: Kind::Wait,
            hash: [0xab; 32],
            offset: 1,
            length: 0x0102,
            total_max: 3,
            elements: Some(Width::F32),
        };
        let wire = request.encode();
        assert_eq!(
            hex::encode(wire),
            format!(
                "0102{}{}{}{}04",
                "ab".repeat(32),
                "0100000000000000",
                "0201000000000000",
                "0300000000000000"
            )
        );
        assert_eq!(Request::decode(&wire), Ok(request));

        for (code, status) in [
            Status::Ok,
            Status::NotFound,
            Status::Busy,
            Status::OverCap,
            Status::PastEnd,
            Status::BadRequest,
            Status::Held,
        ]
        .into_iter()
        .enumerate()
        {
            let response = Response { status, total: 7 };
            let wire = response.encode();
            assert_eq!(hex::encode(wire), format!("0{code}0700000000000000"));
            assert_eq!(Response::decode(&wire), Ok(response));
        }
    }

    #[test]
    fn unknown_version_kind_elements_and_status_are_refused() {
        let mut wire = Request {
            kind: Kind::Blob,
            hash: [0; 32],
            offset: 0,
            length: 0,
            total_max: 0,
            elements: Some(Width::Bf16),
        }
        .encode();
        wire[58] = 3;
        assert_eq!(Request::decode(&wire), Err(WireError::ElementBytes(3)));
        wire[1] = 9;
        assert_eq!(Request::decode(&wire), Err(WireError::Kind(9)));
        wire[0] = 2;
        assert_eq!(Request::decode(&wire), Err(WireError::Version(2)));
        assert_eq!(
            Response::decode(&[7; RESPONSE_BYTES]),
            Err(WireError::Status(7))
        );
    }
}
