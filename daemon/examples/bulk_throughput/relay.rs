//! A UDP relay that stands for a long, thin, lossy link: delay, rate, loss, a bounded queue and a packet size.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Largest UDP payload of an Ethernet path.
const PAYLOAD_BYTES_MAX: usize = 1472;
/// IPv4 and UDP headers, which take their share of the rate.
const HEADER_BYTES: usize = 28;
/// Packets on their way in one direction of one flow: far above what rate times delay and queue hold.
const PACKETS_MAX: usize = 65_536;

#[derive(Clone, Copy)]
pub(crate) struct Link {
    pub(crate) bits_per_s: f64,
    /// One way.
    pub(crate) delay: Duration,
    /// Probability that a packet is lost.
    pub(crate) loss: f64,
    /// Time that a packet waits at most for its turn; beyond it is dropped.
    pub(crate) queue: Duration,
}

/// One direction of the link, shared by all flows.
struct Direction {
    link: Link,
    state: Mutex<State>,
}

struct State {
    free_at: Instant,
    random: u64,
}

impl Direction {
    fn new(link: Link, seed: u64) -> Arc<Direction> {
        let (free_at, random) = (Instant::now(), seed);
        let state = Mutex::new(State { free_at, random });
        Arc::new(Direction { link, state })
    }

    /// When a packet that comes now is delivered, or nothing when it is dropped.
    fn admit(&self, payload_bytes: usize) -> Option<Instant> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let start = state.free_at.max(now);
        if payload_bytes > PAYLOAD_BYTES_MAX || start - now > self.link.queue {
            return None;
        }
        let bits = (payload_bytes + HEADER_BYTES) as f64 * 8.0;
        state.free_at = start + Duration::from_secs_f64(bits / self.link.bits_per_s);
        // xorshift64*
        state.random ^= state.random >> 12;
        state.random ^= state.random << 25;
        state.random ^= state.random >> 27;
        let drawn = state.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        let lost = (drawn as f64 / (1u64 << 53) as f64) < self.link.loss;
        (!lost).then_some(state.free_at + self.link.delay)
    }
}

/// Relays what comes to the returned address to `server` and back, until the runtime ends.
pub(crate) async fn start(server: SocketAddr, link: Link, seed: u64) -> Result<SocketAddr> {
    let front = Arc::new(socket().await?);
    let addr = front.local_addr()?;
    let (up, down) = (
        Direction::new(link, seed | 1),
        Direction::new(link, !seed | 1),
    );
    tokio::spawn(async move {
        let mut flows: HashMap<SocketAddr, Sender> = HashMap::new();
        let mut packet = [0; 65_536];
        while let Ok((length, from)) = front.recv_from(&mut packet).await {
            if let Entry::Vacant(flow) = flows.entry(from) {
                let Ok(back) = socket().await.map(Arc::new) else {
                    return;
                };
                if back.connect(server).await.is_err() {
                    return;
                }
                flow.insert(deliver(Arc::clone(&back), None));
                let answers = deliver(Arc::clone(&front), Some(from));
                tokio::spawn(carry_back(back, answers, Arc::clone(&down)));
            }
            if let (Some(at), Some(flow)) = (up.admit(length), flows.get(&from)) {
                let _ = flow.try_send((at, packet[..length].to_vec()));
            }
        }
    });
    Ok(addr)
}

type Sender = mpsc::Sender<(Instant, Vec<u8>)>;

async fn carry_back(back: Arc<UdpSocket>, answers: Sender, down: Arc<Direction>) {
    let mut packet = [0; 65_536];
    while let Ok(length) = back.recv(&mut packet).await {
        if let Some(at) = down.admit(length) {
            let _ = answers.try_send((at, packet[..length].to_vec()));
        }
    }
}

/// Sends packets over `socket` when their time has come.
fn deliver(socket: Arc<UdpSocket>, to: Option<SocketAddr>) -> Sender {
    let (sender, mut packets) = mpsc::channel::<(Instant, Vec<u8>)>(PACKETS_MAX);
    tokio::spawn(async move {
        while let Some((at, packet)) = packets.recv().await {
            sleep_until(at).await;
            let _ = match to {
                Some(to) => socket.send_to(&packet, to).await,
                None => socket.send(&packet).await,
            };
        }
    });
    sender
}

async fn socket() -> Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let buffers = socket2::SockRef::from(&socket);
    buffers.set_recv_buffer_size(4 << 20)?;
    buffers.set_send_buffer_size(4 << 20)?;
    socket.set_nonblocking(true)?;
    Ok(UdpSocket::from_std(socket)?)
}
