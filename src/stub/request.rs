//! The life of a request at the stub, from top to bottom: [`serve`].

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALT_SVC, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, UPGRADE,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Body;
use hyper::upgrade::OnUpgrade;
use tokio::sync::watch;

use super::authorize::{Authorizer, Decision, OwnedAttributes};
use super::body::{AbortOnDrop, AnswerBody, BoundedBody, ResumableWatch, TunnelledBody};
use super::caller::{Asked, Caller, Errand};
use super::dispatch::{Exchange, Outgoing, Retries, dispatch};
use super::drain::Drain;
use super::event_stream::EventStream;
use super::farewell::UpgradedSocket;
use super::front::ClientConnection;
use super::front::tcp::ClientSocket;
use super::limits::Limit;
use super::meter::{Meter, MeteredSocket};
use super::open_requests::{Ending, OpenRequest, Origin};
use super::record::{GivenAnswer, RequestRecord};
use super::registry::OpenStream;
use super::route::Route;
use super::shared::Shared;
use crate::carrier::{PathState, ReceivedBody, relay};
use crate::kube::{RequestInfo, Status, headers, impersonation, requested_upgrade};
use crate::wire::{AgentName, ClusterId, ErrorCode, Identity, RequestHead, UpgradeProtocol};

/// Names the request in the stub's log, in the agent's and in the cluster's audit log; the API server adopts it
/// (`apiserver/pkg/endpoints/filters/audit_init.go`).
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Where the requests of the stub's own program come from, as those of the API server's own loopback client do.
const THIS_PROCESS: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// How long a client may go on sending on an upgraded connection that the API server has ended.
const LINGER: Duration = Duration::from_secs(30);

/// Over how long the ends of watches are spread when all of them have to move.
const WATCH_SPREAD: Duration = Duration::from_secs(1);

