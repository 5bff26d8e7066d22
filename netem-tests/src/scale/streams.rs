//! Many open streams on one agent.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use crate::clients::Clients;
use crate::contender::Contender;
use crate::interrupt;
use crate::profile::Profiles;
use crate::record::Recorder;
use crate::report::Latency;
use crate::run::{Plan, Records};
use crate::scenario::{Followers, Gets, Loads, Scenario};
use crate::testbed::{Program, Testbed};

/// What many open streams cost.
#[derive(Debug, Clone, Serialize)]
pub struct StreamFigures {
    /// What moved them.
    pub contender: String,
    /// How many `logs -f` were open, each of a client with a connection of its own, and none of them with anything to say.
    pub streams: usize,
    /// Small GETs with none open.
    pub gets_without: Latency,
    /// Small GETs with all of them open.
    pub gets_with: Latency,
    /// What the stub's memory grew by, for each, in KiB: the client's TLS connection, the request, the stream.
    pub stub_kibibytes_each: f64,
    /// What the agent's memory grew by, for each, in KiB.
    pub agent_kibibytes_each: f64,
}

/// How long small GETs are measured.
const LENGTH: Duration = Duration::from_secs(40);

/// Opens so many, and measures.
///
/// # Errors
/// When the testbed cannot be set up or the streams not be opened.
pub fn streams(program: &Program, contender: Contender, count: usize) -> anyhow::Result<StreamFigures> {
    let profiles = Profiles::built_in()?;
    let plan = Plan {
        program,
        profile: profiles.get("clean")?,
        scenario: Scenario::get("gets")?,
        contender,
        length: LENGTH,
        seed: 1,
        records: Records::default(),
    };
    let mut testbed = Testbed::start(&plan)?;
    let gets_without = gets(&mut testbed)?;
    let (stub, agent) = (testbed.stub_usage()?.memory, testbed.agent_usage()?.memory);
    let followers = Followers { count, lines_per_second: 0, on_one_connection: 1 };
    let loads = Loads { followers: Some(followers), ..Loads::default() };
    let recorder = Arc::new(Recorder::default());
    let kubeconfig = testbed.kubeconfig();
    let open = Clients::start(testbed.network().public(), &kubeconfig, loads, None, &recorder)?;
    let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / 1024.0 / count as f64;
    let stub_kibibytes_each = each(testbed.stub_usage()?.memory, stub);
    let agent_kibibytes_each = each(testbed.agent_usage()?.memory, agent);
    let gets_with = gets(&mut testbed)?;
    drop(open);
    Ok(StreamFigures {
        contender: contender.to_string(),
        streams: count,
        gets_without,
        gets_with,
        stub_kibibytes_each,
        agent_kibibytes_each,
    })
}

fn gets(testbed: &mut Testbed) -> anyhow::Result<Latency> {
    let recorder = Arc::new(Recorder::default());
    let loads = Loads { gets: Some(Gets::Kept), ..Loads::default() };
    let kubeconfig = testbed.kubeconfig();
    let clients = Clients::start(testbed.network().public(), &kubeconfig, loads, None, &recorder)?;
    recorder.open_window(LENGTH);
    interrupt::wait(LENGTH + Duration::from_secs(1))?;
    drop(clients);
    let took = recorder.seen().gets.into_iter().map(|sample| sample.took);
    Latency::of(took).context("no GET was answered")
}
