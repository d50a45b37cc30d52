//! The only place of the node that names the runtime: builds genesis, authors a block, validates an extrinsic, calls a
//! runtime API, reads what the node itself needs.
//!
//! The runtime is native code, run on a [`Workspace`]. Nothing is kept between calls but encoded metadata. A panic of
//! the runtime ends the call it happened in and nothing else, as a trap of WebAssembly would: the state it worked on is
//! dropped.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use codec::{Decode, DecodeLimit, Encode};
use frame_support::BoundedVec;
use frame_support::dispatch::RawOrigin;
use frame_support::traits::UnfilteredDispatchable;
use sp_core::storage::StateVersion;
use sp_runtime::generic::{Digest, DigestItem, Preamble};
use sp_runtime::traits::{BlakeTwo256, Hash as _};
use sp_runtime::transaction_validity::{InvalidTransaction, TransactionSource};
use sp_runtime::{MultiAddress, MultiSigner};

use super::externalities::Workspace;
use super::metadata;
use super::state::{State, Undo};
use crate::drand;
use crate::genesis::Genesis;
use crate::runtime::settings::SpecVersion;
use crate::runtime::{
    Executive, Runtime, RuntimeCall, System, UncheckedExtrinsic, apis::api, current_version,
};

pub(crate) use crate::runtime::{AccountId, Hash, Header};
pub(crate) use sp_runtime::transaction_validity::{TransactionValidityError, ValidTransaction};
pub(crate) use sp_version::RuntimeVersion;

/// Why the runtime gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// Worded as Substrate's nodes do: clients look for this text.
    #[error("Execution failed: Other: Exported method {0} is not found")]
    NoMethod(String),
    /// Arguments that do not decode, or a bug of the runtime.
    #[error("Execution failed: Runtime panicked: {0}")]
    Panicked(String),
}

/// Why an extrinsic does not get into a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Not the bytes of an extrinsic of this runtime.
    #[error("{0}")]
    Malformed(String),
    /// The runtime says no.
    #[error("{0:?}")]
    Invalid(TransactionValidityError),
    /// The runtime panicked over it.
    #[error(transparent)]
    Failed(#[from] CallError),
}

/// One round of the beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pulse {
    pub(crate) round: u64,
    pub(crate) signature: [u8; 48],
}

/// A change of the state from outside: what a real chain would not do by itself. It happens at the end of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Intervention {
    /// The account gets this free balance, in RAO.
    SetBalance { account: AccountId, rao: u64 },
    /// From the next block on the runtime has this spec version.
    Upgrade { spec_version: u32 },
}

/// What a block is made of.
pub(crate) struct Content<'c> {
    pub(crate) timestamp_ms: u64,
    /// Rounds ascending.
    pub(crate) pulses: Vec<Pulse>,
    /// Candidates, in this order.
    pub(crate) extrinsics: Vec<(Hash, Arc<[u8]>)>,
    pub(crate) interventions: &'c [Intervention],
    /// 0 on the first chain; else it tells the blocks of one fork from those of another in the header.
    pub(crate) fork: u32,
}

/// A new block and what came of its candidates.
#[derive(Debug)]
pub(crate) struct Authored {
    pub(crate) header: Header,
    pub(crate) extrinsics: Vec<Vec<u8>>,
    pub(crate) state: State,
    pub(crate) undo: Undo,
    /// Candidates in the block.
    pub(crate) included: Vec<Hash>,
    /// Candidates that can get into no block any more. Those in neither list did not fit.
    pub(crate) refused: Vec<(Hash, Refusal)>,
}

/// What encoded metadata is kept by: the API method with its arguments, and the spec version. Constants that it shows
/// (`Aura.SlotDuration`) are fixed at genesis.
type MetadataKey = (Vec<u8>, u32);

/// The runtime.
pub(crate) struct Executor {
    /// Calls that metadata does not show before the first upgrade.
    hidden_calls: Vec<String>,
    metadata: Mutex<HashMap<MetadataKey, Arc<[u8]>>>,
}

impl Executor {
    /// `hidden_calls`: names of calls of `SubtensorModule` that metadata leaves out until the first upgrade.
    pub(crate) fn new(hidden_calls: Vec<String>) -> Executor {
        Executor {
            hidden_calls,
            metadata: Mutex::default(),
        }
    }

    /// Header and state of block 0.
    pub(crate) fn genesis(&self, genesis: &Genesis) -> Result<(Header, State), CallError> {
        let storage = caught(|| genesis.storage())?;
        let state: State = storage.top.into_iter().collect();
        let header = Header {
            parent_hash: Hash::zero(),
            number: 0,
            state_root: state_root(&state),
            extrinsics_root: state_root(&State::empty()),
            digest: Digest::default(),
        };
        Ok((header, state))
    }

