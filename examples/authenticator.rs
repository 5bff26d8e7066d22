//! Users of an organisation's own kind: here by badges, which are bearer tokens.
//!
//! `cargo run --example authenticator`

mod support;

use std::collections::HashMap;

use qtunnel::demo::client::ClientError;
use qtunnel::kube::kubeconfig::UserCredentials;
use qtunnel::kube::user_token::TokenHash;
use qtunnel::stub::Stub;
use qtunnel::stub::authenticate::{Authenticating, Authenticator, Credentials, NotVouched, Proof, Vouched};
use qtunnel::wire::BearerToken;

/// Knows whose badge is whose. It keeps hashes: what leaks out of here opens no door.
#[derive(Debug)]
struct Badges(HashMap<TokenHash, &'static str>);

impl Authenticator for Badges {
    fn name(&self) -> &'static str {
        "badges"
    }

    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> Authenticating<'a> {
        Box::pin(async move {
            let Some(badge) = credentials.token_hash() else { return Ok(None) };
            let user = self.0.get(badge).ok_or_else(|| NotVouched::Refused("nobody has this badge".to_owned()))?;
            println!("badges: it is {user}");
            Ok(Some(Vouched { identity: support::identity(user), by: Proof::Token, until: None }))
        })
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let site = support::Site::new()?;
    let badges = ["badge-of-alice"].iter().filter_map(|badge| BearerToken::new(*badge));
    let badges = Badges(badges.map(|badge| (TokenHash::of(&badge), "alice")).collect());
    let stub = Stub::builder(site.config()?).authenticator(badges).bind().await?;
    let tunnel = site.run(stub).await?;

    let alice = tunnel.client(UserCredentials::Token("badge-of-alice")).await?;
    println!("alice sees {} pods", support::count_of_items(&alice.get(support::PODS).await?)?);
    let stranger = tunnel.client(UserCredentials::Token("found-on-the-floor")).await?;
    match stranger.get(support::PODS).await {
        Err(ClientError::Status { code, .. }) => println!("another badge: {code}"),
        other => anyhow::bail!("another badge: {other:?}"),
    }
    // A certificate is nothing that these badges know of.
    assert!(tunnel.client_of("carol").await?.get(support::PODS).await.is_err());
    tunnel.stop().await
}
