//! A process of a test: its output in files, its end awaited with a deadline, and killed when dropped.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

use super::{DEADLINE, INTERVAL, eventually};

/// How much of each output is shown when a test fails, in bytes.
const SHOWN: usize = 16 << 10;

/// A running (or ended) process in a process group of its own.
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    output: TempDir,
}

/// What a process leaves behind.
#[derive(Debug, Clone)]
pub struct Finished {
    /// What was run.
    pub name: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error, as text.
    pub stderr: String,
}

/// What a process reads.
pub enum Input {
    /// Nothing: the end at once.
    None,
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// What the test writes to [`Process::stdin`].
    Piped,
    /// This file or terminal.
    From(Stdio),
}

impl Process {
    /// Starts `command`; `name` stands for it in messages.
    pub fn start(name: impl Into<String>, command: Command, input: Input) -> Self {
        Self::start_with_stdout(name, command, input, None)
    }

    /// Like [`Process::start`], with its standard output going elsewhere than into a file.
    pub fn start_with_stdout(
        name: impl Into<String>,
        mut command: Command,
        input: Input,
        stdout: Option<Stdio>,
    ) -> Self {
        let name = name.into();
        let output = tempfile::tempdir().unwrap();
        let file = |name: &str| File::create(output.path().join(name)).unwrap();
        let (stdout_file, stderr) = (file("stdout"), file("stderr"));
        command.stdout(stdout.unwrap_or_else(|| stdout_file.into())).stderr(stderr).process_group(0);
        let mut bytes = None;
        command.stdin(match input {
            Input::None => Stdio::null(),
            Input::From(file) => file,
            Input::Piped => Stdio::piped(),
            Input::Bytes(input) => {
                bytes = Some(input);
                Stdio::piped()
            }
        });
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        if let Some(bytes) = bytes {
            let mut stdin = child.stdin.take().unwrap();
            // A process that ends without having read everything is no failure of the test's.
            std::thread::spawn(move || stdin.write_all(&bytes));
        }
        Self { name, child, status: None, output }
    }

    /// Runs `command` to its end.
    pub fn run(name: impl Into<String>, command: Command, input: Input) -> Finished {
        Self::start(name, command, input).finish()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, if that is piped. Dropping it is the end of the input.
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("Input::Piped, and not taken yet")
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        assert!(self.status.is_none(), "{} has ended", self.name);
        kill_process(self.pid(), signal).unwrap();
    }

    /// Ends it with SIGKILL, and whatever it started.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            let _ = kill_process_group(self.pid(), Signal::KILL);
            self.status = Some(self.child.wait().unwrap());
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_at_most(DEADLINE)
    }

    /// Waits for its end, which has to come within `limit`.
    pub fn wait_at_most(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} did not end within {limit:?}", self.name);
            std::thread::sleep(INTERVAL);
        }
    }

    /// Waits for its end and gives what it wrote.
    pub fn finish(mut self) -> Finished {
        let status = self.wait();
        let (stdout, stderr) = (self.stdout(), self.stderr());
        Finished { name: self.name.clone(), status, stdout, stderr }
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> Vec<u8> {
        self.read("stdout")
    }

    /// The same as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout()).into_owned()
    }

    /// What it has written to standard error so far, as text.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.read("stderr")).into_owned()
    }

    /// Waits until its standard output satisfies `condition`, and gives the output.
    pub fn wait_for_stdout(&mut self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let what = format!("{what} on the standard output of {}", self.name);
        eventually(&what, || {
            // In this order: what a process wrote before its end is seen.
            let ended = self.ended();
            let text = self.stdout_text();
            match (condition(&text), ended) {
                (true, _) => Some(text),
                (false, None) => None,
                (false, Some(status)) => panic!("{} ended ({status}) without {what}", self.name),
            }
        })
    }

    /// The lines of a `--log-format json` log so far whose message contains `message`.
    pub fn logged(&self, message: &str) -> Vec<Value> {
        let stderr = self.stderr();
        let lines = stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"].as_str().is_some_and(|text| text.contains(message))).collect()
    }

    /// Waits for such a line, and gives the first.
    pub fn wait_for_log(&mut self, message: &str) -> Value {
        eventually(&format!("{message:?} in the log of {}", self.name), || {
            let ended = self.ended();
            let line = self.logged(message).into_iter().next();
            assert!(line.is_some() || ended.is_none(), "{} ended before it logged {message:?}", self.name);
            line
        })
    }

    /// How much memory it has resident, in bytes (`proc(5)`, `VmRSS`).
    pub fn resident_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the process runs");
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.output.path().join(name)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.id().cast_signed()).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            for name in ["stdout", "stderr"] {
                let bytes = self.read(name);
                let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(SHOWN)..]).into_owned();
                if !tail.is_empty() {
                    println!("--- {name} of {}:\n{tail}\n---", self.name);
                }
            }
        }
    }
}

impl Finished {
    /// Its standard output as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its exit code; 128 and the signal for a process that was killed.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }

    /// Its standard output, provided it succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{} failed ({}): {}{}", self.name, self.status, self.stdout_text(), self.stderr);
        self.stdout_text()
    }

    /// Its standard error, provided it failed by itself.
    #[track_caller]
    pub fn failed(self) -> String {
        let code = self.status.code();
        assert!(code.is_some_and(|code| code != 0), "{} ended with {}: {}", self.name, self.status, self.stdout_text());
        self.stderr
    }
}
