//! The life of a request at the agent, from top to bottom: [`serve`].

use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::access::AccessError;
use super::forward;
use super::shared::Shared;
use super::upstream::{AnswerBody, Lane, RequestBody, UpstreamError, UpstreamSocket};
use crate::carrier::{
    FrameReceiver, FrameSender, ReceiveError, ReceivedBody, RecvStream, SendStream, relay, send_body,
};
use crate::kube::kubeconfig::bearer;
use crate::kube::{RequestInfo, RequestPath, headers, impersonation, rewrite_location};
use crate::trace::{ActiveSpan, SpanKind};
use crate::wire::{
    AuthMode, ErrorCode, Failure, FailureReason, Frame, FrameReader, Identity, RequestHead, ResponseHead, WireError,
};

/// The header by which the cluster's audit log and the stub's are joined.
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Where the API server's audit log has the client's address from.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How long a request's head may take once its stream is open.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a request without a body is sent when the API server certainly has not looked at it. An API server that spreads its
/// clients (`--goaway-chance`, `apiserver/pkg/server/filters/goaway.go`) refuses whatever was on its way on a connection that it
/// closes, and may do so on the next connection as well.
const MAX_ATTEMPTS: usize = 5;

/// Serves one stream of the stub. Returns when it has ended, one way or another.
///
/// # Errors
///
/// It is a stream that only agents open: the connection has to be closed (proto-spec/qtunnel-1.md, section 3.2).
pub async fn serve(shared: Arc<Shared>, send: SendStream, recv: RecvStream) -> Result<(), WireError> {
    let mut sender = FrameSender::new(send);
    let mut receiver = FrameReceiver::new(recv, FrameReader::for_accepted_stream());
    let mut head = match timeout(HEAD_TIMEOUT, receiver.next_frame()).await {
        Ok(Ok(Some(Frame::RequestHead(head)))) => *head,
        Ok(Ok(Some(Frame::Dial(dial)))) => {
            // What is rare is in a box, so that the tasks of all the others are small.
            Box::pin(forward::serve(&shared.forward, *dial, sender, receiver)).await;
            return Ok(());
        }
        Ok(Err(ReceiveError::Frame(violation @ WireError::UnexpectedStreamKind(_)))) => return Err(violation),
        Ok(Err(error)) => {
            tracing::debug!("a request stream ended before its head: {error}");
            sender.reset(reset_code(&error));
            return Ok(());
        }
        Ok(Ok(_)) | Err(_) => {
            sender.reset(ErrorCode::ProtocolViolation);
            return Ok(());
        }
    };
    let audit_id = head.audit_id.clone();
    let mut span = begin_span(&shared, &mut head);
    let gone = sender.stopped();
    let answer = answer(&shared, head, receiver);
    let answer = tokio::select! {
        answer = answer => answer,
        // The client went away before the answer began: dropping the exchange cancels it at the API server.
        _ = gone => {
            sender.reset(ErrorCode::Cancelled);
            return Ok(());
        }
    };
    if let Some(span) = &mut span {
        describe(span, &answer);
    }
    let result = match answer {
        Ok(Answer::Plain(response)) => pass_on(response, &mut sender).await,
        Ok(Answer::Upgraded(head, upgraded)) => Box::pin(upgraded.run(head, sender)).await,
        Ok(Answer::UpgradeRefused(response)) => pass_on(response, &mut sender).await,
        Err(failure) => report(failure, &mut sender).await,
    };
    if let Err(error) = result {
        tracing::debug!(%audit_id, "an answer was not sent to its end: {error}");
    }
    Ok(())
}

fn reset_code(error: &ReceiveError) -> ErrorCode {
    match error {
        ReceiveError::Frame(error) => error.code(),
        ReceiveError::Stream(_) => ErrorCode::Cancelled,
    }
}

/// The span of a request that is made here; the API server gets it as the parent of its own.
fn begin_span(shared: &Shared, head: &mut RequestHead) -> Option<ActiveSpan> {
    let mut span = shared.tracer.begin(SpanKind::Client, &head.headers)?;
    span.context().write(&mut head.headers);
    span.set_name(head.method.to_string());
    span.set("http.request.method", head.method.as_str());
    span.set("qtunnel.audit_id", head.audit_id.as_str());
    Some(span)
}

fn describe(span: &mut ActiveSpan, answer: &Result<Answer, Failure>) {
    let code = match answer {
        Ok(Answer::Plain(response)) => response.status(),
        Ok(Answer::UpgradeRefused(response)) => response.status(),
        Ok(Answer::Upgraded(head, _)) => head.status,
        Err(failure) => {
            span.set("error.message", failure.message.as_str());
            return span.fail();
        }
    };
    span.set("http.response.status_code", code);
    if code.is_server_error() {
        span.fail();
    }
}

/// What the API server answered.
enum Answer {
    Plain(Response<AnswerBody>),
    Upgraded(ResponseHead, Upgraded),
    UpgradeRefused(Response<Incoming>),
}

