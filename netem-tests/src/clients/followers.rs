//! Those who follow a log.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use qtunnel::demo::client::{ClientError, Lines};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::session::Session;
use super::{POD, RETRY_INTERVAL, User};
use crate::record::{Hears, Listener, Timed};
use crate::scenario::Followers;

/// Connections that are made at once at most: a crowd does not come within the same millisecond.
const OPENING: usize = 32;

/// Where pods are created.
const PODS: &str = "/api/v1/namespaces/demo/pods";

/// Starts them, on a pod that is made for them.
pub(super) async fn start(tasks: &mut JoinSet<()>, user: &User, followers: Followers) -> Result<(), ClientError> {
    let session = || Session::new(Arc::clone(&user.kubeconfig));
    let log = match followers.lines_per_second {
        0 => format!("{POD}/log?container=sidecar&follow=true"),
        rate => {
            let rate = json!([{"name": "TICKS_PER_SECOND", "value": rate.to_string()}]);
            let pod = json!({
                "metadata": {"name": "ticker"},
                "spec": {"containers": [{"name": "ticker", "image": "qtunnel.sample/ticker", "env": rate}]},
            });
            session().client().await?.create(PODS, &pod).await?;
            format!("{PODS}/ticker/log?follow=true&tailLines=0")
        }
    };
    let opening = Arc::new(Semaphore::new(OPENING));
    let mut shared = session();
    for number in 0..followers.count {
        if number % followers.on_one_connection == 0 {
            shared = session();
        }
        let follower = Follower { user: user.clone(), session: shared.clone(), log: log.clone() };
        tasks.spawn(follower.run(Arc::clone(&opening)));
    }
    Ok(())
}

struct Follower {
    user: User,
    session: Session,
    /// The path of what is followed.
    log: String,
}

impl Follower {
    /// Follows, and follows again whenever that breaks off.
    async fn run(self, opening: Arc<Semaphore>) {
        let recorder = Arc::clone(&self.user.recorder);
        let mut listener = Listener::new(&recorder, Hears::Stream);
        let mut told = self.user.once_open();
        loop {
            let opened = {
                // Never closed; without a permit it is only more crowded.
                let _permit = opening.acquire().await;
                self.open().await
            };
            if let Ok(lines) = opened {
                told.is_open().await;
                let Err(_broken_off) = self.follow(lines, &mut listener).await;
                recorder.stream_lost();
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn follow(&self, mut lines: Lines, listener: &mut Listener<'_>) -> Result<Infallible, ClientError> {
        loop {
            let line = lines.next().await?;
            let line = line.ok_or_else(|| ClientError::Unreadable("the log has ended".to_owned()))?;
            listener.heard();
            if let Some(written) = written(&line) {
                self.user.recorder.completed(Timed::Line, written);
            }
        }
    }

    async fn open(&self) -> Result<Lines, ClientError> {
        let client = self.session.client().await?;
        match client.lines(&self.log).await {
            Ok(lines) => Ok(lines),
            Err(error) => {
                self.session.failed(&client, &error).await;
                Err(error)
            }
        }
    }
}

/// When this line was written: the sample API says so at its end. Both ends have the same clock.
fn written(line: &[u8]) -> Option<Instant> {
    let text = std::str::from_utf8(line).ok()?;
    let written: Timestamp = text.rsplit(' ').next()?.parse().ok()?;
    let age = Timestamp::now().duration_since(written);
    Instant::now().checked_sub(Duration::try_from(age).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_when_it_was_written() {
        let then = Timestamp::now() - jiff::SignedDuration::from_millis(1500);
        let line = format!("tick 7 {}", then.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"));
        let age = written(line.as_bytes()).unwrap().elapsed();
        assert!((Duration::from_millis(1499)..Duration::from_millis(2500)).contains(&age), "{age:?}");
        assert!(written(b"tick 7 yesterday").is_none());
    }
}
