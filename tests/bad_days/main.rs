//! What goes wrong around the tunnel, and what everybody sees of it then.
//!
//! Two rules run through all of it: nobody takes a part for the whole, and nobody is invited to repeat what may have been
//! done. After each bad day nothing of it is left: no stream, no connection, no memory.

#[path = "../support/mod.rs"]
mod support;

mod api_server;
mod backpressure;
mod exec;
mod in_flight;
mod lost_agent;
mod lost_client;
mod rogue_agent;
mod rogue_stub;
mod two_agents;

/// A watch, which is long-running.
const WATCH: &str = "/api/v1/namespaces/demo/pods?watch=true";

/// A plain request.
const LIST: &str = "/api/v1/namespaces/demo/pods";

/// An exec over SPDY.
const EXEC: &str = "/api/v1/namespaces/demo/pods/web/exec?command=sh&stdin=true&stdout=true";

/// The headers of an exec over SPDY.
const SPDY: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "SPDY/3.1"),
    ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
    ("Content-Length", "0"),
];

/// The API server agrees to an exec over SPDY.
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
    X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
