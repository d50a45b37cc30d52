//! Real daemons on loopback: processes, sockets, text, libtorch. Each scenario waits for conditions, never for times.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gradmesh::state_dir::StateDir;
use gradmesh::status::{Phase, Status, client};
use gradmesh_protocol::hash::Hash;
use tempfile::TempDir;

/// The longest that any condition may take on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(120);

/// A model of some thousand parameters: rounds of half a second on one core.
const MODEL: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true
}"#;

/// A run and the peers of it.
struct Mesh {
    home: TempDir,
    exchange: Exchange,
    ticket: String,
    peers: BTreeMap<usize, Peer>,
}

/// How updates are exchanged.
#[derive(Clone, Copy)]
struct Exchange {
    plan: &'static str,
    /// Rounds that training runs ahead.
    overlap: u32,
    /// Of which a round exchanges one.
    fragments: u32,
}

struct Peer {
    dir: StateDir,
    child: Option<Child>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Peer {
    /// SIGKILL: nothing is flushed, nobody is told.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGSTOP or SIGCONT: its sockets stay open, and nobody answers at them.
    fn signal(&self, name: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.unwrap().success());
    }

    /// The status, once the daemon of this process id answers.
    fn status(&self) -> Option<Status> {
        let child = self.child.as_ref()?;
        let address = self.dir.status_address().ok().flatten()?;
        if address.pid != child.id() {
            return None;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(client::status(&address.url)).ok()
    }
}

impl Mesh {
    /// Launches a run and starts `peers` daemons in all. Under the plan `hier` they are in two sites.
    fn new(
        peers: usize,
        exchange: Exchange,
        trust: &str,
        steps: u32,
        rounds_per_epoch: u64,
    ) -> Mesh {
        let Exchange {
            plan,
            overlap,
            fragments,
        } = exchange;
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("text");
        fs::create_dir(&data).unwrap();
        let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"));
        let licence = include_str!("../../LICENSE-APACHE");
        fs::write(data.join("lib.rs"), source.unwrap()).unwrap();
        fs::write(data.join("licence.txt"), licence).unwrap();
        fs::write(home.path().join("config.json"), MODEL).unwrap();
        let run = format!(
            r#"
            name = "mesh test"
            model.config = "config.json"
            data.dir = "text"
            data.sequence_tokens = 32
            inner.batch_sequences = 8
            inner.learning_rate = 0.003
            inner.warmup_steps = 10
            codec.tiles_per_shard = 8
            exchange.plan = "{plan}"
            exchange.overlap = {overlap}
            exchange.fragments = {fragments}
            schedule.steps_per_round = {steps}
            schedule.rounds = 1000
            schedule.rounds_per_epoch = {rounds_per_epoch}
            trust.mode = "{trust}"
            trust.peers_min = {peers}
            trust.absent_rounds_max = 2
            timing.deadline_floor_ms = 4000
            timing.deadline_cap_ms = 20000
            timing.propose_ms = 3000
            timing.vote_ms = 500
            "#
        );
        fs::write(home.path().join("run.toml"), run).unwrap();
        let mut mesh = Mesh {
            home,
            exchange,
            ticket: String::new(),
            peers: BTreeMap::new(),
        };
        let run_file = mesh.home.path().join("run.toml");
        mesh.start(0, &["launch", run_file.to_str().unwrap()]);
        mesh.wait("a ticket", |mesh| {
            mesh.peers[&0].status().is_some_and(|s| s.ticket.is_some())
        });
        mesh.ticket = mesh.peers[&0].status().unwrap().ticket.unwrap();
        for peer in 1..peers {
            mesh.join(peer);
        }
        mesh
    }

    fn dir(&self, peer: usize) -> PathBuf {
        self.home.path().join(format!("peer-{peer}"))
    }

