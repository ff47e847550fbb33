//! The schemes of the features `kerberos` and `ntlm`, against squid's own helpers.

#![cfg(any(feature = "kerberos", feature = "ntlm"))]

mod support;

use std::path::Path;
use std::process::Command;

use support::squid::Squid;
use support::web::{Ca, Web, answer};
use support::{Proxy, check, needs, run};

/// What curl prints for a URL through the proxy: the body, then the status.
fn curl(proxy: &Proxy, args: &[&str]) -> String {
    let mut command = Command::new("curl");
    command
        .args(["-sS", "--max-time", "20", "-w", " %{http_code}"])
        .args(["-x", &proxy.url()])
        .args(args);
    let (_, stdout, stderr) = run(&mut command);
    stdout + &stderr
}

/// A helper of squid's.
fn helper(name: &str) -> String {
    let places = ["/usr/lib/squid/", "/usr/libexec/squid/"];
    let mut paths = places.iter().map(|place| format!("{place}{name}"));
    paths.find(|path| Path::new(path).exists()).unwrap()
}

/// Both kinds of request, three times each, pass.
fn all_pass(proxy: &Proxy) {
    let ca = Ca::new();
    let http = Web::plain(|_| answer(200, "plain"));
    let https = Web::tls(&ca, &["web.test"], |_| answer(200, "secret"));
    let (plain, secret) = (
        format!("http://web.test:{}/page", http.port()),
        format!("https://web.test:{}/page", https.port()),
    );
    let trusting = ca.file();
    for _ in 0..3 {
        assert_eq!(curl(proxy, &[&plain]), "plain 200");
        assert_eq!(curl(proxy, &["--data", "text", &plain]), "plain 200");
        let args = ["--cacert", trusting.to_str().unwrap(), &secret];
        assert_eq!(curl(proxy, &args), "secret 200");
    }
    for record in proxy.records(9) {
        check!(&record, "event.outcome": "success", "egress.hop": "squid");
    }
}

#[cfg(feature = "ntlm")]
#[test]
fn squid_is_answered_by_ntlm() {
    if !["squid", "curl"].into_iter().all(needs::has) {
        return;
    }
    for keep_alive in ["on", "off"] {
        let squid = Squid::start(&format!(
            "auth_param ntlm program {}\n\
             auth_param ntlm children 2 startup=1 idle=1\n\
             auth_param ntlm keep_alive {keep_alive}\n\
             acl known proxy_auth REQUIRED\n\
             http_access deny !known\n",
            helper("ntlm_fake_auth")
        ));
        let auth = ", auth: {schemes: [ntlm], username: {env: U}, password: {env: P}}";
        let proxy = Proxy::under(&squid.policy(auth))
            .env("U", "CORP\\alice")
            .env("P", "secret")
            .start();
        all_pass(&proxy);
        assert!(squid.log().contains("alice"), "{}", squid.log());
    }
}

/// A key distribution centre in a folder of its own.
#[cfg(feature = "kerberos")]
struct Kdc {
    child: std::process::Child,
    folder: tempfile::TempDir,
}

