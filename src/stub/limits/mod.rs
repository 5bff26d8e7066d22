//! What one address, one user and one cluster may take of a stub that anybody can reach.
//!
//! A stranger is a connection on which nobody has authenticated yet; it is bounded by its address. Requests are bounded by
//! their user and by their cluster, those that may go on for hours apart from the others. Whatever is refused is counted
//! each time, and logged once in a while.

mod buckets;
mod places;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use self::buckets::TokenBuckets;
use self::places::{Place, Places};
use super::config::LimitsConfig;
use super::front::ClientConnection;
use super::metrics::Metrics;
use crate::carrier::IncomingConnection;
use crate::kube::Status;
use crate::wire::ClusterId;

/// The limits of a running stub.
#[derive(Debug)]
pub struct Limits {
    connections: TokenBuckets<Origin>,
    strangers: Places<Origin>,
    unauthenticated: TokenBuckets<Origin>,
    quic_handshakes: Arc<Semaphore>,
    quic_handshakes_limit: usize,
    http3_clients: Arc<Semaphore>,
    request_rate: TokenBuckets<String>,
    requests: PerOwner,
    watches: PerOwner,
    patience: Mutex<Duration>,
    metrics: Arc<Metrics>,
    log: Mutex<HashMap<Limit, Log>>,
}

/// A limit that somebody has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// New connections of one address.
    ConnectionsPerSecond,
    /// Connections of one address on which nobody has authenticated.
    StrangersPerAddress,
    /// Handshakes over QUIC at once.
    QuicHandshakes,
    /// How long a connection may go without an authenticated request.
    AuthenticationTimeout,
    /// Requests of one address that are refused with 401.
    UnauthenticatedPerSecond,
    /// Connections of clients at once.
    ClientConnections,
    /// Requests of one user in a second.
    RequestsPerSecondPerUser,
    /// Requests of one user at once.
    RequestsPerUser,
    /// Requests to one cluster at once.
    RequestsPerCluster,
    /// Watches and the like of one user at once.
    WatchesPerUser,
    /// Watches and the like to one cluster at once.
    WatchesPerCluster,
    /// The length of a request's body.
    RequestBodyLength,
}

/// Where strangers come from: an address, or for IPv6 the network of 64 bits that one host can have all of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Origin(IpAddr);

