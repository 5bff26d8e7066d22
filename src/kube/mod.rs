//! What is Kubernetes.
