//! Ring all-reduce over TCP: every member ends with the mean of all members' values, bit for bit the same.
//!
//! The values are cut into one chunk per member. In N-1 hops each chunk goes around the ring and every member adds its own
//! part; in N-1 more hops the means go around (Patarasuk and Yuan, 2009). A member sends and receives 2 (N-1)/N of its
//! values' bytes, which is the least that is possible. Chunks travel in segments, and a segment goes on as soon as it is
//! there, so that the line stays busy: the latency of a hop counts once, not 2 (N-1) times, as long as a chunk takes longer
//! than a hop. Sending has a thread of its own, because all members send and receive at once.
//!
//! Not encrypted and without a way to go on when a member fails, as NCCL and gloo are.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use gradmesh_trainer::optimizer::le_bytes;

/// 64 KiB, 5 ms at 100 Mbit/s. A guess: small beside a chunk, large beside the cost of a system call.
const SEGMENT_ELEMENTS: usize = 16 << 10;
/// How long a neighbour may take to answer a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// One member's place in a ring.
#[derive(Debug)]
pub(super) struct Ring {
    rank: usize,
    size: usize,
    /// Absent in a ring of one.
    neighbours: Option<Neighbours>,
}

#[derive(Debug)]
struct Neighbours {
    previous: TcpStream,
    received: Vec<u8>,
    /// Segments for the next member; at most all values of one call wait here.
    outgoing: Sender<Vec<u8>>,
    /// Ends when sending fails.
    sending: Option<JoinHandle<std::io::Result<()>>>,
}

impl Ring {
    /// Meets the neighbours: the previous member at `listener`, the next one at `next`.
    ///
    /// # Errors
    /// A neighbour that cannot be reached, or a stranger in its place.
    pub(super) fn join(
        rank: usize,
        size: usize,
        listener: &TcpListener,
        next: SocketAddr,
    ) -> anyhow::Result<Ring> {
        if size == 1 {
            return Ok(Ring {
                rank,
                size,
                neighbours: None,
            });
        }
        let mut stream = TcpStream::connect_timeout(&next, CONNECT_PATIENCE).with_context(|| {
            format!("the next member at {next} cannot be reached: a cluster needs links that let connections in")
        })?;
        stream.set_nodelay(true)?;
        stream.write_all(&(rank as u64).to_le_bytes())?;
        let (mut previous, address) = listener.accept()?;
        previous.set_nodelay(true)?;
        let mut name = [0; 8];
        previous.read_exact(&mut name)?;
        let (name, expected) = (u64::from_le_bytes(name), (rank + size - 1) % size);
        ensure!(
            name == expected as u64,
            "{address} is member {name}, but member {expected} belongs there"
        );
        let (outgoing, segments) = channel();
        Ok(Ring {
            rank,
            size,
            neighbours: Some(Neighbours {
                previous,
                received: vec![0; SEGMENT_ELEMENTS * 4],
                outgoing,
                sending: Some(thread::spawn(move || send(stream, &segments))),
            }),
        })
    }

    /// Replaces `values` by their mean over all members, who all call this with as many.
    ///
    /// The values of chunk `c` are added in the order of members `c, c + 1, ...`, and divided once.
    ///
    /// # Errors
    /// A connection that breaks.
    pub(super) fn average(&mut self, values: &mut [f32]) -> anyhow::Result<()> {
        let (rank, size, elements) = (self.rank, self.size, values.len());
        let Some(neighbours) = &mut self.neighbours else {
            return Ok(());
        };
        let behind = |hops: usize| {
            let chunk = (rank + size - hops) % size;
            segments(elements * chunk / size..elements * (chunk + 1) / size)
        };
        for segment in behind(0) {
            neighbours.send(&values[segment])?;
        }
        for hop in 1..size {
            for segment in behind(hop) {
                let values = &mut values[segment];
                let sums = neighbours.receive(values.len())?;
                for (value, sum) in values.iter_mut().zip(sums) {
                    *value += sum;
                }
                if hop == size - 1 {
                    for value in values.iter_mut() {
                        *value /= size as f32;
                    }
                }
                neighbours.send(values)?;
            }
        }
        for hop in 0..size - 1 {
            for segment in behind(hop) {
                let values = &mut values[segment];
                let means = neighbours.receive(values.len())?;
                for (value, mean) in values.iter_mut().zip(means) {
                    *value = mean;
                }
                if hop < size - 2 {
                    neighbours.send(values)?;
                }
            }
        }
        Ok(())
    }
}

