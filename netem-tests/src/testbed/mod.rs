//! The system under test: the real programs, each a process in its namespace, with the emulated link between them.
//!
//! Clients and stub are on the public side, agent and API server on the private one. Dropping a [`Testbed`] ends all of
//! it and removes its files.

mod lone_stub;
mod plain_tcp;
mod program;
mod usage;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use qtunnel::stub::admin::{AdminClient, StubStatus};
use tempfile::TempDir;

pub use lone_stub::LoneStub;
pub use plain_tcp::PlainTcp;
pub use program::Program;
pub use usage::Usage;

use crate::contender::{Carrier, Congestion, Contender};
use crate::interrupt;
use crate::run::Plan;
use crate::tun::{Namespace, PUBLIC_ADDRESS, Process, TunNetwork};

/// The cluster that the agent serves.
const CLUSTER: &str = "c1";

/// The group that the sample API lets do everything with its objects.
const USERS: &str = "qtunnel:users";

/// Both namespaces are new, so any port is free.
const STUB_PORT: u16 = 8443;
const API_ADDRESS: &str = "127.0.0.1:6443";

/// What one address may do at most. Here everybody comes from the same one, and thousands at once.
const LIMITS_SECTION: &str = "[limits]\n";
const LIMITS: &str = "[limits]
connections_per_second = 10000
strangers_per_address = 20000
watches_per_user = 20000
";

/// How long the agent may take to join and connect, on the worst of networks.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks at something that is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A stub, an agent and a sample API that work together.
#[derive(Debug)]
pub struct Testbed {
    // In this order: programs end before their namespaces.
    stub: Process,
    agent: Process,
    _api: Process,
    network: TunNetwork,
    program: Program,
    /// What the stub is started with, and started again.
    stub_arguments: Vec<String>,
    directory: TempDir,
}

impl Testbed {
    /// Starts all of it, and returns when requests can pass.
    ///
    /// # Errors
    /// When a namespace cannot be made, a program does not start, or the agent does not get through; says what the
    /// program logged last.
    pub fn start(plan: &Plan<'_>) -> anyhow::Result<Self> {
        let Plan { program, contender, records, .. } = *plan;
        let network = TunNetwork::start_with(plan.profile, plan.seed, records.capture)?;
        network.set_tcp_congestion(match contender.carrier {
            Carrier::TcpYamux => contender.congestion.name(),
            // What runs beside a QUIC tunnel has what most machines have.
            Carrier::Quic => Congestion::Cubic.name(),
        })?;
        let directory = scratch_directory()?;
        let files = Files { directory: directory.path() };
        files.init_stub(program, PUBLIC_ADDRESS)?;
        let api = files.start(program, network.private(), "api", &files.api_arguments())?;
        let stub_arguments = [files.stub_arguments(contender), qlog_arguments(records.qlog, "stub")].concat();
        let stub = files.start(program, network.public(), "stub", &stub_arguments)?;
        let token = files.token(program)?;
        let mut arguments = files.agent_arguments(contender);
        arguments.extend(["--token".to_owned(), token]);
        arguments.extend(qlog_arguments(records.qlog, "agent"));
        files.wait_for("the sample API", || files.api_is_up().then_some(()))?;
        let agent = files.start(program, network.private(), "agent", &arguments)?;
        files.wait_for("the agent", || files.agent_is_healthy().then_some(()))?;
        program.run(&files.kubeconfig_arguments())?;
        Ok(Self { stub, agent, _api: api, network, program: program.clone(), stub_arguments, directory })
    }

    /// Leads a user to the cluster.
    pub fn kubeconfig(&self) -> PathBuf {
        self.files().kubeconfig()
    }

    /// The namespaces and the link between them.
    pub fn network(&mut self) -> &mut TunNetwork {
        &mut self.network
    }

    /// Kills the stub, as a crash would, and starts it again.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_stub(&mut self) -> anyhow::Result<()> {
        // Dropping what was there kills it; the port is free only then.
        self.stub.child().kill()?;
        self.stub.child().wait()?;
        let files = self.files();
        self.stub = files.start(&self.program, self.network.public(), "stub", &self.stub_arguments)?;
        Ok(())
    }

    /// What the stub has used so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn stub_usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.stub.id()).with_context(|| format!("the stub has ended; {}", self.files().last_words("stub")))
    }

    /// What the agent has used so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn agent_usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.agent.id()).with_context(|| format!("the agent has ended; {}", self.files().last_words("agent")))
    }

    fn files(&self) -> Files<'_> {
        Files { directory: self.directory.path() }
    }
}

/// What the programs keep, and how they are started on it.
#[derive(Clone, Copy)]
struct Files<'a> {
    directory: &'a Path,
}

