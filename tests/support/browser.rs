//! A real browser without a window, driven over the Chrome DevTools Protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>).

use std::path::PathBuf;
use std::process::Command;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::kubectl::in_path;
use super::process::{Input, Process};
use super::{DEADLINE, eventually, eventually_async};

/// The programs that will do, the leanest first.
const PROGRAMS: [&str; 4] = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];

/// A browser that keeps to itself.
const FLAGS: [&str; 9] = [
    "--headless",
    // Its own sandbox needs rights that containers lack; it opens pages of the test alone.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-port=0",
];

/// A browser with one open page.
pub struct Browser {
    socket: WebSocketStream<TcpStream>,
    session: String,
    last_id: u64,
    complaints: Vec<String>,
    _process: Process,
    _profile: TempDir,
}

impl Browser {
    /// Starts one, or says that there is none and gives `None`.
    pub async fn start() -> Option<Self> {
        let named = std::env::var_os("QTUNNEL_CHROMIUM").map(PathBuf::from);
        let Some(program) = named.or_else(|| PROGRAMS.iter().find_map(|program| in_path(program))) else {
            println!("skipped: there is no chromium; tests/setup gets one");
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command.env_clear().env("HOME", profile.path()).env("PATH", "/usr/bin:/bin").args(FLAGS);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        let process = Process::start("the browser", command, Input::None);
        let url = eventually("the address of the browser's tools", || {
            let log = process.stderr();
            let line = log.lines().find_map(|line| line.strip_prefix("DevTools listening on "))?;
            Some(line.trim().to_owned())
        });
        let authority = url.strip_prefix("ws://").and_then(|rest| rest.split('/').next()).expect("an address");
        let stream = TcpStream::connect(authority).await.unwrap();
        let (socket, _) = timeout(DEADLINE, client_async(&url, stream)).await.expect("tools in time").unwrap();
        let session = String::new();
        let complaints = Vec::new();
        let mut browser = Self { socket, session, last_id: 0, complaints, _process: process, _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, json!({})).await;
        }
        browser.resize(1280, 900).await;
        Some(browser)
    }

    /// Opens a page.
    pub async fn open(&mut self, url: &str) {
        let answer = self.call("Page.navigate", json!({ "url": url })).await;
        assert_eq!(answer["errorText"], Value::Null, "{url}");
    }

    /// The value of a JavaScript expression.
    pub async fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", parameters).await;
        assert_eq!(answer["exceptionDetails"], Value::Null, "{expression}");
        answer["result"]["value"].clone()
    }

    /// Waits until a JavaScript expression is true.
    pub async fn wait_until(&mut self, what: &str, expression: &str) {
        eventually_async(&format!("{what}: {expression}"), async || {
            (self.value(expression).await == Value::Bool(true)).then_some(())
        })
        .await;
    }

    /// Presses and releases a key: a character, or a name such as `Tab`.
    pub async fn press(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            "ArrowUp" => 38,
            "ArrowDown" => 40,
            _ => 0,
        };
        let text = if key.chars().count() == 1 { key } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let event = json!({ "type": kind, "key": key, "text": text, "windowsVirtualKeyCode": code });
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    /// What the system prefers: `light` or `dark`.
    pub async fn prefer_colours(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// Gives the page another size.
    pub async fn resize(&mut self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Errors of the page so far: in the console, of scripts, of what was forbidden to it.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last_id += 1;
        let mut request = json!({ "id": self.last_id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            request["sessionId"] = self.session.clone().into();
        }
        self.socket.send(Message::text(request.to_string())).await.unwrap();
        loop {
            let message = timeout(DEADLINE, self.socket.next()).await.expect("an answer in time");
            let message = message.expect("the browser goes on").unwrap();
            let Message::Text(text) = message else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            if message["id"] == self.last_id {
                assert_eq!(message["error"], Value::Null, "{method}");
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    fn note(&mut self, event: &Value) {
        let parameters = &event["params"];
        let is_error = match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => true,
            "Runtime.consoleAPICalled" => parameters["type"] == "error",
            "Log.entryAdded" => parameters["entry"]["level"] == "error",
            _ => false,
        };
        if is_error {
            self.complaints.push(parameters.to_string());
        }
    }
}
