//! Clients that never pause, and count what fails. They make a request again only where client-go does.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::http::Access;
use super::{DEADLINE, eventually_async};

/// The time between two requests of one client.
const PAUSE: Duration = Duration::from_millis(4);

/// How often client-go makes a request again that was answered with `Retry-After`
/// (`client-go/rest/with_retry.go`, `maxRetries`).
const MAX_RETRIES: usize = 10;

const CONFIG_MAPS: &str = "/api/v1/namespaces/demo/configmaps";

/// Small GETs, lists, writes and a watch, all at once, until they are told to stop.
pub struct Load {
    tally: Arc<Tally>,
    clients: JoinSet<()>,
    watcher: JoinSet<()>,
}

/// What the clients saw.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    answered: AtomicUsize,
    repeated: AtomicUsize,
    connections: AtomicUsize,
    watches: AtomicUsize,
    failures: Mutex<Vec<String>>,
    written: Mutex<Vec<String>>,
    /// How often the watch told of each.
    seen: Mutex<BTreeMap<String, usize>>,
}

/// What a load came to.
#[derive(Debug)]
pub struct Outcome {
    /// Requests that were answered as they should be.
    pub answered: usize,
    /// Times that a request was made again, as client-go would.
    pub repeated: usize,
    /// Connections that were made.
    pub connections: usize,
    /// Watches that were begun, one after the other.
    pub watches: usize,
    /// Everything else, in words.
    pub failures: Vec<String>,
}

impl Load {
    /// Starts it with the user of a kubeconfig file.
    pub async fn start(kubeconfig: &Path) -> Self {
        let access = Access::of(kubeconfig);
        let tally = Arc::new(Tally::default());
        let (mut clients, mut watcher) = (JoinSet::new(), JoinSet::new());
        let client = || Client { access: access.clone(), tally: tally.clone(), connection: None };
        let list = client().send(Method::GET, CONFIG_MAPS, None).await.expect("a first list");
        let version = list["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
        for _ in 0..3 {
            clients.spawn(client().reads("/api/v1/namespaces/demo/pods/web"));
        }
        clients.spawn(client().reads("/api/v1/namespaces/demo/pods"));
        for name in ["a", "b"] {
            clients.spawn(client().writes(name));
        }
        watcher.spawn(client().watches(version));
        Self { tally, clients, watcher }
    }

    /// Waits until so many more requests have been answered, or one has failed.
    pub async fn goes_on(&self, count: usize) {
        let goal = self.tally.answered.load(Ordering::SeqCst) + count;
        eventually_async("answers", async || {
            let reached = self.tally.answered.load(Ordering::SeqCst) >= goal;
            (reached || !self.tally.failures.lock().unwrap().is_empty()).then_some(())
        })
        .await;
    }

    /// Stops it. The watch has to have told of every write once by then.
    pub async fn ends(mut self) -> Outcome {
        self.tally.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client does not panic");
        }
        let written = self.tally.written.lock().unwrap().clone();
        eventually_async("the watch tells of every write", async || {
            let complete = {
                let seen = self.tally.seen.lock().unwrap();
                written.iter().all(|name| seen.contains_key(name))
            };
            (complete || !self.tally.failures.lock().unwrap().is_empty()).then_some(())
        })
        .await;
        self.watcher.shutdown().await;
        let number = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        let mut failures = self.tally.failures.lock().unwrap().clone();
        let seen = self.tally.seen.lock().unwrap();
        failures.extend(
            seen.iter()
                .filter(|(_, times)| **times != 1)
                .map(|(name, times)| format!("{name} was told of {times} times")),
        );
        Outcome {
            answered: number(&self.tally.answered),
            repeated: number(&self.tally.repeated),
            connections: number(&self.tally.connections),
            watches: number(&self.tally.watches),
            failures,
        }
    }
}

/// One client with one HTTP/2 connection at a time, which it keeps for as long as it takes requests.
struct Client {
    access: Access,
    tally: Arc<Tally>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    async fn reads(mut self, path: &'static str) {
        while self.goes_on().await {
            let result = self.send(Method::GET, path, None).await;
            self.count(result.map(drop));
        }
    }

    async fn writes(mut self, prefix: &'static str) {
        let mut number = 0;
        while self.goes_on().await {
            number += 1;
            let name = format!("load-{prefix}-{number}");
            let object = json!({"metadata": {"name": name}, "data": {"number": number.to_string()}});
            let result = self.send(Method::POST, CONFIG_MAPS, Some(object)).await;
            if result.is_ok() {
                self.tally.written.lock().unwrap().push(name);
            }
            self.count(result.map(drop));
        }
    }

