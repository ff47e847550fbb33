//! What a record costs its writer: records a second and bytes, by our writer and by serde, pair by pair.
//!
//! `cargo bench --bench record [pairs]`. The record is the one of a plain request that went well on a kept connection.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench"
)]

use std::time::Instant as Wall;

use jiff::Timestamp;
use routecause::observe::json;
use routecause::record::{Action, Attempt, Outcome, Record};
use uuid::Uuid;

const RECORDS: u32 = 100_000;

fn record() -> Record {
    let start: Timestamp = "2026-01-02T03:04:05.678901234Z".parse().unwrap();
    let peer = "203.0.113.7:80".parse().unwrap();
    let mut record = Record::begun(start, Uuid::now_v7(), "127.0.0.1".parse().unwrap(), 45678);
    record.action = Some(Action::Forward);
    record.outcome = Outcome::Success;
    record.end = "2026-01-02T03:04:05.679901Z".parse().unwrap();
    record.duration_ns = 999_766;
    record.user_agent = Some("curl/8.5.0".to_owned());
    record.method = Some("GET".into());
    record.status = Some(200);
    record.url_scheme = Some("http");
    record.url_domain = Some("deb.example.org".into());
    record.url_port = Some(80);
    record.server_address = Some("deb.example.org".into());
    record.server_port = Some(80);
    record.peer_address = Some("203.0.113.7".parse().unwrap());
    record.peer_port = Some(80);
    record.local_address = Some("192.0.2.10".parse().unwrap());
    record.local_port = Some(51234);
    record.network_type = Some("ipv4");
    record.protocol_name = Some("http");
    record.protocol_version = Some("1.1");
    record.destination_bytes = 1024;
    record.phase = "close";
    record.rule = Some("default".into());
    record.rule_source = Some("policy.yaml:12".into());
    record.route = Some("direct".into());
    record.hop = Some("direct".into());
    record.attempts = vec![Attempt {
        hop: "direct".into(),
        address: Some(peer),
        family: Some("ipv4"),
        reused: true,
        ..Attempt::default()
    }];
    record.policy = Some("0123456789ab".into());
    record.first_byte_ms = Some(0.812);
    record.total_ms = 1.0;
    record
}

/// Nanoseconds a record.
fn run(write: impl Fn(&mut Vec<u8>)) -> f64 {
    let mut batch = Vec::with_capacity(64 * 1024);
    let begun = Wall::now();
    for _ in 0..RECORDS {
        if batch.len() > 60 * 1024 {
            batch.clear();
        }
        write(&mut batch);
    }
    std::hint::black_box(&batch);
    begun.elapsed().as_nanos() as f64 / f64::from(RECORDS)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap()
}

fn main() {
    let pairs = std::env::args().find_map(|arg| arg.parse().ok());
    let record = record();
    let mut line = Vec::new();
    json::write(&record, &mut line).unwrap();
    let (mut ours, mut serdes, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..pairs.unwrap_or(9_usize) {
        let by_us = run(|batch| json::write(&record, batch).unwrap());
        let by_serde = run(|batch| serde_json::to_writer(batch, &record).unwrap());
        ours.push(by_us);
        serdes.push(by_serde);
        ratios.push(by_us / by_serde);
    }
    let (ours, serdes) = (median(ours), median(serdes));
    println!("{} bytes a record", line.len());
    println!("ours  {ours:>6.0} ns, {:>9.0} records/s", 1e9 / ours);
    println!("serde {serdes:>6.0} ns, {:>9.0} records/s", 1e9 / serdes);
    println!("ratio of each pair: {:.2}", median(ratios));
}
