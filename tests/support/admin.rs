//! The admin listener as its users ask it.

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::Value;

use super::{Proxy, SOON, Starting, wire};

/// Lets the admin listener have a free port.
pub fn with_admin(starting: Starting) -> Starting {
    starting.arg("--admin").arg("127.0.0.1:0")
}

/// Where a proxy's admin listener is.
pub fn address(proxy: &Proxy) -> SocketAddr {
    let line = proxy.diary("dashboard, API and metrics: http://");
    let url = line.split("http://").nth(1).unwrap();
    url.trim_end_matches('/').parse().unwrap()
}

/// Asks, with more lines for the head: the status, the head and the body.
pub fn ask(
    at: SocketAddr,
    method: &str,
    path: &str,
    fields: &str,
    body: &str,
) -> (u16, String, String) {
    let stream = wire::connect(at);
    let length = body.len();
    wire::send(
        &stream,
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\ncontent-length: {length}\r\n{fields}\r\n{body}"
        ),
    );
    let (head, body) = wire::read_answer(&stream);
    (wire::status(&head), head, body)
}

/// What a GET answers, as JSON.
pub fn get(at: SocketAddr, path: &str) -> Value {
    let (status, _, body) = ask(at, "GET", path, "", "");
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

/// What a request with a JSON body answers: the status, and JSON.
pub fn send(at: SocketAddr, method: &str, path: &str, fields: &str, body: &Value) -> (u16, Value) {
    let fields = format!("content-type: application/json\r\n{fields}");
    let (status, _, body) = ask(at, method, path, &fields, &body.to_string());
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

/// Asks until the answer is as it is to be.
#[track_caller]
pub fn until(at: SocketAddr, path: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + SOON;
    loop {
        let value = get(at, path);
        if is_so(&value) {
            return value;
        }
        assert!(Instant::now() < deadline, "{path}: {value:#}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// The same for the metrics: waits for a line.
#[track_caller]
pub fn until_metric(at: SocketAddr, line: &str) -> String {
    let deadline = Instant::now() + SOON;
    loop {
        let (_, _, text) = ask(at, "GET", "/metrics", "", "");
        if text.lines().any(|l| l == line) {
            return text;
        }
        assert!(Instant::now() < deadline, "{line} in\n{text}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
