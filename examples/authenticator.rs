//! Users as an organisation knows them: here a certificate says who it is, and a directory what groups they are in today.
//!
//! `cargo run --example authenticator`

mod support;

use std::collections::HashMap;

use qtunnel::demo::client::ClientError;
use qtunnel::stub::Stub;
use qtunnel::stub::authenticate::{Authenticating, Authenticator, Credentials, NotVouched, Proof, Vouched};
use qtunnel::wire::Identity;

/// The groups of everybody in the organisation. One that is asked over the network would remember its answers for seconds, and
/// bound how long it waits.
#[derive(Debug)]
struct Directory(HashMap<&'static str, Vec<String>>);

impl Directory {
    fn look_up(&self, credentials: &Credentials) -> Result<Option<Vouched>, NotVouched> {
        // TLS has verified it, and that the client has its key. Who presents something else is not for this directory to know.
        let Some(certificate) = credentials.certificate() else { return Ok(None) };
        let user = certificate.identity.user.as_str();
        let groups = self.0.get(user).ok_or_else(|| NotVouched::Refused(format!("{user} has left")))?;
        println!("directory: {user} is in {}", groups.join(", "));
        let identity = Identity { groups: groups.clone(), ..Identity::named(user) };
        Ok(Some(Vouched { identity, by: Proof::Certificate, until: Some(certificate.validity.not_after) }))
    }
}

impl Authenticator for Directory {
    fn name(&self) -> &'static str {
        "directory"
    }

    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> Authenticating<'a> {
        Box::pin(std::future::ready(self.look_up(credentials)))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let site = support::Site::new()?;
    let directory = Directory(HashMap::from([("alice", support::identity("alice").groups)]));
    let stub = Stub::builder(site.config()?).authenticator(directory).bind().await?;
    let tunnel = site.run(stub).await?;

    let pods = tunnel.client_of("alice").await?.get(support::PODS).await?;
    println!("alice sees {} pods", support::count_of_items(&pods)?);
    match tunnel.client_of("bob").await?.get(support::PODS).await {
        Err(ClientError::Status { code, .. }) => println!("bob, whose certificate is good: {code}"),
        other => anyhow::bail!("bob is not in the directory: {other:?}"),
    }
    tunnel.stop().await
}