/// Answers one request of a client, whatever version of HTTP it came by.
pub async fn serve<B>(
    shared: Arc<Shared>,
    connection: Arc<ClientConnection>,
    request: Request<B>,
) -> Response<AnswerBody>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display + Send,
{
    let version = request.version();
    let mut record = RequestRecord::new(&request, connection.address.ip().to_canonical(), &shared.watchers);
    let audit_id = HeaderValue::try_from(&record.facts().audit_id);
    let mut response = match answer(&shared, Caller::Client(&connection), request, &mut record).await {
        Ok(answer) => given(&shared, answer, record),
        Err(status) => {
            refused(&mut record, &status);
            let answer = own_answer(status, version);
            record.facts().meter.count_own(usize::try_from(answer.body().size_hint().lower()).unwrap_or(usize::MAX));
            answer
        }
    };
    if let Ok(id) = audit_id {
        response.headers_mut().entry(AUDIT_ID).or_insert(id);
    }
    if shared.drain.is_announced() && version == Version::HTTP_11 && !response.headers().contains_key(CONNECTION) {
        // A connection that is not used any more cannot be closed while a request is on its way.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    advertise_http3(&shared, version, response.headers_mut());
    response
}

/// Makes one request of the program that the stub is a part of, for a user that it vouches for.
///
/// # Errors
///
/// What a client would have been answered by the stub itself. An upgrade is refused with a 400: it needs a client's connection.
pub async fn serve_program<B>(
    shared: &Shared,
    errand: Errand<'_>,
    request: Request<B>,
) -> Result<Response<AnswerBody>, Status>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display + Send,
{
    let mut record = RequestRecord::new(&request, THIS_PROCESS, &shared.watchers);
    // No connection stands for it among the tasks.
    record.waited_for(shared.tasks.token());
    match answer(shared, Caller::Program(errand), request, &mut record).await {
        Ok(answer) => Ok(given(shared, answer, record)),
        Err(status) => {
            refused(&mut record, &status);
            Err(status)
        }
    }
}

/// The answer of a cluster as it goes out. The record goes on with its body.
fn given(shared: &Shared, answer: Answer, mut record: RequestRecord) -> Response<AnswerBody> {
    match answer {
        Answer::Tunnelled(head, rest) => {
            record.answered(GivenAnswer::Passed(head.status()), Some(rest.agent));
            let body = TunnelledBody::new(rest.body, rest.upload, rest.stream, rest.open, record);
            head.map(|()| body.resumable(rest.watch).into())
        }
        Answer::Upgraded(head, upgraded) => {
            record.answered(GivenAnswer::Passed(head.status()), Some(upgraded.agent.clone()));
            shared.tasks.spawn(upgraded.run(record));
            head.map(|()| Bytes::new().into())
        }
    }
}

/// The stub answers by itself.
fn refused(record: &mut RequestRecord, status: &Status) {
    record.answered(GivenAnswer::Own(status.clone()), None);
    record.complete();
}

/// Tells a client of HTTP/1.1 or HTTP/2 that there is HTTP/3 as well (RFC 7838).
fn advertise_http3(shared: &Shared, version: Version, headers: &mut HeaderMap) {
    if let Some(alternative) = shared.http3_alternative.as_ref().filter(|_| version < Version::HTTP_3) {
        headers.insert(ALT_SVC, alternative.clone());
    }
}

/// What a request is answered with.
enum Answer {
    Tunnelled(Response<()>, AnswerRest),
    Upgraded(Response<()>, UpgradedExchange),
}

struct AnswerRest {
    body: ReceivedBody,
    upload: Option<AbortOnDrop>,
    stream: OpenStream,
    open: OpenRequest,
    watch: Option<ResumableWatch>,
    agent: AgentName,
}

async fn answer<B>(
    shared: &Shared,
    caller: Caller<'_>,
    mut request: Request<B>,
    record: &mut RequestRecord,
) -> Result<Answer, Status>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display + Send,
{
    caller.let_in(shared)?;
    record.audit(shared.audit.begin().await?);
    let on_upgrade = hyper::upgrade::on(&mut request);
    let (mut parts, body) = request.into_parts();

    let Asked { route, identity, credentials, cluster_token, client_address } =
        caller.asks(shared, &mut parts, record).await?;
    if !shared.clusters.contains(&route.cluster).await {
        return Err(Status::unknown_cluster(&route.cluster));
    }

    let info = RequestInfo::new(&parts.method, &route.path).map_err(|error| Status::bad_request(error.to_string()))?;
    let mut head = request_head(parts, &route, identity, client_address, record.facts().audit_id.clone())?;
    match body.is_end_stream() {
        true => say_that_the_body_is_empty(&mut head),
        false => check_that_a_body_is_expected(&head)?,
    }
    if let Some(span) = &record.facts().span {
        span.context().write(&mut head.headers);
    }
    let (method, upgrade) = (head.method.clone(), head.upgrade);

    let meter = Meter::for_cluster(shared.watchers.metrics.bytes(&route.cluster));
    let origin = Origin::of(record.facts(), credentials);
    let open = shared.open_requests.open(attributes(&head, &route.cluster, info), origin, meter);
    record.understood(&open).await?;
    admit(shared, open.attributes(), record)?;
    let bound = body_bound(shared, &head, &open.attributes().request)?;
    authorize(&*shared.authorizer, open.attributes(), record).await?;

    let outgoing = Outgoing {
        cluster: &route.cluster,
        info: &open.attributes().request,
        head,
        cluster_token,
        body: BoundedBody::new(body, bound),
        meter: record.facts().meter.clone(),
        retries: Retries {
            budget: shared.retry_budgets.of(&route.cluster),
            made: shared.watchers.metrics.retries(&route.cluster),
            refused: shared.watchers.metrics.retries_refused(&route.cluster),
        },
    };
    let exchange = tokio::select! {
        exchange = dispatch(&shared.registry, outgoing, shared.live().patience()) => exchange?,
        ending = ending_of(&open) => {
            record.ended_by(&ending);
            // It may be with the API server already.
            return Err(match ending {
                Ending::Revoked(_) => {
                    forbidden(open.attributes(), "the right to it was taken away; it may still complete")
                }
                Ending::Stopping => Status::lost_after_dispatch(&route.cluster, &ending.to_string()),
            });
        }
    };
    passed_on(exchange, open, &route, &method, upgrade, on_upgrade, &shared.drain).await
}

/// Waits until a request has to end.
async fn ending_of(open: &OpenRequest) -> Ending {
    open.wait_for_ending().await;
    // It is set before anybody is told.
    open.ending().cloned().unwrap_or(Ending::Stopping)
}

/// What is decided about: who asks, in whose name, and for what.
fn attributes(head: &RequestHead, cluster: &ClusterId, request: RequestInfo) -> OwnedAttributes {
    OwnedAttributes {
        user: head.identity.clone(),
        requested: head.requested.clone(),
        cluster: cluster.clone(),
        request,
    }
}

/// Takes a place for the request, or refuses it because its user or its cluster has too many.
fn admit(shared: &Shared, attributes: &OwnedAttributes, record: &mut RequestRecord) -> Result<(), Status> {
    let OwnedAttributes { user, cluster, request, .. } = attributes;
    let place = shared.limits.admit_request(&user.user, cluster, request.is_long_running())?;
    record.admitted(place);
    Ok(())
}

/// How long the body may be; `None` where nothing bounds it.
fn body_bound(shared: &Shared, head: &RequestHead, request: &RequestInfo) -> Result<Option<u64>, Status> {
    let limit = shared.live().limits.request_body_length;
    let is_bounded = limit > 0 && head.upgrade.is_none() && request.verb != "proxy" && request.subresource != "proxy";
    let bound = is_bounded.then_some(limit);
    let announced = headers::content_length(&head.headers).map_err(|error| Status::bad_request(error.to_string()))?;
    match (announced, bound) {
        (Some(length), Some(bound)) if length > bound => {
            shared.limits.refused(Limit::RequestBodyLength, &head.identity.user);
            Err(Status::payload_too_large(bound))
        }
        _ => Ok(bound),
    }
}

async fn authorize(
    authorizer: &dyn Authorizer,
    attributes: &OwnedAttributes,
    record: &mut RequestRecord,
) -> Result<(), Status> {
    let decision =
        authorizer.authorize(attributes.borrowed()).await.map_err(|error| Status::internal(error.to_string()))?;
    record.decided(decision.clone());
    match decision {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(why) => Err(forbidden(attributes, &why)),
    }
}

fn forbidden(attributes: &OwnedAttributes, why: &str) -> Status {
    Status::forbidden(&attributes.user, &attributes.request, why)
}

/// The head that travels: without what belongs to the client's connection, and with an identity only in its own fields.
fn request_head(
    mut parts: Parts,
    route: &Route,
    identity: Identity,
    client_address: Option<IpAddr>,
    audit_id: String,
) -> Result<RequestHead, Status> {
    let bad_request = |error: &dyn std::fmt::Display| Status::bad_request(error.to_string());
    let upgrade = requested_upgrade(&parts.headers, parts.version).map_err(|error| bad_request(&error))?;
    headers::strip_hop_by_hop(&mut parts.headers).map_err(|error| bad_request(&error))?;
    let requested = impersonation::requested(&parts.headers).map_err(|error| bad_request(&error))?;
    headers::strip_identity(&mut parts.headers);
    headers::content_length(&parts.headers).map_err(|error| bad_request(&error))?;
    // The agent knows which host it talks to, the stub itself has told the client to continue, and the id is the stub's to give.
    for name in [HOST, EXPECT, AUDIT_ID] {
        parts.headers.remove(name);
    }
    Ok(RequestHead {
        audit_id,
        method: parts.method,
        target: route.target.clone(),
        headers: parts.headers,
        identity,
        requested,
        bearer_token: None,
        upgrade,
        client_address,
    })
}

/// Without a length the agent would have to announce a body of unknown length, as a client of HTTP/2 may have left it out
/// (RFC 9110, section 8.6).
fn say_that_the_body_is_empty(head: &mut RequestHead) {
    if ![Method::GET, Method::HEAD, Method::OPTIONS].contains(&head.method) {
        head.headers.entry(CONTENT_LENGTH).or_insert(HeaderValue::from_static("0"));
    }
}

/// A GET that has a body all the same has to say how long it is: an agent would otherwise have to take every GET for one
/// with a body. Kubernetes knows no such request.
fn check_that_a_body_is_expected(head: &RequestHead) -> Result<(), Status> {
    let usual = ![Method::GET, Method::HEAD, Method::OPTIONS].contains(&head.method);
    if head.upgrade.is_some() {
        Err(Status::bad_request("an upgrade request must not have a body"))
    } else if usual || head.headers.contains_key(CONTENT_LENGTH) {
        Ok(())
    } else {
        Err(Status::bad_request(format!("a {} with a body has to have a Content-Length", head.method)))
    }
}

/// The agent's answer as the client gets it.
async fn passed_on(
    exchange: Exchange,
    open: OpenRequest,
    route: &Route,
    method: &Method,
    upgrade: Option<UpgradeProtocol>,
    on_upgrade: OnUpgrade,
    drain: &Drain,
) -> Result<Answer, Status> {
    let Exchange { head, frames, sender, upload, stream, agent, path, leaving } = exchange;
    open.carried_by(&agent);
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    // Where else the API server can be reached is not for those who ask the stub.
    response.headers_mut().remove(ALT_SVC);
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(upgrade), Some(mut sender)) = (upgrade, sender) else {
            return Err(Status::bad_gateway("the API server switched protocols without having been asked to"));
        };
        sender.make_raw();
        write_upgrade(response.headers_mut(), upgrade);
        let upgraded = UpgradedExchange { on_upgrade, protocol: upgrade, sender, frames, stream, open, agent, path };
        return Ok(Answer::Upgraded(response, upgraded));
    }
    if let Some(mut sender) = sender {
        // A refused upgrade: no byte of the client ever follows. The answer may be read to its end all the same.
        sender.finish().await.map_err(|error| Status::bad_gateway(error.to_string()))?;
    }
    headers::strip_hop_by_hop(response.headers_mut()).map_err(|error| Status::bad_gateway(error.to_string()))?;
    prefix_location(response.headers_mut(), &route.prefix);
    let length = headers::content_length(response.headers()).map_err(|error| Status::bad_gateway(error.to_string()))?;
    let length = length.filter(|_| has_body(method, head.status));
    let watch = resumable_watch(&open, &response, drain, leaving);
    let rest = AnswerRest { body: ReceivedBody::new(frames, length), upload, stream, open, watch, agent };
    Ok(Answer::Tunnelled(response, rest))
}

