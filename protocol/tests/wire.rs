//! The wire format: its bytes are pinned, what is encoded reads back, and no bytes make a reader panic.

use std::fmt::Write as _;

use arc_malachitebft_core_types::{
    NilOrVal, PolkaSignature, Round, RoundCertificateType, RoundSignature, Validity, VoteType,
};
use gradmesh_protocol::agreement::{
    CommitCertificate, CommitSignature, Message, PolkaCertificate, Proposal, ProposedValue, Record,
    RoundCertificate, SignedProposal, SignedVote, Step, TimeoutRecord, Vote,
};
use gradmesh_protocol::audit::segment::{SegmentList, StateRoots, Work};
use gradmesh_protocol::audit::verdict::{Check, Outcome, SignedVerdict, Verdict};
use gradmesh_protocol::capacity::{CAPACITIES_MAX, CapacityChange};
use gradmesh_protocol::decision::{
    Bitmap, DecidedMember, DecidedReduction, DecidedShard, Decision, JOINS_MAX, Join, Leave,
};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{FrameRef, Header, SignedHeader, UpdateSummary, WorkCommitment};
use gradmesh_protocol::key::{Keypair, PeerKey, Signature};
use gradmesh_protocol::manifest::{
    self, Audit, Chain, InnerState, Link, PEERS_MAX, Powers, RoundId, RunId, SignedManifest,
    SiteId, Subnet, Tolerance,
};
use gradmesh_protocol::plan::{GroupId, REDUCTIONS_MAX};
use gradmesh_protocol::reduction::{Reduction, Reductions, SignedReductions};
use gradmesh_protocol::registry::RegistryMark;
use gradmesh_protocol::ticket::Ticket;
use gradmesh_protocol::wire::{
    Contact, DecisionRecord, Decisions, GOSSIP_BYTES_MAX, Gossip, JournalEntry, Request, Response,
    SHARDS_MAX, WireError,
};
use proptest::prelude::*;

const RUN: RunId = RunId(Hash([9; 32]));

fn keypair() -> Keypair {
    Keypair::from_seed(&[7; 32])
}

fn peer() -> PeerKey {
    PeerKey([5; 32])
}

fn signature() -> Signature {
    Signature([6; 64])
}

fn header() -> SignedHeader {
    let update = UpdateSummary {
        frames: vec![frame()],
        feedback_before: Hash([2; 32]),
        feedback_after: Hash([3; 32]),
        work: WorkCommitment {
            segments_root: Hash([4; 32]),
            inner_before: Hash([5; 32]),
            inner_after: Hash([6; 32]),
        },
        tokens: 40,
        steps: 5,
        loss_first_micronats: 7_000_000,
        loss_last_micronats: 6_000_000,
        build: "build".into(),
        device: "cpu".into(),
    };
    SignedHeader {
        header: Header {
            run: RUN,
            round: RoundId(4),
            peer: peer(),
            state_root: Hash([8; 32]),
            update,
        },
        signature: signature(),
    }
}

fn segments() -> SegmentList {
    let roots = |place: u8| StateRoots {
        theta: Hash([place; 32]),
        inner: Hash([place + 1; 32]),
    };
    let work = Work {
        data: Hash([8; 32]),
        tokens: 1000,
        loss_micronats: 5_000_000,
        gradient_norm_micro: 900_000,
    };
    SegmentList::new(vec![roots(1), roots(3)], vec![work]).unwrap()
}

fn verdict() -> SignedVerdict {
    SignedVerdict {
        verdict: Verdict {
            run: RUN,
            round: RoundId(4),
            peer: peer(),
            header: Hash([4; 32]),
            validator: PeerKey([6; 32]),
            challenge: Hash([7; 32]),
            segment: 3,
            check: Check::Segment,
            outcome: Outcome::Failed,
            error_ppb: 520_000_000,
            tolerance_ppb: 20_000_000,
            evidence: Hash([1; 32]),
        },
        signature: signature(),
    }
}

/// A manifest with every part that is optional.
fn audited_manifest() -> SignedManifest {
    let mut manifest = manifest::example(keypair().public());
    manifest.audit = Some(Audit {
        segments: 5,
        coverage_ppm: 500_000,
        probation_rounds: 20,
        suspension_rounds: 8,
        loss_sequences: 64,
        loss_ppm: 100_000,
        inner: InnerState::Reset,
        tolerances: vec![Tolerance {
            first: "cpu".into(),
            second: "gpu".into(),
            error_ppb: 20_000_000,
        }],
    });
    assert_eq!(manifest.validate(), []);
    manifest.sign(&keypair())
}

