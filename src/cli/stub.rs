//! `qtunnel stub` and `qtunnel stub init`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use super::args::{StubInitArgs, StubRunArgs};
use super::{CommandResult, shutdown_on_signal};
use crate::pki::{DirectoryStore, HostName, StubKeys, private_file};
use crate::stub::{Stub, StubConfig};

/// The settings file in a stub's directory.
const SETTINGS: &str = "stub.toml";

/// Makes keys and a settings file.
pub fn init(args: &StubInitArgs) -> CommandResult {
    let settings = args.dir.join(SETTINGS);
    if settings.exists() {
        bail!("{} exists already; nothing was changed. Choose another --dir, or remove it first", settings.display());
    }
    let store = Arc::new(DirectoryStore::new(&args.dir));
    StubKeys::create(store, &args.host, args.base_domain.as_ref(), SystemTime::now())?;
    private_file::write_new(&settings, settings_text(args).as_bytes())?;
    let path = settings.display();
    println!("Made keys and settings for a stub in {}.", args.dir.display());
    println!();
    println!("Next:");
    println!("  qtunnel stub --config {path}");
    println!("  qtunnel token create --config {path} --cluster ID       # for an agent to join with");
    println!("  qtunnel kubeconfig --config {path} --cluster ID --user NAME");
    Ok(ExitCode::SUCCESS)
}

/// Runs a stub.
pub fn run(args: StubRunArgs) -> CommandResult {
    let path = args
        .config
        .context("--config FILE is missing; `qtunnel stub init --dir DIR --host NAME` makes a settings file")?;
    let mut config = StubConfig::load(&path)?;
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    if let Some(name) = args.name {
        config.name = name;
    }
    if let Some(congestion) = args.congestion {
        config.agents.congestion = congestion;
    }
    if let Some(qlog) = args.qlog {
        config.agents.qlog = Some(qlog);
    }
    let threads = args.threads.unwrap_or(config.threads);
    threads.runtime().context("cannot start the threads that do the work")?.block_on(serve(config, &path))
}

async fn serve(config: StubConfig, settings: &Path) -> CommandResult {
    let shutdown = shutdown_on_signal()?;
    let stub = Stub::builder(config).settings_file(settings).bind().await?;
    reload_on_hangup(stub.reload())?;
    tracing::info!(address = %stub.local_address()?, "stub listens on TCP for users and on UDP and TCP for agents");
    stub.run(shutdown).await;
    Ok(ExitCode::SUCCESS)
}

/// SIGHUP, which would otherwise end the process, makes the stub read its files again.
fn reload_on_hangup(reload: Arc<Notify>) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP: reading every file again");
            reload.notify_one();
        }
    });
    Ok(())
}

/// Whether `path` is a stub's settings file, loaded.
pub fn load(path: &Path) -> anyhow::Result<(StubConfig, StubKeys)> {
    let config = StubConfig::load(path)?;
    let keys = StubKeys::load(config.open_store()?, SystemTime::now())?;
    Ok((config, keys))
}

