//! Connections, and the life of a request.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Open, Shared,
    body::Gone,
    crud::Call,
    exec,
    identity::{User, effective_user},
    logs::Log,
    objects,
    payload::Payload,
    port_forward,
    rbac::Attributes,
    request::{Query, ResourceTarget, Target},
    resources::{Resource, pods},
    response::{self, Response},
    reviews, sample,
    sink::Sink,
    status::{ApiError, Details, details_of, forbidden_message, forbidden_subject, quoted},
    store::Key,
    watch::Watch,
    websocket,
};

/// How long a TLS handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long an HTTP/1.1 connection may be idle, or take to send a request head.
const IDLE_DEADLINE: Duration = Duration::from_secs(90);
/// How long answers in progress get to finish when the API shuts down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Pause after an accept that failed, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Go's HTTP/2 server, as kube-apiserver configures it: 256 KiB a stream.
const STREAM_WINDOW: u32 = 256 * 1024;

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Serves connections until `shutdown` is cancelled.
pub(super) async fn serve(
    api: Arc<Shared>,
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    shutdown: CancellationToken,
) {
    let acceptor = tls.map(TlsAcceptor::from);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (api, acceptor, shutdown) = (api.clone(), acceptor.clone(), shutdown.clone());
                connections.spawn(async move { serve_connection(api, stream, acceptor, shutdown).await });
            }
            Err(error) => {
                tracing::warn!(%error, "the sample API could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// A request; its body, unless somebody took it.
pub(super) type ApiRequest = Request<Option<Incoming>>;

/// What a request may do to the connection it came on.
#[derive(Clone)]
pub(super) struct ConnectionHandle {
    reset: Arc<AtomicBool>,
    /// Cancelled when the API shuts down.
    pub shutdown: CancellationToken,
}

impl ConnectionHandle {
    /// When the connection ends, its end is a TCP reset.
    pub fn reset_when_done(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }
}

async fn serve_connection(
    api: Arc<Shared>,
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    shutdown: CancellationToken,
) {
    let handle = ConnectionHandle { reset: Arc::default(), shutdown };
    // Without it, answers wait for acknowledgements; a connection that refuses it is about to fail anyway.
    let _ = stream.set_nodelay(true);
    let open = Open::new(&api.counters.open_connections);
    let stream = ResettableStream { stream, reset: handle.reset.clone(), _open: open };
    let Some(acceptor) = acceptor else {
        return serve_http1(api, stream, handle).await;
    };
    match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => serve_http2(api, stream, handle).await,
        Ok(Ok(stream)) => serve_http1(api, stream, handle).await,
        // A client that does not trust this server, or is none: its business.
        Ok(Err(_)) | Err(_) => {}
    }
}

async fn serve_http1(
    api: Arc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handle: ConnectionHandle,
) {
    let shutdown = handle.shutdown.clone();
    let service = service_fn(move |request| answer(api.clone(), handle.clone(), request));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(IDLE_DEADLINE);
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(connection);
    tokio::select! {
        // An error here is a client that went away.
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, connection).await;
}

async fn serve_http2(
    api: Arc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handle: ConnectionHandle,
) {
    let shutdown = handle.shutdown.clone();
    let streams = api.max_concurrent_streams;
    let service = service_fn(move |request| answer(api.clone(), handle.clone(), request));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).max_concurrent_streams(streams).initial_stream_window_size(STREAM_WINDOW);
    builder.initial_connection_window_size(STREAM_WINDOW.saturating_mul(streams).min(1 << 30));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // An error here is a client that went away.
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, connection).await;
}

/// The life of a request.
async fn answer(
    api: Arc<Shared>,
    connection: ConnectionHandle,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    api.counters.requests.fetch_add(1, Ordering::Relaxed);
    let open = Open::new(&api.counters.open_requests);
    let audit_id = request.headers().get(AUDIT_ID).cloned().unwrap_or_else(new_audit_id);
    let headers = request.headers().clone();
    let wants_pretty = response::is_pretty_wanted(&headers, request.uri().query().unwrap_or_default());
    let mut request = request.map(Some);
    let answered = match identify(&api, request.headers()) {
        Ok(user) => dispatch(&api, &connection, user, &mut request).await,
        Err(error) => Err(error),
    };
    let response = answered.unwrap_or_else(|error| response::error(&error));
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let response = if wants_pretty { response::pretty(response) } else { response };
    let mut response = response::as_a_real_server_sends_it(&headers, response);
    response.headers_mut().insert(AUDIT_ID, audit_id);
    let caching = response.headers_mut().entry(header::CACHE_CONTROL);
    caching.or_insert(HeaderValue::from_static("no-cache, private"));
    // HTTP/2 resets a stream whose body is dropped unread, and with it an answer that is not out yet.
    let unread = request.into_body();
    Ok(response.map(|body| body.holding((open, unread))))
}

