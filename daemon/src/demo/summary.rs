//! What the demo found, from the last statuses of its peers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gradmesh_protocol::hash::Hash;
use gradmesh_trainer::adversary::Kind;
use serde::Serialize;

use super::peer::VALIDATOR;
use crate::status::{DENSE_BITS, Status};
use crate::terminal::{bytes, percent, seconds};

/// Rao of one TAO.
const RAO: f64 = 1e9;
/// Bytes of a parameter in a dense f32 update.
const DENSE_BYTES: u128 = 4;

/// Names are stable: scripts rely on them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    /// Peers, the launcher included.
    pub(super) peers: usize,
    /// Training rounds.
    pub(super) rounds: u64,
    /// Loss of the shared parameters before the first round, nats per token: the members' mean on their first batches.
    pub(super) loss_first: f64,
    /// Loss of the shared parameters after the last round, on held-out text.
    pub(super) loss_last: f64,
    /// Whether all peers had the same state root after every round.
    pub(super) roots_equal: bool,
    /// Bytes that one peer sent over both planes since the first round began, all messages included but what a validator fetched
    /// for audits, mean over the peers.
    pub(super) bytes_wan_per_peer: u64,
    /// Bytes that it would have sent if every update had gone to every other member as dense f32.
    pub(super) bytes_dense_f32: u64,
    /// Bits of an update per parameter.
    pub(super) bits_per_param: f64,
    /// The same for the tensors in sparse mode, all framing counted as theirs; absent in a dense run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bits_per_param_sparse: Option<f64>,
    /// Share of the rounds' time that was not training, mean over the peers.
    pub(super) sync_share: f64,
    /// Who cheated, and in which round a validator was the first to find it.
    pub(super) cheats: Vec<CheatSummary>,
    /// What the validator did.
    pub(super) audits: Option<AuditSummary>,
    /// From the start of the demo until all peers had finished.
    pub(super) wall_s: f64,
    /// What each hotkey was paid by the chain, in TAO (alpha of the subnet, which the development chain trades one to
    /// one); empty without a chain.
    pub(super) emission: BTreeMap<String, f64>,
    /// The launcher's last checkpoint.
    pub(super) checkpoint: CheckpointSummary,
}

/// Who cheats in a demo.
pub(super) struct Cheat {
    /// Its number among the peers.
    pub(super) number: u32,
    /// How.
    pub(super) kind: Kind,
    /// Its hotkey, in a demo with a chain.
    pub(super) hotkey: Option<String>,
}

/// What became of a cheat.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct CheatSummary {
    /// Its key, 64 hex digits.
    pub(super) peer: String,
    /// How it cheated.
    pub(super) kind: String,
    /// The first round whose audit it failed.
    pub(super) caught_round: Option<u64>,
    /// What was found then, in words.
    pub(super) finding: Option<String>,
    /// Its weight by the newest scores, of 65535; absent without a chain.
    pub(super) weight: Option<u16>,
    /// What it was paid, in TAO.
    pub(super) paid: Option<f64>,
    /// The evidence of that audit.
    pub(super) evidence: Option<PathBuf>,
}

/// What a validator did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct AuditSummary {
    /// Audits done.
    pub(super) done: u64,
    /// Of them failed.
    pub(super) failed: u64,
    /// Audits that failed a peer that did not cheat.
    pub(super) failed_honest: u64,
    /// What they took, in seconds of computing.
    pub(super) seconds: f64,
    /// What the validator fetched, in bytes on the wire: states for audits, and the frames of the rounds that it follows.
    pub(super) bytes: u64,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct CheckpointSummary {
    /// Its state root.
    pub(super) root: Hash,
    /// The finalized block in which the launcher attested it; absent without a chain.
    pub(super) attested_block: Option<u64>,
    /// Its directory.
    pub(super) path: PathBuf,
}

