//! The sample Kubernetes API and the demo.

pub mod api;
mod cluster;

pub use cluster::SampleCluster;
