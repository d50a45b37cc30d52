//! Throughput of the bulk plane, through the serve and fetch code of the daemon.
//!
//! ```text
//! bulk_throughput [--peers N] [--mib SIZE] [--repeats R] [--connections C] [--congestion paced,bbr,cubic,newreno]
//!                 [--road near,quic] [--mbit RATE --rtt-ms TIME --loss PROBABILITY]
//! ```
//! On loopback, or, with a rate, through a relay that stands for a link. Roads and congestion controls alternate within
//! one process. The relay carries no TCP, so that there is no near road over it.
//!
//! Every peer holds one blob and fetches those of all others at once. Prints one line per repetition: payload MB/s
//! over all receivers, CPU seconds of the process (both ends) per GB of payload, the peak of its resident memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use gradmesh::blob::BlobStore;
use gradmesh::net::bulk::{Bulk, BulkConfig, BulkLimits, Congestion, Length, PeerSource};
use libp2p::identity::Keypair;

mod relay;

const PATIENCE: Duration = Duration::from_secs(120);
/// Of `/proc/self/stat`, the same on every Linux that this runs on.
const CLOCK_TICKS_PER_S: f64 = 100.0;

struct Peer {
    bulk: Bulk,
    source: PeerSource,
    hash: [u8; 32],
}

#[tokio::main(flavor = "multi_thread")]
async fn main() -> Result<()> {
    let cases = Cases::parse(std::env::args().skip(1))?;
    for repeat in 0..cases.repeats {
        for &road in &cases.roads {
            for &congestion in &cases.congestion {
                let (rate, cpu) = exchange(&cases, road, congestion, repeat as u64).await?;
                println!(
                    "peers={} mib={} road={road:?} congestion={congestion:?} repeat={repeat} mb_per_s={rate:.1} \
                     cpu_s_per_gb={cpu:.3} peak_mib={}",
                    cases.peers,
                    cases.mib,
                    peak_mib()?
                );
            }
        }
    }
    Ok(())
}

/// What long blobs travel over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Road {
    Near,
    Quic,
}

struct Cases {
    peers: usize,
    mib: usize,
    repeats: usize,
    connections: usize,
    congestion: Vec<Congestion>,
    roads: Vec<Road>,
    link: Option<relay::Link>,
}

impl Cases {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Cases> {
        let mut cases = Cases {
            peers: 2,
            mib: 100,
            repeats: 5,
            connections: BulkLimits::default().connections_per_pipe,
            congestion: vec![BulkLimits::default().congestion],
            roads: vec![Road::Near],
            link: None,
        };
        let (mut mbit, mut rtt_ms, mut loss) = (0.0f64, 0.0f64, 0.0);
        while let Some(name) = args.next() {
            let value = args
                .next()
                .with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--peers" => cases.peers = value.parse()?,
                "--mib" => cases.mib = value.parse()?,
                "--repeats" => cases.repeats = value.parse()?,
                "--connections" => cases.connections = value.parse()?,
                "--congestion" => {
                    cases.congestion = value.split(',').map(congestion).collect::<Result<_>>()?;
                }
                "--road" => cases.roads = value.split(',').map(road).collect::<Result<_>>()?,
                "--mbit" => mbit = value.parse()?,
                "--rtt-ms" => rtt_ms = value.parse()?,
                "--loss" => loss = value.parse()?,
                _ => bail!("unknown option {name}"),
            }
        }
        ensure!(cases.peers >= 2, "two peers at least");
        cases.link = (mbit > 0.0).then(|| relay::Link {
            bits_per_s: mbit * 1e6,
            delay: Duration::from_secs_f64(rtt_ms / 2e3),
            loss,
            // A router with a queue of one round trip.
            queue: Duration::from_secs_f64(rtt_ms / 1e3),
        });
        Ok(cases)
    }
}

fn road(name: &str) -> Result<Road> {
    Ok(match name {
        "near" => Road::Near,
        "quic" => Road::Quic,
        _ => bail!("unknown road {name}"),
    })
}

fn congestion(name: &str) -> Result<Congestion> {
    Ok(match name {
        "cubic" => Congestion::Cubic,
        "bbr" => Congestion::Bbr,
        "newreno" => Congestion::NewReno,
        "paced" => Congestion::Paced,
        _ => bail!("unknown congestion control {name}"),
    })
}

/// MB/s of payload and CPU seconds per GB. With two peers one sends and one receives, so that the rate is that of one
/// direction; with more everyone sends to everyone.
async fn exchange(
    cases: &Cases,
    road: Road,
    congestion: Congestion,
    seed: u64,
) -> Result<(f64, f64)> {
    let bytes = cases.mib << 20;
    let mut peers = Vec::new();
    for index in 0..cases.peers {
        let limits = BulkLimits {
            congestion,
            connections_per_pipe: cases.connections,
            connections_per_peer_max: 2 * cases.connections,
            near_road: road == Road::Near,
            ..BulkLimits::default()
        };
        let mut peer = start(index as u8, bytes, limits)?;
        if let Some(link) = cases.link {
            peer.source.addr = relay::start(peer.source.addr, link, seed).await?;
        }
        peers.push(peer);
    }
    let (cpu, began) = (cpu_s()?, Instant::now());
    let mut fetches = tokio::task::JoinSet::new();
    for (to, receiver) in peers.iter().enumerate() {
        for (from, sender) in peers.iter().enumerate() {
            if to == from || (cases.peers == 2 && to == 0) {
                continue;
            }
            let (bulk, source, hash) = (receiver.bulk.clone(), sender.source, sender.hash);
            fetches.spawn(async move {
                let deadline = tokio::time::Instant::now() + PATIENCE;
                bulk.fetch(hash, Length::Exactly(bytes as u64), &[source], deadline)
                    .await
            });
        }
    }
    let mut moved = 0usize;
    let mut kept = Vec::new();
    while let Some(fetched) = fetches.join_next().await {
        let fetched = fetched??;
        moved += fetched.bytes.len();
        kept.push(fetched.bytes);
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_s()? - cpu);
    let near: u64 = peers.iter().map(|peer| peer.bulk.near_bytes()).sum();
    if road == Road::Near && cases.link.is_none() && near < moved as u64 {
        println!("{near} bytes of {moved} came over near roads");
    }
    for peer in peers {
        peer.bulk.shutdown().await;
    }
    Ok((moved as f64 / 1e6 / seconds, cpu / (moved as f64 / 1e9)))
}

fn start(seed: u8, length: usize, limits: BulkLimits) -> Result<Peer> {
    let store = Arc::new(BlobStore::new(length as u64));
    let mut bytes = vec![0; length];
    blake3::Hasher::new_keyed(&[seed; 32])
        .finalize_xof()
        .fill(&mut bytes);
    let hash = store.insert(0, Bytes::from(bytes))?;
    let keypair = Keypair::generate_ed25519();
    let peer = keypair.public().to_peer_id();
    let listen: SocketAddr = "127.0.0.1:0".parse()?;
    let config = BulkConfig {
        keypair,
        listen,
        limits,
    };
    let bulk = Bulk::spawn(config, store, Arc::new(|_| true))?;
    let addr = bulk.local_addr();
    Ok(Peer {
        bulk,
        source: PeerSource { peer, addr },
        hash,
    })
}

/// User and system seconds of this process.
fn cpu_s() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("no command name")?;
    let ticks: Vec<f64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<f64>())
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / CLOCK_TICKS_PER_S)
}

fn peak_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? / 1024)
}
