//! `qtunnel policy check`.

use std::process::ExitCode;

use serde_json::json;

use super::CommandResult;
use super::args::{CheckedObject, CheckedResource, OutputFormat, PolicyCheckArgs};
use crate::kube::RequestInfo;
use crate::stub::authorize::{
    AccessWebhook, AllowAll, Authorizer, DenyAll, Explanation, Labels, Mismatch, OwnedAttributes, Policy, PolicyFile,
};
use crate::stub::{AuthorizationConfig, StubConfig};
use crate::wire::Identity;

/// Says whether a request would be allowed, and by what. Exits with 1 where it would not.
pub async fn check(args: PolicyCheckArgs) -> CommandResult {
    let config = StubConfig::load(&args.config)?;
    let attributes = attributes(&args);
    let explanation = match &config.authorization {
        AuthorizationConfig::AllowAll {} => fixed(&AllowAll, &attributes).await?,
        AuthorizationConfig::DenyAll {} => fixed(&DenyAll, &attributes).await?,
        AuthorizationConfig::Webhook(webhook) => {
            let policy = webhook.policy_file.as_deref().map(PolicyFile::load).transpose()?;
            fixed(&AccessWebhook::load(webhook.settings(), policy)?, &attributes).await?
        }
        AuthorizationConfig::Policy { policy_file } => Policy::load(policy_file)?.explain(&attributes.borrowed()),
    };
    match args.output {
        OutputFormat::Table => print!("{}", text(&explanation, &attributes)),
        OutputFormat::Json => println!("{:#}", json(&explanation)),
    }
    Ok(if explanation.decision.is_allowed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The decision of an authorizer that shows no rules.
async fn fixed(authorizer: &dyn Authorizer, attributes: &OwnedAttributes) -> anyhow::Result<Explanation> {
    let decision = authorizer.authorize(attributes.borrowed()).await?;
    Ok(Explanation { decision, cluster_labels: Labels::new(), rules: Vec::new() })
}

fn attributes(args: &PolicyCheckArgs) -> OwnedAttributes {
    let identity = |user: &str, groups: &[String]| Identity { groups: groups.to_vec(), ..Identity::named(user) };
    OwnedAttributes {
        user: identity(&args.user, &args.group),
        requested: args.act_as.as_deref().map(|user| identity(user, &args.act_as_group)),
        cluster: args.cluster.clone(),
        request: request(args),
    }
}

fn request(args: &PolicyCheckArgs) -> RequestInfo {
    let CheckedObject { resource, path } = &args.object;
    let verb = args.verb.clone();
    match resource {
        Some(CheckedResource { resource, api_group, subresource }) => RequestInfo {
            is_resource_request: true,
            verb,
            api_group: api_group.clone(),
            namespace: args.namespace.clone().unwrap_or_default(),
            resource: resource.clone(),
            subresource: subresource.clone(),
            name: args.name.clone().unwrap_or_default(),
            ..RequestInfo::default()
        },
        None => RequestInfo { verb, path: path.clone().unwrap_or_default(), ..RequestInfo::default() },
    }
}

fn text(explanation: &Explanation, attributes: &OwnedAttributes) -> String {
    let verdict = if explanation.decision.is_allowed() { "allowed" } else { "refused" };
    let mut text = format!("{verdict}: {}\n  {}\n", sentence(attributes), explanation.decision.reason());
    let close: Vec<_> = close_misses(explanation).collect();
    if !explanation.decision.is_allowed() && !close.is_empty() {
        text.push_str("Rules for this user and cluster that do not allow it:\n");
        for (rule, mismatch) in &close {
            text.push_str(&format!("  {rule}: {mismatch}\n"));
        }
        if close.iter().any(|(_, mismatch)| *mismatch == Mismatch::ClusterLabels) {
            text.push_str(&format!("Labels of the cluster: {}\n", labels(explanation)));
        }
    }
    text
}

fn labels(explanation: &Explanation) -> String {
    let labels: Vec<_> = explanation.cluster_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() { "none".to_owned() } else { labels.join(", ") }
}

fn sentence(attributes: &OwnedAttributes) -> String {
    let OwnedAttributes { user, requested, cluster, request } = attributes;
    let requested = requested.as_ref().map(|identity| format!(" as {:?}", identity.user)).unwrap_or_default();
    let object = match request.is_resource_request {
        false => request.path.clone(),
        true => {
            let group = if request.api_group.is_empty() { String::new() } else { format!(".{}", request.api_group) };
            let name = if request.name.is_empty() { String::new() } else { format!(" {:?}", request.name) };
            let place = match request.namespace.as_str() {
                "" => String::new(),
                namespace => format!(" in namespace {namespace:?}"),
            };
            format!("{}{group}{name}{place}", request.resource_and_subresource())
        }
    };
    format!("user {:?}{requested}, {} {object} of cluster \"{cluster}\"", user.user, request.effective_verb())
}

/// The rules that are about this user and this cluster, and what of them does not match.
fn close_misses(explanation: &Explanation) -> impl Iterator<Item = (&str, Mismatch)> {
    let misses = explanation.rules.iter().filter_map(|rule| Some((rule.rule.as_str(), rule.mismatch?)));
    misses.filter(|(_, mismatch)| !matches!(mismatch, Mismatch::Cluster | Mismatch::Subject))
}

fn json(explanation: &Explanation) -> serde_json::Value {
    let rules = explanation.rules.iter().map(|rule| {
        json!({"name": rule.rule, "matches": rule.mismatch.is_none(), "mismatch": rule.mismatch.map(Mismatch::key)})
    });
    json!({
        "allowed": explanation.decision.is_allowed(),
        "reason": explanation.decision.reason(),
        "clusterLabels": explanation.cluster_labels,
        "rules": rules.collect::<Vec<_>>(),
    })
}