impl Summary {
    /// From the statuses of finished peers, the launcher's first; `None` if one of them lacks a figure.
    ///
    /// `emission`: what the chain paid to each hotkey, in rao.
    pub(super) fn of(
        statuses: &[Status],
        wall: Duration,
        emission: BTreeMap<String, u64>,
        cheat: Option<Cheat>,
        out: &Path,
    ) -> Option<Summary> {
        let validator = statuses.iter().find(|status| validates(status));
        let roots_equal = roots_equal(statuses);
        let members: Vec<&Status> = statuses
            .iter()
            .filter(|status| !validates(status))
            .collect();
        let (statuses, cheats) = (members.as_slice(), cheat.as_ref());
        let launcher = statuses.first()?;
        let history = &launcher.history;
        let checkpoint = launcher.checkpoint.as_ref()?;
        let attested = launcher
            .chain
            .as_ref()
            .and_then(|chain| chain.attested.as_ref());
        let attested =
            attested.filter(|a| a.round == checkpoint.round && a.state_root == checkpoint.root);
        let peers = statuses.len();
        // What a validator fetched it fetched from members: audits are told apart from the exchange.
        let audited = validator.map_or(0, |status| u128::from(status.traffic_of_rounds.bulk_in));
        let sent = statuses
            .iter()
            .map(|s| {
                u128::from(s.traffic_of_rounds.control_out)
                    + u128::from(s.traffic_of_rounds.bulk_out)
            })
            .sum::<u128>()
            .saturating_sub(audited);
        let updates_sent: u128 = history
            .iter()
            .map(|round| u128::from(round.members) * u128::from(round.roster.saturating_sub(1)))
            .sum();
        let dense = updates_sent * u128::from(launcher.identity.parameters) * DENSE_BYTES;
        let per_peer = |total: u128| u64::try_from(total / peers as u128).unwrap_or(u64::MAX);
        let shares: Vec<f64> = statuses.iter().filter_map(|s| s.sync_share).collect();
        Some(Summary {
            peers,
            rounds: launcher.identity.rounds,
            loss_first: history.iter().find_map(|round| round.loss_first)?,
            loss_last: checkpoint.loss_held_out?,
            roots_equal,
            cheats: cheats
                .and_then(|cheat| caught(cheat, statuses, validator, &emission, out))
                .into_iter()
                .collect(),
            audits: validator
                .and_then(|status| audits(status, cheats.map(|cheat| cheat.number), statuses)),
            bytes_wan_per_peer: per_peer(sent),
            bytes_dense_f32: per_peer(dense),
            bits_per_param: launcher.bits_per_param?,
            bits_per_param_sparse: launcher.bits_per_param_sparse,
            sync_share: (!shares.is_empty())
                .then(|| shares.iter().sum::<f64>() / shares.len() as f64)?,
            wall_s: wall.as_secs_f64(),
            emission: emission
                .into_iter()
                .map(|(hotkey, rao)| (hotkey, rao as f64 / RAO))
                .collect(),
            checkpoint: CheckpointSummary {
                root: checkpoint.root,
                attested_block: attested.map(|attested| attested.block),
                path: checkpoint.path.clone(),
            },
        })
    }

    /// For people.
    pub(super) fn text(&self, out: &Path) -> String {
        let mut text = String::from("\n");
        // Writing into a String does not fail.
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<12} {value}");
        };
        let times = |less: f64, more: f64| {
            if less > 0.0 {
                more / less
            } else {
                f64::INFINITY
            }
        };
        line(
            "loss",
            format!(
                "{:.3} -> {:.3} nats per byte (the last on held-out text) in {} rounds with {} peers",
                self.loss_first, self.loss_last, self.rounds, self.peers
            ),
        );
        let saved = times(self.bytes_wan_per_peer as f64, self.bytes_dense_f32 as f64);
        line(
            "on the wire",
            format!(
                "{} sent per peer, all told; {} as dense f32: {saved:.0} times less",
                bytes(self.bytes_wan_per_peer),
                bytes(self.bytes_dense_f32)
            ),
        );
        line(
            "update",
            format!(
                "{:.3} bits per parameter: {:.0} times less than f32",
                self.bits_per_param,
                times(self.bits_per_param, DENSE_BITS)
            ),
        );
        if let Some(sparse) = self.bits_per_param_sparse {
            line(
                "",
                format!("{sparse:.3} bits in the sparse tensors, framing included"),
            );
        }
        line(
            "in sync",
            format!("{} of the time", percent(Some(self.sync_share))),
        );
        let roots = if self.roots_equal {
            "equal on every peer after every round"
        } else {
            "DIFFERENT between peers"
        };
        line("state roots", roots.to_owned());
        if let Some(audits) = &self.audits {
            line(
                "audits",
                format!(
                    "{} done in {:.1} s of computing with {} fetched, {} failed ({} of peers that did not cheat)",
                    audits.done,
                    audits.seconds,
                    bytes(audits.bytes),
                    audits.failed,
                    audits.failed_honest
                ),
            );
        }
        for cheat in &self.cheats {
            let peer = cheat.peer.get(..8).unwrap_or(&cheat.peer);
            line(
                "cheat",
                match cheat.caught_round {
                    Some(round) => format!("{peer} ({}) found in round {round}", cheat.kind),
                    None => format!("{peer} ({}) not found", cheat.kind),
                },
            );
            if let Some(finding) = &cheat.finding {
                line("", finding.clone());
            }
            if let (Some(weight), Some(paid)) = (cheat.weight, cheat.paid) {
                line(
                    "",
                    format!("its weight {weight} of 65535, paid {paid:.4} TAO"),
                );
            }
            if let Some(evidence) = &cheat.evidence {
                line(
                    "",
                    format!("try: gradmesh evidence replay {}", evidence.display()),
                );
            }
        }
        line("checkpoint", format!("{}", self.checkpoint.path.display()));
        line("", format!("root {}", self.checkpoint.root));
        if let Some(block) = self.checkpoint.attested_block {
            line("", format!("attested on chain, finalized block {block}"));
        }
        for (place, (hotkey, paid)) in self.emission.iter().enumerate() {
            let name = if place == 0 { "paid" } else { "" };
            line(name, format!("{hotkey} {paid:.4} TAO"));
        }
        line("wall time", seconds(self.wall_s));
        line("everything", format!("is in {}", out.display()));
        text
    }
}