    fn start(&mut self, peer: usize, words: &[&str]) {
        let dir = self.dir(peer);
        let log = self.home.path().join(format!("peer-{peer}.log"));
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let site: &[&str] = match (self.exchange.plan, peer % 2) {
            ("hier", 0) => &["--site", "even"],
            ("hier", _) => &["--site", "odd"],
            _ => &[],
        };
        let child = Command::new(env!("CARGO_BIN_EXE_gradmesh"))
            .args(words)
            .args(site)
            .args(["--dir", dir.to_str().unwrap()])
            .args(["--listen", "/ip4/127.0.0.1/udp/0/quic-v1"])
            .args(["--bulk-listen", "127.0.0.1:0"])
            .args(["--status-listen", "127.0.0.1:0"])
            .args(["--threads", "1", "--device", "cpu"])
            .args(["--log", "info"])
            .env("HOME", self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let peer_entry = Peer {
            dir: StateDir::new(dir),
            child: Some(child),
        };
        self.peers.insert(peer, peer_entry);
    }

    /// Joins with nothing but the ticket: manifest and data come from the launcher.
    fn join(&mut self, peer: usize) {
        let ticket = self.ticket.clone();
        self.start(peer, &["join", &ticket]);
    }

    /// Starts a peer again in its state directory.
    fn resume(&mut self, peer: usize) {
        self.start(peer, &["join"]);
    }

    fn kill(&mut self, peer: usize) {
        self.peers.get_mut(&peer).unwrap().kill();
    }

    fn status(&self, peer: usize) -> Status {
        self.peers[&peer]
            .status()
            .unwrap_or_else(|| panic!("peer {peer} does not answer\n{}", self.logs()))
    }

    fn wait(&self, what: &str, done: impl Fn(&Mesh) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(
                began.elapsed() < PATIENCE,
                "waited in vain for {what}\n{}",
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The last lines of every log, for a failing test.
    fn logs(&self) -> String {
        let tails = self.peers.keys().map(|peer| {
            let log = self.home.path().join(format!("peer-{peer}.log"));
            let text = fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(25)..].join("\n");
            format!("--- peer {peer}\n{tail}\n")
        });
        tails.collect()
    }

    fn applied(&self, peer: usize) -> u64 {
        let status = self.peers[&peer].status();
        status.and_then(|s| s.applied).unwrap_or(0)
    }

    fn wait_applied(&self, peers: &[usize], round: u64) {
        self.wait(&format!("round {round}"), |mesh| {
            peers.iter().all(|peer| mesh.applied(*peer) >= round)
        });
    }

    /// Every pair of peers has the same root after every round that both applied; returns how many were compared.
    fn check_roots(&self, peers: &[usize]) -> usize {
        let mut known: BTreeMap<u64, Hash> = BTreeMap::new();
        let mut compared = 0;
        for peer in peers {
            for round in self.status(*peer).history {
                let Some(root) = round.root else { continue };
                match known.get(&round.round) {
                    Some(other) => {
                        assert_eq!(*other, root, "round {} of peer {peer}", round.round);
                        compared += 1;
                    }
                    None => {
                        known.insert(round.round, root);
                    }
                }
            }
        }
        compared
    }

    fn roster(&self, witness: usize) -> Vec<String> {
        let roster = self.status(witness).roster;
        roster.into_iter().map(|peer| peer.peer).collect()
    }

    fn name(&self, peer: usize) -> String {
        self.status(peer).identity.peer[..8].to_owned()
    }
}

fn in_turn(plan: &'static str) -> Exchange {
    Exchange {
        plan,
        overlap: 0,
        fragments: 1,
    }
}

fn survives_the_death_of_one(peers: usize, exchange: Exchange, trust: &str) -> Mesh {
    let mut mesh = Mesh::new(peers, exchange, trust, 120, 4);
    let all: Vec<usize> = (0..peers).collect();
    mesh.wait_applied(&all, 3);
    let victim = peers - 1;
    let name = mesh.name(victim);
    mesh.wait("the victim in the middle of an exchange", |mesh| {
        let phase = mesh.peers[&victim].status().map(|status| status.phase);
        matches!(phase, Some(Phase::Exchanging | Phase::Deciding))
    });
    mesh.kill(victim);
    let before = mesh.applied(0);
    let killed = Instant::now();
    mesh.wait_applied(&all[..victim], before + 1);
    // How long that may take at most is a matter of virtual time (protocol/tests/cluster.rs); here it is only told.
    eprintln!("decided {:?} after the kill", killed.elapsed());
    mesh.wait("the victim out of the roster", |mesh| {
        !mesh.roster(0).contains(&name)
    });

    let missed = mesh.status(0).decided.unwrap();
    mesh.resume(victim);
    mesh.wait("the victim caught up", |mesh| {
        let status = mesh.peers[&victim].status();
        status.is_some_and(|status| status.applied >= Some(missed))
    });
    let back_from = mesh.status(0).decided.unwrap();
    mesh.wait("the victim in the roster", |mesh| {
        mesh.roster(0).contains(&name)
    });
    let back = mesh.status(0).decided.unwrap();
    assert!(
        back <= back_from + 2,
        "caught up in {back_from}, back in {back}"
    );
    mesh.wait("an update of the victim", |mesh| {
        let roster = mesh.status(0).roster;
        let member = roster.iter().find(|peer| peer.peer == name);
        member.is_some_and(|member| member.accepted_round > Some(back))
    });
    assert!(mesh.check_roots(&all) > 0);
    mesh
}

#[test]
fn four_peers_survive_the_death_of_one_in_an_exchange() {
    survives_the_death_of_one(4, in_turn("gather"), "byzantine");
}

#[test]
fn four_owners_survive_the_death_of_one_in_an_exchange() {
    survives_the_death_of_one(4, in_turn("reduce"), "byzantine");
}

#[test]
fn two_sites_survive_the_death_of_an_owner_in_an_exchange() {
    survives_the_death_of_one(4, in_turn("hier"), "byzantine");
}

#[test]
fn three_peers_with_crash_trust_survive_the_death_of_one() {
    survives_the_death_of_one(3, in_turn("gather"), "crash");
}

#[test]
fn peers_that_train_ahead_survive_the_death_of_one_in_an_exchange() {
    let ahead = Exchange {
        overlap: 1,
        ..in_turn("hier")
    };
    let mesh = survives_the_death_of_one(4, ahead, "byzantine");
    let seconds = |status: Status| status.history.into_iter().filter_map(|r| r.seconds);
    let mut rounds = (0..3).flat_map(|peer| seconds(mesh.status(peer)));
    assert!(
        rounds.any(|seconds| seconds.hidden > 0.0),
        "no exchange went on while the next round was trained"
    );
}

#[test]
fn peers_that_exchange_a_fragment_a_round_survive_the_death_of_one_in_an_exchange() {
    let fragments = Exchange {
        fragments: 3,
        ..in_turn("reduce")
    };
    survives_the_death_of_one(4, fragments, "byzantine");
}

/// Freezes one of three in the middle of an exchange, for as long as the others take to decide three rounds.
fn survives_the_freezing_of_one(plan: &'static str) {
    let mesh = Mesh::new(3, in_turn(plan), "crash", 120, 4);
    let (survivors, victim) = ([0, 1], 2);
    mesh.wait_applied(&[0, 1, 2], 3);
    let name = mesh.name(victim);
    // Of two members, none may be missing.
    mesh.wait(
        "the victim, one of three, in the middle of an exchange",
        |mesh| {
            mesh.peers[&victim].status().is_some_and(|status| {
                let exchanges = matches!(status.phase, Phase::Exchanging | Phase::Deciding);
                exchanges && status.roster.len() == 3
            })
        },
    );
    let frozen_in = mesh.status(victim).round;
    mesh.peers[&victim].signal("STOP");
    let frozen = Instant::now();
    mesh.wait_applied(&survivors, frozen_in);
    eprintln!("decided {:?} after the freeze", frozen.elapsed());
    mesh.wait_applied(&survivors, frozen_in + 2);
    mesh.wait("the victim out of the roster", |mesh| {
        !mesh.roster(0).contains(&name)
    });
    let missed = mesh.status(0).decided.unwrap();
    // Every round since then, each a decision of both survivors on the same bytes.
    let compared = mesh.check_roots(&survivors);
    assert!(compared as u64 >= missed - frozen_in, "{compared}");

    mesh.peers[&victim].signal("CONT");
    mesh.wait("the victim caught up", |mesh| {
        let status = mesh.peers[&victim].status();
        status.is_some_and(|status| status.applied >= Some(missed))
    });
    mesh.wait("the victim in the roster", |mesh| {
        mesh.roster(0).contains(&name)
    });
    let back = mesh.status(0).decided.unwrap();
    mesh.wait("an update of the victim", |mesh| {
        let roster = mesh.status(0).roster;
        let member = roster.iter().find(|peer| peer.peer == name);
        member.is_some_and(|member| member.accepted_round > Some(back))
    });
    mesh.check_roots(&[0, 1, 2]);
    let of_victim = mesh.status(victim).history.into_iter();
    let caught_up = of_victim.filter(|round| round.root.is_some() && round.round >= frozen_in);
    assert!(caught_up.count() > 0);
}

#[test]
fn three_peers_survive_the_freezing_of_one_in_an_exchange() {
    survives_the_freezing_of_one("gather");
}

#[test]
fn three_owners_survive_the_freezing_of_one_in_an_exchange() {
    survives_the_freezing_of_one("reduce");
}

#[test]
fn a_run_outlives_all_its_daemons_and_a_newcomer_continues_from_a_fetched_state() {
    let mut mesh = Mesh::new(2, in_turn("reduce"), "byzantine", 20, 3);
    // Two epochs: the frames of the first rounds are off the disks by then.
    mesh.wait_applied(&[0, 1], 8);
    mesh.kill(0);
    mesh.kill(1);
    let run_file = mesh.home.path().join("run.toml");
    mesh.start(0, &["launch", run_file.to_str().unwrap()]);
    mesh.wait("the launcher", |mesh| {
        let status = mesh.peers[&0].status();
        status.is_some_and(|s| s.ticket.is_some())
    });
    // The launcher took other ports: its new ticket says where it is now.
    mesh.ticket = mesh.status(0).ticket.unwrap();
    mesh.join(1);
    mesh.wait_applied(&[0, 1], 10);
    assert!(mesh.check_roots(&[0, 1]) > 0);

    mesh.join(2);
    mesh.wait("the newcomer in the roster", |mesh| {
        mesh.roster(0).len() == 3
    });
    let name = mesh.name(2);
    mesh.wait("an update of the newcomer", |mesh| {
        let roster = mesh.status(0).roster;
        let member = roster.iter().find(|peer| peer.peer == name);
        member.is_some_and(|member| member.accepted_round.is_some())
    });
    assert!(mesh.check_roots(&[0, 1, 2]) > 0);
    let mut history = mesh.status(2).history.into_iter();
    let first = history.find(|round| round.root.is_some()).unwrap();
    assert!(first.round >= 3, "it replayed from round {}", first.round);
}
