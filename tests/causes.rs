//! Why tunnels fail, in a network of the test's own.

mod support;

use std::net::TcpListener;

use support::netns::{self, Net};
use support::{DIRECT, Proxy, check, wire};

#[test]
fn a_network_of_the_tests_own() {
    let Some(net) = Net::new() else { return };
    let proxy = Proxy::under(DIRECT).inside(&net.client).start();
    for address in [net.address(), net.address6(), "10.2.0.2".parse().unwrap()] {
        let listener = net
            .server
            .within(|| TcpListener::bind((address, 0)).unwrap());
        let target = listener.local_addr().unwrap();
        let client = net.client.within(|| proxy.connect());
        wire::send(
            &client,
            format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
        );
        let (server, peer) = listener.accept().unwrap();
        assert_eq!(
            peer.ip(),
            if address.is_ipv4() {
                netns::CLIENT.into()
            } else {
                std::net::IpAddr::from(netns::CLIENT6)
            }
        );
        wire::send(&server, "hello");
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
        assert_eq!(wire::read_exact(&client, 5), b"hello");
        wire::finish(&client);
        assert!(wire::is_fin(&server));
        drop(server);
        check!(&proxy.record(), "event.outcome": "success");
    }
    net.router
        .iptables("-A FORWARD -p tcp --dport 443 -j REJECT --reject-with tcp-reset");
    assert!(
        net.client
            .run("cat /proc/net/fib_trie")
            .contains("10.1.0.2")
    );
}
