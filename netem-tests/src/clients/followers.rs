//! Those who follow a log.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use qtunnel::demo::client::ClientError;
use serde_json::json;
use tokio::task::JoinSet;

use super::session::Session;
use super::{RETRY_INTERVAL, User};
use crate::record::{Hears, Listener, Timed};
use crate::scenario::Loads;

/// Followers that share a connection to the stub, as those of one k9s or one dashboard do.
const ON_ONE_CONNECTION: usize = 50;

/// Where pods are created.
const PODS: &str = "/api/v1/namespaces/demo/pods";

/// Starts them on a pod that is made for them.
pub(super) async fn start(tasks: &mut JoinSet<()>, user: &User, loads: Loads) -> Result<(), ClientError> {
    if loads.followers == 0 {
        return Ok(());
    }
    let session = || Session::new(Arc::clone(&user.kubeconfig));
    let rate = json!([{"name": "TICKS_PER_SECOND", "value": loads.lines_per_second.to_string()}]);
    let pod = json!({
        "metadata": {"name": "ticker"},
        "spec": {"containers": [{"name": "ticker", "image": "qtunnel.sample/ticker", "env": rate}]},
    });
    session().client().await?.create(PODS, &pod).await?;
    let mut shared = session();
    for number in 0..loads.followers {
        if number % ON_ONE_CONNECTION == 0 {
            shared = session();
        }
        tasks.spawn(run(user.clone(), shared.clone()));
    }
    Ok(())
}

/// Follows, and follows again whenever that breaks off.
async fn run(user: User, session: Session) {
    let mut listener = Listener::new(&user.recorder, Hears::Stream);
    let mut was_open = false;
    loop {
        let Err(_broken_off) = follow(&user, &session, &mut listener, &mut was_open).await;
        if was_open {
            user.recorder.stream_lost();
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

async fn follow(
    user: &User,
    session: &Session,
    listener: &mut Listener<'_>,
    was_open: &mut bool,
) -> Result<Infallible, ClientError> {
    let client = session.client().await?;
    let path = format!("{PODS}/ticker/log?follow=true&tailLines=0");
    let failed = async |error| {
        session.failed(&client, &error).await;
        error
    };
    let mut lines = match client.lines(&path).await {
        Ok(lines) => lines,
        Err(error) => return Err(failed(error).await),
    };
    if !*was_open {
        *was_open = true;
        user.is_open().await;
    }
    loop {
        match lines.next().await {
            Ok(Some(line)) => {
                listener.heard();
                if let Some(written) = written(&line) {
                    user.recorder.completed(Timed::Line, written);
                }
            }
            Ok(None) => return Err(ClientError::Unreadable("the log has ended".to_owned())),
            Err(error) => return Err(failed(error).await),
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
