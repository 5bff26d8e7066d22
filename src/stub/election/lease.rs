//! An election over a Lease (`coordination.k8s.io/v1`): what reads and writes it for a [`Candidate`].

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::candidate::{Candidate, Record, Step, Timing};
use super::{Election, Leadership};
use crate::kube::{ClusterAccess, ClusterAccessError};

/// Stands for election over one Lease.
pub struct LeaseElection {
    leases: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
    leadership: watch::Sender<Leadership>,
}

/// The name of a Lease, `namespace/name`; without a namespace that of the pod, or of the kubeconfig.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LeaseName {
    namespace: Option<String>,
    name: String,
}

/// A text that names no Lease.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a Lease: write NAMESPACE/NAME")]
pub struct InvalidLeaseName(String);

/// How long handing over may take at a stop.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);

impl LeaseElection {
    /// Stands as `identity`, which nobody else may have. Call it within a tokio runtime; nothing is sent yet.
    ///
    /// # Errors
    ///
    /// There is no such cluster.
    pub async fn new(
        access: &ClusterAccess,
        lease: &LeaseName,
        identity: String,
        timing: Timing,
    ) -> Result<Self, ClusterAccessError> {
        let client = access.client().await?;
        let namespace = lease.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        let (leases, name) = (Api::namespaced(client, &namespace), lease.name.clone());
        Ok(Self { leases, name, identity, timing, leadership: watch::Sender::default() })
    }

    async fn run(&self, shutdown: CancellationToken) {
        let mut candidate = Candidate::new(self.identity.clone(), self.timing);
        let mut errors = ErrorLog::default();
        loop {
            let patience = self.patience(&candidate);
            let attempt = shutdown.run_until_cancelled(timeout(patience, self.attempt(&mut candidate)));
            let wait = match attempt.await {
                None => break,
                Some(Ok(Ok(wait))) => {
                    errors.none();
                    wait
                }
                Some(Ok(Err(error))) => {
                    errors.one(&error);
                    self.retry()
                }
                Some(Err(_elapsed)) => {
                    errors.one(&"the API server does not answer");
                    self.retry()
                }
            };
            self.publish(&candidate);
            // Steps down on time, even between two attempts.
            let until =
                candidate.leads_until(Instant::now()).map(|until| until.saturating_duration_since(Instant::now()));
            let wait = until.map_or(wait, |left| wait.min(left));
            if shutdown.run_until_cancelled(sleep(wait)).await.is_none() {
                break;
            }
            self.publish(&candidate);
        }
        self.hand_over(candidate).await;
    }

    /// Reads the Lease and takes or renews it where that is right. Says when to look again.
    async fn attempt(&self, candidate: &mut Candidate) -> Result<Duration, kube::Error> {
        let lease = self.leases.get_opt(&self.name).await?;
        // The Lease was like this at the latest now; what is written counts from before it is sent.
        let asked = Instant::now();
        match candidate.step(lease.as_ref().map(record_of), asked, Timestamp::now()) {
            Step::Wait(wait) if wait < self.timing.retry_period => Ok(wait),
            Step::Wait(_) => Ok(self.retry()),
            Step::Write(record) => match self.write(lease, &record).await {
                Ok(()) => {
                    candidate.written(record, asked);
                    Ok(self.timing.retry_period)
                }
                Err(kube::Error::Api(status)) if status.code == CONFLICT => Ok(self.retry()),
                Err(error) => Err(error),
            },
        }
    }

    /// The version in `lease` makes the API server refuse to replace a later one.
    async fn write(&self, lease: Option<Lease>, record: &Record) -> Result<(), kube::Error> {
        let exists = lease.is_some();
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        let mut lease = lease.unwrap_or_else(|| Lease { metadata, ..Lease::default() });
        let spec = lease.spec.take().unwrap_or_default();
        lease.spec = Some(spec_with(spec, record));
        let params = PostParams::default();
        match exists {
            true => self.leases.replace(&self.name, &params, &lease).await.map(drop),
            false => self.leases.create(&params, &lease).await.map(drop),
        }
    }

    /// A leader does not wait for an answer beyond the end of its time, and leaves some for a second attempt.
    fn patience(&self, candidate: &Candidate) -> Duration {
        let now = Instant::now();
        let left = candidate.leads_until(now).map(|until| until.saturating_duration_since(now));
        let half = self.timing.renew_deadline / 2;
        left.map_or(half, |left| left.min(half))
    }

