//! What a large policy costs: loading it, and each decision under it.
//!
//! `cargo bench --bench decide`. The policy has 10,000 rules and a set of 100,000 entries, which is the most that one may
//! have. Prints the load's median, and for each kind of request the median and the 99th percentile of single decisions.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench"
)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use http::Method;
use jiff::Timestamp;
use routecause::client::{Claim, Client};
use routecause::config::{self, Environment, Options, Source};
use routecause::policy::no_proxy::{Dialect, NoProxy};
use routecause::policy::{Policy, Query, Scheme, Walk};
use routecause::target::Target;

const RULES: usize = 10_000;
const ENTRIES: usize = 100_000;

fn main() {
    let text = policy();
    let mut loads: Vec<f64> = (0..5)
        .map(|_| {
            let begun = Instant::now();
            black_box(load(&text));
            begun.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    loads.sort_by(f64::total_cmp);
    println!("load: {:.0} ms, {} KiB", loads[2], text.len() / 1024);

    let policy = load(&text);
    for (name, target) in [
        ("first rule", "h0.example:443"),
        ("last rule", "h9999.example:443"),
        ("in the set", "s77777.list.example:443"),
        ("below a domain", "a.b.d5004.example:443"),
        ("default, by name", "www.elsewhere.example.org:443"),
        ("by network", "10.5.2.7:443"),
        ("address in the set", "100.64.3.9:443"),
        ("default, by address", "192.0.2.1:443"),
    ] {
        let target = Target::from_authority(target).unwrap();
        time(name, || decide(&policy, &target));
    }
    time("canonicalise a name", || {
        Target::from_authority("WWW.Example.com:443")
    });
    let list = (0..500).map(|n| format!("n{n}.example,10.{}.0.0/16", n % 250));
    let list = NoProxy::parse(&list.collect::<Vec<_>>().join(","), Dialect::Go);
    let target = Target::from_authority("www.example.com:443").unwrap();
    time("NO_PROXY of 1,000 entries", || {
        list.judge(&target).is_some()
    });
}

fn policy() -> String {
    let mut text = "version: 1\nsets:\n  many:\n    hosts:\n".to_owned();
    for n in 0..ENTRIES - 1000 {
        writeln!(text, "      - s{n}.list.example").unwrap();
    }
    text.push_str("    ips:\n");
    for n in 0..1000 {
        writeln!(text, "      - 100.64.{}.{}/32", n / 250, n % 250).unwrap();
    }
    text.push_str("rules:\n");
    for n in 0..RULES {
        let test = match n % 5 {
            _ if n == 100 => "set: many".to_owned(),
            _ if n == RULES - 1 => format!("host: h{n}.example"),
            4 => format!("domain: d{n}.example"),
            3 => format!("{{ip: 10.{}.{}.0/24, port: 443}}", n / 256 % 256, n % 256),
            2 => format!("{{host: \"*.w{n}.example\", port: [80, 443]}}"),
            _ => format!("host: h{n}.example"),
        };
        let test = if test.starts_with('{') {
            test
        } else {
            format!("{{{test}}}")
        };
        writeln!(text, "  - {{name: r{n}, match: {test}, direct: true}}").unwrap();
    }
    text.push_str("default: {direct: true}\n");
    text
}

fn load(text: &str) -> Policy {
    let source = Source::Text {
        name: "policy.yaml".to_owned(),
        text: text.to_owned(),
    };
    let options = Options::check(Timestamp::UNIX_EPOCH);
    match config::load(&source, &Environment::default(), &options) {
        Ok(loaded) => loaded.policy,
        Err(report) => panic!("{}", report.render(false)),
    }
}

fn decide(policy: &Policy, target: &Target) -> bool {
    let address = "127.0.0.1:1".parse().unwrap();
    let client = Client {
        peer: address,
        local: address,
        listener: "proxy".into(),
    };
    let query = Query {
        client: &client,
        claim: &Claim::NONE,
        scheme: Scheme::Connect,
        method: &Method::CONNECT,
        target,
        path: None,
        headers: None,
        is_here: None,
        addresses: None,
        first_flight: None,
        now: Timestamp::UNIX_EPOCH,
    };
    let step = policy.step(&mut Walk::default(), &query);
    matches!(step, routecause::policy::Step::Decided(_))
}

fn time<T>(name: &str, mut work: impl FnMut() -> T) {
    let mut took: Vec<f64> = (0..20_000)
        .map(|_| {
            let begun = Instant::now();
            black_box(work());
            begun.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    took.sort_by(f64::total_cmp);
    let at = |part: usize| took[took.len() * part / 100];
    println!("{name}: {:.2} us, p99 {:.2} us", at(50), at(99));
}
