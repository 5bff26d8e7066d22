//! Attacks on a running stub, each against one of its limits: what is refused, that it is counted, and that others are
//! served meanwhile.

#[path = "../support/mod.rs"]
mod support;

mod connections;
mod http;
mod requests;

use support::http::get_plain;
use support::http1::Head;
use support::scene::Scene;
use support::scripted_upstream::{Next, UpstreamConnection};
use support::tunnel::StubOptions;

/// A request that is answered at once.
const LIST: &str = "/api/v1/namespaces/demo/pods";

/// A stub and what counts in it.
struct Attacked {
    scene: Scene,
    admin: String,
}

impl Attacked {
    /// A stub with these limits.
    async fn start(limits: &[(&'static str, toml::Value)]) -> Self {
        Self::start_with(limits, async |_head, connection| connection.answer("200 OK", &[], "fine").await).await
    }

    /// The same with an API server of its own.
    async fn start_with<H, F>(limits: &[(&'static str, toml::Value)], handler: H) -> Self
    where
        H: Fn(Head, UpstreamConnection) -> F + Send + Sync + 'static,
        F: Future<Output = Next> + Send + 'static,
    {
        let options = StubOptions::default().set("admin", "listen", "127.0.0.1:0");
        let options = limits.iter().fold(options, |options, (key, value)| options.set("limits", key, value.clone()));
        let mut scene = Scene::start_with(options, &[], handler).await;
        let admin =
            scene.stub.process.wait_for_log("admin address listens")["address"].as_str().expect("text").to_owned();
        Self { scene, admin }
    }

    /// How often a limit has refused something.
    async fn limited(&self, limit: &str) -> u64 {
        self.metric(&format!(r#"qtunnel_limited_total{{limit="{limit}"}}"#)).await
    }

    async fn metric(&self, name: &str) -> u64 {
        let answer = get_plain(&self.admin, "/metrics").await;
        let value = answer.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_default()
    }

    /// How many lines of the stub's log tell of refusals because of `limit`.
    fn logged(&self, limit: &str) -> usize {
        self.scene.stub.process.logged(&format!("refused because of limits.{limit}")).len()
    }
}
