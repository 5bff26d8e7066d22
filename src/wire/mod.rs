//! The wire protocol between stub and agent, without IO.

mod identity;
mod names;

pub use identity::Identity;
pub use names::{AgentName, ClusterId, InvalidName};