#[cfg(feature = "kerberos")]
impl Kdc {
    fn start() -> Self {
        use std::fs;
        let folder = tempfile::tempdir().unwrap();
        let address = support::origin::Origin::free();
        let path = folder.path().display().to_string();
        fs::set_permissions(
            folder.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let config = format!(
            "[libdefaults]\n default_realm = CORP.TEST\n dns_lookup_kdc = false\n dns_lookup_realm = false\n \
             dns_canonicalize_hostname = false\n rdns = false\n default_ccache_name = FILE:{path}/cache\n \
             udp_preference_limit = 1\n\
             [realms]\n CORP.TEST = {{\n  kdc = {address}\n }}\n\
             [domain_realm]\n proxy.test = CORP.TEST\n\
             [kdcdefaults]\n kdc_ports = {port}\n kdc_tcp_ports = {port}\n kdc_listen = {address}\n kdc_tcp_listen = {address}\n",
            port = address.port()
        );
        fs::write(folder.path().join("krb5.conf"), config).unwrap();
        let kdc = format!(
            "[kdcdefaults]\n kdc_listen = {address}\n kdc_tcp_listen = {address}\n\
             [realms]\n CORP.TEST = {{\n  database_name = {path}/principal\n  key_stash_file = {path}/stash\n  \
             acl_file = {path}/acl\n }}\n"
        );
        fs::write(folder.path().join("kdc.conf"), kdc).unwrap();
        let with = |program: &str, args: &[&str]| {
            let mut command = Command::new(needs::find(program).unwrap());
            command
                .args(args)
                .env("KRB5_CONFIG", folder.path().join("krb5.conf"))
                .env("KRB5_KDC_PROFILE", folder.path().join("kdc.conf"));
            command
        };
        let done = |mut command: Command| {
            let (status, stdout, stderr) = run(&mut command);
            assert!(status.success(), "{command:?}: {stdout}{stderr}");
        };
        done(with(
            "kdb5_util",
            &["create", "-s", "-r", "CORP.TEST", "-P", "master"],
        ));
        done(with(
            "kadmin.local",
            &["-r", "CORP.TEST", "-q", "addprinc -pw secret alice"],
        ));
        done(with(
            "kadmin.local",
            &["-r", "CORP.TEST", "-q", "addprinc -randkey HTTP/proxy.test"],
        ));
        let keep = format!("ktadd -k {path}/squid.keytab HTTP/proxy.test");
        done(with("kadmin.local", &["-r", "CORP.TEST", "-q", &keep]));
        let keep = format!("ktadd -norandkey -k {path}/alice.keytab alice");
        done(with("kadmin.local", &["-r", "CORP.TEST", "-q", &keep]));
        fs::set_permissions(
            folder.path().join("squid.keytab"),
            std::os::unix::fs::PermissionsExt::from_mode(0o644),
        )
        .unwrap();
        let child = with("krb5kdc", &["-n", "-r", "CORP.TEST"])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let this = Self { child, folder };
        let deadline = std::time::Instant::now() + support::SOON;
        while std::net::TcpStream::connect(address).is_err() {
            assert!(
                std::time::Instant::now() < deadline,
                "the KDC does not listen"
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        this
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

#[cfg(feature = "kerberos")]
impl Drop for Kdc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(feature = "kerberos")]
#[test]
fn squid_is_answered_by_kerberos() {
    if ![
        "squid",
        "curl",
        "krb5kdc",
        "kadmin.local",
        "kdb5_util",
        "kinit",
    ]
    .into_iter()
    .all(needs::has)
    {
        return;
    }
    let kdc = Kdc::start();
    // The helper's environment is squid's, and squid's is cleared of nothing: a wrapper says where things are.
    let wrapper = kdc.folder.path().join("helper");
    std::fs::write(
        &wrapper,
        format!(
            "#!/bin/sh\nKRB5_CONFIG={} KRB5RCACHETYPE=none exec {} -k {} -s HTTP/proxy.test@CORP.TEST\n",
            kdc.file("krb5.conf"),
            helper("negotiate_kerberos_auth"),
            kdc.file("squid.keytab"),
        ),
    )
    .unwrap();
    std::fs::set_permissions(
        &wrapper,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let squid = Squid::start(&format!(
        "auth_param negotiate program {}\n\
         auth_param negotiate children 2 startup=1 idle=1\n\
         auth_param negotiate keep_alive on\n\
         acl known proxy_auth REQUIRED\n\
         http_access deny !known\n",
        wrapper.display()
    ));
    let auth = ", auth: {schemes: [negotiate], spn: HTTP/proxy.test}";
    let start = || {
        Proxy::under(&squid.policy(auth))
            .env("KRB5_CONFIG", &kdc.file("krb5.conf"))
            .env("KRB5CCNAME", &format!("FILE:{}", kdc.file("cache")))
            .start()
    };
    // Without a ticket.
    let proxy = start();
    let told = curl(&proxy, &["http://web.test/"]);
    assert!(told.ends_with(" 502"), "{told}");
    check!(&proxy.record(), "error.type": "upstream.auth_unavailable", "egress.upstream.auth_schemes": ["Negotiate"]);

    let mut kinit = Command::new(needs::find("kinit").unwrap());
    kinit
        .args(["-k", "-t", &kdc.file("alice.keytab"), "alice"])
        .env("KRB5_CONFIG", kdc.file("krb5.conf"))
        .env("KRB5CCNAME", format!("FILE:{}", kdc.file("cache")));
    let (status, stdout, stderr) = run(&mut kinit);
    assert!(status.success(), "{stdout}{stderr}");
    all_pass(&start());
    assert!(squid.log().contains("alice@CORP.TEST"), "{}", squid.log());
}