fn identify(api: &Shared, headers: &HeaderMap) -> Result<User, ApiError> {
    effective_user(api.authenticator.authenticate(headers)?, headers, &api.authorizer)
}

async fn dispatch(
    api: &Arc<Shared>,
    connection: &ConnectionHandle,
    user: User,
    request: &mut ApiRequest,
) -> Result<Response, ApiError> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    match Target::parse(request.uri().path()) {
        Target::Path(path) => {
            authorize_path(api, &user, request.method(), &path)?;
            answer_path(api, connection, &query, request).await
        }
        Target::Resource(target) => {
            authorize_resource(api, &user, request.method(), &query, &target)?;
            let resource = target.definition().ok_or_else(ApiError::no_such_resource)?;
            check_subresource(resource, &target)?;
            match target.subresource.as_deref() {
                Some("log" | "exec" | "attach" | "portforward") => {
                    answer_pod(api, connection, &target, &query, request)
                }
                _ => answer_resource(api, connection, resource, &target, &query, &user, request).await,
            }
        }
    }
}

async fn answer_path(
    api: &Shared,
    connection: &ConnectionHandle,
    query: &Query,
    request: &mut ApiRequest,
) -> Result<Response, ApiError> {
    let path = request.uri().path();
    if path.starts_with("/sample/") {
        return sample::answer(api, connection, query, request).await;
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Err(ApiError::method_not_allowed());
    }
    let headers = request.headers();
    let found = health(path, query)
        .or_else(|| api.discovery.answer(path, headers))
        .or_else(|| api.openapi.answer(path, query, headers));
    Ok(found.unwrap_or_else(|| response::text(StatusCode::NOT_FOUND, "404 page not found\n")))
}

fn health(path: &str, query: &Query) -> Option<Response> {
    let check = path.strip_prefix('/').filter(|check| matches!(*check, "healthz" | "livez" | "readyz"))?;
    let verbose = query.get("verbose").is_some();
    let text = if verbose {
        format!("[+]ping ok\n[+]log ok\n[+]sample-store ok\n{check} check passed\n")
    } else {
        "ok".to_owned()
    };
    Some(response::text(StatusCode::OK, text))
}

async fn answer_resource(
    api: &Arc<Shared>,
    connection: &ConnectionHandle,
    resource: &'static Resource,
    target: &ResourceTarget,
    query: &Query,
    user: &User,
    request: &mut ApiRequest,
) -> Result<Response, ApiError> {
    let verb = target.verb(request.method(), query);
    let is_watch = verb == "watch" || (verb == "get" && query.flag("watch") && target.subresource.is_none());
    if is_watch && resource.is_stored() {
        let watch = Watch::new(api, resource, target, query, request.headers())?;
        if websocket::is_requested(request.method(), request.headers()) {
            return over_websocket(api, connection, request, None, |sender| watch.run(Sink::Texts(sender)));
        }
        return Ok(watch.over_http());
    }
    let payload = Payload::read(request).await?;
    if !resource.is_stored() {
        if verb != "create" {
            return Err(ApiError::method_not_allowed());
        }
        let review = payload.decode()?;
        objects::check_shape(resource, &review)?;
        return reviews::answer(resource, review, user, &api.authorizer);
    }
    Call { api, resource, target, query, headers: request.headers(), payload }.answer(verb)
}

/// Streams over a WebSocket; the connection closes when the stream has ended.
fn over_websocket<F>(
    api: &Shared,
    connection: &ConnectionHandle,
    request: &mut ApiRequest,
    protocol: Option<&str>,
    stream: impl FnOnce(websocket::MessageSender) -> F + Send + 'static,
) -> Result<Response, ApiError>
where
    F: Future<Output = Result<(), Gone>> + Send,
{
    let response = websocket::accept(request.headers(), protocol)?;
    let upgrade = hyper::upgrade::on(request);
    let (open, shutdown) = (Open::new(&api.counters.open_upgrades), connection.shutdown.clone());
    tokio::spawn(async move {
        let _open = open;
        let Ok(mut socket) = websocket::start(upgrade).await else { return };
        // The client has nothing to say; the end of its messages is its end.
        let client_gone = async { while socket.incoming.recv().await.is_some() {} };
        tokio::select! {
            ended = stream(socket.sender.clone()) => if ended.is_err() { return },
            () = client_gone => return,
            () = shutdown.cancelled() => {}
        }
        // A client that is gone needs no goodbye.
        let _ = socket.sender.close().await;
    });
    Ok(response)
}