fn settings_text(args: &StubInitArgs) -> String {
    let port = args.port;
    // `--host` is required.
    let first = args.host.first().map(public_host).unwrap_or_default();
    let base_domain = match &args.base_domain {
        Some(domain) => format!("base_domain = \"{domain}\""),
        None => "# base_domain = \"k8s.example.com\"".to_owned(),
    };
    format!(
        r#"# Settings of a qtunnel stub. Unknown keys are errors. Relative paths are relative to this file.

# The stub's name in logs and at its agents.
# name = "stub"

# Where to listen: TCP for users, UDP on the same port for agents. Agents whose network blocks UDP come over TCP too.
listen = "[::]:{port}"

# What users and agents dial; it is written into kubeconfigs.
public_address = "{first}:{port}"

# With it each cluster also has the host name <id>.<base_domain>. The server certificate must cover
# *.<base_domain>: `qtunnel stub init --base-domain` makes such a one.
{base_domain}

# How many threads do the work. More do more in total, and take more CPU time for the same. Default: one less than there are
# cores, and at least one.
# threads = 1

# Other stubs with the same [store], as agents dial them. Agents that connect to one of them connect to all. This stub may be
# among them.
# peers = ["stub-0.example.com:8443", "stub-1.example.com:8443"]

# Where this stub keeps what is its own, agents' TLS sessions among it, and, unless [store] says otherwise, what stubs share.
# state_dir = "."

[store]
# What stubs share: keys, join tokens, the list of clusters and that of revoked agents. Stubs with the same store are one to users
# and agents. An agent that revoked-agents names, CLUSTER/AGENT on a line of its own, is turned away by all of them within seconds.
# directory:  files in `path`; by default in state_dir.
# kubernetes: the Secrets <name_prefix>-keys, -tokens, -clusters and -revoked of `namespace` (default: the pod's). Keys get there
#             by `kubectl create secret generic qtunnel-stub-keys --from-file=DIRECTORY`.
kind = "directory"
# path = "/var/lib/qtunnel-shared"
# namespace = "qtunnel-stub"
# name_prefix = "qtunnel-stub"

# Without this section every stub is ready. With it, one leads and is ready (/readyz), and the others stand by: for several
# stubs behind one address.
# [election]
# The Lease (coordination.k8s.io), namespace/name.
# lease = "qtunnel-stub/qtunnel-stub"
# How long others respect a Lease that they do not see renewed; how long the leader goes on when it cannot renew; how often it
# renews and the others look.
# lease_duration = "15s"
# renew_deadline = "10s"
# retry_period = "2s"

# The cluster that has those Secrets and that Lease. Default: the one that the stub runs in, as its ServiceAccount.
# [kubernetes]
# kubeconfig = "kubeconfig.yaml"

# Every file that [authentication], [authorization] and [audit] name is read again when it changes, and at SIGHUP. One that
# cannot be used changes nothing: the log says what is wrong, and metrics count it. So is this file, for [limits] but for
# client_connections and quic_handshakes, peers, agents.certificate_ttl and agents.report_interval; the log names what else has
# changed and waits for the next start.
#
# agent-ca.pem and user-ca.pem begin with the authority that signs, and may hold others that are trusted as well. In a
# directory they are read again like the files above. To exchange one: add the new certificate; put it first, with its key in
# agent-ca-key.pem or user-ca-key.pem, and start the stub again; remove the old certificate when nobody has one of it any more.
# Requests of its users end within ten seconds then, and its agents are refused when they connect again.

[authentication]
# Client certificates of user-ca.pem are always accepted: the common name is the user, each organization a group. Requests
# that are open end within ten seconds when their user is not known any more.
#
# Further authorities of client certificates, PEM.
# client_ca_files = ["company-ca.pem"]
# Lists of revoked client certificates (CRL), PEM or DER.
# crl_files = ["users.crl"]
# Users and certificates that are not accepted any more, however they authenticate: a line `user NAME` or
# `certificate SERIAL` for each.
# revocation_file = "revoked.txt"
# Static bearer tokens, a line `token,user,uid,"group1,group2"` for each.
# token_file = "tokens.csv"
# Issuers of JSON Web Tokens (OpenID Connect): an AuthenticationConfiguration as kube-apiserver reads it, with expressions
# (CEL). They have at most 4096 bytes, no loop within a loop, and look at claims of at most 2048 values.
# jwt_file = "authentication.yaml"
# Whether whoever presents nothing is system:anonymous.
# anonymous = false
# Names under system: that issuers, webhooks and further authorities may give; never system:masters.
# system_names = ["system:serviceaccount:*", "system:serviceaccounts*"]
# The order in which what a user presents is looked at.
# order = ["client-certificate", "token-file", "jwt", "token-webhook"]

# Who else knows bearer tokens: a kubeconfig file that leads to a webhook for TokenReview (authentication.k8s.io/v1).
# [authentication.token_webhook]
# kubeconfig = "token-webhook.yaml"
# timeout = "10s"
# How long answers are kept; a token that is revoked there is good for so long.
# authenticated_ttl = "5s"
# unauthenticated_ttl = "5s"
# audiences = []

[authorization]
# allow-all: every authenticated user may make every request to every cluster; each cluster's own RBAC decides what
#            that user may do there.
# policy:    only what a rule of `policy_file` allows (YAML; deploy/policy.example.yaml explains it), and then the cluster's
#            own RBAC. The file is read again when it changes and at SIGHUP; open requests that are not allowed any more
#            end. `qtunnel policy check` says what a policy allows, and why.
# webhook:   what a webhook for SubjectAccessReview (authorization.k8s.io/v1) allows; `kubeconfig` leads to it. The cluster is
#            the extra qtunnel.dev/cluster. Where it has no opinion `policy_file` decides, if there is one.
# deny-all:  nobody may do anything.
mode = "allow-all"
# policy_file = "policy.yaml"
# For webhook: how long it may take, how long its answers are kept, and what its silence means: deny, or no-opinion.
# kubeconfig = "authorization-webhook.yaml"
# timeout = "3s"
# authorized_ttl = "10s"
# unauthorized_ttl = "10s"
# failure_policy = "deny"

[audit]
# Where to tell who did what, as audit.k8s.io/v1 events: none; stdout or file, a line of JSON for each; or webhook, in lists
# to where `kubeconfig` leads.
sink = "none"
# kubeconfig = "audit-webhook.yaml"
# timeout = "10s"
# The file. It is rotated before it grows past max_length bytes; `keep` rotated ones (<path>.1, .2, ...) are kept.
# path = "audit.log"
# max_length = 104857600
# keep = 10
# What happens when the audit log cannot be written. It has no default:
# block: no request passes without its place in the log; after 10 s it is refused with a 503.
# drop:  requests pass, events are lost; the log says so and the metrics count them.
# on_failure = "block"
# Events that may wait to be written. With block each open request holds a place.
# queue_length = 16384

[admin]
# Where to answer over plain HTTP: the dashboard (/), /metrics (Prometheus), /healthz, /readyz and /api/v1/. Nobody is
# authenticated there: keep it on loopback or in a private network. From elsewhere `ssh -L 9443:127.0.0.1:9443` leads there.
# listen = "127.0.0.1:9443"
# Names besides localhost and IP addresses by which it may be asked.
# hosts = ["stub.internal"]
# Whether callers from other hosts may see the dashboard and /api/v1/ too, which tell of users and their requests. Metrics and
# health they always may.
# remote_dashboard = false

[tracing]
# An OpenTelemetry collector that takes a span of each request over OTLP/HTTP. Agents have --otlp-endpoint.
# otlp_endpoint = "http://127.0.0.1:4318"

[agents]
# How long an agent's certificate is valid; agents renew theirs when two thirds are over.
# certificate_ttl = "720h"
# How often an agent reports at least. One that has not reported for three times as long gets no new requests while
# another agent serves its cluster. Those who come when more than 500 are connected report less often, down to every 30 s.
# report_interval = "5s"
# How long a connection and its streams live without a packet from the agent. The agent's own setting counts if it is
# shorter. An agent whose connection does not answer gets no new requests after seconds.
# idle_timeout = "5m"
# Bytes that one stream may have in flight towards the stub: 16 MiB are 1 Gbit/s at 100 ms. At least 256 KiB over TCP.
# stream_window = 16777216
# Which of several healthy agents takes the next request:
# least-streams:      the one with fewer open requests of two chosen at random.
# random-round-robin: each in its turn.
# lowest-latency:     mostly one from which answers come soon: round trip to its API server, times its open requests.
# selector = "least-streams"
# How congestion on the way to agents is controlled: bbr, which does not take every lost packet for congestion and keeps
# queues short; or cubic, which gets more where others' downloads fill a deep queue all the time.
# congestion = "bbr"
# A directory in which each connection over QUIC is recorded (qlog), for looking into a problem: at most 1,000 files and 1 GiB
# from one start to the next.
# qlog = "qlog"

[http3]
# Whether clients may use HTTP/3 on the UDP port. exec, attach and port-forward use HTTP/1.1 all the same.
# enabled = true
# Whether answers over HTTP/1.1 and HTTP/2 say so (Alt-Svc).
# advertise = true

[limits]
# An address is an IPv4 address or an IPv6 network of 64 bits. Too many requests are answered with 429; the metric
# qtunnel_limited counts whatever is refused by a limit.
# Connections on the TCP port at once: clients, and agents over TCP; and as many clients over HTTP/3.
# client_connections = 20000
# New connections of one address in a second, ten times as many in a burst.
# connections_per_second = 200
# Connections of one address at once on which nobody has authenticated, and how long they have for it.
# strangers_per_address = 1000
# authentication_timeout = "30s"
# QUIC handshakes at once. While half of them are in progress, addresses have to be proven (Retry).
# quic_handshakes = 1000
# Requests of one address in a second that are refused with 401, ten times as many in a burst; 429 from there on.
# unauthenticated_per_second = 10
# Requests at once on one HTTP/2 or HTTP/3 connection (there at most 1000), watches among them.
# requests_per_connection = 10000
# Requests of one user in a second, twice as many in a burst; 0 is no bound.
# requests_per_second_per_user = 0
# Requests at once that end soon, of one user and to one cluster.
# requests_per_user = 1000
# requests_per_cluster = 4000
# Requests at once that may go on for long: watches, logs, exec, port-forwards.
# watches_per_user = 10000
# watches_per_cluster = 20000
# The longest request body in bytes, but for upgrades and `proxy` requests; 0 is no bound.
# request_body_length = 1073741824
# How long a TLS or QUIC handshake may take, and a client's request head.
# handshake_timeout = "10s"
# How long a request waits for an agent to take its stream, and for one whose connection answers.
# dispatch_timeout = "10s"
# How long the answer to a request that is not a watch, a log or the like may take to begin.
# response_timeout = "10m"
# While an agent's connection does not answer, how long a request is waited for whose answer has not begun.
# silence_timeout = "30s"
# At a stop, how long the stub still takes requests when it is not ready any more: as long as load balancers need to notice.
# drain_delay = "1s"
# After that, how long requests may take to end.
# shutdown_timeout = "10s"
"#
    )
}

fn public_host(host: &HostName) -> String {
    let text = host.to_string();
    if text.contains(':') { format!("[{text}]") } else { text }
}