fn join() -> Join {
    Join {
        run: RUN,
        peer: peer(),
        round: RoundId(3),
        state_root: Hash([8; 32]),
        link: link(),
        signature: signature(),
    }
}

fn link() -> Link {
    Link {
        site: SiteId(Hash([3; 32])),
        capacity: 100,
    }
}

fn capacity() -> CapacityChange {
    CapacityChange {
        run: RUN,
        peer: peer(),
        round: RoundId(3),
        capacity: 2,
        signature: signature(),
    }
}

fn leave() -> Leave {
    Leave {
        run: RUN,
        peer: peer(),
        round: RoundId(3),
        signature: signature(),
    }
}

fn decision() -> Decision {
    Decision {
        run: RUN,
        round: RoundId(4),
        previous: Hash([1; 32]),
        state_root: Hash([8; 32]),
        members: vec![DecidedMember {
            peer: peer(),
            header: Hash([4; 32]),
        }],
        shards: vec![DecidedShard {
            accepted: Bitmap::full(1),
            reduced: Vec::new(),
        }],
        joins: vec![join()],
        leaves: vec![leave()],
        registry: None,
        powers: Vec::new(),
        capacities: Vec::new(),
    }
}

/// The same with a link that carries something else.
fn decision_with_capacity() -> Decision {
    Decision {
        capacities: vec![capacity()],
        ..decision()
    }
}

/// The same with a frame of an owner.
fn decision_by_owners() -> Decision {
    Decision {
        shards: vec![DecidedShard {
            accepted: Bitmap::full(1),
            reduced: vec![DecidedReduction {
                frame: frame(),
                residual: Hash([6; 32]),
            }],
        }],
        ..decision()
    }
}

fn frame() -> FrameRef {
    FrameRef {
        hash: Hash([1; 32]),
        bytes: 300,
    }
}

fn reductions() -> SignedReductions {
    SignedReductions {
        reductions: Reductions {
            run: RUN,
            round: RoundId(4),
            owner: peer(),
            headers: vec![Hash([4; 32]), Hash([5; 32])],
            reductions: vec![Reduction {
                group: GroupId::of_site(SiteId(Hash([3; 32]))),
                shard: 2,
                accepted: Bitmap::of(2, [1]),
                frame: frame(),
                residual_before: Hash::ZERO,
                residual: Hash([6; 32]),
            }],
        },
        signature: signature(),
    }
}

/// The same in a chain run.
fn decision_by_registry() -> Decision {
    Decision {
        registry: Some(RegistryMark {
            block: 300,
            block_hash: Hash([3; 32]),
        }),
        powers: vec![(PeerKey([2; 32]), 0), (peer(), 500)],
        ..decision()
    }
}

fn vote() -> SignedVote {
    let vote = Vote {
        kind: VoteType::Precommit,
        height: RoundId(4),
        round: Round::new(2),
        value: NilOrVal::Val(Hash([4; 32])),
        voter: peer(),
    };
    SignedVote::new(vote, signature())
}

fn proposal(value: Decision) -> SignedProposal {
    let proposal = Proposal {
        height: RoundId(4),
        round: Round::new(2),
        value,
        pol_round: Round::new(0),
        proposer: peer(),
    };
    SignedProposal::new(proposal, signature())
}

fn polka() -> PolkaCertificate {
    PolkaCertificate {
        height: RoundId(4),
        round: Round::new(2),
        value_id: Hash([4; 32]),
        polka_signatures: vec![PolkaSignature::new(peer(), signature())],
    }
}

fn round_certificate() -> RoundCertificate {
    RoundCertificate {
        height: RoundId(4),
        round: Round::new(2),
        cert_type: RoundCertificateType::Skip,
        round_signatures: vec![RoundSignature::new(
            VoteType::Prevote,
            NilOrVal::Nil,
            peer(),
            signature(),
        )],
    }
}

fn record() -> DecisionRecord {
    DecisionRecord {
        decision: decision(),
        certificate: CommitCertificate {
            height: RoundId(4),
            attempt: 2,
            value: decision().id(),
            signatures: vec![CommitSignature {
                voter: peer(),
                signature: signature(),
            }],
        },
        headers: vec![header()],
    }
}

fn contact() -> Contact {
    Contact {
        control: vec!["/ip4/10.0.0.1/udp/1/quic-v1".into()],
        bulk: "10.0.0.1:2".parse().unwrap(),
        hotkey: None,
        validates: true,
    }
}

fn signed_manifest() -> SignedManifest {
    SignedManifest {
        manifest: manifest::example(keypair().public()),
        signature: signature(),
    }
}

