//! What users may do, as far as the stub decides it. Each cluster's RBAC decides again, for the same user.
//!
//! An [`Authorizer`] decides; built in are [`AllowAll`], [`DenyAll`], [`PolicyFile`] and [`AccessWebhook`].

mod cluster_selector;
mod policy;
mod policy_file;
mod rule;
mod webhook;

use std::borrow::Cow;
use std::fmt::Debug;
use std::pin::Pin;

use tokio::sync::watch;

pub use cluster_selector::Labels;
pub use policy::{Explanation, Policy, PolicyError, RuleOutcome};
pub use policy_file::PolicyFile;
pub use rule::{InvalidRule, Mismatch};
pub use webhook::{AccessWebhook, AccessWebhookSettings, FailurePolicy};

use crate::kube::RequestInfo;
use crate::wire::{ClusterId, Identity};

/// Decides about every request before any of it goes to a cluster.
///
/// It may assume that the user is authenticated, that the cluster is known, and that the request was read by the API
/// server's own rules from the very path that will be sent. It is asked again for requests that are still open after
/// [`Authorizer::changes`] has counted, so a decision must depend on nothing but the attributes and the authorizer's
/// own state.
///
/// It fails closed: where it cannot decide, the request is answered with a 500 and goes nowhere. The caller sets it no
/// deadline; an authorizer that asks somebody else has to bound the time that takes.
pub trait Authorizer: Debug + Send + Sync {
    /// Whether the request may be made.
    fn authorize<'a>(&'a self, attributes: Attributes<'a>) -> Deciding<'a>;

    /// Counts up whenever an earlier decision may not hold any more. `None`, the default: nothing is known of that.
    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// Whether decisions may change without that being known here. It is then asked every few seconds about every request
    /// that is open, and had better remember. Where it cannot decide, they go on for a minute. Default: no.
    fn decisions_age(&self) -> bool {
        false
    }
}

/// A decision on its way.
pub type Deciding<'a> = Pin<Box<dyn Future<Output = Result<Decision, CannotDecide>> + Send + 'a>>;

/// What is decided about.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// Who makes the request. Every user is also in the group `system:authenticated`, which is not among the groups here.
    pub user: &'a Identity,
    /// Whom the user asks to act as (`kubectl --as`). The agent has the cluster review that right too.
    pub requested: Option<&'a Identity>,
    /// The cluster that the request is for.
    pub cluster: &'a ClusterId,
    /// What is asked for. The verb to decide about is [`RequestInfo::effective_verb`].
    pub request: &'a RequestInfo,
}

/// [`Attributes`] that are kept, for as long as a request is open.
#[derive(Debug, Clone)]
pub struct OwnedAttributes {
    /// See [`Attributes::user`].
    pub user: Identity,
    /// See [`Attributes::requested`].
    pub requested: Option<Identity>,
    /// See [`Attributes::cluster`].
    pub cluster: ClusterId,
    /// See [`Attributes::request`].
    pub request: RequestInfo,
}

impl OwnedAttributes {
    /// The attributes to decide about.
    pub fn borrowed(&self) -> Attributes<'_> {
        let Self { user, requested, cluster, request } = self;
        Attributes { user, requested: requested.as_ref(), cluster, request }
    }
}

/// A decision with its reason, which the audit log records and the user of a refused request reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The request may be made.
    Allow(Cow<'static, str>),
    /// It may not.
    Deny(Cow<'static, str>),
}

impl Decision {
    /// Whether the request may be made.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// Why.
    pub fn reason(&self) -> &str {
        match self {
            Self::Allow(reason) | Self::Deny(reason) => reason,
        }
    }
}

/// An authorizer that cannot decide, for example because whom it asks does not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the access node cannot decide whether this is allowed: {0}")]
pub struct CannotDecide(pub String);

/// Every authenticated user may make every request to every cluster; only the clusters' RBAC decides.
#[derive(Debug, Clone, Copy)]
pub struct AllowAll;

impl Authorizer for AllowAll {
    fn authorize<'a>(&'a self, _attributes: Attributes<'a>) -> Deciding<'a> {
        decided(Decision::Allow("the access node leaves it to the cluster (allow-all)".into()))
    }
}

/// Nobody may do anything.
#[derive(Debug, Clone, Copy)]
pub struct DenyAll;

impl Authorizer for DenyAll {
    fn authorize<'a>(&'a self, _attributes: Attributes<'a>) -> Deciding<'a> {
        decided(Decision::Deny("the access node allows no requests (deny-all)".into()))
    }
}

fn decided<'a>(decision: Decision) -> Deciding<'a> {
    Box::pin(std::future::ready(Ok(decision)))
}