fn validates(status: &Status) -> bool {
    status.audit.as_ref().is_some_and(|audit| audit.validates)
}

/// What became of `cheat`; `None` if it is not among the members.
fn caught(
    cheat: &Cheat,
    members: &[&Status],
    validator: Option<&Status>,
    emission: &BTreeMap<String, u64>,
    out: &Path,
) -> Option<CheatSummary> {
    let status = members.get(cheat.number as usize)?;
    let audit = validator.and_then(|validator| validator.audit.as_ref());
    let findings = audit.into_iter().flat_map(|audit| &audit.findings);
    let of_cheat = findings.filter(|finding| finding.peer == status.identity.peer);
    let first = of_cheat.min_by_key(|finding| finding.round);
    let weights = validator.and_then(|v| v.chain.as_ref()?.weights.as_ref());
    let uid = status.chain.as_ref().and_then(|chain| chain.uid);
    let weight = weights.zip(uid).and_then(|(weights, uid)| {
        let mut weights = weights.weights.iter();
        weights
            .find(|(of, _)| *of == uid)
            .map(|(_, weight)| *weight)
    });
    let paid = cheat
        .hotkey
        .as_ref()
        .and_then(|hotkey| emission.get(hotkey));
    Some(CheatSummary {
        peer: status.identity.peer.clone(),
        kind: cheat.kind.to_string(),
        caught_round: first.map(|finding| finding.round),
        finding: first.map(|finding| finding.words.clone()),
        weight,
        paid: paid.map(|rao| *rao as f64 / RAO),
        evidence: first.map(|finding| {
            let folder = out.join(VALIDATOR).join("evidence");
            folder.join(format!("{}.cbor", finding.evidence))
        }),
    })
}

fn audits(validator: &Status, cheat: Option<u32>, members: &[&Status]) -> Option<AuditSummary> {
    let audit = validator.audit.as_ref()?;
    let cheat = cheat.and_then(|number| members.get(number as usize));
    let honest = |peer: &String| cheat.is_none_or(|cheat| cheat.identity.peer != *peer);
    Some(AuditSummary {
        done: audit.audits(),
        failed: audit.failed,
        failed_honest: audit.findings.iter().filter(|f| honest(&f.peer)).count() as u64,
        seconds: audit.seconds,
        bytes: validator.traffic_of_rounds.bulk_in,
    })
}

