//! The sample API, stubs and agents as processes of the real program.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::eventually;
use super::process::{Finished, Input, Process};

/// The group that the sample API lets do everything with its objects.
pub const USERS: &str = "qtunnel:users";

/// The group that the sample API lets act as other users and groups.
pub const IMPERSONATORS: &str = "qtunnel:impersonators";

/// The program with these arguments, not started yet. Nothing of the test's environment reaches it.
pub fn qtunnel(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qtunnel"));
    command.env_clear().args(arguments);
    command
}

/// Runs the program to its end.
pub fn run_qtunnel(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Finished {
    let command = qtunnel(arguments);
    let name = format!("qtunnel {}", arguments_of(&command));
    Process::run(name, command, Input::None)
}

fn arguments_of(command: &Command) -> String {
    command.get_args().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Starts the program in the background, logging JSON.
fn start_qtunnel(name: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Process {
    start_qtunnel_in(name, arguments, &[])
}

/// The same with variables in its environment.
fn start_qtunnel_in(
    name: &str,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    environment: &[(String, String)],
) -> Process {
    let mut command = qtunnel(arguments);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.env("QTUNNEL_LOG_FORMAT", "json").env("QTUNNEL_LOG", "info,qtunnel=debug");
    Process::start(name, command, Input::None)
}

/// How an agent reaches an API server.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The address, `http://` or `https://`.
    pub url: String,
    /// Its certificate authority.
    pub ca: Option<PathBuf>,
    /// The agent's token for it.
    pub token_file: Option<PathBuf>,
}

/// The sample Kubernetes API.
pub struct SampleApi {
    /// Its process.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
    dir: TempDir,
}

impl SampleApi {
    /// Starts one on a port of its own.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut process =
            start_qtunnel("the sample API", [OsStr::new("sample-api"), "--dir".as_ref(), dir.path().as_ref()]);
        let address = listening_address(&mut process, "the sample API listens");
        Self { process, address, dir }
    }

    /// How an agent reaches it.
    pub fn upstream(&self) -> Upstream {
        Upstream {
            url: format!("https://{}", self.address),
            ca: Some(self.dir.path().join("ca.pem")),
            token_file: Some(self.dir.path().join("agent-token")),
        }
    }

    /// An administrator's kubeconfig that goes there without a tunnel.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig.yaml")
    }
}

fn listening_address(process: &mut Process, message: &str) -> SocketAddr {
    process.wait_for_log(message)["address"].as_str().unwrap().parse().unwrap()
}

/// How a stub is to be.
#[derive(Debug, Clone, Default)]
pub struct StubOptions {
    base_domain: Option<String>,
    hosts: Vec<String>,
    settings: Vec<(&'static str, &'static str, toml::Value)>,
}

impl StubOptions {
    /// With host names below this domain for clusters.
    pub fn base_domain(mut self, domain: &str) -> Self {
        self.base_domain = Some(domain.to_owned());
        self
    }

    /// With a certificate for this host, besides loopback's.
    pub fn host(mut self, host: &str) -> Self {
        self.hosts.push(host.to_owned());
        self
    }

    /// With this key in a section of the settings file; the section "" is the top.
    pub fn set(mut self, section: &'static str, key: &'static str, value: impl Into<toml::Value>) -> Self {
        self.settings.push((section, key, value.into()));
        self
    }
}

/// A stub, with keys and settings of its own.
pub struct Stub {
    /// Its process.
    pub process: Process,
    /// Where it listens, TCP and UDP.
    pub address: SocketAddr,
    dir: TempDir,
}

impl Stub {
    /// Makes a stub with `qtunnel stub init` and starts it on a port of its own.
    pub fn start(options: StubOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        init_stub_for(&dir.path().join("stub"), options.base_domain.as_deref(), &options.hosts).ok();
        Self::start_in(dir, &options)
    }

    /// Starts another one with the store of this one, on a port of its own.
    pub fn start_another(&self, options: StubOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("stub").join("stub.toml");
        std::fs::create_dir(config.parent().unwrap()).unwrap();
        std::fs::copy(self.config(), &config).unwrap();
        let settings: toml::Table = std::fs::read_to_string(&config).unwrap().parse().unwrap();
        let own = |store: &toml::Value| store.get("path").is_none() && store["kind"].as_str() == Some("directory");
        if settings.get("store").is_none_or(own) {
            let store = self.state_dir().to_str().unwrap().to_owned();
            change_settings(&config, &[("store", "kind", "directory".into()), ("store", "path", store.into())]);
        }
        Self::start_in(dir, &options)
    }

