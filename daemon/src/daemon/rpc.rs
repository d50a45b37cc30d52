//! Requests to peers and the answers to them.
//!
//! All requests leave through the driver's loop, so that an answer never comes before the driver knows who waits for
//! it. Tasks that need one send a [`Call`].

use std::collections::HashMap;

use bytes::Bytes;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::RunId;
use gradmesh_protocol::node;
use gradmesh_protocol::wire::{Request, Response, WireError};
use tokio::sync::{mpsc, oneshot};

use super::peer_id;
use crate::net::control::{ControlHandle, RequestError, RequestFailure, RequestId};

/// Calls of tasks that wait for the loop; tasks wait when it is full.
pub(super) const CALLS_MAX: usize = 64;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum RpcError {
    #[error("{0}")]
    Request(#[from] RequestError),
    #[error("{0}")]
    Failure(#[from] RequestFailure),
    #[error("answer: {0}")]
    Wire(#[from] WireError),
    #[error("refused: {0}")]
    Refused(String),
    #[error("answered something else")]
    Unexpected,
    #[error("not a peer key")]
    BadKey,
    #[error("the daemon stops")]
    Stopped,
}

/// A request of a task.
pub(super) struct Call {
    peer: PeerKey,
    request: Request,
    answer: oneshot::Sender<Result<Response, RpcError>>,
}

/// The tasks' end.
#[derive(Clone)]
pub(super) struct Caller {
    calls: mpsc::Sender<Call>,
}

impl Caller {
    pub(super) fn new() -> (Caller, mpsc::Receiver<Call>) {
        let (calls, inbox) = mpsc::channel(CALLS_MAX);
        (Caller { calls }, inbox)
    }

    /// Asks `peer` and waits for the answer.
    pub(super) async fn ask(&self, peer: PeerKey, request: Request) -> Result<Response, RpcError> {
        let (answer, answered) = oneshot::channel();
        let call = Call {
            peer,
            request,
            answer,
        };
        self.calls.send(call).await.map_err(|_| RpcError::Stopped)?;
        answered.await.map_err(|_| RpcError::Stopped)?
    }
}

/// Who waits for an answer.
enum Waiter {
    Node(node::RequestId),
    Task(oneshot::Sender<Result<Response, RpcError>>),
}

/// The loop's end. Bounded by the control plane's own limit on requests in flight.
#[derive(Default)]
pub(super) struct Rpc {
    waiting: HashMap<RequestId, Waiter>,
}

impl Rpc {
    /// Sends a request of the node; its failure to leave is an answer too.
    pub(super) async fn ask_for_node(
        &mut self,
        control: &ControlHandle,
        run: &RunId,
        peer: PeerKey,
        id: node::RequestId,
        request: &Request,
    ) -> Option<node::Input> {
        match send(control, run, peer, request).await {
            Ok(sent) => {
                self.waiting.insert(sent, Waiter::Node(id));
                None
            }
            Err(error) => {
                tracing::debug!(peer = %peer.short(), %error, "request not sent");
                Some(node::Input::RequestFailed(id))
            }
        }
    }

    /// Sends a request of a task.
    pub(super) async fn call(&mut self, control: &ControlHandle, run: &RunId, call: Call) {
        match send(control, run, call.peer, &call.request).await {
            Ok(sent) => {
                self.waiting.insert(sent, Waiter::Task(call.answer));
            }
            Err(error) => {
                // A task that is gone needs no answer.
                let _ = call.answer.send(Err(error));
            }
        }
    }

    /// Hands an answer to whoever waits for it; the node's come back as an input.
    pub(super) fn answered(
        &mut self,
        id: RequestId,
        result: Result<Bytes, RequestFailure>,
    ) -> Option<node::Input> {
        let response = read(result);
        match self.waiting.remove(&id)? {
            Waiter::Node(id) => Some(match response {
                Ok(Response::Decisions(decisions)) => node::Input::Decisions {
                    id,
                    decisions: Box::new(decisions),
                },
                Ok(Response::Headers(headers)) => node::Input::Headers { id, headers },
                Ok(Response::Reductions(reductions)) => node::Input::Reductions { id, reductions },
                Ok(_) | Err(_) => node::Input::RequestFailed(id),
            }),
            Waiter::Task(answer) => {
                let _ = answer.send(response);
                None
            }
        }
    }
}

async fn send(
    control: &ControlHandle,
    run: &RunId,
    peer: PeerKey,
    request: &Request,
) -> Result<RequestId, RpcError> {
    let peer = peer_id(&peer).ok_or(RpcError::BadKey)?;
    let bytes = Bytes::from(request.encode(run));
    Ok(control.request(peer, bytes).await?)
}

/// Reads an answer; a refusal is an error.
pub(super) fn read(result: Result<Bytes, RequestFailure>) -> Result<Response, RpcError> {
    match Response::decode(&result?)? {
        Response::Refused(reason) => Err(RpcError::Refused(reason)),
        response => Ok(response),
    }
}
