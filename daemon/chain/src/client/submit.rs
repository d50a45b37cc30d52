//! From a call to its receipt.
//!
//! An extrinsic is signed for one nonce, one runtime version and an era of at most 64 blocks, and sent **once**. What
//! becomes of it is read from the finalized chain, block by block, never inferred from a connection: a lost connection, a
//! silent pool and a reorganisation all look the same from there. For each finalized block that does not hold it, it is
//! asked whether a later one still can. None can when
//!
//! - the era is over: the checkpoint that was signed is out of reach,
//! - the account's nonce is above the extrinsic's: another extrinsic took its place, or
//! - the runtime version has risen above the signed one. A lower one means nothing: what is signed fits the best block,
//!   and finality may be a few blocks short of the upgrade.
//!
//! Only then is the call signed anew, with fresh nonce, era and version, at most `attempts_max` times in all.
//!
//! Nonces of a key are counted here from what the node says (`system_accountNextIndex`, which counts its pool), so that
//! several calls can wait for one block. Any doubt makes the next call ask the node again.

use serde::Deserialize;
use serde_json::{Value as Json, json};
use subxt::ext::jsonrpsee::types::ErrorObjectOwned;
use tokio::sync::{Mutex, Semaphore};
use tracing::{debug, info, warn};

use super::clock::Header;
use super::view::{account, bytes, gone, hexadecimal, storage_bytes};
use super::{Client, lock};
use crate::account::AccountId;
use crate::error::{ChainError, Pending};
use crate::key::Key;
use crate::link::{Sent, Stream, hash, message};
use crate::refusal::{Refusal, Stage, custom_code_name};
use crate::runtime::{Call, Outcome, unreadable};
use crate::types::{BlockRef, Receipt, Wait};
use crate::weights::blake2_256;

/// One key's queue.
pub(super) struct Lane {
    /// Nonce of the next call; `None` where the node must be asked. Held from the choice of a nonce until the pool has
    /// answered, so that nonces reach the pool in order.
    nonce: Mutex<Option<u64>>,
    places: Semaphore,
}

/// What the pool said to an extrinsic.
enum Submission {
    Sent(Pending, Option<Stream<Json>>),
    /// Not taken, and a new signature may be.
    SignAnew(String),
}

/// What became of an extrinsic.
enum Fate {
    Included(Receipt),
    /// Never included, and never will be.
    Never(String),
}

#[derive(Deserialize)]
struct SignedBlock {
    block: BlockBody,
}

#[derive(Deserialize)]
struct BlockBody {
    header: Header,
    extrinsics: Vec<String>,
}

impl Client {
    /// Signs, sends and waits, and reads the call's outcome from the block that holds it.
    pub(super) async fn submit(&self, key: &Key, call: Call) -> Result<Receipt, ChainError> {
        let settings = self.inner.link.settings();
        let lane = self.lane(&key.account());
        let _place = lane
            .places
            .try_acquire()
            .map_err(|_| ChainError::QueueFull {
                account: key.account(),
                waiting: settings.calls_per_key_max,
            })?;
        let mut reason = String::new();
        for attempt in 1..=settings.attempts_max {
            match self.send(key, &call, &lane).await? {
                Submission::SignAnew(why) => reason = why,
                Submission::Sent(pending, statuses) => match self
                    .follow(&pending, statuses, self.wait)
                    .await
                {
                    Ok(Fate::Included(receipt)) => return self.outcome(&pending, receipt).await,
                    Ok(Fate::Never(why)) => {
                        *lane.nonce.lock().await = None;
                        reason = why;
                    }
                    Err(error) => {
                        *lane.nonce.lock().await = None;
                        return Err(error);
                    }
                },
            }
            info!(call = call.path(), attempt, reason, "signed anew");
        }
        Err(ChainError::NotIncluded {
            call: call.path(),
            attempts: settings.attempts_max,
            reason,
        })
    }

