//! The dashboard in a real browser.

mod support;

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use support::browser::Browser;
use support::eventually;
use support::http::{Access, Client, Lines};
use support::shared_store::start_stub_with_secrets;
use support::tunnel::{Agent, AgentOptions, CLUSTER, SampleApi, StubOptions, Tunnel, USERS};
use tokio::task::block_in_place;

/// The word in the head of the page about the stub.
const STANDING: &str = "document.getElementById('standing')?.textContent";

/// What the first notice on the page says.
const NOTICE: &str = "document.querySelector('.notice:not([hidden])')?.textContent";

/// A tunnel whose dashboard is open in a browser, with its first data shown.
struct Scene {
    browser: Browser,
    tunnel: Tunnel,
    address: String,
}

impl Scene {
    async fn start() -> Option<Self> {
        Self::start_with(StubOptions::default()).await
    }

    async fn start_with(options: StubOptions) -> Option<Self> {
        let browser = Browser::start().await?;
        let options = options.set("admin", "listen", "127.0.0.1:0");
        let mut tunnel = Tunnel::start_with(options, AgentOptions::default());
        let address = tunnel.stub.process.wait_for_log("admin address listens")["address"].as_str().unwrap().to_owned();
        let mut scene = Self { browser, tunnel, address };
        scene.open("").await;
        scene.browser.wait_until("the page is live", "document.querySelector('.connection.live') !== null").await;
        Some(scene)
    }

    /// Opens a view.
    async fn open(&mut self, route: &str) {
        let url = format!("http://{}/#/{route}", self.address);
        self.browser.open(&url).await;
    }

    /// Waits until some row has these words, or none has.
    async fn wait_for_row(&mut self, words: &[&str], there: bool) {
        let words = Value::from(words);
        let row = format!(
            "[...document.querySelectorAll('tbody tr')].some(row => {words}.every(word => row.textContent.includes(word)))"
        );
        self.browser.wait_until("a row", &format!("{row} === {there}")).await;
    }

    fn assert_nothing_was_wrong(&self) {
        assert_eq!(self.browser.complaints(), [""; 0]);
    }
}

