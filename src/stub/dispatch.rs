//! A request's way through the tunnel: to an agent, on a stream of its own, and back to the head of the answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Body;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::body::AbortOnDrop;
use super::meter::{Meter, MeteredBody};
use super::registry::{AgentLink, OpenStream, Registry, Unavailable};
use super::retry_budget::RetryBudget;
use crate::carrier::{
    FrameReceiver, FrameSender, PathState, ReceiveError, SendError, StreamReadError, StreamWriteError, send_body,
};
use crate::kube::{RequestInfo, Status};
use crate::wire::{
    AgentName, AuthMode, BearerToken, ClusterId, ErrorCode, Failure, FailureReason, Frame, FrameReader, RequestHead,
    ResponseHead, StreamKind,
};

/// A request that has been answered with a head; its body is still on the way.
#[derive(Debug)]
pub struct Exchange {
    /// The head of the answer.
    pub head: ResponseHead,
    /// Where the rest of the answer comes from.
    pub frames: FrameReceiver,
    /// Where the client's bytes go once the stream is an upgraded connection.
    pub sender: Option<FrameSender>,
    /// The task that sends the client's body.
    pub upload: Option<AbortOnDrop>,
    /// The stream as it is counted.
    pub stream: OpenStream,
    /// Who passed the request on.
    pub agent: AgentName,
    /// Whether the agent answers.
    pub path: watch::Receiver<PathState>,
    /// Ready when the agent is about to stop.
    pub leaving: WaitForCancellationFutureOwned,
}

/// A request that is ready to go.
#[derive(Debug)]
pub struct Outgoing<'a, B> {
    /// The cluster it is for.
    pub cluster: &'a ClusterId,
    /// What it is about.
    pub info: &'a RequestInfo,
    /// Its head; the dispatcher puts in the user's own token where an agent is to have it.
    pub head: RequestHead,
    /// The user's own token for the cluster.
    pub cluster_token: Option<BearerToken>,
    /// Its body.
    pub body: B,
    /// Counts its bytes.
    pub meter: Meter,
    /// Whether and how often other agents are tried after the first one.
    pub retries: Retries,
}

/// What concerns the retries of a cluster.
#[derive(Debug, Clone)]
pub struct Retries {
    /// How many there may be.
    pub budget: Arc<RetryBudget>,
    /// Counts them.
    pub made: Counter,
    /// Counts those for which the budget was not enough.
    pub refused: Counter,
}

impl Retries {
    /// Whether there may be one more.
    fn permitted(&self) -> bool {
        let permitted = self.budget.withdraw(Instant::now());
        if permitted { &self.made } else { &self.refused }.inc();
        permitted
    }
}

/// How patient the dispatcher is.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long a stream may take to open.
    pub dispatch: Duration,
    /// How long an answer may take to begin; nothing bounds a long-running request.
    pub response: Duration,
    /// For how long a request that has no answer yet is waited for while the agent's connection does not answer. An
    /// answer that has begun is waited for as long as the connection lives.
    pub silence: Duration,
}

/// The most agents that are tried for one request.
const MAX_ATTEMPTS: usize = 3;

/// Why one agent did not answer.
enum Attempt {
    /// It provably did not pass the request on: another agent may have it.
    NotDispatched(Status),
    /// Asking again could do the work twice, or would change nothing.
    Final(Status),
}