    /// Watches from `version`, and from the last event again whenever a watch has ended.
    async fn watches(mut self, mut version: String) {
        loop {
            self.tally.watches.fetch_add(1, Ordering::SeqCst);
            let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion={version}&allowWatchBookmarks=true");
            let mut body = match self.begin(Method::GET, &path, None).await {
                Ok((StatusCode::OK, _, body)) => body,
                Ok((status, ..)) => return self.count(Err(format!("a watch was answered with {status}"))),
                Err(error) => return self.count(Err(format!("a watch did not begin: {error}"))),
            };
            let mut pending = Vec::new();
            while let Some(frame) = body.frame().await {
                match frame {
                    Ok(frame) => pending.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                    Err(error) => return self.count(Err(format!("a watch broke off: {error:?}"))),
                }
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    let event: Value = serde_json::from_slice(&line).expect("an event");
                    let metadata = &event["object"]["metadata"];
                    version = metadata["resourceVersion"].as_str().expect("a version").to_owned();
                    if event["type"] == "ADDED" {
                        let name = metadata["name"].as_str().expect("a name").to_owned();
                        *self.tally.seen.lock().unwrap().entry(name).or_default() += 1;
                    }
                }
            }
            if !pending.is_empty() {
                return self
                    .count(Err(format!("a watch ended within an event: {:?}", String::from_utf8_lossy(&pending))));
            }
        }
    }

    async fn goes_on(&self) -> bool {
        tokio::time::sleep(PAUSE).await;
        !self.tally.stop.load(Ordering::SeqCst)
    }

    fn count(&self, result: Result<(), String>) {
        match result {
            Ok(()) => drop(self.tally.answered.fetch_add(1, Ordering::SeqCst)),
            Err(failure) => self.tally.failures.lock().unwrap().push(failure),
        }
    }

    /// Makes a request and reads the answer.
    async fn send(&mut self, method: Method, path: &str, object: Option<Value>) -> Result<Value, String> {
        let (status, headers, body) = self.begin(method.clone(), path, object).await?;
        let body = timeout(DEADLINE, body.collect()).await.map_err(|_| "no end of an answer")?;
        let body = body.map_err(|error| format!("{method} {path}: the answer broke off: {error:?}"))?.to_bytes();
        match status.is_success() {
            true => Ok(serde_json::from_slice(&body).map_err(|error| error.to_string())?),
            false => Err(format!("{method} {path}: {status} {headers:?} {}", String::from_utf8_lossy(&body))),
        }
    }

    /// Makes a request up to the head of its answer: again after `Retry-After` (`client-go/rest/with_retry.go`), and on a new
    /// connection where the old one took no more requests (`golang.org/x/net/http2`, `canRetryError`).
    async fn begin(
        &mut self,
        method: Method,
        path: &str,
        object: Option<Value>,
    ) -> Result<(StatusCode, http::HeaderMap, hyper::body::Incoming), String> {
        let mut retries = 0;
        loop {
            let mut connection = self.connected().await?;
            let body = object.as_ref().map_or_else(Bytes::new, |object| object.to_string().into());
            let uri = format!("https://{}{}{path}", self.access.authority(), self.access.prefix());
            let mut request = http::Request::builder().method(method.clone()).uri(uri);
            if object.is_some() {
                request = request.header(http::header::CONTENT_TYPE, "application/json");
            }
            let request = request.body(Full::new(body)).expect("a request");
            let answer = timeout(DEADLINE, connection.try_send_request(request)).await;
            match answer.map_err(|_| format!("{method} {path}: no answer in time"))? {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    match head.headers.get(http::header::RETRY_AFTER) {
                        Some(seconds) if retries < MAX_RETRIES => {
                            retries += 1;
                            self.tally.repeated.fetch_add(1, Ordering::SeqCst);
                            let seconds = seconds.to_str().expect("text").parse().expect("seconds");
                            tokio::time::sleep(Duration::from_secs(seconds)).await;
                        }
                        _ => return Ok((head.status, head.headers, body)),
                    }
                }
                Err(mut error) => {
                    self.connection = None;
                    // What was handed back was not sent.
                    let unsent = error.take_message().is_some();
                    let error = error.into_error();
                    if !unsent && !was_not_processed(&error) {
                        return Err(format!("{method} {path}: {error:?}"));
                    }
                    self.tally.repeated.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }

    async fn connected(&mut self) -> Result<SendRequest<Full<Bytes>>, String> {
        if let Some(connection) = self.connection.as_mut().filter(|connection| !connection.is_closed())
            && connection.ready().await.is_ok()
        {
            return Ok(connection.clone());
        }
        self.tally.connections.fetch_add(1, Ordering::SeqCst);
        let socket = self.access.connect("h2").await.map_err(|error| format!("no connection: {error}"))?;
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (sender, connection) =
            builder.handshake(TokioIo::new(socket)).await.map_err(|error| format!("no HTTP/2: {error:?}"))?;
        // Its errors reach whoever waits for an answer.
        tokio::spawn(connection);
        Ok(self.connection.insert(sender).clone())
    }
}

/// Whether the server said that it has not begun with the request: REFUSED_STREAM, or a GOAWAY that leaves it out.
fn was_not_processed(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| {
        error.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR))
    })
}
