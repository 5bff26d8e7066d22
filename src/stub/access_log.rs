//! One log line for each request.

use std::time::Instant;

use http::{Method, StatusCode};

use crate::wire::{ClusterId, Identity};

/// What is known of a request. The line is written when the record is dropped, so no path out can forget it.
#[derive(Debug)]
pub struct AccessRecord {
    audit_id: String,
    started: Instant,
    method: Method,
    user: Option<String>,
    requested_user: Option<String>,
    cluster: Option<ClusterId>,
    path: String,
    status: Option<StatusCode>,
    bytes: u64,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client went away, unless something else is noted.
    ClientGone,
    Complete,
    BrokenOff,
}

impl AccessRecord {
    /// A request that has just come.
    pub fn new(audit_id: &str, method: &Method, path: &str) -> Self {
        Self {
            audit_id: audit_id.to_owned(),
            started: Instant::now(),
            method: method.clone(),
            user: None,
            requested_user: None,
            cluster: None,
            path: path.to_owned(),
            status: None,
            bytes: 0,
            end: End::ClientGone,
        }
    }

    /// Who makes it.
    pub fn set_user(&mut self, identity: &Identity) {
        self.user = Some(identity.user.clone());
    }

    /// Whom it asks to be made as.
    pub fn set_requested_user(&mut self, requested: Option<&Identity>) {
        self.requested_user = requested.map(|identity| identity.user.clone());
    }

    /// Where it goes.
    pub fn set_cluster(&mut self, cluster: &ClusterId) {
        self.cluster = Some(cluster.clone());
    }

    /// What it is answered with.
    pub fn set_status(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// Bytes of the answer that went to the client.
    pub fn add_bytes(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// The answer is whole.
    pub fn complete(&mut self) {
        self.end = End::Complete;
    }

    /// The answer broke off on the way to here.
    pub fn broken_off(&mut self, why: &dyn std::fmt::Display) {
        self.end = End::BrokenOff;
        tracing::warn!(audit_id = %self.audit_id, "an answer broke off, the client's transfer is aborted: {why}");
    }
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        tracing::info!(
            target: "qtunnel::access",
            audit_id = %self.audit_id,
            user = %text(&self.user),
            requested_user = %text(&self.requested_user),
            cluster = self.cluster.as_ref().map_or("", ClusterId::as_str),
            method = %self.method,
            path = %self.path,
            status = self.status.map_or(0, |status| status.as_u16()),
            bytes = self.bytes,
            milliseconds = self.started.elapsed().as_millis() as u64,
            end = match self.end {
                End::ClientGone => "client gone",
                End::Complete => "complete",
                End::BrokenOff => "broken off",
            },
            "request"
        );
    }
}
