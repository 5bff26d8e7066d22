//! A choice among agents of an organisation's own kind: here always the first by name, the others for when it is gone.
//!
//! `cargo run --example agent_selector`

mod support;

use qtunnel::stub::Stub;
use qtunnel::stub::select::{AgentSelector, Candidate};
use qtunnel::wire::ClusterId;

/// The first agent by name. Agents that do not answer are no candidates, so the next one takes over by itself.
#[derive(Debug)]
struct FirstByName;

impl AgentSelector for FirstByName {
    fn choose(&self, cluster: &ClusterId, candidates: &[&dyn Candidate]) -> usize {
        let names = candidates.iter().map(|candidate| candidate.name().as_str()).enumerate();
        let first = names.min_by_key(|(_, name)| *name);
        let (index, name) = first.unwrap_or_default();
        println!("selector: {name} of {} agents of {cluster}", candidates.len());
        index
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let site = support::Site::new()?;
    let stub = Stub::builder(site.config()?).selector(FirstByName).bind().await?;
    let tunnel = site.run_with(stub, 2, |agent| agent).await?;

    let alice = tunnel.client_of("alice").await?;
    for _ in 0..3 {
        alice.get(support::PODS).await?;
    }
    for agent in tunnel.status().await?.clusters.iter().flat_map(|cluster| &cluster.agents) {
        println!("{} has served {} requests", agent.name, agent.requests);
    }
    tunnel.stop().await
}
