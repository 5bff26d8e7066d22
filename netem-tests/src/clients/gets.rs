//! Small GETs at a steady rate.
//!
//! Each begins when it is due, whether or not earlier ones have been answered: a client that waited for a slow answer before
//! it asked again would hardly notice that the tunnel was slow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use qtunnel::demo::client::{Client, ClientError};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::session::Session;
use super::{POD, User};
use crate::record::{Hears, Listener, Recorder, Timed};
use crate::scenario::Gets;

/// Between two GETs on one connection.
const INTERVAL: Duration = Duration::from_millis(20);

/// Between two GETs on connections of their own; each costs a TLS handshake.
const FRESH_INTERVAL: Duration = Duration::from_millis(100);

/// How late the client's own timer may fire: it counts in milliseconds, and rounds up twice.
const TIMER_GRAIN: Duration = Duration::from_millis(2);

/// A GET that took longer has failed.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn run(user: User, kind: Gets) {
    let session = Session::new(Arc::clone(&user.kubeconfig));
    let mut interval = tokio::time::interval(match kind {
        Gets::Kept => INTERVAL,
        Gets::Fresh => FRESH_INTERVAL,
    });
    interval.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut answers = JoinSet::new();
    let mut listener = Listener::new(&user.recorder, Hears::Answers);
    let mut told = user.once_open();
    loop {
        tokio::select! {
            due = interval.tick() => {
                let pending = Pending::new(&user.recorder, begin(due.into_std()));
                let (user, session) = (user.clone(), session.clone());
                answers.spawn(async move { pending.end(ask(&user, &session, kind).await) });
            }
            Some(answer) = answers.join_next() => {
                if matches!(answer, Ok(true)) {
                    listener.heard();
                    told.is_open().await;
                }
            }
        }
    }
}

/// From when on a GET counts that was due at `due`: from now, where only the timer is late, which is not the tunnel's doing.
fn begin(due: Instant) -> Instant {
    let now = Instant::now();
    if now.duration_since(due) <= TIMER_GRAIN { now } else { due }
}

/// One GET from beginning to end; whether it succeeded.
async fn ask(user: &User, session: &Session, kind: Gets) -> bool {
    let asking = async {
        match kind {
            Gets::Kept => {
                let client = session.client().await?;
                let answer = get(&client).await;
                if let Err(error) = &answer {
                    session.failed(&client, error).await;
                }
                answer
            }
            Gets::Fresh => get(&Client::connect(&user.kubeconfig).await?).await,
        }
    };
    matches!(tokio::time::timeout(TIMEOUT, asking).await, Ok(Ok(())))
}

async fn get(client: &Client) -> Result<(), ClientError> {
    client.body(POD).await?.collect().await?;
    Ok(())
}

/// A GET under way. One that is dropped before its end has failed.
struct Pending {
    recorder: Arc<Recorder>,
    due: Instant,
    succeeded: bool,
}

impl Pending {
    fn new(recorder: &Arc<Recorder>, due: Instant) -> Self {
        Self { recorder: Arc::clone(recorder), due, succeeded: false }
    }

    fn end(mut self, succeeded: bool) -> bool {
        self.succeeded = succeeded;
        succeeded
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.succeeded {
            self.recorder.completed(Timed::Get, self.due);
        } else {
            self.recorder.get_failed(self.due);
        }
    }
}
