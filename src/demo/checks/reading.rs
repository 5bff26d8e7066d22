//! Checks of what is only read: lists, watches, logs, and how long a small read takes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{CheckError, CheckResult, Finding, Target};
use crate::demo::client::{Client, Lines};
use crate::demo::report::in_words;

/// Requests of which the median time is taken.
const SAMPLES: usize = 200;

/// Lines of a log that has to be seen growing.
const LOG_LINES: usize = 10;

/// How long a pod may be silent before its log counts as quiet.
const QUIET: Duration = Duration::from_secs(3);

/// Lists the namespaces.
pub(super) async fn namespaces(client: &Client) -> CheckResult {
    list(client, "/api/v1/namespaces?limit=500", "namespace").await
}

/// Lists the pods of all namespaces.
pub(super) async fn pods(client: &Client) -> CheckResult {
    list(client, "/api/v1/pods?limit=500", "pod").await
}

/// Watches a namespace while a config map comes and goes.
pub(super) async fn watch_new_configmap(client: &Client, namespace: &str) -> CheckResult {
    let name = format!("tunnel-check-{:08x}", rand::random::<u32>());
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    let watch = format!("{path}?watch=true&fieldSelector=metadata.name%3D{name}");
    let mut events = client.lines(&watch).await?;
    let began = Instant::now();
    client.create(&path, &json!({"metadata": {"name": name}})).await?;
    expect_event(&mut events, "ADDED", &name).await?;
    let time = began.elapsed();
    client.delete(&format!("{path}/{name}")).await?;
    expect_event(&mut events, "DELETED", &name).await?;
    Ok(Finding::Passed { time, detail: "from creating a config map to seeing it".to_owned() })
}

/// Watches the namespaces, of which every cluster has some, and changes nothing.
pub(super) async fn watch_namespaces(client: &Client) -> CheckResult {
    let began = Instant::now();
    let mut events = client.lines("/api/v1/namespaces?watch=true&timeoutSeconds=60").await?;
    let event = next_event(&mut events).await?;
    let name = name_of(&event["object"]);
    Ok(Finding::Passed { time: began.elapsed(), detail: format!("to the first event, about namespace {name}") })
}

/// Follows the log of a container that writes all the time.
pub(super) async fn ticking_logs(client: &Client, target: &Target) -> CheckResult {
    let began = Instant::now();
    let mut lines = follow(client, target, 1).await?;
    for count in 0..LOG_LINES {
        if lines.next().await?.is_none() {
            return Err(CheckError::Unexpected(format!("the log ended after {count} lines")));
        }
    }
    Ok(Finding::Passed { time: began.elapsed(), detail: format!("{LOG_LINES} lines of {target} as they came") })
}

/// Follows the log of some container, which may have nothing to say.
pub(super) async fn any_logs(client: &Client, target: &Target) -> CheckResult {
    let began = Instant::now();
    let mut lines = follow(client, target, 5).await?;
    let detail = match timeout(QUIET, lines.next()).await.map(Result::transpose) {
        Ok(Some(line)) => format!("to the first line of {target} ({} bytes)", line?.len()),
        Ok(None) => format!("the log of {target} is empty and has ended"),
        Err(_elapsed) => format!("{target} is open and quiet"),
    };
    Ok(Finding::Passed { time: began.elapsed(), detail })
}

/// The median time of a small read.
pub(super) async fn latency(client: &Client, path: &str) -> CheckResult {
    let mut times = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let began = Instant::now();
        client.get(path).await?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    let slow = percentile(&times, 99);
    let detail = format!("p50 of {SAMPLES} one after the other; p99 {}", in_words(slow));
    Ok(Finding::Passed { time: percentile(&times, 50), detail })
}

async fn list(client: &Client, path: &str, noun: &str) -> CheckResult {
    let began = Instant::now();
    let list = client.get(path).await?;
    let Some(items) = list["items"].as_array() else {
        return Err(CheckError::Unexpected("the answer is not a list".to_owned()));
    };
    let more = if list["metadata"]["continue"].as_str().is_some_and(|token| !token.is_empty()) { "+" } else { "" };
    let plural = if items.len() == 1 { "" } else { "s" };
    Ok(Finding::Passed { time: began.elapsed(), detail: format!("{}{more} {noun}{plural}", items.len()) })
}

async fn expect_event(events: &mut Lines, kind: &str, name: &str) -> Result<(), CheckError> {
    let event = next_event(events).await?;
    match event["type"].as_str() {
        Some(seen) if seen == kind && name_of(&event["object"]) == name => Ok(()),
        seen => Err(CheckError::Unexpected(format!("the watch said {seen:?} instead of {kind:?} of {name}"))),
    }
}

async fn next_event(events: &mut Lines) -> Result<Value, CheckError> {
    let line = events.next().await?.ok_or_else(|| CheckError::Unexpected("the watch ended".to_owned()))?;
    let event: Value = serde_json::from_slice(&line)
        .map_err(|error| CheckError::Unexpected(format!("the watch sent what is no event: {error}")))?;
    match event["type"].as_str() {
        Some("ERROR") => Err(CheckError::Unexpected(format!("the watch said: {}", event["object"]["message"]))),
        _ => Ok(event),
    }
}

async fn follow(client: &Client, target: &Target, tail: usize) -> Result<Lines, CheckError> {
    let path = target.path("log");
    Ok(client.lines(&format!("{path}?container={}&follow=true&tailLines={tail}", target.container)).await?)
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Nearest rank. Nothing for no times.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(rank).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(100));
        assert_eq!(percentile(&times, 99), Duration::from_millis(198));
        assert_eq!(percentile(&times[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