    /// Looks for an extrinsic whose fate was left open ([`ChainError::Uncertain`]) on the finalized chain, from the first
    /// block that could hold it, and waits until its fate is certain: its receipt, or `None` if it never was and never
    /// will be included. Then, and only then, may the call be made again.
    ///
    /// Cost: up to 3 requests per block of its era.
    ///
    /// # Errors
    /// [`ChainError::Uncertain`] if the chain is out of sight again; [`ChainError::Refused`] if it was included and
    /// failed.
    pub async fn settle(&self, pending: &Pending) -> Result<Option<Receipt>, ChainError> {
        match self.follow(pending, None, Wait::Finalized).await? {
            Fate::Included(receipt) => self.outcome(pending, receipt).await.map(Some),
            Fate::Never(_) => Ok(None),
        }
    }

    fn lane(&self, account: &AccountId) -> std::sync::Arc<Lane> {
        let places = self.inner.link.settings().calls_per_key_max;
        let mut lanes = lock(&self.inner.lanes);
        let lane = lanes.entry(*account).or_insert_with(|| {
            std::sync::Arc::new(Lane {
                nonce: Mutex::new(None),
                places: Semaphore::new(places),
            })
        });
        std::sync::Arc::clone(lane)
    }

    /// Signs for the best block's runtime and the next nonce, and sends once.
    async fn send(&self, key: &Key, call: &Call, lane: &Lane) -> Result<Submission, ChainError> {
        let link = &self.inner.link;
        let mut next = lane.nonce.lock().await;
        let nonce = match *next {
            Some(nonce) => nonce,
            None => {
                link.request(
                    "system_accountNextIndex",
                    vec![json!(key.account().to_string())],
                )
                .await?
            }
        };
        // The pool checks against the best block, which may have a newer runtime than the finalized one.
        let (best, view) = self.best_view().await?;
        let checkpoint = self.finalized().await?;
        let era_blocks = link.settings().era_blocks;
        let extrinsic = view
            .runtime
            .sign(call, key, nonce, &checkpoint, era_blocks)?;
        let pending = Pending {
            call: call.path(),
            account: key.account(),
            nonce,
            extrinsic_hash: blake2_256(&extrinsic),
            spec_version: view.runtime.spec_version,
            block_first: checkpoint.number + 1,
            block_last: checkpoint.number + era_blocks - 1,
        };
        debug!(
            call = pending.call,
            nonce,
            best = best.number,
            hash = hex::encode(pending.extrinsic_hash),
            "sending"
        );
        // Whatever happens to this future from here on, the nonce may be in use.
        *next = None;
        match link.submit(&extrinsic).await? {
            Sent::Watched(statuses) => {
                *next = Some(nonce + 1);
                Ok(Submission::Sent(pending, Some(statuses)))
            }
            Sent::Unknown(reason) => {
                warn!(
                    call = pending.call,
                    reason, "submission unanswered; looking for it on the chain"
                );
                Ok(Submission::Sent(pending, None))
            }
            Sent::Rejected(answer) => self.rejected(pending, &answer).await,
        }
    }

    /// Sorts a pool's rejection.
    async fn rejected(
        &self,
        pending: Pending,
        answer: &ErrorObjectOwned,
    ) -> Result<Submission, ChainError> {
        let name = match pool_error_name(answer, &pending.call) {
            PoolError::Known | PoolError::Unclear => {
                warn!(
                    call = pending.call,
                    answer = message(answer),
                    "submission in doubt; looking for it on the chain"
                );
                return Ok(Submission::Sent(pending, None));
            }
            PoolError::NotSent => {
                return Err(ChainError::Node {
                    request: "author_submitAndWatchExtrinsic".to_owned(),
                    code: answer.code(),
                    message: message(answer),
                });
            }
            PoolError::Named(name) => name,
        };
        let sign_anew = match name.as_str() {
            // Another extrinsic has or had the nonce; this one was not taken.
            "Stale" | "TooLowPriority" => true,
            // The checkpoint is too old, or on a branch that is gone.
            "AncientBirthBlock" => true,
            // A bad signature is also what an upgrade between signing and sending looks like.
            "BadProof" => self.best_view().await?.1.runtime.spec_version != pending.spec_version,
            _ => false,
        };
        if sign_anew {
            Ok(Submission::SignAnew(name))
        } else {
            Err(ChainError::Refused(Refusal {
                call: pending.call,
                name,
                stage: Stage::Pool,
            }))
        }
    }

