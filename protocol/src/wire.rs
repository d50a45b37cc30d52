//! From bytes to checked types and back.
//!
//! Nothing outside this module sees the generated types. Decoding checks every length, count and range; what it
//! returns is well-formed, though not yet authentic: signatures are the business of whoever knows the roster. Encoding
//! is canonical (fields in order, no maps), so that the hash of an encoded type is the same on every machine.

use core::net::SocketAddr;

use arc_malachitebft_core_types as bft;
use bft::{NilOrVal, Round, RoundCertificateType, Validity, VoteType};
use prost::Message as _;

use crate::agreement::{
    CommitCertificate, CommitSignature, Message, PolkaCertificate, Proposal, ProposedValue, Record,
    RoundCertificate, SignedProposal, SignedVote, Step, TimeoutRecord, Vote,
};
use crate::audit::segment::{SEGMENTS_MAX, SegmentList, StateRoots, Work};
use crate::audit::verdict::{Check, Outcome, SignedVerdict, Verdict};
use crate::capacity::{CAPACITIES_MAX, CapacityChange};
use crate::decision::{
    Bitmap, DecidedMember, DecidedReduction, DecidedShard, Decision, JOINS_MAX, Join, Leave,
};
use crate::hash::Hash;
use crate::header::{FrameRef, Header, SignedHeader, UpdateSummary, WorkCommitment};
use crate::key::{PeerKey, Signature};
use crate::manifest::{
    self, Audit, Chain, Codec, CodecKind, Data, Exchange, Inner, InnerState, Link, LocalFormat,
    MANIFEST_VERSION, Manifest, Model, ModelDtype, Outer, OuterRule, PEERS_MAX, PlanKind, Powers,
    RoundId, RunId, Schedule, SignedManifest, SiteId, Subnet, TOLERANCES_MAX, Timing, Tolerance,
    Trust, TrustMode,
};
use crate::plan::{GroupId, REDUCTIONS_MAX};
use crate::reduction::{Reduction, Reductions, SignedReductions};
use crate::registry::RegistryMark;
use crate::ticket::{ADDRESSES_MAX, Ticket};

#[allow(missing_docs, clippy::all, unreachable_pub)]
mod pb {
    include!(concat!(env!("OUT_DIR"), "/gradmesh.v1.rs"));
}

/// The longest gossip message, in bytes: a proposal with [`REDUCTIONS_MAX`] reductions, a full roster and every join
/// fits, and so does an owner's list for [`SHARDS_MAX`] shards.
pub const GOSSIP_BYTES_MAX: usize = 1024 * 1024;
/// The longest request.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// The longest response: snapshot leaves of 1 G parameters (8 MiB) fit.
pub const RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most shards of a run, and so frames of a header: a header of all of them fits a gossip message.
pub const SHARDS_MAX: usize = 4096;
/// The most headers asked for at once.
pub const HEADERS_MAX: usize = PEERS_MAX as usize;
/// The most decisions sent at once.
pub const DECISIONS_MAX: usize = 64;
/// The most lists of reductions sent at once.
pub const ANNOUNCEMENTS_MAX: usize = 4 * PEERS_MAX as usize;
/// The longest list of segments: [`SEGMENTS_MAX`] of them, each with a state of 68 bytes and 70 bytes of work, and framing.
const SEGMENTS_BYTES_MAX: usize = 16 * 1024;
/// The longest text in a message.
const TEXT_BYTES_MAX: usize = 256;

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not protobuf, or cut off.
    #[error("not a gradmesh message: {0}")]
    Malformed(String),
    /// A field is missing, or its length, count or range is wrong.
    #[error("field {field} of {message} is missing or out of range")]
    Field {
        /// The message.
        message: &'static str,
        /// The field.
        field: &'static str,
    },
    /// Longer than messages of its kind may be.
    #[error("{bytes} bytes; at most {bytes_max}")]
    TooLong {
        /// The length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// For another run.
    #[error("a message of run {0}")]
    OtherRun(RunId),
}

type Wire<T> = Result<T, WireError>;

/// A message that goes to every peer of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Gossip {
    /// A commitment to an update.
    Header(Box<SignedHeader>),
    /// Part of the agreement.
    Agreement(Message),
    /// The last round that the sender knows to be decided.
    Status(Option<RoundId>),
    /// The sender asks to be in the roster.
    Join(Join),
    /// The sender leaves.
    Leave(Leave),
    /// Where the sender listens. For drivers: a node has no addresses.
    Contact(Contact),
    /// What an owner made of the updates of a round.
    Reductions(Box<SignedReductions>),
    /// The sender's link can carry more or less than the roster has.
    Capacity(CapacityChange),
    /// What a validator found. For drivers: a node judges no work.
    Verdict(Box<SignedVerdict>),
}

/// Where a peer listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// Multiaddresses of its control plane, up to [`ADDRESSES_MAX`].
    pub control: Vec<String>,
    /// Address of its bulk plane. An unspecified IP stands for the one that it is connected from.
    pub bulk: SocketAddr,
    /// The account on the run's chain that it works for, in chain runs.
    pub hotkey: Option<[u8; 32]>,
    /// Whether it audits the others.
    pub validates: bool,
}

/// A question to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The manifest of the run.
    Manifest,
    /// Where the peer listens.
    Contact,
    /// Decisions from a round on.
    Decisions {
        /// The first one wanted.
        from: RoundId,
        /// The most to send, up to [`DECISIONS_MAX`].
        count: u32,
    },
    /// Headers by hash.
    Headers(Vec<Hash>),
    /// What owners announced for a round.
    Reductions(RoundId),
    /// The leaves of the state after a round.
    Snapshot(RoundId),
    /// The data manifest.
    Data,
    /// How the answering peer's own update of a round came about.
    Segments(RoundId),
    /// The chunks of one of the states of that list.
    SegmentState {
        /// The round.
        round: RoundId,
        /// The place of the state: before segment `place`.
        place: u32,
    },
    /// The tiles of the answering peer's error feedback before and after its update of a round.
    Feedback(RoundId),
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// A signed manifest.
    Manifest(Box<SignedManifest>),
    /// Where the peer listens.
    Contact(Contact),
    /// Decisions and what the peer holds.
    Decisions(Decisions),
    /// The headers that the peer has of those asked for.
    Headers(Vec<SignedHeader>),
    /// What the peer knows owners to have announced, up to [`ANNOUNCEMENTS_MAX`] lists.
    Reductions(Vec<SignedReductions>),
    /// Leaves of a state.
    Snapshot {
        /// After which round.
        round: RoundId,
        /// The hashes of its tiles, in order.
        leaves: Vec<Hash>,
    },
    /// Canonical bytes of the data manifest.
    Data(Vec<u8>),
    /// How an update came about.
    Segments(SegmentList),
    /// A state of training by chunk; each can be had by its content hash.
    SegmentState {
        /// Hashes of the chunks of the local parameters, in order.
        theta: Vec<Hash>,
        /// Of the inner optimizer's state.
        inner: Vec<Hash>,
    },
    /// Error feedback by tile; each can be had by its content hash.
    Feedback {
        /// Hashes of the tiles before the update, in order.
        before: Vec<Hash>,
        /// After it.
        after: Vec<Hash>,
    },
    /// The peer does not answer, and why.
    Refused(String),
}

/// Decisions in order, and what their sender holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decisions {
    /// The records, from the round asked for.
    pub records: Vec<DecisionRecord>,
    /// The last round that the sender knows to be decided.
    pub decided: Option<RoundId>,
    /// The round whose state the sender serves by leaf.
    pub snapshot: RoundId,
    /// The first round whose frames it still holds.
    pub frames_from: RoundId,
}

/// A decision with its proof and the headers that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionRecord {
    /// The decision.
    pub decision: Decision,
    /// The proof.
    pub certificate: CommitCertificate,
    /// The headers of its members, in their order.
    pub headers: Vec<SignedHeader>,
}

/// What must survive a crash of a node, besides decisions.
#[derive(Clone, Debug, PartialEq)]
pub enum JournalEntry {
    /// The header that this peer published.
    Header(Box<SignedHeader>),
    /// A record of the agreement.
    Agreement(Box<Record>),
}

// ---- Entry points ------------------------------------------------------------------------------------------------

/// Canonical bytes of a manifest: what its hash and signature are over.
pub(crate) fn encode_manifest(manifest: &Manifest) -> Vec<u8> {
    pb::Manifest::from(manifest).encode_to_vec()
}