/// Watches are ended when this stub or the agent that serves them is about to stop, since clients resume them by
/// themselves; not all at once, because they come back at once.
fn resumable_watch(
    open: &OpenRequest,
    response: &Response<()>,
    drain: &Drain,
    agent_leaves: impl Future<Output = ()> + Send + 'static,
) -> Option<ResumableWatch> {
    if open.attributes().request.verb != "watch" || response.status() != StatusCode::OK {
        return None;
    }
    let stub_closes = drain.closing();
    let asked = async move {
        tokio::select! {
            () = stub_closes => {}
            () = agent_leaves => {}
        }
        tokio::time::sleep(WATCH_SPREAD.mul_f64(rand::random())).await;
    };
    Some(ResumableWatch::new(EventStream::of(response.headers())?, asked))
}

fn write_upgrade(headers: &mut HeaderMap, upgrade: UpgradeProtocol) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(upgrade.as_str()));
}

/// The agent has made every Location relative to the API server; here it becomes relative to the stub.
fn prefix_location(headers: &mut HeaderMap, prefix: &str) {
    let prefixed = headers
        .get(LOCATION)
        .and_then(|location| location.to_str().ok())
        .filter(|location| location.starts_with('/'))
        .and_then(|location| HeaderValue::try_from(format!("{prefix}{location}")).ok());
    if let Some(location) = prefixed {
        headers.insert(LOCATION, location);
    }
}

