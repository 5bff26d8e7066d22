//! Every command and flag: one file for each command.

mod agent;
mod demo;
mod kubeconfig;
mod policy;
mod status;
mod stub;
mod token;
mod top;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand, ValueEnum};

pub use agent::{AgentAction, AgentArgs, AgentAuth, AgentCarrier, AgentCommand, ManifestArgs, UpstreamArgs};
pub use demo::{DemoArgs, SampleApiArgs};
pub use kubeconfig::KubeconfigArgs;
pub use policy::{CheckedObject, CheckedResource, PolicyCheckArgs, PolicyCommand};
pub use status::StatusArgs;
pub use stub::{StubAction, StubCommand, StubInitArgs, StubRunArgs};
pub use token::{TokenCommand, TokenCreateArgs};
pub use top::TopArgs;

use agent::AGENT_EXAMPLES;
use demo::{DEMO_EXAMPLES, SAMPLE_API_EXAMPLES};
use kubeconfig::KUBECONFIG_EXAMPLES;
use status::STATUS_EXAMPLES;
use stub::STUB_EXAMPLES;
use top::TOP_EXAMPLES;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// kubectl to clusters in private networks, through a QUIC tunnel that an agent inside opens to the outside.
#[derive(Debug, Parser)]
#[command(name = "qtunnel", version, styles = STYLES, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// How log lines look.
    #[arg(long, global = true, env = "QTUNNEL_LOG_FORMAT", default_value = "human", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `info,qtunnel::access=off`
    /// [default: info; for `demo`: warn; for `top`: off].
    #[arg(long, global = true, env = "QTUNNEL_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    Human,
    /// One JSON object for each line.
    Json,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table for people.
    Table,
    /// JSON for scripts.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the public side of the tunnel, or set it up with `stub init`.
    #[command(args_conflicts_with_subcommands = true, after_help = STUB_EXAMPLES)]
    Stub(StubCommand),
    /// Make join tokens for agents.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Run the private side of the tunnel, in or near a cluster, or print it as Kubernetes objects with `agent manifest`.
    #[command(args_conflicts_with_subcommands = true, after_help = AGENT_EXAMPLES)]
    Agent(Box<AgentCommand>),
    /// Issue a user's certificate and print a kubeconfig with it.
    #[command(after_help = KUBECONFIG_EXAMPLES)]
    Kubeconfig(KubeconfigArgs),
    /// Ask what the stub's policy allows.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Show clusters, agents and their connections at a running stub.
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Watch clusters, agents and requests of a running stub in the terminal.
    #[command(after_help = TOP_EXAMPLES)]
    Top(TopArgs),
    /// Run stub, agent and a sample Kubernetes API in this process, check them, and stay up.
    #[command(after_help = DEMO_EXAMPLES)]
    Demo(DemoArgs),
    /// Serve the sample Kubernetes API that the demo and the tests use.
    #[command(after_help = SAMPLE_API_EXAMPLES)]
    SampleApi(SampleApiArgs),
    /// Print a completion script for a shell.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// What is logged where nobody says: what the demo prints should not drown in log lines.
    pub fn default_log(&self) -> &'static str {
        match self {
            Self::Demo(_) => "warn",
            // Log lines would be written across the screen.
            Self::Top(_) => "off",
            _ => "info",
        }
    }
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  qtunnel completions bash > /etc/bash_completion.d/qtunnel
  qtunnel completions zsh > \"${fpath[1]}/_qtunnel\"";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_and_flags_are_consistent() {
        Cli::command().debug_assert();
    }
}
