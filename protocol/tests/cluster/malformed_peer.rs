//! One peer breaks a rule of headers or frames: every other peer's update counts as if that peer were not there, and nobody
//! else is blamed.
//!
//! Frames that are none are all the same to a node; which bytes are none is tested where frames are read, in
//! `compression/tests/malformed.rs` and `trainer/tests/malformed_frames.rs`. What an owner sums wrongly:
//! [`super::what_one_of_two_owners_falsifies_is_left_out_and_never_decided`].

use super::*;

/// The first round in which the forger forges: those before give a deadline to go by.
const BEGINS: u64 = 3;
/// The last round that is looked at.
const ENDS: u64 = 9;

/// One way to be malformed.
struct Kind {
    name: &'static str,
    tell: Tell,
    /// What becomes of its frames.
    frames: Frames,
    /// What it is blamed for; `None`: nothing, for nothing could be proven.
    blamed: Option<&'static str>,
    /// Whether its own update counts.
    counts: Counts,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Counts {
    Never,
    Always,
    /// Not where owners sum: rule `two-headers-none-summed`.
    ByGather,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Frames {
    Good,
    Withheld,
    Malformed,
}

/// The header at hand, changed and signed anew.
fn changed(
    author: &Keypair,
    made: &[SignedHeader],
    change: impl FnOnce(&mut Header),
) -> Vec<SignedHeader> {
    let mut header = made.last().unwrap().header.clone();
    change(&mut header);
    vec![header.sign(author)]
}

fn truth(_: &Keypair, made: &[SignedHeader], _: u8) -> Vec<SignedHeader> {
    made.last().cloned().into_iter().collect()
}

/// What is wrong with its header.
fn refused(name: &'static str, tell: Tell, blamed: &'static str) -> Kind {
    Kind {
        name,
        tell,
        frames: Frames::Good,
        blamed: Some(blamed),
        counts: Counts::Never,
    }
}

fn kinds() -> Vec<Kind> {
    vec![
        refused(
            "signature of another peer",
            |_, made, _| {
                let other = Keypair::from_seed(&[99; 32]);
                let header = made.last().unwrap().header.clone();
                vec![header.sign(&other)]
            },
            "sent a header that is not signed for this run",
        ),
        refused(
            "header of another peer",
            |_, made, _| {
                let other = Keypair::from_seed(&[1; 32]);
                changed(&other, made, |header| header.peer = other.public())
            },
            "published a header of another peer",
        ),
        refused(
            "stale theta",
            |author, made, _| changed(author, made, |header| header.state_root = genesis()),
            "trained from another state",
        ),
        refused(
            "too few frames",
            |author, made, _| {
                changed(author, made, |header| {
                    header.update.frames.pop();
                })
            },
            "sent a header with the wrong number of frames",
        ),
        refused(
            "too many frames",
            |author, made, _| {
                changed(author, made, |header| {
                    let last = *header.update.frames.last().unwrap();
                    header.update.frames.push(last);
                })
            },
            "sent a header with the wrong number of frames",
        ),
        refused(
            "oversized frame",
            |author, made, _| {
                changed(author, made, |header| {
                    header.update.frames[0].bytes = FRAME_BYTES_MAX.local + 1;
                })
            },
            "sent a header with a frame that is too long",
        ),
        refused(
            "more tokens than a round has",
            |author, made, _| changed(author, made, |header| header.update.tokens = 161),
            "claims more tokens than a round has",
        ),
        refused(
            "more steps than a round has",
            |author, made, _| changed(author, made, |header| header.update.steps = 6),
            "claims more steps than a round has",
        ),
        refused(
            "segments in a run without audits",
            |author, made, _| {
                changed(author, made, |header| {
                    header.update.work.segments_root = Hash::of_content(b"segments");
                })
            },
            "sent a header whose work does not suit the audits of the run",
        ),
        refused(
            "inner state in a run without audits",
            |author, made, _| {
                changed(author, made, |header| {
                    header.update.work.inner_after = Hash::of_content(b"inner");
                })
            },
            "sent a header whose work does not suit the audits of the run",
        ),
        Kind {
            name: "frame that is none",
            tell: truth,
            frames: Frames::Malformed,
            blamed: Some("committed to a frame that does not decode"),
            counts: Counts::Never,
        },
        Kind {
            name: "withheld frame",
            tell: truth,
            frames: Frames::Withheld,
            blamed: None,
            counts: Counts::Never,
        },
        Kind {
            name: "no header",
            tell: |_, _, _| Vec::new(),
            frames: Frames::Good,
            blamed: None,
            counts: Counts::Never,
        },
        Kind {
            name: "late header: that of the round before",
            tell: |_, made, _| made.iter().rev().nth(1).cloned().into_iter().collect(),
            frames: Frames::Good,
            blamed: None,
            counts: Counts::Never,
        },
        Kind {
            name: "replayed header beside the true one",
            tell: |_, made, _| vec![made[0].clone(), made.last().unwrap().clone()],
            frames: Frames::Good,
            blamed: None,
            counts: Counts::Always,
        },
        Kind {
            // Nothing but an audit tells it from a new update; it weighs what that would.
            name: "replayed frames under a new header",
            tell: |author, made, _| {
                let old = made[0].header.update.frames.clone();
                changed(author, made, |header| header.update.frames = old)
            },
            frames: Frames::Good,
            blamed: None,
            counts: Counts::Always,
        },
        Kind {
            name: "header that differs between peers",
            tell: |author, made, to| {
                changed(author, made, |header| {
                    header.update.loss_last_micronats = to.into();
                })
            },
            frames: Frames::Good,
            blamed: Some("signed two headers in one round"),
            counts: Counts::ByGather,
        },
        Kind {
            name: "flood of headers",
            tell: |author, made, _| {
                let flood = (0..40).flat_map(|loss| {
                    changed(author, made, |header| {
                        header.update.loss_last_micronats = loss;
                    })
                });
                flood.collect()
            },
            frames: Frames::Good,
            blamed: Some("signed two headers in one round"),
            counts: Counts::ByGather,
        },
    ]
}

/// Of each round that is looked at: whose updates count, in each shard.
fn counted(cluster: &Cluster) -> Vec<Vec<BTreeSet<PeerKey>>> {
    let rounds = &cluster.records()[BEGINS as usize..=ENDS as usize];
    let of_round = |record: &Arc<DecisionRecord>| {
        let members = &record.decision.members;
        let shards = record.decision.shards.iter();
        let peers = shards.map(|s| s.accepted.positions().map(|at| members[at].peer).collect());
        peers.collect()
    };
    rounds.iter().map(of_round).collect()
}

fn members(plan: PlanKind) -> Cluster {
    let mut cluster = by_plan(plan, 5);
    cluster.run_until(|c| c.all_applied(BEGINS - 1));
    cluster
}

/// Whom all but `forger` blame, and for what.
fn blames_by_others(cluster: &Cluster, forger: PeerKey) -> BTreeSet<(PeerKey, &'static str)> {
    let others = cluster.peers.iter().filter(|(key, _)| **key != forger);
    let reports = others.flat_map(|(_, peer)| &peer.reports);
    let blames = reports.filter_map(|report| match report {
        Report::Misbehaviour { peer, what } => Some((*peer, *what)),
        _ => None,
    });
    blames.collect()
}

#[test]
fn with_audits_a_header_commits_to_its_segments() {
    let mut cluster = Cluster::new(4, |m| {
        m.audit = Some(manifest::Audit {
            segments: 5,
            coverage_ppm: 1_000_000,
            probation_rounds: 20,
            suspension_rounds: 4,
            loss_sequences: 64,
            loss_ppm: 100_000,
            inner: manifest::InnerState::Carried,
            tolerances: Vec::new(),
        });
    });
    // One of them commits to segments, the others to none.
    let auditable = cluster.key(4);
    cluster.forger = Some(Forger {
        peer: auditable,
        made: Vec::new(),
        tell: |author, made, _| {
            changed(author, made, |header| {
                header.update.work.segments_root = Hash::of_content(b"segments");
            })
        },
    });
    cluster.run_for(2_000);
    let others = cluster.live().into_iter().filter(|peer| *peer != auditable);
    let what = "sent a header whose work does not suit the audits of the run";
    let blames = blames_by_others(&cluster, auditable);
    assert_eq!(blames, others.map(|peer| (peer, what)).collect());
}

#[test]
fn a_malformed_peer_changes_nothing_for_the_others_and_is_the_only_one_blamed() {
    for plan in [PlanKind::Gather, PlanKind::Reduce, PlanKind::Hier] {
        let mut without = members(plan);
        let forger = without.key(4);
        without.kill(forger);
        without.run_until(|c| c.all_applied(ENDS));
        let expected = counted(&without);
        for kind in kinds() {
            let context = format!("{plan:?}, {}", kind.name);
            let mut cluster = members(plan);
            cluster.forger = Some(Forger {
                peer: forger,
                made: Vec::new(),
                tell: kind.tell,
            });
            for round in BEGINS..=ENDS {
                let seen: BTreeSet<Hash> = cluster.frames.clone();
                while !cluster.all_applied(round) {
                    assert!(cluster.now < 120_000, "{context}:\n{}", cluster.describe());
                    cluster.step();
                    let made = cluster.forger.as_ref().and_then(|f| f.made.last());
                    let frames = made.into_iter().flat_map(|h| &h.header.update.frames);
                    let frames: Vec<Hash> = frames.map(|f| f.hash).collect();
                    let new = frames.into_iter().filter(|frame| !seen.contains(frame));
                    match kind.frames {
                        Frames::Good => {}
                        Frames::Withheld => cluster.lost.extend(new),
                        Frames::Malformed => cluster.malformed.extend(new),
                    }
                }
            }
            cluster.check();
            let mut others = counted(&cluster);
            let shards = others.iter_mut().flatten();
            let of_forger = shards.filter_map(|peers| peers.remove(&forger).then_some(()));
            let counts = match kind.counts {
                Counts::Never => false,
                Counts::Always => true,
                Counts::ByGather => plan == PlanKind::Gather,
            };
            assert_eq!(of_forger.count() > 0, counts, "{context}");
            assert_eq!(others, expected, "{context}");
            // Its node may propose its update too, for which it is blamed as well.
            let blames = blames_by_others(&cluster, forger);
            let mut blamed = blames.iter().map(|(peer, _)| *peer);
            assert!(blamed.all(|peer| peer == forger), "{context}: {blames:?}");
            match kind.blamed {
                Some(what) => assert!(blames.contains(&(forger, what)), "{context}: {blames:?}"),
                None => assert_eq!(blames, BTreeSet::new(), "{context}"),
            }
        }
    }
}

/// One machine that calls itself by many names: they take no room of members, and count for nothing before a decision lets
/// them in, which on a chain takes a registration each
/// ([`super::an_unregistered_joiner_is_left_out_and_told_until_it_is_registered`]).
#[test]
fn headers_of_made_up_peers_leave_room_for_those_of_members() {
    let mut cluster = by_plan(PlanKind::Gather, 5);
    cluster.run_until(|c| c.all_applied(2));
    let witness = cluster.key(1);
    let node = cluster.node(witness);
    let next = node.roster().round().next();
    let state_root = node.state_root();
    let header = |author: &Keypair| {
        let header = Header {
            run: cluster.run,
            round: next,
            peer: author.public(),
            state_root,
            update: update(author.public(), Hash::ZERO, 0..SHARDS),
        };
        Gossip::Header(Box::new(header.sign(author)))
    };
    let names = (0..200u8).map(|i| Keypair::from_seed(&[i, 1].repeat(16).try_into().unwrap()));
    let member = Keypair::from_seed(&[2; 32]);
    let authors: Vec<Keypair> = names.chain([member]).collect();
    let said: Vec<(PeerKey, Gossip)> = authors.iter().map(|a| (a.public(), header(a))).collect();
    for (from, message) in said {
        let message = Box::new(message);
        cluster.later(0, witness, Input::Gossip { from, message });
    }
    cluster.step();
    let kept = cluster
        .node(witness)
        .view(Time(cluster.now))
        .sizes
        .early_headers;
    assert_eq!(kept, manifest::PEERS_MAX as usize + 1);
    cluster.run_until(|c| c.all_applied(6));
    cluster.check();
    for record in &cluster.records()[3..=6] {
        assert_eq!(record.decision.members.len(), 5);
    }
}
