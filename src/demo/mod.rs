//! The sample Kubernetes API, and the demo: stub, agent and cluster in one process, checked through the tunnel.

pub mod api;
pub mod checks;
pub mod client;
mod cluster;
pub mod report;
mod scratch;
mod tunnel;

pub use cluster::{SampleCluster, SampleClusterError};
pub use tunnel::{DemoCluster, DemoError, DemoTunnel};