fn subnet_manifest() -> SignedManifest {
    let mut signed = signed_manifest();
    signed.manifest.chain = Chain::Subnet(Subnet {
        genesis: Hash([2; 32]),
        netuid: u16::MAX,
        powers: Powers::Stake,
        snapshot_blocks: 25,
    });
    signed
}

fn gossip() -> Vec<(&'static str, Gossip)> {
    vec![
        ("header", Gossip::Header(Box::new(header()))),
        (
            "proposal",
            Gossip::Agreement(Message::Proposal(Box::new(proposal(decision())))),
        ),
        (
            "proposal by the registry",
            Gossip::Agreement(Message::Proposal(Box::new(
                proposal(decision_by_registry()),
            ))),
        ),
        ("vote", Gossip::Agreement(Message::Vote(vote()))),
        ("polka", Gossip::Agreement(Message::Polka(polka()))),
        (
            "round certificate",
            Gossip::Agreement(Message::RoundCertificate(round_certificate())),
        ),
        ("status", Gossip::Status(Some(RoundId(3)))),
        ("status of a beginner", Gossip::Status(None)),
        ("join", Gossip::Join(join())),
        ("leave", Gossip::Leave(leave())),
        ("contact", Gossip::Contact(contact())),
        (
            "proposal by owners",
            Gossip::Agreement(Message::Proposal(Box::new(proposal(decision_by_owners())))),
        ),
        ("reductions", Gossip::Reductions(Box::new(reductions()))),
        ("capacity", Gossip::Capacity(capacity())),
        ("verdict", Gossip::Verdict(Box::new(verdict()))),
        (
            "proposal with a capacity",
            Gossip::Agreement(Message::Proposal(Box::new(proposal(
                decision_with_capacity(),
            )))),
        ),
    ]
}

fn requests() -> Vec<(&'static str, Request)> {
    let (from, count) = (RoundId(3), 64);
    vec![
        ("ask manifest", Request::Manifest),
        ("ask contact", Request::Contact),
        ("ask decisions", Request::Decisions { from, count }),
        ("ask headers", Request::Headers(vec![Hash([4; 32])])),
        ("ask snapshot", Request::Snapshot(RoundId(3))),
        ("ask data", Request::Data),
        ("ask reductions", Request::Reductions(RoundId(3))),
        ("ask segments", Request::Segments(RoundId(3))),
        (
            "ask segment state",
            Request::SegmentState {
                round: RoundId(3),
                place: 2,
            },
        ),
        ("ask feedback", Request::Feedback(RoundId(3))),
    ]
}

fn responses() -> Vec<(&'static str, Response)> {
    let decisions = Decisions {
        records: vec![record()],
        decided: Some(RoundId(4)),
        snapshot: RoundId(2),
        frames_from: RoundId(1),
    };
    let (round, leaves) = (RoundId(2), vec![Hash([1; 32]), Hash([2; 32])]);
    vec![
        ("manifest", Response::Manifest(Box::new(signed_manifest()))),
        (
            "manifest of a subnet",
            Response::Manifest(Box::new(subnet_manifest())),
        ),
        (
            "manifest with audits",
            Response::Manifest(Box::new(audited_manifest())),
        ),
        ("contact answer", Response::Contact(contact())),
        ("decisions", Response::Decisions(decisions)),
        ("headers", Response::Headers(vec![header()])),
        ("snapshot", Response::Snapshot { round, leaves }),
        ("data", Response::Data(vec![1, 2, 3])),
        ("segments", Response::Segments(segments())),
        (
            "segment state",
            Response::SegmentState {
                theta: vec![Hash([1; 32])],
                inner: vec![Hash([2; 32]), Hash([3; 32])],
            },
        ),
        (
            "feedback",
            Response::Feedback {
                before: vec![Hash([1; 32])],
                after: vec![Hash([2; 32])],
            },
        ),
        ("refused", Response::Refused("busy".into())),
        (
            "reductions answer",
            Response::Reductions(vec![reductions()]),
        ),
    ]
}

fn journal() -> Vec<(&'static str, JournalEntry)> {
    let proposed = ProposedValue {
        height: RoundId(4),
        round: Round::new(2),
        valid_round: Round::Nil,
        proposer: peer(),
        value: decision(),
        validity: Validity::Valid,
    };
    let (step, attempt) = (Step::Precommit, 2);
    let timeout = TimeoutRecord { step, attempt };
    let agreement = |record| JournalEntry::Agreement(Box::new(record));
    vec![
        ("journal header", JournalEntry::Header(Box::new(header()))),
        ("journal vote", agreement(Record::Vote(vote()))),
        (
            "journal proposal",
            agreement(Record::Proposal(Box::new(proposal(decision())))),
        ),
        ("journal polka", agreement(Record::Polka(polka()))),
        ("journal timeout", agreement(Record::Timeout(timeout))),
        (
            "journal verdict",
            agreement(Record::Proposed(Box::new(proposed))),
        ),
    ]
}

