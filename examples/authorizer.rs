//! Decisions of an organisation's own kind: here whoever is on call may write, and everybody may read.
//!
//! `cargo run --example authorizer`

mod support;

use std::collections::BTreeSet;

use qtunnel::demo::client::ClientError;
use qtunnel::stub::Stub;
use qtunnel::stub::authorize::{Attributes, Authorizer, Deciding, Decision};
use serde_json::json;

/// Who is on call. Where the roster can change while the stub runs, `Authorizer::changes` says so, and requests that are open are
/// decided about again.
#[derive(Debug)]
struct OnCall(BTreeSet<String>);

impl Authorizer for OnCall {
    fn authorize<'a>(&'a self, attributes: Attributes<'a>) -> Deciding<'a> {
        let Attributes { user, cluster, request, .. } = attributes;
        // Not the verb alone: `kubectl exec` is a GET that counts as `create`.
        let verb = request.effective_verb();
        let decision = match verb {
            "get" | "list" | "watch" => Decision::Allow("everybody may read".into()),
            _ if self.0.contains(&user.user) => Decision::Allow("on call".into()),
            _ => Decision::Deny("only who is on call may do this".into()),
        };
        println!("on-call: {} {verb} {} in {cluster}: {}", user.user, request.resource, decision.reason());
        Box::pin(std::future::ready(Ok(decision)))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let site = support::Site::new()?;
    let on_call = OnCall(BTreeSet::from(["alice".to_owned()]));
    let stub = Stub::builder(site.config()?).authorizer(on_call).bind().await?;
    let tunnel = site.run(stub).await?;

    let path = "/api/v1/namespaces/demo/configmaps";
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "example" } });
    let bob = tunnel.client_of("bob").await?;
    bob.get(path).await?;
    match bob.create(path, &object).await {
        Err(ClientError::Status { code, message }) => println!("{code}: {message}"),
        other => anyhow::bail!("bob is not on call: {other:?}"),
    }
    tunnel.client_of("alice").await?.create(path, &object).await?;
    println!("alice has made a ConfigMap");
    tunnel.stop().await
}
