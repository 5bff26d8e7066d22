//! Stubs that elect a leader over a Lease of the sample API. What is measured is printed.

mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::http::get_plain;
use support::shared_store::start_stub_with_secrets;
use support::tunnel::{SampleApi, Stub, StubOptions, run_qtunnel};
use support::{eventually_async, long};

/// For a machine that is busy with other tests.
const MARGIN: Duration = Duration::from_secs(3);

/// The timing of an election in whole seconds: shorter than the defaults, unless there is time.
struct Timing {
    lease_duration: u64,
    renew_deadline: u64,
    retry_period: u64,
}

impl Timing {
    fn chosen() -> Self {
        match long() {
            true => Self { lease_duration: 15, renew_deadline: 10, retry_period: 2 },
            false => Self { lease_duration: 4, renew_deadline: 3, retry_period: 1 },
        }
    }

    fn options(&self, name: &'static str) -> StubOptions {
        let seconds = |count: u64| format!("{count}s");
        StubOptions::default()
            .set("", "name", name)
            .set("admin", "listen", "127.0.0.1:0")
            .set("election", "lease", "default/qtunnel-stub")
            .set("election", "lease_duration", seconds(self.lease_duration))
            .set("election", "renew_deadline", seconds(self.renew_deadline))
            .set("election", "retry_period", seconds(self.retry_period))
    }
}

/// A stub that stands for election, and its admin address.
struct Candidate {
    stub: Stub,
    admin: String,
}

impl Candidate {
    fn new(mut stub: Stub) -> Self {
        let line = stub.process.wait_for_log("admin address listens");
        Self { admin: line["address"].as_str().unwrap().to_owned(), stub }
    }

    async fn is_ready(&self) -> bool {
        get_plain(&self.admin, "/readyz").await.starts_with("HTTP/1.1 200")
    }

    async fn until_ready(&self, ready: bool) {
        eventually_async("the readiness of a stub", async || (self.is_ready().await == ready).then_some(())).await;
    }
}

/// Two candidates, the first of which leads.
async fn candidates(api: &SampleApi, timing: &Timing) -> [Candidate; 2] {
    let first = Candidate::new(start_stub_with_secrets(api, timing.options("first")).await);
    first.until_ready(true).await;
    let second = Candidate::new(first.stub.start_another(timing.options("second")));
    eventually_async("a candidate that knows the leader", async || {
        let election = second.stub.status()["election"].clone();
        let leader = election["leader"].as_str().is_some_and(|leader| leader.starts_with("first_"));
        (leader && election["leads"] == false).then_some(())
    })
    .await;
    assert!(first.is_ready().await && !second.is_ready().await);
    [first, second]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_when_its_lease_ends() {
    let (api, timing) = (SampleApi::start(), Timing::chosen());
    let [mut first, second] = candidates(&api, &timing).await;
    let config = second.stub.config();
    let table = run_qtunnel(["status", "--config", config.to_str().unwrap()]).ok();
    assert!(table.starts_with("Leader: first_") && table.contains("stands by"), "{table}");
    assert!(table.lines().next().unwrap().contains(" for "), "since when it leads: {table}");
    first.stub.process.kill();
    let killed = Instant::now();
    second.until_ready(true).await;
    let bound = timing.lease_duration + timing.retry_period;
    println!("a killed leader was replaced after {:.1} s of at most {bound}", killed.elapsed().as_secs_f64());
    assert!(killed.elapsed() < Duration::from_secs(bound) + MARGIN);
    assert_eq!(second.stub.status()["election"]["leads"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_over() {
    let (api, timing) = (SampleApi::start(), Timing { lease_duration: 15, renew_deadline: 10, retry_period: 2 });
    let [mut first, second] = candidates(&api, &timing).await;
    first.stub.process.signal(Signal::TERM);
    let told = Instant::now();
    second.until_ready(true).await;
    println!("a leader that was stopped had a successor after {:.2} s of at most 2", told.elapsed().as_secs_f64());
    assert!(told.elapsed() < Duration::from_secs(2) + MARGIN);
    assert!(first.stub.process.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_renew_its_lease_steps_down_and_may_come_back() {
    let (api, timing) = (SampleApi::start(), Timing::chosen());
    let [first, second] = candidates(&api, &timing).await;
    api.process.signal(Signal::STOP);
    let stopped = Instant::now();
    first.until_ready(false).await;
    let bound = timing.renew_deadline;
    println!("a leader without its API stepped down after {:.1} s of at most {bound}", stopped.elapsed().as_secs_f64());
    assert!(stopped.elapsed() < Duration::from_secs(bound) + MARGIN);
    assert!(!second.is_ready().await, "nobody leads without the API");
    api.process.signal(Signal::CONT);
    eventually_async("one leader", async || {
        let ready = [first.is_ready().await, second.is_ready().await];
        (ready != [false, false]).then_some(())
    })
    .await;
    assert!(!(first.is_ready().await && second.is_ready().await), "two lead");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_candidates_that_start_together_one_leads() {
    let (api, timing) = (SampleApi::start(), Timing::chosen());
    let first = start_stub_with_secrets(&api, timing.options("first")).await;
    let others = ["second", "third", "fourth"].map(|name| first.start_another(timing.options(name)));
    let candidates: Vec<_> = [first].into_iter().chain(others).map(Candidate::new).collect();
    let began = Instant::now();
    let mut leaders = Vec::new();
    // For longer than the lease lasts: it is renewed, and nobody else takes it.
    while began.elapsed() < Duration::from_secs(timing.lease_duration + 2) {
        let mut ready = Vec::new();
        for (index, candidate) in candidates.iter().enumerate() {
            if candidate.is_ready().await {
                ready.push(index);
            }
        }
        assert!(ready.len() <= 1, "{ready:?} lead");
        leaders.extend(ready);
    }
    leaders.dedup();
    assert_eq!(leaders.len(), 1, "one leader for all the time");
}
