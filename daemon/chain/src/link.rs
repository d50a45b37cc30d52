//! JSON-RPC over whichever endpoint works: connects, checks the chain, asks, and moves on when an endpoint fails.
//!
//! Questions are asked again on the next connection, at most [`ATTEMPTS`] times. A submission is not a question: once its
//! bytes may have left this machine it is never sent again here.

mod rotation;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use subxt::ext::jsonrpsee::client_transport::ws::{WsError, WsHandshakeError};
use subxt::ext::jsonrpsee::core::client::async_client::PingConfig;
use subxt::ext::jsonrpsee::core::client::{ClientT, Error, Subscription, SubscriptionClientT};
use subxt::ext::jsonrpsee::types::ErrorObjectOwned;
use subxt::ext::jsonrpsee::ws_client::{WsClient, WsClientBuilder};
use tokio::sync::Mutex;
use tracing::{debug, info, warn};

use crate::error::ChainError;
use crate::settings::Settings;
use rotation::{Choice, Failure, Pauses, Rotation};

/// Times that a question is asked, on as many connections.
const ATTEMPTS: u32 = 3;
/// Largest answer. Metadata is 0.5 MB in hexadecimal twice that; a block is at most 5 MB.
const RESPONSE_BYTES_MAX: u32 = 32 << 20;
/// Largest request: an extrinsic or a page of storage keys.
const REQUEST_BYTES_MAX: u32 = 2 << 20;
/// Unread messages of one subscription before it is cut; a header or a status each.
const SUBSCRIPTION_QUEUE: usize = 256;
/// Unanswered requests at a time.
const REQUESTS_MAX: usize = 256;

/// Answers of a node that refuses to serve, rather than to do what was asked.
const REFUSAL_CODES: [i32; 2] = [-32004, -32005];
/// WebSocket close code "policy violation".
const REFUSAL_CLOSE_CODE: u16 = 1008;
/// HTTP status codes of a refused handshake.
const REFUSAL_STATUS: [u16; 2] = [403, 429];

/// Connection to one chain through a list of endpoints. Clones share it.
#[derive(Clone)]
pub(crate) struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    started: Instant,
    genesis: OnceLock<[u8; 32]>,
    /// Index of the endpoint in use or last in use.
    endpoint: std::sync::atomic::AtomicUsize,
    state: Mutex<State>,
}

struct State {
    rotation: Rotation,
    live: Option<Live>,
    connections: u64,
    /// Each endpoint's last fault, for the error when all are down.
    faults: Vec<Option<String>>,
}

/// A connection in use.
#[derive(Clone)]
struct Live {
    number: u64,
    endpoint: usize,
    socket: Arc<WsClient>,
}

/// A stream of a node's messages, and the connection that it came over.
pub(crate) struct Stream<T> {
    subscription: Subscription<T>,
    connection: u64,
}

/// What became of a submission.
pub(crate) enum Sent<T> {
    /// The pool has it; its statuses come here.
    Watched(Stream<T>),
    /// It may or may not have arrived.
    Unknown(String),
    /// The pool does not take it.
    Rejected(ErrorObjectOwned),
}

/// What an error of the socket means.
enum Fault {
    /// The node's answer to the request.
    Answer(ErrorObjectOwned),
    /// The node sends us away.
    Refused(String),
    /// An answer of another form than expected.
    Form(String),
    /// No answer.
    Lost(String),
}

