//! The chain that the settings describe.

use std::sync::Arc;

use super::{
    Anonymous, Authenticator, CertificateFilesError, Chain, ClientCertificates, JwtAuthenticator, OwnAuthorities,
    RevocationList, SystemNames, TokenFile, TokenWebhook, TokenWebhookError, TokenWebhookSettings,
};
use crate::stub::config::{AuthenticationConfig, Method, TokenWebhookConfig};
use crate::stub::reload::Reload;
use crate::stub::text_file::TextFileError;

/// What came of the settings.
#[derive(Debug)]
pub struct Authentication {
    /// Whom to ask.
    pub authenticator: Arc<dyn Authenticator>,
    /// What TLS asks about the certificates of users and of agents.
    pub certificates: ClientCertificates,
    /// What has to be followed for changes to be seen.
    pub(in crate::stub) files: Vec<Arc<dyn Reload>>,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticationError {
    /// The files of authorities and revocation lists.
    #[error(transparent)]
    Certificates(#[from] CertificateFilesError),
    /// A file of revoked users, of static tokens or of issuers.
    #[error(transparent)]
    File(#[from] TextFileError),
    /// The webhook for tokens.
    #[error(transparent)]
    TokenWebhook(#[from] TokenWebhookError),
}

impl Authentication {
    /// Reads every file that the settings name, and the stub's `own` authorities. With `instead`, nobody else is asked, and
    /// the files of the others are not read.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn load(
        config: &AuthenticationConfig,
        instead: Option<Arc<dyn Authenticator>>,
        own: OwnAuthorities,
    ) -> Result<Self, AuthenticationError> {
        let names = SystemNames::new(config.system_names.clone());
        let (authorities, lists) = (&config.client_ca_files, &config.crl_files);
        let certificates = ClientCertificates::load(own, authorities, lists, names.clone())?;
        let mut built = Built { files: vec![certificates.file()], authenticators: Vec::new() };
        match instead {
            Some(authenticator) => built.authenticators.push(authenticator),
            None => built.add_all(config, &certificates, &names)?,
        }
        let Built { mut files, authenticators } = built;
        let revoked = config.revocation_file.as_deref().map(RevocationList::load).transpose()?;
        files.extend(revoked.as_ref().map(RevocationList::file));
        Ok(Self { authenticator: Arc::new(Chain::new(authenticators, revoked)), certificates, files })
    }
}

struct Built {
    files: Vec<Arc<dyn Reload>>,
    authenticators: Vec<Arc<dyn Authenticator>>,
}

impl Built {
    /// Adds everybody who is configured.
    fn add_all(
        &mut self,
        config: &AuthenticationConfig,
        certificates: &ClientCertificates,
        names: &SystemNames,
    ) -> Result<(), AuthenticationError> {
        for method in config.order() {
            self.add(*method, config, certificates, names)?;
        }
        if config.anonymous {
            tracing::warn!("whoever presents no credentials is let in as system:anonymous (`anonymous = true`)");
            self.authenticators.push(Arc::new(Anonymous));
        }
        Ok(())
    }

    /// Adds a method, if it is configured.
    fn add(
        &mut self,
        method: Method,
        config: &AuthenticationConfig,
        certificates: &ClientCertificates,
        names: &SystemNames,
    ) -> Result<(), AuthenticationError> {
        match method {
            Method::ClientCertificate => self.authenticators.push(Arc::new(certificates.clone())),
            Method::TokenFile => {
                if let Some(path) = &config.token_file {
                    let tokens = TokenFile::load(path)?;
                    self.push(tokens.file(), tokens);
                }
            }
            Method::Jwt => {
                if let Some(path) = &config.jwt_file {
                    let issuers = JwtAuthenticator::load(path, names.clone())?;
                    self.push(issuers.file(), issuers);
                }
            }
            Method::TokenWebhook => {
                if let Some(webhook) = &config.token_webhook {
                    let webhook = TokenWebhook::load(webhook_settings(webhook, names))?;
                    self.push(webhook.file(), webhook);
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, file: Arc<dyn Reload>, authenticator: impl Authenticator + 'static) {
        self.files.push(file);
        self.authenticators.push(Arc::new(authenticator));
    }
}

fn webhook_settings(config: &TokenWebhookConfig, names: &SystemNames) -> TokenWebhookSettings {
    TokenWebhookSettings {
        kubeconfig: config.kubeconfig.clone(),
        timeout: config.timeout.unsigned_abs(),
        authenticated_ttl: config.authenticated_ttl.unsigned_abs(),
        unauthenticated_ttl: config.unauthenticated_ttl.unsigned_abs(),
        audiences: config.audiences.clone(),
        names: names.clone(),
    }
}
