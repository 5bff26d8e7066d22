//! `qtunnel policy`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::OutputFormat;
use crate::wire::ClusterId;

/// `qtunnel policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say whether the stub would let a request pass, and which rule decides. Exits with 1 if it would not.
    #[command(after_help = "\
Examples:
  qtunnel policy check --config stub.toml --cluster prod-eu --user alice --verb create --resource pods/exec --namespace demo
  qtunnel policy check --config stub.toml --cluster prod-eu --user bob --group devs --verb list --resource deployments.apps
  qtunnel policy check --config stub.toml --cluster prod-eu --user bob --verb get --path /version --output json")]
    Check(PolicyCheckArgs),
}

/// `qtunnel policy check`.
#[derive(Debug, Args)]
pub struct PolicyCheckArgs {
    /// The stub's settings file.
    #[arg(long, env = "QTUNNEL_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// The cluster.
    #[arg(long, value_name = "ID")]
    pub cluster: ClusterId,
    /// The user.
    #[arg(long, value_name = "NAME")]
    pub user: String,
    /// A group the user is in; may be given several times. Every user is in system:authenticated.
    #[arg(long, value_name = "GROUP")]
    pub group: Vec<String>,
    /// Whom the user acts as, as with `kubectl --as`.
    #[arg(long = "as", value_name = "NAME")]
    pub act_as: Option<String>,
    /// A group the user acts as a member of; may be given several times.
    #[arg(long = "as-group", value_name = "GROUP", requires = "act_as")]
    pub act_as_group: Vec<String>,
    /// get, list, watch, create, update, patch, delete or deletecollection; for a path an HTTP method in lower case.
    #[arg(long, value_name = "VERB")]
    pub verb: String,
    /// What for.
    #[command(flatten)]
    pub object: CheckedObject,
    /// The namespace; without it every namespace, and what is in none.
    #[arg(long, short, value_name = "NAMESPACE", requires = "resource")]
    pub namespace: Option<String>,
    /// The object's name.
    #[arg(long, value_name = "NAME", requires = "resource")]
    pub name: Option<String>,
    /// How to print it.
    #[arg(long, short, default_value = "table", value_name = "FORMAT")]
    pub output: OutputFormat,
}

/// What a request is for: one of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct CheckedObject {
    /// The resource in the plural, as kubectl writes it: pods, pods/exec, deployments.apps, deployments.apps/scale.
    #[arg(long, value_name = "RESOURCE[.GROUP][/SUBRESOURCE]")]
    pub resource: Option<CheckedResource>,
    /// A path that is no resource, such as /version.
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
}

/// A resource as kubectl writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedResource {
    /// In the plural.
    pub resource: String,
    /// Empty for the core group.
    pub api_group: String,
    /// Empty for the resource itself.
    pub subresource: String,
}

impl std::str::FromStr for CheckedResource {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (object, subresource) = text.split_once('/').unwrap_or((text, ""));
        let (resource, api_group) = object.split_once('.').unwrap_or((object, ""));
        let owned = str::to_owned;
        Ok(Self { resource: owned(resource), api_group: owned(api_group), subresource: owned(subresource) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_read_as_kubectl_writes_it() {
        for (text, resource, api_group, subresource) in [
            ("pods", "pods", "", ""),
            ("pods/exec", "pods", "", "exec"),
            ("deployments.apps", "deployments", "apps", ""),
            ("roles.rbac.authorization.k8s.io/x", "roles", "rbac.authorization.k8s.io", "x"),
        ] {
            let CheckedResource { resource: r, api_group: g, subresource: s } = text.parse().unwrap();
            assert_eq!((r.as_str(), g.as_str(), s.as_str()), (resource, api_group, subresource), "{text}");
        }
    }
}