fn ticket() -> Ticket {
    Ticket::sign(RUN, vec!["/ip4/10.0.0.1".into()], &keypair())
}

/// Name, bytes, of one message of each kind.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let mut samples = vec![("ticket", ticket().to_string().into_bytes())];
    samples.extend(gossip().iter().map(|(n, m)| (*n, m.encode(&RUN))));
    samples.extend(requests().iter().map(|(n, m)| (*n, m.encode(&RUN))));
    samples.extend(responses().iter().map(|(n, m)| (*n, m.encode())));
    samples.extend(journal().iter().map(|(n, m)| (*n, m.encode(RoundId(4)))));
    samples.push(("record", record().encode()));
    samples
}

/// Reads `bytes` as everything that a peer or a disk may give; what is read must be well-formed enough to be written.
fn read_all(bytes: &[u8]) {
    if let Ok(message) = Gossip::decode(&RUN, bytes) {
        let again = message.encode(&RUN);
        assert_eq!(Gossip::decode(&RUN, &again), Ok(message));
    }
    if let Ok(request) = Request::decode(&RUN, bytes) {
        assert_eq!(Request::decode(&RUN, &request.encode(&RUN)), Ok(request));
    }
    if let Ok(response) = Response::decode(bytes) {
        assert_eq!(Response::decode(&response.encode()), Ok(response));
    }
    if let Ok(record) = DecisionRecord::decode(bytes) {
        assert_eq!(DecisionRecord::decode(&record.encode()), Ok(record));
    }
    if let Ok((round, entry)) = JournalEntry::decode(bytes) {
        assert_eq!(
            JournalEntry::decode(&entry.encode(round)),
            Ok((round, entry))
        );
    }
}

#[test]
fn the_bytes_of_every_message_are_pinned() {
    let mut found = String::new();
    for (name, bytes) in samples() {
        let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let _ = writeln!(found, "{name}: {hex}");
    }
    let pinned = include_str!("wire.golden");
    for (found, pinned) in found.lines().zip(pinned.lines()) {
        assert_eq!(found, pinned);
    }
    assert_eq!(found.lines().count(), pinned.lines().count(), "{found}");
}

#[test]
fn what_is_signed_and_voted_on_has_pinned_hashes() {
    let manifest = manifest::example(keypair().public());
    let hashes = [
        ("run", manifest.run().0),
        ("header", header().header.hash()),
        ("decision", decision().id()),
        ("decision by the registry", decision_by_registry().id()),
        ("decision with a capacity", decision_with_capacity().id()),
        ("decision by owners", decision_by_owners().id()),
        ("run on a subnet", subnet_manifest().manifest.run().0),
        ("run with audits", audited_manifest().manifest.run().0),
        ("verdict", verdict().verdict.hash()),
        ("vote", vote().message.hash(&RUN)),
        ("proposal", proposal(decision()).message.hash(&RUN)),
    ];
    let found: String = hashes
        .iter()
        .map(|(n, hash)| format!("{n} {hash}\n"))
        .collect();
    assert_eq!(found, include_str!("hashes.golden"));
}

#[test]
fn every_message_reads_back_as_what_was_written() {
    for (name, message) in gossip() {
        assert_eq!(
            Gossip::decode(&RUN, &message.encode(&RUN)),
            Ok(message),
            "{name}"
        );
    }
    for (name, request) in requests() {
        assert_eq!(
            Request::decode(&RUN, &request.encode(&RUN)),
            Ok(request),
            "{name}"
        );
    }
    for (name, response) in responses() {
        assert_eq!(Response::decode(&response.encode()), Ok(response), "{name}");
    }
    for (name, entry) in journal() {
        let bytes = entry.encode(RoundId(4));
        assert_eq!(
            JournalEntry::decode(&bytes),
            Ok((RoundId(4), entry)),
            "{name}"
        );
    }
    assert_eq!(DecisionRecord::decode(&record().encode()), Ok(record()));
}