impl Files<'_> {
    fn path(self, name: &str) -> String {
        // Made of a temporary directory's name and ours.
        self.directory.join(name).to_string_lossy().into_owned()
    }

    fn init_stub(self, program: &Program, host: IpAddr) -> anyhow::Result<()> {
        let (directory, host, port) = (self.path("stub"), host.to_string(), STUB_PORT.to_string());
        program.run(&["stub", "init", "--dir", &directory, "--host", &host, "--port", &port])?;
        let settings = fs::read_to_string(self.stub_config())?;
        ensure!(settings.contains(LIMITS_SECTION), "the stub's settings have no section {LIMITS_SECTION:?}");
        let settings = settings.replace(LIMITS_SECTION, LIMITS);
        fs::write(self.stub_config(), settings).context("cannot raise the stub's limits")
    }

    fn admin_socket(self) -> PathBuf {
        self.directory.join("stub/admin.sock")
    }

    fn stub_config(self) -> String {
        self.path("stub/stub.toml")
    }

    fn kubeconfig(self) -> PathBuf {
        self.directory.join("kubeconfig.yaml")
    }

    fn api_arguments(self) -> Vec<String> {
        ["sample-api", "--listen", API_ADDRESS, "--dir", &self.path("api")].map(str::to_owned).to_vec()
    }

    fn stub_arguments(self, contender: Contender) -> Vec<String> {
        let congestion = contender.congestion.name();
        ["stub", "--config", &self.stub_config(), "--congestion", congestion].map(str::to_owned).to_vec()
    }

    fn agent_arguments(self, contender: Contender) -> Vec<String> {
        let stub = SocketAddr::new(PUBLIC_ADDRESS, STUB_PORT).to_string();
        let api = format!("https://{API_ADDRESS}");
        let (authority, token) = (self.path("api/ca.pem"), self.path("api/agent-token"));
        let state = self.path("agent");
        [
            ["agent", "--stub", &stub].as_slice(),
            &["--carrier", contender.carrier.flag(), "--congestion", contender.congestion.name()],
            &["--state-dir", &state, "--upstream", &api],
            &["--upstream-ca", &authority, "--upstream-token-file", &token],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
    }

    fn kubeconfig_arguments(self) -> Vec<String> {
        let (config, out) = (self.stub_config(), self.path("kubeconfig.yaml"));
        ["kubeconfig", "--config", &config, "--cluster", CLUSTER, "--user", "alice", "--group", USERS, "--out", &out]
            .map(str::to_owned)
            .to_vec()
    }

    fn token(self, program: &Program) -> anyhow::Result<String> {
        let printed = program.run(&["token", "create", "--config", &self.stub_config(), "--cluster", CLUSTER])?;
        Ok(printed.trim().to_owned())
    }

    fn start(self, program: &Program, side: &Namespace, name: &str, arguments: &[String]) -> anyhow::Result<Process> {
        let log =
            fs::File::options().create(true).append(true).open(self.directory.join(name).with_extension("log"))?;
        let mut command = program.command(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        side.spawn(command).with_context(|| format!("cannot start the {name}"))
    }

    fn api_is_up(self) -> bool {
        // The last of its files, written when it listens.
        self.directory.join("api/kubeconfig.yaml").exists()
    }

    /// What the stub says of itself.
    fn status(self) -> Option<StubStatus> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(AdminClient::new(&self.admin_socket()).status()).ok()
    }

    fn agent_is_healthy(self) -> bool {
        self.status().is_some_and(|status| {
            let mut agents = status.clusters.iter().flat_map(|cluster| &cluster.agents);
            agents.any(|agent| agent.state == "healthy")
        })
    }

    fn wait_for<T>(self, what: &str, look: impl Fn() -> Option<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            interrupt::check()?;
            if Instant::now() >= deadline {
                let words = ["api", "stub", "agent"].map(|name| self.last_words(name)).join("\n");
                bail!("{what} was not there within {} s\n{words}", CONNECT_TIMEOUT.as_secs());
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// The last lines of a program's log.
    fn last_words(self, name: &str) -> String {
        let log = fs::read_to_string(self.directory.join(name).with_extension("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(5).collect();
        let lines = lines.into_iter().rev().collect::<Vec<_>>().join("\n  ");
        format!("{name} said last:\n  {lines}")
    }
}

/// Has an end of the tunnel record its connections.
fn qlog_arguments(directory: Option<&Path>, end: &str) -> Vec<String> {
    let directory = directory.map(|directory| directory.join(end).to_string_lossy().into_owned());
    directory.map(|directory| vec!["--qlog".to_owned(), directory]).unwrap_or_default()
}

fn scratch_directory() -> anyhow::Result<TempDir> {
    tempfile::Builder::new().prefix("netem-tests-").tempdir().context("cannot make a temporary directory")
}
