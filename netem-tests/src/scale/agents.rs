//! Many agents on one stub.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::interrupt;
use crate::testbed::{LoneStub, Program};
use crate::tun::Process;

/// What many agents cost a stub that has nothing else to do.
#[derive(Debug, Clone, Serialize)]
pub struct AgentFigures {
    /// How many.
    pub agents: usize,
    /// Seconds until all of them had joined (a certificate for each) and were connected, both ends on this machine.
    pub joined_in: f64,
    /// Seconds until all of them were connected again when the stub had been started again.
    pub connected_in: f64,
    /// What the stub's memory grew by, for each, in KiB.
    pub kibibytes_each: f64,
    /// What the stub then used of one core with nobody asking for anything.
    pub idle_load: f64,
}

/// How many agents share a process.
const IN_ONE_PROCESS: usize = 1250;

/// How long they may take to be there.
const PATIENCE: Duration = Duration::from_secs(600);

/// Between two questions how many are there; each costs the stub a little.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// After all are there, until they have settled; and how long the idle stub is measured.
const SETTLE: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(30);

/// Starts so many agents and measures the stub. This program has to be `netem-tests`, which is started again for them.
///
/// # Errors
/// When they cannot be started or do not all get through.
pub fn agents(program: &Program, count: usize) -> anyhow::Result<AgentFigures> {
    let stub = LoneStub::start(program)?;
    let clusters = count.div_ceil(100).max(1);
    let tokens = stub.tokens(clusters, 2 * count.div_ceil(clusters))?;
    let directory = stub.directory().join("agents");
    std::fs::create_dir(&directory)?;
    let file = directory.join("tokens");
    std::fs::write(&file, tokens.join("\n"))?;
    let before = stub.usage()?.memory;

    let began = Instant::now();
    let _crowds = start(&stub, &directory, &file, count)?;
    wait_for(&stub, count)?;
    let joined_in = began.elapsed().as_secs_f64();
    interrupt::wait(SETTLE)?;
    let kibibytes_each = stub.usage()?.memory.saturating_sub(before) as f64 / 1024.0 / count as f64;
    let used = stub.usage()?;
    interrupt::wait(IDLE)?;
    let idle_load = (stub.usage()? - used).processor_time.as_secs_f64() / IDLE.as_secs_f64();

    let stub = stub.restarted()?;
    let began = Instant::now();
    wait_for(&stub, count)?;
    let connected_in = began.elapsed().as_secs_f64();
    Ok(AgentFigures { agents: count, joined_in, connected_in, kibibytes_each, idle_load })
}

fn start(stub: &LoneStub, directory: &Path, tokens: &Path, count: usize) -> anyhow::Result<Vec<Process>> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let starts = (0..count).step_by(IN_ONE_PROCESS).map(|first| {
        let mut command = Command::new(&program);
        command.args(["agents", "--stub", &stub.address().to_string(), "--first", &first.to_string()]);
        command.args(["--count", &IN_ONE_PROCESS.min(count - first).to_string()]);
        command.arg("--directory").arg(directory).arg("--tokens").arg(tokens);
        // Each agent has a buffer of 3 MB for packets, most of which is never touched. glibc would take the next one from its heap
        // once one was freed, and clear all of it (mallopt(3), M_MMAP_THRESHOLD): too much for thousands on one machine.
        command.env("MALLOC_MMAP_THRESHOLD_", "262144");
        command.stdin(Stdio::null());
        stub.side().spawn(command).context("cannot start agents")
    });
    starts.collect()
}

fn wait_for(stub: &LoneStub, count: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let connected = stub.connected_agents()?;
        eprintln!("{connected} agents");
        if connected >= count {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("only {connected} of {count} agents were connected within {} s", PATIENCE.as_secs());
        }
        interrupt::wait(LOOK_INTERVAL)?;
    }
}
