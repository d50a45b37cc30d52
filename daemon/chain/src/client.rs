//! A connection to the chain, and everything that a training daemon reads and does there.

mod calls;
mod clock;
mod publish;
mod reads;
mod submit;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::Deserialize;
use serde_json::json;
use subxt::ext::codec::{Compact, Decode, Encode};
use tracing::info;

use crate::account::AccountId;
use crate::error::ChainError;
use crate::link::{Link, hash};
use crate::runtime::{Runtime, unreadable};
use crate::settings::Settings;
use crate::types::{BlockRef, Capabilities, Wait};
use submit::Lane;
use view::{View, bytes, gone, hexadecimal};

pub use clock::FinalizedBlocks;

/// Runtime versions kept decoded: the one in force, the one before, and one of an older block that was asked for.
const RUNTIMES_MAX: usize = 3;
/// Newest form of metadata that is understood here.
const METADATA_VERSION_MAX: u32 = 16;

/// A client of one chain. Clones share the connection, the caches and the nonces; dropping the last one closes it.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    wait: Wait,
}

struct Inner {
    link: Link,
    genesis: [u8; 32],
    runtimes: Mutex<BTreeMap<u32, Arc<Runtime>>>,
    capabilities: Mutex<Capabilities>,
    /// Newest finalized block seen.
    finalized: Mutex<BlockRef>,
    lanes: Mutex<HashMap<AccountId, Arc<Lane>>>,
}

/// The answer to `state_getRuntimeVersion`, as far as it is needed.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeVersion {
    spec_version: u32,
    transaction_version: u32,
}

impl Client {
    /// Connects to the first endpoint that works, reads genesis, the newest finalized block and metadata.
    ///
    /// Cost: one connection, 7 requests, one of them for the metadata (about 0.5 MB).
    ///
    /// # Errors
    /// [`ChainError::Settings`]; [`ChainError::Unreachable`] after `away_timeout`; [`ChainError::WrongChain`];
    /// [`ChainError::Decode`] if the metadata is of an unknown form.
    pub async fn connect(settings: Settings) -> Result<Client, ChainError> {
        settings.validate()?;
        let link = Link::new(settings);
        let genesis = link.genesis().await?;
        let finalized = clock::finalized_head(&link).await?;
        let version = runtime_version(&link, &finalized.hash).await?;
        let runtime = fetch_runtime(&link, genesis, version, &finalized.hash).await?;
        let inner = Inner {
            link,
            genesis,
            capabilities: Mutex::new(runtime.capabilities()),
            runtimes: Mutex::new(BTreeMap::from([(version.spec_version, Arc::new(runtime))])),
            finalized: Mutex::new(finalized),
            lanes: Mutex::default(),
        };
        Ok(Client {
            inner: Arc::new(inner),
            wait: Wait::default(),
        })
    }

    /// This client with another patience: its calls return when `wait` says. Shares everything else with this one.
    pub fn waiting(&self, wait: Wait) -> Client {
        Client {
            inner: Arc::clone(&self.inner),
            wait,
        }
    }

    /// Hash of block 0: names the chain. No request.
    pub fn genesis(&self) -> [u8; 32] {
        self.inner.genesis
    }

    /// URL of the endpoint in use, or last in use. No request.
    pub fn endpoint(&self) -> String {
        self.inner.link.endpoint()
    }

    /// What the newest runtime that was met can do. No request; renewed by the first operation that meets a newer runtime.
    pub fn capabilities(&self) -> Capabilities {
        *lock(&self.inner.capabilities)
    }

    /// The state after a block; `None` is the newest finalized one. 1 request, or 3; with a new runtime 2 more.
    async fn view(&self, at: Option<[u8; 32]>) -> Result<View, ChainError> {
        let block = match at {
            Some(block) => block,
            None => self.finalized().await?.hash,
        };
        let runtime = self.runtime(&block).await?;
        Ok(View {
            link: self.inner.link.clone(),
            runtime,
            block,
        })
    }

    /// The state after the best block: what the next block will start from. 3 requests.
    async fn best_view(&self) -> Result<(BlockRef, View), ChainError> {
        let best: String = self
            .inner
            .link
            .request("chain_getBlockHash", Vec::new())
            .await?;
        let best = hash(&best).ok_or_else(|| unreadable("best block's hash".to_owned(), &best))?;
        let header = clock::header(&self.inner.link, &best).await?;
        let runtime = self.runtime(&best).await?;
        let block = BlockRef {
            number: header.number,
            hash: best,
        };
        Ok((
            block,
            View {
                link: self.inner.link.clone(),
                runtime,
                block: best,
            },
        ))
    }

    /// The runtime in the state after `block`.
    async fn runtime(&self, block: &[u8; 32]) -> Result<Arc<Runtime>, ChainError> {
        let version = runtime_version(&self.inner.link, block).await?;
        if let Some(runtime) = lock(&self.inner.runtimes).get(&version.spec_version) {
            return Ok(Arc::clone(runtime));
        }
        let runtime =
            Arc::new(fetch_runtime(&self.inner.link, self.inner.genesis, version, block).await?);
        let mut runtimes = lock(&self.inner.runtimes);
        runtimes.insert(version.spec_version, Arc::clone(&runtime));
        while runtimes.len() > RUNTIMES_MAX {
            runtimes.pop_first();
        }
        let mut capabilities = lock(&self.inner.capabilities);
        if version.spec_version > capabilities.spec_version {
            info!(
                from = capabilities.spec_version,
                to = version.spec_version,
                "the chain's runtime was upgraded"
            );
            *capabilities = runtime.capabilities();
        }
        Ok(runtime)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.endpoint())
            .finish_non_exhaustive()
    }
}

/// Nothing that holds one of these locks can panic, so that what they guard is whole even if it were poisoned.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn runtime_version(link: &Link, block: &[u8; 32]) -> Result<RuntimeVersion, ChainError> {
    let params = vec![json!(hexadecimal(block))];
    link.request("state_getRuntimeVersion", params)
        .await
        .map_err(|error| gone(error, block))
}

/// Reads the newest metadata that both sides understand.
async fn fetch_runtime(
    link: &Link,
    genesis: [u8; 32],
    version: RuntimeVersion,
    block: &[u8; 32],
) -> Result<Runtime, ChainError> {
    let what = || format!("metadata of runtime version {}", version.spec_version);
    let call = async |method: &str, arguments: &[u8]| {
        let params = vec![
            json!(method),
            json!(hexadecimal(arguments)),
            json!(hexadecimal(block)),
        ];
        let answer: String = link
            .request("state_call", params)
            .await
            .map_err(|error| gone(error, block))?;
        bytes(&answer).ok_or_else(|| unreadable(what(), "not hexadecimal"))
    };
    let versions = call("Metadata_metadata_versions", &[]).await?;
    let versions =
        Vec::<u32>::decode(&mut versions.as_slice()).map_err(|error| unreadable(what(), error))?;
    let newest = versions
        .into_iter()
        .filter(|version| *version <= METADATA_VERSION_MAX)
        .max()
        .ok_or_else(|| unreadable(what(), "no version of it is known here"))?;
    let answer = call("Metadata_metadata_at_version", &newest.encode()).await?;
    // Option of a byte string; its content is decoded by itself.
    let Some((1, mut rest)) = answer.split_first().map(|(option, rest)| (*option, rest)) else {
        return Err(unreadable(what(), "absent"));
    };
    Compact::<u32>::decode(&mut rest).map_err(|error| unreadable(what(), error))?;
    Runtime::new(
        genesis,
        version.spec_version,
        version.transaction_version,
        rest,
    )
}
