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
//!
//! # What to build on
//!
//! A program can have a stub or an agent inside. [`stub::Stub::builder`] takes the settings of `stub.toml` and what replaces a part
//! of them:
//!
//! | part | trait | example |
//! | --- | --- | --- |
//! | who users are | [`stub::authenticate::Authenticator`] | `examples/authenticator.rs` |
//! | what they may do | [`stub::authorize::Authorizer`] | `examples/authorizer.rs` |
//! | where it is told who did what | [`stub::audit::AuditSink`] | `examples/audit_sink.rs` |
//! | which agent takes a request | [`stub::select::AgentSelector`] | `examples/agent_selector.rs` |
//! | agents' TLS sessions | [`stub::sessions::SessionStore`] | `examples/session_store.rs` |
//! | keys, join tokens, clusters | [`pki::Store`] | `examples/store.rs` |
//! | another way in for clients | [`stub::front::Front`] | `examples/front.rs` |
//! | which of several stubs leads | [`stub::election::Election`] | `examples/election.rs` |
//!
//! [`stub::StubHandle`] is what the program can do with its running stub: [`request`](stub::StubHandle::request) makes one
//! request in the name of a user;
//! [`dial`](stub::StubHandle::dial) connects to any address that an agent allows (`examples/dial.rs`). [`agent::Agent::builder`]
//! sets an agent up.
//!
//! ```no_run
//! use qtunnel::stub::authorize::{Attributes, Authorizer, Deciding, Decision};
//! use qtunnel::stub::{Stub, StubConfig};
//! use tokio_util::sync::CancellationToken;
//!
//! /// Everybody may read, nobody may write.
//! #[derive(Debug)]
//! struct ReadOnly;
//!
//! impl Authorizer for ReadOnly {
//!     fn authorize<'a>(&'a self, attributes: Attributes<'a>) -> Deciding<'a> {
//!         let decision = match attributes.request.effective_verb() {
//!             "get" | "list" | "watch" => Decision::Allow("reading".into()),
//!             _ => Decision::Deny("this stub is for reading".into()),
//!         };
//!         Box::pin(std::future::ready(Ok(decision)))
//!     }
//! }
//!
//! # async fn example() -> anyhow::Result<()> {
//! let settings = StubConfig::load("/etc/qtunnel/stub.toml".as_ref())?;
//! let stub = Stub::builder(settings).authorizer(ReadOnly).bind().await?;
//! stub.run(CancellationToken::new()).await;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod agent;
pub mod carrier;
pub mod cli;
pub mod demo;
pub mod kube;
pub mod pki;
pub mod stub;
pub mod threads;
pub mod trace;
pub mod wire;
