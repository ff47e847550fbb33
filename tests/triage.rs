//! What keeps failing is looked at without being asked (`defaults.triage`), and the records that follow say what was found.

mod support;

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use support::nameserver::NameServer;
use support::origin::{Listening, Origin};
use support::scene::{CONTROL, TARGET};
use support::web::Ca;
use support::{Proxy, SOON, admin, check, tls, wire};

/// Three like failures make a look.
const TRIAGE: &str = "defaults: {triage: {fails: 3, within: 5m, every: 10m}}";

/// Servers behind something that resets what says the target's name, as long as it is on.
struct Filtered {
    ca: Ca,
    target: Origin,
    control: Origin,
    is_on: Arc<AtomicBool>,
    /// Whether somebody was told the name of the other.
    is_mixed: Arc<AtomicBool>,
}

impl Filtered {
    fn new() -> Self {
        let ca = Ca::new();
        let is_on = Arc::new(AtomicBool::new(true));
        let is_mixed = Arc::new(AtomicBool::new(false));
        let serving = |name: &str, other: &'static str| {
            let config = tls::server(&ca.identity(tls::Leaf::Good, name), tls::BOTH);
            let (is_on, is_mixed) = (is_on.clone(), is_mixed.clone());
            Origin::serving(move |stream| {
                if says(&stream, other) {
                    is_mixed.store(true, Ordering::Relaxed);
                }
                if is_on.load(Ordering::Relaxed) && says(&stream, TARGET) {
                    wire::reset(stream);
                } else {
                    tls::echo(&config, stream);
                }
                String::new()
            })
        };
        let (target, control) = (serving(TARGET, CONTROL), serving(CONTROL, TARGET));
        Self {
            ca,
            target,
            control,
            is_on,
            is_mixed,
        }
    }

    fn client<'c>(&'c self, name: &'c str) -> tls::Client<'c> {
        tls::Client {
            name,
            trusts: &self.ca,
            versions: tls::BOTH,
        }
    }

    /// Asks for the target, and hears how that fails.
    fn fail(&self, proxy: &Proxy) -> Value {
        let stream = open(proxy, TARGET, self.target.address.port());
        self.client(TARGET).greet(&stream);
        let record = proxy.record();
        check!(&record, "event.outcome": "failure", "error.type": "tls.reset_after_client_hello");
        record
    }

    /// Asks for what works.
    fn pass(&self, proxy: &Proxy, name: &str) {
        let origin = if name == TARGET {
            &self.target
        } else {
            &self.control
        };
        let stream = open(proxy, name, origin.address.port());
        self.client(name).talk(stream).unwrap();
        check!(&proxy.record(), "event.outcome": "success");
    }
}

/// Whether the first record on a connection, which stays unread, holds a text.
fn says(stream: &TcpStream, text: &str) -> bool {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut buffer = [0; 16 * 1024];
    loop {
        let Ok(count @ 1..) = stream.peek(&mut buffer) else {
            return false;
        };
        let said = &buffer[..count];
        let length = said
            .get(3..5)
            .map(|at| usize::from(at[0]) << 8 | usize::from(at[1]));
        let is_whole = length.is_some_and(|length| count >= 5 + length);
        // Of bytes that are no TLS there need not be more.
        if is_whole || said[0] != 0x16 {
            let mut windows = said.windows(text.len());
            return windows.any(|window| window == text.as_bytes());
        }
        sleep(Duration::from_millis(1));
    }
}

/// A tunnel that was granted.
fn open(proxy: &Proxy, host: &str, port: u16) -> TcpStream {
    let stream = proxy.connect();
    wire::send(
        &stream,
        format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n"),
    );
    let head = wire::read_head(&stream);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    stream
}

fn has_diagnosis(record: &Value) -> bool {
    let mut keys = record.as_object().unwrap().keys();
    keys.any(|key| key.starts_with("egress.diagnosis"))
}

