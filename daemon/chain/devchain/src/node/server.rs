//! The socket: JSON-RPC over WebSocket and over HTTP on one port.
//!
//! Bounds: [`Options::connections_max`] connections (one more is answered 429; twice as many sockets, one more is closed), [`Options::subscriptions_max`]
//! subscriptions each, [`REQUEST_BYTES_MAX`], [`RESPONSE_BYTES_MAX`], [`BATCH_MAX`], and [`UNSENT_MAX`] messages that a
//! client has not read before the node waits for it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use jsonrpsee::core::BoxError;
use jsonrpsee::core::middleware::{Batch, Notification, RpcServiceBuilder, RpcServiceT};
use jsonrpsee::server::{
    BatchRequestConfig, HttpBody, HttpRequest, HttpResponse, Methods, RandomStringIdProvider,
    Server, ServerConfig, ServerHandle, StopHandle, serve_with_graceful_shutdown, stop_channel,
};
use jsonrpsee::types::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tower::{Service, service_fn};

use super::Node;
use super::faults::Refusal;
use super::options::{ChainError, Options};
use super::rpc::{self, Connection};

/// Longest request: an extrinsic with the largest commit, in hex, fits many times.
const REQUEST_BYTES_MAX: u32 = 4 << 20;
/// Longest response: metadata in hex, ten times.
const RESPONSE_BYTES_MAX: u32 = 15 << 20;
/// Calls in one batch.
const BATCH_MAX: u32 = 256;
/// Messages that wait for a client to read them.
const UNSENT_MAX: u32 = 1_024;
/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Length of a subscription's id.
const SUBSCRIPTION_ID_LENGTH: usize = 16;

/// Opens the socket.
pub(crate) async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ChainError> {
    let failed = |source| ChainError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Serves until the handle is stopped.
pub(crate) fn serve(listener: TcpListener, node: Arc<Node>, options: &Options) -> ServerHandle {
    let (stop, handle) = stop_channel();
    let config = ServerConfig::builder()
        .max_connections(options.connections_max)
        .max_subscriptions_per_connection(options.subscriptions_max)
        .max_request_body_size(REQUEST_BYTES_MAX)
        .max_response_body_size(RESPONSE_BYTES_MAX)
        .set_batch_request_config(BatchRequestConfig::Limit(BATCH_MAX))
        .set_message_buffer_capacity(UNSENT_MAX)
        .set_id_provider(RandomStringIdProvider::new(SUBSCRIPTION_ID_LENGTH))
        .build();
    tokio::spawn(accept(
        listener,
        node,
        config,
        options.connections_max,
        stop,
    ));
    handle
}

async fn accept(
    listener: TcpListener,
    node: Arc<Node>,
    config: ServerConfig,
    connections_max: u32,
    stop: StopHandle,
) {
    let methods = Methods::from(rpc::module(node.clone()));
    let delayed = node.clone();
    let builder = Server::builder()
        .set_config(config)
        .set_rpc_middleware(RpcServiceBuilder::new().layer_fn(move |service| Delayed {
            service,
            node: delayed.clone(),
        }))
        .to_service_builder();
    let sockets_max = usize::try_from(connections_max)
        .unwrap_or(usize::MAX)
        .saturating_mul(2);
    for id in 0.. {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: others close theirs meanwhile.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = stop.clone().shutdown() => return,
        };
        if node.faults.refusal() == Some(Refusal::Close)
            || node.faults.connections_open() >= sockets_max
        {
            continue;
        }
        let stream = Cuttable::new(stream, id, node.clone());
        let (asked, builder, methods, service_stop) =
            (node.clone(), builder.clone(), methods.clone(), stop.clone());
        let service = service_fn(move |mut request: HttpRequest<_>| {
            request.extensions_mut().insert(Connection(id));
            let refused = asked.faults.refusal().and_then(status_of);
            let mut service = builder.clone().build(methods.clone(), service_stop.clone());
            async move {
                match refused {
                    Some(status) => Ok::<HttpResponse, BoxError>(refusal_response(status)),
                    None => service.call(request).await,
                }
            }
        });
        let stopped = stop.clone().shutdown();
        // How a connection ended is the client's business.
        tokio::spawn(serve_with_graceful_shutdown(stream, service, stopped));
    }
}

