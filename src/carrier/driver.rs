//! Lets quinn's drivers wait for the tasks that are ready.

use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};

/// Tokio as quinn's runtime, with one difference: a driver that is woken goes to the end of the queue before it runs.
///
/// The first stream that has something to send wakes the connection's driver. If the driver ran next, it would make a packet
/// of that alone; behind the tasks that are ready already it packs what all of them have written. Where none is ready, it
/// runs at once.
#[derive(Debug)]
pub struct PatientRuntime;

impl Runtime for PatientRuntime {
    fn new_timer(&self, deadline: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(deadline)
    }

    fn spawn(&self, driver: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(Box::pin(Patient { driver, has_waited: false }));
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// A driver that lets others go first.
struct Patient {
    driver: Pin<Box<dyn Future<Output = ()> + Send>>,
    has_waited: bool,
}

impl Future for Patient {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.has_waited = !self.has_waited;
        if self.has_waited {
            // A task that wakes itself goes to the end of its worker's queue.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.driver.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_driver_runs_behind_the_tasks_that_were_ready_when_it_was_woken() {
        let (told, mut order) = mpsc::channel(2);
        let driver = told.clone();
        PatientRuntime.spawn(Box::pin(async move { driver.send("driver").await.unwrap() }));
        tokio::spawn(async move { told.send("task").await.unwrap() });
        assert_eq!((order.recv().await, order.recv().await), (Some("task"), Some("driver")));
    }

    #[tokio::test]
    async fn a_driver_that_waits_for_nobody_runs() {
        let (told, mut ran) = mpsc::channel(1);
        PatientRuntime.spawn(Box::pin(async move { told.send(()).await.unwrap() }));
        tokio::time::timeout(std::time::Duration::from_secs(30), ran.recv()).await.unwrap().unwrap();
    }
}
