use super::*;

fn client(peer: &str, local: &str) -> Client {
    Client {
        peer: peer.parse().unwrap(),
        local: local.parse().unwrap(),
        listener: "proxy".into(),
    }
}

/// A machine without addresses.
fn nowhere(_: IpAddr) -> bool {
    false
}

#[track_caller]
fn check(guards: &Guards, client: &Client, ip: &str, expected: Option<Guard>) {
    let address = SocketAddr::new(ip.parse().unwrap(), 443);
    assert_eq!(
        guards.admit(address, client, nowhere).err(),
        expected,
        "{ip}"
    );
}

#[test]
fn every_block_is_judged_at_both_edges() {
    let far = client("192.0.2.9:999", "192.0.2.1:3128");
    let guards = Guards {
        block_private: true,
        ..Guards::default()
    };
    for (ip, guard) in [
        ("0.0.0.0", Some(Guard::Special)),
        ("0.255.255.255", Some(Guard::Special)),
        ("1.0.0.0", None),
        ("9.255.255.255", None),
        ("10.0.0.0", Some(Guard::Private)),
        ("10.255.255.255", Some(Guard::Private)),
        ("11.0.0.0", None),
        ("100.63.255.255", None),
        ("100.64.0.0", Some(Guard::Private)),
        ("100.127.255.255", Some(Guard::Private)),
        ("100.128.0.0", None),
        ("100.100.100.200", Some(Guard::LinkLocal)),
        ("126.255.255.255", None),
        ("127.0.0.0", Some(Guard::Loopback)),
        ("127.255.255.255", Some(Guard::Loopback)),
        ("128.0.0.0", None),
        ("168.63.129.16", Some(Guard::LinkLocal)),
        ("169.253.255.255", None),
        ("169.254.0.0", Some(Guard::LinkLocal)),
        ("169.254.255.255", Some(Guard::LinkLocal)),
        ("169.255.0.0", None),
        ("172.15.255.255", None),
        ("172.16.0.0", Some(Guard::Private)),
        ("172.31.255.255", Some(Guard::Private)),
        ("172.32.0.0", None),
        ("192.0.0.0", Some(Guard::Private)),
        ("192.0.2.1", None),
        ("192.168.0.0", Some(Guard::Private)),
        ("192.169.0.0", None),
        ("198.18.0.0", Some(Guard::Private)),
        ("198.20.0.0", None),
        ("223.255.255.255", None),
        ("224.0.0.0", Some(Guard::Special)),
        ("255.255.255.255", Some(Guard::Special)),
        ("::", Some(Guard::Special)),
        ("::1", Some(Guard::Loopback)),
        ("fe80::1", Some(Guard::LinkLocal)),
        ("febf::1", Some(Guard::LinkLocal)),
        ("fec0::1", Some(Guard::LinkLocal)),
        ("fc00::1", Some(Guard::Private)),
        ("fdff::1", Some(Guard::Private)),
        ("fd00:ec2::254", Some(Guard::LinkLocal)),
        ("ff02::1", Some(Guard::Special)),
        ("2001:db8::1", None),
    ] {
        check(&guards, &far, ip, guard);
    }
}

#[test]
fn an_embedded_ipv4_address_is_judged_as_itself() {
    let far = client("192.0.2.9:999", "192.0.2.1:3128");
    let guards = Guards::default();
    for ip in [
        "::ffff:127.0.0.1",
        "::7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::1",
        "2001:0:1:2:3:4:80ff:fffe",
        "2001:db8::5efe:7f00:1",
    ] {
        check(&guards, &far, ip, Some(Guard::Loopback));
    }
    check(&guards, &far, "64:ff9b::a9fe:a9fe", Some(Guard::LinkLocal));
    check(&guards, &far, "64:ff9b::c000:201", None);
}

#[test]
fn loopback_is_for_clients_on_this_machine() {
    let near = client("127.0.0.1:999", "127.0.0.1:3128");
    let mapped = client("[::ffff:127.0.0.1]:999", "[::ffff:127.0.0.1]:3128");
    let through_bridge = client("172.17.0.2:999", "172.17.0.1:3128");
    let guards = Guards::default();
    check(&guards, &near, "127.0.0.1", None);
    check(&guards, &mapped, "::1", None);
    check(&guards, &through_bridge, "127.0.0.1", Some(Guard::Loopback));
    check(
        &Guards {
            loopback: Loopback::Allow,
            ..Guards::default()
        },
        &through_bridge,
        "127.0.0.1",
        None,
    );
    check(
        &Guards {
            loopback: Loopback::Block,
            ..Guards::default()
        },
        &near,
        "127.0.0.1",
        Some(Guard::Loopback),
    );
}

