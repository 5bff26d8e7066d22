//! `qtunnel demo`.

mod child;
mod signals;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;

use super::CommandResult;
use super::args::DemoArgs;
use crate::demo::checks::{self, Reached, Tally};
use crate::demo::report::{Report, Style};
use crate::demo::{DemoCluster, DemoTunnel};
use crate::kube::kubeconfig::Kubeconfig;
use signals::Signals;

/// Runs everything in this process.
pub async fn run(args: DemoArgs) -> CommandResult {
    let mut signals = Signals::listen()?;
    let cluster = cluster(&args)?;
    let began = Instant::now();
    let mut tunnel = DemoTunnel::start(args.port, &cluster).await?;
    let result = match args.command.split_first() {
        Some((program, arguments)) => run_command(&mut tunnel, &mut signals, program, arguments).await,
        None => tokio::select! {
            result = show(&mut tunnel, &cluster, began) => result,
            _ = signals.next() => Ok(ExitCode::SUCCESS),
        },
    };
    tunnel.stop().await;
    result
}

fn cluster(args: &DemoArgs) -> anyhow::Result<DemoCluster> {
    let Some(path) = &args.kubeconfig else { return Ok(DemoCluster::Sample) };
    Ok(DemoCluster::Real {
        upstream: Box::new(Kubeconfig::load(path)?.upstream(args.context.as_deref())?),
        user: args.as_user.clone(),
        groups: args.as_group.clone(),
    })
}

/// Runs a command that finds the tunnel through KUBECONFIG. Standard output is the command's.
async fn run_command(
    tunnel: &mut DemoTunnel,
    signals: &mut Signals,
    program: &OsString,
    arguments: &[OsString],
) -> CommandResult {
    tokio::select! {
        reached = reach(tunnel) => reached?,
        signal = signals.next() => return Ok(child::exit_code_of(signal)),
    };
    eprintln!("qtunnel demo: the tunnel is up at {}; running {}", tunnel.address(), program.display());
    child::run(program, arguments, &tunnel.kubeconfig(), signals).await
}

/// Checks the tunnel, says what to try, and stays. Ends only where something is wrong.
async fn show(tunnel: &mut DemoTunnel, cluster: &DemoCluster, began: Instant) -> CommandResult {
    let mut report = Report::new(io::stdout(), style());
    report.line(&heading(cluster));
    report.running("tunnel");
    let reached = reach(tunnel).await.inspect_err(|_| report.abandoned())?;
    let detail = format!("agent joined over QUIC at {}; API server {}", tunnel.address(), reached.version());
    report.passed("tunnel", began.elapsed(), &detail);
    let tally = checks::run(&reached, cluster, &mut report).await;
    explain_rights(&mut report, cluster, &tally);
    if tally.failed > 0 {
        report.line(&format!("\n{} of {} checks failed.", tally.failed, tally.failed + tally.passed + tally.skipped));
        return Ok(ExitCode::FAILURE);
    }
    suggest(&mut report, tunnel, cluster);
    bail!(tunnel.failed().await)
}

/// Waits until the cluster answers through the tunnel.
async fn reach(tunnel: &mut DemoTunnel) -> anyhow::Result<Reached> {
    tunnel.connected().await?;
    Ok(checks::reach(&tunnel.kubeconfig()).await?)
}

/// Colours only where somebody sees them and has not declined (<https://no-color.org>).
fn style() -> Style {
    match io::stdout().is_terminal() {
        true => Style::Terminal { colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) },
        false => Style::Plain,
    }
}

fn heading(cluster: &DemoCluster) -> String {
    match cluster {
        DemoCluster::Sample => "Stub, agent and a sample cluster in this process:".to_owned(),
        DemoCluster::Real { upstream, user, .. } => {
            format!("Stub and agent in this process, in front of {}, for user {user:?}:", upstream.server)
        }
    }
}

/// What a user whom the cluster forbids something can do about it.
fn explain_rights(report: &mut Report<impl Write>, cluster: &DemoCluster, tally: &Tally) {
    let DemoCluster::Real { user, .. } = cluster else { return };
    if tally.forbidden == 0 {
        return;
    }
    report
        .line(&format!("\nIn the cluster you are {user:?}, who may not do everything. To let that user look around:"));
    report.line(&format!("  kubectl create clusterrolebinding qtunnel-demo --clusterrole=view --user={user:?}"));
    report.line("with your own kubeconfig, or be someone else with --as-user NAME --as-group GROUP.");
}

fn suggest(report: &mut Report<impl Write>, tunnel: &DemoTunnel, cluster: &DemoCluster) {
    report.line("\nTry it in another terminal:");
    report.line(&format!("  export KUBECONFIG={}", tunnel.kubeconfig().display()));
    let commands: &[&str] = match cluster {
        DemoCluster::Sample => &[
            "kubectl get pods --all-namespaces",
            "kubectl logs -f web",
            "kubectl exec -it web -- sh",
            "kubectl port-forward web 8080:80     # and open http://localhost:8080/",
            "kubectl cp web:/www/index.html index.html",
        ],
        DemoCluster::Real { .. } => &["kubectl auth whoami", "kubectl get pods --all-namespaces", "k9s"],
    };
    for command in commands {
        report.line(&format!("  {command}"));
    }
    report.line(&format!("  qtunnel top --config {}", tunnel.stub_settings().display()));
    if let Some(dashboard) = tunnel.dashboard() {
        report.line(&format!("\nWatch it in a browser: {dashboard}"));
    }
    report.line("\nCtrl-C stops everything and removes these files.");
}
