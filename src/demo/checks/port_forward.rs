//! A forwarded port, over SPDY as kubectl before 1.31 and many libraries do it
//! (`k8s.io/client-go/tools/portforward/portforward.go`).

use std::time::{Duration, Instant};

use http::Method;
use http::header::{CONNECTION, HeaderName, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::{CheckError, CheckResult, Finding, Target};
use crate::demo::api::spdy::client::{Client as Spdy, Incoming};
use crate::demo::client::Client;

const PROTOCOL: &str = "portforward.k8s.io";
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What the sample pod's web server says.
const PAGE: &str = "hello from web";

/// The longest answer that is kept, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// How long a service may take to notice that the client has nothing to say.
const QUIET: Duration = Duration::from_secs(2);

/// Reads the sample pod's web page.
pub(super) async fn page(client: &Client, target: &Target) -> CheckResult {
    let Some(port) = target.port else { return Ok(no_port(target)) };
    let began = Instant::now();
    let mut forwarded = Forwarded::open(client, target, port).await?;
    forwarded.finish(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await?;
    forwarded.wait_until_ended().await?;
    let time = began.elapsed();
    let (answer, errors) = (String::from_utf8_lossy(&forwarded.answer), String::from_utf8_lossy(&forwarded.errors));
    if !errors.is_empty() || !answer.contains(PAGE) {
        return Err(CheckError::Unexpected(format!("port {port} of {target} answered {answer:?} {errors}")));
    }
    Ok(Finding::Passed { time, detail: format!("{PAGE:?} from port {port} of {target}, over SPDY") })
}

/// Connects to a port of some container and says nothing, as a probe does: what listens there is not ours.
pub(super) async fn knock(client: &Client, target: &Target) -> CheckResult {
    let Some(port) = target.port else { return Ok(no_port(target)) };
    let began = Instant::now();
    let mut forwarded = Forwarded::open(client, target, port).await?;
    forwarded.wait_until_accepted().await?;
    let time = began.elapsed();
    forwarded.finish(b"").await?;
    // A service that neither speaks nor closes is connected all the same.
    if let Ok(ended) = timeout(QUIET, forwarded.wait_until_ended()).await {
        ended?;
    }
    match forwarded.errors.is_empty() {
        true => Ok(Finding::Passed { time, detail: format!("connected to port {port} of {target}, over SPDY") }),
        false => Ok(Finding::Skipped(String::from_utf8_lossy(&forwarded.errors).into_owned())),
    }
}

fn no_port(target: &Target) -> Finding {
    Finding::Skipped(format!("{target} declares no TCP port"))
}

/// One connection to a port: a stream for data, and one for what goes wrong.
struct Forwarded {
    spdy: Spdy<TokioIo<Upgraded>>,
    data_stream: u32,
    /// Streams that the server has accepted, and streams that it has ended.
    accepted: usize,
    ended: usize,
    /// What came on the stream for data.
    answer: Vec<u8>,
    /// What came on the stream for errors.
    errors: Vec<u8>,
}

/// The stream for data and the one for errors.
const STREAMS: usize = 2;

impl Forwarded {
    async fn open(client: &Client, target: &Target, port: u16) -> Result<Self, CheckError> {
        let headers = [(CONNECTION, "Upgrade"), (UPGRADE, "SPDY/3.1"), (STREAM_PROTOCOL, PROTOCOL)];
        let (response, io) = client.upgrade(Method::POST, &target.path("portforward"), &headers).await?;
        if response.headers().get(STREAM_PROTOCOL).is_none_or(|protocol| protocol != PROTOCOL) {
            return Err(CheckError::Unexpected(format!("the server did not agree to {PROTOCOL}")));
        }
        let mut spdy = Spdy::new(io);
        let port = port.to_string();
        let stream = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", "0")];
        let error_stream = spdy.open(&stream("error")).await?;
        // The client has nothing to say about errors.
        spdy.send(error_stream, b"", true).await?;
        let data_stream = spdy.open(&stream("data")).await?;
        Ok(Self { spdy, data_stream, accepted: 0, ended: 0, answer: Vec::new(), errors: Vec::new() })
    }

    /// Sends the last data of the client.
    async fn finish(&mut self, data: &[u8]) -> Result<(), CheckError> {
        Ok(self.spdy.send(self.data_stream, data, true).await?)
    }

    /// Waits until the server has accepted both streams.
    async fn wait_until_accepted(&mut self) -> Result<(), CheckError> {
        while self.accepted < STREAMS {
            self.take_frame().await?;
        }
        Ok(())
    }

    /// Waits until the server has ended both streams.
    async fn wait_until_ended(&mut self) -> Result<(), CheckError> {
        while self.ended < STREAMS {
            self.take_frame().await?;
        }
        Ok(())
    }

    async fn take_frame(&mut self) -> Result<(), CheckError> {
        let unexpected = |what: &str| Err(CheckError::Unexpected(what.to_owned()));
        match self.spdy.next().await? {
            Some(Incoming::Reply) => self.accepted += 1,
            Some(Incoming::Data { id, bytes, last }) => {
                let kept = if id == self.data_stream { &mut self.answer } else { &mut self.errors };
                let room = MAX_ANSWER.saturating_sub(kept.len());
                kept.extend(bytes.iter().take(room));
                self.ended += usize::from(last);
            }
            Some(Incoming::Reset { .. }) => return unexpected("the server reset a stream of the forwarded port"),
            Some(_) => {}
            None => return unexpected("the server ended the connection before the forwarded port"),
        }
        Ok(())
    }
}