fn pins() -> String {
    format!("dns: {{hosts: {{{TARGET}: [127.0.0.1], {CONTROL}: [127.0.0.1]}}}}")
}

#[test]
fn a_target_that_keeps_failing_is_looked_at_and_its_next_record_says_what_was_found() {
    let filtered = Filtered::new();
    let policy = format!(
        "version: 1\n{TRIAGE}\n{}\nrules: []\ndefault: {{direct: true}}\n",
        pins()
    );
    let starting = Proxy::under(&policy).env("SSL_CERT_FILE", filtered.ca.file().to_str().unwrap());
    let proxy = admin::with_admin(starting).start();
    let at = admin::address(&proxy);
    filtered.pass(&proxy, CONTROL);
    for _ in 0..3 {
        assert!(!has_diagnosis(&filtered.fail(&proxy)));
    }
    let target = format!("{TARGET}:{}", filtered.target.address.port());
    let line = proxy.diary(&format!(
        "{target} keeps failing, tls.reset_after_client_hello: "
    ));
    assert!(
        line.contains(": sni_filtering (medium): the name "),
        "{line}"
    );
    let look = r#"routecause_triage_looks_total{verdict="sni_filtering"} 1"#;
    admin::until_metric(at, look);

    let record = filtered.fail(&proxy);
    check!(&record, "egress.diagnosis.verdict": "sni_filtering", "egress.diagnosis.certainty": "medium",
        "egress.diagnosis.counter": ["the name was not said at another address: the server itself may refuse it"]);
    assert!(!filtered.is_mixed.load(Ordering::Relaxed));
    let sentence = record["egress.diagnosis.sentence"].as_str().unwrap();
    assert!(
        sentence.starts_with(&format!("the name {TARGET} is filtered")),
        "{sentence}"
    );
    assert!(
        record["egress.diagnosis.ago_s"].as_u64().unwrap() < 60,
        "{record:#}"
    );
    for key in ["egress.hint", "event.reason"] {
        let hint = record[key].as_str().unwrap();
        assert!(
            hint.contains("; doctor ") && hint.ends_with("s ago: sni_filtering (medium)"),
            "{hint}"
        );
    }
    let (_, _, page) = admin::ask(
        at,
        "GET",
        &format!("/records/{}", record["event.id"].as_str().unwrap()),
        "",
        "",
    );
    assert!(page.contains("What the doctor found"), "{page}");

    // A success ends it. What follows is new, and not looked at again so soon.
    filtered.is_on.store(false, Ordering::Relaxed);
    filtered.pass(&proxy, TARGET);
    filtered.is_on.store(true, Ordering::Relaxed);
    for _ in 0..4 {
        assert!(!has_diagnosis(&filtered.fail(&proxy)));
    }
    // What fails behind it is looked at behind it: if there was a second look at the first, it is over.
    let nowhere = Origin::nowhere();
    for _ in 0..3 {
        let stream = proxy.connect();
        wire::send(
            &stream,
            format!("CONNECT {nowhere} HTTP/1.1\r\nhost: {nowhere}\r\n\r\n"),
        );
        wire::read_text(&stream);
        check!(&proxy.record(), "error.type": "connect.refused");
    }
    proxy.diary(&format!("{nowhere} keeps failing, connect.refused: "));
    admin::until_metric(at, look);
    // The looks themselves left no record: each was taken above.
    let (_, left) = proxy.stop();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_look_goes_no_way_that_the_policy_does_not_lead() {
    let ca = Ca::new();
    let config = tls::server(&ca.identity_for(&[TARGET, CONTROL]), tls::BOTH);
    let upstream = Origin::serving(move |stream| {
        let head = wire::read_head(&stream);
        wire::send(&stream, "HTTP/1.1 200 OK\r\n\r\n");
        if says(&stream, TARGET) {
            wire::reset(stream);
        } else {
            tls::echo(&config, stream);
        }
        head
    });
    let client = |name| tls::Client {
        name,
        trusts: &ca,
        versions: tls::BOTH,
    };
    // What the names mean here, where nobody may be seen.
    let direct = Listening::new();
    let port = direct.address.port();
    let policy = format!(
        "version: 1\n{TRIAGE}\n{}\nupstreams: {{corp: {{url: 'http://{}'}}}}\nrules: []\ndefault: {{via: corp}}\n",
        pins(),
        upstream.address
    );
    let proxy = Proxy::under(&policy)
        .env("SSL_CERT_FILE", ca.file().to_str().unwrap())
        .start();
    let ask = |name: &str| open(&proxy, name, port);
    client(CONTROL).talk(ask(CONTROL)).unwrap();
    check!(&proxy.record(), "event.outcome": "success", "egress.hop": "corp");
    let fail = || {
        client(TARGET).greet(&ask(TARGET));
        proxy.record()
    };
    for _ in 0..3 {
        assert!(!has_diagnosis(&fail()));
    }
    let line = proxy.diary("keeps failing, tls.");
    // One that leads back here knows all of them by that.
    for _ in 0..7 {
        let head = upstream.heard();
        assert!(wire::field(&head, "via").is_some(), "{head}");
    }
    assert!(
        line.contains(": fails_behind_upstream (strong): corp works for others"),
        "{line}"
    );
    let record = fail();
    check!(&record, "egress.diagnosis.verdict": "fails_behind_upstream",
        "egress.diagnosis.counter": ["the direct way was not looked at: the policy does not lead there"]);
    assert!(direct.is_untouched());
}

#[test]
fn a_look_asks_no_name_server_that_is_not_asked_for_the_name() {
    let inner = NameServer::answering(|query| Some(query.code(3).soa()));
    let other = NameServer::giving("127.0.0.1");
    let policy = format!(
        "version: 1\n{TRIAGE}\ndns: {{default: inner, servers: {{inner: {{udp: ['{}']}}, other: {{udp: ['{}'], domains: [other.example]}}}}}}\n\
         rules: []\ndefault: {{direct: true}}\n",
        inner.address, other.address
    );
    let proxy = Proxy::start(&policy);
    let ask = || {
        let stream = proxy.connect();
        wire::send(
            &stream,
            format!("CONNECT {TARGET}:443 HTTP/1.1\r\nhost: {TARGET}:443\r\n\r\n"),
        );
        let text = wire::read_text(&stream);
        let record = proxy.record();
        check!(&record, "error.type": "dns.nxdomain");
        (text, record)
    };
    for _ in 0..3 {
        let (text, record) = ask();
        assert!(
            !has_diagnosis(&record) && !text.contains("doctor"),
            "{text}"
        );
    }
    let line = proxy.diary("keeps failing, dns.nxdomain: ");
    assert!(
        line.contains(": name_does_not_exist (strong): there is no name"),
        "{line}"
    );
    let (text, record) = ask();
    // The client is told as well.
    assert!(text.contains("ago: name_does_not_exist (strong)"), "{text}");
    check!(&record, "egress.diagnosis.verdict": "name_does_not_exist",
        "egress.diagnosis.counter": ["no control was tried: nothing else passed by the same way lately"]);
    assert!(other.seen().is_empty());
}

#[test]
fn nothing_is_looked_at_where_nobody_wanted_that() {
    let nowhere = Origin::nowhere();
    let at = |policy: &str| admin::with_admin(Proxy::under(policy)).start();
    let proxy = at(support::DIRECT);
    for _ in 0..5 {
        let stream = proxy.connect();
        wire::send(
            &stream,
            format!("CONNECT {nowhere} HTTP/1.1\r\nhost: {nowhere}\r\n\r\n"),
        );
        wire::read_text(&stream);
        assert!(!has_diagnosis(&proxy.record()));
    }
    let (_, _, text) = admin::ask(admin::address(&proxy), "GET", "/metrics", "", "");
    assert!(!text.contains("triage_looks_total{"), "{text}");
}
