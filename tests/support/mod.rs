//! Real processes for end-to-end tests: the sample API, stubs, agents and kubectl, all on loopback.
//!
//! Ports are chosen by the system, every wait has a deadline, and whatever was started is killed and removed when its value
//! is dropped. When a test fails, the logs of its processes are printed.

#![allow(dead_code, reason = "each test program uses its own part")]

pub mod balancer;
pub mod browser;
pub mod capture;
pub mod conversation;
pub mod echo;
pub mod http;
pub mod http1;
pub mod http3;
pub mod https_service;
pub mod issuer;
pub mod kube_api_server;
pub mod kubectl;
pub mod kubelet;
pub mod load;
pub mod namespace;
pub mod process;
pub mod proxy;
pub mod relay;
pub mod rogue;
pub mod scene;
pub mod scripted_upstream;
pub mod shared_store;
pub mod terminal;
pub mod test_authority;
pub mod tunnel;
pub mod udp_relay;
pub mod user;

use std::time::{Duration, Instant};

/// How long anything may take that a test waits for.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How long to wait before looking again.
const INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `condition` gives something; panics at the deadline, naming `what` was waited for.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {} s: {what}", DEADLINE.as_secs());
        std::thread::sleep(INTERVAL);
    }
}

/// The same for conditions that are asynchronous.
pub async fn eventually_async<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {} s: {what}", DEADLINE.as_secs());
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Whether to take the time for long tests: `QTUNNEL_LONG_TESTS=1`.
pub fn long() -> bool {
    std::env::var_os("QTUNNEL_LONG_TESTS").is_some()
}