/// Sends a request to an agent of its cluster and waits for the head of the answer.
///
/// An agent that provably did not pass the request on is replaced by another one, as long as the body is whole, which it
/// is when there is none, and as far as the cluster's budget goes.
pub async fn dispatch<B>(
    registry: &Registry,
    mut outgoing: Outgoing<'_, B>,
    patience: Patience,
) -> Result<Exchange, Status>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display + Send,
{
    let bodiless = outgoing.body.is_end_stream();
    let mut body = Some(outgoing.body);
    let mut tried: Vec<Arc<AgentLink>> = Vec::new();
    let mut failure = Status::no_agent(outgoing.cluster);
    outgoing.retries.budget.deposit();
    while tried.len() < MAX_ATTEMPTS {
        let link = match registry.choose_patiently(outgoing.cluster, &tried, patience.dispatch).await {
            Ok(link) => link,
            Err(Unavailable::NoAgent | Unavailable::NotYet) => break,
            Err(Unavailable::AllSuspect(since)) => {
                let why = format!("its agents have not answered for {} s", since.elapsed().as_secs());
                return Err(Status::never_dispatched(outgoing.cluster, &why));
            }
        };
        if !tried.is_empty() && !outgoing.retries.permitted() {
            break;
        }
        outgoing.head.bearer_token = token_for(&link, outgoing.cluster, &outgoing.cluster_token)?;
        match opened(&link, &outgoing.head, outgoing.cluster, patience.dispatch).await {
            Ok((sender, frames)) => {
                let stream = link.traffic().open_stream(outgoing.meter.clone());
                let upload = body.take().filter(|_| !bodiless);
                let upload = upload.map(|body| MeteredBody::new(body, stream.meter().clone()));
                let agent = link.identity.agent.clone();
                let (info, head) = (outgoing.info, &outgoing.head);
                let (path, leaving) = (link.connection.path_state(), link.leaving());
                let exchange = Exchanging { sender, frames, stream, agent, path, leaving, info, head };
                let answered = exchange.answered(upload, outgoing.cluster, patience.response);
                let answered = tokio::select! {
                    answered = answered => answered,
                    () = link.connection.silent_for(patience.silence) => {
                        let why = format!("the agent has not answered for {} s", patience.silence.as_secs());
                        return Err(Status::lost_after_dispatch(outgoing.cluster, &why));
                    }
                };
                match answered {
                    Ok(exchange) => return Ok(exchange),
                    Err(Attempt::NotDispatched(status)) if bodiless => failure = status,
                    Err(Attempt::NotDispatched(status) | Attempt::Final(status)) => return Err(status),
                }
            }
            Err(Attempt::NotDispatched(status)) => failure = status,
            Err(Attempt::Final(status)) => return Err(status),
        }
        tried.push(link);
    }
    Err(failure)
}

/// The user's own token goes to pass-through agents and nowhere else.
fn token_for(
    link: &AgentLink,
    cluster: &ClusterId,
    token: &Option<BearerToken>,
) -> Result<Option<BearerToken>, Status> {
    match (link.hello.auth_mode, token) {
        (AuthMode::Impersonate, _) => Ok(None),
        (AuthMode::PassThrough, Some(token)) => Ok(Some(token.clone())),
        (AuthMode::PassThrough, None) => Err(Status::unauthorized_because(format!(
            "cluster \"{cluster}\" wants your own token: authenticate to the access node with a client certificate and send the cluster's token as bearer token"
        ))),
    }
}

/// A stream to the agent with the request's head queued on it.
async fn opened(
    link: &AgentLink,
    head: &RequestHead,
    cluster: &ClusterId,
    patience: Duration,
) -> Result<(FrameSender, FrameReceiver), Attempt> {
    let never = |why: &str| Attempt::NotDispatched(Status::never_dispatched(cluster, why));
    let (send, recv) = match timeout(patience, link.connection.open()).await {
        Ok(Ok(streams)) => streams,
        Ok(Err(end)) => return Err(never(&format!("the connection to the agent is gone ({end})"))),
        Err(_elapsed) => return Err(never("the agent takes no more requests at the moment")),
    };
    let mut sender = FrameSender::open(send, StreamKind::Request);
    sender.queue_request_head(head).map_err(|error| Attempt::Final(Status::headers_too_large(error.to_string())))?;
    Ok((sender, FrameReceiver::new(recv, FrameReader::for_response_to(head))))
}

