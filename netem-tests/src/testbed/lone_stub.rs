//! A stub by itself, for agents that are not part of a testbed.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Context;
use tempfile::TempDir;

use super::{Files, Program, STUB_PORT, Usage};
use crate::tun::{Namespace, Process};

/// A stub in a namespace that has nothing but loopback.
#[derive(Debug)]
pub struct LoneStub {
    // In this order: the program ends before its namespace.
    stub: Process,
    side: Namespace,
    program: Program,
    directory: TempDir,
}

impl LoneStub {
    /// Starts one.
    ///
    /// # Errors
    /// When a namespace cannot be made or the program does not start.
    pub fn start(program: &Program) -> anyhow::Result<Self> {
        let side = Namespace::with_loopback("stub")?;
        let directory = super::scratch_directory()?;
        Files { directory: directory.path() }.init_stub(program, Ipv4Addr::LOCALHOST.into())?;
        Self::run(side, program.clone(), directory)
    }

    /// The same after a crash.
    ///
    /// # Errors
    /// When it does not start again.
    pub fn restarted(self) -> anyhow::Result<Self> {
        let Self { stub, side, program, directory } = self;
        drop(stub);
        Self::run(side, program, directory)
    }

    fn run(side: Namespace, program: Program, directory: TempDir) -> anyhow::Result<Self> {
        let files = Files { directory: directory.path() };
        // A socket that is left from before would seem to be there already.
        let _ = std::fs::remove_file(files.admin_socket());
        let stub =
            files.start(&program, &side, "stub", &["stub".to_owned(), "--config".to_owned(), files.stub_config()])?;
        files.wait_for("the stub", || files.status())?;
        Ok(Self { stub, side, program, directory })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, STUB_PORT).into()
    }

    /// Where it can be reached from.
    pub fn side(&self) -> &Namespace {
        &self.side
    }

    /// A directory that vanishes with it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A join token for each of so many clusters.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn tokens(&self, clusters: usize, uses: usize) -> anyhow::Result<Vec<String>> {
        let config = Files { directory: self.directory.path() }.stub_config();
        let token = |number: usize| {
            let (cluster, uses) = (format!("c{number}"), uses.to_string());
            let create = ["token", "create", "--config", &config, "--cluster", &cluster, "--uses", &uses];
            Ok(self.program.run(&create)?.trim().to_owned())
        };
        (0..clusters).map(token).collect()
    }

    /// How many agents are connected.
    ///
    /// # Errors
    /// When it does not say so.
    pub fn connected_agents(&self) -> anyhow::Result<usize> {
        let status = Files { directory: self.directory.path() }.status().context("the stub does not answer")?;
        Ok(status.clusters.iter().map(|cluster| cluster.agents.len()).sum())
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        Ok(Usage::of(self.stub.id())?)
    }
}
