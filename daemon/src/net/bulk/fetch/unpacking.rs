//! What comes in answer to a request: bytes as they are, or chunks that may be packed.

use bytes::{Buf, Bytes};
use gradmesh_compression::planes::{Unpacker, Width};

use super::super::Blame;
use super::super::serve::skip;
use super::super::wire::{CHUNK_BYTES, CHUNK_HEAD_BYTES};
use super::assembly::Part;

/// Turns what comes into bytes of the blob. Holds at most one chunk.
pub(super) enum Incoming {
    Plain,
    Chunks(Box<Chunks>),
}

pub(super) struct Chunks {
    width: Width,
    /// Bytes of the blob from the next chunk to the end of what was asked for, and to that of the blob.
    asked: u64,
    left: u64,
    state: State,
    gathered: Vec<u8>,
    unpacker: Option<Unpacker>,
}

#[derive(Clone, Copy)]
enum State {
    /// The head of a chunk is being gathered.
    Head,
    /// So many bytes of a chunk that travels as it is are to come.
    Plain { missing: usize },
    /// A packed chunk is being gathered: so many bytes, of so many.
    Packed { length: usize, of: usize },
}

impl Incoming {
    /// `asked`: bytes that are to come, as the blob has them; `left`: from the first of them to the end of the blob.
    pub(super) fn new(elements: Option<Width>, asked: u64, left: u64) -> Self {
        match elements {
            None => Self::Plain,
            Some(width) => Self::Chunks(Box::new(Chunks {
                width,
                asked,
                left,
                state: State::Head,
                gathered: Vec::new(),
                unpacker: None,
            })),
        }
    }

    /// Adds what `packet` holds to `part`. Returns by how many bytes that grew.
    pub(super) fn take(&mut self, packet: Bytes, part: &mut Part) -> Result<usize, Blame> {
        match self {
            Self::Plain => Ok(part.append(&packet)),
            Self::Chunks(chunks) => chunks.take(packet, part),
        }
    }
}

impl Chunks {
    fn take(&mut self, mut packet: Bytes, part: &mut Part) -> Result<usize, Blame> {
        let mut taken = 0;
        while !packet.is_empty() && self.asked > 0 {
            match self.state {
                State::Head => {
                    if self.gather(&mut packet, CHUNK_HEAD_BYTES) {
                        self.begin()?;
                    }
                }
                State::Plain { missing } => {
                    let bytes = packet.split_to(packet.len().min(missing));
                    taken += part.append(&bytes);
                    let missing = missing - bytes.len();
                    self.state = State::Plain { missing };
                    if missing == 0 {
                        self.end();
                    }
                }
                State::Packed { length, of } => {
                    if self.gather(&mut packet, length) {
                        let skip = skip(self.left, self.width);
                        let unpacker = self.unpacker.get_or_insert_with(Unpacker::new);
                        let bytes = unpacker.unpack(&self.gathered, of, self.width, skip);
                        let bytes = bytes.map_err(|error| Blame::Protocol(error.to_string()))?;
                        taken += part.append(&bytes);
                        self.end();
                    }
                }
            }
        }
        Ok(taken)
    }

    /// Moves bytes from `packet` until `length` are gathered; whether they are.
    fn gather(&mut self, packet: &mut Bytes, length: usize) -> bool {
        let more = packet.len().min(length - self.gathered.len());
        self.gathered.extend_from_slice(&packet[..more]);
        packet.advance(more);
        self.gathered.len() == length
    }

    /// Bytes that the chunk at hand has in the blob.
    fn chunk_bytes(&self) -> usize {
        usize::try_from(self.asked).map_or(CHUNK_BYTES, |asked| asked.min(CHUNK_BYTES))
    }

    /// The head of a chunk is there.
    fn begin(&mut self) -> Result<(), Blame> {
        let (head, of) = (self.gathered.first_chunk(), self.chunk_bytes());
        let length = u32::from_le_bytes(*head.expect("the head has been gathered"));
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.gathered.clear();
        self.state = match length {
            _ if length > of || length == 0 => {
                let fault = format!("sends {length} bytes for a chunk of {of}");
                return Err(Blame::Protocol(fault));
            }
            _ if length == of => State::Plain { missing: length },
            _ => State::Packed { length, of },
        };
        Ok(())
    }

    /// The chunk is there.
    fn end(&mut self) {
        let bytes = self.chunk_bytes() as u64;
        self.asked -= bytes;
        self.left = self.left.saturating_sub(bytes);
        self.gathered.clear();
        self.state = State::Head;
    }
}

#[cfg(test)]
mod tests {
    use gradmesh_compression::planes::Packer;

    use super::super::assembly::Assembly;
    use super::*;

    fn part(length: usize) -> Part {
        Assembly::exactly(length).take(0).unwrap()
    }

    fn head(length: usize) -> Vec<u8> {
        (length as u32).to_le_bytes().to_vec()
    }

    #[test]
    fn plain_and_packed_chunks_arrive_however_they_are_cut() {
        let length = CHUNK_BYTES + 1002;
        let bytes: Vec<u8> = (0..length).map(|place| (place % 7) as u8).collect();
        let (first, second) = bytes.split_at(CHUNK_BYTES);
        let mut packed = Vec::new();
        let left = length as u64;
        Packer::new().pack(first, Width::F32, skip(left, Width::F32), &mut packed);
        assert!(packed.len() < first.len());
        let stream = [&head(packed.len()), &packed[..], &head(1002), second].concat();
        for cut in [1, 3, 1000, stream.len()] {
            let mut part = part(length);
            let mut incoming = Incoming::new(Some(Width::F32), left, left);
            let mut taken = 0;
            for packet in stream.chunks(cut) {
                taken += incoming
                    .take(Bytes::copy_from_slice(packet), &mut part)
                    .unwrap();
            }
            assert_eq!(taken, length);
            let mut whole = Assembly::exactly(length);
            whole.take(0);
            whole.put_back(part);
            assert_eq!(whole.join(), bytes);
        }
    }

    #[test]
    fn chunk_of_no_bytes_or_too_many_or_that_does_not_unpack_is_a_fault() {
        let length = 5000;
        for wrong in [
            head(0),
            head(length + 1),
            head(u32::MAX as usize),
            [head(4000), vec![1; 4000]].concat(),
            [head(10), vec![1; 10]].concat(),
        ] {
            let mut incoming = Incoming::new(Some(Width::F32), length as u64, length as u64);
            let taken = incoming.take(wrong.into(), &mut part(length));
            assert!(matches!(taken, Err(Blame::Protocol(_))), "{taken:?}");
        }
    }

    #[test]
    fn what_exceeds_the_last_chunk_is_ignored() {
        let mut incoming = Incoming::new(Some(Width::Bf16), 4, 4);
        let stream = [head(4), vec![1; 9]].concat();
        assert_eq!(incoming.take(stream.into(), &mut part(4)), Ok(4));
    }
}