impl Link {
    /// Nothing is connected until the first request.
    pub(crate) fn new(settings: Settings) -> Link {
        let pauses = Pauses {
            backoff_first: settings.backoff_first,
            backoff_max: settings.backoff_max,
            refusal: settings.refusal_pause,
        };
        let endpoints = settings.endpoints.len();
        let genesis = settings.genesis.map_or_else(OnceLock::new, OnceLock::from);
        let state = State {
            rotation: Rotation::new(endpoints, pauses),
            live: None,
            connections: 0,
            faults: vec![None; endpoints],
        };
        let shared = Shared {
            settings,
            started: Instant::now(),
            genesis,
            endpoint: std::sync::atomic::AtomicUsize::new(0),
            state: Mutex::new(state),
        };
        Link {
            shared: Arc::new(shared),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Genesis of the chain: from the settings, or of the first endpoint that answered.
    pub(crate) async fn genesis(&self) -> Result<[u8; 32], ChainError> {
        if let Some(genesis) = self.shared.genesis.get() {
            return Ok(*genesis);
        }
        self.connection().await?;
        Ok(*self
            .shared
            .genesis
            .get()
            .expect("a connection has compared its genesis"))
    }

    /// URL of the endpoint in use, or last in use.
    pub(crate) fn endpoint(&self) -> String {
        let endpoint = self
            .shared
            .endpoint
            .load(std::sync::atomic::Ordering::Relaxed);
        self.shared.settings.endpoints[endpoint].clone()
    }

    /// Asks, on up to [`ATTEMPTS`] connections.
    ///
    /// # Errors
    /// [`ChainError::Unreachable`] without an endpoint, [`ChainError::ConnectionLost`] if each connection broke,
    /// [`ChainError::Node`] for the node's own answer, [`ChainError::Decode`] for an answer of another form.
    pub(crate) async fn request<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Vec<Json>,
    ) -> Result<T, ChainError> {
        let limit = self.limit(method);
        let mut lost = String::new();
        for _ in 0..ATTEMPTS {
            let live = self.connection().await?;
            let answer =
                tokio::time::timeout(limit, live.socket.request(method, params.clone())).await;
            match answer.unwrap_or(Err(Error::RequestTimeout)) {
                Ok(value) => return Ok(value),
                Err(error) => lost = self.sort(method, &live, &error).await?,
            }
        }
        Err(ChainError::ConnectionLost {
            endpoint: self.endpoint(),
            request: method.to_owned(),
            reason: lost,
        })
    }

    /// Subscribes, on up to [`ATTEMPTS`] connections. The stream ends with its connection.
    pub(crate) async fn subscribe<T: DeserializeOwned>(
        &self,
        method: &str,
        unsubscribe: &str,
    ) -> Result<Stream<T>, ChainError> {
        let limit = self.limit(method);
        let mut lost = String::new();
        for _ in 0..ATTEMPTS {
            let live = self.connection().await?;
            let asked = live
                .socket
                .subscribe(method, Vec::<Json>::new(), unsubscribe);
            match tokio::time::timeout(limit, asked)
                .await
                .unwrap_or(Err(Error::RequestTimeout))
            {
                Ok(subscription) => {
                    return Ok(Stream {
                        subscription,
                        connection: live.number,
                    });
                }
                Err(error) => lost = self.sort(method, &live, &error).await?,
            }
        }
        Err(ChainError::ConnectionLost {
            endpoint: self.endpoint(),
            request: method.to_owned(),
            reason: lost,
        })
    }

    /// Sends an extrinsic once. An endpoint that refuses to serve has not taken it: the next one is asked.
    ///
    /// # Errors
    /// Only where it is certain that nothing was sent.
    pub(crate) async fn submit<T: DeserializeOwned>(
        &self,
        extrinsic: &[u8],
    ) -> Result<Sent<T>, ChainError> {
        const METHOD: &str = "author_submitAndWatchExtrinsic";
        let params = [format!("0x{}", hex::encode(extrinsic))];
        let mut refused = String::new();
        for _ in 0..self.shared.settings.endpoints.len() {
            let live = self.connection().await?;
            let asked = live
                .socket
                .subscribe(METHOD, params.clone(), "author_unwatchExtrinsic");
            let answer = tokio::time::timeout(self.limit(METHOD), asked).await;
            let error = match answer.unwrap_or(Err(Error::RequestTimeout)) {
                Ok(subscription) => {
                    return Ok(Sent::Watched(Stream {
                        subscription,
                        connection: live.number,
                    }));
                }
                Err(error) => error,
            };
            match fault(&error) {
                Fault::Answer(answer) => return Ok(Sent::Rejected(answer)),
                Fault::Refused(reason) if matches!(error, Error::Call(_)) => {
                    self.leave(&live, Failure::Refused, &reason).await;
                    refused = reason;
                }
                Fault::Refused(reason) => {
                    self.leave(&live, Failure::Refused, &reason).await;
                    return Ok(Sent::Unknown(reason));
                }
                Fault::Lost(reason) | Fault::Form(reason) => {
                    self.leave(&live, Failure::Down, &reason).await;
                    return Ok(Sent::Unknown(reason));
                }
            }
        }
        Err(ChainError::Unreachable(refused))
    }

    /// Leaves the connection that `stream` came over: its endpoint says nothing new any more.
    pub(crate) async fn leave_silent<T>(&self, stream: &Stream<T>, reason: &str) {
        let live = self.shared.state.lock().await.live.clone();
        if let Some(live) = live.filter(|live| live.number == stream.connection) {
            self.leave(&live, Failure::Down, reason).await;
        }
    }

    fn limit(&self, method: &str) -> Duration {
        match method {
            "state_call" | "state_getMetadata" => self.shared.settings.state_call_timeout,
            _ => self.shared.settings.request_timeout,
        }
    }

    fn now(&self) -> Duration {
        self.shared.started.elapsed()
    }

    /// Ends the request with the node's answer, or leaves the connection and returns the reason.
    async fn sort(&self, method: &str, live: &Live, error: &Error) -> Result<String, ChainError> {
        match fault(error) {
            Fault::Answer(answer) => Err(ChainError::Node {
                request: method.to_owned(),
                code: answer.code(),
                message: message(&answer),
            }),
            Fault::Form(reason) => Err(ChainError::Decode {
                what: format!("answer to {method}"),
                reason,
            }),
            Fault::Refused(reason) => {
                self.leave(live, Failure::Refused, &reason).await;
                Ok(reason)
            }
            Fault::Lost(reason) => {
                self.leave(live, Failure::Down, &reason).await;
                Ok(reason)
            }
        }
    }

    /// Gives up a connection, unless another request did so already.
    async fn leave(&self, live: &Live, failure: Failure, reason: &str) {
        let mut state = self.shared.state.lock().await;
        if state
            .live
            .as_ref()
            .is_some_and(|current| current.number == live.number)
        {
            let endpoint = &self.shared.settings.endpoints[live.endpoint];
            warn!(endpoint, reason, "chain endpoint left");
            state.live = None;
            state.fault(live.endpoint, failure, self.now(), reason.to_owned());
        }
    }

    /// The connection in use, or a new one, within `away_timeout`.
    async fn connection(&self) -> Result<Live, ChainError> {
        let limit = self.shared.settings.away_timeout;
        let deadline = self.now() + limit;
        let looked = tokio::time::timeout(limit, async {
            let mut state = self.shared.state.lock().await;
            if let Some(live) = state.live.clone() {
                if live.socket.is_connected() {
                    return Ok(live);
                }
                let error = live.socket.on_disconnect().await;
                let (failure, reason) = match fault(&error) {
                    Fault::Refused(reason) => (Failure::Refused, reason),
                    Fault::Answer(answer) => (Failure::Down, message(&answer)),
                    Fault::Lost(reason) | Fault::Form(reason) => (Failure::Down, reason),
                };
                warn!(
                    endpoint = self.shared.settings.endpoints[live.endpoint],
                    reason, "chain connection lost"
                );
                state.live = None;
                state.fault(live.endpoint, failure, self.now(), reason);
            }
            loop {
                match state.rotation.choose(self.now()) {
                    Choice::Try(endpoint) => {
                        if let Some(live) = self.try_endpoint(&mut state, endpoint).await? {
                            return Ok(live);
                        }
                    }
                    Choice::WaitUntil(time) if time < deadline => {
                        tokio::time::sleep(time.saturating_sub(self.now())).await;
                    }
                    Choice::WaitUntil(_) | Choice::Nothing => {
                        return Err(ChainError::Unreachable(
                            state.report(&self.shared.settings.endpoints),
                        ));
                    }
                }
            }
        });
        match looked.await {
            Ok(result) => result,
            Err(_elapsed) => {
                let report = match self.shared.state.try_lock() {
                    Ok(state) => state.report(&self.shared.settings.endpoints),
                    Err(_) => "still connecting".to_owned(),
                };
                Err(ChainError::Unreachable(format!(
                    "{report} (after {} s)",
                    limit.as_secs()
                )))
            }
        }
    }

    /// One handshake and the question which chain it is. `None`: this endpoint does not work now.
    ///
    /// # Errors
    /// [`ChainError::WrongChain`] if no endpoint is left but ones of other chains.
    async fn try_endpoint(
        &self,
        state: &mut State,
        endpoint: usize,
    ) -> Result<Option<Live>, ChainError> {
        let url = &self.shared.settings.endpoints[endpoint];
        match self.open(url).await {
            Ok((socket, genesis)) => {
                let expected = *self.shared.genesis.get_or_init(|| genesis);
                if genesis != expected {
                    warn!(
                        endpoint = url,
                        genesis = hex::encode(genesis),
                        "chain endpoint serves another chain"
                    );
                    let reason = format!("serves the chain 0x{}", hex::encode(genesis));
                    state.fault(endpoint, Failure::WrongChain, self.now(), reason);
                    return match state.rotation.choose(self.now()) {
                        Choice::Nothing => Err(ChainError::WrongChain {
                            endpoint: url.clone(),
                            genesis,
                            expected,
                        }),
                        Choice::Try(_) | Choice::WaitUntil(_) => Ok(None),
                    };
                }
                info!(endpoint = url, "chain connected");
                state.connections += 1;
                state.rotation.connected(endpoint, self.now());
                state.faults[endpoint] = None;
                self.shared
                    .endpoint
                    .store(endpoint, std::sync::atomic::Ordering::Relaxed);
                let live = Live {
                    number: state.connections,
                    endpoint,
                    socket: Arc::new(socket),
                };
                state.live = Some(live.clone());
                Ok(Some(live))
            }
            Err((failure, reason)) => {
                debug!(endpoint = url, reason, "chain endpoint does not connect");
                state.fault(endpoint, failure, self.now(), reason);
                Ok(None)
            }
        }
    }

    async fn open(&self, url: &str) -> Result<(WsClient, [u8; 32]), (Failure, String)> {
        let settings = &self.shared.settings;
        let broken = |error: &Error| match fault(error) {
            Fault::Refused(reason) => (Failure::Refused, reason),
            Fault::Answer(answer) => (Failure::Down, message(&answer)),
            Fault::Lost(reason) | Fault::Form(reason) => (Failure::Down, reason),
        };
        let handshake = WsClientBuilder::default()
            .connection_timeout(settings.connect_timeout)
            // The limits by method are shorter; this one only ends what nobody waits for any more.
            .request_timeout(settings.state_call_timeout.max(settings.request_timeout))
            .max_response_size(RESPONSE_BYTES_MAX)
            .max_request_size(REQUEST_BYTES_MAX)
            .max_concurrent_requests(REQUESTS_MAX)
            .max_buffer_capacity_per_subscription(SUBSCRIPTION_QUEUE)
            .enable_ws_ping(PingConfig::new())
            .build(url);
        let late = || {
            (
                Failure::Down,
                format!("no answer within {} s", settings.connect_timeout.as_secs()),
            )
        };
        let socket = tokio::time::timeout(settings.connect_timeout, handshake)
            .await
            .map_err(|_elapsed| late())?
            .map_err(|error| broken(&error))?;
        let asked = socket.request::<String, _>("chain_getBlockHash", [0]);
        let genesis = tokio::time::timeout(settings.request_timeout, asked)
            .await
            .map_err(|_elapsed| late())?
            .map_err(|error| broken(&error))?;
        let genesis =
            hash(&genesis).ok_or_else(|| (Failure::Down, format!("genesis hash {genesis:?}")))?;
        Ok((socket, genesis))
    }
}

impl<T: DeserializeOwned> Stream<T> {
    /// The next message; `None` when the connection is gone. A message of another form is passed over.
    pub(crate) async fn next(&mut self) -> Option<T> {
        loop {
            match self.subscription.next().await? {
                Ok(message) => return Some(message),
                Err(error) => debug!(%error, "subscription message of another form"),
            }
        }
    }
}

impl State {
    fn fault(&mut self, endpoint: usize, failure: Failure, now: Duration, reason: String) {
        self.rotation.failed(endpoint, failure, now);
        self.faults[endpoint] = Some(reason);
    }

