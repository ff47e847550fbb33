use super::*;
use crate::record::trace::{Hex, Trace};
use crate::record::{DiagnosisKeys, Dns, Icmp, IcmpKeys, Reset, Suspect, Tls};

fn both(record: &Record) -> (String, String) {
    let mut ours = b"before\n".to_vec();
    write(record, &mut ours).unwrap();
    let serdes = serde_json::to_string(record).unwrap();
    (
        String::from_utf8(ours).unwrap(),
        format!("before\n{serdes}"),
    )
}

#[test]
fn a_record_with_little_or_everything_in_it_is_as_serde_writes_it() {
    let little = Record::begun(
        Timestamp::UNIX_EPOCH,
        Uuid::nil(),
        "2001:db8::1".parse().unwrap(),
        7,
    );
    let (ours, serdes) = both(&little);
    assert_eq!(ours, serdes);

    let ip: IpAddr = "192.0.2.1".parse().unwrap();
    let nasty = || "\"quoted\\ \u{1f} \u{7f} bücher \u{2028}\n".to_owned();
    let attempt = Attempt {
        hop: nasty().into(),
        address: Some((ip, 443).into()),
        family: Some("ipv4"),
        cause: Some(nasty().into()),
        side: Some("network"),
        ms: 0.001,
        icmp: Some(Icmp {
            r#type: 3,
            code: 1,
            offender: ip,
        }),
        reused: true,
    };
    let everything = Record {
        timestamp: "2026-01-02T03:04:05.6789Z".parse().unwrap(),
        end: "2026-01-02T03:04:06.000000001Z".parse().unwrap(),
        action: Some(Action::Connect),
        outcome: Outcome::Failure,
        reason: Some(nasty().into()),
        duration_ns: u64::MAX,
        error_type: Some("x".into()),
        error_message: Some(nasty()),
        user_agent: Some(nasty()),
        method: Some("GET".into()),
        resend_count: 2,
        status: Some(502),
        url_scheme: Some("http"),
        url_domain: Some("example.com".into()),
        url_port: Some(80),
        server_address: Some("2001:db8::2".into()),
        server_port: Some(443),
        peer_address: Some(ip),
        peer_port: Some(443),
        local_address: Some(ip),
        local_port: Some(5),
        network_type: Some("ipv4"),
        protocol_name: Some("http"),
        protocol_version: Some("1.1"),
        source_bytes: 1,
        destination_bytes: 1 << 40,
        dns_question: Some("example.com".to_owned()),
        dns_resolved: vec![ip, "::1".parse().unwrap()],
        dns_response_code: Some("NXDOMAIN".to_owned()),
        side: Some("client"),
        confidence: Some("weak"),
        rule: Some(nasty().into()),
        rule_source: Some("a:1".into()),
        would: Some("w".into()),
        code: Some("c".into()),
        route: Some("r".into()),
        hop: Some("h".into()),
        attempts: vec![attempt, Attempt::default()],
        faults: vec!["f".into()],
        notes: vec!["one", "two"],
        suspects: vec![Suspect {
            name: "s",
            score: 0.5,
            evidence: vec!["e".into()],
        }],
        ending: Some("close.both".into()),
        policy: Some("p".into()),
        trace: Some(Box::new(Trace {
            id: Hex([0x5a; 16]),
            span: Some(Hex([1; 8])),
            parent: Some(Hex([0xf0; 8])),
        })),
        dns_ms: Some(1.0),
        connect_ms: Some(0.25),
        upstream_ms: Some(1e9),
        tls_ms: Some(1e-3),
        first_byte_ms: Some(0.0),
        total_ms: 12.345,
        dns_source: Some("dns"),
        dns: Some(Box::new(Dns {
            server: (ip, 53).into(),
            transport: Some("udp"),
            cached: true,
            ttl_s: Some(1),
            ede: Some(2),
            ede_text: Some(nasty()),
            replies: Some(2),
            rr_count: Some(3),
        })),
        upstream_name: Some("u".into()),
        upstream_status: Some(407),
        upstream_reason: Some(nasty()),
        upstream_proxy_status: Some("s".to_owned()),
        upstream_squid_error: Some("e".to_owned()),
        upstream_socks_reply: Some(5),
        upstream_auth_schemes: vec!["Basic".to_owned()],
        upstream_body: Some(nasty()),
        tls: Some(Box::new(Tls {
            server_name: Some("n".to_owned()),
            ech: true,
            ..Tls::default()
        })),
        client_tcp: Some(Box::default()),
        server_tcp: Some(Box::new(ServerTcp {
            close: Some("rst"),
            errno: Some("ECONNRESET".into()),
            rtt_ms: Some(0.5),
            min_rtt_ms: Some(0.25),
            retransmissions: Some(1),
            bytes_sent: Some(2),
            bytes_acked: Some(3),
            bytes_received: Some(4),
            unacked: Some(5),
            pmtu: Some(6),
            rcv_mss: Some(7),
            segs_in: Some(8),
            segs_out: Some(9),
        })),
        reset: Some(Box::new(Reset::default())),
        diagnosis: Some(Box::new(DiagnosisKeys {
            verdict: "sni_filtering",
            certainty: "certain",
            sentence: nasty().into(),
            counter: vec![nasty()],
            fix: Some(nasty().into()),
            ago_s: 40,
        })),
        icmp: Some(IcmpKeys {
            r#type: 3,
            code: 1,
            offender: ip,
        }),
        idle_ms: Some(5.0),
        idle_before_ms: Some(6.0),
        idle_survived_ms: Some(7.0),
        hint: Some(nasty().into()),
        ..little
    };
    assert!(matches!(
        everything.client_tcp.as_deref(),
        Some(ClientTcp { close: None, .. })
    ));
    let (ours, serdes) = both(&everything);
    assert_eq!(ours, serdes);
}