/// Canonical bytes of a header.
pub(crate) fn encode_header(header: &Header) -> Vec<u8> {
    pb::Header::from(header).encode_to_vec()
}

/// Canonical bytes of a verdict.
pub(crate) fn encode_verdict(verdict: &Verdict) -> Vec<u8> {
    pb::Verdict::from(verdict).encode_to_vec()
}

/// Canonical bytes of an owner's list.
pub(crate) fn encode_reductions(reductions: &Reductions) -> Vec<u8> {
    pb::Reductions::from(reductions).encode_to_vec()
}

/// Canonical bytes of a decision.
pub(crate) fn encode_decision(decision: &Decision) -> Vec<u8> {
    pb::Decision::from(decision).encode_to_vec()
}

pub(crate) fn encode_signed_manifest(signed: &SignedManifest) -> Vec<u8> {
    pb::SignedManifest::from(signed).encode_to_vec()
}

pub(crate) fn decode_signed_manifest(bytes: &[u8]) -> Wire<SignedManifest> {
    decode::<pb::SignedManifest, _>(bytes, manifest::MODEL_CONFIG_BYTES_MAX * 2)
}

pub(crate) fn encode_ticket(ticket: &Ticket) -> Vec<u8> {
    pb::Ticket {
        run: ticket.run.0.0.to_vec(),
        launcher: ticket.launcher.0.to_vec(),
        addresses: ticket.addresses.clone(),
        signature: ticket.signature.0.to_vec(),
    }
    .encode_to_vec()
}

pub(crate) fn decode_ticket(bytes: &[u8]) -> Wire<Ticket> {
    decode::<pb::Ticket, _>(bytes, ADDRESSES_MAX * TEXT_BYTES_MAX + 256)
}

impl Gossip {
    /// Bytes for the topic of `run`.
    pub fn encode(&self, run: &RunId) -> Vec<u8> {
        use pb::gossip::Body;
        let body = match self {
            Gossip::Header(header) => Body::Header((&**header).into()),
            Gossip::Agreement(Message::Proposal(proposal)) => Body::Proposal((&**proposal).into()),
            Gossip::Agreement(Message::Vote(vote)) => Body::Vote(vote.into()),
            Gossip::Agreement(Message::Polka(polka)) => Body::Polka(polka.into()),
            Gossip::Agreement(Message::RoundCertificate(certificate)) => {
                Body::RoundCertificate(certificate.into())
            }
            Gossip::Status(decided) => Body::Status(pb::Status {
                decided: decided.unwrap_or_default().0,
                any_decided: decided.is_some(),
            }),
            Gossip::Join(join) => Body::Join(join.into()),
            Gossip::Leave(leave) => Body::Leave(leave.into()),
            Gossip::Contact(contact) => Body::Contact(contact.into()),
            Gossip::Reductions(reductions) => Body::Reductions((&**reductions).into()),
            Gossip::Capacity(change) => Body::Capacity(change.into()),
            Gossip::Verdict(verdict) => Body::Verdict((&**verdict).into()),
        };
        pb::Gossip {
            run: run.0.0.to_vec(),
            body: Some(body),
        }
        .encode_to_vec()
    }

    /// Reads a message of `run`.
    ///
    /// # Errors
    /// [`WireError`]; the sender of such bytes is at fault.
    pub fn decode(run: &RunId, bytes: &[u8]) -> Wire<Gossip> {
        use pb::gossip::Body;
        let message = parse::<pb::Gossip>(bytes, GOSSIP_BYTES_MAX)?;
        own_run(run, &message.run)?;
        Ok(match present("gossip", "body", message.body)? {
            Body::Header(header) => Gossip::Header(Box::new(header.try_into()?)),
            Body::Proposal(proposal) => {
                Gossip::Agreement(Message::Proposal(Box::new(proposal.try_into()?)))
            }
            Body::Vote(vote) => Gossip::Agreement(Message::Vote(vote.try_into()?)),
            Body::Polka(polka) => Gossip::Agreement(Message::Polka(polka.try_into()?)),
            Body::RoundCertificate(certificate) => {
                Gossip::Agreement(Message::RoundCertificate(certificate.try_into()?))
            }
            Body::Status(status) => {
                Gossip::Status(status.any_decided.then_some(RoundId(status.decided)))
            }
            Body::Join(join) => Gossip::Join(join.try_into()?),
            Body::Leave(leave) => Gossip::Leave(leave.try_into()?),
            Body::Contact(contact) => Gossip::Contact(contact.try_into()?),
            Body::Reductions(reductions) => Gossip::Reductions(Box::new(reductions.try_into()?)),
            Body::Capacity(change) => Gossip::Capacity(change.try_into()?),
            Body::Verdict(verdict) => Gossip::Verdict(Box::new(verdict.try_into()?)),
        })
    }
}

impl Request {
    /// Bytes of a request about `run`.
    pub fn encode(&self, run: &RunId) -> Vec<u8> {
        use pb::request::Body;
        let body = match self {
            Request::Manifest => Body::Manifest(pb::Empty {}),
            Request::Contact => Body::Contact(pb::Empty {}),
            Request::Decisions { from, count } => Body::Decisions(pb::DecisionsRequest {
                from: from.0,
                count: *count,
            }),
            Request::Headers(hashes) => Body::Headers(pb::HeadersRequest {
                hashes: hashes.iter().map(|h| h.0.to_vec()).collect(),
            }),
            Request::Reductions(round) => {
                Body::Reductions(pb::ReductionsRequest { round: round.0 })
            }
            Request::Snapshot(round) => Body::Snapshot(pb::SnapshotRequest { round: round.0 }),
            Request::Data => Body::Data(pb::Empty {}),
            Request::Segments(round) => Body::Segments(pb::SegmentsRequest { round: round.0 }),
            Request::SegmentState { round, place } => Body::SegmentState(pb::SegmentStateRequest {
                round: round.0,
                place: *place,
            }),
            Request::Feedback(round) => Body::Feedback(pb::FeedbackRequest { round: round.0 }),
        };
        pb::Request {
            run: run.0.0.to_vec(),
            body: Some(body),
        }
        .encode_to_vec()
    }

    /// Reads a request about `run`.
    ///
    /// # Errors
    /// [`WireError`]; the asker is at fault.
    pub fn decode(run: &RunId, bytes: &[u8]) -> Wire<Request> {
        use pb::request::Body;
        let message = parse::<pb::Request>(bytes, REQUEST_BYTES_MAX)?;
        own_run(run, &message.run)?;
        Ok(match present("request", "body", message.body)? {
            Body::Manifest(_) => Request::Manifest,
            Body::Contact(_) => Request::Contact,
            Body::Decisions(d) => Request::Decisions {
                from: RoundId(d.from),
                count: d.count.min(DECISIONS_MAX as u32),
            },
            Body::Headers(h) => Request::Headers(list(
                "headers request",
                "hashes",
                h.hashes,
                HEADERS_MAX,
                |h| hash("headers request", "hashes", &h),
            )?),
            Body::Reductions(r) => Request::Reductions(RoundId(r.round)),
            Body::Snapshot(s) => Request::Snapshot(RoundId(s.round)),
            Body::Data(_) => Request::Data,
            Body::Segments(s) => Request::Segments(RoundId(s.round)),
            Body::SegmentState(s) if s.place <= SEGMENTS_MAX => Request::SegmentState {
                round: RoundId(s.round),
                place: s.place,
            },
            Body::SegmentState(_) => return Err(bad("segment state request", "place")),
            Body::Feedback(f) => Request::Feedback(RoundId(f.round)),
        })
    }
}

impl Response {
    /// Bytes of a response.
    pub fn encode(&self) -> Vec<u8> {
        use pb::response::Body;
        let body = match self {
            Response::Manifest(signed) => Body::Manifest((&**signed).into()),
            Response::Contact(contact) => Body::Contact(contact.into()),
            Response::Decisions(d) => Body::Decisions(pb::Decisions {
                records: d.records.iter().map(Into::into).collect(),
                decided: d.decided.unwrap_or_default().0,
                any_decided: d.decided.is_some(),
                snapshot_round: d.snapshot.0,
                frames_from: d.frames_from.0,
            }),
            Response::Headers(headers) => Body::Headers(pb::Headers {
                headers: headers.iter().map(Into::into).collect(),
            }),
            Response::Reductions(lists) => Body::Reductions(pb::Announcements {
                lists: lists.iter().map(Into::into).collect(),
            }),
            Response::Snapshot { round, leaves } => Body::Snapshot(pb::Snapshot {
                round: round.0,
                leaves: leaves.iter().map(|l| l.0.to_vec()).collect(),
            }),
            Response::Data(bytes) => Body::Data(bytes.clone()),
            Response::Segments(list) => Body::Segments(list.into()),
            Response::SegmentState { theta, inner } => Body::SegmentState(pb::SegmentState {
                theta: theta.iter().map(|h| h.0.to_vec()).collect(),
                inner: inner.iter().map(|h| h.0.to_vec()).collect(),
            }),
            Response::Feedback { before, after } => Body::Feedback(pb::Feedback {
                before: before.iter().map(|h| h.0.to_vec()).collect(),
                after: after.iter().map(|h| h.0.to_vec()).collect(),
            }),
            Response::Refused(reason) => Body::Refused(reason.clone()),
        };
        pb::Response { body: Some(body) }.encode_to_vec()
    }