/// The place of a connection on which nobody has authenticated yet. Drop it when somebody has.
#[derive(Debug)]
pub struct Stranger(#[allow(dead_code, reason = "held")] Place<Origin>);

/// The places of a request.
#[derive(Debug)]
pub struct RequestPlace {
    _user: Place<String>,
    _cluster: Place<ClusterId>,
}

/// What becomes of a connection attempt over QUIC.
#[derive(Debug)]
pub enum Admission {
    /// The handshake may begin. The permit is to be held until it ends.
    Handshake(Stranger, OwnedSemaphorePermit),
    /// The address has to be proven first (RFC 9000, section 8.1.2).
    ProveAddress,
    /// No.
    Refused,
}

#[derive(Debug)]
struct PerOwner {
    users: Places<String>,
    clusters: Places<ClusterId>,
}

/// For how many seconds a burst may go on above the rate of a limit that only has a rate.
const BURST_SECONDS: u32 = 10;

/// How often refusals are logged.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// After how many seconds a client may try again.
const RETRY_AFTER: u32 = 1;

impl Limits {
    /// The limits of the settings.
    pub fn new(config: &LimitsConfig, metrics: Arc<Metrics>) -> Self {
        let now = Instant::now();
        let per_second = |rate: u32| TokenBuckets::new(rate, rate.saturating_mul(BURST_SECONDS), now);
        let by_rate = config.requests_per_second_per_user;
        Self {
            connections: per_second(config.connections_per_second),
            strangers: Places::new(config.strangers_per_address),
            unauthenticated: per_second(config.unauthenticated_per_second),
            quic_handshakes: Arc::new(Semaphore::new(config.quic_handshakes as usize)),
            quic_handshakes_limit: config.quic_handshakes as usize,
            http3_clients: Arc::new(Semaphore::new(config.client_connections as usize)),
            request_rate: TokenBuckets::new(by_rate, by_rate.saturating_mul(2), now),
            requests: PerOwner::new(config.requests_per_user, config.requests_per_cluster),
            watches: PerOwner::new(config.watches_per_user, config.watches_per_cluster),
            patience: Mutex::new(config.authentication_timeout.unsigned_abs()),
            metrics,
            log: Mutex::default(),
        }
    }

    /// Other limits from now on, but for the numbers of connections and of handshakes at once. Nobody loses what is taken.
    pub fn change(&self, config: &LimitsConfig) {
        let set = |buckets: &TokenBuckets<Origin>, rate: u32| buckets.change(rate, rate.saturating_mul(BURST_SECONDS));
        set(&self.connections, config.connections_per_second);
        set(&self.unauthenticated, config.unauthenticated_per_second);
        self.strangers.change(config.strangers_per_address);
        let by_rate = config.requests_per_second_per_user;
        self.request_rate.change(by_rate, by_rate.saturating_mul(2));
        self.requests.change(config.requests_per_user, config.requests_per_cluster);
        self.watches.change(config.watches_per_user, config.watches_per_cluster);
        *self.patience.lock().unwrap_or_else(PoisonError::into_inner) = config.authentication_timeout.unsigned_abs();
    }

    /// A place for a new connection over TCP from `address`; `None` if it is to be closed at once.
    pub fn admit_connection(&self, address: IpAddr) -> Option<Stranger> {
        let origin = Origin::of(address);
        if !self.connections.take(origin, Instant::now()) {
            self.refused(Limit::ConnectionsPerSecond, &address);
            return None;
        }
        self.stranger(origin, address)
    }

    /// Whether a connection attempt over QUIC may go on.
    ///
    /// Anybody can send packets in the name of another address. Such packets use up no more than half of what that
    /// address may have; from there on, and while the stub is busy, the address has to be proven.
    pub fn admit_handshake(&self, incoming: &IncomingConnection) -> Admission {
        let address = incoming.remote_address().ip();
        let (origin, now) = (Origin::of(address), Instant::now());
        let is_busy = self.quic_handshakes.available_permits() <= self.quic_handshakes_limit / 2;
        let is_admitted = match incoming.is_address_proven() {
            true => self.connections.take(origin, now),
            false if is_busy || !self.connections.take_from_upper_half(origin, now) => {
                self.metrics.address_proofs.inc();
                return Admission::ProveAddress;
            }
            false => true,
        };
        if !is_admitted {
            self.refused(Limit::ConnectionsPerSecond, &address);
            return Admission::Refused;
        }
        let Ok(permit) = self.quic_handshakes.clone().try_acquire_owned() else {
            self.refused(Limit::QuicHandshakes, &address);
            return Admission::Refused;
        };
        match self.stranger(origin, address) {
            Some(stranger) => Admission::Handshake(stranger, permit),
            None => Admission::Refused,
        }
    }

    /// A place for a client over HTTP/3.
    pub fn admit_http3(&self, address: IpAddr) -> Option<OwnedSemaphorePermit> {
        let place = self.http3_clients.clone().try_acquire_owned().ok();
        if place.is_none() {
            self.refused(Limit::ClientConnections, &address);
        }
        place
    }

    /// Ends when nobody has authenticated on `connection` in time; never once somebody has.
    pub(in crate::stub) async fn wait_for_stranger(&self, connection: &ClientConnection, stranger: Stranger) {
        let patience = *self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        if timeout(patience, connection.authenticated.wait()).await.is_ok() {
            drop(stranger);
            std::future::pending().await
        }
        self.refused(Limit::AuthenticationTimeout, &connection.address.ip());
    }

    /// What a request from `address` is refused with that was not authenticated: `status`, as long as it is not one of too many.
    pub fn unauthenticated(&self, address: IpAddr, status: Status) -> Status {
        if status.code() != http::StatusCode::UNAUTHORIZED
            || self.unauthenticated.take(Origin::of(address), Instant::now())
        {
            return status;
        }
        self.refused(Limit::UnauthenticatedPerSecond, &address);
        Status::too_many_requests(RETRY_AFTER)
    }

    /// The places of a request, for as long as it goes on.
    ///
    /// # Errors
    /// 429 when the user or the cluster has too many.
    pub fn admit_request(&self, user: &str, cluster: &ClusterId, is_long: bool) -> Result<RequestPlace, Status> {
        if !self.request_rate.take(user.to_owned(), Instant::now()) {
            return Err(self.too_many(Limit::RequestsPerSecondPerUser, &user));
        }
        let (places, per_user, per_cluster) = match is_long {
            true => (&self.watches, Limit::WatchesPerUser, Limit::WatchesPerCluster),
            false => (&self.requests, Limit::RequestsPerUser, Limit::RequestsPerCluster),
        };
        let _user = places.users.take(&user.to_owned()).ok_or_else(|| self.too_many(per_user, &user))?;
        let _cluster = places.clusters.take(cluster).ok_or_else(|| self.too_many(per_cluster, cluster))?;
        Ok(RequestPlace { _user, _cluster })
    }

    /// Notes that somebody has met a limit.
    pub fn refused(&self, limit: Limit, whom: &dyn std::fmt::Display) {
        self.metrics.limited(limit);
        let now = Instant::now();
        let mut logs = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(others) = logs.entry(limit).or_insert_with(|| Log::new(now)).due(now) {
            tracing::warn!(%whom, others, "refused because of limits.{}", limit.name());
        }
    }

    fn too_many(&self, limit: Limit, whom: &dyn std::fmt::Display) -> Status {
        self.refused(limit, whom);
        Status::too_many_requests(RETRY_AFTER)
    }

    fn stranger(&self, origin: Origin, address: IpAddr) -> Option<Stranger> {
        let place = self.strangers.take(&origin);
        if place.is_none() {
            self.refused(Limit::StrangersPerAddress, &address);
        }
        place.map(Stranger)
    }
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::ConnectionsPerSecond,
        Self::StrangersPerAddress,
        Self::QuicHandshakes,
        Self::AuthenticationTimeout,
        Self::UnauthenticatedPerSecond,
        Self::ClientConnections,
        Self::RequestsPerSecondPerUser,
        Self::RequestsPerUser,
        Self::RequestsPerCluster,
        Self::WatchesPerUser,
        Self::WatchesPerCluster,
        Self::RequestBodyLength,
    ];

    /// Its name in the settings, under `[limits]`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConnectionsPerSecond => "connections_per_second",
            Self::StrangersPerAddress => "strangers_per_address",
            Self::QuicHandshakes => "quic_handshakes",
            Self::AuthenticationTimeout => "authentication_timeout",
            Self::UnauthenticatedPerSecond => "unauthenticated_per_second",
            Self::ClientConnections => "client_connections",
            Self::RequestsPerSecondPerUser => "requests_per_second_per_user",
            Self::RequestsPerUser => "requests_per_user",
            Self::RequestsPerCluster => "requests_per_cluster",
            Self::WatchesPerUser => "watches_per_user",
            Self::WatchesPerCluster => "watches_per_cluster",
            Self::RequestBodyLength => "request_body_length",
        }
    }
}

