//! Framing of requests and responses: raw bytes behind a length, with a limit per direction.
//!
//! ```text
//! request  = length: u32 LE, bytes
//! response = status: u8, length: u32 LE, bytes      (bytes only when status = 0)
//! ```
//! A reader refuses a length above its limit before it reads a byte of the body, and its buffer grows with what has
//! arrived, not with what was claimed. A refusal ends the stream, never the connection.

use std::io;

use bytes::Bytes;
use libp2p::StreamProtocol;
use libp2p::futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::request_response;

use super::Refusal;

const STATUS_OK: u8 = 0;
const STATUS_BUSY: u8 = 1;
const STATUS_TOO_LARGE: u8 = 2;

/// First allocation for a body; longer ones grow by doubling as their bytes arrive.
const BODY_CAPACITY_FIRST: usize = 16 * 1024;

/// What the answering side sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Bytes(Bytes),
    Refused(Refusal),
}

#[derive(Debug, Clone)]
pub(super) struct RpcCodec {
    pub(super) request_bytes_max: usize,
    pub(super) response_bytes_max: usize,
}

impl request_response::Codec for RpcCodec {
    type Protocol = StreamProtocol;
    type Request = Bytes;
    type Response = Reply;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Bytes>
    where
        T: AsyncRead + Unpin + Send,
    {
        read_body(io, self.request_bytes_max).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Reply>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut status = [0u8; 1];
        match io.read_exact(&mut status).await {
            Ok(()) => {}
            // The other side closed the stream without a word: its owner dropped the request.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Reply::Refused(Refusal::NoAnswer));
            }
            Err(error) => return Err(error),
        }
        match status[0] {
            STATUS_OK => Ok(Reply::Bytes(read_body(io, self.response_bytes_max).await?)),
            STATUS_BUSY => Ok(Reply::Refused(Refusal::Busy)),
            STATUS_TOO_LARGE => Ok(Reply::Refused(Refusal::ResponseTooLarge)),
            unknown => Err(invalid(format!("unknown response status {unknown}"))),
        }
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: Bytes,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write_body(io, &request).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        reply: Reply,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        match reply {
            Reply::Bytes(bytes) => {
                io.write_all(&[STATUS_OK]).await?;
                write_body(io, &bytes).await
            }
            Reply::Refused(Refusal::Busy) => io.write_all(&[STATUS_BUSY]).await,
            Reply::Refused(Refusal::ResponseTooLarge) => io.write_all(&[STATUS_TOO_LARGE]).await,
            Reply::Refused(Refusal::NoAnswer) => Ok(()),
        }
    }
}

async fn read_body<T: AsyncRead + Unpin + Send>(io: &mut T, bytes_max: usize) -> io::Result<Bytes> {
    let mut length = [0u8; 4];
    io.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length);
    let expected = usize::try_from(length).map_err(io::Error::other)?;
    if expected > bytes_max {
        return Err(invalid(format!(
            "message of {expected} bytes exceeds the limit of {bytes_max}"
        )));
    }
    let mut body = Vec::with_capacity(expected.min(BODY_CAPACITY_FIRST));
    io.take(u64::from(length)).read_to_end(&mut body).await?;
    if body.len() != expected {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("message ended after {} of {expected} bytes", body.len()),
        ));
    }
    Ok(body.into())
}

async fn write_body<T: AsyncWrite + Unpin + Send>(io: &mut T, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    io.write_all(&length.to_le_bytes()).await?;
    io.write_all(body).await
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use libp2p::futures::executor::block_on;
    use libp2p::futures::io::Cursor;
    use libp2p::request_response::Codec;

    use super::*;

    const PROTOCOL: StreamProtocol = StreamProtocol::new("/test/1");

    fn codec() -> RpcCodec {
        RpcCodec {
            request_bytes_max: 8,
            response_bytes_max: 16,
        }
    }

    fn read_request(wire: &[u8]) -> io::Result<Bytes> {
        block_on(codec().read_request(&PROTOCOL, &mut Cursor::new(wire)))
    }

    fn read_response(wire: &[u8]) -> io::Result<Reply> {
        block_on(codec().read_response(&PROTOCOL, &mut Cursor::new(wire)))
    }

    #[test]
    fn wire_bytes_are_pinned() {
        let mut wire = Cursor::new(Vec::new());
        block_on(codec().write_request(&PROTOCOL, &mut wire, Bytes::from_static(b"abc"))).unwrap();
        assert_eq!(wire.into_inner(), b"\x03\0\0\0abc");

        for (reply, expected) in [
            (
                Reply::Bytes(Bytes::from_static(b"xy")),
                &b"\x00\x02\0\0\0xy"[..],
            ),
            (Reply::Refused(Refusal::Busy), b"\x01"),
            (Reply::Refused(Refusal::ResponseTooLarge), b"\x02"),
            (Reply::Refused(Refusal::NoAnswer), b""),
        ] {
            let mut wire = Cursor::new(Vec::new());
            block_on(codec().write_response(&PROTOCOL, &mut wire, reply.clone())).unwrap();
            assert_eq!(wire.get_ref(), expected);
            assert_eq!(read_response(wire.get_ref()).unwrap(), reply);
        }
    }

    #[test]
    fn claimed_length_above_the_limit_is_refused_whatever_follows() {
        assert_eq!(read_request(b"\x08\0\0\x0012345678").unwrap().len(), 8);
        for wire in [&b"\x09\0\0\x00123456789"[..], b"\xff\xff\xff\xff"] {
            assert_eq!(
                read_request(wire).unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
        assert_eq!(
            read_response(b"\x00\x11\0\0\0").unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn truncated_and_unknown_messages_are_errors() {
        for wire in [&b""[..], b"\x01\0", b"\x04\0\0\0abc"] {
            assert_eq!(
                read_request(wire).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
        }
        assert_eq!(
            read_response(b"\x07").unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