    /// A little less than the retry period, at random: candidates should not meet.
    fn retry(&self) -> Duration {
        self.timing.retry_period.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    fn publish(&self, candidate: &Candidate) {
        let leads = candidate.leads_until(Instant::now()).is_some();
        let new = Leadership { leads, leader: candidate.leader().map(str::to_owned), since: candidate.led_since() };
        let before = self.leadership.send_replace(new.clone());
        match (before.leads, leads) {
            (false, true) => tracing::info!(identity = self.identity, "this stub leads"),
            (true, false) => tracing::warn!(identity = self.identity, "this stub does not lead any more"),
            _ if before.leader != new.leader => {
                tracing::info!(leader = new.leader.as_deref().unwrap_or("nobody"), "another leader");
            }
            _ => {}
        }
    }

    /// Gives the Lease back: the next leader need not wait for its end. First of all this stub stops to lead.
    async fn hand_over(&self, mut candidate: Candidate) {
        let released = candidate.release(Timestamp::now());
        self.publish(&candidate);
        let Some(record) = released else { return };
        let releasing = async {
            let lease = self.leases.get_opt(&self.name).await?;
            match lease.as_ref().map(record_of) {
                // An attempt that was interrupted may have been the last to write.
                Some(current) if current.holder == self.identity => self.write(lease, &record).await,
                _ => Ok(()),
            }
        };
        match timeout(RELEASE_PATIENCE, releasing).await {
            Ok(Ok(())) => tracing::info!("handed the leadership over"),
            Ok(Err(error)) => tracing::warn!("cannot hand the leadership over; it ends by itself: {error}"),
            Err(_elapsed) => tracing::warn!("cannot hand the leadership over in time; it ends by itself"),
        }
    }
}

impl Election for LeaseElection {
    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    fn campaign(&self, shutdown: CancellationToken) -> BoxFuture<'_, ()> {
        Box::pin(self.run(shutdown))
    }
}

impl fmt::Debug for LeaseElection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseElection").field("name", &self.name).field("identity", &self.identity).finish()
    }
}

impl FromStr for LeaseName {
    type Err = InvalidLeaseName;

    fn from_str(text: &str) -> Result<Self, InvalidLeaseName> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        let plain = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c))
        };
        match namespace.is_none_or(plain) && plain(name) {
            true => Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() }),
            false => Err(InvalidLeaseName(text.to_owned())),
        }
    }
}

impl TryFrom<String> for LeaseName {
    type Error = InvalidLeaseName;

    fn try_from(text: String) -> Result<Self, InvalidLeaseName> {
        text.parse()
    }
}

/// Says an error once, until there is another one or none.
#[derive(Default)]
struct ErrorLog(Option<String>);

impl ErrorLog {
    fn one(&mut self, error: &impl fmt::Display) {
        let text = error.to_string();
        if self.0.as_ref() != Some(&text) {
            tracing::warn!("cannot read or write the Lease of the election: {text}");
            self.0 = Some(text);
        }
    }

    fn none(&mut self) {
        if self.0.take().is_some() {
            tracing::info!("the Lease of the election can be read and written again");
        }
    }
}

/// Somebody else has changed the object (409, `Conflict` or `AlreadyExists`).
const CONFLICT: u16 = 409;

fn record_of(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        lease_duration: Duration::from_secs(
            spec.lease_duration_seconds.unwrap_or_default().max(0).unsigned_abs().into(),
        ),
        acquired: spec.acquire_time.map(|time| time.0),
        renewed: spec.renew_time.map(|time| time.0),
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}

fn spec_with(spec: LeaseSpec, record: &Record) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(record.holder.clone()),
        lease_duration_seconds: Some(i32::try_from(record.lease_duration.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: record.acquired.map(MicroTime),
        renew_time: record.renewed.map(MicroTime),
        lease_transitions: Some(record.transitions),
        ..spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_leases_are_read() {
        let name = |namespace: Option<&str>, name: &str| {
            Ok(LeaseName { namespace: namespace.map(str::to_owned), name: name.to_owned() })
        };
        assert_eq!("a/b".parse(), name(Some("a"), "b"));
        assert_eq!("b".parse(), name(None, "b"));
        for wrong in ["", "/", "a/", "/b", "a/b/c", "A/b", "a b"] {
            assert!(wrong.parse::<LeaseName>().is_err(), "{wrong:?}");
        }
    }
}