    fn report(&self, endpoints: &[String]) -> String {
        let faults = endpoints.iter().zip(&self.faults);
        let lines = faults
            .map(|(url, fault)| format!("{url}: {}", fault.as_deref().unwrap_or("not tried")));
        lines.collect::<Vec<_>>().join("; ")
    }
}

fn fault(error: &Error) -> Fault {
    match error {
        Error::Call(answer) if REFUSAL_CODES.contains(&answer.code()) => {
            Fault::Refused(message(answer))
        }
        Error::Call(answer) => Fault::Answer(answer.clone()),
        Error::ParseError(error) => Fault::Form(error.to_string()),
        Error::RestartNeeded(cause) => match &**cause {
            // The reason for which the background task ended, never the answer to a request.
            Error::Call(answer) => Fault::Lost(message(answer)),
            other => fault(other),
        },
        Error::Transport(transport) => {
            let refused = match (
                transport.downcast_ref::<WsError>(),
                transport.downcast_ref::<WsHandshakeError>(),
            ) {
                (Some(WsError::Closed(reason)), _) => reason.code == REFUSAL_CLOSE_CODE,
                (_, Some(WsHandshakeError::Rejected { status_code })) => {
                    REFUSAL_STATUS.contains(status_code)
                }
                _ => false,
            };
            if refused {
                Fault::Refused(error.to_string())
            } else {
                Fault::Lost(error.to_string())
            }
        }
        other => Fault::Lost(other.to_string()),
    }
}

/// An answer's message with its data, which holds the reason of a pool's rejection.
pub(crate) fn message(answer: &ErrorObjectOwned) -> String {
    match answer.data() {
        Some(data) => format!("{}: {}", answer.message(), data.get().trim_matches('"')),
        None => answer.message().to_owned(),
    }
}

/// Reads "0x" and 64 hexadecimal digits.
pub(crate) fn hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text.strip_prefix("0x")?, &mut hash).ok()?;
    Some(hash)
}
