//! `qtunnel kubeconfig`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};

use super::CommandResult;
use super::args::KubeconfigArgs;
use crate::kube::kubeconfig::{KubeconfigSpec, UserCredentials, render};
use crate::pki::{StubKeys, private_file};
use crate::stub::{KnownClusters, StubConfig};
use crate::wire::ClusterId;

/// Issues a certificate and prints a kubeconfig with it.
pub fn run(args: &KubeconfigArgs) -> CommandResult {
    let (config, keys) = super::stub::load(&args.config)?;
    let known = KnownClusters::new(keys.store().clone()).all().context("cannot read the list of clusters")?;
    if !known.contains(&args.cluster) {
        let known = known.iter().map(ClusterId::as_str).collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none yet".to_owned() } else { known };
        bail!(
            "cluster \"{}\" does not exist (known: {known}); `qtunnel token create --cluster {}` makes it",
            args.cluster,
            args.cluster
        );
    }
    let ttl = args.ttl.try_into().ok().filter(|ttl: &Duration| !ttl.is_zero());
    let ttl = ttl.context("--ttl has to be longer than nothing, for example 8h")?;
    let user = User { name: &args.user, groups: &args.group, ttl };
    let text = kubeconfig_for(&config, &keys, &args.cluster, &config.public_address, &user)?;
    match &args.out {
        Some(path) => {
            private_file::write(path, text.as_bytes())?;
            eprintln!("Wrote {}; try `kubectl --kubeconfig {} get pods`.", path.display(), path.display());
        }
        None => print!("{text}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The user that a kubeconfig is for.
pub struct User<'a> {
    /// The name.
    pub name: &'a str,
    /// The groups.
    pub groups: &'a [String],
    /// How long the certificate is valid.
    pub ttl: Duration,
}

/// A kubeconfig for `cluster` behind the stub at `address`, with a fresh certificate.
pub fn kubeconfig_for(
    config: &StubConfig,
    keys: &StubKeys,
    cluster: &ClusterId,
    address: &str,
    user: &User<'_>,
) -> anyhow::Result<String> {
    let certificate = keys.user_authority().issue_user(user.name, user.groups, user.ttl, SystemTime::now())?;
    let server = match (&config.base_domain, address.rsplit_once(':')) {
        (Some(domain), Some((_, port))) => format!("https://{cluster}.{domain}:{port}"),
        _ => format!("https://{address}/clusters/{cluster}"),
    };
    Ok(render(&KubeconfigSpec {
        cluster: cluster.as_str(),
        server: &server,
        certificate_authority: Some(&keys.server_authority().certificate_pem()),
        tls_server_name: None,
        user: user.name,
        credentials: UserCredentials::ClientCertificate {
            chain: &certificate.certificate_pem(),
            key: &certificate.key_pem(),
        },
        namespace: None,
    }))
}