    /// Makes the child of `parent`, whose state is `state`.
    ///
    /// # Errors
    /// When the runtime panics outside of a candidate: a bug of it, or `timestamp_ms` before the parent's.
    pub(crate) fn author(
        &self,
        parent: &Header,
        state: &State,
        content: Content<'_>,
    ) -> Result<Authored, CallError> {
        let mut work = Workspace::new(state.clone());
        let mut digest = Digest::default();
        if content.fork > 0 {
            digest.push(DigestItem::PreRuntime(FORK_ID, content.fork.encode()));
        }
        let child = Header {
            parent_hash: parent.hash(),
            number: parent.number + 1,
            state_root: Hash::zero(),
            extrinsics_root: Hash::zero(),
            digest,
        };
        caught(|| work.run(|| Executive::initialize_block(&child)))?;

        let mut extrinsics = Vec::new();
        let mut inherents = vec![timestamp(content.timestamp_ms)];
        if !content.pulses.is_empty() {
            inherents.push(write_pulse(parent.number, &content.pulses));
        }
        for inherent in inherents {
            match apply(&mut work, inherent.encode()) {
                Ok(bytes) => extrinsics.push(bytes),
                Err(refusal) => {
                    return Err(CallError::Panicked(format!(
                        "inherent extrinsic refused: {refusal}"
                    )));
                }
            }
        }

        let mut included = Vec::new();
        let mut refused = Vec::new();
        for (hash, bytes) in content.extrinsics {
            match apply(&mut work, bytes.to_vec()) {
                Ok(bytes) => {
                    extrinsics.push(bytes);
                    included.push(hash);
                }
                // No room in this block: it stays in the pool.
                Err(Refusal::Invalid(TransactionValidityError::Invalid(
                    InvalidTransaction::ExhaustsResources,
                ))) => {}
                Err(refusal) => refused.push((hash, refusal)),
            }
        }
        for intervention in content.interventions {
            caught(|| work.run(|| intervene(intervention)))?;
        }
        let header = caught(|| work.run(Executive::finalize_block))?;
        let (after, touched) = work.finish();
        let undo = after.undo_to(state, &touched);
        Ok(Authored {
            header,
            extrinsics,
            state: after,
            undo,
            included,
            refused,
        })
    }

    /// Asks the runtime whether `bytes` may go into the block after `parent`.
    pub(crate) fn validate(
        &self,
        parent: Hash,
        state: &State,
        bytes: &[u8],
    ) -> Result<ValidTransaction, Refusal> {
        let extrinsic = decode(bytes)?;
        let mut work = Workspace::new(state.clone());
        let source = TransactionSource::External;
        let validity =
            caught(|| work.run(|| Executive::validate_transaction(source, extrinsic, parent)))?;
        validity.map_err(Refusal::Invalid)
    }

    /// Calls the runtime API `method` on `state`.
    pub(crate) fn call(
        &self,
        state: &State,
        method: &str,
        arguments: &[u8],
    ) -> Result<Vec<u8>, CallError> {
        if method.starts_with("Metadata_metadata") {
            return self
                .metadata(state, method, arguments)
                .map(|bytes| bytes.to_vec());
        }
        dispatch(state, method, arguments)
    }

    /// The runtime's version in `state`.
    pub(crate) fn version(&self, state: &State) -> RuntimeVersion {
        Workspace::new(state.clone()).run(current_version)
    }

    /// Nonce of the next extrinsic of `account` in `state`.
    pub(crate) fn nonce(&self, state: &State, account: &AccountId) -> u32 {
        Workspace::new(state.clone()).run(|| System::account_nonce(account))
    }

    /// When the block of `state` was made, milliseconds since 1970.
    pub(crate) fn timestamp_ms(&self, state: &State) -> u64 {
        Workspace::new(state.clone()).run(pallet_timestamp::Now::<Runtime>::get)
    }

    /// The newest round whose pulse is in `state`, 0 for none.
    pub(crate) fn last_round(&self, state: &State) -> u64 {
        Workspace::new(state.clone()).run(drand::LastStoredRound::<Runtime>::get)
    }

    /// Rounds that commits in `state` wait for, whose pulses can still come.
    pub(crate) fn awaited_rounds(&self, state: &State) -> BTreeSet<u64> {
        Workspace::new(state.clone()).run(|| {
            let last = drand::LastStoredRound::<Runtime>::get();
            crate::subtensor::TimelockedWeightCommits::<Runtime>::iter_values()
                .flatten()
                .map(|(_, _, _, round)| round)
                .filter(|round| *round > last)
                .collect()
        })
    }

    /// Metadata, without the hidden calls before the first upgrade. Encoding it takes milliseconds, so it is kept.
    fn metadata(
        &self,
        state: &State,
        method: &str,
        arguments: &[u8],
    ) -> Result<Arc<[u8]>, CallError> {
        let version = self.version(state).spec_version;
        let key = ([method.as_bytes(), arguments].concat(), version);
        let kept = self
            .metadata
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let mut bytes = dispatch(state, method, arguments)?;
        if version == crate::runtime::VERSION.spec_version && !self.hidden_calls.is_empty() {
            bytes = match method {
                "Metadata_metadata" => metadata::answer_without(&bytes, &self.hidden_calls),
                "Metadata_metadata_at_version" => {
                    metadata::optional_answer_without(&bytes, &self.hidden_calls)
                }
                _ => Some(bytes),
            }
            .ok_or_else(|| {
                CallError::Panicked(format!("{method} of spec {version} does not decode"))
            })?;
        }
        let bytes: Arc<[u8]> = bytes.into();
        let mut all = self.metadata.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= METADATA_KEPT {
            all.clear();
        }
        all.insert(key, bytes.clone());
        Ok(bytes)
    }
}

