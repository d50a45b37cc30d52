//! The status server: HTTP/1.1 on loopback unless the operator says otherwise.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | a page for people; loads nothing from elsewhere |
//! | `GET /status` | [`Status`](super::Status) as JSON |
//! | `GET /metrics` | Prometheus text |
//! | `POST /leave` | asks the driver to leave the run; needs the token of the state directory |
//!
//! Rule `no-foreign-page`: a web page that the operator happens to visit can neither read the status nor trigger
//! anything. Requests that name another host than an IP address or `localhost` are refused, which stops a name that
//! somebody rebinds to this machine; no cross-origin header is ever sent, so that browsers withhold answers from other
//! origins; and what changes something needs `Authorization: Bearer TOKEN`, which only who reads the state directory
//! has.

use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{StatusHandle, metrics};
use crate::state_dir::{StateDir, StateDirError};

const PAGE: &str = include_str!("../../assets/status.html");

/// The page's own script and style run; nothing is loaded from anywhere, and it talks to this server only.
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";

/// Why the status server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port is taken, or not ours to take.
    #[error(
        "status server: cannot listen on {listen}: {source}: choose another address with --status-listen (port 0 takes a \
         free one)"
    )]
    Listen {
        /// Where it was to listen.
        listen: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Address or token cannot be written.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// Another recorder of metrics is installed in this process.
    #[error("metrics: {0}")]
    Metrics(String),
}

/// A running server. It ends when this is dropped.
#[derive(Debug)]
pub struct StatusServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl StatusServer {
    /// Where it listens, with the port filled in.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Shared {
    status: StatusHandle,
    metrics: PrometheusHandle,
    token: String,
    leave: mpsc::Sender<()>,
}

/// Starts the server, draws a new token, and writes address and token into `dir`.
///
/// `leave`: gets one message for each accepted `POST /leave`; a capacity of 1 is enough, further ones are dropped while
/// it is full. The first call in a process installs the process's recorder for the `metrics` macros.
///
/// # Errors
/// [`ServeError`]; nothing listens then.
pub async fn serve(
    listen: SocketAddr,
    status: StatusHandle,
    dir: &StateDir,
    leave: mpsc::Sender<()>,
) -> Result<StatusServer, ServeError> {
    let metrics = recorder()?;
    let failed = |source| ServeError::Listen { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let token = dir.renew_token()?;
    dir.write_status_address(&format!("http://{address}"))?;
    let app = router(Shared {
        status,
        metrics,
        token,
        leave,
    });
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::warn!(%error, "the status server ended");
        }
    });
    Ok(StatusServer { address, task })
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/status", get(status))
        .route("/metrics", get(prometheus))
        .route("/leave", post(leave))
        .layer(middleware::from_fn(refuse_foreign_hosts))
        .with_state(shared)
}

/// The process's recorder: there can only be one.
fn recorder() -> Result<PrometheusHandle, ServeError> {
    static INSTALLED: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let handle = PrometheusBuilder::new()
                .install_recorder()
                .map_err(|error| error.to_string())?;
            metrics::describe();
            Ok(handle)
        })
        .clone()
        .map_err(ServeError::Metrics)
}

async fn page() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)], Html(PAGE))
}

async fn status(State(shared): State<Shared>) -> impl IntoResponse {
    (
        [(header::CACHE_CONTROL, "no-store")],
        Json(shared.status.snapshot()),
    )
}

async fn prometheus(State(shared): State<Shared>) -> impl IntoResponse {
    metrics::set(&shared.status.snapshot());
    shared.metrics.run_upkeep();
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        shared.metrics.render(),
    )
}

