//! Who may use the proxy: users with passwords, clients with certificates, and whom a listener takes for whom.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::sys::signal::Signal;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use support::origin::{Listening, Origin};
use support::tls::{Identity, Leaf};
use support::web::Ca;
use support::{DIRECT, Proxy, SOON, check, needs, routecause, run, user, wire};

const PASSWORD: &str = "s3cret:planted";

fn field(name: &str, password: &str) -> String {
    let pair = BASE64.encode(format!("{name}:{password}"));
    format!("Proxy-Authorization: Basic {pair}\r\n")
}

const WITH_USERS: &str = "\
version: 1
server: {auth: {users: users.txt}}
clients: {labels: username_suffix, roles: {ops: {user: alice}}}
rules: [{name: ops, match: {client: {role: ops}}, direct: true}]
default: {block: true}
";

fn with_users() -> Proxy {
    let users = user("alice", PASSWORD) + &user("bob", "other");
    Proxy::under(WITH_USERS).file("users.txt", &users).start()
}

fn origin() -> Origin {
    Origin::answering("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
}

/// Asks for a page with a field; the answer and the record.
fn ask(proxy: &Proxy, origin: SocketAddr, field: &str) -> (String, Value) {
    let client = proxy.connect();
    wire::send(
        &client,
        format!(
            "GET http://{origin}/ HTTP/1.1\r\nHost: {origin}\r\n{field}Connection: close\r\n\r\n"
        ),
    );
    (wire::read_text(&client), proxy.record())
}

#[test]
fn who_says_nothing_is_asked_and_who_proves_it_is_served() {
    let proxy = with_users();
    let origin = origin();
    for (given, cause) in [
        (String::new(), "client.auth_required"),
        (
            "Proxy-Authorization: Bearer abc\r\n".to_owned(),
            "client.auth_required",
        ),
        (
            "Proxy-Authorization: Basic !!\r\n".to_owned(),
            "client.auth_required",
        ),
        (field("alice", "wrong"), "client.auth_failed"),
        (field("nobody", PASSWORD), "client.auth_failed"),
        (field("", ""), "client.auth_failed"),
    ] {
        let (answer, record) = ask(&proxy, origin.address, &given);
        let head = format!("HTTP/1.1 407 {cause}: ");
        assert!(answer.starts_with(&head), "{answer}");
        assert_eq!(
            wire::field(&answer, "proxy-authenticate"),
            Some("Basic realm=\"routecause\", charset=\"UTF-8\"")
        );
        check!(&record, "error.type": cause, "egress.side": "client", "egress.phase": "client",
            "http.response.status_code": 407, "egress.attempts": null);
    }
    let (answer, record) = ask(&proxy, origin.address, &field("alice+job7", PASSWORD));
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    check!(&record, "user.name": "alice", "egress.client.label": "job7", "egress.client.role": ["ops"],
        "egress.rule": "ops", "event.outcome": "success");
    assert!(!origin.heard().contains("roxy-"));
    let (answer, record) = ask(&proxy, origin.address, &field("bob", "other"));
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    check!(&record, "user.name": "bob", "egress.rule": "default");
    let (diary, _) = proxy.finish();
    assert!(
        !diary.contains("s3cret") && !diary.contains("argon2"),
        "{diary}"
    );
}

#[test]
fn a_tunnel_is_refused_before_anything_is_dialled_and_its_connection_ends() {
    let proxy = with_users();
    let origin = Listening::new();
    let client = proxy.connect();
    wire::send(
        &client,
        format!(
            "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            origin.address
        ),
    );
    let answer = wire::read_text(&client);
    assert!(
        answer.starts_with("HTTP/1.1 407 client.auth_required: "),
        "{answer}"
    );
    assert_eq!(wire::field(&answer, "connection"), Some("close"));
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    check!(&proxy.record(), "error.type": "client.auth_required");
    assert!(origin.is_untouched());
    let client = proxy.connect();
    let given = field("alice", PASSWORD);
    wire::send(
        &client,
        format!(
            "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n{given}\r\n",
            origin.address
        ),
    );
    assert!(wire::read_head(&client).starts_with("HTTP/1.1 200"));
    drop((client, origin.accept()));
    check!(&proxy.record(), "user.name": "alice", "event.outcome": "success");
}

#[test]
fn socks_clients_prove_it_as_well() {
    let proxy = with_users();
    let origin = Listening::new();
    let client = proxy.connect();
    wire::send(&client, [5, 1, 0]);
    assert_eq!(wire::read_to_end(&client), [5, 0xff]);
    check!(&proxy.record(), "error.type": "client.auth_required");
    let login = |password: &str| {
        let client = proxy.connect();
        wire::send(&client, [5, 2, 0, 2]);
        assert_eq!(wire::read_exact(&client, 2), [5, 2]);
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        let words = [
            &[1, 5][..],
            b"alice",
            &[length(password)],
            password.as_bytes(),
        ]
        .concat();
        wire::send(&client, words);
        client
    };
    let client = login("wrong");
    let answer = wire::read_to_end(&client);
    assert!(
        answer[0] == 1 && answer[1] != 0 && answer.len() == 2,
        "{answer:?}"
    );
    check!(&proxy.record(), "error.type": "client.auth_failed", "user.name": "alice");
    let client = login(PASSWORD);
    assert_eq!(wire::read_exact(&client, 2), [1, 0]);
    let port = origin.address.port().to_be_bytes();
    wire::send(&client, [&[5, 1, 0, 1, 127, 0, 0, 1][..], &port].concat());
    assert_eq!(wire::read_exact(&client, 10)[1], 0);
    drop((client, origin.accept()));
    check!(&proxy.record(), "user.name": "alice", "network.protocol.name": "socks");
}

#[test]
fn a_file_of_users_that_changes_is_read_again() {
    let proxy = with_users();
    let origin = origin();
    let write = |text: &str| proxy.replace("users.txt", text);
    let status =
        |password: &str| ask(&proxy, origin.address, &field("alice", password)).0[9..12].to_owned();
    assert_eq!(status(PASSWORD), "204");
    write(&user("alice", "new"));
    proxy.diaries("reloaded", 1);
    assert_eq!(
        (status(PASSWORD), status("new")),
        ("407".to_owned(), "204".to_owned())
    );
    // What cannot be read changes nothing.
    write("alice:plain text\n");
    proxy.diary("reload failed");
    assert_eq!(status("new"), "204");
    write("# nobody\n");
    proxy.diaries("reloaded", 2);
    assert_eq!(status("new"), "407");
    let (diary, _) = proxy.finish();
    assert!(!diary.contains("plain text"), "{diary}");
}

/// What a proxy that does not start says, and its exit code.
fn refused_start(
    policy: &str,
    files: &[(&str, &str, u32)],
    flags: &[&str],
) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.yaml");
    std::fs::write(&path, policy).unwrap();
    for (name, text, mode) in files {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(*mode)).unwrap();
    }
    let mut command = routecause();
    command.arg("--policy").arg(&path).args(flags);
    let (status, _, said) = run(&mut command);
    (status.code(), said)
}

