//! Asks a status server, this machine's or another's.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Status;

/// The longest answer: a full history is under half a MiB.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How long an answer may take. The server answers from memory; a machine that trains may be slow to schedule it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a status server did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens there.
    #[error("no daemon answers at {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// What happened.
        reason: String,
    },
    /// It answered with an error.
    #[error("the daemon at {url} refused ({status}): {reason}")]
    Refused {
        /// Where.
        url: String,
        /// HTTP status.
        status: u16,
        /// What it said.
        reason: String,
    },
    /// The answer is no status.
    #[error("what answers at {url} is no gradmesh daemon of this version: {reason}")]
    NotAStatus {
        /// Where.
        url: String,
        /// What is wrong.
        reason: String,
    },
}

/// The status of the daemon at `url` (such as `http://127.0.0.1:4711`).
///
/// # Errors
/// [`ClientError`].
pub async fn status(url: &str) -> Result<Status, ClientError> {
    let text = get_text(url, "/status").await?;
    serde_json::from_str(&text).map_err(|error| ClientError::NotAStatus {
        url: url.to_owned(),
        reason: error.to_string(),
    })
}

/// Asks the daemon at `url` to leave its run.
///
/// # Errors
/// [`ClientError`].
pub async fn leave(url: &str, token: &str) -> Result<(), ClientError> {
    ask(url, Method::POST, "/leave", Some(token)).await?;
    Ok(())
}

/// The body of an answer that must be text.
pub(super) async fn get_text(url: &str, path: &str) -> Result<String, ClientError> {
    ask(url, Method::GET, path, None).await
}

async fn ask(
    url: &str,
    method: Method,
    path: &str,
    token: Option<&str>,
) -> Result<String, ClientError> {
    let unreachable = |reason: String| ClientError::Unreachable {
        url: url.to_owned(),
        reason,
    };
    let exchange = exchange(url, method, path, token);
    let (status, body) = tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| unreachable(format!("no answer within {} s", PATIENCE.as_secs())))?
        .map_err(|error| unreachable(error.to_string()))?;
    if (200..300).contains(&status) {
        Ok(body)
    } else {
        Err(ClientError::Refused {
            url: url.to_owned(),
            status,
            reason: body.trim().to_owned(),
        })
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(
    url: &str,
    method: Method,
    path: &str,
    token: Option<&str>,
) -> Result<(u16, String), AnyError> {
    let authority = url
        .strip_prefix("http://")
        .ok_or("the address does not begin with http://")?
        .trim_end_matches('/');
    let stream = TcpStream::connect(authority).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, authority)
        .header(header::CONNECTION, "close");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let response = sender
        .send_request(request.body(Empty::<Bytes>::new())?)
        .await?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await?
        .to_bytes();
    connection.abort();
    Ok((status, String::from_utf8(body.to_vec())?))
}
