//! `routecause connect`, which ssh runs as its `ProxyCommand`: proxies of every kind, and why one refuses.

mod support;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use argon2::password_hash::PasswordHasher as _;
use support::origin::{Listening, Origin};
use support::tls::Leaf;
use support::web::Ca;
use support::{DIRECT, Proxy, check, routecause, run, wire};

/// With a slash and an `@`, so that half of it may be taken for a host.
const PASSWORD: &str = "s3/cr@t";

/// The same as a URL holds it.
const IN_URL: &str = "alice:s3%2Fcr%40t";

fn users() -> String {
    let params = argon2::Params::new(64, 1, 1, None).unwrap();
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let hash = argon2.hash_password_with_salt(PASSWORD.as_bytes(), b"saltsaltsalt");
    format!("alice:{}\n", hash.unwrap())
}

/// A proxy that asks who its clients are, with a listener like this.
fn asking(listen: &str) -> support::Starting {
    let policy = format!("{DIRECT}server: {{auth: {{users: users.txt}}, listen: [{listen}]}}\n");
    let proxy = Proxy::under(&policy).file("users.txt", &users());
    proxy.listening_as_written()
}

/// The command, with its proxy where nobody sees it.
fn connect(proxy: &str, target: SocketAddr) -> Command {
    let mut command = routecause();
    command.arg("connect").env("ROUTECAUSE_PROXY", proxy);
    command.args([target.ip().to_string(), target.port().to_string()]);
    command
}

/// Both sides talk, and the end of each is seen by the other while that still has something to say.
#[track_caller]
fn talks(command: &mut Command, origin: &Listening) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let server = origin.accept();
    wire::send(&server, "SSH-2.0-there\r\n");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"SSH-2.0-here\r\n").unwrap();
    assert_eq!(wire::read_exact(&server, 14), b"SSH-2.0-here\r\n");
    let bulk: Vec<u8> = (0..1_000_000_u32).map(|i| i.to_le_bytes()[1]).collect();
    let sent = bulk.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    assert!(wire::read_to_end(&server) == bulk);
    writer.join().unwrap();
    wire::send(&server, &bulk);
    drop(server);
    let mut out = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    assert!(out.starts_with(b"SSH-2.0-there\r\n") && out.ends_with(&bulk));
    assert_eq!(out.len(), 15 + bulk.len());
    assert!(child.wait().unwrap().success());
}

/// The command says `expected` as a whole, and is content.
fn assert_ends(mut child: Child, expected: &str) {
    let mut out = String::new();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_to_string(&mut out).unwrap();
    assert_eq!(out, expected);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_tunnel_on_standard_input_and_output_is_what_ssh_wants() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let port = origin.address.port().to_string();
    let mut child = routecause()
        .args(["connect", "--proxy", &proxy.url(), "127.0.0.1", &port])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let server = origin.accept();
    wire::send(&server, "SSH-2.0-there\r\n");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"SSH-2.0-here\r\n").unwrap();
    assert_eq!(wire::read_exact(&server, 14), b"SSH-2.0-here\r\n");
    // Its end of input is the tunnel's, and the other way still carries.
    drop(stdin);
    assert_eq!(wire::read_to_end(&server), b"");
    wire::send(&server, "bye");
    drop(server);
    assert_ends(child, "SSH-2.0-there\r\nbye");
    check!(&proxy.record(), "event.outcome": "success", "source.bytes": 14);
}

#[test]
fn a_tunnel_that_does_not_come_about_says_why() {
    let gone = Origin::nowhere();
    let port = gone.port().to_string();
    let proxy = Proxy::start(
        "version: 1\nrules:\n  - {name: no, match: {host: no.test}, block: {reason: 'not there'}}\ndefault: {direct: true}\n",
    );
    let ask = |proxy: &str, host: &str| {
        let (status, _, stderr) =
            run(routecause().args(["connect", "--proxy", proxy, host, &port]));
        (status.code(), stderr)
    };
    let (code, stderr) = ask(&proxy.url(), "127.0.0.1");
    assert_eq!(code, Some(4), "{stderr}");
    assert!(stderr.contains("502 connect.refused"), "{stderr}");
    let (code, stderr) = ask(&proxy.url(), "no.test");
    assert_eq!(code, Some(3), "{stderr}");
    let (code, stderr) = ask(&format!("http://{gone}"), "127.0.0.1");
    assert_eq!(code, Some(69), "{stderr}");
}