    /// Reads a response.
    ///
    /// # Errors
    /// [`WireError`]; the answering peer is at fault.
    pub fn decode(bytes: &[u8]) -> Wire<Response> {
        use pb::response::Body;
        let message = parse::<pb::Response>(bytes, RESPONSE_BYTES_MAX)?;
        Ok(match present("response", "body", message.body)? {
            Body::Manifest(signed) => Response::Manifest(Box::new(signed.try_into()?)),
            Body::Contact(contact) => Response::Contact(contact.try_into()?),
            Body::Decisions(d) => Response::Decisions(Decisions {
                records: list("decisions", "records", d.records, DECISIONS_MAX, |record| {
                    record.try_into()
                })?,
                decided: d.any_decided.then_some(RoundId(d.decided)),
                snapshot: RoundId(d.snapshot_round),
                frames_from: RoundId(d.frames_from),
            }),
            Body::Headers(h) => Response::Headers(list(
                "headers",
                "headers",
                h.headers,
                HEADERS_MAX,
                TryInto::try_into,
            )?),
            Body::Reductions(announcements) => Response::Reductions(list(
                "announcements",
                "lists",
                announcements.lists,
                ANNOUNCEMENTS_MAX,
                TryInto::try_into,
            )?),
            Body::Snapshot(s) => Response::Snapshot {
                round: RoundId(s.round),
                leaves: hashes("snapshot", "leaves", s.leaves)?,
            },
            Body::Data(bytes) => Response::Data(bytes),
            Body::Segments(list) => Response::Segments(list.try_into()?),
            Body::SegmentState(state) => Response::SegmentState {
                theta: hashes("segment state", "theta", state.theta)?,
                inner: hashes("segment state", "inner", state.inner)?,
            },
            Body::Feedback(feedback) => Response::Feedback {
                before: hashes("feedback", "before", feedback.before)?,
                after: hashes("feedback", "after", feedback.after)?,
            },
            Body::Refused(reason) => Response::Refused(text("response", "refused", reason)?),
        })
    }
}

impl DecisionRecord {
    /// Bytes for the store.
    pub fn encode(&self) -> Vec<u8> {
        pb::DecisionRecord::from(self).encode_to_vec()
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// [`WireError`]; the store is damaged.
    pub fn decode(bytes: &[u8]) -> Wire<DecisionRecord> {
        decode::<pb::DecisionRecord, _>(bytes, RESPONSE_BYTES_MAX)
    }
}

impl JournalEntry {
    /// Bytes for the journal of `round`.
    pub fn encode(&self, round: RoundId) -> Vec<u8> {
        use pb::journal_entry::Body;
        let body = match self {
            JournalEntry::Header(header) => Body::Header((&**header).into()),
            JournalEntry::Agreement(record) => match &**record {
                Record::Proposal(proposal) => Body::Proposal((&**proposal).into()),
                Record::Vote(vote) => Body::Vote(vote.into()),
                Record::Polka(polka) => Body::Polka(polka.into()),
                Record::Timeout(timeout) => Body::Timeout(pb::TimeoutRecord {
                    kind: match timeout.step {
                        Step::Propose => 1,
                        Step::Prevote => 2,
                        Step::Precommit => 3,
                        Step::Rebroadcast => 4,
                    },
                    round: timeout.attempt,
                }),
                Record::Proposed(proposed) => Body::Proposed(pb::ProposedValue {
                    height: proposed.height.0,
                    round: proposed.round.as_u32().unwrap_or(0),
                    valid_round: proposed.valid_round.as_u32(),
                    proposer: proposed.proposer.0.to_vec(),
                    value: Some((&proposed.value).into()),
                    valid: proposed.validity.is_valid(),
                }),
            },
        };
        pb::JournalEntry {
            round: round.0,
            body: Some(body),
        }
        .encode_to_vec()
    }

