//! Real kubectls, each with a home folder and a cache of its own. `tests/setup` provides them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::process::{Finished, Input, Process};

/// A kubectl with a kubeconfig.
pub struct Kubectl {
    name: &'static str,
    program: PathBuf,
    kubeconfig: PathBuf,
    environment: Vec<(&'static str, &'static str)>,
    home: TempDir,
}

impl Kubectl {
    /// The one of `QTUNNEL_KUBECTL` or of the `PATH`: it streams over WebSocket, as every version since 1.31.
    pub fn newest(kubeconfig: &Path) -> Option<Self> {
        let program = std::env::var_os("QTUNNEL_KUBECTL").map(PathBuf::from).or_else(|| in_path("kubectl"));
        Self::of("kubectl", program, kubeconfig)
    }

    /// The same, made to stream over SPDY.
    pub fn newest_with_spdy(kubeconfig: &Path) -> Option<Self> {
        let mut kubectl = Self::newest(kubeconfig)?;
        kubectl.name = "kubectl with SPDY";
        kubectl.environment =
            vec![("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")];
        Some(kubectl)
    }

    /// The old one of `QTUNNEL_KUBECTL_SPDY` or `target/kubectl-spdy`: it knows nothing but SPDY.
    pub fn old(kubeconfig: &Path) -> Option<Self> {
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kubectl-spdy/usr/bin/kubectl");
        let program = std::env::var_os("QTUNNEL_KUBECTL_SPDY").map(PathBuf::from);
        Self::of("old kubectl", program.or(Some(unpacked)), kubeconfig)
    }

    /// The newest over WebSocket and over SPDY, and the old one: as many of them as there are.
    pub fn all(kubeconfig: &Path) -> Vec<Self> {
        [Self::newest(kubeconfig), Self::newest_with_spdy(kubeconfig), Self::old(kubeconfig)]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The newest and the old one: as many of them as there are.
    pub fn versions(kubeconfig: &Path) -> Vec<Self> {
        [Self::newest(kubeconfig), Self::old(kubeconfig)].into_iter().flatten().collect()
    }

    fn of(name: &'static str, program: Option<PathBuf>, kubeconfig: &Path) -> Option<Self> {
        let Some(program) = program.filter(|program| program.is_file()) else {
            println!("skipped: there is no {name}; tests/setup provides one");
            return None;
        };
        let home = tempfile::tempdir().unwrap();
        Some(Self { name, program, kubeconfig: kubeconfig.to_owned(), environment: Vec::new(), home })
    }

    /// Which one it is, for messages.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its home folder, which is its working directory too.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Writes a file into the home folder and gives its path.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.home().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs it to its end.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        self.run_with_input(arguments, Input::None)
    }

    /// Runs it to its end with this input.
    pub fn run_with_input(&self, arguments: &[&str], input: Input) -> Finished {
        self.start_with_input(arguments, input).finish()
    }

    /// Runs it; it has to succeed, and gives what it printed.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok()
    }

    /// Runs it; it has to fail, and gives what it complained about.
    #[track_caller]
    pub fn fails(&self, arguments: &[&str]) -> String {
        self.run(arguments).failed()
    }

    /// Starts it.
    pub fn start(&self, arguments: &[&str]) -> Process {
        self.start_with_input(arguments, Input::None)
    }

    /// Starts it with this input.
    pub fn start_with_input(&self, arguments: &[&str], input: Input) -> Process {
        Process::start(self.describe(arguments), self.command(arguments), input)
    }

    /// Starts it with this terminal as its input and output.
    pub fn start_on_terminal(&self, arguments: &[&str], input: Stdio, output: Stdio) -> Process {
        let (name, command) = (self.describe(arguments), self.command(arguments));
        Process::start_with_stdout(name, command, Input::From(input), Some(output))
    }

    fn describe(&self, arguments: &[&str]) -> String {
        format!("{} {}", self.name, arguments.join(" "))
    }

    /// What it is started with.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("HOME", self.home()).env("PATH", "/usr/bin:/bin").env("TERM", "xterm");
        command.env("KUBECONFIG", &self.kubeconfig).envs(self.environment.iter().copied());
        command.current_dir(self.home()).args(arguments);
        command
    }
}

/// A program of the `PATH`.
pub fn in_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}
