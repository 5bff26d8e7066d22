//! The stub's own certificate, which may be replaced while it runs.

use std::sync::Arc;

use super::reload::Source;
use crate::pki::{ServerFiles, StubKeys, StubKeysError};

/// The files of the server certificate. What comes into force is presented in handshakes from then on; connections that
/// exist are not disturbed.
#[derive(Debug)]
pub struct ServerCertificate(pub Arc<StubKeys>);

impl Source for ServerCertificate {
    type Content = ServerFiles;
    type Value = ();
    type Error = StubKeysError;

    fn name(&self) -> &'static str {
        "server certificate"
    }

    fn read(&self) -> Result<ServerFiles, StubKeysError> {
        self.0.read_server_files()
    }

    fn build(&self, files: &ServerFiles) -> Result<(), StubKeysError> {
        self.0.present(files)
    }
}
