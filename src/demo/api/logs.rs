//! `pods/NAME/log` (`k8s.io/kubernetes/pkg/registry/core/pod/rest/log.go`).

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::StatusCode;

use super::{
    body::{Body, BodySender, Gone},
    log_ring::Line,
    pods::Container,
    request::Query,
    response::{self, Response},
    status::ApiError,
};

/// What of a log is wanted.
struct LogOptions {
    follow: bool,
    tail: Option<usize>,
    timestamps: bool,
    limit: usize,
}

/// Answers with the container's log. Errors: 400 for the log of a previous container, which there never is.
pub(super) fn answer(container: Arc<Container>, name: &str, query: &Query) -> Result<Response, ApiError> {
    if query.flag("previous") {
        let pod = &container.hostname;
        return Err(ApiError::bad_request(format!(
            "previous terminated container \"{name}\" in pod \"{pod}\" not found"
        )));
    }
    let options = LogOptions::parse(query);
    let (lines, next) = container.log.read(0);
    let lines = options.tail_of(lines);
    if !options.follow {
        let mut text = BytesMut::new();
        for line in &lines {
            text.put(options.print(line));
        }
        text.truncate(options.limit);
        return Ok(response::with_body(StatusCode::OK, "text/plain", Body::chunked(text)));
    }
    let (sender, body) = Body::streamed();
    tokio::spawn(async move {
        // The client went away or the pod stopped: both end the body.
        let _ = follow(&container, options, lines, next, &sender).await;
    });
    Ok(response::with_body(StatusCode::OK, "text/plain", body))
}

async fn follow(
    container: &Container,
    options: LogOptions,
    mut lines: Vec<Line>,
    mut next: u64,
    sender: &BodySender,
) -> Result<(), Gone> {
    let mut left = options.limit;
    loop {
        for line in &lines {
            let mut text = options.print(line);
            text.truncate(left);
            left -= text.len();
            sender.send(text).await?;
            if left == 0 {
                return Ok(());
            }
        }
        tokio::select! {
            () = container.log.wait_beyond(next) => {}
            () = container.stopped.cancelled() => return Ok(()),
            () = sender.gone() => return Err(Gone),
        }
        (lines, next) = container.log.read(next);
    }
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