    /// Reads an entry and the round that it belongs to.
    ///
    /// # Errors
    /// [`WireError`]; the journal is damaged.
    pub fn decode(bytes: &[u8]) -> Wire<(RoundId, JournalEntry)> {
        use pb::journal_entry::Body;
        let message = parse::<pb::JournalEntry>(bytes, RESPONSE_BYTES_MAX)?;
        let record = match present("journal entry", "body", message.body)? {
            Body::Header(header) => {
                let header = Box::new(header.try_into()?);
                return Ok((RoundId(message.round), JournalEntry::Header(header)));
            }
            Body::Proposal(proposal) => Record::Proposal(Box::new(proposal.try_into()?)),
            Body::Vote(vote) => Record::Vote(vote.try_into()?),
            Body::Polka(polka) => Record::Polka(polka.try_into()?),
            Body::Timeout(timeout) => Record::Timeout(TimeoutRecord {
                step: match timeout.kind {
                    1 => Step::Propose,
                    2 => Step::Prevote,
                    3 => Step::Precommit,
                    4 => Step::Rebroadcast,
                    _ => return Err(bad("timeout", "kind")),
                },
                attempt: timeout.round,
            }),
            Body::Proposed(p) => Record::Proposed(Box::new(ProposedValue {
                height: RoundId(p.height),
                round: Round::new(p.round),
                valid_round: p.valid_round.into(),
                proposer: key("proposed value", "proposer", &p.proposer)?,
                value: present("proposed value", "value", p.value)?.try_into()?,
                validity: Validity::from_bool(p.valid),
            })),
        };
        let entry = JournalEntry::Agreement(Box::new(record));
        Ok((RoundId(message.round), entry))
    }
}

// ---- Checks ------------------------------------------------------------------------------------------------------

fn parse<P: prost::Message + Default>(bytes: &[u8], bytes_max: usize) -> Wire<P> {
    if bytes.len() > bytes_max {
        return Err(WireError::TooLong {
            bytes: bytes.len(),
            bytes_max,
        });
    }
    P::decode(bytes).map_err(|error| WireError::Malformed(error.to_string()))
}

fn decode<P: prost::Message + Default, T: TryFrom<P, Error = WireError>>(
    bytes: &[u8],
    bytes_max: usize,
) -> Wire<T> {
    parse::<P>(bytes, bytes_max)?.try_into()
}

fn bad(message: &'static str, field: &'static str) -> WireError {
    WireError::Field { message, field }
}

fn present<T>(message: &'static str, field: &'static str, value: Option<T>) -> Wire<T> {
    value.ok_or(bad(message, field))
}

fn hash(message: &'static str, field: &'static str, bytes: &[u8]) -> Wire<Hash> {
    Hash::from_slice(bytes).ok_or(bad(message, field))
}

fn key(message: &'static str, field: &'static str, bytes: &[u8]) -> Wire<PeerKey> {
    PeerKey::from_slice(bytes).ok_or(bad(message, field))
}

fn signature(message: &'static str, bytes: &[u8]) -> Wire<Signature> {
    Signature::from_slice(bytes).ok_or(bad(message, "signature"))
}

fn text(message: &'static str, field: &'static str, text: String) -> Wire<String> {
    if text.len() <= TEXT_BYTES_MAX {
        Ok(text)
    } else {
        Err(bad(message, field))
    }
}

fn list<P, T>(
    message: &'static str,
    field: &'static str,
    items: Vec<P>,
    count_max: usize,
    read: impl FnMut(P) -> Wire<T>,
) -> Wire<Vec<T>> {
    if items.len() > count_max {
        return Err(bad(message, field));
    }
    items.into_iter().map(read).collect()
}

/// As many hashes as fit in a response.
fn hashes(message: &'static str, field: &'static str, items: Vec<Vec<u8>>) -> Wire<Vec<Hash>> {
    list(message, field, items, RESPONSE_BYTES_MAX / 32, |item| {
        hash(message, field, &item)
    })
}

fn own_run(run: &RunId, bytes: &[u8]) -> Wire<()> {
    let found = RunId(hash("message", "run", bytes)?);
    if found == *run {
        Ok(())
    } else {
        Err(WireError::OtherRun(found))
    }
}

// ---- Manifest ----------------------------------------------------------------------------------------------------

impl From<&Manifest> for pb::Manifest {
    fn from(m: &Manifest) -> pb::Manifest {
        pb::Manifest {
            version: MANIFEST_VERSION,
            name: m.name.clone(),
            launcher: m.launcher.0.to_vec(),
            seed: m.seed.0.to_vec(),
            model: Some(pb::Model {
                config_json: m.model.config_json.clone(),
                dtype: match m.model.dtype {
                    ModelDtype::F32 => 1,
                    ModelDtype::Bf16 => 2,
                },
            }),
            data: Some(pb::Data {
                root: m.data.root.0.to_vec(),
                bytes: m.data.bytes,
                files: m.data.files,
                sequence_tokens: m.data.sequence_tokens,
            }),
            inner: Some(pb::Inner {
                batch_sequences: m.inner.batch_sequences,
                learning_rate_ppm: m.inner.learning_rate_ppm,
                warmup_steps: m.inner.warmup_steps,
                beta1_ppm: m.inner.beta1_ppm,
                beta2_ppm: m.inner.beta2_ppm,
                weight_decay_ppm: m.inner.weight_decay_ppm,
            }),
            outer: Some(pb::Outer {
                rule: match m.outer.rule {
                    OuterRule::Plain => 1,
                    OuterRule::Nesterov => 2,
                },
                rate_ppm: m.outer.rate_ppm,
                momentum_ppm: m.outer.momentum_ppm,
            }),
            codec: Some(pb::Codec {
                kind: match m.codec.kind {
                    CodecKind::Sparse => 1,
                    CodecKind::DenseBf16 => 2,
                    CodecKind::DenseF32 => 3,
                    CodecKind::DenseInt8 => 4,
                    CodecKind::DenseInt4 => 5,
                },
                k: m.codec.k,
                value_bits: m.codec.value_bits,
                feedback_beta_ppm: m.codec.feedback_beta_ppm,
                sparse_elements_min: m.codec.sparse_elements_min,
                tiles_per_shard: m.codec.tiles_per_shard,
            }),
            schedule: Some(pb::Schedule {
                steps_per_round: m.schedule.steps_per_round,
                rounds: m.schedule.rounds,
                rounds_per_epoch: m.schedule.rounds_per_epoch,
            }),
            trust: Some(pb::Trust {
                mode: match m.trust.mode {
                    TrustMode::Byzantine => 1,
                    TrustMode::Crash => 2,
                },
                peers_min: m.trust.peers_min,
                peers_max: m.trust.peers_max,
                absent_rounds_max: m.trust.absent_rounds_max,
            }),
            timing: Some(pb::Timing {
                deadline_floor_ms: m.timing.deadline_floor_ms,
                deadline_cap_ms: m.timing.deadline_cap_ms,
                propose_ms: m.timing.propose_ms,
                vote_ms: m.timing.vote_ms,
            }),
            chain: match m.chain {
                Chain::None => NO_CHAIN.into(),
                Chain::Subnet(_) => SUBNET.into(),
            },
            subnet: match &m.chain {
                Chain::None => None,
                Chain::Subnet(subnet) => Some(subnet.into()),
            },
            exchange: Some((&m.exchange).into()),
            audit: m.audit.as_ref().map(Into::into),
            launcher_link: Some((&m.launcher_link).into()),
        }
    }
}

impl From<&Exchange> for pb::Exchange {
    fn from(exchange: &Exchange) -> pb::Exchange {
        pb::Exchange {
            plan: match exchange.plan {
                PlanKind::Auto => 1,
                PlanKind::Gather => 2,
                PlanKind::Reduce => 3,
                PlanKind::Hier => 4,
            },
            reduced_k: exchange.reduced_k,
            reduced_value_bits: exchange.reduced_value_bits,
            owner_beta_ppm: exchange.owner_beta_ppm,
            local: match exchange.local {
                LocalFormat::Bf16 => 1,
                LocalFormat::F32 => 2,
            },
            overlap: exchange.overlap,
            fragments: exchange.fragments,
        }
    }
}

impl TryFrom<pb::Exchange> for Exchange {
    type Error = WireError;

