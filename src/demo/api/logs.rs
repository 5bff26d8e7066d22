//! `pods/NAME/log` (`k8s.io/kubernetes/pkg/registry/core/pod/rest/log.go`).

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::StatusCode;

use super::{
    body::{Body, Gone},
    log_ring::Line,
    pods::Container,
    request::Query,
    response::{self, Response},
    sink::Sink,
    status::ApiError,
};

/// A log somebody wants to read.
pub(super) struct Log {
    container: Arc<Container>,
    options: LogOptions,
}

impl Log {
    /// Reads what is wanted. Errors: 400 for the log of a previous container, which there never is.
    pub fn new(container: Arc<Container>, query: &Query) -> Result<Self, ApiError> {
        if query.flag("previous") {
            let (name, pod) = (query.get("container").unwrap_or_default(), &container.hostname);
            let message = format!("previous terminated container \"{name}\" in pod \"{pod}\" not found");
            return Err(ApiError::bad_request(message));
        }
        Ok(Self { container, options: LogOptions::parse(query) })
    }

    /// Answers with a body of lines.
    pub fn over_http(self) -> Response {
        if self.options.follow {
            let (sender, body) = Body::streamed();
            tokio::spawn(async move {
                // The client went away or the pod stopped: both end the body.
                let _ = self.run(Sink::Body(sender)).await;
            });
            return response::with_body(StatusCode::OK, "text/plain", body);
        }
        let mut text = BytesMut::new();
        for line in &self.options.tail_of(self.container.log.read(0).0) {
            text.put(self.options.print(line));
        }
        text.truncate(self.options.limit);
        response::with_body(StatusCode::OK, "text/plain", Body::chunked(text))
    }

    /// Sends the lines there are and, if wanted, those to come, until the pod stops or the client is gone.
    pub async fn run(self, sink: Sink) -> Result<(), Gone> {
        let (lines, mut next) = self.container.log.read(0);
        let (mut lines, mut left) = (self.options.tail_of(lines), self.options.limit);
        loop {
            for line in &lines {
                let mut text = self.options.print(line);
                text.truncate(left);
                left -= text.len();
                sink.send(text).await?;
            }
            if left == 0 || !self.options.follow {
                return Ok(());
            }
            tokio::select! {
                () = self.container.log.wait_beyond(next) => {}
                () = self.container.stopped.cancelled() => return Ok(()),
                () = sink.gone() => return Err(Gone),
            }
            (lines, next) = self.container.log.read(next);
        }
    }
}

/// What of a log is wanted.
struct LogOptions {
    follow: bool,
    tail: Option<usize>,
    timestamps: bool,
    limit: usize,
}

impl LogOptions {
    fn parse(query: &Query) -> Self {
        let size = |key: &str| query.number(key).and_then(|number| usize::try_from(number).ok());
        Self {
            follow: query.flag("follow"),
            tail: size("tailLines"),
            timestamps: query.flag("timestamps"),
            limit: size("limitBytes").unwrap_or(usize::MAX),
        }
    }

    fn tail_of(&self, mut lines: Vec<Line>) -> Vec<Line> {
        let surplus = self.tail.map_or(0, |tail| lines.len().saturating_sub(tail));
        lines.split_off(surplus)
    }

    fn print(&self, line: &Line) -> Bytes {
        if !self.timestamps {
            return line.text.clone();
        }
        let time = line.time.strftime("%Y-%m-%dT%H:%M:%S%.9fZ ").to_string();
        [time.as_bytes(), &line.text].concat().into()
    }
}