#[test]
fn a_chain_that_is_half_there_is_refused() {
    let whole = Response::Manifest(Box::new(subnet_manifest())).encode();
    let refused = |from: &[u8], to: &[u8]| {
        let place = whole.windows(from.len()).position(|w| w == from).unwrap();
        let mut bytes = whole.clone();
        bytes[place..place + from.len()].copy_from_slice(to);
        let error = Response::decode(&bytes).unwrap_err();
        assert!(matches!(error, WireError::Field { .. }), "{error}");
    };
    assert!(Response::decode(&whole).is_ok());
    refused(b"subnet", b"subnot");
    // A netuid beyond 16 bits, and a third kind of powers.
    refused(&[0x10, 0xFF, 0xFF, 0x03], &[0x10, 0xFF, 0xFF, 0x07]);
    refused(&[0x18, 0x02, 0x20, 25], &[0x18, 0x03, 0x20, 25]);

    let mut many = decision_by_registry();
    many.powers = vec![(peer(), 1); 81];
    let message = Gossip::Agreement(Message::Proposal(Box::new(proposal(many))));
    assert_eq!(
        Gossip::decode(&RUN, &message.encode(&RUN)),
        Err(WireError::Field {
            message: "decision",
            field: "powers"
        })
    );
}

#[test]
fn the_largest_proposal_and_the_longest_list_of_an_owner_fit_a_gossip_message() {
    const GROUPS: usize = REDUCTIONS_MAX / SHARDS_MAX;
    let mut large = decision_by_registry();
    let reduced = DecidedReduction {
        frame: frame(),
        residual: Hash([6; 32]),
    };
    large.members = vec![large.members[0]; PEERS_MAX as usize];
    large.shards = vec![
        DecidedShard {
            accepted: Bitmap::full(PEERS_MAX as usize),
            reduced: vec![reduced; GROUPS],
        };
        SHARDS_MAX
    ];
    large.joins = vec![join(); JOINS_MAX];
    large.capacities = vec![capacity(); CAPACITIES_MAX];
    large.leaves = vec![leave(); PEERS_MAX as usize];
    large.powers = vec![(peer(), u32::MAX); PEERS_MAX as usize + JOINS_MAX];
    let message = Gossip::Agreement(Message::Proposal(Box::new(proposal(large.clone()))));
    let bytes = message.encode(&RUN);
    assert!(bytes.len() <= GOSSIP_BYTES_MAX, "{} bytes", bytes.len());
    assert_eq!(Gossip::decode(&RUN, &bytes), Ok(message));

    large.shards[0].reduced.push(reduced);
    let message = Gossip::Agreement(Message::Proposal(Box::new(proposal(large))));
    let refused = Gossip::decode(&RUN, &message.encode(&RUN));
    assert!(matches!(refused, Err(WireError::Field { .. })), "one more");

    let headers: Vec<Hash> = (0..PEERS_MAX as u8).map(|byte| Hash([byte; 32])).collect();
    let entry = |shard: usize| Reduction {
        group: GroupId::ALL,
        shard: shard as u32,
        accepted: Bitmap::full(headers.len()),
        frame: frame(),
        residual_before: Hash([6; 32]),
        residual: Hash([7; 32]),
    };
    let mut list = reductions();
    list.reductions.reductions = (0..SHARDS_MAX).map(entry).collect();
    list.reductions.headers = headers;
    let message = Gossip::Reductions(Box::new(list));
    let bytes = message.encode(&RUN);
    assert!(bytes.len() <= GOSSIP_BYTES_MAX, "{} bytes", bytes.len());
    assert_eq!(Gossip::decode(&RUN, &bytes), Ok(message));
}

#[test]
fn a_list_of_reductions_out_of_order_or_with_repetition_is_refused() {
    let refused = |change: &dyn Fn(&mut Reductions)| {
        let mut list = reductions();
        change(&mut list.reductions);
        let bytes = Gossip::Reductions(Box::new(list)).encode(&RUN);
        matches!(Gossip::decode(&RUN, &bytes), Err(WireError::Field { .. }))
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|list| list.headers.reverse()));
    assert!(refused(&|list| list.headers[1] = list.headers[0]));
    assert!(refused(&|list| {
        let again = list.reductions[0].clone();
        list.reductions.push(again);
    }));
    assert!(refused(&|list| {
        list.reductions[0].accepted = Bitmap::full(9);
    }));
}

#[test]
fn a_message_cut_off_anywhere_does_not_panic() {
    for (_, bytes) in samples() {
        for end in 0..bytes.len() {
            read_all(&bytes[..end]);
        }
    }
}

proptest! {
    #[test]
    fn bytes_changed_anywhere_do_not_panic(
        sample in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
    ) {
        let samples = samples();
        let mut bytes = samples[sample.index(samples.len())].1.clone();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        read_all(&bytes);
        read_all(&bytes[..end.index(bytes.len())]);
    }

    #[test]
    fn any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        read_all(&bytes);
    }
}
