//! qtunnel: a tunnel to the Kubernetes API of clusters that have no public address.
//!
//! An agent in the private network dials out over QUIC to a public access node, the stub; users point kubectl at the
//! stub. Every request travels on a bidirectional QUIC stream of its own. The folders are the rooms:
//!
//! - [`wire`]: the protocol between stub and agent, without any IO.
//! - [`carrier`]: what moves streams between the two (QUIC).
//! - [`kube`]: what is Kubernetes: request info, `Status` errors, impersonation, kubeconfig files.
//! - [`pki`]: certificate authorities, join tokens, enrolment.
//! - [`trace`]: spans of requests, towards a collector.
//! - [`stub`]: the public side. [`agent`]: the private side. Neither knows the other.
//! - [`demo`]: the sample Kubernetes API, and the two sides joined in one process.
//! - [`cli`]: every command and flag.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod agent;
pub mod carrier;
pub mod cli;
pub mod demo;
pub mod kube;
pub mod pki;
pub mod stub;
pub mod trace;
pub mod wire;
