//! Frames as the lines that the specification's vectors use (`means:`).

use std::fmt::Write;
use std::time::Duration;

use http::HeaderMap;

use crate::wire::{AuthMode, Frame, Hello, Identity, Record, RequestHead, Welcome};

/// One frame as one line.
pub fn render(frame: &Frame) -> String {
    let mut line = Line::default();
    match frame {
        Frame::Data(data) => line.word("DATA").word(&hex(data)),
        Frame::RequestHead(head) => line.request_head(head),
        Frame::ResponseHead(head) => {
            line.word("RESPONSE_HEAD").value("status", head.status.as_u16()).headers(&head.headers)
        }
        Frame::Trailers(trailers) => line.word("TRAILERS").headers(&trailers.0),
        Frame::Failure(failure) => line
            .word("FAILURE")
            .value("reason", failure.reason.name())
            .value("dispatched", yes_or_no(failure.dispatched))
            .text("message", &failure.message),
        Frame::Dial(dial) => line
            .word("DIAL")
            .text("network", dial.network.as_str())
            .text("address", &dial.address.to_string())
            .text("audit-id", &dial.audit_id),
        Frame::Dialed(_) => line.word("DIALED"),
        Frame::Hello(hello) => line.hello(hello),
        Frame::Welcome(welcome) => line.welcome(welcome),
        Frame::Refused(refused) => line.word("REFUSED").text("reason", &refused.reason),
        Frame::Report(report) => {
            line.word("REPORT")
                .value("open-streams", report.open_streams)
                .value("upstream-healthy", yes_or_no(report.upstream_healthy))
                .value("upstream-latency-us", whole(report.upstream_latency, Duration::from_micros(1)))
                .text("upstream-error", &report.upstream_error);
            report.api_server.iter().fold(&mut line, |line, uid| line.text("api-server", uid))
        }
        Frame::Drain(drain) => line.word("DRAIN").text("reason", &drain.reason),
        Frame::Pace(pace) => {
            line.word("PACE").value("report-interval-ms", whole(pace.report_interval, Duration::from_millis(1)))
        }
        Frame::Renew(renew) => line.word("RENEW").value("request", hex(&renew.request)),
        Frame::Certificate(certificate) => {
            line.word("CERTIFICATE");
            certificate.chain.iter().fold(&mut line, |line, der| line.value("chain", hex(der)))
        }
        Frame::Enroll(enroll) => {
            line.word("ENROLL").text("token", &enroll.token).value("request", hex(&enroll.request))
        }
    };
    line.0
}

/// One record of the TCP carrier as one line.
pub fn render_record(record: &Record) -> String {
    let mut line = Line::default();
    match record {
        Record::Bytes(bytes) => line.word("BYTES").word(&hex(bytes)),
        Record::End => line.word("END"),
        Record::Reset(code) => line.word("RESET").value("code", code.name()),
        Record::Stop(code) => line.word("STOP").value("code", code.name()),
        Record::Credit(offset) => line.word("CREDIT").value("offset", offset),
        Record::Ping(number) => line.word("PING").value("number", number),
        Record::Pong(number) => line.word("PONG").value("number", number),
        Record::Close { code, reason } => line.word("CLOSE").value("code", code.name()).text("reason", reason),
    };
    line.0
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[derive(Default)]
struct Line(String);

impl Line {
    fn word(&mut self, word: &str) -> &mut Self {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push_str(word);
        self
    }

    fn value(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        self.word(&format!("{name}={value}"))
    }

    fn text(&mut self, name: &str, text: &str) -> &mut Self {
        self.value(name, quoted(text.as_bytes()))
    }

    fn pair(&mut self, name: &str, first: &[u8], second: &[u8]) -> &mut Self {
        self.value(name, format_args!("{}:{}", quoted(first), quoted(second)))
    }

    fn headers(&mut self, headers: &HeaderMap) -> &mut Self {
        for (name, value) in headers {
            self.pair("header", name.as_str().as_bytes(), value.as_bytes());
        }
        self
    }

    fn request_head(&mut self, head: &RequestHead) -> &mut Self {
        self.word("REQUEST_HEAD")
            .text("method", head.method.as_str())
            .text("target", head.target.as_str())
            .text("audit-id", &head.audit_id)
            .identity("", &head.identity);
        if let Some(requested) = &head.requested {
            self.identity("requested-", requested);
        }
        if let Some(token) = &head.bearer_token {
            self.text("bearer-token", token.reveal());
        }
        if let Some(upgrade) = head.upgrade {
            self.text("upgrade", upgrade.as_str());
        }
        if let Some(address) = head.client_address {
            self.value("client-address", address);
        }
        self.headers(&head.headers)
    }

    fn identity(&mut self, prefix: &str, identity: &Identity) -> &mut Self {
        self.text(&format!("{prefix}user"), &identity.user);
        if let Some(uid) = &identity.uid {
            self.text(&format!("{prefix}uid"), uid);
        }
        for group in &identity.groups {
            self.text(&format!("{prefix}group"), group);
        }
        for (key, value) in &identity.extra {
            self.pair(&format!("{prefix}extra"), key.as_bytes(), value.as_bytes());
        }
        self
    }

    fn hello(&mut self, hello: &Hello) -> &mut Self {
        self.word("HELLO")
            .text("cluster", hello.cluster.as_str())
            .value("instance", format_args!("{:016x}", hello.instance))
            .text("software", &hello.software)
            .value("auth-mode", auth_mode(hello.auth_mode));
        for instance in &hello.connected_stubs {
            self.value("connected-stub", format_args!("{instance:016x}"));
        }
        self
    }

    fn welcome(&mut self, welcome: &Welcome) -> &mut Self {
        self.word("WELCOME")
            .text("stub", &welcome.stub)
            .value("report-interval-ms", whole(welcome.report_interval, Duration::from_millis(1)));
        for address in &welcome.other_stubs {
            self.text("other-stub", address);
        }
        if let Some(instance) = welcome.instance {
            self.value("instance", format!("{instance:016x}"));
        }
        self
    }
}

/// Printable ASCII as it is, `"` and `\` behind a `\`, every other byte as `\x` and two digits.
fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => text.extend(['\\', char::from(byte)]),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text.push('"');
    text
}

fn yes_or_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn auth_mode(mode: AuthMode) -> &'static str {
    match mode {
        AuthMode::Impersonate => "impersonate",
        AuthMode::PassThrough => "pass-through",
    }
}

fn whole(duration: Duration, unit: Duration) -> u128 {
    duration.as_nanos() / unit.as_nanos()
}
