//! The proxy as a service: what its log survives, and what systemd is told.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use support::origin::{Listening, Origin};
use support::{DIRECT, Proxy, SOON, admin, needs, routecause, run, wire};

fn get(proxy: &Proxy, origin: &Origin, path: &str) -> u16 {
    let client = proxy.connect();
    let address = origin.address;
    wire::send(
        &client,
        format!(
            "GET http://{address}{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        ),
    );
    wire::status(&wire::read_text(&client))
}

fn origin() -> Origin {
    Origin::answering("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
}

/// Waits until a file has so many lines.
fn lines(path: &std::path::Path, count: usize) -> Vec<String> {
    let deadline = Instant::now() + SOON;
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(
            Instant::now() < deadline,
            "{} of {count} lines",
            lines.len()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_log_that_was_moved_away_is_begun_anew_and_no_record_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (log, old) = (folder.path().join("log"), folder.path().join("log.1"));
    let origin = origin();
    let proxy = Proxy::under(DIRECT)
        .arg("--log-file")
        .arg(log.to_str().unwrap())
        .start();
    get(&proxy, &origin, "/1");
    lines(&log, 1);
    fs::rename(&log, &old).unwrap();
    get(&proxy, &origin, "/2");
    lines(&old, 2);
    proxy.signal(Signal::SIGUSR1);
    proxy.diary("the record log is reopened");
    get(&proxy, &origin, "/3");
    lines(&log, 1);
    // A folder in its place: the old file stays in use.
    fs::rename(&log, folder.path().join("log.2")).unwrap();
    fs::create_dir(&log).unwrap();
    proxy.signal(Signal::SIGUSR1);
    proxy.diary("reopen the record log failed");
    get(&proxy, &origin, "/4");
    lines(&folder.path().join("log.2"), 2);
    let (status, _) = proxy.stop();
    assert!(status.success());
    assert_eq!(lines(&old, 2).len(), 2);
}

#[test]
fn a_full_disk_stops_no_request_and_is_told_once() {
    let origin = origin();
    let proxy = Proxy::under(DIRECT)
        .arg("--log-file")
        .arg("/dev/full")
        .start();
    for _ in 0..20 {
        assert_eq!(get(&proxy, &origin, "/"), 204);
    }
    proxy.diary("write to the record log failed");
    let (diary, _) = proxy.finish();
    assert_eq!(
        diary.matches("write to the record log failed").count(),
        1,
        "{diary}"
    );
    assert!(diary.contains("lost=20"), "{diary}");
}

#[test]
fn signals_of_no_meaning_do_not_end_it() {
    let origin = origin();
    let proxy = Proxy::start(DIRECT);
    for _ in 0..50 {
        proxy.signal(Signal::SIGUSR1);
        proxy.signal(Signal::SIGHUP);
        proxy.signal(Signal::SIGPIPE);
    }
    assert_eq!(get(&proxy, &origin, "/"), 204);
    proxy.diary("there is nothing to reopen");
    proxy.diary("reloaded");
}

#[test]
fn stopping_and_going_on_is_no_storm() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(
        &client,
        format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", origin.address),
    );
    wire::read_head(&client);
    let server = origin.accept();
    proxy.signal(Signal::SIGSTOP);
    wire::send(&client, b"ping");
    std::thread::sleep(Duration::from_secs(2));
    proxy.signal(Signal::SIGCONT);
    assert_eq!(wire::read_exact(&server, 4), b"ping");
    drop((client, server));
    let record = proxy.record();
    assert_eq!(record["event.outcome"], "success", "{record:#}");
    assert!(
        record["event.duration"].as_u64().unwrap() >= 2_000_000_000,
        "{record:#}"
    );
}

#[test]
fn systemd_is_told_of_the_start_of_reloads_of_the_end_and_that_all_is_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let (sender, messages) = channel();
    // Read at once: who tells waits where too much is unread.
    std::thread::spawn(move || {
        let mut room = [0; 4096];
        while let Ok(length) = socket.recv(&mut room) {
            let message = String::from_utf8(room[..length].to_vec()).unwrap();
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    let told = || messages.recv_timeout(SOON).unwrap();
    let until = |word: &str| {
        let mut before = BTreeSet::new();
        let deadline = Instant::now() + SOON;
        loop {
            assert!(Instant::now() < deadline, "{word} is not told");
            let message = told();
            if message.lines().any(|line| line == word) {
                return (message, before);
            }
            before.insert(message);
        }
    };
    let proxy = Proxy::under(DIRECT)
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", "200000")
        .start();
    let (message, _) = until("READY=1");
    assert!(message.contains("STATUS=policy "), "{message}");
    until("WATCHDOG=1");
    until("WATCHDOG=1");
    proxy.signal(Signal::SIGHUP);
    let (message, _) = until("RELOADING=1");
    assert!(message.contains("MONOTONIC_USEC="), "{message}");
    until("READY=1");
    fs::write(&proxy.policy, "version: 1\n").unwrap();
    proxy.diary("reload failed");
    until("RELOADING=1");
    let (message, _) = until("READY=1");
    assert!(
        message.contains("what stands there now is bad"),
        "{message}"
    );
    proxy.signal(Signal::SIGTERM);
    until("STOPPING=1");
}

/// A thread of a process, by its name.
fn thread(pid: i32, name: &str) -> Pid {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut threads = threads.map(|thread| thread.unwrap());
    let thread = threads.find(|thread| {
        let comm = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        comm.trim_end() == name
    });
    let id = thread.unwrap().file_name().into_string().unwrap();
    Pid::from_raw(id.parse().unwrap())
}

#[test]
fn a_worker_that_hangs_is_told_to_whoever_would_start_it_again() {
    let proxy = admin::with_admin(Proxy::under(DIRECT)).start();
    let at = admin::address(&proxy);
    let until = |path: &str, status: u16| {
        let deadline = Instant::now() + SOON;
        loop {
            let (is, _, body) = admin::ask(at, "GET", path, "", "");
            if is == status {
                return body;
            }
            assert!(Instant::now() < deadline, "{path} {is}: {body}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let worker = thread(proxy.pid(), "worker-0");
    if ptrace::seize(worker, ptrace::Options::empty()).is_err() {
        let _ = needs::lacks("ptrace");
        return;
    }
    ptrace::interrupt(worker).unwrap();
    waitpid(worker, Some(WaitPidFlag::__WALL)).unwrap();
    let body = until("/healthz", 503);
    assert!(
        body.contains("worker 0 was not seen at work for "),
        "{body}"
    );
    until("/readyz", 503);
    let mut check = routecause();
    check.args(["healthcheck", "--live"]);
    let (status, _, stderr) = run(check.env("ROUTECAUSE_ADMIN", at.to_string()));
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("not alive: worker 0 "), "{stderr}");
    ptrace::detach(worker, None).unwrap();
    until("/healthz", 200);
    until("/readyz", 200);
}
