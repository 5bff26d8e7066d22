//! `qtunnel sample-api`.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use tokio::net::TcpListener;

use super::args::SampleApiArgs;
use super::{CommandResult, shutdown_on_signal};
use crate::demo::SampleCluster;

/// Serves the sample API until a signal.
pub async fn run(args: SampleApiArgs) -> CommandResult {
    ensure!(
        args.listen.ip().is_loopback(),
        "--listen {} is not loopback; the sample API is a toy for this machine and stays on it",
        args.listen
    );
    let shutdown = shutdown_on_signal()?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    let cluster = SampleCluster::new(address)?;
    cluster.write(&args.dir)?;
    tracing::info!(%address, kubeconfig = %args.dir.join("kubeconfig.yaml").display(), "the sample API listens");
    cluster.serve(listener, shutdown).await?;
    Ok(ExitCode::SUCCESS)
}
