//! One HTTP/2 connection to the stub, made again when it breaks.

use std::path::PathBuf;
use std::sync::Arc;

use qtunnel::demo::client::{Client, ClientError};
use tokio::sync::Mutex;

/// A connection that is made when it is needed.
#[derive(Clone)]
pub(super) struct Session {
    kubeconfig: Arc<PathBuf>,
    client: Arc<Mutex<Option<Arc<Client>>>>,
}

impl Session {
    pub(super) fn new(kubeconfig: Arc<PathBuf>) -> Self {
        Self { kubeconfig, client: Arc::default() }
    }

    /// The connection; a new one if there is none.
    pub(super) async fn client(&self) -> Result<Arc<Client>, ClientError> {
        let mut current = self.client.lock().await;
        if let Some(client) = current.as_ref() {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(Client::connect(&self.kubeconfig).await?);
        *current = Some(Arc::clone(&client));
        Ok(client)
    }

    /// A request on it has failed: if that says that the connection is broken, the next request gets another one.
    pub(super) async fn failed(&self, client: &Arc<Client>, error: &ClientError) {
        let ClientError::Http(error) = error else { return };
        let mut current = self.client.lock().await;
        // A reset of one stream leaves the others alone.
        let is_of_stream = std::error::Error::source(error).is_some_and(|source| source.to_string().contains("stream"));
        if !is_of_stream && current.as_ref().is_some_and(|current| Arc::ptr_eq(current, client)) {
            *current = None;
        }
    }
}
