//! What can go wrong between here and the chain.

use crate::account::AccountId;
use crate::refusal::{Advice, Refusal};
use crate::types::Receipt;
use crate::weights::WeightsError;

/// An extrinsic that was sent and whose fate is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Pallet and call.
    pub call: String,
    /// Signer.
    pub account: AccountId,
    /// The signer's nonce in it.
    pub nonce: u64,
    /// BLAKE2b-256 of its bytes.
    pub extrinsic_hash: [u8; 32],
    /// Runtime version that it was signed for: no other takes it.
    pub spec_version: u32,
    /// First block that may hold it.
    pub block_first: u64,
    /// Last block that may hold it: afterwards its era is over.
    pub block_last: u64,
}

/// An error of a chain operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// Endpoints or limits in the settings that cannot be used.
    #[error("chain settings: {0}")]
    Settings(String),
    /// No endpoint gave a connection within the time that the settings grant.
    #[error("no chain endpoint answers: {0}")]
    Unreachable(String),
    /// All endpoints serve other chains.
    #[error(
        "{endpoint} serves the chain with genesis 0x{}, expected 0x{}",
        hex::encode(genesis),
        hex::encode(expected)
    )]
    WrongChain {
        /// The endpoint.
        endpoint: String,
        /// What it serves.
        genesis: [u8; 32],
        /// What the other endpoints, or the settings, say.
        expected: [u8; 32],
    },
    /// The connection broke in the middle of a request, again and again.
    #[error("connection to {endpoint} lost during {request}: {reason}")]
    ConnectionLost {
        /// The endpoint.
        endpoint: String,
        /// JSON-RPC method.
        request: String,
        /// What the connection said.
        reason: String,
    },
    /// The node answered with an error.
    #[error("{request} failed at the node: {message} ({code})")]
    Node {
        /// JSON-RPC method.
        request: String,
        /// JSON-RPC error code.
        code: i32,
        /// The node's message, with its data.
        message: String,
    },
    /// The node does not have, or no longer has, the state of a block.
    #[error("the node holds no state of block 0x{}", hex::encode(block))]
    StateGone {
        /// The block.
        block: [u8; 32],
    },
    /// The runtime lacks something that this operation needs.
    #[error("the runtime (version {spec_version}) has no {what}")]
    Unsupported {
        /// Pallet and item.
        what: String,
        /// Runtime version.
        spec_version: u32,
    },
    /// Bytes of the chain that do not have the expected form.
    #[error("{what} cannot be read: {reason}")]
    Decode {
        /// What was being read.
        what: String,
        /// Why it failed.
        reason: String,
    },
    /// A call that does not fit the runtime's types.
    #[error("{what} cannot be encoded: {reason}")]
    Encode {
        /// What was being written.
        what: String,
        /// Why it failed.
        reason: String,
    },
    /// The chain refused the call.
    #[error("{0}")]
    Refused(Refusal),
    /// Paying more than the caller allows; nothing was sent or paid.
    #[error("{what} costs {price_rao} rao, the limit is {price_max_rao} rao")]
    PriceAboveLimit {
        /// What is for sale.
        what: String,
        /// Price now.
        price_rao: u64,
        /// The caller's limit.
        price_max_rao: u64,
    },
    /// The chain has no such subnet.
    #[error("there is no subnet {0} on this chain")]
    NoSubnet(u16),
    /// The hotkey has no uid in the subnet: never registered, or pruned.
    #[error("{hotkey} is not registered in subnet {netuid}")]
    NotRegistered {
        /// The subnet.
        netuid: u16,
        /// The hotkey.
        hotkey: AccountId,
    },
    /// The weights make no list that the chain takes; nothing was sent.
    #[error("weights for subnet {netuid}: {source}")]
    Weights {
        /// The subnet.
        netuid: u16,
        /// What is wrong.
        source: WeightsError,
    },
    /// The commitment has too many or too long fields; nothing was sent.
    #[error(
        "a commitment takes at most 3 fields of at most 128 bytes, this one has {fields} fields, the longest of {longest_bytes} bytes"
    )]
    CommitmentSize {
        /// Count of fields.
        fields: usize,
        /// Longest raw field.
        longest_bytes: usize,
    },
    /// A timelocked commit could not be made.
    #[error("weights cannot be locked: {0}")]
    Timelock(String),
    /// Sent, and the chain went out of sight before its fate was known. Not sent again.
    #[error("the fate of {} (extrinsic 0x{}) is open until block {}", .0.call, hex::encode(.0.extrinsic_hash), .0.block_last)]
    Uncertain(Box<Pending>),
    /// Signed anew again and again, and never included; no copy of it can be included any more.
    #[error("{call} was not included after {attempts} attempts: {reason}")]
    NotIncluded {
        /// Pallet and call.
        call: String,
        /// How many times it was signed.
        attempts: u32,
        /// The last attempt's end.
        reason: String,
    },
    /// Done and paid, and what came of it could not be read afterwards.
    #[error("{call} stands in block {}, but its result cannot be read: {reason}", .receipt.block.number)]
    ResultUnread {
        /// Pallet and call.
        call: String,
        /// Where it stands.
        receipt: Box<Receipt>,
        /// Why the result cannot be read.
        reason: String,
    },
    /// Too many calls of one key wait for their blocks.
    #[error("{account} has {waiting} calls waiting for their blocks, no more are taken")]
    QueueFull {
        /// The key.
        account: AccountId,
        /// Calls that wait.
        waiting: usize,
    },
    /// The beacon's or the clock's values on chain make no schedule.
    #[error("the chain's schedule makes no sense: {0}")]
    Schedule(String),
}

