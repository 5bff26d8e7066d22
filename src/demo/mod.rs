//! The sample Kubernetes API and the demo.

pub mod api;
