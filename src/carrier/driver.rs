//! Lets quinn's drivers wait for the tasks that are ready.

use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};

/// Tokio as quinn's runtime, with one difference: a driver that is woken lets the tasks that are ready go first, as long as
/// that is worth it.
///
/// The first stream that has something to send wakes the connection's driver. If the driver ran next, it would make a packet
/// of that alone; behind the tasks that are ready already it packs what all of them have written. Where none of them has
/// anything to write, waiting would cost time, and a wake-up of another worker of Tokio's: the driver then runs at once, and
/// only now and then finds out whether that has changed.
#[derive(Debug, Default)]
pub struct PatientRuntime {
    writes: Arc<Writes>,
}

/// Counts what is written to the streams of an endpoint.
#[derive(Debug, Default)]
pub struct Writes(AtomicUsize);

/// How often a driver runs at once, at most, before it finds out again whether to wait is worth it.
const MAX_IMPATIENCE: u32 = 64;

impl PatientRuntime {
    /// What has to count each write to a stream.
    pub fn writes(&self) -> Arc<Writes> {
        self.writes.clone()
    }
}

impl Writes {
    /// Counts one.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn so_far(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Runtime for PatientRuntime {
    fn new_timer(&self, deadline: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(deadline)
    }

    fn spawn(&self, driver: Driver) {
        TokioRuntime.spawn(Box::pin(Patient::new(driver, self.writes.clone())));
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A driver that lets others go first.
struct Patient {
    driver: Driver,
    writes: Arc<Writes>,
    /// How much had been written when it began to wait; `None` while it does not.
    waiting_since: Option<usize>,
    /// How often it runs at once, the next time that to wait was worth nothing.
    impatience: u32,
    /// How often it still runs at once.
    at_once: u32,
}

impl Patient {
    fn new(driver: Driver, writes: Arc<Writes>) -> Self {
        Self { driver, writes, waiting_since: None, impatience: 0, at_once: 0 }
    }

    /// Whether to let others go first.
    fn waits(&mut self) -> bool {
        let written = self.writes.so_far();
        match self.waiting_since.take() {
            Some(before) if before == written => {
                self.impatience = (self.impatience * 2).clamp(1, MAX_IMPATIENCE);
                self.at_once = self.impatience;
                false
            }
            Some(_) => {
                self.impatience = 0;
                false
            }
            None if self.at_once > 0 => {
                self.at_once -= 1;
                false
            }
            None => {
                self.waiting_since = Some(written);
                true
            }
        }
    }
}

impl Future for Patient {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.waits() {
            // A task that wakes itself goes to the end of its worker's queue.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.driver.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::sync::mpsc;

    use super::*;

    /// A driver that counts how often it runs.
    fn counting(writes: &Arc<Writes>) -> (Patient, Arc<AtomicUsize>) {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        let driver = Box::pin(std::future::poll_fn(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Poll::Pending
        }));
        (Patient::new(driver, writes.clone()), runs)
    }

    #[tokio::test]
    async fn a_driver_runs_behind_the_tasks_that_were_ready_when_it_was_woken() {
        let (told, mut order) = mpsc::channel(2);
        let driver = told.clone();
        PatientRuntime::default().spawn(Box::pin(async move { driver.send("driver").await.unwrap() }));
        tokio::spawn(async move { told.send("task").await.unwrap() });
        assert_eq!((order.recv().await, order.recv().await), (Some("task"), Some("driver")));
    }

    #[tokio::test]
    async fn a_driver_that_waits_for_nobody_runs() {
        let (told, mut ran) = mpsc::channel(1);
        PatientRuntime::default().spawn(Box::pin(async move { told.send(()).await.unwrap() }));
        tokio::time::timeout(std::time::Duration::from_secs(30), ran.recv()).await.unwrap().unwrap();
    }

    #[test]
    fn a_driver_that_waits_in_vain_runs_at_once_more_and_more_often() {
        let (mut patient, runs) = counting(&Arc::default());
        let mut context = Context::from_waker(Waker::noop());
        let mut polls = |count: usize| {
            let before = runs.load(Ordering::Relaxed);
            (0..count).for_each(|_| assert!(Pin::new(&mut patient).poll(&mut context).is_pending()));
            runs.load(Ordering::Relaxed) - before
        };
        // It waits once, runs, and runs at once one more time; then two times; then four.
        assert_eq!([polls(3), polls(4), polls(6)], [2, 3, 5]);
        assert!((950..1000).contains(&polls(1000)), "now and then it waits again");
    }

    #[test]
    fn a_driver_whose_waiting_was_worth_it_waits_again() {
        let writes = Arc::default();
        let (mut patient, runs) = counting(&writes);
        let mut context = Context::from_waker(Waker::noop());
        for run in 1..100 {
            assert!(Pin::new(&mut patient).poll(&mut context).is_pending());
            writes.count();
            assert!(Pin::new(&mut patient).poll(&mut context).is_pending());
            assert_eq!(runs.load(Ordering::Relaxed), run);
        }
    }
}
