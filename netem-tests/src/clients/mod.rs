//! Who uses the tunnel in a run: clients that see what people would see, and write it down.
//!
//! They live in the namespace of the stub, so what is between them and the stub costs no time.

mod bulk;
mod exec;
mod followers;
mod gets;
mod session;
mod websocket;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::interrupt;
use crate::record::Recorder;
use crate::scenario::Loads;
use crate::tun::Namespace;

/// How long clients may take to have all their streams open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(240);

/// After a failure, until a client tries again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A pod that the sample API has from the start.
const POD: &str = "/api/v1/namespaces/demo/pods/web";

/// More bytes than a run can take.
const ENDLESS: u64 = 1 << 50;

/// Clients that are busy. Dropping it ends them.
#[derive(Debug)]
pub struct Clients {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// One who uses the tunnel.
#[derive(Debug, Clone)]
struct User {
    kubeconfig: Arc<PathBuf>,
    recorder: Arc<Recorder>,
    /// Told once for each stream, when it is open for the first time.
    opened: mpsc::Sender<()>,
}

impl Clients {
    /// Starts clients in a namespace, and returns when every stream of theirs is open. `beside` is where plain TCP comes
    /// from.
    ///
    /// # Errors
    /// When they cannot be started, or do not get through in time.
    pub fn start(
        side: &Namespace,
        kubeconfig: &Path,
        loads: Loads,
        beside: Option<SocketAddr>,
        recorder: &Arc<Recorder>,
    ) -> anyhow::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = sync_channel(1);
        let (opened, is_open) = mpsc::channel(1);
        let user = User { kubeconfig: Arc::new(kubeconfig.to_owned()), recorder: Arc::clone(recorder), opened };
        let thread = side.spawn_thread("clients", move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(async move {
                    let mut tasks = JoinSet::new();
                    let started = open_all(&mut tasks, user, is_open, loads, beside).await;
                    report(&ready, started);
                    // Dropping the other end stops us as well.
                    let _ = stopped.await;
                    tasks.shutdown().await;
                }),
                Err(error) => report(&ready, Err(error.into())),
            }
        })?;
        let clients = Self { stop: Some(stop), thread: Some(thread) };
        let deadline = Instant::now() + OPEN_TIMEOUT;
        loop {
            interrupt::check()?;
            match is_ready.recv_timeout(Duration::from_millis(100)) {
                Ok(started) => return started.map(|()| clients),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => bail!("the clients' streams were not open within {} s", OPEN_TIMEOUT.as_secs()),
            }
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed; what it left undone shows in what was recorded.
            let _ = thread.join();
        }
    }
}

/// Whoever started us may have given up waiting, which is no matter.
fn report(ready: &SyncSender<anyhow::Result<()>>, started: anyhow::Result<()>) {
    let _ = ready.send(started);
}

/// Starts every client; returns when all streams are open.
async fn open_all(
    tasks: &mut JoinSet<()>,
    user: User,
    mut is_open: mpsc::Receiver<()>,
    loads: Loads,
    beside: Option<SocketAddr>,
) -> anyhow::Result<()> {
    if let Some(followers) = loads.followers {
        followers::start(tasks, &user, followers).await.context("cannot follow logs")?;
    }
    if loads.exec {
        tasks.spawn(exec::run(user.clone()));
    }
    if let Some(kind) = loads.bulk {
        tasks.spawn(bulk::run(user.clone(), kind));
    }
    if let Some(address) = beside {
        tasks.spawn(bulk::run_beside(user.clone(), address));
    }
    if let Some(gets) = loads.gets {
        tasks.spawn(gets::run(user, gets));
    }
    let mut opened = 0;
    while opened < tasks.len() {
        is_open.recv().await.context("the clients have ended early")?;
        opened += 1;
    }
    Ok(())
}

impl User {
    /// Tells of one stream.
    fn once_open(&self) -> OnceOpen {
        OnceOpen(Some(self.opened.clone()))
    }
}

/// Tells that a stream is open: the first time, and not when it is opened again.
struct OnceOpen(Option<mpsc::Sender<()>>);

impl OnceOpen {
    async fn is_open(&mut self) {
        if let Some(opened) = self.0.take() {
            // Where there is nobody to tell, nobody waits for us.
            let _ = opened.send(()).await;
        }
    }
}