fn has_body(method: &Method, status: StatusCode) -> bool {
    *method != Method::HEAD && status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

/// The stub's own words. HTTP/2 and HTTP/3 know no `Connection` (RFC 9113, section 8.2.2; RFC 9114, section 4.2).
fn own_answer(status: Status, version: Version) -> Response<AnswerBody> {
    let mut response = status.into_response().map(AnswerBody::from);
    if version >= Version::HTTP_2 {
        response.headers_mut().remove(CONNECTION);
    }
    response
}

/// An exchange whose stream has become an upgraded connection.
struct UpgradedExchange {
    on_upgrade: OnUpgrade,
    protocol: UpgradeProtocol,
    sender: crate::carrier::FrameSender,
    frames: crate::carrier::FrameReceiver,
    stream: OpenStream,
    open: OpenRequest,
    agent: AgentName,
    path: watch::Receiver<PathState>,
}

impl UpgradedExchange {
    async fn run(self, mut record: RequestRecord) {
        let socket = match self.on_upgrade.await.map(ClientSocket::new) {
            Ok(Some(socket)) => socket,
            Ok(None) => return record.broken_off(&"the connection is not one of the front's"),
            // The client went away before it had the 101; dropping the streams tells the agent.
            Err(_gone) => return,
        };
        let socket = MeteredSocket::new(socket, self.stream.meter().clone());
        let mut socket = UpgradedSocket::new(socket, self.protocol);
        let (boundary, keeping) = (socket.boundary(), socket.keep_client(self.path));
        let ending = async {
            let ending = ending_of(&self.open).await;
            if ending == Ending::Stopping {
                boundary.await;
            }
            ending
        };
        let relayed = tokio::select! {
            // First, so that what it has written is known when a boundary is looked for.
            biased;
            end = relay(&mut socket, self.sender, self.frames, ErrorCode::Cancelled, Some(LINGER)) => Ok(end),
            // Dropping the relay resets the stream.
            ending = ending => Err(ending),
            never = keeping => match never {},
        };
        match relayed {
            Ok(end) if end.clean => record.complete(),
            Ok(_broken) => {}
            Err(ending) => {
                record.ended_by(&ending);
                if ending == Ending::Stopping {
                    socket.close(&ending.to_string()).await;
                }
                // Dropping the socket disconnects the client.
            }
        }
    }
}
