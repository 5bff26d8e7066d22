//! `qtunnel status`.

use std::process::ExitCode;

use super::CommandResult;
use super::args::{OutputFormat, StatusArgs};
use super::units::{age, bytes, duration};
use crate::stub::StubConfig;
use crate::stub::admin::{AdminClient, AgentStatus, ClusterStatus, Readiness, StubStatus};

/// Asks a running stub and prints what it says.
pub async fn run(args: StatusArgs) -> CommandResult {
    let config = StubConfig::load(&args.config)?;
    let status = AdminClient::new(&config.admin_socket()).status().await?;
    match args.output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        OutputFormat::Table => print!("{}{}{}", heading(&status), table(&status), waiting(&status)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Lines above the table, for a stub that is not as stubs are most of the time.
fn heading(status: &StubStatus) -> String {
    let mut lines = match status.readiness {
        Readiness::ShuttingDown => "This stub is shutting down\n".to_owned(),
        Readiness::Ready | Readiness::StandingBy => String::new(),
    };
    if let Some(election) = &status.election {
        let leader = election.leader.as_deref().unwrap_or("nobody");
        let since = election.since.map(|since| format!(" for {}", duration(age(since)))).unwrap_or_default();
        let role = if election.leads { "this stub" } else { "this stub stands by" };
        lines += &format!("Leader: {leader}{since} ({role})\n");
    }
    lines
}

/// Lines below the table: what agents wait for.
fn waiting(status: &StubStatus) -> String {
    let of_cluster = |cluster: &ClusterStatus| {
        let known = |uid: &Option<String>| uid.clone().unwrap_or_else(|| "unknown".to_owned());
        let agents = cluster.agents.iter().filter(|agent| agent.state == "waiting");
        let lines = agents.map(|agent| {
            format!(
                "{}/{} serves another API server ({}) than the cluster's other agents ({}), and gets no requests while those \
                 are connected\n",
                cluster.id,
                agent.name,
                known(&agent.api_server),
                known(&cluster.api_server)
            )
        });
        lines.collect::<String>()
    };
    status.clusters.iter().map(of_cluster).collect()
}

const COLUMNS: [&str; 12] = [
    "CLUSTER",
    "AGENT",
    "STATE",
    "CARRIER",
    "ADDRESS",
    "RTT",
    "LOSS",
    "MOVED",
    "STREAMS",
    "REQUESTS",
    "SENT",
    "API SERVER",
];

fn table(status: &StubStatus) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    for cluster in &status.clusters {
        if cluster.agents.is_empty() {
            let mut row = ["-"; COLUMNS.len()].map(str::to_owned);
            row[0] = cluster.id.clone();
            row[2] = "no agent".to_owned();
            rows.push(row);
        }
        rows.extend(cluster.agents.iter().map(|agent| row(&cluster.id, agent)));
    }
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    rows.iter()
        .map(|row| {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            cells.join("  ").trim_end().to_owned() + "\n"
        })
        .collect()
}

fn row(cluster: &str, agent: &AgentStatus) -> [String; COLUMNS.len()] {
    [
        cluster.to_owned(),
        agent.name.clone(),
        match agent.suspect_for_ms {
            Some(milliseconds) => format!("{} for {:.0} s", agent.state, milliseconds / 1000.0),
            None => agent.state.clone(),
        },
        if agent.resumed_with_0rtt { format!("{}, 0-RTT", agent.carrier) } else { agent.carrier.clone() },
        agent.address.clone(),
        format!("{:.1} ms", agent.rtt_ms),
        agent.loss.map_or_else(|| "-".to_owned(), |loss| format!("{:.1} %", loss * 100.0)),
        agent.path_changes.to_string(),
        agent.open_streams.to_string(),
        agent.requests.to_string(),
        bytes(agent.bytes_to_clients as f64),
        if agent.upstream_error.is_empty() {
            format!("{:.1} ms", agent.upstream_latency_ms)
        } else {
            agent.upstream_error.clone()
        },
    ]
}