#[test]
fn a_proxy_that_asks_who_it_is_is_told_by_http_and_by_socks() {
    let proxy = asking("{address: '127.0.0.1:0'}").start();
    let origin = Listening::new();
    for scheme in ["", "http://", "socks5://", "socks5h://"] {
        let url = format!("{scheme}{IN_URL}@{}", proxy.address);
        talks(&mut connect(&url, origin.address), &origin);
        check!(&proxy.record(), "event.outcome": "success", "user.name": "alice",
            "network.protocol.name": (if scheme.starts_with("socks") { "socks" } else { "http" }));
    }
}

#[test]
fn tls_leads_to_a_proxy_whose_authority_is_trusted() {
    let ca = Ca::new();
    let identity = ca.identity(Leaf::Good, "localhost");
    let proxy = asking("{address: '127.0.0.1:0', tls: {cert: cert.pem, key: key.pem}}")
        .file("cert.pem", &identity.chain_pem())
        .file("key.pem", &identity.key_pem())
        .file("ca.pem", &ca.pem())
        .start();
    let origin = Listening::new();
    let url = format!("https://{IN_URL}@localhost:{}", proxy.address.port());
    let trusted = proxy.policy.with_file_name("ca.pem");
    let mut command = connect(&url, origin.address);
    talks(command.env("SSL_CERT_FILE", &trusted), &origin);
    check!(&proxy.record(), "event.outcome": "success", "user.name": "alice");
    let (status, _, stderr) = run(&mut connect(&url, origin.address));
    assert_eq!(status.code(), Some(69), "{stderr}");
    assert!(
        stderr.contains(": upstream.tls.cert.unknown_issuer: "),
        "{stderr}"
    );
    assert!(!stderr.contains("s3"), "{stderr}");
}

#[test]
fn a_socket_in_the_file_system_leads_there() {
    let folder = tempfile::tempdir().unwrap();
    let place = format!("unix:{}", folder.path().join("proxy.sock").display());
    let listen = format!("{{address: '127.0.0.1:0'}}, {{address: '{place}', auth: false}}");
    let proxy = asking(&listen).start();
    let origin = Listening::new();
    talks(&mut connect(&place, origin.address), &origin);
    check!(&proxy.record(), "event.outcome": "success");
    let (status, _, stderr) = run(&mut connect(&format!("{place}.not"), origin.address));
    assert_eq!(status.code(), Some(69), "{stderr}");
    assert!(
        stderr.contains(".not: connect: No such file or directory"),
        "{stderr}"
    );
}

#[test]
fn without_a_name_the_proxy_is_asked_where_serve_was_told_to_listen() {
    let proxy = Proxy::start(DIRECT);
    let origin = Listening::new();
    let gone = Origin::nowhere();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.yaml");
    let listens = |at: &str| {
        let listen = format!("{DIRECT}server: {{listen: [{{address: '{at}'}}]}}\n");
        std::fs::write(&path, listen).unwrap();
    };
    listens(&gone.to_string());
    let with = |policy: Option<&str>, listen: &str| {
        let mut command = connect("", origin.address);
        let policy = policy.map(|path| ["--policy", path]);
        command.args(policy.into_iter().flatten());
        command.env("ROUTECAUSE_LISTEN", listen);
        command
    };
    let policy = path.to_str();
    let address = proxy.address.to_string();
    talks(&mut with(policy, &address), &origin);
    talks(&mut with(None, &format!("systemd,{address}")), &origin);
    let (status, _, stderr) = run(&mut with(policy, ""));
    assert_eq!(status.code(), Some(69), "{stderr}");
    assert!(
        stderr.contains(&gone.to_string()) && stderr.contains("is `routecause serve` running?"),
        "{stderr}"
    );
    listens(&address);
    talks(&mut with(policy, ""), &origin);
    std::fs::write(&path, "version: 2\n").unwrap();
    let (status, _, stderr) = run(&mut with(policy, ""));
    assert_eq!(status.code(), Some(78), "{stderr}");
    talks(&mut with(policy, &address), &origin);
    let place = format!("unix:{}", folder.path().join("proxy.sock").display());
    let proxy = asking(&format!(
        "{{address: '127.0.0.1:0'}}, {{address: '{place}', auth: false}}"
    ));
    let _proxy = proxy.start();
    talks(&mut with(None, &place), &origin);
}

