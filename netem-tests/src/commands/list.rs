//! `list`.

use std::path::PathBuf;
use std::process::ExitCode;

use netem_tests::backend::Backend;
use netem_tests::link::PathSettings;
use netem_tests::scenario::Scenario;

use super::profiles;

/// Shows what there is by name.
pub fn list(file: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    println!("Profiles:");
    for profile in profiles(file)?.iter() {
        println!("  {:<20}{}", profile.name, profile.about);
        if profile.up == profile.down {
            println!("  {:<20}  both ways: {}", "", settings(&profile.up));
        } else {
            println!("  {:<20}  up: {}; down: {}", "", settings(&profile.up), settings(&profile.down));
        }
    }
    println!("\nScenarios:");
    for Scenario { name, about, .. } in Scenario::all() {
        println!("  {name:<20}{about}");
    }
    println!("\nBackends:");
    for backend in Backend::ALL {
        let state = backend.probe().map_or_else(|reason| format!("not here: {reason}"), |()| "available".to_owned());
        println!("  {:<20}{}\n  {:<20}  {state}", backend.name(), backend.about(), "");
    }
    Ok(ExitCode::SUCCESS)
}

/// One direction in one line.
fn settings(path: &PathSettings) -> String {
    let mut parts = vec![format!("delay {:?}", path.delay)];
    if !path.jitter.is_zero() {
        parts.push(format!("jitter {:?}", path.jitter));
    }
    if let Some(rate) = path.rate {
        parts.push(format!("rate {rate}"));
    }
    let loss = path.loss.long_run();
    if loss > 0.0 {
        parts.push(format!("loss {:.2}%", loss * 100.0));
    }
    parts.join(", ")
}
