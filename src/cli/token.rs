//! `qtunnel token create`.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;

use super::CommandResult;
use super::args::{OutputFormat, TokenCreateArgs};
use crate::stub::KnownClusters;

/// Makes a join token and prints it.
pub fn create(args: &TokenCreateArgs) -> CommandResult {
    let (config, keys) = super::stub::load(&args.config)?;
    let ttl = args.ttl.try_into().ok().filter(|ttl: &std::time::Duration| !ttl.is_zero());
    let ttl = ttl.context("--ttl has to be longer than nothing, for example 1h")?;
    let token = keys.tokens().create(&args.cluster, ttl, args.uses, SystemTime::now())?;
    KnownClusters::new(keys.store().clone())
        .add(&args.cluster)
        .with_context(|| format!("cannot note that cluster \"{}\" exists", args.cluster))?;
    match args.output {
        OutputFormat::Table => {
            println!("{token}");
            eprintln!();
            eprintln!(
                "Valid for {:#}, for {} agent(s) of cluster \"{}\". In the cluster:",
                args.ttl, args.uses, args.cluster
            );
            eprintln!("  qtunnel agent --stub {} --state-dir DIR --token TOKEN", config.public_address);
        }
        OutputFormat::Json => {
            let result = serde_json::json!({
                "token": token.to_string(),
                "cluster": args.cluster.as_str(),
                "stub": config.public_address,
                "uses": args.uses,
                "ttlSeconds": ttl.as_secs(),
            });
            println!("{result:#}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
