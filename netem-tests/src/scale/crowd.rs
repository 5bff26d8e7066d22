//! Many agents in one process.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use qtunnel::agent::{Agent, AgentError, CarrierChoice, CarrierSettings, StubAddress};
use qtunnel::kube::kubeconfig::{Credentials, Upstream};
use qtunnel::pki::JoinToken;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Agents that share a process.
#[derive(Debug, Clone)]
pub struct Crowd {
    /// Where the stub is.
    pub stub: StubAddress,
    /// Where they keep their keys, each in a directory of its own.
    pub directory: PathBuf,
    /// What they join with, in turn.
    pub tokens: Vec<JoinToken>,
    /// The number of the first.
    pub first: usize,
    /// How many.
    pub count: usize,
}

/// Between the starts of two of them. Agents are started at many places, one after the other; this machine, which has both ends of
/// each handshake to compute, would mostly be busy with those that were given up meanwhile if all began at once.
const START_INTERVAL: Duration = Duration::from_millis(40);

/// Runs them until the process ends.
///
/// # Errors
/// When one of them cannot go on.
pub fn run_crowd(crowd: &Crowd) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut agents = JoinSet::new();
        let mut starts = tokio::time::interval(START_INTERVAL);
        for number in crowd.first..crowd.first + crowd.count {
            let agent = agent(crowd, number).with_context(|| format!("agent {number}"))?;
            starts.tick().await;
            agents.spawn(agent.run(CancellationToken::new()));
        }
        while let Some(ended) = agents.join_next().await {
            ended??;
        }
        Ok(())
    })
}

fn agent(crowd: &Crowd, number: usize) -> Result<Agent, AgentError> {
    // Nobody listens there: what is measured is the stub.
    let upstream = Upstream {
        server: http::Uri::from_static("http://127.0.0.1:1"),
        certificate_authority: None,
        server_name: None,
        credentials: Credentials::Anonymous,
        insecure: false,
    };
    let agent = Agent::builder(vec![crowd.stub.clone()], crowd.directory.join(format!("agent-{number}")), upstream)
        .carrier(CarrierSettings { choice: CarrierChoice::Quic, ..CarrierSettings::default() })
        .drain_timeout(Duration::from_secs(1))
        .response_timeout(Duration::from_secs(60));
    match crowd.tokens.get(number % crowd.tokens.len().max(1)) {
        Some(token) => agent.token(token.clone()).build(),
        None => agent.build(),
    }
}