impl ChainError {
    /// What to do, in one word.
    pub fn advice(&self) -> Advice {
        match self {
            ChainError::Unreachable(_)
            | ChainError::ConnectionLost { .. }
            | ChainError::Uncertain(_)
            | ChainError::NotIncluded { .. }
            | ChainError::QueueFull { .. } => Advice::Retry,
            ChainError::Settings(_)
            | ChainError::WrongChain { .. }
            | ChainError::StateGone { .. }
            | ChainError::PriceAboveLimit { .. }
            | ChainError::NoSubnet(_)
            | ChainError::NotRegistered { .. }
            | ChainError::Weights { .. } => Advice::Fix,
            ChainError::Node { .. }
            | ChainError::Unsupported { .. }
            | ChainError::Decode { .. }
            | ChainError::Encode { .. }
            | ChainError::CommitmentSize { .. }
            | ChainError::Timelock(_)
            | ChainError::ResultUnread { .. }
            | ChainError::Schedule(_) => Advice::Stop,
            ChainError::Refused(refusal) => refusal.advice(),
        }
    }

    /// What to do, in words for a person.
    pub fn what_to_do(&self) -> String {
        let words = match self {
            ChainError::Settings(_) => "correct the chain section of the settings",
            ChainError::Unreachable(_) => {
                "check the network, or add an endpoint; training goes on meanwhile"
            }
            ChainError::WrongChain { .. } => "list endpoints of one chain only",
            ChainError::ConnectionLost { .. } => "try again; if it goes on, add an endpoint",
            ChainError::Node { .. } => "look at the node's message; another endpoint may answer",
            ChainError::StateGone { .. } => "ask for a newer block, or use an archive node",
            ChainError::Unsupported { .. } => {
                "update gradmesh, or choose a chain whose runtime has it"
            }
            ChainError::Decode { .. } | ChainError::Encode { .. } => {
                "update gradmesh: the runtime's types have changed"
            }
            ChainError::PriceAboveLimit { .. } => {
                "raise the price limit, or wait: the price falls with every block"
            }
            ChainError::NoSubnet(_) => "check the netuid",
            ChainError::NotRegistered { .. } => {
                "register the hotkey in the subnet; a pruned neuron registers anew"
            }
            ChainError::Weights { .. } => {
                "read the subnet again and name its uids once each, one above zero"
            }
            ChainError::CommitmentSize { .. } => "commit to less",
            ChainError::Timelock(_) | ChainError::Schedule(_) => {
                "report this with the chain's name and block"
            }
            ChainError::Uncertain(_) => "do not send it again: settle it when the chain is back",
            ChainError::NotIncluded { .. } => {
                "try again; if it goes on, look for another program on the same key"
            }
            ChainError::ResultUnread { .. } => {
                "do not call it again: it is done; read subnets and uids when the chain is back"
            }
            ChainError::QueueFull { .. } => "wait for earlier calls of this key",
            ChainError::Refused(refusal) => return refusal.what_to_do(),
        };
        words.to_owned()
    }

    /// The chain's name of the fault, if the chain refused: `SettingWeightsTooFast`.
    pub fn refusal_name(&self) -> Option<&str> {
        match self {
            ChainError::Refused(refusal) => Some(&refusal.name),
            _ => None,
        }
    }
}