#[test]
fn a_file_of_users_that_others_can_read_or_that_is_none_stops_the_start() {
    let good = user("alice", PASSWORD);
    for (text, mode, expected) in [
        (&*good, 0o644, "is open to others (mode 644)"),
        (
            "alice:s3cret:planted\n",
            0o600,
            "users.txt:1:1: error: this is no argon2 hash",
        ),
        (
            "s3cret planted\n",
            0o600,
            "a user is a name, a colon and an argon2 hash",
        ),
        (
            &*(good.clone() + &good),
            0o600,
            "user `alice` stands here a second time",
        ),
    ] {
        let (code, said) = refused_start(
            WITH_USERS,
            &[("users.txt", text, mode)],
            &["--listen", "127.0.0.1:0"],
        );
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains(expected), "{said}");
        assert!(
            !said.contains("s3cret") && !said.contains("$argon2id$v"),
            "{said}"
        );
    }
    let (code, said) = refused_start(WITH_USERS, &[], &["--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("users.txt` cannot be read"), "{said}");
}

#[test]
fn an_open_proxy_does_not_start() {
    let users = user("alice", PASSWORD);
    let files = [("users.txt", &*users, 0o600)];
    let own = needs::own_address().map(|ip| format!("{ip}:0"));
    for address in ["0.0.0.0:0", "[::]:0", ":0"]
        .into_iter()
        .chain(own.as_deref())
    {
        let (code, said) = refused_start(DIRECT, &[], &["--listen", address]);
        assert_eq!(code, Some(78), "{address}: {said}");
        assert!(
            said.contains("nobody says who may use it"),
            "{address}: {said}"
        );
        // A listener that asks nobody is as open as before.
        let exempt = format!(
            "version: 1\nserver: {{auth: {{users: users.txt}}, listen: [{{address: '{address}', auth: false}}]}}\n\
             rules: []\ndefault: {{direct: true}}\n"
        );
        if address != ":0" {
            let (code, said) = refused_start(&exempt, &files, &[]);
            assert_eq!(code, Some(78), "{address}: {said}");
        }
        for (policy, flags) in [(WITH_USERS, None), (DIRECT, Some("127.0.0.0/8"))] {
            let mut starting = Proxy::under(policy)
                .file("users.txt", &users)
                .arg("--listen")
                .arg(address);
            if let Some(nets) = flags {
                starting = starting.arg("--allow-from").arg(nets);
            }
            drop(starting.start());
        }
    }
    for address in ["127.0.0.1:0", "127.9.9.9:0", "[::1]:0"] {
        drop(Proxy::under(DIRECT).arg("--listen").arg(address).start());
    }
}

#[test]
fn a_reload_does_not_open_what_was_closed() {
    let proxy = with_users();
    let origin = origin();
    std::fs::write(&proxy.policy, DIRECT).unwrap();
    proxy.diary("reload refused");
    assert!(
        ask(&proxy, origin.address, "")
            .0
            .starts_with("HTTP/1.1 407")
    );
}

#[test]
fn whoever_guesses_waits_and_holds_nobody_up() {
    let proxy = with_users();
    let origin = origin();
    let guess = |at: u32| {
        let (answer, _) = ask(
            &proxy,
            origin.address,
            &field("alice", &format!("guess {at}")),
        );
        assert!(answer.starts_with("HTTP/1.1 407"), "{answer}");
    };
    (0..10).for_each(guess);
    let begun = Instant::now();
    guess(10);
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    // Who is known by the right password is served; a first one waits as a guess does.
    let (answer, _) = ask(&proxy, origin.address, &field("alice", PASSWORD));
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    let served = || {
        let begun = Instant::now();
        let (answer, _) = ask(&proxy, origin.address, &field("alice", PASSWORD));
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        begun.elapsed()
    };
    // Each time, were it so.
    let least = (0..3).map(|_| served()).min().unwrap();
    assert!(least < Duration::from_secs(1), "{least:?}");
}

/// A proxy whose listener speaks TLS, for members only where there is an authority for them.
fn with_tls(ca: &Ca, members: Option<&Ca>) -> Proxy {
    let identity = ca.identity(Leaf::Good, "localhost");
    let client_ca = if members.is_some() {
        ", client_ca: members.pem"
    } else {
        ""
    };
    let policy = format!(
        "version: 1\nserver: {{listen: [{{name: secure, address: '127.0.0.1:0', tls: {{cert: cert.pem, key: key.pem{client_ca}}}}}]}}\n\
         rules: []\ndefault: {{direct: true}}\n"
    );
    let mut starting = Proxy::under(&policy)
        .file("cert.pem", &identity.chain_pem())
        .file("key.pem", &identity.key_pem());
    if let Some(members) = members {
        starting = starting.file("members.pem", &members.pem());
    }
    starting.listening_as_written().start()
}

/// Shakes hands with a proxy.
fn secure(proxy: &Proxy, config: ClientConfig) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(
        ClientConnection::new(Arc::new(config), name).unwrap(),
        proxy.connect(),
    )
}

#[test]
fn requests_and_tunnels_go_through_a_listener_that_speaks_tls() {
    let ca = Ca::new();
    let proxy = with_tls(&ca, None);
    let origin = Origin::serving(|stream| {
        let head = wire::read_head(&stream);
        wire::send(&stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        head
    });
    let address = origin.address;
    let mut client = secure(&proxy, ca.client(&[b"http/1.1"]));
    write!(
        client,
        "GET http://{address}/ HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    check!(&proxy.record(), "event.outcome": "success", "client.address": "127.0.0.1", "network.protocol.version": "1.1");
    let mut client = secure(&proxy, ca.client(&[]));
    let request =
        format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\nGET / HTTP/1.1\r\n\r\n");
    client.write_all(request.as_bytes()).unwrap();
    let mut answer = vec![0; 4096];
    let mut length = 0;
    while !answer[..length].ends_with(b"ok") {
        length += client.read(&mut answer[length..]).unwrap();
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 Connection established\r\n"));
    client.conn.send_close_notify();
    client.flush().unwrap();
    client.sock.shutdown(std::net::Shutdown::Write).unwrap();
    check!(&proxy.record(), "event.outcome": "success", "http.request.method": "CONNECT");
}

#[test]
fn a_certificate_is_renewed_while_it_runs() {
    let (old, new) = (Ca::new(), Ca::named("renewed"));
    let proxy = with_tls(&old, None);
    let trusts = |ca: &Ca| {
        let mut client = secure(&proxy, ca.client(&[]));
        client.write_all(b"nonsense\r\n\r\n").is_ok()
    };
    assert!(trusts(&old) && !trusts(&new));
    let identity = new.identity(Leaf::Good, "localhost");
    for (name, text) in [
        ("cert.pem", identity.chain_pem()),
        ("key.pem", identity.key_pem()),
    ] {
        std::fs::write(proxy.policy.with_file_name(name), text).unwrap();
    }
    proxy.signal(Signal::SIGHUP);
    proxy.diary("reloaded");
    assert!(trusts(&new) && !trusts(&old));
}

#[test]
fn curl_asks_a_proxy_by_https() {
    if !needs::has("curl") {
        return;
    }
    let ca = Ca::new();
    let proxy = with_tls(&ca, None);
    let origin =
        Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    for flags in [&[][..], &["--proxytunnel"]] {
        let mut command = std::process::Command::new("curl");
        command
            .args(["-q", "-sS", "-x"])
            .arg(format!("https://localhost:{}", proxy.address.port()));
        command
            .arg("--proxy-cacert")
            .arg(ca.file())
            .args(flags)
            .arg(format!("http://{}/", origin.address));
        let (status, stdout, stderr) = run(&mut command);
        assert!(status.success() && stdout == "ok", "{stdout}{stderr}");
        check!(&proxy.record(), "event.outcome": "success");
    }
}

#[test]
fn what_is_no_handshake_is_told_on_a_listener_that_speaks_tls() {
    let ca = Ca::new();
    let proxy = with_tls(&ca, None);
    let client = proxy.connect();
    wire::send(
        &client,
        "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
    );
    let answer = wire::read_text(&client);
    assert!(
        answer.starts_with("HTTP/1.1 400 client.plain_to_tls_port: "),
        "{answer}"
    );
    check!(&proxy.record(), "error.type": "client.plain_to_tls_port", "egress.side": "client");
    let client = proxy.connect();
    wire::send(&client, [0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5]);
    wire::read_to_end(&client);
    check!(&proxy.record(), "error.type": "client.tls_failed");
    drop(proxy.connect());
    check!(&proxy.record(), "error.type": "client.closed_before_request");
    // A client that does not trust the certificate says so.
    let stranger = Ca::new();
    let mut client = secure(&proxy, stranger.client(&[]));
    assert!(client.write_all(b"GET / HTTP/1.1\r\n\r\n").is_err());
    check!(&proxy.record(), "error.type": "client.tls_failed");
}

#[test]
fn where_labels_come_from_matters_to_no_tunnel_of_a_member_who_gave_no_name() {
    let (ca, members) = (Ca::new(), Ca::named("members"));
    let proxy = with_tls(&ca, Some(&members));
    let open = |credentials: &str| {
        let origin = Listening::new();
        let identity = members.identity(Leaf::Good, "unit-7.example");
        let mut client = secure(&proxy, identity.member(&ca, &[]));
        let request = format!("CONNECT {} HTTP/1.1\r\n{credentials}\r\n", origin.address);
        client.write_all(request.as_bytes()).unwrap();
        let mut head = [0; 12];
        client.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        (origin.accept(), client)
    };
    let (cut, mut spared) = (open(""), open(&field("unit+job42", "")));
    let policy = std::fs::read_to_string(&proxy.policy).unwrap();
    let new =
        "on_reload: close_blocked\nclients: {labels: username_suffix}\ndefault: {block: true}";
    proxy.replace(
        "policy.yaml",
        &policy.replace("default: {direct: true}", new),
    );
    proxy.diary("tunnels_cut=1");
    assert!(wire::is_reset(&cut.0));
    check!(&proxy.record(), "error.type": "tunnel.policy_changed", "user.name": "unit-7.example");
    wire::send(&spared.0, "pong");
    let mut read = Vec::new();
    while !read.ends_with(b"pong") {
        let mut byte = [0];
        spared.1.read_exact(&mut byte).unwrap();
        read.extend(byte);
    }
}

#[test]
fn members_are_known_by_their_certificates() {
    let (ca, members) = (Ca::new(), Ca::named("members"));
    let proxy = with_tls(&ca, Some(&members));
    let origin = origin();
    let address = origin.address;
    let ask = |config: ClientConfig| {
        let mut client = secure(&proxy, config);
        let request = format!(
            "GET http://{address}/ HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        );
        let mut answer = String::new();
        let asked = client
            .write_all(request.as_bytes())
            .and_then(|()| client.read_to_string(&mut answer));
        (asked.is_ok(), answer, proxy.record())
    };
    let show = |identity: Identity| identity.member(&ca, &[]);
    let (_, answer, record) = ask(show(members.identity(Leaf::Good, "unit-7.example")));
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    check!(&record, "user.name": "unit-7.example", "event.outcome": "success");
    let (is_served, _, record) = ask(ca.client(&[]));
    assert!(!is_served);
    check!(&record, "error.type": "client.auth_required", "user.name": null);
    let (is_served, _, record) = ask(show(
        Ca::named("others").identity(Leaf::Good, "unit-7.example"),
    ));
    assert!(!is_served);
    check!(&record, "error.type": "client.auth_failed");
    let (is_served, _, record) = ask(show(members.identity(Leaf::Expired, "unit-7.example")));
    assert!(!is_served);
    check!(&record, "error.type": "client.auth_failed");
}

#[test]
fn a_socket_in_the_file_system_tells_who_its_clients_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("proxy.sock");
    let uid = nix::unistd::getuid();
    let policy = format!(
        "version: 1\nrules: [{{name: me, match: {{client: {{user: 'uid:{uid}'}}}}, direct: true}}]\ndefault: {{block: true}}\n"
    );
    let start = || {
        Proxy::under(&policy)
            .arg("--listen")
            .arg("127.0.0.1:0")
            .arg("--listen")
            .arg(&format!("unix:{}", path.display()))
            .start()
    };
    let proxy = start();
    let origin = origin();
    let ask = || {
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        write!(
            client,
            "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n",
            origin.address
        )
        .unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask().starts_with("HTTP/1.1 204"));
    check!(&proxy.record(), "user.name": (format!("uid:{uid}")), "client.address": "127.0.0.1", "egress.rule": "me");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    // What a killed one left behind is in nobody's way; what another one listens on is.
    proxy.signal(Signal::SIGKILL);
    drop(proxy);
    assert!(path.exists());
    let proxy = start();
    assert!(ask().starts_with("HTTP/1.1 204"));
    let (code, said) = refused_start(
        DIRECT,
        &[],
        &["--listen", &format!("unix:{}", path.display())],
    );
    assert_eq!(code, Some(69), "{said}");
    let (status, _) = proxy.stop();
    assert!(status.success() && !path.exists());
}

#[test]
fn a_tunnel_goes_through_a_socket_in_the_file_system() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("proxy.sock");
    let listen = format!("unix:{}", path.display());
    let proxy = Proxy::under(DIRECT)
        .arg("--listen")
        .arg("127.0.0.1:0")
        .arg("--listen")
        .arg(&listen)
        .start();
    let origin = Listening::new();
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    write!(
        client,
        "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\nearly",
        origin.address
    )
    .unwrap();
    let server = origin.accept();
    assert_eq!(wire::read_exact(&server, 5), b"early");
    let bulk: Vec<u8> = (0..3_000_000_u32).map(|i| i.to_le_bytes()[1]).collect();
    let sent = bulk.clone();
    let writer = std::thread::spawn(move || {
        wire::send(&server, &sent);
        server
    });
    let mut head = vec![0; 4096];
    let mut length = 0;
    while !head[..length].ends_with(b"\r\n\r\n") {
        client.read_exact(&mut head[length..=length]).unwrap();
        length += 1;
    }
    let mut got = vec![0; bulk.len()];
    client.read_exact(&mut got).unwrap();
    assert!(got == bulk);
    drop(writer.join().unwrap());
    drop(client);
    check!(&proxy.record(), "event.outcome": "success");
}

const BALANCED: &str = "\
version: 1
server: {listen: [{address: '127.0.0.1:0', proxy_protocol: [127.0.0.1]}], allow_from: [192.0.2.0/24]}
guards: {loopback: allow}
rules: []
default: {direct: true}
";

#[test]
fn a_balancer_says_for_whom_it_connects() {
    let proxy = Proxy::under(BALANCED).listening_as_written().start();
    let origin = origin();
    let request = format!(
        "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n",
        origin.address
    );
    let ask = |header: &[u8]| {
        let client = proxy.connect();
        wire::send(&client, [header, request.as_bytes()].concat());
        (wire::read_text(&client), proxy.record())
    };
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x02\x04\xd2\0\x50";
    for (header, address, port) in [
        (
            &b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 3128\r\n"[..],
            "192.0.2.7",
            1234,
        ),
        (v2, "192.0.2.7", 1234),
    ] {
        let (answer, record) = ask(header);
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        check!(&record, "client.address": address, "client.port": port);
    }
    let (answer, record) = ask(b"PROXY UNKNOWN\r\n");
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    check!(&record, "client.address": "127.0.0.1");
    // Who may use the proxy is judged by the client, not the balancer.
    let (answer, record) = ask(b"PROXY TCP4 198.51.100.7 192.0.2.1 1234 3128\r\n");
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    check!(&record, "client.address": "198.51.100.7", "egress.rule": "server.allow_from");
    // Without a header nothing is served.
    let (answer, record) = ask(b"");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    check!(&record, "error.type": "client.malformed_request");
}

#[test]
fn passwords_are_not_tried_for_clients_that_may_not_come() {
    let policy = BALANCED.replace("allow_from:", "auth: {users: users.txt}, allow_from:");
    let proxy = Proxy::under(&policy)
        .file("users.txt", &user("alice", PASSWORD))
        .listening_as_written()
        .start();
    let client = proxy.connect();
    let words = [
        &b"PROXY TCP4 198.51.100.7 192.0.2.1 1234 3128\r\n"[..],
        &[5, 1, 2],
    ];
    wire::send(&client, words.concat());
    assert_eq!(wire::read_exact(&client, 2), [5, 2]);
    let length = u8::try_from(PASSWORD.len()).unwrap();
    wire::send(
        &client,
        [&[1, 5][..], b"alice", &[length], PASSWORD.as_bytes()].concat(),
    );
    assert_eq!(
        wire::read_to_end(&client),
        [1, 1],
        "nothing follows a refusal"
    );
    check!(&proxy.record(), "egress.rule": "server.allow_from");
}

#[test]
fn whoever_is_no_balancer_cannot_say_so() {
    let proxy = Proxy::under(&BALANCED.replace("[127.0.0.1]", "[192.0.2.99]"))
        .listening_as_written()
        .start();
    let client = proxy.connect();
    wire::send(
        &client,
        "PROXY TCP4 192.0.2.7 192.0.2.1 1234 3128\r\nGET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    let answer = wire::read_text(&client);
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    check!(&proxy.record(), "error.type": "client.malformed_request", "client.address": "127.0.0.1");
}

#[test]
fn sockets_that_systemd_passes_are_served() {
    if !needs::has("python3") {
        return;
    }
    // As systemd does: the sockets are descriptors 3 and 4 of the process that LISTEN_PID names.
    let script = "
import os, socket, sys
passed = [socket.socket(), socket.socket(socket.AF_UNIX)]
passed[0].bind(('127.0.0.1', 0))
passed[1].bind(sys.argv[1])
for at, one in enumerate(passed):
    one.listen()
for at, descriptor in enumerate([os.dup(one.fileno()) for one in passed]):
    os.dup2(os.dup(descriptor), 30 + at)
for at in range(2):
    os.dup2(30 + at, 3 + at)
    os.set_inheritable(3 + at, True)
os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("passed.sock");
    let proxy = Proxy::under(DIRECT)
        .arg("--listen")
        .arg("systemd")
        .arg("--listen")
        .arg("systemd")
        .through("python3", &["-c", script, path.to_str().unwrap()])
        .start();
    assert_eq!(proxy.address.ip(), Ipv4Addr::LOCALHOST);
    let origin = origin();
    let (answer, _) = ask(&proxy, origin.address, "");
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    let mut client = UnixStream::connect(Path::new(&path)).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    write!(
        client,
        "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n",
        origin.address
    )
    .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    let (code, said) = refused_start(DIRECT, &[], &["--listen", "systemd"]);
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("systemd passes no such socket"), "{said}");
}