/// A request on its stream, not answered yet.
struct Exchanging<'a> {
    sender: FrameSender,
    frames: FrameReceiver,
    stream: OpenStream,
    agent: AgentName,
    path: watch::Receiver<PathState>,
    leaving: WaitForCancellationFutureOwned,
    info: &'a RequestInfo,
    head: &'a RequestHead,
}

impl Exchanging<'_> {
    async fn answered<B>(self, body: Option<B>, cluster: &ClusterId, patience: Duration) -> Result<Exchange, Attempt>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let Self { mut sender, mut frames, stream, agent, path, leaving, info, head } = self;
        let lost = |why: &str| Attempt::Final(Status::lost_after_dispatch(cluster, why));
        let mut upload = None;
        let mut upgrading = None;
        match body {
            Some(body) => upload = Some(spawn_upload(body, sender)),
            None if head.upgrade.is_some() => {
                sender.flush().await.map_err(|error| not_sent(&error, cluster))?;
                upgrading = Some(sender);
            }
            None => sender.finish().await.map_err(|error| not_sent(&error, cluster))?,
        }
        let frame = match info.is_long_running() {
            true => frames.next_frame().await,
            false => timeout(patience, frames.next_frame())
                .await
                .map_err(|_elapsed| lost("the answer did not begin in time"))?,
        };
        match frame {
            Ok(Some(Frame::ResponseHead(head))) => {
                Ok(Exchange { head: *head, frames, sender: upgrading, upload, stream, agent, path, leaving })
            }
            Ok(Some(Frame::Failure(reported))) => Err(failed(reported, head, info, cluster)),
            Err(ReceiveError::Stream(StreamReadError::Reset(ErrorCode::NotDispatched))) => {
                let why = "the agent did not take the request";
                Err(Attempt::NotDispatched(Status::never_dispatched(cluster, why)))
            }
            Err(error) => Err(lost(&error.to_string())),
            Ok(_) => Err(lost("the agent broke the protocol")),
        }
    }
}

/// The agent's failure in words for the client.
fn failed(failure: Failure, head: &RequestHead, info: &RequestInfo, cluster: &ClusterId) -> Attempt {
    let Failure { reason, dispatched, message } = failure;
    match reason {
        FailureReason::Forbidden => Attempt::Final(Status::forbidden(&head.identity, info, &message)),
        FailureReason::BadRequest => Attempt::Final(Status::bad_request(message)),
        FailureReason::Unauthenticated => Attempt::Final(Status::unauthorized_because(message)),
        FailureReason::BadUpstreamAnswer => {
            Attempt::Final(Status::bad_gateway(format!("cluster \"{cluster}\": {message}")))
        }
        _ if dispatched => Attempt::Final(Status::lost_after_dispatch(cluster, &message)),
        _ => Attempt::NotDispatched(Status::never_dispatched(cluster, &message)),
    }
}

fn spawn_upload<B>(body: B, mut sender: FrameSender) -> AbortOnDrop
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display + Send,
{
    let task = tokio::spawn(async move {
        if let Err(error) = send_body(body, &mut sender, ErrorCode::Cancelled).await {
            // Whoever waits for the answer learns from its own stream what became of the request.
            tracing::debug!("a client's body was not sent to its end: {error}");
        }
    });
    AbortOnDrop(task.abort_handle())
}

/// A head that could not be written whole never became a request. One that was, and then not wanted, may have.
fn not_sent(error: &StreamWriteError, cluster: &ClusterId) -> Attempt {
    match error {
        StreamWriteError::Stopped(ErrorCode::NotDispatched) | StreamWriteError::ConnectionLost(_) => {
            Attempt::NotDispatched(Status::never_dispatched(cluster, &SendError::Stream(error.clone()).to_string()))
        }
        StreamWriteError::Stopped(_) => Attempt::Final(Status::lost_after_dispatch(cluster, &error.to_string())),
    }
}