#[test]
fn a_challenge_is_answered() {
    let upstream = Listening::new();
    let url = format!("http://{IN_URL}@{}", upstream.address);
    let mut child = connect(&url, Origin::nowhere())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever has more to say does not keep it where the far side has ended.
    let stdin = child.stdin.take();
    let (server, head) = upstream.hear();
    // alice:s3/cr@t
    assert_eq!(
        wire::field(&head, "proxy-authorization"),
        Some("Basic YWxpY2U6czMvY3JAdA==")
    );
    wire::send(
        &server,
        "HTTP/1.1 407 Who\r\nProxy-Authenticate: Digest realm=\"r\", nonce=\"n\", qop=\"auth\", algorithm=SHA-256\r\n\
         Content-Length: 0\r\n\r\n",
    );
    let head = wire::read_head(&server);
    let said = wire::field(&head, "proxy-authorization").unwrap();
    assert!(
        said.starts_with("Digest username=\"alice\", realm=\"r\", "),
        "{said}"
    );
    wire::send(&server, "HTTP/1.1 200 OK\r\n\r\nSSH-2.0-there\r\n");
    drop(server);
    assert_ends(child, "SSH-2.0-there\r\n");
    drop(stdin);
}

#[test]
fn a_proxy_that_refuses_is_told_by_its_cause_and_no_password_is_shown() {
    let proxy = asking("{address: '127.0.0.1:0'}").start();
    let denying = Proxy::start("version: 1\nrules: []\ndefault: {block: true}\n");
    let silent = Origin::serving(|_| String::new());
    let (asks, denies, closes) = (proxy.address, denying.address, silent.address);
    let gone = Origin::nowhere();
    for (url, code, told) in [
        (
            format!("http://{asks}"),
            4,
            "upstream.auth_required: upstream proxy: answered 407 ",
        ),
        (
            format!("http://alice:s3wrong@{asks}"),
            4,
            "upstream.auth_rejected: upstream proxy: answered 407 ",
        ),
        (
            format!("socks5h://alice:s3wrong@{asks}"),
            4,
            "upstream.auth_rejected: ",
        ),
        (format!("socks5h://{asks}"), 4, "upstream.auth_required: "),
        (
            format!("http://{IN_URL}@{denies}"),
            3,
            "upstream.denied: upstream proxy: answered 403 policy.denied.default",
        ),
        (
            format!("socks5h://{denies}"),
            3,
            "upstream.denied: upstream proxy: SOCKS reply 2: ",
        ),
        (
            format!("socks5h://{IN_URL}@{asks}"),
            4,
            "upstream.reported.connect: ",
        ),
        (
            format!("http://{IN_URL}@{gone}"),
            69,
            "upstream.connect.refused: ",
        ),
        (format!("https://{IN_URL}@{asks}"), 69, "upstream.tls."),
        (format!("http://{IN_URL}@{closes}"), 69, "upstream."),
        (
            format!("socks4://{IN_URL}@{asks}"),
            2,
            "socks4:// is no proxy's scheme",
        ),
        (format!("{IN_URL}@"), 2, ""),
        // What would be a proxy's own port elsewhere is none of this program's.
        (
            format!("http://{IN_URL}@127.0.0.1:1"),
            69,
            "upstream.connect.refused: ",
        ),
    ] {
        let (status, stdout, stderr) = run(&mut connect(&url, gone));
        let shown = url.replace(IN_URL, "…").replace("alice:s3wrong", "…");
        assert_eq!(status.code(), Some(code), "{shown}: {stderr}");
        let begin = format!("error: {gone} through {shown}: {told}");
        assert!(stderr.starts_with(&begin), "{begin}: {stderr}");
        assert!(
            !stderr.contains("s3") && !stderr.contains("alice"),
            "{stderr}"
        );
        assert_eq!(stdout, "");
    }
    let mut help = connect("http://alice:s3wrong@p.test:1", gone);
    let (_, stdout, _) = run(help.arg("--help"));
    assert!(stdout.contains("[env: ROUTECAUSE_PROXY]"), "{stdout}");
}