    /// Waits until the fate of an extrinsic is certain, or, with [`Wait::Included`], until a best block holds it.
    async fn follow(
        &self,
        pending: &Pending,
        mut statuses: Option<Stream<Json>>,
        wait: Wait,
    ) -> Result<Fate, ChainError> {
        let mut blocks = self.finalized_blocks_from(pending.block_first);
        let uncertain = |_unreachable| ChainError::Uncertain(Box::new(pending.clone()));
        loop {
            let block = tokio::select! {
                block = blocks.next() => block.map_err(uncertain)?,
                included = included(&mut statuses) => {
                    if let (Some(hash), Wait::Included) = (included, wait)
                        && let Some(receipt) = self.find_in_best(pending, hash).await?
                    {
                        return Ok(Fate::Included(receipt));
                    }
                    continue;
                }
            };
            match self.look(pending, block).await {
                Ok(Some(fate)) => return Ok(fate),
                Ok(None) => {}
                Err(error) => {
                    warn!(call = pending.call, %error, block = block.number, "cannot look for an extrinsic");
                    return Err(uncertain(error));
                }
            }
        }
    }

    /// Looks at one finalized block: is the extrinsic in it, and if not, can it still come?
    async fn look(&self, pending: &Pending, block: BlockRef) -> Result<Option<Fate>, ChainError> {
        let body = self.body(&block.hash).await?;
        if let Some(index) = index_of(&body, &pending.extrinsic_hash) {
            return Ok(Some(Fate::Included(receipt(pending, block, index, true))));
        }
        if block.number >= pending.block_last {
            return Ok(Some(Fate::Never(format!(
                "its era ended with block {}",
                pending.block_last
            ))));
        }
        // What follows only makes certain sooner what the era's end makes certain anyway.
        let view = match self.view(Some(block.hash)).await {
            Ok(view) => view,
            Err(ChainError::StateGone { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if view.runtime.spec_version > pending.spec_version {
            let reason = format!(
                "runtime {} became {}",
                pending.spec_version, view.runtime.spec_version
            );
            return Ok(Some(Fate::Never(reason)));
        }
        #[derive(scale_decode::DecodeAsType)]
        struct AccountInfo {
            nonce: u64,
        }
        match view
            .value::<AccountInfo>("System", "Account", vec![account(&pending.account)])
            .await
        {
            Ok(AccountInfo { nonce }) if nonce > pending.nonce => Ok(Some(Fate::Never(format!(
                "nonce {} was used by another extrinsic",
                pending.nonce
            )))),
            Ok(_) | Err(ChainError::StateGone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Receipt for a best block that a status named; `None` if it is gone already.
    async fn find_in_best(
        &self,
        pending: &Pending,
        hash: [u8; 32],
    ) -> Result<Option<Receipt>, ChainError> {
        match self.body(&hash).await {
            Ok(body) => Ok(index_of(&body, &pending.extrinsic_hash).map(|index| {
                receipt(
                    pending,
                    BlockRef {
                        number: body.header.number,
                        hash,
                    },
                    index,
                    false,
                )
            })),
            Err(ChainError::StateGone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn body(&self, block: &[u8; 32]) -> Result<BlockBody, ChainError> {
        let answer: Option<SignedBlock> = self
            .inner
            .link
            .request("chain_getBlock", vec![json!(hexadecimal(block))])
            .await
            .map_err(|error| gone(error, block))?;
        Ok(answer.ok_or(ChainError::StateGone { block: *block })?.block)
    }

    /// Reads whether an included call did what it should. If that cannot be read now, the call is still not to be made
    /// again: [`Client::settle`] reads it later.
    async fn outcome(&self, pending: &Pending, receipt: Receipt) -> Result<Receipt, ChainError> {
        match self.read_outcome(&receipt).await {
            Ok(Outcome::Done) => Ok(receipt),
            Ok(Outcome::Failed(name)) => Err(ChainError::Refused(Refusal {
                call: pending.call.clone(),
                name,
                stage: Stage::Block,
            })),
            Err(error) => {
                warn!(call = pending.call, %error, block = receipt.block.number, "cannot read a call's outcome");
                Err(ChainError::Uncertain(Box::new(pending.clone())))
            }
        }
    }

    async fn read_outcome(&self, receipt: &Receipt) -> Result<Outcome, ChainError> {
        let link = &self.inner.link;
        let block = &receipt.block.hash;
        // Events are written by the runtime that executed the block: the one in the state before it.
        let parent = super::clock::header(link, block).await?.parent_hash;
        let parent =
            hash(&parent).ok_or_else(|| unreadable("parent's hash".to_owned(), &parent))?;
        let runtime = self.runtime(&parent).await?;
        let key = runtime.storage_key("System", "Events", Vec::new())?;
        let events = storage_bytes(link, &key, block).await?.unwrap_or_default();
        runtime.outcome(events, receipt.extrinsic_index)
    }
}

fn receipt(pending: &Pending, block: BlockRef, extrinsic_index: u32, finalized: bool) -> Receipt {
    Receipt {
        block,
        extrinsic_index,
        extrinsic_hash: pending.extrinsic_hash,
        finalized,
    }
}

/// Place of an extrinsic in a block, by the hash of its bytes.
fn index_of(body: &BlockBody, wanted: &[u8; 32]) -> Option<u32> {
    let place = body
        .extrinsics
        .iter()
        .position(|text| bytes(text).is_some_and(|bytes| blake2_256(&bytes) == *wanted))?;
    u32::try_from(place).ok()
}

/// The next best block that holds the extrinsic, as the pool says; never returns once the pool says no more.
async fn included(statuses: &mut Option<Stream<Json>>) -> Option<[u8; 32]> {
    let Some(stream) = statuses else {
        return std::future::pending().await;
    };
    match stream.next().await {
        Some(status) => {
            debug!(%status, "extrinsic");
            status.get("inBlock").and_then(Json::as_str).and_then(hash)
        }
        None => {
            *statuses = None;
            None
        }
    }
}

/// What a pool's error means.
enum PoolError {
    Named(String),
    /// The pool has this very extrinsic already.
    Known,
    /// The request never got as far as the pool.
    NotSent,
    /// An error that says nothing of the pool: of a gateway in between, or of the node's inside.
    Unclear,
}

/// Reads a node's answer to a submission: code, and words for what has no code of its own.
fn pool_error_name(answer: &ErrorObjectOwned, call: &str) -> PoolError {
    let named = |name: &str| PoolError::Named(name.to_owned());
    let text = message(answer);
    match answer.code() {
        1010 | 1011 => {
            if let Some(code) = text
                .split("Custom error:")
                .nth(1)
                .and_then(|code| code.trim().parse().ok())
            {
                return PoolError::Named(custom_code_name(code, call));
            }
            let words = [
                ("outdated", "Stale"),
                ("bad signature", "BadProof"),
                ("signing address", "BadSigner"),
                ("pay some fees", "InabilityToPayFees"),
                ("valid in the future", "Future"),
                ("ancient birth block", "AncientBirthBlock"),
                ("exhaust the block limits", "ExhaustsResources"),
                ("call is not expected", "CallNotAllowed"),
            ];
            let known = words.iter().find(|(words, _)| text.contains(words));
            PoolError::Named(known.map_or(text.clone(), |(_, name)| (*name).to_owned()))
        }
        1012 => named("TemporarilyBanned"),
        1013 => PoolError::Known,
        1014 => named("TooLowPriority"),
        1016 => named("ImmediatelyDropped"),
        // Bad format, failed verification; invalid request, unknown method, invalid parameters.
        1001 | 1002 | -32602..=-32600 => PoolError::NotSent,
        _ => PoolError::Unclear,
    }
}
