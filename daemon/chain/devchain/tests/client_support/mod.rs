//! A dev chain whose blocks come on request, a client with little patience, and raw JSON-RPC beside it.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gradmesh_chain::types::{Hyperparameter, Registration};
use gradmesh_chain::{Client, Key, Settings};
use gradmesh_devchain::{DevChain, Options, Sealing};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Real time between two looks at the pool while [`drive`] runs.
const LOOK: Duration = Duration::from_millis(5);
/// Looks at an empty pool after which a block is made: the client has had time to do what comes next.
const IDLE_LOOKS: u32 = 40;
/// The longest that one operation may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Far above any price here.
pub(crate) const ANY_PRICE: u64 = 1_000_000_000_000;

/// A chain of 12 s blocks that are made on request only, with epochs of `tempo` blocks.
pub(crate) async fn start(tempo: u16) -> DevChain {
    let options = Options {
        sealing: Sealing::Manual,
        block_ms: 12_000,
        tempo_blocks: Some(tempo),
        ..Options::default()
    };
    DevChain::start(options).await.unwrap()
}

/// Settings for a server on this machine that is expected to misbehave.
pub(crate) fn settings(urls: &str) -> Settings {
    let mut settings = Settings::network(urls).unwrap();
    settings.era_blocks = 32;
    settings.away_timeout = Duration::from_secs(10);
    settings.backoff_first = Duration::from_millis(20);
    settings.backoff_max = Duration::from_millis(200);
    settings
}

/// A client with its own nonces.
pub(crate) async fn connect(chain: &DevChain) -> Client {
    Client::connect(settings(&chain.url())).await.unwrap()
}

/// Waits for `operation` while blocks are made: one at once when something waits in the pool, and one after a pause in
/// which nothing came. Time on the chain passes by what the client does, not by how busy the machine is.
pub(crate) async fn drive<T>(chain: &DevChain, operation: impl Future<Output = T>) -> T {
    tokio::pin!(operation);
    let patience = tokio::time::sleep(PATIENCE);
    tokio::pin!(patience);
    let make_blocks = async {
        loop {
            for _ in 0..IDLE_LOOKS {
                tokio::time::sleep(LOOK).await;
                if rpc(chain, "dev_status", json!([])).await["pool"] != 0 {
                    break;
                }
            }
            chain.advance(1).unwrap();
        }
    };
    tokio::select! {
        result = &mut operation => result,
        () = &mut patience => panic!("an operation takes more than {} s", PATIENCE.as_secs()),
        () = make_blocks => unreachable!("blocks are made for ever"),
    }
}

/// Waits for a condition on the node, without making blocks.
pub(crate) async fn until(chain: &DevChain, condition: impl Fn(&Value) -> bool) {
    for _ in 0..2_000 {
        if condition(&rpc(chain, "dev_status", json!([])).await) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!(
        "the node never came to be as expected: {}",
        rpc(chain, "dev_status", json!([])).await
    );
}

/// One JSON-RPC call over HTTP, beside the client under test.
pub(crate) async fn rpc(chain: &DevChain, method: &str, params: Value) -> Value {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        chain.address(),
        body.len()
    );
    let mut stream = TcpStream::connect(chain.address()).await.unwrap();
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let answer: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{method}: {answer}"));
    assert!(answer.get("error").is_none(), "{method}: {answer}");
    answer["result"].clone()
}

/// How many extrinsics of an account stand on the chain or wait in the pool.
pub(crate) async fn nonce(chain: &DevChain, key: &Key) -> u64 {
    rpc(
        chain,
        "system_accountNextIndex",
        json!([key.account().to_string()]),
    )
    .await
    .as_u64()
    .unwrap()
}

/// Alice creates a subnet with `//Charlie` as its hotkey, and starts it; registration sets no rate limits.
pub(crate) async fn subnet(chain: &DevChain, client: &Client) -> u16 {
    let (owner, hotkey) = (Key::dev("Alice"), Key::dev("Charlie"));
    drive(chain, async {
        let (netuid, _) = client
            .register_network(&owner, &hotkey.account())
            .await
            .unwrap();
        client.start_call(&owner, netuid).await.unwrap();
        netuid
    })
    .await
}

/// Bob registers a hotkey.
pub(crate) async fn join(
    chain: &DevChain,
    client: &Client,
    netuid: u16,
    hotkey: &Key,
) -> Registration {
    drive(
        chain,
        client.register(&Key::dev("Bob"), netuid, &hotkey.account(), ANY_PRICE),
    )
    .await
    .unwrap()
}

/// Sets hyperparameters as root.
pub(crate) async fn set(chain: &DevChain, client: &Client, netuid: u16, values: &[Hyperparameter]) {
    for value in values {
        drive(
            chain,
            client.sudo_set_hyperparameter(&Key::dev("Alice"), netuid, *value),
        )
        .await
        .unwrap();
    }
}

/// A server that answers every handshake with one HTTP status, and counts them.
pub(crate) struct Refuser {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Refuser {
    pub(crate) async fn start(status: &'static str) -> Refuser {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let mut request = [0; 2048];
                let _ = stream.read(&mut request).await;
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Refuser {
            address,
            asked,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Refuser {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A second address of a dev chain, which can go away by itself.
pub(crate) struct Door {
    address: SocketAddr,
    open: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
    task: JoinHandle<()>,
}

impl Door {
    pub(crate) async fn to(chain: &DevChain) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, target) = (listener.local_addr().unwrap(), chain.address());
        let open = Arc::new(AtomicBool::new(true));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (is_open, kept) = (open.clone(), connections.clone());
        let task = tokio::spawn(async move {
            while let Ok((mut outer, _)) = listener.accept().await {
                if !is_open.load(Ordering::Relaxed) {
                    continue;
                }
                let carried = tokio::spawn(async move {
                    if let Ok(mut inner) = TcpStream::connect(target).await {
                        let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
                    }
                });
                kept.lock().unwrap().push(carried);
            }
        });
        Door {
            address,
            open,
            connections,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Cuts what goes through, and lets nobody in any more.
    pub(crate) fn shut(&self) {
        self.open.store(false, Ordering::Relaxed);
        self.connections
            .lock()
            .unwrap()
            .drain(..)
            .for_each(|carried| carried.abort());
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shut();
        self.task.abort();
    }
}