fn status_of(refusal: Refusal) -> Option<u16> {
    match refusal {
        Refusal::TooManyRequests => Some(429),
        Refusal::Forbidden => Some(403),
        Refusal::Close => None,
    }
}

fn refusal_response(status: u16) -> HttpResponse {
    let mut response = HttpResponse::new(HttpBody::empty());
    *response.status_mut() = status.try_into().expect("a status of status_of");
    response
}

/// Delays replies, except those of `dev_*` calls.
#[derive(Clone)]
struct Delayed<S> {
    service: S,
    node: Arc<Node>,
}

impl<S: RpcServiceT + Clone + Send + Sync + 'static> RpcServiceT for Delayed<S> {
    type MethodResponse = S::MethodResponse;
    type NotificationResponse = S::NotificationResponse;
    type BatchResponse = S::BatchResponse;

    fn call<'a>(
        &self,
        request: Request<'a>,
    ) -> impl Future<Output = Self::MethodResponse> + Send + 'a {
        let Delayed { service, node } = self.clone();
        async move {
            if !request.method.starts_with("dev_") {
                tokio::time::sleep(node.faults.delay()).await;
            }
            service.call(request).await
        }
    }

    fn batch<'a>(&self, batch: Batch<'a>) -> impl Future<Output = Self::BatchResponse> + Send + 'a {
        let Delayed { service, node } = self.clone();
        async move {
            tokio::time::sleep(node.faults.delay()).await;
            service.batch(batch).await
        }
    }

    fn notification<'a>(
        &self,
        n: Notification<'a>,
    ) -> impl Future<Output = Self::NotificationResponse> + Send + 'a {
        self.service.notification(n)
    }
}

/// A connection that can be cut from outside: from then on reading and writing fail.
struct Cuttable {
    stream: TcpStream,
    id: u64,
    node: Arc<Node>,
    /// One for each direction: a future wakes only the task that asked it last.
    cut_reading: Cut,
    cut_writing: Cut,
}

type Cut = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Cuttable {
    fn new(stream: TcpStream, id: u64, node: Arc<Node>) -> Cuttable {
        let cut = node.faults.connected(id);
        let (cut_reading, cut_writing) = (Box::pin(when_cut(cut.clone())), Box::pin(when_cut(cut)));
        Cuttable {
            stream,
            id,
            node,
            cut_reading,
            cut_writing,
        }
    }
}

/// An error once the connection is cut; until then `context` is woken by it.
fn check(cut: &mut Cut, context: &mut Context<'_>) -> io::Result<()> {
    match cut.as_mut().poll(context) {
        Poll::Ready(()) => {
            // A future that is done may not be asked again.
            *cut = Box::pin(std::future::ready(()));
            Err(io::ErrorKind::ConnectionReset.into())
        }
        Poll::Pending => Ok(()),
    }
}

impl Drop for Cuttable {
    fn drop(&mut self) {
        self.node.faults.disconnected(self.id);
    }
}

/// Returns when the connection is to end; never, if nobody wants that.
async fn when_cut(mut cut: watch::Receiver<Option<Instant>>) {
    let at = cut.wait_for(Option::is_some).await.map(|at| *at);
    match at {
        // At once, not at the timer's next tick: a reply may be on its way.
        Ok(Some(at)) if at <= Instant::now() => (),
        Ok(Some(at)) => tokio::time::sleep_until(at.into()).await,
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

impl AsyncRead for Cuttable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        check(&mut self.cut_reading, context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        check(&mut self.cut_writing, context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        check(&mut self.cut_writing, context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