async fn answer(shared: &Shared, mut head: RequestHead, receiver: FrameReceiver) -> Result<Answer, Failure> {
    let path = RequestPath::parse(head.target.as_str()).map_err(|error| bad_request(&error))?;
    let info = RequestInfo::new(&head.method, &path).map_err(|error| bad_request(&error))?;

    let act_as = match shared.auth_mode {
        AuthMode::Impersonate => Some(effective_identity(shared, &head).await?),
        AuthMode::PassThrough => None,
    };
    let authorization = authorization(shared, &head).await?;
    let headers = std::mem::take(&mut head.headers);
    let headers = upstream_headers(&head, headers, act_as.as_ref(), authorization)?;
    if head.upgrade.is_some() {
        return Box::pin(upgrade(shared, &head, headers, receiver)).await;
    }

    let (lane, patience) = match info.is_long_running() {
        true => (Lane::LongRunning, None),
        false => (Lane::Short, Some(shared.response_timeout)),
    };
    let length = headers::content_length(&headers).map_err(|error| bad_request(&error))?;
    let mut body = match may_have_body(&head, length) {
        true => Some(RequestBody::Tunnelled(Box::new(ReceivedBody::new(receiver, length)))),
        false => None,
    };
    let bodiless = body.is_none();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let request = request(shared, &head, headers.clone(), body.take().unwrap_or_else(RequestBody::empty))?;
        match shared.upstream.send(request, lane, patience).await {
            Ok(response) => return cleaned(shared, response).map(Answer::Plain),
            Err(UpstreamError::NotSent) if bodiless && attempt < MAX_ATTEMPTS => {}
            Err(error) => return Err(upstream_failure(&error)),
        }
    }
}

/// Whom the agent acts as: the user, or whom the user asks to act as and the cluster lets them. The agent's own policy
/// looks at both, so that a stub that was taken over is not every cluster's administrator.
async fn effective_identity(shared: &Shared, head: &RequestHead) -> Result<Identity, Failure> {
    let forbidden = |why: &dyn std::fmt::Display| failure(FailureReason::Forbidden, false, why);
    shared.policy.permits(&head.identity).map_err(|refusal| forbidden(&refusal))?;
    let Some(requested) = &head.requested else { return Ok(head.identity.clone()) };
    shared.policy.permits(requested).map_err(|refusal| forbidden(&refusal))?;
    shared.access.check(&shared.upstream, &head.identity, requested).await.map_err(|error| match error {
        AccessError::Upstream(error) => failure(FailureReason::UpstreamUnreachable, false, &error),
        denied => forbidden(&denied),
    })?;
    Ok(impersonation::on_behalf_of(&head.identity, requested.clone()))
}

/// The agent's own credential, or the user's in pass-through mode; never one for the other.
async fn authorization(shared: &Shared, head: &RequestHead) -> Result<Option<HeaderValue>, Failure> {
    match (shared.auth_mode, &head.bearer_token) {
        (AuthMode::Impersonate, _) => shared.upstream.authorization().await.map_err(|error| upstream_failure(&error)),
        (AuthMode::PassThrough, Some(token)) => Ok(Some(bearer(token))),
        (AuthMode::PassThrough, None) => {
            Err(failure(FailureReason::Unauthenticated, false, &"this cluster wants a bearer token of its own"))
        }
    }
}

/// The headers that reach the API server, made of those that came with `head`. Whatever the stub has already removed is removed again: the agent is the last
/// to touch them, and the API server believes it.
fn upstream_headers(
    head: &RequestHead,
    mut headers: HeaderMap,
    act_as: Option<&Identity>,
    authorization: Option<HeaderValue>,
) -> Result<HeaderMap, Failure> {
    headers::strip_hop_by_hop(&mut headers).map_err(|error| bad_request(&error))?;
    headers::strip_identity(&mut headers);
    headers.remove(HOST);
    match act_as {
        Some(identity) => impersonation::write(identity, &mut headers).map_err(|error| bad_request(&error))?,
        // The user's own token: the API server itself decides whom its bearer may act as.
        None => {
            if let Some(requested) = &head.requested {
                impersonation::write(requested, &mut headers).map_err(|error| bad_request(&error))?;
            }
        }
    }
    if let Some(authorization) = authorization {
        headers.insert(AUTHORIZATION, authorization);
    }
    if let Ok(id) = HeaderValue::try_from(head.audit_id.as_str()) {
        headers.insert(AUDIT_ID, id);
    }
    if let Some(Ok(address)) = head.client_address.map(|address| HeaderValue::try_from(address.to_string())) {
        headers.insert(X_FORWARDED_FOR, address);
    }
    if let Some(upgrade) = head.upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(upgrade.as_str()));
    }
    Ok(headers)
}

fn request(
    shared: &Shared,
    head: &RequestHead,
    headers: HeaderMap,
    body: RequestBody,
) -> Result<Request<RequestBody>, Failure> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = shared.upstream.uri(&head.target).map_err(|error| upstream_failure(&error))?;
    *request.headers_mut() = headers;
    Ok(request)
}