    fn try_from(exchange: pb::Exchange) -> Wire<Exchange> {
        const NAME: &str = "exchange";
        Ok(Exchange {
            plan: match exchange.plan {
                1 => PlanKind::Auto,
                2 => PlanKind::Gather,
                3 => PlanKind::Reduce,
                4 => PlanKind::Hier,
                _ => return Err(bad(NAME, "plan")),
            },
            reduced_k: exchange.reduced_k,
            reduced_value_bits: exchange.reduced_value_bits,
            owner_beta_ppm: exchange.owner_beta_ppm,
            local: match exchange.local {
                1 => LocalFormat::Bf16,
                2 => LocalFormat::F32,
                _ => return Err(bad(NAME, "local")),
            },
            overlap: exchange.overlap,
            fragments: exchange.fragments,
        })
    }
}

impl From<&Audit> for pb::Audit {
    fn from(audit: &Audit) -> pb::Audit {
        pb::Audit {
            segments: audit.segments,
            coverage_ppm: audit.coverage_ppm,
            probation_rounds: audit.probation_rounds,
            suspension_rounds: audit.suspension_rounds,
            loss_sequences: audit.loss_sequences,
            loss_ppm: audit.loss_ppm,
            inner: match audit.inner {
                InnerState::Carried => 1,
                InnerState::Reset => 2,
            },
            tolerances: audit.tolerances.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Audit> for Audit {
    type Error = WireError;

    fn try_from(audit: pb::Audit) -> Wire<Audit> {
        const NAME: &str = "audit";
        Ok(Audit {
            segments: audit.segments,
            coverage_ppm: audit.coverage_ppm,
            probation_rounds: audit.probation_rounds,
            suspension_rounds: audit.suspension_rounds,
            loss_sequences: audit.loss_sequences,
            loss_ppm: audit.loss_ppm,
            inner: match audit.inner {
                1 => InnerState::Carried,
                2 => InnerState::Reset,
                _ => return Err(bad(NAME, "inner")),
            },
            tolerances: list(
                NAME,
                "tolerances",
                audit.tolerances,
                TOLERANCES_MAX,
                TryInto::try_into,
            )?,
        })
    }
}

impl From<&Tolerance> for pb::Tolerance {
    fn from(tolerance: &Tolerance) -> pb::Tolerance {
        pb::Tolerance {
            first: tolerance.first.clone(),
            second: tolerance.second.clone(),
            error_ppb: tolerance.error_ppb,
        }
    }
}

impl TryFrom<pb::Tolerance> for Tolerance {
    type Error = WireError;

    fn try_from(tolerance: pb::Tolerance) -> Wire<Tolerance> {
        const NAME: &str = "tolerance";
        Ok(Tolerance {
            first: text(NAME, "first", tolerance.first)?,
            second: text(NAME, "second", tolerance.second)?,
            error_ppb: tolerance.error_ppb,
        })
    }
}

impl From<&Link> for pb::Link {
    fn from(link: &Link) -> pb::Link {
        pb::Link {
            site: link.site.0.0.to_vec(),
            capacity: link.capacity.into(),
        }
    }
}

impl TryFrom<pb::Link> for Link {
    type Error = WireError;

    fn try_from(link: pb::Link) -> Wire<Link> {
        const NAME: &str = "link";
        Ok(Link {
            site: SiteId(hash(NAME, "site", &link.site)?),
            capacity: u16::try_from(link.capacity).map_err(|_| bad(NAME, "capacity"))?,
        })
    }
}

/// The kinds of chain.
const NO_CHAIN: &str = "none";
const SUBNET: &str = "subnet";

impl From<&Subnet> for pb::Subnet {
    fn from(subnet: &Subnet) -> pb::Subnet {
        pb::Subnet {
            genesis: subnet.genesis.0.to_vec(),
            netuid: subnet.netuid.into(),
            powers: match subnet.powers {
                Powers::Equal => 1,
                Powers::Stake => 2,
            },
            snapshot_blocks: subnet.snapshot_blocks,
        }
    }
}

impl TryFrom<pb::Subnet> for Subnet {
    type Error = WireError;

    fn try_from(subnet: pb::Subnet) -> Wire<Subnet> {
        const NAME: &str = "subnet";
        Ok(Subnet {
            genesis: hash(NAME, "genesis", &subnet.genesis)?,
            netuid: u16::try_from(subnet.netuid).map_err(|_| bad(NAME, "netuid"))?,
            powers: match subnet.powers {
                1 => Powers::Equal,
                2 => Powers::Stake,
                _ => return Err(bad(NAME, "powers")),
            },
            snapshot_blocks: subnet.snapshot_blocks,
        })
    }
}

impl TryFrom<pb::Manifest> for Manifest {
    type Error = WireError;

    fn try_from(m: pb::Manifest) -> Wire<Manifest> {
        const NAME: &str = "manifest";
        if m.version != MANIFEST_VERSION {
            return Err(bad(NAME, "version"));
        }
        let chain = match (m.chain.as_str(), m.subnet) {
            (NO_CHAIN, None) => Chain::None,
            (SUBNET, Some(subnet)) => Chain::Subnet(subnet.try_into()?),
            _ => return Err(bad(NAME, "chain")),
        };
        let model = present(NAME, "model", m.model)?;
        let data = present(NAME, "data", m.data)?;
        let inner = present(NAME, "inner", m.inner)?;
        let outer = present(NAME, "outer", m.outer)?;
        let codec = present(NAME, "codec", m.codec)?;
        let schedule = present(NAME, "schedule", m.schedule)?;
        let trust = present(NAME, "trust", m.trust)?;
        let timing = present(NAME, "timing", m.timing)?;
        Ok(Manifest {
            name: m.name,
            launcher: key(NAME, "launcher", &m.launcher)?,
            seed: hash(NAME, "seed", &m.seed)?,
            model: Model {
                config_json: model.config_json,
                dtype: match model.dtype {
                    1 => ModelDtype::F32,
                    2 => ModelDtype::Bf16,
                    _ => return Err(bad(NAME, "model.dtype")),
                },
            },
            data: Data {
                root: hash(NAME, "data.root", &data.root)?,
                bytes: data.bytes,
                files: data.files,
                sequence_tokens: data.sequence_tokens,
            },
            inner: Inner {
                batch_sequences: inner.batch_sequences,
                learning_rate_ppm: inner.learning_rate_ppm,
                warmup_steps: inner.warmup_steps,
                beta1_ppm: inner.beta1_ppm,
                beta2_ppm: inner.beta2_ppm,
                weight_decay_ppm: inner.weight_decay_ppm,
            },
            outer: Outer {
                rule: match outer.rule {
                    1 => OuterRule::Plain,
                    2 => OuterRule::Nesterov,
                    _ => return Err(bad(NAME, "outer.rule")),
                },
                rate_ppm: outer.rate_ppm,
                momentum_ppm: outer.momentum_ppm,
            },
            codec: Codec {
                kind: match codec.kind {
                    1 => CodecKind::Sparse,
                    2 => CodecKind::DenseBf16,
                    3 => CodecKind::DenseF32,
                    4 => CodecKind::DenseInt8,
                    5 => CodecKind::DenseInt4,
                    _ => return Err(bad(NAME, "codec.kind")),
                },
                k: codec.k,
                value_bits: codec.value_bits,
                feedback_beta_ppm: codec.feedback_beta_ppm,
                sparse_elements_min: codec.sparse_elements_min,
                tiles_per_shard: codec.tiles_per_shard,
            },
            schedule: Schedule {
                steps_per_round: schedule.steps_per_round,
                rounds: schedule.rounds,
                rounds_per_epoch: schedule.rounds_per_epoch,
            },
            trust: Trust {
                mode: match trust.mode {
                    1 => TrustMode::Byzantine,
                    2 => TrustMode::Crash,
                    _ => return Err(bad(NAME, "trust.mode")),
                },
                peers_min: trust.peers_min,
                peers_max: trust.peers_max,
                absent_rounds_max: trust.absent_rounds_max,
            },
            timing: Timing {
                deadline_floor_ms: timing.deadline_floor_ms,
                deadline_cap_ms: timing.deadline_cap_ms,
                propose_ms: timing.propose_ms,
                vote_ms: timing.vote_ms,
            },
            chain,
            exchange: present(NAME, "exchange", m.exchange)?.try_into()?,
            audit: m.audit.map(TryInto::try_into).transpose()?,
            launcher_link: present(NAME, "launcher_link", m.launcher_link)?.try_into()?,
        })
    }
}

impl From<&SignedManifest> for pb::SignedManifest {
    fn from(signed: &SignedManifest) -> pb::SignedManifest {
        pb::SignedManifest {
            manifest: Some((&signed.manifest).into()),
            signature: signed.signature.0.to_vec(),
        }
    }
}

impl TryFrom<pb::SignedManifest> for SignedManifest {
    type Error = WireError;

    fn try_from(signed: pb::SignedManifest) -> Wire<SignedManifest> {
        Ok(SignedManifest {
            manifest: present("signed manifest", "manifest", signed.manifest)?.try_into()?,
            signature: signature("signed manifest", &signed.signature)?,
        })
    }
}

impl TryFrom<pb::Ticket> for Ticket {
    type Error = WireError;

    fn try_from(ticket: pb::Ticket) -> Wire<Ticket> {
        const NAME: &str = "ticket";
        Ok(Ticket {
            run: RunId(hash(NAME, "run", &ticket.run)?),
            launcher: key(NAME, "launcher", &ticket.launcher)?,
            addresses: list(NAME, "addresses", ticket.addresses, ADDRESSES_MAX, |a| {
                text(NAME, "addresses", a)
            })?,
            signature: signature(NAME, &ticket.signature)?,
        })
    }
}

// ---- A round -----------------------------------------------------------------------------------------------------

impl From<&FrameRef> for pb::FrameRef {
    fn from(frame: &FrameRef) -> pb::FrameRef {
        pb::FrameRef {
            hash: frame.hash.0.to_vec(),
            bytes: frame.bytes,
        }
    }
}

impl TryFrom<pb::FrameRef> for FrameRef {
    type Error = WireError;

    fn try_from(frame: pb::FrameRef) -> Wire<FrameRef> {
        Ok(FrameRef {
            hash: hash("frame", "hash", &frame.hash)?,
            bytes: frame.bytes,
        })
    }
}

impl From<&Header> for pb::Header {
    fn from(header: &Header) -> pb::Header {
        let update = &header.update;
        pb::Header {
            run: header.run.0.0.to_vec(),
            round: header.round.0,
            peer: header.peer.0.to_vec(),
            state_root: header.state_root.0.to_vec(),
            frames: update.frames.iter().map(Into::into).collect(),
            feedback_before: update.feedback_before.0.to_vec(),
            feedback_after: update.feedback_after.0.to_vec(),
            segments_root: update.work.segments_root.0.to_vec(),
            tokens: update.tokens,
            steps: update.steps,
            loss_first_micronats: update.loss_first_micronats,
            loss_last_micronats: update.loss_last_micronats,
            build: update.build.clone(),
            device: update.device.clone(),
            inner_before: update.work.inner_before.0.to_vec(),
            inner_after: update.work.inner_after.0.to_vec(),
        }
    }
}

impl TryFrom<pb::Header> for Header {
    type Error = WireError;

    fn try_from(header: pb::Header) -> Wire<Header> {
        const NAME: &str = "header";
        Ok(Header {
            run: RunId(hash(NAME, "run", &header.run)?),
            round: RoundId(header.round),
            peer: key(NAME, "peer", &header.peer)?,
            state_root: hash(NAME, "state_root", &header.state_root)?,
            update: UpdateSummary {
                frames: list(NAME, "frames", header.frames, SHARDS_MAX, TryInto::try_into)?,
                feedback_before: hash(NAME, "feedback_before", &header.feedback_before)?,
                feedback_after: hash(NAME, "feedback_after", &header.feedback_after)?,
                work: WorkCommitment {
                    segments_root: hash(NAME, "segments_root", &header.segments_root)?,
                    inner_before: hash(NAME, "inner_before", &header.inner_before)?,
                    inner_after: hash(NAME, "inner_after", &header.inner_after)?,
                },
                tokens: header.tokens,
                steps: header.steps,
                loss_first_micronats: header.loss_first_micronats,
                loss_last_micronats: header.loss_last_micronats,
                build: text(NAME, "build", header.build)?,
                device: text(NAME, "device", header.device)?,
            },
        })
    }
}

impl From<&SegmentList> for pb::Segments {
    fn from(list: &SegmentList) -> pb::Segments {
        pb::Segments {
            states: list.states().iter().map(Into::into).collect(),
            work: list.work().iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Segments> for SegmentList {
    type Error = WireError;

    fn try_from(segments: pb::Segments) -> Wire<SegmentList> {
        const NAME: &str = "segments";
        let most = SEGMENTS_MAX as usize;
        let states = list(NAME, "states", segments.states, most + 1, TryInto::try_into)?;
        let work = list(NAME, "work", segments.work, most, TryInto::try_into)?;
        SegmentList::new(states, work).ok_or(bad(NAME, "states"))
    }
}

impl SegmentList {
    /// Canonical bytes: for disk and evidence.
    pub fn encode(&self) -> Vec<u8> {
        pb::Segments::from(self).encode_to_vec()
    }

    /// Reads what [`SegmentList::encode`] wrote.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &[u8]) -> Wire<SegmentList> {
        decode::<pb::Segments, _>(bytes, SEGMENTS_BYTES_MAX)
    }
}

impl From<&StateRoots> for pb::StateRoots {
    fn from(roots: &StateRoots) -> pb::StateRoots {
        pb::StateRoots {
            theta: roots.theta.0.to_vec(),
            inner: roots.inner.0.to_vec(),
        }
    }
}

impl TryFrom<pb::StateRoots> for StateRoots {
    type Error = WireError;

    fn try_from(roots: pb::StateRoots) -> Wire<StateRoots> {
        Ok(StateRoots {
            theta: hash("state roots", "theta", &roots.theta)?,
            inner: hash("state roots", "inner", &roots.inner)?,
        })
    }
}

impl From<&Work> for pb::Work {
    fn from(work: &Work) -> pb::Work {
        pb::Work {
            data: work.data.0.to_vec(),
            tokens: work.tokens,
            loss_micronats: work.loss_micronats,
            gradient_norm_micro: work.gradient_norm_micro,
        }
    }
}

impl TryFrom<pb::Work> for Work {
    type Error = WireError;

    fn try_from(work: pb::Work) -> Wire<Work> {
        Ok(Work {
            data: hash("work", "data", &work.data)?,
            tokens: work.tokens,
            loss_micronats: work.loss_micronats,
            gradient_norm_micro: work.gradient_norm_micro,
        })
    }
}

impl From<&Verdict> for pb::Verdict {
    fn from(verdict: &Verdict) -> pb::Verdict {
        pb::Verdict {
            run: verdict.run.0.0.to_vec(),
            round: verdict.round.0,
            peer: verdict.peer.0.to_vec(),
            header: verdict.header.0.to_vec(),
            validator: verdict.validator.0.to_vec(),
            challenge: verdict.challenge.0.to_vec(),
            segment: verdict.segment,
            check: match verdict.check {
                Check::Segment => 1,
                Check::Compression => 2,
                Check::Start => 3,
                Check::Availability => 4,
            },
            outcome: match verdict.outcome {
                Outcome::Passed => 1,
                Outcome::Grey => 2,
                Outcome::Failed => 3,
            },
            error_ppb: verdict.error_ppb,
            tolerance_ppb: verdict.tolerance_ppb,
            evidence: verdict.evidence.0.to_vec(),
        }
    }
}

impl TryFrom<pb::Verdict> for Verdict {
    type Error = WireError;

    fn try_from(verdict: pb::Verdict) -> Wire<Verdict> {
        const NAME: &str = "verdict";
        Ok(Verdict {
            run: RunId(hash(NAME, "run", &verdict.run)?),
            round: RoundId(verdict.round),
            peer: key(NAME, "peer", &verdict.peer)?,
            header: hash(NAME, "header", &verdict.header)?,
            validator: key(NAME, "validator", &verdict.validator)?,
            challenge: hash(NAME, "challenge", &verdict.challenge)?,
            segment: verdict.segment,
            check: match verdict.check {
                1 => Check::Segment,
                2 => Check::Compression,
                3 => Check::Start,
                4 => Check::Availability,
                _ => return Err(bad(NAME, "check")),
            },
            outcome: match verdict.outcome {
                1 => Outcome::Passed,
                2 => Outcome::Grey,
                3 => Outcome::Failed,
                _ => return Err(bad(NAME, "outcome")),
            },
            error_ppb: verdict.error_ppb,
            tolerance_ppb: verdict.tolerance_ppb,
            evidence: hash(NAME, "evidence", &verdict.evidence)?,
        })
    }
}

impl From<&SignedVerdict> for pb::SignedVerdict {
    fn from(signed: &SignedVerdict) -> pb::SignedVerdict {
        pb::SignedVerdict {
            verdict: Some((&signed.verdict).into()),
            signature: signed.signature.0.to_vec(),
        }
    }
}

impl TryFrom<pb::SignedVerdict> for SignedVerdict {
    type Error = WireError;

    fn try_from(signed: pb::SignedVerdict) -> Wire<SignedVerdict> {
        Ok(SignedVerdict {
            verdict: present("signed verdict", "verdict", signed.verdict)?.try_into()?,
            signature: signature("signed verdict", &signed.signature)?,
        })
    }
}

impl From<&SignedHeader> for pb::SignedHeader {
    fn from(signed: &SignedHeader) -> pb::SignedHeader {
        pb::SignedHeader {
            header: Some((&signed.header).into()),
            signature: signed.signature.0.to_vec(),
        }
    }
}

impl TryFrom<pb::SignedHeader> for SignedHeader {
    type Error = WireError;

    fn try_from(signed: pb::SignedHeader) -> Wire<SignedHeader> {
        Ok(SignedHeader {
            header: present("signed header", "header", signed.header)?.try_into()?,
            signature: signature("signed header", &signed.signature)?,
        })
    }
}

impl From<&Join> for pb::Join {
    fn from(join: &Join) -> pb::Join {
        pb::Join {
            run: join.run.0.0.to_vec(),
            peer: join.peer.0.to_vec(),
            round: join.round.0,
            state_root: join.state_root.0.to_vec(),
            link: Some((&join.link).into()),
            signature: join.signature.0.to_vec(),
        }
    }
}

impl TryFrom<pb::Join> for Join {
    type Error = WireError;

    fn try_from(join: pb::Join) -> Wire<Join> {
        const NAME: &str = "join";
        Ok(Join {
            run: RunId(hash(NAME, "run", &join.run)?),
            peer: key(NAME, "peer", &join.peer)?,
            round: RoundId(join.round),
            state_root: hash(NAME, "state_root", &join.state_root)?,
            link: present(NAME, "link", join.link)?.try_into()?,
            signature: signature(NAME, &join.signature)?,
        })
    }
}

impl From<&Leave> for pb::Leave {
    fn from(leave: &Leave) -> pb::Leave {
        pb::Leave {
            run: leave.run.0.0.to_vec(),
            peer: leave.peer.0.to_vec(),
            round: leave.round.0,
            signature: leave.signature.0.to_vec(),
        }
    }
}

impl TryFrom<pb::Leave> for Leave {
    type Error = WireError;

    fn try_from(leave: pb::Leave) -> Wire<Leave> {
        const NAME: &str = "leave";
        Ok(Leave {
            run: RunId(hash(NAME, "run", &leave.run)?),
            peer: key(NAME, "peer", &leave.peer)?,
            round: RoundId(leave.round),
            signature: signature(NAME, &leave.signature)?,
        })
    }
}

impl From<&CapacityChange> for pb::CapacityChange {
    fn from(change: &CapacityChange) -> pb::CapacityChange {
        pb::CapacityChange {
            run: change.run.0.0.to_vec(),
            peer: change.peer.0.to_vec(),
            round: change.round.0,
            capacity: change.capacity.into(),
            signature: change.signature.0.to_vec(),
        }
    }
}

impl TryFrom<pb::CapacityChange> for CapacityChange {
    type Error = WireError;

    fn try_from(change: pb::CapacityChange) -> Wire<CapacityChange> {
        const NAME: &str = "capacity change";
        Ok(CapacityChange {
            run: RunId(hash(NAME, "run", &change.run)?),
            peer: key(NAME, "peer", &change.peer)?,
            round: RoundId(change.round),
            capacity: u16::try_from(change.capacity).map_err(|_| bad(NAME, "capacity"))?,
            signature: signature(NAME, &change.signature)?,
        })
    }
}

impl From<&Contact> for pb::Contact {
    fn from(contact: &Contact) -> pb::Contact {
        pb::Contact {
            control_addresses: contact.control.clone(),
            bulk_address: contact.bulk.to_string(),
            hotkey: contact.hotkey.map(|hotkey| hotkey.to_vec()),
            validates: contact.validates,
        }
    }
}

impl TryFrom<pb::Contact> for Contact {
    type Error = WireError;

    fn try_from(contact: pb::Contact) -> Wire<Contact> {
        const NAME: &str = "contact";
        let addresses = contact.control_addresses;
        Ok(Contact {
            control: list(NAME, "control_addresses", addresses, ADDRESSES_MAX, |a| {
                text(NAME, "control_addresses", a)
            })?,
            bulk: contact
                .bulk_address
                .parse()
                .map_err(|_| bad(NAME, "bulk_address"))?,
            hotkey: contact
                .hotkey
                .map(|hotkey| hotkey.try_into().map_err(|_| bad(NAME, "hotkey")))
                .transpose()?,
            validates: contact.validates,
        })
    }
}

impl From<&Decision> for pb::Decision {
    fn from(decision: &Decision) -> pb::Decision {
        pb::Decision {
            run: decision.run.0.0.to_vec(),
            round: decision.round.0,
            previous: decision.previous.0.to_vec(),
            state_root: decision.state_root.0.to_vec(),
            members: decision
                .members
                .iter()
                .map(|member| pb::DecidedMember {
                    peer: member.peer.0.to_vec(),
                    header: member.header.0.to_vec(),
                })
                .collect(),
            shards: decision
                .shards
                .iter()
                .map(|shard| pb::DecidedShard {
                    accepted: shard.accepted.as_bytes().to_vec(),
                    reduced: shard.reduced.iter().map(Into::into).collect(),
                })
                .collect(),
            joins: decision.joins.iter().map(Into::into).collect(),
            leaves: decision.leaves.iter().map(Into::into).collect(),
            registry: decision.registry.as_ref().map(|mark| pb::RegistryMark {
                block: mark.block,
                block_hash: mark.block_hash.0.to_vec(),
            }),
            powers: decision
                .powers
                .iter()
                .map(|(peer, power)| pb::Power {
                    peer: peer.0.to_vec(),
                    power: *power,
                })
                .collect(),
            capacities: decision.capacities.iter().map(Into::into).collect(),
        }
    }
}

impl From<&DecidedReduction> for pb::DecidedReduction {
    fn from(reduction: &DecidedReduction) -> pb::DecidedReduction {
        pb::DecidedReduction {
            frame: Some((&reduction.frame).into()),
            residual: reduction.residual.0.to_vec(),
        }
    }
}

impl TryFrom<pb::DecidedReduction> for DecidedReduction {
    type Error = WireError;

    fn try_from(reduction: pb::DecidedReduction) -> Wire<DecidedReduction> {
        const NAME: &str = "decided reduction";
        Ok(DecidedReduction {
            frame: present(NAME, "frame", reduction.frame)?.try_into()?,
            residual: hash(NAME, "residual", &reduction.residual)?,
        })
    }
}

impl TryFrom<pb::RegistryMark> for RegistryMark {
    type Error = WireError;

    fn try_from(mark: pb::RegistryMark) -> Wire<RegistryMark> {
        Ok(RegistryMark {
            block: mark.block,
            block_hash: hash("registry mark", "block_hash", &mark.block_hash)?,
        })
    }
}

impl TryFrom<pb::Decision> for Decision {
    type Error = WireError;

    fn try_from(decision: pb::Decision) -> Wire<Decision> {
        const NAME: &str = "decision";
        const VOTERS_MAX: usize = PEERS_MAX as usize;
        const POWERS_MAX: usize = VOTERS_MAX + JOINS_MAX;
        let members = list(NAME, "members", decision.members, VOTERS_MAX, |member| {
            Ok(DecidedMember {
                peer: key(NAME, "members.peer", &member.peer)?,
                header: hash(NAME, "members.header", &member.header)?,
            })
        })?;
        let mut reductions_left = REDUCTIONS_MAX;
        let shards = list(NAME, "shards", decision.shards, SHARDS_MAX, |shard| {
            let count_max = reductions_left;
            let reduced = list(
                NAME,
                "shards.reduced",
                shard.reduced,
                count_max,
                DecidedReduction::try_from,
            )?;
            reductions_left -= reduced.len();
            let accepted = Bitmap::from_bytes(members.len(), &shard.accepted)
                .ok_or(bad(NAME, "shards.accepted"))?;
            Ok(DecidedShard { accepted, reduced })
        })?;
        Ok(Decision {
            run: RunId(hash(NAME, "run", &decision.run)?),
            round: RoundId(decision.round),
            previous: hash(NAME, "previous", &decision.previous)?,
            state_root: hash(NAME, "state_root", &decision.state_root)?,
            members,
            shards,
            joins: list(NAME, "joins", decision.joins, JOINS_MAX, |j| j.try_into())?,
            leaves: list(NAME, "leaves", decision.leaves, VOTERS_MAX, |l| {
                l.try_into()
            })?,
            registry: decision.registry.map(TryInto::try_into).transpose()?,
            powers: list(NAME, "powers", decision.powers, POWERS_MAX, |change| {
                Ok((key(NAME, "powers.peer", &change.peer)?, change.power))
            })?,
            capacities: list(
                NAME,
                "capacities",
                decision.capacities,
                CAPACITIES_MAX,
                |change| change.try_into(),
            )?,
        })
    }
}

impl From<&Reductions> for pb::Reductions {
    fn from(reductions: &Reductions) -> pb::Reductions {
        pb::Reductions {
            run: reductions.run.0.0.to_vec(),
            round: reductions.round.0,
            owner: reductions.owner.0.to_vec(),
            headers: reductions.headers.iter().map(|h| h.0.to_vec()).collect(),
            reductions: reductions
                .reductions
                .iter()
                .map(|reduction| pb::Reduction {
                    group: reduction.group.0.0.to_vec(),
                    shard: reduction.shard,
                    accepted: reduction.accepted.as_bytes().to_vec(),
                    frame: Some((&reduction.frame).into()),
                    residual_before: reduction.residual_before.0.to_vec(),
                    residual: reduction.residual.0.to_vec(),
                })
                .collect(),
        }
    }
}

impl TryFrom<pb::Reductions> for Reductions {
    type Error = WireError;

    fn try_from(reductions: pb::Reductions) -> Wire<Reductions> {
        const NAME: &str = "reductions";
        let headers = list(NAME, "headers", reductions.headers, HEADERS_MAX, |h| {
            hash(NAME, "headers", &h)
        })?;
        if !headers.is_sorted_by(|a, b| a < b) {
            return Err(bad(NAME, "headers"));
        }
        let entries = list(
            NAME,
            "reductions",
            reductions.reductions,
            SHARDS_MAX,
            |reduction| {
                Ok(Reduction {
                    group: GroupId(hash(NAME, "group", &reduction.group)?),
                    shard: reduction.shard,
                    accepted: Bitmap::from_bytes(headers.len(), &reduction.accepted)
                        .ok_or(bad(NAME, "accepted"))?,
                    frame: present(NAME, "frame", reduction.frame)?.try_into()?,
                    residual_before: hash(NAME, "residual_before", &reduction.residual_before)?,
                    residual: hash(NAME, "residual", &reduction.residual)?,
                })
            },
        )?;
        if !entries.is_sorted_by(|a, b| (a.group, a.shard) < (b.group, b.shard)) {
            return Err(bad(NAME, "reductions"));
        }
        Ok(Reductions {
            run: RunId(hash(NAME, "run", &reductions.run)?),
            round: RoundId(reductions.round),
            owner: key(NAME, "owner", &reductions.owner)?,
            headers,
            reductions: entries,
        })
    }
}

impl From<&SignedReductions> for pb::SignedReductions {
    fn from(signed: &SignedReductions) -> pb::SignedReductions {
        pb::SignedReductions {
            reductions: Some((&signed.reductions).into()),
            signature: signed.signature.0.to_vec(),
        }
    }
}

impl TryFrom<pb::SignedReductions> for SignedReductions {
    type Error = WireError;

    fn try_from(signed: pb::SignedReductions) -> Wire<SignedReductions> {
        const NAME: &str = "signed reductions";
        Ok(SignedReductions {
            reductions: present(NAME, "reductions", signed.reductions)?.try_into()?,
            signature: signature(NAME, &signed.signature)?,
        })
    }
}

// ---- Agreement ---------------------------------------------------------------------------------------------------

fn vote_kind_to_wire(kind: VoteType) -> u32 {
    match kind {
        VoteType::Prevote => 1,
        VoteType::Precommit => 2,
    }
}

fn vote_kind(message: &'static str, kind: u32) -> Wire<VoteType> {
    match kind {
        1 => Ok(VoteType::Prevote),
        2 => Ok(VoteType::Precommit),
        _ => Err(bad(message, "kind")),
    }
}

fn vote_value_to_wire(value: &NilOrVal<Hash>) -> Option<Vec<u8>> {
    match value {
        NilOrVal::Nil => None,
        NilOrVal::Val(id) => Some(id.0.to_vec()),
    }
}

fn vote_value(message: &'static str, value: Option<Vec<u8>>) -> Wire<NilOrVal<Hash>> {
    match value {
        None => Ok(NilOrVal::Nil),
        Some(id) => Ok(NilOrVal::Val(hash(message, "value", &id)?)),
    }
}

/// The engine's attempt of a message that always has one.
fn attempt_to_wire(round: Round) -> u32 {
    round.as_u32().expect("signed messages have an attempt")
}

impl From<&SignedVote> for pb::Vote {
    fn from(signed: &SignedVote) -> pb::Vote {
        let vote = &signed.message;
        pb::Vote {
            kind: vote_kind_to_wire(vote.kind),
            height: vote.height.0,
            round: attempt_to_wire(vote.round),
            value: vote_value_to_wire(&vote.value),
            voter: vote.voter.0.to_vec(),
            signature: signed.signature.0.to_vec(),
        }
    }
}

impl TryFrom<pb::Vote> for SignedVote {
    type Error = WireError;

    fn try_from(vote: pb::Vote) -> Wire<SignedVote> {
        const NAME: &str = "vote";
        let message = Vote {
            kind: vote_kind(NAME, vote.kind)?,
            height: RoundId(vote.height),
            round: Round::new(vote.round),
            value: vote_value(NAME, vote.value)?,
            voter: key(NAME, "voter", &vote.voter)?,
        };
        Ok(SignedVote::new(message, signature(NAME, &vote.signature)?))
    }
}

impl From<&SignedProposal> for pb::Proposal {
    fn from(signed: &SignedProposal) -> pb::Proposal {
        let proposal = &signed.message;
        pb::Proposal {
            height: proposal.height.0,
            round: attempt_to_wire(proposal.round),
            value: Some((&proposal.value).into()),
            pol_round: proposal.pol_round.as_u32(),
            proposer: proposal.proposer.0.to_vec(),
            signature: signed.signature.0.to_vec(),
        }
    }
}

impl TryFrom<pb::Proposal> for SignedProposal {
    type Error = WireError;

    fn try_from(proposal: pb::Proposal) -> Wire<SignedProposal> {
        const NAME: &str = "proposal";
        let message = Proposal {
            height: RoundId(proposal.height),
            round: Round::new(proposal.round),
            value: present(NAME, "value", proposal.value)?.try_into()?,
            pol_round: proposal.pol_round.into(),
            proposer: key(NAME, "proposer", &proposal.proposer)?,
        };
        Ok(SignedProposal::new(
            message,
            signature(NAME, &proposal.signature)?,
        ))
    }
}

impl From<&PolkaCertificate> for pb::PolkaCertificate {
    fn from(certificate: &PolkaCertificate) -> pb::PolkaCertificate {
        pb::PolkaCertificate {
            height: certificate.height.0,
            round: attempt_to_wire(certificate.round),
            value: certificate.value_id.0.to_vec(),
            signatures: certificate
                .polka_signatures
                .iter()
                .map(|s| pb::VoteSignature {
                    voter: s.address.0.to_vec(),
                    signature: s.signature.0.to_vec(),
                    kind: 0,
                    value: None,
                })
                .collect(),
        }
    }
}

impl TryFrom<pb::PolkaCertificate> for PolkaCertificate {
    type Error = WireError;

    fn try_from(certificate: pb::PolkaCertificate) -> Wire<PolkaCertificate> {
        const NAME: &str = "polka certificate";
        Ok(PolkaCertificate {
            height: RoundId(certificate.height),
            round: Round::new(certificate.round),
            value_id: hash(NAME, "value", &certificate.value)?,
            polka_signatures: list(
                NAME,
                "signatures",
                certificate.signatures,
                PEERS_MAX as usize,
                |s| {
                    Ok(bft::PolkaSignature::new(
                        key(NAME, "voter", &s.voter)?,
                        signature(NAME, &s.signature)?,
                    ))
                },
            )?,
        })
    }
}

impl From<&RoundCertificate> for pb::RoundCertificate {
    fn from(certificate: &RoundCertificate) -> pb::RoundCertificate {
        pb::RoundCertificate {
            height: certificate.height.0,
            round: attempt_to_wire(certificate.round),
            kind: match certificate.cert_type {
                RoundCertificateType::Skip => 1,
                RoundCertificateType::Precommit => 2,
            },
            signatures: certificate
                .round_signatures
                .iter()
                .map(|s| pb::VoteSignature {
                    voter: s.address.0.to_vec(),
                    signature: s.signature.0.to_vec(),
                    kind: vote_kind_to_wire(s.vote_type),
                    value: vote_value_to_wire(&s.value_id),
                })
                .collect(),
        }
    }
}

impl TryFrom<pb::RoundCertificate> for RoundCertificate {
    type Error = WireError;

    fn try_from(certificate: pb::RoundCertificate) -> Wire<RoundCertificate> {
        const NAME: &str = "round certificate";
        Ok(RoundCertificate {
            height: RoundId(certificate.height),
            round: Round::new(certificate.round),
            cert_type: match certificate.kind {
                1 => RoundCertificateType::Skip,
                2 => RoundCertificateType::Precommit,
                _ => return Err(bad(NAME, "kind")),
            },
            round_signatures: list(
                NAME,
                "signatures",
                certificate.signatures,
                PEERS_MAX as usize,
                |s| {
                    Ok(bft::RoundSignature::new(
                        vote_kind(NAME, s.kind)?,
                        vote_value(NAME, s.value)?,
                        key(NAME, "voter", &s.voter)?,
                        signature(NAME, &s.signature)?,
                    ))
                },
            )?,
        })
    }
}

impl From<&CommitCertificate> for pb::CommitCertificate {
    fn from(certificate: &CommitCertificate) -> pb::CommitCertificate {
        pb::CommitCertificate {
            height: certificate.height.0,
            round: certificate.attempt,
            value: certificate.value.0.to_vec(),
            signatures: certificate
                .signatures
                .iter()
                .map(|s| pb::VoteSignature {
                    voter: s.voter.0.to_vec(),
                    signature: s.signature.0.to_vec(),
                    kind: 0,
                    value: None,
                })
                .collect(),
        }
    }
}

impl TryFrom<pb::CommitCertificate> for CommitCertificate {
    type Error = WireError;

    fn try_from(certificate: pb::CommitCertificate) -> Wire<CommitCertificate> {
        const NAME: &str = "commit certificate";
        Ok(CommitCertificate {
            height: RoundId(certificate.height),
            attempt: certificate.round,
            value: hash(NAME, "value", &certificate.value)?,
            signatures: list(
                NAME,
                "signatures",
                certificate.signatures,
                PEERS_MAX as usize,
                |s| {
                    Ok(CommitSignature {
                        voter: key(NAME, "voter", &s.voter)?,
                        signature: signature(NAME, &s.signature)?,
                    })
                },
            )?,
        })
    }
}

impl From<&DecisionRecord> for pb::DecisionRecord {
    fn from(record: &DecisionRecord) -> pb::DecisionRecord {
        pb::DecisionRecord {
            decision: Some((&record.decision).into()),
            certificate: Some((&record.certificate).into()),
            headers: record.headers.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::DecisionRecord> for DecisionRecord {
    type Error = WireError;

    fn try_from(record: pb::DecisionRecord) -> Wire<DecisionRecord> {
        const NAME: &str = "decision record";
        Ok(DecisionRecord {
            decision: present(NAME, "decision", record.decision)?.try_into()?,
            certificate: present(NAME, "certificate", record.certificate)?.try_into()?,
            headers: list(NAME, "headers", record.headers, HEADERS_MAX, |h| {
                h.try_into()
            })?,
        })
    }
}
