//! `routecause doctor`: each scene is something that goes wrong, and must get the verdict that names it.
//!
//! Target and control are servers of the test's own; the policy's name server knows them.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use support::nameserver::{NameServer, Reply, SecureServer};
use support::netns::Net;
use support::origin::Origin;
use support::scene::{CONTROL, Scene, TARGET, good, pins, says, serve, servers};
use support::web::{self, Ca, Web};
use support::{routecause, run, tls, wire};

#[test]
fn nothing_is_the_matter() {
    let scene = Scene::new();
    let target = good(&scene);
    let told = scene.look(target.port());
    says(&told, "fine", "certain");
    // What a person reads: the verdict first, and nothing of it wider than the terminal.
    let policy = scene
        .folder
        .path()
        .join("policy.yaml")
        .display()
        .to_string();
    let (status, stdout, _) = run(&mut scene.command(
        &format!("https://me:s3cret@{TARGET}:{}/", target.port()),
        &policy,
    ));
    assert!(status.success() && !stdout.contains("s3cret"), "{stdout}");
    assert!(
        stdout.starts_with(&format!(
            "verdict   {TARGET}:{} works direct\n",
            target.port()
        )),
        "{stdout}"
    );
    assert!(
        stdout.lines().all(|line| line.chars().count() <= 100),
        "{stdout}"
    );
    assert!(
        stdout.contains("again     routecause doctor https://…@"),
        "{stdout}"
    );
    let place = format!("policy    direct, by default ({policy}:4)\n");
    assert!(stdout.contains(&place), "{place} in {stdout}");
}

#[test]
fn clean_runs_have_no_false_verdict() {
    let scene = Scene::new();
    let target = good(&scene);
    let runs = if std::env::var_os("ROUTECAUSE_TEST_LONG").is_some() {
        50
    } else {
        5
    };
    for _ in 0..runs {
        says(&scene.look(target.port()), "fine", "certain");
    }
}

#[test]
fn a_server_that_is_down_and_a_name_that_is_none() {
    let scene = Scene::new();
    says(
        &scene.look(Origin::nowhere().port()),
        "server_down",
        "certain",
    );
    let server = NameServer::answering(|query| Some(query.code(3).soa()));
    let told = scene.look_with(
        &servers(&[("inner", server.address)]),
        &format!("https://{TARGET}/"),
    );
    says(&told, "name_does_not_exist", "strong");
}

#[test]
fn a_name_that_is_known_inside_only() {
    let scene = Scene::new();
    let target = good(&scene);
    let outside = NameServer::answering(|query| Some(query.code(3).soa()));
    let inside = NameServer::giving("127.0.0.1");
    let dns = servers(&[("outer", outside.address), ("inner", inside.address)]);
    says(
        &scene.look_with(&dns, &format!("https://{TARGET}:{}/", target.port())),
        "split_dns",
        "strong",
    );
}