/// A watch of a user, open as long as this lives.
async fn watch(kubeconfig: &Path) -> (Client, Lines) {
    let mut client = Access::of(kubeconfig).http1().await;
    let mut lines = Lines::of(client.open("/api/v1/namespaces/demo/pods?watch=true").await.into_body());
    lines.next().await;
    (client, lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_shown_and_a_watch_for_as_long_as_it_is_open() {
    let Some(mut scene) = Scene::start().await else { return };
    let agent = scene.tunnel.stub.agents(CLUSTER)[0]["name"].as_str().unwrap().to_owned();
    scene.wait_for_row(&[CLUSTER, "healthy"], true).await;
    scene.open("agents").await;
    scene.wait_for_row(&[&agent, "healthy"], true).await;
    let watch = watch(&scene.tunnel.kubeconfig()).await;
    scene.open("requests").await;
    scene.wait_for_row(&["alice", "watch", "pods", "demo/*", &agent], true).await;
    drop(watch);
    scene.wait_for_row(&["alice"], false).await;
    scene.assert_nothing_was_wrong();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_a_script_stays_text() {
    const NAME: &str = "<img src=x onerror='document.title=\"pwned\"'>";
    let Some(mut scene) = Scene::start().await else { return };
    let kubeconfig = scene.tunnel.stub.kubeconfig(CLUSTER, NAME, &[USERS]);
    let _watch = watch(&kubeconfig).await;
    // A refusal of its own making, and one of somebody whom the stub does not know.
    let access = Access::of(&kubeconfig);
    assert_eq!(access.get("/api/v1/namespaces/%3Cscript%3E/pods/..").await.status, 400);
    assert_eq!(access.anonymous().get("/%3Cimg%20src=x%3E").await.status, 401);
    scene.wait_for_row(&[NAME, "watch"], true).await;
    scene.wait_for_row(&[NAME, "400"], true).await;
    scene.wait_for_row(&["nobody known", "401"], true).await;
    assert_eq!(scene.browser.value("document.querySelectorAll('td img, td script').length").await, 0);
    assert_eq!(scene.browser.value("document.title").await, "Overview · qtunnel");
    scene.assert_nothing_was_wrong();
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_can_be_done_with_the_keyboard() {
    let Some(mut scene) = Scene::start().await else { return };
    let _watch = watch(&scene.tunnel.kubeconfig()).await;
    let browser = &mut scene.browser;
    browser.press("Tab").await;
    browser.wait_until("the first stop skips the header", "document.activeElement.className === 'skip'").await;
    browser.press("Enter").await;
    browser.wait_until("the content has the focus", "document.activeElement.id === 'content'").await;

    browser.press("4").await;
    browser.wait_until("a view has a key", "document.querySelector('h1').textContent === 'Live requests'").await;
    browser.press("/").await;
    browser.wait_until("so has the filter", "document.activeElement.matches('input.filter')").await;
    for key in "nobody".chars() {
        browser.press(&key.to_string()).await;
    }
    let rows = "document.querySelectorAll('tbody tr').length";
    browser.wait_until("nothing matches", &format!("{rows} === 0")).await;
    browser.press("Escape").await;
    browser.wait_until("the filter is gone", &format!("{rows} === 1")).await;

    // From the filter through the heads of the columns to the one row that the Tab key stops at.
    browser.press("/").await;
    for _ in 0..11 {
        browser.press("Tab").await;
    }
    browser.wait_until("a row has the focus", "document.activeElement.matches('tbody tr:focus-visible')").await;
    assert_ne!(browser.value("getComputedStyle(document.activeElement).outlineStyle").await, "none");
    browser.press("Enter").await;
    browser.wait_until("its cluster is opened", &format!("location.hash === '#/clusters/{CLUSTER}'")).await;
    browser.wait_until("and shown", &format!("document.querySelector('h1').textContent === '{CLUSTER}'")).await;
    browser.wait_until("with its agents", "document.querySelectorAll('.pill.good').length > 0").await;
    scene.assert_nothing_was_wrong();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_light_or_dark_fits_a_telephone_and_says_when_the_stub_is_gone() {
    let Some(mut scene) = Scene::start().await else { return };
    const BACKGROUND: &str = "getComputedStyle(document.body).backgroundColor";
    let browser = &mut scene.browser;
    browser.prefer_colours("light").await;
    let light = browser.value(BACKGROUND).await;
    browser.prefer_colours("dark").await;
    let dark = browser.value(BACKGROUND).await;
    assert_ne!(light, dark);
    // The button goes from the system's choice to light to dark.
    browser.press("t").await;
    assert_eq!(browser.value(BACKGROUND).await, light);

    browser.resize(390, 844).await;
    for view in 1..=5 {
        browser.press(&view.to_string()).await;
        let shown = format!("document.querySelectorAll('#views a')[{}].matches('[aria-current]')", view - 1);
        browser.wait_until("the view", &shown).await;
        let width = browser.value("document.documentElement.scrollWidth").await;
        assert!(width.as_u64().unwrap() <= 390, "view {view} is {width} wide");
    }
    scene.assert_nothing_was_wrong();
    scene.tunnel.stub.process.kill();
    scene.browser.wait_until("it says so", "document.querySelector('.connection.lost') !== null").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stub_that_shuts_down_says_so() {
    // Long enough for a look; the stub is killed before.
    let options = StubOptions::default().set("limits", "drain_delay", "120s");
    let Some(mut scene) = Scene::start_with(options).await else { return };
    scene.browser.wait_until("the stub is ready", &format!("{STANDING} === 'ready'")).await;
    scene.tunnel.stub.process.signal(Signal::TERM);
    scene.browser.wait_until("a word in the head", &format!("{STANDING} === 'shutting down'")).await;
    scene.browser.wait_until("a notice", &format!("({NOTICE} ?? '').includes('finishes what is open')")).await;
    scene.assert_nothing_was_wrong();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leads_is_shown_at_each_of_two_stubs() {
    let Some(mut browser) = Browser::start().await else { return };
    let api = SampleApi::start();
    let options = |name: &'static str| {
        StubOptions::default().set("", "name", name).set("admin", "listen", "127.0.0.1:0").set(
            "election",
            "lease",
            "default/qtunnel-stub",
        )
    };
    let mut first = start_stub_with_secrets(&api, options("first")).await;
    let leads = || (first.status()["election"]["leads"] == true).then_some(());
    block_in_place(|| eventually("a leader", leads));
    let mut second = first.start_another(options("second"));
    for (stub, word) in [(&mut first, "leads"), (&mut second, "stands by")] {
        let address = stub.process.wait_for_log("admin address listens")["address"].as_str().unwrap().to_owned();
        browser.open(&format!("http://{address}/")).await;
        browser.wait_until("a word in the head", &format!("{STANDING} === '{word}'")).await;
    }
    browser.wait_until("who does", &format!("/ first_.* leads since /.test({NOTICE})")).await;
    assert_eq!(browser.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_wait_for_another_api_server_to_go_are_named() {
    let Some(mut scene) = Scene::start().await else { return };
    let (other, stub) = (SampleApi::start(), &scene.tunnel.stub);
    let uid = || stub.status()["clusters"][0]["apiServer"].as_str().map(str::to_owned);
    let uid = block_in_place(|| eventually("the first one's UID", uid));
    let _newcomer = Agent::start(stub, CLUSTER, &other.upstream(), AgentOptions::default());
    let waiting = || {
        let agents = stub.agents(CLUSTER);
        let agent = agents.iter().find(|agent| agent["state"] == "waiting")?;
        Some(agent["name"].as_str()?.to_owned())
    };
    let name = block_in_place(|| eventually("an agent that waits", waiting));
    scene.open(&format!("clusters/{CLUSTER}")).await;
    scene.wait_for_row(&[&name, "waiting"], true).await;
    scene.browser.wait_until("a notice", &format!("({NOTICE} ?? '').includes('{name}')")).await;
    let served = format!("document.querySelector('.fact:not([hidden])')?.textContent.includes('{uid}')");
    scene.browser.wait_until("the API server", &served).await;
    scene.assert_nothing_was_wrong();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_curve_is_there_for_a_page_that_is_opened_later() {
    let Some(mut scene) = Scene::start().await else { return };
    let access = Access::of(&scene.tunnel.kubeconfig());
    for _ in 0..20 {
        assert_eq!(access.get("/api/v1/namespaces/demo/pods").await.status, 200);
    }
    let series = format!("fetch('/api/v1/series?cluster={CLUSTER}').then(answer => answer.json())");
    let counted =
        format!("{series}.then(series => series.requests.some(rate => rate > 0) && series.p99Ms.some(Boolean))");
    scene.browser.wait_until("a sample of it", &counted).await;
    scene.open(&format!("clusters/{CLUSTER}")).await;
    scene.browser.wait_until("curves", "document.querySelectorAll('.chart path.line').length >= 4").await;
    scene.assert_nothing_was_wrong();
}
