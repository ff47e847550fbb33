//! `routecause doctor --locate`: from where on the way a reset comes, told by two real routers.

mod support;

use std::fs;
use std::process::Command;

use serde_json::Value;
use support::netns::{Net, Space};
use support::run;
use support::web::{self, Ca, Web};

const TARGET: &str = "files.example";
const CONTROL: &str = "control.example";

/// A network behind the server's, which is the second router.
struct Beyond {
    space: Space,
}

impl Beyond {
    fn new(net: &Net) -> Self {
        let name = net.server.name.replace("-server", "-beyond");
        // The filter looks at packets one by one: a ClientHello is to be one.
        let script = format!(
            "set -e
             ip netns add {name}
             ip link add beyond netns {server} type veth peer name server netns {name}
             ip -n {server} address add 10.4.0.1/24 dev beyond
             ip -n {server} link set beyond up
             ip -n {name} address add 10.4.0.2/24 dev server
             ip -n {name} address add 10.4.0.3/24 dev server
             ip -n {name} link set server up
             ip -n {name} link set lo up
             ip -n {name} route add default via 10.4.0.1
             ip -n {router} route add 10.4.0.0/24 via 10.2.0.2
             ip -n {client} link set router mtu 9000
             ip -n {router} link set client mtu 9000
             ip -n {router} link set server mtu 9000
             ip -n {server} link set router mtu 9000
             ip -n {server} link set beyond mtu 9000
             ip -n {name} link set server mtu 9000
             ip netns exec {server} sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/icmp_ratelimit'",
            client = net.client.name,
            server = net.server.name,
            router = net.router.name,
        );
        let beyond = Self {
            space: Space { name },
        };
        let (status, stdout, stderr) = run(Command::new("sh").args(["-c", &script]));
        assert!(status.success(), "{stdout}{stderr}");
        beyond
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        run(Command::new("ip").args(["netns", "delete", &self.space.name]));
    }
}

#[test]
fn a_reset_is_placed_between_the_hops_around_it() {
    let Some(net) = Net::new() else { return };
    let beyond = Beyond::new(&net);
    let ca = Ca::new();
    let on = |ip: [u8; 4], name: &'static str| {
        beyond
            .space
            .within(|| Web::tls_on((ip, 443).into(), &ca, &[name], |_| web::answer(200, "")))
    };
    let _servers = [on([10, 4, 0, 2], TARGET), on([10, 4, 0, 3], CONTROL)];
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.yaml");
    fs::write(
        &policy,
        format!("version: 1\ndns: {{hosts: {{{TARGET}: [10.4.0.2], {CONTROL}: [10.4.0.3]}}}}\nrules: []\ndefault: {{direct: true}}\n"),
    )
    .unwrap();
    let look = || -> Value {
        let mut command = net.client.command(env!("CARGO_BIN_EXE_routecause"));
        command.args([
            "doctor",
            &format!("https://{TARGET}/"),
            "--json",
            "--locate",
            "--control",
            CONTROL,
            "--policy",
        ]);
        command
            .arg(&policy)
            .env("SSL_CERT_FILE", ca.file())
            .env("TERM", "dumb");
        let (_, stdout, stderr) = run(&mut command);
        serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}"))
    };
    let rule = format!(
        "FORWARD -p tcp -m string --string {TARGET} --algo kmp -j REJECT --reject-with tcp-reset"
    );
    for (router, place) in [
        (&net.router, "between 10.1.0.1 (hop 1) and 10.2.0.2 (hop 2)"),
        (
            &net.server,
            "between 10.2.0.2 (hop 2) and the target itself (10.4.0.2, hop 3)",
        ),
    ] {
        router.iptables(&format!("-A {rule}"));
        let told = look();
        assert_eq!(told["verdict"]["id"], "sni_filtering", "{told:#}");
        let first = told["verdict"]["evidence"][0].as_str().unwrap();
        assert!(first.contains(place), "{told:#}");
        router.iptables(&format!("-D {rule}"));
    }
    // Where all is well there is nothing to place.
    let told = look();
    assert_eq!(told["verdict"]["id"], "fine", "{told:#}");
    assert_eq!(told["facts"].get("hops"), None, "{told:#}");
}
