//! Sends spans to a collector.

use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Queue, Span, otlp};

/// Spans sent at once.
const BATCH: usize = 512;

/// How long spans are gathered before they are sent.
const GATHER: Duration = Duration::from_secs(1);

/// How long the collector may take for a batch.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a collector takes spans over OTLP/HTTP: `http://host:port`, with what stands before `/v1/traces` in the path. Only
/// plain HTTP: a collector that is far away belongs behind one that is near.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct OtlpEndpoint {
    authority: String,
    address: (String, u16),
    path: String,
}

/// An endpoint that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no endpoint for traces: it has to be http://HOST:PORT, of a collector that takes OTLP over HTTP (port 4318)"
)]
pub struct InvalidEndpoint(String);

impl FromStr for OtlpEndpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let invalid = || InvalidEndpoint(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        let authority = uri.authority().ok_or_else(invalid)?;
        if uri.scheme_str() != Some("http") || authority.as_str().contains('@') || uri.query().is_some() {
            return Err(invalid());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let path = format!("{}/v1/traces", uri.path().trim_end_matches('/'));
        Ok(Self { authority: authority.to_string(), address: (host, authority.port_u16().unwrap_or(80)), path })
    }
}

impl TryFrom<String> for OtlpEndpoint {
    type Error = InvalidEndpoint;

    fn try_from(text: String) -> Result<Self, InvalidEndpoint> {
        text.parse()
    }
}

/// Sends what a [`super::Tracer`] makes.
#[derive(Debug)]
pub struct Exporter {
    service: &'static str,
    endpoint: OtlpEndpoint,
    spans: mpsc::Receiver<Span>,
    queue: Arc<Queue>,
    was_lost: bool,
}

/// Why a batch did not arrive.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("cannot connect: {0}")]
    Connect(#[from] io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("it answered {0}")]
    Refused(StatusCode),
    #[error("it did not answer within {} s", PATIENCE.as_secs())]
    TimedOut,
}

impl Exporter {
    pub(super) fn new(
        service: &'static str,
        endpoint: OtlpEndpoint,
        spans: mpsc::Receiver<Span>,
        queue: Arc<Queue>,
    ) -> Self {
        Self { service, endpoint, spans, queue, was_lost: false }
    }

    /// Sends spans until `stop`, and then what is left.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let more = stop.run_until_cancelled(self.spans.recv_many(&mut batch, BATCH)).await;
            if more.is_some() && stop.run_until_cancelled(sleep(GATHER)).await.is_some() {
                while batch.len() < BATCH
                    && let Ok(span) = self.spans.try_recv()
                {
                    batch.push(span);
                }
                self.send(&mut batch).await;
                continue;
            }
            while let Ok(span) = self.spans.try_recv() {
                batch.push(span);
            }
            return self.send(&mut batch).await;
        }
    }

    async fn send(&mut self, batch: &mut Vec<Span>) {
        if batch.is_empty() {
            return;
        }
        let body = otlp::request(self.service, batch).to_string();
        let result = match timeout(PATIENCE, self.post(body)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(ExportError::TimedOut),
        };
        if let Err(error) = &result {
            self.queue.dropped.fetch_add(batch.len() as u64, Ordering::Relaxed);
            // Once for each outage; the metrics count what is lost.
            if !self.was_lost {
                tracing::warn!(endpoint = self.endpoint.authority, "spans are lost, the collector takes none: {error}");
            }
        }
        self.was_lost = result.is_err();
        batch.clear();
    }

    async fn post(&self, body: String) -> Result<(), ExportError> {
        let (host, port) = &self.endpoint.address;
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        // Both were parts of a URI.
        *request.uri_mut() = self.endpoint.path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_str(&self.endpoint.authority).unwrap_or(HeaderValue::from_static("")));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let exchange = sender.send_request(request);
        let answer = tokio::select! {
            answer = exchange => answer?,
            // It ends with an error that the request has as well.
            Err(error) = connection => return Err(error.into()),
        };
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(ExportError::Refused(answer.status())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_plain_http_address() {
        let endpoint: OtlpEndpoint = "http://127.0.0.1:4318".parse().unwrap();
        assert_eq!((endpoint.address.1, endpoint.path.as_str()), (4318, "/v1/traces"));
        let endpoint: OtlpEndpoint = "http://[::1]:9/otlp/".parse().unwrap();
        assert_eq!((endpoint.address.0.as_str(), endpoint.path.as_str()), ("::1", "/otlp/v1/traces"));
        for wrong in ["", "collector:4318", "https://collector", "http://user:password@collector", "http://c/?x"] {
            assert!(wrong.parse::<OtlpEndpoint>().is_err(), "{wrong}");
        }
    }
}
