//! An election of an organisation's own kind: here among the stubs of one host, whoever has locked a file leads.
//!
//! `cargo run --example election`

mod support;

use std::fs::{File, TryLockError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use qtunnel::stub::Stub;
use qtunnel::stub::election::{Election, Leadership};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often those who do not lead try.
const INTERVAL: Duration = Duration::from_millis(100);

/// Leads while it has the lock, which the system takes back when the process dies.
#[derive(Debug)]
struct FileLock {
    file: File,
    name: String,
    leadership: watch::Sender<Leadership>,
}

impl FileLock {
    async fn stand(&self, shutdown: CancellationToken) {
        loop {
            match self.file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => eprintln!("election: {error}"),
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none() {
                return;
            }
        }
        println!("election: {} leads", self.name);
        let (leader, since) = (Some(self.name.clone()), Some(Timestamp::now()));
        self.leadership.send_replace(Leadership { leads: true, leader, since });
        shutdown.cancelled().await;
        // First it is said, then somebody else may lead.
        self.leadership.send_replace(Leadership::default());
        if let Err(error) = self.file.unlock() {
            eprintln!("election: {error}");
        }
        println!("election: {} hands over", self.name);
    }
}

impl Election for FileLock {
    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    fn campaign(&self, shutdown: CancellationToken) -> BoxFuture<'_, ()> {
        Box::pin(self.stand(shutdown))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let site = support::Site::new()?;
    let (name, leadership) = ("stub-1".to_owned(), watch::Sender::default());
    let mut leads = leadership.subscribe();
    let election = FileLock { file: tempfile::tempfile()?, name, leadership };
    let stub = Stub::builder(site.config()?).election(election).bind().await?;
    let tunnel = site.run(stub).await?;

    leads.wait_for(|leadership| leadership.leads).await?;
    let status = tunnel.status().await?.election;
    println!("the stub says: {status:?}");
    tunnel.client_of("alice").await?.get(support::PODS).await?;
    tunnel.stop().await
}
