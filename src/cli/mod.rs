//! Every command: `args` defines the flags, one module for each command does what it says.

mod agent;
pub mod args;
mod demo;
mod kubeconfig;
mod logging;
mod manifest;
mod policy;
mod sample_api;
mod status;
mod stub;
mod token;
mod top;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tokio_util::sync::CancellationToken;

use args::{AgentAction, Cli, Command, PolicyCommand, StubAction, TokenCommand};

/// What a command ends with: its exit code, or an error for people.
type CommandResult = anyhow::Result<ExitCode>;

/// Runs the program with the arguments of the process.
///
/// Exit codes: 0 for success, 1 for an error, 2 for wrong usage; `demo -- CMD` has CMD's.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let log = cli.log.as_deref().unwrap_or(cli.command.default_log());
    match logging::start(log, cli.log_format).and_then(|()| dispatch(cli.command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes. Some errors tell their cause themselves: each is said once.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for text in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

fn dispatch(command: Command) -> CommandResult {
    match command {
        Command::Stub(command) => match command.action {
            Some(StubAction::Init(args)) => stub::init(&args),
            None => stub::run(command.run),
        },
        Command::Token(TokenCommand::Create(args)) => token::create(&args),
        Command::Agent(command) => match command.action {
            Some(AgentAction::Manifest(args)) => manifest::run(&args),
            None => agent::run(command.run),
        },
        Command::Kubeconfig(args) => kubeconfig::run(&args),
        Command::Policy(PolicyCommand::Check(args)) => block_on(policy::check(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Top(args) => block_on(top::run(args)),
        Command::Demo(args) => block_on(demo::run(args)),
        Command::SampleApi(args) => block_on(sample_api::run(args)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "qtunnel", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn block_on(command: impl Future<Output = CommandResult>) -> CommandResult {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(command)
}

/// Cancelled at the first SIGTERM or SIGINT. The second one ends the process at once, as people expect of ctrl-C.
fn shutdown_on_signal() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = CancellationToken::new();
    let requested = shutdown.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!("{name}: stopping");
        requested.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("stopping at once");
        std::process::exit(1);
    });
    Ok(shutdown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the file: {0}")]
        struct Unreadable(#[from] std::io::Error);
        let cause = || std::io::Error::other("the disk is gone");
        assert_eq!(in_one_line(&Unreadable(cause()).into()), "cannot read the file: the disk is gone");
        let error = anyhow::Error::from(cause()).context("cannot start");
        assert_eq!(in_one_line(&error), "cannot start: the disk is gone");
    }
}