/// A log over WebSocket: binary messages (`wsstream.NewDefaultReaderProtocols`).
fn log_over_websocket(
    api: &Shared,
    connection: &ConnectionHandle,
    log: Log,
    request: &mut ApiRequest,
) -> Result<Response, ApiError> {
    const BINARY: &str = "binary.k8s.io";
    let offered = websocket::offered_protocols(request.headers());
    let protocol = offered.iter().any(|protocol| protocol == BINARY).then_some(BINARY);
    if protocol.is_none() && !offered.is_empty() {
        return Ok(websocket::refuse_protocol());
    }
    over_websocket(api, connection, request, protocol, |sender| log.run(Sink::Binaries(sender)))
}

fn answer_pod(
    api: &Arc<Shared>,
    connection: &ConnectionHandle,
    target: &ResourceTarget,
    query: &Query,
    request: &mut ApiRequest,
) -> Result<Response, ApiError> {
    let (namespace, name) =
        (target.namespace.as_deref().unwrap_or_default(), target.name.as_deref().unwrap_or_default());
    let pod = api.store.get(&Key::new(pods(), namespace, name)).ok_or_else(|| ApiError::not_found(pods(), name))?;
    let container = || api.pods.container(&pod, query.get("container"));
    match target.subresource.as_deref() {
        Some("log") if request.method() == Method::GET => {
            let log = Log::new(container()?, query)?;
            if websocket::is_requested(request.method(), request.headers()) {
                return log_over_websocket(api, connection, log, request);
            }
            Ok(log.over_http())
        }
        Some("exec" | "attach") if exec::allows(request.method()) => {
            exec::answer(api, connection, container()?, query, request)
        }
        Some("portforward") if exec::allows(request.method()) => {
            port_forward::answer(api, connection, api.pods.first_container(&pod)?, query, request)
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

fn check_subresource(resource: &Resource, target: &ResourceTarget) -> Result<(), ApiError> {
    let known = |name: &String| resource.subresources.iter().any(|sub| sub.name == name);
    if target.subresource.as_ref().is_some_and(|name| !known(name))
        || (target.namespace.is_some() && !resource.namespaced)
    {
        return Err(ApiError::no_such_resource());
    }
    Ok(())
}

fn authorize_path(api: &Shared, user: &User, method: &Method, path: &str) -> Result<(), ApiError> {
    let verb = method.as_str().to_ascii_lowercase();
    if api.authorizer.allows(user, &Attributes::Path { verb: &verb, path }) {
        return Ok(());
    }
    let message = format!("forbidden: User {} cannot {verb} path {}", quoted(&user.name), quoted(path));
    Err(ApiError::forbidden(message, Details::default()))
}

/// A WebSocket exec, attach or port-forward is a GET; since Kubernetes 1.35 it needs `create` besides `get`.
fn authorize_resource(
    api: &Shared,
    user: &User,
    method: &Method,
    query: &Query,
    target: &ResourceTarget,
) -> Result<(), ApiError> {
    let verb = target.verb(method, query);
    let streams = matches!(target.subresource.as_deref(), Some("exec" | "attach" | "portforward"));
    let verbs = if streams && verb == "get" { vec!["get", "create"] } else { vec![verb] };
    verbs.into_iter().try_for_each(|verb| authorize_verb(api, user, verb, target))
}

fn authorize_verb(api: &Shared, user: &User, verb: &str, target: &ResourceTarget) -> Result<(), ApiError> {
    let (group, resource) = (target.group.as_str(), target.with_subresource());
    let (name, namespace) = (target.name.as_deref().unwrap_or_default(), target.authorized_namespace());
    let attributes = Attributes::Resource { verb, group, resource: &resource, name, namespace };
    if api.authorizer.allows(user, &attributes) {
        return Ok(());
    }
    let subject = forbidden_subject(&target.plural, group, name);
    let message = forbidden_message(&user.name, verb, group, &resource, namespace);
    let details = match target.definition() {
        Some(resource) => details_of(resource, name),
        None => Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: target.plural.clone(),
            ..Details::default()
        },
    };
    Err(ApiError::forbidden(format!("{subject}: {message}"), details))
}

fn new_audit_id() -> HeaderValue {
    // A UUID is a valid header value.
    HeaderValue::from_str(&objects::new_uid()).expect("hexadecimal digits and dashes")
}

/// A TCP connection that is counted, and can be made to end with a reset.
struct ResettableStream {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
    _open: Open,
}

impl Drop for ResettableStream {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            // Where the system refuses, the client sees a plain end, which is as short.
            let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for ResettableStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ResettableStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reset.load(Ordering::Relaxed) {
            // Shutting down first would send the clean end that the reset is to replace.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
