//! `exec` and `attach`: a process behind an upgraded connection, over WebSocket or SPDY
//! (`k8s.io/kubelet/pkg/cri/streaming/remotecommand`, `k8s.io/apimachinery/pkg/util/remotecommand`).

mod outcome;
mod over_spdy;
mod over_websocket;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::{
    Open, Shared,
    body::Body,
    pods::Container,
    process::{self, Running, Task},
    request::Query,
    response::{self, Response},
    server::{ApiRequest, ConnectionHandle},
    status::ApiError,
    websocket,
};

pub(super) const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// A process somebody wants to talk to.
struct Session {
    container: Arc<Container>,
    task: Task,
    /// The command, as messages print it.
    command: Vec<String>,
    wants: Wants,
}

/// Which streams are wanted.
#[derive(Debug, Clone, Copy)]
struct Wants {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Session {
    fn start(self) -> (Running, Vec<String>) {
        (process::start(self.container, self.task, self.wants.tty), self.command)
    }
}

/// Upgrades to a session with a process. Errors: 400 for a request that is no upgrade or wants no stream, 403 for
/// protocols this server does not know.
pub(super) fn answer(
    api: &Arc<Shared>,
    connection: &ConnectionHandle,
    container: Arc<Container>,
    query: &Query,
    request: &mut ApiRequest,
) -> Result<Response, ApiError> {
    let session = session(container, query, request.uri().path().ends_with("/exec"))?;
    let (open, shutdown) = (Open::new(&api.counters.open_upgrades), connection.shutdown.clone());
    if websocket::is_requested(request.method(), request.headers()) {
        let offered = websocket::offered_protocols(request.headers());
        let Some(protocol) = over_websocket::Protocol::choose(&offered) else {
            return Ok(websocket::refuse_protocol());
        };
        let response = websocket::accept(request.headers(), protocol.name())?;
        let upgrade = hyper::upgrade::on(&mut *request);
        tokio::spawn(async move {
            let _open = open;
            tokio::select! {
                () = over_websocket::run(upgrade, protocol, session) => {}
                () = shutdown.cancelled() => {}
            }
        });
        return Ok(response);
    }
    if !is_spdy_requested(request.headers()) {
        let message = format!("Upgrade request required: {} needs Connection: Upgrade", request.method());
        return Err(ApiError::bad_request(message));
    }
    let protocol = match over_spdy::Protocol::choose(&offered_spdy_protocols(request.headers())) {
        Ok(protocol) => protocol,
        Err(accepted) => return Ok(refuse_spdy_protocol(request.headers(), accepted)),
    };
    let response = accept_spdy(protocol.name());
    let upgrade = hyper::upgrade::on(&mut *request);
    tokio::spawn(async move {
        let _open = open;
        tokio::select! {
            () = over_spdy::run(upgrade, protocol, session) => {}
            () = shutdown.cancelled() => {}
        }
    });
    Ok(response)
}

/// Whether this request asks for SPDY (`spdy.NewResponseUpgrader`).
pub(super) fn is_spdy_requested(headers: &HeaderMap) -> bool {
    let has = |name, word: &str| {
        let value = headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or_default();
        value.to_ascii_lowercase().contains(word)
    };
    has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "spdy/3.1")
}

/// The protocols the client offers, in order: repeated headers, or a list.
pub(super) fn offered_spdy_protocols(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(STREAM_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect()
}

/// The `101` to SPDY.
pub(super) fn accept_spdy(protocol: &'static str) -> Response {
    let mut response = Response::new(Body::whole(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    response
}

/// 403 with the protocols that would do (`httpstream.Handshake`).
pub(super) fn refuse_spdy_protocol(headers: &HeaderMap, accepted: &[&'static str]) -> Response {
    let offered = offered_spdy_protocols(headers).join(" ");
    let text = format!(
        "unable to upgrade: unable to negotiate protocol: client supports [{offered}], server accepts [{}]\n",
        accepted.join(" ")
    );
    let mut response = response::text(StatusCode::FORBIDDEN, text);
    for protocol in accepted {
        let value = HeaderValue::from_static(protocol);
        response.headers_mut().append("x-accepted-stream-protocol-versions", value);
    }
    response
}

fn session(container: Arc<Container>, query: &Query, is_exec: bool) -> Result<Session, ApiError> {
    let wants = Wants {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr") && !query.flag("tty"),
        tty: query.flag("tty"),
    };
    if !(wants.stdin || wants.stdout || wants.stderr) {
        return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    if is_exec && command.is_empty() {
        return Err(ApiError::bad_request("you must specify a command for the container"));
    }
    let task = if is_exec { Task::Exec(command.clone()) } else { Task::Attach };
    Ok(Session { container, task, command, wants })
}

/// Whether the method may carry a stream.
pub(super) fn allows(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::POST)
}