impl PerOwner {
    fn new(per_user: u32, per_cluster: u32) -> Self {
        Self { users: Places::new(per_user), clusters: Places::new(per_cluster) }
    }

    fn change(&self, per_user: u32, per_cluster: u32) {
        self.users.change(per_user);
        self.clusters.change(per_cluster);
    }
}

impl Origin {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
            address => address,
        })
    }
}

/// When refusals because of one limit are logged next, and how many were not since the last time.
#[derive(Debug)]
struct Log {
    next: Instant,
    unlogged: u64,
}

impl Log {
    fn new(now: Instant) -> Self {
        Self { next: now, unlogged: 0 }
    }

    /// How many refusals were not logged before this one, if this one is to be.
    fn due(&mut self, now: Instant) -> Option<u64> {
        if now < self.next {
            self.unlogged += 1;
            return None;
        }
        self.next = now + LOG_EVERY;
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(change: impl FnOnce(&mut LimitsConfig)) -> Limits {
        let mut config = LimitsConfig::default();
        change(&mut config);
        Limits::new(&config, Arc::new(Metrics::default()))
    }

    fn cluster(id: &str) -> ClusterId {
        id.parse().unwrap()
    }

    #[test]
    fn hosts_of_one_ipv6_network_are_one_origin() {
        let origin = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:1"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
    }

    #[test]
    fn watches_and_short_requests_do_not_take_each_others_places() {
        let limits = limits(|config| (config.requests_per_user, config.watches_per_user) = (1, 1));
        let short = limits.admit_request("alice", &cluster("eu"), false).unwrap();
        let long = limits.admit_request("alice", &cluster("eu"), true).unwrap();
        for is_long in [false, true] {
            let status = limits.admit_request("alice", &cluster("us"), is_long).unwrap_err();
            assert_eq!(status.code(), 429);
        }
        limits.admit_request("bob", &cluster("eu"), true).unwrap();
        drop((short, long));
        limits.admit_request("alice", &cluster("eu"), false).unwrap();
    }

    #[test]
    fn a_cluster_has_its_places_whoever_asks() {
        let limits = limits(|config| config.requests_per_cluster = 1);
        let _one = limits.admit_request("alice", &cluster("eu"), false).unwrap();
        assert!(limits.admit_request("bob", &cluster("eu"), false).is_err());
        // What was refused for its cluster takes no place of its user.
        limits.admit_request("bob", &cluster("us"), false).unwrap();
    }

    #[test]
    fn refusals_are_logged_once_in_a_while() {
        let now = Instant::now();
        let mut log = Log::new(now);
        assert_eq!(log.due(now), Some(0));
        assert_eq!((log.due(now), log.due(now)), (None, None));
        assert_eq!(log.due(now + LOG_EVERY), Some(2));
        assert_eq!(log.due(now + LOG_EVERY), None);
    }
}