    /// Starts the stub whose settings are in `stub/stub.toml` of a directory, with these options.
    pub fn start_in(dir: TempDir, options: &StubOptions) -> Self {
        let config = dir.path().join("stub").join("stub.toml");
        change_settings(&config, &[("", "listen", "127.0.0.1:0".into())]);
        change_settings(&config, &options.settings);
        let mut process = start_stub(&config);
        let address = listening_address(&mut process, "stub listens");
        // For kubeconfigs, and for a restart on the same port.
        let public = toml::Value::from(format!("127.0.0.1:{}", address.port()));
        change_settings(&config, &[("", "listen", public.clone()), ("", "public_address", public)]);
        Self { process, address, dir }
    }

    /// Its settings file.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("stub").join("stub.toml")
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("stub")
    }

    /// Where it answers over plain HTTP; needs `listen` under `[admin]`. From now on it is the same after a restart.
    pub fn admin_address(&mut self) -> SocketAddr {
        let address = listening_address(&mut self.process, "admin address listens");
        change_settings(&self.config(), &[("admin", "listen", address.to_string().into())]);
        address
    }

    /// Kills it and starts it again on the same port with the same settings file.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = start_stub(&self.config());
        listening_address(&mut self.process, "stub listens");
    }

    /// A join token for one agent of `cluster`, which exists from now on.
    pub fn token(&self, cluster: &str) -> String {
        self.token_with(cluster, &[])
    }

    /// The same with more arguments for `qtunnel token create`.
    pub fn token_with(&self, cluster: &str, arguments: &[&str]) -> String {
        let config = self.config();
        let fixed = ["token", "create", "--config", config.to_str().unwrap(), "--cluster", cluster];
        run_qtunnel(fixed.iter().chain(arguments)).ok().trim().to_owned()
    }

    /// A kubeconfig file with a fresh certificate.
    pub fn kubeconfig(&self, cluster: &str, user: &str, groups: &[&str]) -> PathBuf {
        let path = self.dir.path().join(format!("{cluster}-{user}.yaml").replace([':', '/'], "_"));
        let config = self.config();
        let mut arguments = vec!["kubeconfig", "--config", config.to_str().unwrap(), "--cluster", cluster];
        arguments.extend(["--user", user, "--out", path.to_str().unwrap()]);
        arguments.extend(groups.iter().flat_map(|group| ["--group", group]));
        run_qtunnel(arguments).ok();
        path
    }

    /// What `qtunnel status` prints as JSON.
    pub fn status(&self) -> Value {
        let config = self.config();
        let output = run_qtunnel(["status", "--output", "json", "--config", config.to_str().unwrap()]).ok();
        serde_json::from_str(&output).unwrap()
    }

    /// The agents of `cluster` in the status.
    pub fn agents(&self, cluster: &str) -> Vec<Value> {
        let status = self.status();
        let clusters = status["clusters"].as_array().unwrap();
        let cluster = clusters.iter().find(|entry| entry["id"] == cluster);
        cluster.and_then(|cluster| cluster["agents"].as_array()).cloned().unwrap_or_default()
    }

    /// Requests open on all agents of `cluster`.
    pub fn open_streams(&self, cluster: &str) -> u64 {
        self.agents(cluster).iter().map(|agent| agent["openStreams"].as_u64().unwrap()).sum()
    }

    /// Waits until `count` agents of `cluster` are connected and their API servers answer.
    pub fn wait_for_agents(&self, cluster: &str, count: usize) {
        eventually(&format!("{count} healthy agents of {cluster}"), || {
            let agents = self.agents(cluster);
            (agents.len() == count && agents.iter().all(|agent| agent["state"] == "healthy")).then_some(())
        });
    }

    /// Waits until no request is open on agents of `cluster`.
    pub fn wait_until_idle(&self, cluster: &str) {
        eventually(&format!("no open stream of {cluster}"), || (self.open_streams(cluster) == 0).then_some(()));
    }
}

/// `qtunnel stub init` for loopback.
pub fn init_stub(dir: &Path, base_domain: Option<&str>) -> Finished {
    init_stub_for(dir, base_domain, &[])
}

fn init_stub_for(dir: &Path, base_domain: Option<&str>, hosts: &[String]) -> Finished {
    let hosts = [&["127.0.0.1".to_owned(), "localhost".to_owned()], hosts].concat().join(",");
    let mut arguments = vec!["stub", "init", "--host", &hosts, "--dir", dir.to_str().unwrap()];
    arguments.extend(base_domain.iter().flat_map(|domain| ["--base-domain", domain]));
    run_qtunnel(arguments)
}