async fn leave(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    if !bears(&headers, &shared.token) {
        let why = "leaving needs the token of the daemon's state directory: use `gradmesh leave`\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    match shared.leave.try_send(()) {
        // Full: the driver has been told already.
        Ok(()) | Err(mpsc::error::TrySendError::Full(())) => {
            (StatusCode::ACCEPTED, "leaving\n").into_response()
        }
        Err(mpsc::error::TrySendError::Closed(())) => {
            (StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping\n").into_response()
        }
    }
}

fn bears(headers: &HeaderMap, token: &str) -> bool {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    // Hashes are compared in constant time, so that timing tells nothing about the token.
    given.is_some_and(|given| blake3::hash(given.as_bytes()) == blake3::hash(token.as_bytes()))
}

/// Rule `no-foreign-page`, first half.
async fn refuse_foreign_hosts(request: Request, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if host.is_some_and(is_own_host) {
        next.run(request).await
    } else {
        let why = "ask for this server by its IP address or as localhost\n";
        (StatusCode::MISDIRECTED_REQUEST, why).into_response()
    }
}

fn is_own_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::client::{self, ClientError};
    use super::super::{ChainStatus, ConcentrationStatus, Identity, Phase, SubnetConcentration};
    use super::*;

    struct Fixture {
        _temp: tempfile::TempDir,
        dir: StateDir,
        status: StatusHandle,
        left: mpsc::Receiver<()>,
        server: StatusServer,
        url: String,
    }

    async fn fixture() -> Fixture {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::new(temp.path());
        let status = StatusHandle::new();
        let (leave, left) = mpsc::channel(1);
        let listen = "127.0.0.1:0".parse().unwrap();
        let server = serve(listen, status.clone(), &dir, leave).await.unwrap();
        let url = format!("http://{}", server.address());
        Fixture {
            _temp: temp,
            dir,
            status,
            left,
            server,
            url,
        }
    }

    #[tokio::test]
    async fn the_status_that_was_set_is_the_one_that_is_read() {
        let it = fixture().await;
        it.status.set_identity(Identity {
            name: "run <b>".into(),
            ..Identity::default()
        });
        it.status
            .set_phase(4, Phase::Deciding, Some("two more votes".into()));
        let address = it.dir.status_address().unwrap().unwrap();
        assert_eq!(address.url, it.url);
        let read = client::status(&address.url).await.unwrap();
        assert_eq!(read, it.status.snapshot());
    }

    #[tokio::test]
    async fn metrics_are_prometheus_text() {
        let it = fixture().await;
        it.status.set_phase(7, Phase::Training, None);
        let text = client::get_text(&it.url, "/metrics").await.unwrap();
        assert!(text.contains("# TYPE gradmesh_round gauge"), "{text}");
        assert!(text.contains("gradmesh_traffic_bytes{"), "{text}");
    }

    #[tokio::test]
    async fn how_few_hold_a_subnet_is_on_the_page_and_in_the_metrics() {
        let it = fixture().await;
        let weight = ConcentrationStatus {
            holders: 7,
            top_1_ppm: 250_000,
            top_5_ppm: 875_000,
            top_10_ppm: 1_000_000,
            nakamoto: 3,
            gini_ppm: 1,
        };
        it.status.set_chain(ChainStatus {
            concentration: Some(SubnetConcentration {
                weight,
                ..SubnetConcentration::default()
            }),
            ..ChainStatus::default()
        });
        let text = client::get_text(&it.url, "/metrics").await.unwrap();
        for line in [
            "gradmesh_subnet_holders{of=\"weight\"} 7",
            "gradmesh_subnet_majority_holders{of=\"weight\"} 3",
            "gradmesh_subnet_top_share{of=\"weight\",first=\"1\"} 0.25",
            "gradmesh_subnet_top_share{of=\"weight\",first=\"5\"} 0.875",
            "gradmesh_subnet_top_share{of=\"weight\",first=\"10\"} 1",
            "gradmesh_subnet_holders{of=\"stake\"} 0",
        ] {
            assert!(text.lines().any(|is| is == line), "{line} in {text}");
        }
        // The page reads the JSON by the names of its fields.
        let page = client::get_text(&it.url, "/").await.unwrap();
        let concentration = it.status.snapshot().chain.unwrap().concentration.unwrap();
        let json = serde_json::to_value(concentration).unwrap();
        let names = json.as_object().unwrap().keys();
        for name in names.chain(json["weight"].as_object().unwrap().keys()) {
            assert!(page.contains(name.as_str()), "{name}");
        }
    }

    #[tokio::test]
    async fn the_page_loads_nothing_from_elsewhere() {
        let it = fixture().await;
        let page = client::get_text(&it.url, "/").await.unwrap();
        assert!(page.contains("<svg"), "there is a curve");
        for foreign in ["http://", "https://", "//cdn", "@import", "src="] {
            let text = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains(foreign), "{foreign}");
        }
    }

    #[tokio::test]
    async fn leaving_needs_the_token() {
        let mut it = fixture().await;
        let refused = client::leave(&it.url, "guessed").await;
        assert!(matches!(
            refused,
            Err(ClientError::Refused { status: 403, .. })
        ));
        assert!(it.left.try_recv().is_err());
        let token = it.dir.token().unwrap().unwrap();
        client::leave(&it.url, &token).await.unwrap();
        client::leave(&it.url, &token).await.unwrap();
        assert_eq!(it.left.try_recv(), Ok(()));
        assert!(it.left.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_with_the_cure() {
        let it = fixture().await;
        let (leave, _left) = mpsc::channel(1);
        let error = serve(it.server.address(), StatusHandle::new(), &it.dir, leave)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("--status-listen"), "{error}");
    }

    #[test]
    fn only_addresses_and_localhost_are_own_hosts() {
        for own in [
            "127.0.0.1:80",
            "127.0.0.1",
            "localhost:9",
            "LOCALHOST",
            "[::1]:8080",
            "10.0.0.2:1",
        ] {
            assert!(is_own_host(own), "{own}");
        }
        for foreign in [
            "evil.example",
            "evil.example:80",
            "localhost.evil.example:1",
            "",
            "127.0.0.1.nip.io",
        ] {
            assert!(!is_own_host(foreign), "{foreign}");
        }
    }
}
