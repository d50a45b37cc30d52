//! A chain under test, a client of its socket, and extrinsics signed byte by byte.

use std::time::Duration;

use codec::{Compact, Encode};
use gradmesh_devchain::{DevChain, Options, Sealing};
use jsonrpsee::core::client::{ClientT, Error, Subscription, SubscriptionClientT};
use jsonrpsee::core::params::ArrayParams;
use jsonrpsee::ws_client::{WsClient, WsClientBuilder};
use serde_json::{Value, json};
use sp_core::{Pair, sr25519};

/// Longest wait for something that has to happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Options of a chain that is sealed by hand and is the same each time.
pub(crate) fn manual() -> Options {
    Options {
        sealing: Sealing::Manual,
        genesis_unix_ms: Some(1_800_000_000_000),
        block_ms: 1_000,
        ..Options::default()
    }
}

/// Starts a chain and connects to it.
pub(crate) async fn start(options: Options) -> (DevChain, Rpc) {
    let chain = DevChain::start(options).await.unwrap();
    let rpc = Rpc::connect(&chain.url()).await.unwrap();
    (chain, rpc)
}

/// Waits for what must come.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("it comes in time")
}

/// A client.
pub(crate) struct Rpc(pub(crate) WsClient);

/// An error object of the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RpcError {
    pub(crate) code: i32,
    pub(crate) message: String,
    pub(crate) data: Option<String>,
}

impl Rpc {
    pub(crate) async fn connect(url: &str) -> Result<Rpc, Error> {
        WsClientBuilder::new()
            .request_timeout(PATIENCE)
            .max_response_size(16 << 20)
            .max_request_size(16 << 20)
            .build(url)
            .await
            .map(Rpc)
    }

    pub(crate) async fn try_call(&self, method: &str, params: Value) -> Result<Value, Error> {
        self.0.request(method, array(params)).await
    }

    pub(crate) async fn call(&self, method: &str, params: Value) -> Value {
        self.try_call(method, params)
            .await
            .unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// The error that a call has to give.
    pub(crate) async fn refused(&self, method: &str, params: Value) -> RpcError {
        error_of(self.try_call(method, params).await.expect_err(method))
    }

    pub(crate) async fn subscribe(
        &self,
        method: &str,
        params: Value,
        unsubscribe: &str,
    ) -> Updates {
        self.try_subscribe(method, params, unsubscribe)
            .await
            .unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    pub(crate) async fn try_subscribe(
        &self,
        method: &str,
        params: Value,
        unsubscribe: &str,
    ) -> Result<Updates, Error> {
        self.0
            .subscribe(method, array(params), unsubscribe)
            .await
            .map(Updates)
    }

    pub(crate) async fn watch(&self, extrinsic: &str) -> Updates {
        self.subscribe(
            "author_submitAndWatchExtrinsic",
            json!([extrinsic]),
            "author_unwatchExtrinsic",
        )
        .await
    }

    pub(crate) async fn seal(&self) -> Value {
        self.call("dev_seal", json!([])).await
    }

    pub(crate) async fn genesis(&self) -> [u8; 32] {
        unhex(&self.call("chain_getBlockHash", json!([0])).await)
            .try_into()
            .unwrap()
    }

    pub(crate) async fn nonce(&self, key: &sr25519::Pair) -> u64 {
        let account = format!("0x{}", hex::encode(key.public()));
        self.call("account_nextIndex", json!([account]))
            .await
            .as_u64()
            .unwrap()
    }

    pub(crate) async fn status(&self) -> Value {
        self.call("dev_status", json!([])).await
    }

    pub(crate) async fn header(&self, params: Value) -> Value {
        self.call("chain_getHeader", params).await
    }
}

/// Messages of a subscription.
pub(crate) struct Updates(Subscription<Value>);

impl Updates {
    pub(crate) async fn next(&mut self) -> Value {
        soon(self.0.next())
            .await
            .expect("the subscription goes on")
            .unwrap()
    }

    /// True if the subscription has ended without another message.
    pub(crate) async fn has_ended(&mut self) -> bool {
        soon(self.0.next()).await.is_none()
    }
}

pub(crate) fn error_of(error: Error) -> RpcError {
    let Error::Call(error) = error else {
        panic!("not an answer: {error}")
    };
    let data = error
        .data()
        .map(|data| serde_json::from_str(data.get()).unwrap());
    RpcError {
        code: error.code(),
        message: error.message().to_owned(),
        data,
    }
}

fn array(params: Value) -> ArrayParams {
    let mut array = ArrayParams::new();
    for param in params.as_array().expect("a list") {
        array.insert(param).unwrap();
    }
    array
}

pub(crate) fn unhex(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap().trim_start_matches("0x")).unwrap()
}

/// `//NAME` of the development phrase.
pub(crate) fn key(name: &str) -> sr25519::Pair {
    sr25519::Pair::from_string(&format!("//{name}"), None).unwrap()
}

/// What an extrinsic is signed for.
#[derive(Clone, Copy)]
pub(crate) struct Signing {
    pub(crate) genesis: [u8; 32],
    pub(crate) nonce: u64,
    pub(crate) tip: u64,
    pub(crate) spec_version: u32,
}

impl Signing {
    pub(crate) fn new(genesis: [u8; 32], nonce: u64) -> Signing {
        Signing {
            genesis,
            nonce,
            tip: 0,
            spec_version: gradmesh_devchain::runtime::VERSION.spec_version,
        }
    }
}

/// A signed extrinsic, immortal, in the layout of version 4 with finney's extensions.
pub(crate) fn signed(key: &sr25519::Pair, call: &[u8], signing: Signing) -> String {
    let nonce = u32::try_from(signing.nonce).unwrap();
    // Era, nonce, tip, mode of the metadata hash.
    let extensions = [
        vec![0],
        Compact(nonce).encode(),
        Compact(signing.tip).encode(),
        vec![0],
    ]
    .concat();
    let implicit = (
        signing.spec_version,
        1u32,
        signing.genesis,
        signing.genesis,
        None::<[u8; 32]>,
    )
        .encode();
    let payload = [call, &extensions, &implicit].concat();
    let signature = match payload.len() {
        0..=256 => key.sign(&payload),
        _ => key.sign(&sp_io::hashing::blake2_256(&payload)),
    };
    let body = [
        &[0x84, 0],
        &key.public().0[..],
        &[1],
        &signature.0[..],
        &extensions,
        call,
    ]
    .concat();
    format!("0x{}", hex::encode(body.encode()))
}

/// `System.remark`: does nothing and costs a fee.
pub(crate) fn remark(text: &str) -> Vec<u8> {
    [vec![0, 0], text.as_bytes().encode()].concat()
}

/// A remark of `//NAME`.
pub(crate) async fn remark_of(rpc: &Rpc, name: &str, nonce: u64, text: &str) -> String {
    signed(
        &key(name),
        &remark(text),
        Signing::new(rpc.genesis().await, nonce),
    )
}

/// Hash of an extrinsic, as the node names it.
pub(crate) fn hash_of(extrinsic: &str) -> Value {
    let bytes = hex::decode(extrinsic.trim_start_matches("0x")).unwrap();
    json!(format!(
        "0x{}",
        hex::encode(sp_io::hashing::blake2_256(&bytes))
    ))
}
