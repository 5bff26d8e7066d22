//! The commands, each in a file of its own, and what they share.

pub mod link;
pub mod list;
pub mod matrix;
pub mod measure;
pub mod relay;
pub mod run;
pub mod scale;
pub mod simulate;

use std::path::PathBuf;

use clap::Args;
use netem_tests::profile::{Event, Profile, Profiles};

#[derive(Args)]
pub struct NetworkArgs {
    /// The network, by name; see `list`.
    #[arg(long, value_name = "NAME")]
    profile: String,
    /// Profiles of your own, in the form of profiles.toml.
    #[arg(long, value_name = "FILE")]
    profiles: Option<PathBuf>,
    /// The same seed and the same packets give the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl NetworkArgs {
    fn profile(&self) -> anyhow::Result<Profile> {
        Ok(profiles(self.profiles.clone())?.get(&self.profile)?.clone())
    }
}

/// The profiles that come with this package, and those of the user's file.
fn profiles(file: Option<PathBuf>) -> anyhow::Result<Profiles> {
    Ok(file.map_or_else(Profiles::built_in, |file| Profiles::with_file(&file))?)
}

fn announce(event: Event, happened: std::io::Result<()>) {
    match happened {
        Ok(()) => eprintln!("at {:?}: {:?}", event.at, event.action),
        Err(error) => eprintln!("at {:?}: {:?} failed: {error}", event.at, event.action),
    }
}