/// `qtunnel stub`, in the background.
pub fn start_stub(config: &Path) -> Process {
    // More than a small machine would give it: what only several threads bring up is to be found here.
    start_qtunnel(
        "the stub",
        ["stub", "--threads", "2", "--config"].map(OsStr::new).into_iter().chain([config.as_ref()]),
    )
}

/// Sets keys in sections of a settings file.
pub fn change_settings(config: &Path, settings: &[(&str, &str, toml::Value)]) {
    let mut table: toml::Table = std::fs::read_to_string(config).unwrap().parse().unwrap();
    for (section, key, value) in settings {
        let section = match *section {
            "" => &mut table,
            name => table.entry(name).or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap(),
        };
        section.insert((*key).to_owned(), value.clone());
    }
    std::fs::write(config, table.to_string()).unwrap();
}

/// How an agent is to be.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// More arguments for `qtunnel agent`.
    pub arguments: Vec<String>,
    /// The join token. Default: a fresh one.
    pub token: Option<String>,
    /// Where it seeks the stub. Default: where the stub listens.
    pub stub: Option<SocketAddr>,
    /// Variables of its environment.
    pub environment: Vec<(String, String)>,
}

impl AgentOptions {
    /// With this argument more.
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }
}

/// An agent, with a state directory of its own.
pub struct Agent {
    /// Its process.
    pub process: Process,
    /// Everything but the token.
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    dir: TempDir,
}

impl Agent {
    /// Starts one; it joins and connects in the background.
    pub fn start(stub: &Stub, cluster: &str, upstream: &Upstream, options: AgentOptions) -> Self {
        let port = options.stub.unwrap_or(stub.address).port();
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], port)), stub, cluster, upstream, options)
    }

    /// The same, with the stub at another address than its own: behind a relay.
    pub fn start_at(
        address: SocketAddr,
        stub: &Stub,
        cluster: &str,
        upstream: &Upstream,
        options: AgentOptions,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("agent");
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let stub_address = address.to_string();
        let mut arguments = ["agent", "--stub", &stub_address, "--upstream", &upstream.url].map(str::to_owned).to_vec();
        arguments.extend(["--state-dir".to_owned(), path(&state)]);
        arguments.extend(upstream.ca.iter().flat_map(|ca| ["--upstream-ca".to_owned(), path(ca)]));
        arguments.extend(upstream.token_file.iter().flat_map(|file| ["--upstream-token-file".to_owned(), path(file)]));
        // Every test can be run over either carrier.
        let carrier = std::env::var("QTUNNEL_TEST_CARRIER").ok().map(|carrier| format!("--carrier={carrier}"));
        arguments.extend(carrier.filter(|_| !options.arguments.iter().any(|other| other.starts_with("--carrier="))));
        arguments.extend(options.arguments);
        let token = options.token.unwrap_or_else(|| stub.token(cluster));
        let environment = options.environment;
        let with_token = arguments.iter().map(String::as_str).chain(["--token", &token]);
        let process = start_qtunnel_in("the agent", with_token, &environment);
        Self { process, arguments, environment, dir }
    }

    /// Where it keeps its key and certificate.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    /// Kills it and starts it again with the same state directory and without a token.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = start_qtunnel_in("the agent", &self.arguments, &self.environment);
    }

    /// The same with a token.
    pub fn restart_with_token(&mut self, token: &str) {
        self.process.kill();
        self.process = start_qtunnel("the agent", self.arguments.iter().map(String::as_str).chain(["--token", token]));
    }
}

/// A sample API, a stub and an agent that work together.
pub struct Tunnel {
    /// The public side.
    pub stub: Stub,
    /// The private side.
    pub agent: Agent,
    /// What is behind it.
    pub api: SampleApi,
}

/// The cluster of a [`Tunnel`].
pub const CLUSTER: &str = "c1";

impl Tunnel {
    /// Starts all of it and waits until requests can pass.
    pub fn start() -> Self {
        Self::start_with(StubOptions::default(), AgentOptions::default())
    }

    /// The same with options.
    pub fn start_with(stub: StubOptions, agent: AgentOptions) -> Self {
        let api = SampleApi::start();
        let stub = Stub::start(stub);
        let agent = Agent::start(&stub, CLUSTER, &api.upstream(), agent);
        stub.wait_for_agents(CLUSTER, 1);
        Self { stub, agent, api }
    }

    /// A kubeconfig for a user who may do everything with the objects of the sample API.
    pub fn kubeconfig(&self) -> PathBuf {
        self.stub.kubeconfig(CLUSTER, "alice", &[USERS])
    }

    /// Waits until no request is open.
    pub fn wait_until_idle(&self) {
        self.stub.wait_until_idle(CLUSTER);
    }
}