/// Calls within calls that an extrinsic may have, as the runtime itself bounds it.
const EXTRINSIC_DEPTH_MAX: u32 = frame_support::MAX_EXTRINSIC_DEPTH;
/// Names the digest item that tells forks apart.
const FORK_ID: [u8; 4] = *b"fork";

/// Answers about metadata that are kept: three versions of a few spec versions, and what else somebody asks.
const METADATA_KEPT: usize = 16;

/// Hash of an extrinsic: how clients name it.
pub(crate) fn extrinsic_hash(bytes: &[u8]) -> Hash {
    BlakeTwo256::hash(bytes)
}

/// Which fork a block was made for: [`Content::fork`].
pub(crate) fn fork_of(header: &Header) -> u32 {
    header
        .digest
        .logs
        .iter()
        .find_map(|item| match item {
            DigestItem::PreRuntime(FORK_ID, fork) => u32::decode(&mut fork.as_slice()).ok(),
            _ => None,
        })
        .unwrap_or(0)
}

/// Whether the bytes of an extrinsic say that somebody signed it.
pub(crate) fn is_signed(bytes: &[u8]) -> bool {
    decode(bytes).is_ok_and(|extrinsic| matches!(extrinsic.preamble, Preamble::Signed(..)))
}

pub(crate) fn state_root(state: &State) -> Hash {
    let entries = state
        .iter()
        .map(|(key, value)| (key.to_vec(), value.to_vec()))
        .collect();
    sp_io::trie::blake2_256_root(entries, StateVersion::V1)
}

fn dispatch(state: &State, method: &str, arguments: &[u8]) -> Result<Vec<u8>, CallError> {
    let mut work = Workspace::new(state.clone());
    caught(|| work.run(|| api::dispatch(method, arguments)))?
        .ok_or_else(|| CallError::NoMethod(method.to_owned()))
}

fn decode(bytes: &[u8]) -> Result<UncheckedExtrinsic, Refusal> {
    UncheckedExtrinsic::decode_all_with_depth_limit(EXTRINSIC_DEPTH_MAX, &mut &bytes[..])
        .map_err(|error| Refusal::Malformed(error.to_string().replace('\n', " ")))
}

/// Applies an extrinsic, or leaves `work` as it was.
fn apply(work: &mut Workspace, bytes: Vec<u8>) -> Result<Vec<u8>, Refusal> {
    let extrinsic = decode(&bytes)?;
    let before = work.state().clone();
    let outcome = caught(|| work.run(|| Executive::apply_extrinsic(extrinsic)));
    let refusal = match outcome {
        // The call itself may have failed: it is in the block, with an event that says so.
        Ok(Ok(Ok(()) | Err(_))) => return Ok(bytes),
        Ok(Err(invalid)) => Refusal::Invalid(invalid),
        Err(panicked) => Refusal::Failed(panicked),
    };
    work.reset_to(before);
    Err(refusal)
}

fn timestamp(now: u64) -> UncheckedExtrinsic {
    UncheckedExtrinsic::new_bare(RuntimeCall::Timestamp(pallet_timestamp::Call::set { now }))
}

fn write_pulse(block_number: u32, pulses: &[Pulse]) -> UncheckedExtrinsic {
    let pulses = pulses
        .iter()
        .map(|pulse| drand::Pulse {
            round: pulse.round,
            randomness: BoundedVec::truncate_from(
                sp_io::hashing::sha2_256(&pulse.signature).to_vec(),
            ),
            signature: BoundedVec::truncate_from(pulse.signature.to_vec()),
        })
        .collect();
    let public = MultiSigner::Sr25519(sp_core::sr25519::Public::default());
    UncheckedExtrinsic::new_bare(RuntimeCall::Drand(drand::Call::write_pulse {
        pulses_payload: drand::PulsesPayload {
            block_number,
            pulses,
            public,
        },
        signature: None,
    }))
}

fn intervene(intervention: &Intervention) {
    match intervention {
        Intervention::SetBalance { account, rao } => {
            let call = RuntimeCall::Balances(pallet_balances::Call::force_set_balance {
                who: MultiAddress::Id(account.clone()),
                new_free: *rao,
            });
            if let Err(error) = call.dispatch_bypass_filter(RawOrigin::Root.into()) {
                panic!("set_balance: {:?}", error.error);
            }
        }
        Intervention::Upgrade { spec_version } => {
            SpecVersion::set(spec_version);
            System::deposit_log(DigestItem::RuntimeEnvironmentUpdated);
        }
    }
}

/// Runs `work`; a panic becomes an error. Sound because what it worked on is dropped or reset by every caller.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, CallError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| CallError::Panicked(message_of(&*panic)))
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").to_owned()
}