#[test]
fn our_own_listeners_are_a_loop_even_in_report_mode() {
    let near = client("127.0.0.1:999", "127.0.0.1:3128");
    let own = |own: &str| Guards {
        own: vec![own.parse().unwrap()],
        report: true,
        ..Guards::default()
    };
    let address = "127.0.0.1:3128".parse().unwrap();
    assert_eq!(
        own("127.0.0.1:3128").admit(address, &near, nowhere).err(),
        Some(Guard::Own)
    );
    assert_eq!(
        own("0.0.0.0:3128").admit(address, &near, nowhere).err(),
        Some(Guard::Own)
    );
    assert_eq!(
        own("[::]:3128")
            .admit_upstream(address, &near, nowhere)
            .err(),
        Some(Guard::Own)
    );
    assert!(own("127.0.0.1:3129").admit(address, &near, nowhere).is_ok());
    // The unspecified address is loopback.
    for (dialled, listener, is_own) in [
        ("0.0.0.0:3128", "127.0.0.1:3128", true),
        ("0.0.0.0:3128", "0.0.0.0:3128", true),
        ("[::]:3128", "[::1]:3128", true),
        ("[::]:3128", "0.0.0.0:3128", true),
        ("0.0.0.0:3128", "192.0.2.1:3128", false),
        ("[64:ff9b::]:3128", "127.0.0.1:3128", true),
    ] {
        let guard = if is_own { Guard::Own } else { Guard::Special };
        let refused = own(listener).admit(dialled.parse().unwrap(), &near, nowhere);
        assert_eq!(refused.err(), Some(guard), "{dialled} {listener}");
    }
}

#[test]
fn a_wildcard_listener_is_ours_at_every_address_of_the_machine() {
    let client = client("172.17.0.2:999", "172.17.0.1:3128");
    let is_here = |ip: IpAddr| ip == IpAddr::from([192, 0, 2, 5]);
    for (dialled, listener, is_own) in [
        ("192.0.2.5:3128", "0.0.0.0:3128", true),
        ("192.0.2.5:3128", "[::]:3128", true),
        ("192.0.2.5:3128", "[::ffff:0.0.0.0]:3128", true),
        ("[::ffff:192.0.2.5]:3128", "0.0.0.0:3128", true),
        ("[64:ff9b::192.0.2.5]:3128", "0.0.0.0:3128", true),
        ("[64:ff9b:1::192.0.2.5]:3128", "192.0.2.5:3128", true),
        ("[2002:c000:205::1]:3128", "[::]:3128", true),
        ("[2001:db8::5efe:192.0.2.5]:3128", "[::]:3128", true),
        ("[64:ff9b::172.17.0.1]:3128", "0.0.0.0:3128", true),
        ("[64:ff9b::192.0.2.6]:3128", "0.0.0.0:3128", false),
        ("[64:ff9b::192.0.2.5]:3129", "0.0.0.0:3128", false),
        ("192.0.2.6:3128", "0.0.0.0:3128", false),
        ("192.0.2.5:3129", "0.0.0.0:3128", false),
        ("192.0.2.5:3128", "192.0.2.6:3128", false),
    ] {
        let guards = Guards {
            own: vec![listener.parse().unwrap()],
            ..Guards::default()
        };
        let dialled: SocketAddr = dialled.parse().unwrap();
        let refused = is_own.then_some(Guard::Own);
        let admitted = guards.admit(dialled, &client, is_here);
        assert_eq!(admitted.err(), refused, "{dialled} {listener}");
        let admitted = guards.admit_upstream(dialled, &client, is_here);
        assert_eq!(admitted.err(), refused, "{dialled} {listener}");
    }
}

#[test]
fn what_is_no_hosts_address_is_refused_whatever_the_policy_says() {
    let near = client("127.0.0.1:999", "127.0.0.1:3128");
    let guards = Guards {
        report: true,
        except: ["0.0.0.0/0", "::/0"]
            .map(|net| Exception {
                net: net.parse().unwrap(),
                ports: None,
            })
            .into(),
        ..Guards::default()
    };
    for ip in [
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "255.255.255.255",
        "ff02::1",
        "64:ff9b::",
    ] {
        check(&guards, &near, ip, Some(Guard::Special));
    }
    check(&guards, &near, "169.254.169.254", None);
}

#[test]
fn report_mode_admits_and_says_who_would_not() {
    let near = client("127.0.0.1:999", "127.0.0.1:3128");
    let guards = Guards {
        report: true,
        ..Guards::default()
    };
    let admitted = guards
        .admit("169.254.169.254:80".parse().unwrap(), &near, nowhere)
        .unwrap();
    assert_eq!(admitted.would(), Some(Guard::LinkLocal));
}

#[test]
fn an_exception_opens_an_address_for_its_ports() {
    let near = client("127.0.0.1:999", "127.0.0.1:3128");
    let net = "169.254.1.9/32".parse().unwrap();
    let guards = Guards {
        except: vec![Exception {
            net,
            ports: Some(Ports::from_iter([80..=80])),
        }],
        ..Guards::default()
    };
    assert!(
        guards
            .admit("169.254.1.9:80".parse().unwrap(), &near, nowhere)
            .is_ok()
    );
    assert_eq!(
        guards
            .admit("169.254.1.9:81".parse().unwrap(), &near, nowhere)
            .err(),
        Some(Guard::LinkLocal)
    );
}

#[test]
fn metadata_names_are_known_before_any_lookup() {
    let near = client("127.0.0.1:999", "127.0.0.1:3128");
    let target = Target::from_authority("Metadata.Google.Internal.:80").unwrap();
    assert_eq!(
        Guards::default().object_to(&target, true, &near, false),
        Some(Guard::LinkLocal)
    );
    let far = client("192.0.2.9:999", "192.0.2.1:3128");
    let target = Target::from_authority("App.Localhost:80").unwrap();
    assert_eq!(
        Guards::default().object_to(&target, true, &near, false),
        None
    );
    assert_eq!(
        Guards::default().object_to(&target, true, &far, false),
        Some(Guard::Loopback)
    );
}
