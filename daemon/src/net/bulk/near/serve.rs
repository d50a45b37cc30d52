//! The serving side of the near road: a task for each connection, which answers one request after the other.
//!
//! Nothing a peer does can make it hold more than `connections_max` connections, twice as many of one peer as a source
//! has lanes, each with one chunk and what the kernel buffers. Answers count among the streams that are being served.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use libp2p::PeerId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::super::fetch::LANES_PER_SOURCE;
use super::super::serve::{Answer, CHUNK_TIMEOUT, Outlet, Place, REQUEST_TIMEOUT, note};
use super::super::wire::{Kind, REQUEST_BYTES, Request, Status};
use super::super::{Inner, tls};
use super::{Stage, WRITE_BYTES, reach};

/// The connections of a peer's lanes, and as many again while they replace the first.
const PER_PEER_MAX: usize = 2 * LANES_PER_SOURCE;
/// After the kernel refused to hand over a connection: no descriptor is free, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Stream = TlsStream<TcpStream>;

/// Listens on the TCP port of `addr`; `None` where somebody else does.
pub(in super::super) fn listen(addr: SocketAddr) -> Option<TcpListener> {
    let listen = || {
        let listener = StdListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    match listen() {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::debug!(%addr, %error, "no near road to this peer");
            None
        }
    }
}

/// Accepts connections and answers what comes over them, until the near roads end.
pub(in super::super) async fn accept(
    inner: Arc<Inner>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
) {
    let mut stage = inner.near.stage.subscribe();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = reach(&mut stage, Stage::Closing) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, _)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&inner.near.incoming).try_acquire_owned() else {
            metrics::counter!("gradmesh_bulk_connections_refused_total").increment(1);
            continue;
        };
        let (inner, acceptor) = (Arc::clone(&inner), acceptor.clone());
        connections.spawn(async move {
            if let Err(error) = handshake(&inner, tcp, acceptor).await {
                tracing::debug!(%error, "incoming near road failed");
            }
            drop(permit);
        });
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        () = reach(&mut stage, Stage::Ended) => {}
    }
    connections.shutdown().await;
}

async fn handshake(inner: &Inner, tcp: TcpStream, acceptor: TlsAcceptor) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let mut stream = timeout(inner.limits.connect_timeout, acceptor.accept(tcp)).await??;
    let (_, session) = stream.get_mut();
    session.set_buffer_limit(Some(WRITE_BYTES));
    let Some(peer) = tls::near_peer(session).filter(|peer| (inner.allow)(peer)) else {
        return Err(io::ErrorKind::PermissionDenied.into());
    };
    let Some(_place) = Place::take(&inner.near.places, peer, PER_PEER_MAX) else {
        return Err(io::Error::other("too many connections"));
    };
    serve(inner, &mut stream, peer).await
}

/// Answers the requests that come over `stream`, until no more come or one fails.
async fn serve(inner: &Inner, stream: &mut Stream, peer: PeerId) -> io::Result<()> {
    let mut stage = inner.near.stage.subscribe();
    loop {
        let mut wire = [0u8; REQUEST_BYTES];
        let (first, rest) = wire.split_at_mut(1);
        let first = tokio::select! {
            biased;
            () = reach(&mut stage, Stage::Closing) => return Ok(()),
            read = timeout(inner.limits.idle_timeout, stream.read(first)) => read,
        };
        match first {
            Ok(Ok(1..)) => {}
            Ok(Ok(0)) | Err(_) => break,
            Ok(Err(error)) => return Err(error),
        }
        timeout(REQUEST_TIMEOUT, stream.read_exact(rest)).await??;
        if !(inner.allow)(&peer) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut answer = Answer(Wire(stream));
        let answered = match Request::decode(&wire) {
            Ok(request) if request.kind == Kind::Blob && request.elements.is_none() => {
                answer.give(inner, peer, &request).await
            }
            Ok(_) | Err(_) => answer.refuse(Status::BadRequest, 0).await,
        };
        note(peer, &answered);
        match answered {
            Ok(Status::BadRequest) => break,
            Ok(_) => {}
            // The peer has been sent part of an answer, if it takes anything at all.
            Err(_) => return Ok(()),
        }
    }
    let _ = timeout(CHUNK_TIMEOUT, stream.shutdown()).await;
    Ok(())
}

/// A connection while it carries an answer.
struct Wire<'a>(&'a mut Stream);

impl Outlet for Wire<'_> {
    /// Encrypts `pieces`, which copies them once, as fast as the kernel takes them.
    async fn write(&mut self, pieces: &mut [Bytes]) -> io::Result<()> {
        for piece in pieces {
            timeout(CHUNK_TIMEOUT, self.0.write_all(piece)).await??;
        }
        Ok(())
    }

    async fn end(&mut self) -> io::Result<()> {
        timeout(CHUNK_TIMEOUT, self.0.flush()).await?
    }

    /// What the kernel has taken is its to deliver.
    async fn finish(&mut self) -> io::Result<()> {
        self.end().await
    }

    /// The connection ends with an answer that fails.
    fn abort(&mut self) {}

    fn bytes_per_s(&self) -> Option<f64> {
        None
    }
}
