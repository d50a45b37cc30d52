//! The subnet tasks against a development chain in a process of its own. They need the executable `gradmesh-devchain`
//! beside the test's own directory, which `cargo test --workspace` builds; without it they say so and pass, unless
//! `GRADMESH_REQUIRE_DEVCHAIN` is set.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use gradmesh_protocol::key::Keypair;
use gradmesh_protocol::manifest::{Powers, example};

use super::*;
use crate::commands::subnet::{entry, told};
use crate::store::QueuedAttestation;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A development chain that ends with this.
struct DevChain {
    process: Child,
    url: String,
}

impl Drop for DevChain {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts the chain of `dir` at `port`; `None`, with a word why, if there is no executable.
fn start(dir: &Path, port: u16) -> Option<DevChain> {
    let own = std::env::current_exe().unwrap();
    let executable = own.parent().unwrap().with_file_name("gradmesh-devchain");
    if !executable.is_file() {
        let required = std::env::var_os("GRADMESH_REQUIRE_DEVCHAIN").is_some();
        assert!(!required, "{} is not built", executable.display());
        eprintln!("skipped: {} is not built", executable.display());
        return None;
    }
    let mut process = Command::new(executable)
        .args([
            "--json",
            "--block-ms",
            "250",
            "--tempo",
            "20",
            "--finality-lag",
            "1",
        ])
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .arg("--dir")
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let out = process.stdout.take().unwrap();
    BufReader::new(out).read_line(&mut line).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    let url = ready["url"].as_str().unwrap().to_owned();
    Some(DevChain { process, url })
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

/// A daemon's side of the chain, without a daemon.
struct Peer {
    link: SubnetLink,
    status: StatusHandle,
    gate: Gate,
    store: Arc<Store>,
    state_dir: StateDir,
    manifest: Arc<Manifest>,
    key: PeerKey,
    _temp: tempfile::TempDir,
}

impl Peer {
    fn start(url: &str, genesis: Hash, netuid: u16, hotkey: Key) -> Peer {
        let temp = tempfile::tempdir().unwrap();
        let state_dir = StateDir::new(temp.path().join("state"));
        let store = Arc::new(Store::open(&state_dir).unwrap());
        let key = Keypair::from_seed(&[7; 32]).public();
        let subnet = manifest::Subnet {
            genesis,
            netuid,
            powers: Powers::Equal,
            snapshot_blocks: 2,
        };
        let manifest = Arc::new(Manifest {
            chain: manifest::Chain::Subnet(subnet),
            ..example(key)
        });
        let (status, gate) = (StatusHandle::new(), Gate::default());
        let link = SubnetLink::start(Parts {
            access: Access {
                settings: Settings::network(url).unwrap(),
                hotkey,
                axon: None,
            },
            subnet,
            manifest: Arc::clone(&manifest),
            me: key,
            store: Arc::clone(&store),
            state_dir: state_dir.clone(),
            status: status.clone(),
            gate: gate.clone(),
        });
        Peer {
            link,
            status,
            gate,
            store,
            state_dir,
            manifest,
            key,
            _temp: temp,
        }
    }

    /// Waits until the chain's part of the status is as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&ChainStatus) -> bool) {
        let started = Instant::now();
        loop {
            let chain = self.status.snapshot().chain.unwrap();
            if wanted(&chain) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{what}: {chain:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A subnet with the hotkey of //Bob, owned by //Alice.
async fn subnet(client: &Client) -> u16 {
    let (alice, bob) = (Key::dev("Alice"), Key::dev("Bob").account());
    told(client.register_network(&alice, &bob).await).unwrap().0
}

async fn client(url: &str) -> Client {
    told(Client::connect(Settings::network(url).unwrap()).await).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn attestations_made_while_the_chain_is_away_are_sent_in_order_when_it_is_back() {
    let temp = tempfile::tempdir().unwrap();
    let port = free_port();
    let Some(chain) = start(temp.path(), port) else {
        return;
    };
    let url = chain.url.clone();
    let before = client(&url).await;
    let netuid = subnet(&before).await;
    let genesis = Hash(before.genesis());
    drop(chain);

    let peer = Peer::start(&url, genesis, netuid, Key::dev("Bob"));
    peer.until("the chain is missed", |chain| !chain.problems.is_empty())
        .await;
    peer.link
        .launched(Hash::of_content(b"theta of round 1"))
        .unwrap();
    for epoch in 1..=2 {
        let round = epoch * 10;
        std::fs::create_dir_all(peer.state_dir.checkpoint(round)).unwrap();
        let attestation = QueuedAttestation {
            epoch,
            round,
            state_root: [epoch as u8; 32],
            scores: [9; 32],
            evidence_root: [0; 32],
        };
        peer.store.queue_attestation(&attestation).unwrap();
    }
    assert_eq!(peer.store.queued_attestations().unwrap().len(), 3);

    let _chain = start(temp.path(), port).unwrap();
    peer.until("all are sent", |chain| {
        let newest = chain.attested.as_ref().map(|attested| attested.epoch);
        newest == Some(2) && chain.problems.is_empty()
    })
    .await;
    assert_eq!(peer.store.queued_attestations().unwrap(), []);
    let receipt = |round| {
        let receipt = AttestationReceipt::read(&peer.state_dir.checkpoint(round)).unwrap();
        receipt.unwrap()
    };
    let (first, second) = (receipt(10), receipt(20));
    assert!(
        first.block_number < second.block_number,
        "{first:?} {second:?}"
    );

    let after = client(&url).await;
    assert_eq!(
        told(after.block_hash(first.block_number).await).unwrap(),
        Some(first.block_hash.0)
    );
    let hotkey = Key::dev("Bob").account();
    let at = Some(first.block_hash.0);
    let commitment = told(after.commitment(netuid, &hotkey, at).await)
        .unwrap()
        .unwrap();
    let attested = gradmesh_chain::attestation::Attestation::decode(&commitment.fields).unwrap();
    assert_eq!((attested.epoch, attested.state_root), (1, [1; 32]));
    assert_eq!(attested.run, peer.manifest.run().0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launched_run_is_found_from_the_chain_alone_and_only_the_registered_pass() {
    let temp = tempfile::tempdir().unwrap();
    let Some(chain) = start(temp.path(), free_port()) else {
        return;
    };
    let client = client(&chain.url).await;
    let netuid = subnet(&client).await;
    let genesis = Hash(client.genesis());
    let stranger = Keypair::from_seed(&[8; 32]).public();
    let error = entry(&client, netuid, stranger).await.unwrap_err();
    assert!(
        error.to_string().contains("nobody attests a run"),
        "{error}"
    );

    let mut peer = Peer::start(&chain.url, genesis, netuid, Key::dev("Bob"));
    let root = Hash::of_content(b"theta of round 1");
    peer.link.launched(root).unwrap();
    peer.link.listening("127.0.0.1:4700".parse().unwrap());
    let id = crate::daemon::peer_id;
    loop {
        let snapshot = tokio::time::timeout(PATIENCE, peer.link.event()).await;
        let Event::Snapshot {
            registry, peers, ..
        } = snapshot.unwrap().unwrap();
        assert_eq!(peers, [], "this peer is the only one");
        if registry.power_of(&peer.key) == Some(1) {
            break;
        }
    }
    assert!(peer.gate.admits(&id(&peer.key).unwrap()));
    assert!(!peer.gate.admits(&id(&stranger).unwrap()));
    peer.until("epoch 0 is attested", |chain| chain.attested.is_some())
        .await;
    peer.until("how few hold the subnet is told", |chain| {
        chain.concentration.is_some()
    })
    .await;

    let found = entry(&client, netuid, stranger).await.unwrap();
    assert_eq!(found.run, peer.manifest.run());
    assert_eq!(found.attested, None, "nobody trained yet");
    assert_eq!(found.peers.len(), 1);
    assert_eq!(found.peers[0].key, peer.key);
    let address = found.peers[0].addresses[0].to_string();
    assert_eq!(address, "/ip4/127.0.0.1/udp/4700/quic-v1");

    // Another chain than the run's is told, and nothing is sent to it.
    let other = Peer::start(
        &chain.url,
        Hash::of_content(b"another chain"),
        netuid,
        Key::dev("Bob"),
    );
    other
        .until("another chain is noticed", |chain| {
            let problem = chain.problems.get("connect");
            problem.is_some_and(|problem| problem.contains("genesis"))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_ended_before_a_restart_is_attested_after_it_once() {
    let nobody = format!("ws://127.0.0.1:{}", free_port());
    let genesis = Hash::of_content(b"a chain that is away");
    let peer = Peer::start(&nobody, genesis, 1, Key::dev("Bob"));
    let root = Hash::of_content(b"the state after round 8");
    let scored = || peer.link.shared.scores.borrow().as_ref().map(|t| t.epoch.0);

    peer.link.resumed((RoundId(3), root)).unwrap();
    assert_eq!(peer.store.queued_attestations().unwrap(), []);
    assert_eq!(scored(), None, "no epoch has ended");

    peer.link.resumed((RoundId(8), root)).unwrap();
    let queued = peer.store.queued_attestations().unwrap();
    assert_eq!(queued.len(), 1);
    assert_eq!((queued[0].epoch, queued[0].round), (2, 8));
    assert_eq!(queued[0].state_root, root.0);
    assert_eq!(scored(), Some(2));

    peer.store.attestation_sent(2).unwrap();
    let checkpoint = peer.state_dir.checkpoint(8);
    std::fs::create_dir_all(&checkpoint).unwrap();
    let receipt = AttestationReceipt {
        genesis,
        netuid: 1,
        hotkey: String::new(),
        run: root,
        epoch: 2,
        round: 8,
        state_root: root,
        scores: root,
        block_number: 1,
        block_hash: root,
        extrinsic_index: 0,
    };
    receipt.write(&checkpoint).unwrap();
    peer.link.resumed((RoundId(8), root)).unwrap();
    assert_eq!(peer.store.queued_attestations().unwrap(), []);
}

#[test]
fn the_address_that_reaches_farthest_is_published() {
    let mut addresses: Vec<SocketAddr> = [
        "10.1.2.3:1",
        "127.0.0.1:1",
        "8.8.8.8:1",
        "0.0.0.0:1",
        "[::1]:1",
    ]
    .iter()
    .map(|text| text.parse().unwrap())
    .collect();
    addresses.sort_by_key(reach);
    assert_eq!(addresses.last().unwrap().to_string(), "8.8.8.8:1");
    assert_eq!(addresses[0].to_string(), "0.0.0.0:1");
    assert_eq!(addresses[3].to_string(), "10.1.2.3:1");
}
