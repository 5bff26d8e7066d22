//! The sample Kubernetes API and the demo.