/// What a name server says to a question.
type Says = fn(&support::nameserver::Query<'_>) -> Option<Reply>;

#[test]
fn what_plain_dns_hides_or_forges() {
    let scene = Scene::new();
    let target = good(&scene);
    let clean = SecureServer::dot(&scene.ca, "dns.example");
    let rows: [(Says, &str, &str); 4] = [
        (|_| None, "dns_port_blocked", "certain"),
        (|query| Some(query.code(3).soa()), "dns_filtering", "strong"),
        (
            |query| Some(query.code(5).ede(15, "on a list")),
            "dns_filtering",
            "certain",
        ),
        (
            |query| Some(query.address("192.0.2.9")),
            "dns_poisoning",
            "certain",
        ),
    ];
    for (plain, id, certainty) in rows {
        let plain = NameServer::answering(plain);
        let dns = format!(
            "dns: {{default: plain, bogus: [192.0.2.0/24], hosts: {{{CONTROL}: [127.0.0.1]}}, servers: {{plain: {{udp: ['{}']}}, clean: {{dot: 'dns.example:{}', ip: [127.0.0.1]}}}}}}\ndefaults: {{timeouts: {{dns: 2s}}}}\n",
            plain.address,
            clean.port()
        );
        let told = scene.look_with(&dns, &format!("https://{TARGET}:{}/", target.port()));
        says(&told, id, certainty);
    }
}

#[test]
fn certificates_that_are_no_good() {
    let scene = Scene::new();
    for (leaf, verdict) in [
        (tls::Leaf::Expired, "past its time"),
        (tls::Leaf::NotYetValid, "not valid yet"),
        (tls::Leaf::SelfSigned, "signed by itself"),
    ] {
        let identity = scene.ca.identity(leaf, TARGET);
        let config = tls::server(&identity, tls::BOTH);
        let port = serve(move |stream| tls::echo(&config, stream));
        let told = scene.look(port);
        says(&told, "server_certificate_problem", "certain");
        assert!(
            told["verdict"]["sentence"]
                .as_str()
                .unwrap()
                .contains(verdict),
            "{told:#}"
        );
    }
    let other = Web::tls(&scene.ca, &["other.test"], |_| web::answer(200, ""));
    says(
        &scene.look(other.port()),
        "server_certificate_problem",
        "certain",
    );
    let stranger = Web::tls(&Ca::new(), &[TARGET], |_| web::answer(200, ""));
    says(
        &scene.look(stranger.port()),
        "server_certificate_problem",
        "certain",
    );
}

#[test]
fn a_server_that_refuses_and_one_that_speaks_no_tls() {
    let scene = Scene::new();
    let port = serve(|stream| {
        tls::says(&stream, &tls::alert(112));
    });
    says(&scene.look(port), "server_configuration", "certain");
    let port = serve(|stream| {
        tls::read_record(&stream);
        wire::send(
            &stream,
            "HTTP/1.1 302 Found\r\nLocation: http://block.test/\r\n\r\n",
        );
    });
    says(&scene.look(port), "block_page", "strong");
    let port = serve(|stream| wire::send(&stream, "220 mail.test ESMTP\r\n"));
    says(&scene.look(port), "not_tls", "strong");
    let broken = Web::tls(&scene.ca, &[TARGET], |_| web::answer(503, ""));
    says(&scene.look(broken.port()), "origin_answers", "certain");
}

#[test]
fn an_upstream_that_refuses_or_is_down() {
    let target = good(&Scene::new());
    for (reply, id) in [
        (
            "407 Proxy Authentication Required\r\nProxy-Authenticate: Negotiate",
            "upstream_auth",
        ),
        ("403 Forbidden", "upstream_denies"),
        ("405 Method Not Allowed", "not_a_forward_proxy"),
    ] {
        let upstream = Origin::answering(format!(
            "HTTP/1.1 {reply}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ));
        let scene = Scene::new().upstream(upstream.address, true);
        says(&scene.look(target.port()), id, "certain");
    }
    let scene = Scene::new().upstream(Origin::nowhere(), true);
    says(&scene.look(target.port()), "upstream_down", "certain");
}

#[test]
fn a_portal_in_place_of_everybody() {
    let portal = Web::plain(|_| web::answer(302, ""));
    let scene = Scene::new().flag(
        "--portal",
        &format!("http://127.0.0.1:{}/generate_204", portal.port()),
    );
    let stranger = Web::tls(&Ca::named("Hotel"), &[TARGET], |_| web::answer(200, ""));
    says(&scene.look(stranger.port()), "captive_portal", "certain");
}

#[test]
fn what_the_policy_refuses_it_says_itself() {
    let mut scene = Scene::new();
    scene.rules = "default: {block: true}".to_owned();
    let target = good(&scene);
    let told = scene.look(target.port());
    says(&told, "denied_by_policy", "certain");
    assert!(
        told["verdict"]["evidence"][0]
            .as_str()
            .unwrap()
            .contains("works direct"),
        "{told:#}"
    );
}

/// A namespace scene: the target at an address of the network's server, the control at another.
struct Far<'n> {
    net: &'n Net,
    scene: tempfile::TempDir,
    ca: Ca,
    target: IpAddr,
    control: IpAddr,
    upstream: Option<SocketAddr>,
    _servers: Vec<Web>,
}

/// Ports of the test's own servers are the same on every address.
static PORT: AtomicU16 = AtomicU16::new(4430);

impl<'n> Far<'n> {
    fn new(net: &'n Net) -> Self {
        let ca = Ca::new();
        let (target, control) = (net.address(), net.address());
        let on = |ip: IpAddr, name: &'static str, port: u16| {
            net.server
                .within(|| Web::tls_on((ip, port).into(), &ca, &[name], |_| web::answer(200, "")))
        };
        let servers = vec![on(target, TARGET, 443), on(control, CONTROL, 443)];
        Self {
            net,
            scene: tempfile::tempdir().unwrap(),
            target,
            control,
            upstream: None,
            _servers: servers,
            ca,
        }
    }

    /// A way round: a CONNECT proxy on the router, which no rule of the client's side strikes.
    fn with_upstream(mut self) -> Self {
        let port = PORT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::new(support::netns::ROUTER.into(), port);
        let listener = self
            .net
            .router
            .within(|| TcpListener::bind(address).unwrap());
        let space = self.net.router.name.clone();
        let (target, control) = (self.target, self.control);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let space = support::netns::Space {
                    name: space.clone(),
                };
                thread::spawn(move || relay(stream, &space, target, control));
            }
        });
        self.upstream = Some(address);
        self
    }

    fn look(&self) -> Value {
        let path = self.scene.path().join("policy.yaml");
        let upstreams = self
            .upstream
            .map(|at| format!("upstreams: {{corp: {{url: 'http://{at}'}}}}\n"))
            .unwrap_or_default();
        let (target, control) = (self.target, self.control);
        let policy = format!(
            "version: 1\ndns: {{hosts: {{{TARGET}: ['{target}'], {CONTROL}: ['{control}']}}}}\n{upstreams}rules: []\ndefault: {{direct: true}}\n"
        );
        fs::write(&path, policy).unwrap();
        let mut command = self.net.client.command(env!("CARGO_BIN_EXE_routecause"));
        command
            .args([
                "doctor",
                &format!("https://{TARGET}/"),
                "--json",
                "--control",
                CONTROL,
                "--policy",
            ])
            .arg(&path)
            .env("SSL_CERT_FILE", self.ca.file())
            .env("TERM", "dumb");
        let (_, stdout, stderr) = run(&mut command);
        serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}"))
    }
}

