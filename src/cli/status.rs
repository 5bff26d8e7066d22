//! `qtunnel status`.

use std::process::ExitCode;

use super::CommandResult;
use super::args::{OutputFormat, StatusArgs};
use crate::stub::StubConfig;
use crate::stub::admin::{self, AgentStatus, StubStatus};

/// Asks a running stub and prints what it says.
pub async fn run(args: StatusArgs) -> CommandResult {
    let config = StubConfig::load(&args.config)?;
    let status = admin::status(&config.admin_socket()).await?;
    match args.output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        OutputFormat::Table => print!("{}{}", leader(&status), table(&status)),
    }
    Ok(ExitCode::SUCCESS)
}

/// A line above the table, if there is an election.
fn leader(status: &StubStatus) -> String {
    let Some(election) = &status.election else { return String::new() };
    let leader = election.leader.as_deref().unwrap_or("nobody");
    let role = if election.leads { "this stub" } else { "this stub stands by" };
    format!("Leader: {leader} ({role})\n")
}

const COLUMNS: [&str; 11] =
    ["CLUSTER", "AGENT", "STATE", "CARRIER", "ADDRESS", "RTT", "LOSS", "STREAMS", "REQUESTS", "SENT", "API SERVER"];

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
        agent.open_streams.to_string(),
        agent.requests.to_string(),
        bytes(agent.bytes_to_clients),
        if agent.upstream_error.is_empty() {
            format!("{:.1} ms", agent.upstream_latency_ms)
        } else {
            agent.upstream_error.clone()
        },
    ]
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
    }
}