/// Whether every round has one root, whoever knows it, and every peer knows that of the last round.
fn roots_equal(statuses: &[Status]) -> bool {
    let rounds: BTreeSet<u64> = statuses
        .iter()
        .flat_map(|status| status.history.iter().map(|round| round.round))
        .collect();
    let root_of = |status: &Status, round: u64| -> Option<Hash> {
        status.history.iter().find(|r| r.round == round)?.root
    };
    let one_root = rounds.iter().all(|round| {
        let roots: BTreeSet<Hash> = statuses.iter().filter_map(|s| root_of(s, *round)).collect();
        roots.len() == 1
    });
    let last = rounds.last();
    let all_know = last.is_some_and(|last| statuses.iter().all(|s| root_of(s, *last).is_some()));
    one_root && all_know
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{
        CheckpointStatus, Identity, Phase, RoundSeconds, RoundStatus, StatusHandle, Traffic,
    };

    /// A peer that finished two rounds, with `root` after the second.
    fn finished(root: &[u8]) -> Status {
        let handle = StatusHandle::new();
        handle.set_identity(Identity {
            parameters: 1000,
            rounds: 2,
            ..Identity::default()
        });
        for round in 1..=2 {
            handle.set_decided(RoundStatus {
                round,
                members: 2,
                roster: 2,
                frame_bytes: 50,
                loss_first: Some(6.0 - round as f64),
                loss_last: Some(5.5 - round as f64),
                ..RoundStatus::default()
            });
        }
        let seconds = RoundSeconds {
            train: 3.0,
            exchange: 1.0,
            ..RoundSeconds::default()
        };
        handle.set_applied(1, Hash::of_content(b"one"), Some(seconds));
        handle.set_applied(2, Hash::of_content(root), Some(seconds));
        let traffic = Traffic {
            control_out: 10,
            bulk_out: 130,
            control_in: 7,
            bulk_in: 9,
        };
        let before_rounds = Traffic {
            bulk_out: 100,
            ..Traffic::default()
        };
        handle.set_traffic(traffic, before_rounds);
        handle.set_checkpoint(CheckpointStatus {
            round: 2,
            root: Hash::of_content(root),
            path: "/out/round-000002".into(),
            loss_held_out: Some(3.5),
        });
        handle.set_phase(2, Phase::Finished, None);
        handle.snapshot()
    }

    #[test]
    fn figures_follow_from_the_statuses() {
        let statuses = [finished(b"two"), finished(b"two")];
        let emission = BTreeMap::from([("hotkey".to_owned(), 2_500_000_000)]);
        let summary = Summary::of(
            &statuses,
            Duration::from_secs(8),
            emission,
            None,
            Path::new(""),
        )
        .unwrap();
        assert_eq!(summary.peers, 2);
        assert_eq!((summary.loss_first, summary.loss_last), (5.0, 3.5));
        assert!(summary.roots_equal);
        assert_eq!(summary.bytes_wan_per_peer, 40);
        // Two rounds, in each of which a peer sends 4000 bytes to the one other.
        assert_eq!(summary.bytes_dense_f32, 8000);
        // 100 bytes for four updates of 1000 parameters.
        assert_eq!(summary.bits_per_param, 0.2);
        assert_eq!(summary.sync_share, 0.25);
        let json = serde_json::to_value(&summary).unwrap();
        let keys: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        for key in [
            "peers",
            "rounds",
            "loss_first",
            "loss_last",
            "roots_equal",
            "bytes_wan_per_peer",
            "bytes_dense_f32",
            "bits_per_param",
            "sync_share",
            "wall_s",
            "emission",
            "checkpoint",
        ] {
            assert!(keys.iter().any(|k| k == key), "{key}");
        }
        assert_eq!(json["emission"]["hotkey"], 2.5);
        assert_eq!(json["checkpoint"]["path"], "/out/round-000002");
    }

    #[test]
    fn a_root_that_differs_or_is_missing_at_the_end_is_noticed() {
        assert!(!roots_equal(&[finished(b"two"), finished(b"other")]));
        let mut behind = finished(b"two");
        behind.history.pop_back();
        assert!(!roots_equal(&[finished(b"two"), behind]));
        // A peer that came late knows no earlier roots.
        let mut late = finished(b"two");
        late.history.pop_front();
        assert!(roots_equal(&[finished(b"two"), late]));
        assert!(!roots_equal(&[]));
    }

    #[test]
    fn a_peer_without_a_checkpoint_gives_no_summary() {
        let mut status = finished(b"two");
        status.checkpoint = None;
        assert_eq!(
            Summary::of(
                &[status],
                Duration::ZERO,
                BTreeMap::new(),
                None,
                Path::new("")
            ),
            None
        );
    }
}
