//! How a stub stops: in the order in which nobody loses what could have gone on elsewhere. [`run`] is the order.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::shared::Shared;

/// How far a stop has come. Clones tell of the same stop.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    announced: CancellationToken,
    closing: CancellationToken,
    /// Connections that came when the stub took no more requests.
    latecomers: TaskTracker,
}

/// How long clients have to hear that their session is closed.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long it may take until the stub sees a connection that the kernel has accepted for it.
const ARRIVAL: Duration = Duration::from_millis(250);

/// How long clients that came last have to finish their handshake and to hear that they had better go elsewhere.
const LATECOMERS: Duration = Duration::from_secs(5);

/// Ends everything that goes on, and returns when nothing does any more, or when it has taken too long.
pub async fn run(shared: &Shared) {
    let live = shared.live();
    let limits = &live.limits;

    // Not ready any more: load balancers choose another stub, agents dial another one. Whatever comes meanwhile is served,
    // because they take a moment to notice (Kubernetes updates its Services while it already stops the pod).
    shared.drain.announced.cancel();
    tracing::info!("not ready any more; serving on for {:.1} s", limits.drain_delay().as_secs_f64());
    sleep(limits.drain_delay()).await;

    // GOAWAY and `Connection: close`: clients send what comes next over other connections, and new ones are turned away. Watches
    // end between two events, where their clients resume them elsewhere. Everything else has its time to end by itself.
    shared.drain.closing.cancel();
    tracing::info!(requests = shared.open_requests.count(), "taking no more requests; waiting for those that are open");
    shared.tasks.close();
    let all_ended = timeout(limits.shutdown(), shared.tasks.wait()).await.is_ok();
    if !all_ended {
        cut_off(shared).await;
    }

    // A load balancer that has not noticed yet still sends clients: one whose connection broke in its handshake could not know
    // that its request has gone nowhere. They do not hold up the rest, so that a stop ends under any load.
    sleep(ARRIVAL).await;
    shared.drain.latecomers.close();
    let _ = timeout(LATECOMERS, shared.drain.latecomers.wait()).await;
}

async fn cut_off(shared: &Shared) {
    // What is left does not end by itself, a session in a container for instance. It is closed with a reason where its protocol
    // knows one, and broken off elsewhere: a clean end would say that it is over.
    tracing::warn!(
        requests = shared.open_requests.count(),
        "some requests did not end in time and are cut off; `shutdown_timeout` under [limits] gives them longer"
    );
    shared.open_requests.stop();
    let _ = timeout(FAREWELL, shared.tasks.wait()).await;
}

impl Drain {
    /// Whether the stub is about to stop. It still takes requests.
    pub fn is_announced(&self) -> bool {
        self.announced.is_cancelled()
    }

    /// Waits until the stub is about to stop.
    pub async fn announced(&self) {
        self.announced.cancelled().await;
    }

    /// Whether the stub takes no more connections.
    pub fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// The connections of clients that come when the stub takes no more requests, and are told so.
    pub fn latecomers(&self) -> &TaskTracker {
        &self.latecomers
    }

    /// Waits until the stub takes no more connections.
    pub fn closing(&self) -> impl Future<Output = ()> + Send + use<> {
        self.closing.clone().cancelled_owned()
    }
}