/// Serves one CONNECT by a connection of the router's own.
fn relay(mut client: TcpStream, space: &support::netns::Space, target: IpAddr, control: IpAddr) {
    let head = wire::read_head(&client);
    let ip = if head.contains(TARGET) {
        target
    } else {
        control
    };
    let server =
        space.within(|| TcpStream::connect_timeout(&(ip, 443).into(), Duration::from_secs(5)));
    let Ok(mut server) = server else {
        wire::send(
            &client,
            "HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n",
        );
        return;
    };
    wire::send(&client, "HTTP/1.1 200 OK\r\n\r\n");
    let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let there = thread::spawn(move || {
        let _ = std::io::copy(&mut up, &mut server);
        let _ = server.shutdown(std::net::Shutdown::Write);
    });
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = down.read(&mut buffer) {
        if client.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(std::net::Shutdown::Write);
    let _ = there.join();
}

#[test]
fn addresses_that_a_firewall_drops_or_forbids() {
    let Some(net) = Net::new() else { return };
    let far = Far::new(&net).with_upstream();
    says(&far.look(), "fine", "certain");
    let drop = format!("-d {} -p tcp --dport 443 -j DROP", far.target);
    net.router.iptables(&format!("-A FORWARD {drop}"));
    says(&far.look(), "ip_blocking", "strong");
    // The way round fails as well: the server is down.
    net.router.iptables(&format!("-A OUTPUT {drop}"));
    says(&far.look(), "server_down", "strong");
    net.router.iptables(&format!("-D OUTPUT {drop}"));
    net.router.iptables(&format!("-D FORWARD {drop}"));
}

#[test]
fn a_firewall_that_says_so_and_a_way_that_is_down() {
    let Some(net) = Net::new() else { return };
    let far = Far::new(&net);
    net.router.iptables(&format!(
        "-I FORWARD -d {} -j REJECT --reject-with icmp-admin-prohibited",
        far.target
    ));
    says(&far.look(), "ip_blocking", "certain");
    // Nothing gets out at all.
    net.router.iptables("-I FORWARD -j DROP");
    says(&far.look(), "route_down", "certain");
}

#[test]
fn a_name_that_is_filtered_on_the_way() {
    let Some(net) = Net::new() else { return };
    let far = Far::new(&net).with_upstream();
    let router = net.slowed(Duration::from_millis(10));
    says(&far.look(), "fine", "certain");
    router.rule(&serde_json::json!({"from": "client", "contains": TARGET, "drop": true, "reset": 1, "at": 2}));
    let told = far.look();
    says(&told, "sni_filtering", "certain");
    assert!(
        told["verdict"]["sentence"]
            .as_str()
            .unwrap()
            .contains("reset"),
        "{told:#}"
    );
    drop(router);
    // The same by silence.
    let router = net.slowed(Duration::from_millis(10));
    router.rule(&serde_json::json!({"from": "client", "contains": TARGET, "drop": true}));
    let told = far.look();
    says(&told, "sni_filtering", "certain");
    assert!(
        told["verdict"]["sentence"]
            .as_str()
            .unwrap()
            .contains("silence"),
        "{told:#}"
    );
}

#[test]
fn packets_that_are_too_large_and_payload_that_is_stopped() {
    let Some(net) = Net::new() else { return };
    let far = Far::new(&net);
    let router = net.slowed(Duration::from_millis(5));
    router.rule(&serde_json::json!({"from": "client", "on": "any", "server": far.target.to_string(), "longer": 700, "drop": true}));
    says(&far.look(), "pmtu_black_hole", "certain");
    drop(router);
    let router = net.slowed(Duration::from_millis(5));
    router.rule(&serde_json::json!({"from": "client", "server": far.target.to_string(), "drop": true, "reset": 1, "at": 2}));
    says(&far.look(), "port_or_ip_blocking_after_handshake", "strong");
}

#[test]
fn variables_of_this_shell_are_judged() {
    let mut command = routecause();
    command
        .args(["doctor", "env", "--json"])
        .env("https_proxy", "http://me:secret@127.0.0.1:9")
        .env("HTTPS_PROXY", "http://127.0.0.2:9");
    let (status, stdout, _) = run(&mut command);
    assert_eq!(status.code(), Some(1));
    assert!(!stdout.contains("secret"), "{stdout}");
    let told: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(told["schema"], "routecause.doctor.env/1");
    assert!(
        stdout.contains("https_proxy and HTTPS_PROXY differ"),
        "{stdout}"
    );
    // Those of another process.
    let mut sleeper = Command::new("sleep")
        .arg("60")
        .env_clear()
        .env("no_proxy", "a b")
        .spawn()
        .unwrap();
    let (status, stdout, _) =
        run(routecause().args(["doctor", "env", "--pid", &sleeper.id().to_string()]));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(stdout.contains("blanks do not separate"), "{stdout}");
}

#[test]
fn a_flag_that_does_nothing_is_refused() {
    for (args, flag) in [
        (&["env", "--locate"][..], "--locate"),
        (&["env", "--thorough"], "--thorough"),
        (&["env", "--portal", "http://p.test/"], "--portal"),
        (&["https://a.test/", "--pid", "1"], "--pid"),
        (&["https://a.test/", "--unit", "a"], "--unit"),
        (&["https://a.test/", "--image", "a"], "--image"),
        (&["go", "--idle", "1s"], "--idle"),
        (&["git", "--thorough"], "--thorough"),
    ] {
        let (status, _, stderr) = run(routecause().arg("doctor").args(args));
        assert_eq!(status.code(), Some(2), "{args:?}: {stderr}");
        assert!(
            stderr.contains(&format!("error: {flag} goes with ")),
            "{args:?}: {stderr}"
        );
    }
}

#[test]
fn the_places_that_go_fetches_from_are_looked_at() {
    if !support::needs::has("go") {
        return;
    }
    let scene = Scene::new();
    let target = good(&scene);
    let path = scene
        .folder
        .path()
        .join("policy.yaml")
        .display()
        .to_string();
    fs::write(
        &path,
        format!(
            "version: 1\n{}rules: []\ndefault: {{direct: true}}\n",
            pins("127.0.0.1")
        ),
    )
    .unwrap();
    let gone = Origin::nowhere().port();
    let goproxy = format!(
        "https://{TARGET}:{gone},https://me:s3cret@{TARGET}:{}|direct",
        target.port()
    );
    let home = scene.folder.path().display().to_string();
    let mut command = scene.command("go", &path);
    command
        .env("GOPROXY", &goproxy)
        .env("GOSUMDB", "off")
        .env("GOINSECURE", "*.corp.example")
        .env("HOME", home);
    let (status, stdout, stderr) = run(&mut command);
    assert_eq!(status.code(), Some(1), "{stdout}{stderr}");
    for part in [
        format!("  1  FAILS  https://{TARGET}:{gone}\n"),
        "(server_down)".to_owned(),
        "then, behind 404 and 410 only:".to_owned(),
        format!("  2  ok     https://…@{TARGET}:{}\n", target.port()),
        "then, behind any failure:".to_owned(),
        "note: no private patterns".to_owned(),
        "note: GOINSECURE *.corp.example: ".to_owned(),
        "note: GOSUMDB=off: ".to_owned(),
        "Write | there".to_owned(),
    ] {
        assert!(stdout.contains(&part), "{part} in {stdout}");
    }
    assert!(!stdout.contains("s3cret"), "{stdout}");
}