impl Neighbours {
    fn send(&mut self, values: &[f32]) -> anyhow::Result<()> {
        if self.outgoing.send(le_bytes(values).into_owned()).is_ok() {
            return Ok(());
        }
        let sending = self.sending.take().map(JoinHandle::join);
        let Some(Ok(Err(error))) = sending else {
            return Err(anyhow!("the thread that sends has ended"));
        };
        Err(error).context("sending to the next member")
    }

    /// The next `count` values of the previous member.
    fn receive(&mut self, count: usize) -> anyhow::Result<impl Iterator<Item = f32>> {
        let bytes = &mut self.received[..count * 4];
        self.previous
            .read_exact(bytes)
            .context("receiving from the previous member")?;
        let (values, _) = bytes.as_chunks::<4>();
        Ok(values.iter().map(|value| f32::from_le_bytes(*value)))
    }
}

fn send(mut stream: TcpStream, segments: &Receiver<Vec<u8>>) -> std::io::Result<()> {
    for segment in segments {
        stream.write_all(&segment)?;
    }
    Ok(())
}

fn segments(chunk: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = chunk.end;
    chunk
        .step_by(SEGMENT_ELEMENTS)
        .map(move |start| start..end.min(start + SEGMENT_ELEMENTS))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// What every member of a ring ends with; member `r` begins with `value(r, i)` at element `i`.
    fn averaged(size: usize, elements: usize, value: fn(usize, usize) -> f32) -> Vec<Vec<f32>> {
        let listeners: Vec<TcpListener> = (0..size)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
            .collect();
        let addresses: Vec<SocketAddr> =
            listeners.iter().map(|l| l.local_addr().unwrap()).collect();
        let members = listeners.into_iter().enumerate().map(|(rank, listener)| {
            let next = addresses[(rank + 1) % size];
            thread::spawn(move || {
                let mut ring = Ring::join(rank, size, &listener, next).unwrap();
                let mut values: Vec<f32> = (0..elements).map(|i| value(rank, i)).collect();
                // Twice: a ring is used again and again. The mean of equal values is that value.
                ring.average(&mut values).unwrap();
                ring.average(&mut values).unwrap();
                values
            })
        });
        let members: Vec<JoinHandle<Vec<f32>>> = members.collect();
        members
            .into_iter()
            .map(|member| member.join().unwrap())
            .collect()
    }

    #[test]
    fn every_member_ends_with_the_mean() {
        // Small integers and sizes that are powers of two: every sum and mean is exact.
        for size in [1, 2, 4] {
            for elements in [0, 1, 3, 1000, size * SEGMENT_ELEMENTS + 5] {
                let mean = (0..elements).map(|i| (i % 7) as f32 + (size - 1) as f32 / 2.0);
                let mean: Vec<f32> = mean.collect();
                let all = averaged(size, elements, |rank, i| (i % 7 + rank) as f32);
                assert!(all.iter().all(|own| *own == mean), "{size}, {elements}");
            }
        }
    }

    #[test]
    fn members_end_with_the_same_bits_where_sums_are_rounded() {
        let all = averaged(3, 1000, |rank, i| 1.0 / (3 * i + rank + 1) as f32);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&all[0]), bits(&all[1]));
        assert_eq!(bits(&all[0]), bits(&all[2]));
    }

    #[test]
    fn a_stranger_in_a_members_place_is_refused() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let own = listener.local_addr().unwrap();
        // The only connection comes from member 1 itself, but member 0 belongs there.
        let error = Ring::join(1, 3, &listener, own).unwrap_err();
        assert!(error.to_string().contains("member 0 belongs"), "{error}");
    }

    #[test]
    fn a_member_that_is_gone_is_an_error() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let own = listener.local_addr().unwrap();
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = other.local_addr().unwrap();
        let gone = thread::spawn(move || drop(Ring::join(1, 2, &other, own).unwrap()));
        let mut ring = Ring::join(0, 2, &listener, address).unwrap();
        gone.join().unwrap();
        assert!(ring.average(&mut [1.0; 8]).is_err());
    }
}
