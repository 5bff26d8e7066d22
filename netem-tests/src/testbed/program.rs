//! The program under test.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// The `qtunnel` program.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
}

impl Program {
    /// This one, or else that [of the workspace](Self::of_workspace).
    ///
    /// # Errors
    /// When the one of the workspace is not to be had.
    pub fn choose(path: Option<&Path>) -> anyhow::Result<Self> {
        path.map_or_else(Self::of_workspace, |path| Ok(Self { path: path.to_owned() }))
    }

    /// The one of this workspace, built now the way this program was built: where cargo runs us it is never stale.
    ///
    /// # Errors
    /// When it cannot be built, or is not there and cargo does not run us.
    pub fn of_workspace() -> anyhow::Result<Self> {
        let path = target_directory()?.join("qtunnel");
        if let Some(cargo) = std::env::var_os("CARGO") {
            build(&cargo)?;
        }
        ensure!(path.exists(), "there is no {}: run this by `cargo run`, or say --program FILE", path.display());
        Ok(Self { path })
    }

    /// It with these arguments and nothing of our environment, not started yet.
    pub fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(&self.path);
        command.env_clear().args(arguments);
        command
    }

    /// Runs it to its end; gives what it printed.
    ///
    /// # Errors
    /// When it cannot be started or fails; says what it said.
    pub fn run(&self, arguments: &[impl AsRef<OsStr>]) -> anyhow::Result<String> {
        let output = self.command(arguments).output().with_context(|| format!("cannot run {}", self.path.display()))?;
        if !output.status.success() {
            let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
            bail!("`qtunnel {}` failed: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn build(cargo: &OsStr) -> anyhow::Result<()> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "qtunnel", "--bin", "qtunnel", "--manifest-path"]).arg(manifest);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let status = command.status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo could not build qtunnel");
    Ok(())
}

/// Where cargo put this program; test programs are one level deeper.
fn target_directory() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let directory = program.parent().unwrap_or(Path::new("/"));
    let is_deeper = directory.file_name().is_some_and(|name| name == "deps");
    Ok(if is_deeper { directory.parent().unwrap_or(directory) } else { directory }.to_owned())
}
