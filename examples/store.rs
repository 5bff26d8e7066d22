//! Keys, join tokens and clusters where an organisation wants them: here in memory, where a program would ask its database.
//!
//! `cargo run --example store`

mod support;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qtunnel::pki::store::{Key, Store, StoreError, Table};
use qtunnel::stub::Stub;

/// A table for each [`Table`], in effect: keys name theirs.
#[derive(Default)]
struct InMemory(Mutex<HashMap<Key, Vec<u8>>>);

impl InMemory {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for InMemory {
    /// Values are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.lock().keys()).finish()
    }
}

impl Store for InMemory {
    fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.lock().get(key).cloned())
    }

    fn names(&self, table: Table) -> Result<Vec<String>, StoreError> {
        let values = self.lock();
        Ok(values.keys().filter(|key| key.table() == table).map(|key| key.name().to_owned()).collect())
    }

    /// Under one lock, as a database would do it in one transaction: of two agents with the same token only one may join.
    fn swap(&self, key: &Key, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<bool, StoreError> {
        let mut values = self.lock();
        if values.get(key).map(Vec::as_slice) != old {
            return Ok(false);
        }
        println!("store: {} {:?} {}", if new.is_some() { "puts" } else { "removes" }, key.table(), key.name());
        match new {
            Some(new) => values.insert(key.clone(), new.to_vec()),
            None => values.remove(key),
        };
        Ok(true)
    }

    fn place(&self, key: &Key) -> PathBuf {
        PathBuf::from("memory").join(key.name())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let store = Arc::new(InMemory::default());
    let site = support::Site::with_store(store.clone())?;
    let stub = Stub::builder(site.config()?).store(store.clone()).bind().await?;
    let tunnel = site.run(stub).await?;

    let pods = tunnel.client_of("alice").await?.get(support::PODS).await?;
    println!("alice sees {} pods", support::count_of_items(&pods)?);
    println!("clusters in the store: {}", store.names(Table::Clusters)?.join(", "));
    tunnel.stop().await
}