async fn upgrade(
    shared: &Shared,
    head: &RequestHead,
    headers: HeaderMap,
    receiver: FrameReceiver,
) -> Result<Answer, Failure> {
    let request = request(shared, head, headers, RequestBody::empty())?;
    let response =
        shared.upstream.upgrade(request, shared.response_timeout).await.map_err(|error| upstream_failure(&error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return cleaned(shared, response).map(Answer::UpgradeRefused);
    }
    let head = ResponseHead { status: response.status(), headers: response.headers().clone() };
    let on_upgrade = hyper::upgrade::on(response);
    Ok(Answer::Upgraded(head, Upgraded { on_upgrade, receiver }))
}

/// An answer as it may leave the cluster.
fn cleaned<B>(shared: &Shared, mut response: Response<B>) -> Result<Response<B>, Failure> {
    let bad_answer = |why: &dyn std::fmt::Display| failure(FailureReason::BadUpstreamAnswer, true, why);
    if response.status() == StatusCode::UNAUTHORIZED && shared.auth_mode == AuthMode::Impersonate {
        shared.upstream.credential_was_refused();
        return Err(bad_answer(
            &"the API server does not accept the agent's own credential; its ServiceAccount token or client certificate may have expired",
        ));
    }
    headers::strip_hop_by_hop(response.headers_mut()).map_err(|error| bad_answer(&error))?;
    if let Some(location) = response.headers().get(LOCATION) {
        let location = location.to_str().map_err(|_| bad_answer(&"the API server redirects to what is no address"))?;
        let relative =
            rewrite_location(location, "", shared.upstream.authority()).map_err(|error| bad_answer(&error))?;
        let relative = HeaderValue::try_from(relative).map_err(|error| bad_answer(&error))?;
        response.headers_mut().insert(LOCATION, relative);
    }
    Ok(response)
}

/// Sends an answer to the stub as it comes. One that breaks off breaks the stream off.
async fn pass_on<B>(response: Response<B>, sender: &mut FrameSender) -> Result<(), String>
where
    B: http_body::Body<Data = bytes::Bytes>,
    B::Error: std::fmt::Display,
{
    let (parts, body) = response.into_parts();
    let head = ResponseHead { status: parts.status, headers: parts.headers };
    if let Err(error) = sender.queue(&Frame::ResponseHead(Box::new(head))) {
        let failure = failure(FailureReason::BadUpstreamAnswer, true, &format!("the head of the answer: {error}"));
        return report(failure, sender).await;
    }
    send_body(body, sender, ErrorCode::UpstreamAborted).await.map_err(|error| error.to_string())
}

async fn report(failure: Failure, sender: &mut FrameSender) -> Result<(), String> {
    sender.queue(&Frame::Failure(failure)).map_err(|error| error.to_string())?;
    sender.finish().await.map_err(|error| error.to_string())
}

/// A connection to the API server that has become raw bytes.
struct Upgraded {
    on_upgrade: hyper::upgrade::OnUpgrade,
    receiver: FrameReceiver,
}

impl Upgraded {
    async fn run(self, head: ResponseHead, mut sender: FrameSender) -> Result<(), String> {
        sender.queue(&Frame::ResponseHead(Box::new(head))).map_err(|error| error.to_string())?;
        sender.make_raw();
        let upgraded = self.on_upgrade.await.map_err(|error| error.to_string())?;
        let parts = upgraded
            .downcast::<TokioIo<UpstreamSocket>>()
            .map_err(|_| "the upgraded connection is not one of the agent's".to_owned())?;
        // What came together with the 101 goes out together with it.
        sender.send_data(parts.read_buf).await.map_err(|error| error.to_string())?;
        relay(parts.io.into_inner(), sender, self.receiver, ErrorCode::UpstreamAborted, None).await;
        Ok(())
    }
}

/// A request without a length may still have a body of unknown length, which HTTP/1.1 would have sent in chunks, but
/// not where the method has no use for one.
fn may_have_body(head: &RequestHead, length: Option<u64>) -> bool {
    use http::Method;
    match length {
        Some(length) => length > 0,
        None => ![Method::GET, Method::HEAD, Method::OPTIONS].contains(&head.method),
    }
}

fn upstream_failure(error: &UpstreamError) -> Failure {
    let reason = match error {
        UpstreamError::Unreachable { .. } | UpstreamError::NotSent | UpstreamError::Credential(_) => {
            FailureReason::UpstreamUnreachable
        }
        UpstreamError::Lost(_) => FailureReason::UpstreamLost,
        UpstreamError::TimedOut(_) => FailureReason::UpstreamTimeout,
        UpstreamError::Unsendable(_) => FailureReason::BadRequest,
    };
    failure(reason, error.dispatched(), error)
}

fn bad_request(why: &dyn std::fmt::Display) -> Failure {
    failure(FailureReason::BadRequest, false, why)
}

fn failure(reason: FailureReason, dispatched: bool, why: &dyn std::fmt::Display) -> Failure {
    Failure { reason, dispatched, message: why.to_string() }
}
