//! Requests and answers that try to be two things at once: every case of `tests/corpus/`, over every kind of way, with a
//! strict reader at the far end.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use support::origin::Listening;
use support::strict::{self, Message, Read};
use support::{DIRECT, Proxy, SOON, wire};

/// Credentials that are the proxy's, as they are sent and as they are meant.
const SECRET: &str = "cGxhbnRlZDpzM2NyM3Q=";
const PLAIN_SECRET: &str = "planted:s3cr3t";

/// One case: what is sent, and what is as good an outcome as any other.
#[derive(Debug)]
struct Case {
    line: usize,
    /// What the client sends; where it is an answer, what the origin says.
    text: String,
    is_answer: bool,
    /// Whether the origin ends the connection behind its answer.
    ends: bool,
    expected: String,
}

/// Reads a class of cases.
fn cases(file: &str) -> Vec<Case> {
    let path = format!("{}/tests/corpus/{file}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    let mut cases = Vec::new();
    let (mut template, mut is_answer, mut ends, mut in_cases) =
        (String::new(), false, false, false);
    for (at, line) in text.lines().enumerate() {
        match line {
            "[template]" | "[answer]" => {
                (template, is_answer, ends, in_cases) =
                    (String::new(), line == "[answer]", false, false);
            }
            "[end]" => ends = true,
            "[cases]" => in_cases = true,
            _ if line.starts_with("# ") => {}
            _ if in_cases => {
                let (case, expected) = line
                    .rsplit_once("=> ")
                    .unwrap_or_else(|| panic!("{path}:{}", at + 1));
                let case = case.strip_suffix(' ').unwrap_or(case);
                cases.push(Case {
                    line: at + 1,
                    text: template.replace("{case}", case),
                    is_answer,
                    ends,
                    expected: expected.to_owned(),
                });
            }
            _ => match line.split_at_checked(2) {
                Some(("> ", rest)) => template.push_str(rest),
                Some(("| ", rest)) => template.extend([rest, "\\r\\n"]),
                _ if line == "|" => template.push_str("\\r\\n"),
                _ => panic!("{path}:{}: {line:?}", at + 1),
            },
        }
    }
    assert!(!cases.is_empty(), "{path}");
    cases
}

/// The bytes that are written in a case.
fn bytes_of(written: &str, host: SocketAddr, other: SocketAddr) -> Vec<u8> {
    let written = written
        .replace("{host}", &host.to_string())
        .replace("{port}", &host.port().to_string())
        .replace("{other}", &other.to_string())
        .replace("{secret}", SECRET);
    let mut bytes = Vec::new();
    let mut rest = &*written;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '{' => {
                let (repeated, behind) = rest.split_once('}').unwrap();
                let (text, count) = repeated.rsplit_once('*').unwrap();
                let text = bytes_of(text, host, other);
                bytes.extend(text.repeat(count.parse().unwrap()));
                rest = behind;
            }
            '\\' => {
                let mark = rest.chars().next().unwrap();
                rest = &rest[1..];
                bytes.push(match mark {
                    'r' => b'\r',
                    'n' => b'\n',
                    't' => b'\t',
                    '0' => 0,
                    '\\' => b'\\',
                    'x' => {
                        let (digits, behind) = rest.split_at(2);
                        rest = behind;
                        u8::from_str_radix(digits, 16).unwrap()
                    }
                    other => panic!("\\{other}"),
                });
            }
            c => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// What an origin heard on all its connections.
#[derive(Debug, Default)]
struct Heard {
    requests: Vec<Message>,
    /// Connections that ended inside a request.
    parts: usize,
    broken: Vec<String>,
    bytes: Vec<u8>,
}

/// A server that reads strictly. Dropped, it ends its connections.
#[derive(Debug)]
struct Strict {
    address: SocketAddr,
    heard: Arc<Mutex<Heard>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Strict {
    /// Answers each request with its method and target; a `GET /` with `answer`, where there is one, and ends behind it
    /// where `ends`.
    fn start(answer: Option<Vec<u8>>, ends: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::<Mutex<Heard>>::default();
        let open = Arc::<Mutex<Vec<TcpStream>>>::default();
        let (notes, streams) = (heard.clone(), open.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                stream.set_read_timeout(Some(SOON * 3)).unwrap();
                streams.lock().unwrap().push(stream.try_clone().unwrap());
                let (notes, answer) = (notes.clone(), answer.clone());
                std::thread::spawn(move || hear(&stream, &notes, address, answer.as_deref(), ends));
            }
        });
        Self {
            address,
            heard,
            open,
        }
    }
}

impl Drop for Strict {
    fn drop(&mut self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the listener, which then finds nobody to tell.
        let _ = TcpStream::connect(self.address);
    }
}

/// Serves one connection of a strict origin.
fn hear(
    mut stream: &TcpStream,
    heard: &Mutex<Heard>,
    address: SocketAddr,
    answer: Option<&[u8]>,
    ends: bool,
) {
    let mut bytes = Vec::new();
    let mut room = vec![0; 16 * 1024];
    loop {
        match strict::request(&bytes) {
            Read::Whole(request, used) => {
                bytes.drain(..used);
                let faults = foreign(&request, address);
                let reply = match answer {
                    Some(answer) if request.target == "/" => answer.to_vec(),
                    _ => {
                        let body = format!("{} {}", request.what, request.target);
                        let shown = if request.what == "HEAD" { "" } else { &body };
                        format!(
                            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{shown}",
                            body.len()
                        )
                        .into_bytes()
                    }
                };
                let is_last = ends && answer.is_some() && request.target == "/";
                let mut heard = heard.lock().unwrap();
                heard.broken.extend(faults);
                heard.requests.push(*request);
                drop(heard);
                if stream.write_all(&reply).is_err() {
                    return;
                }
                if is_last {
                    let _ = stream.shutdown(Shutdown::Write);
                }
            }
            Read::Broken(why) => {
                heard.lock().unwrap().broken.push(why);
                return;
            }
            Read::Part => match stream.read(&mut room) {
                Ok(count) if count > 0 => {
                    bytes.extend_from_slice(&room[..count]);
                    heard
                        .lock()
                        .unwrap()
                        .bytes
                        .extend_from_slice(&room[..count]);
                }
                Ok(_) | Err(_) => {
                    heard.lock().unwrap().parts += usize::from(!bytes.is_empty());
                    return;
                }
            },
        }
    }
}

/// What of a request does not belong to an origin.
fn foreign(request: &Message, address: SocketAddr) -> Vec<String> {
    let mut faults = Vec::new();
    if request.values("host") != [address.to_string()] {
        faults.push(format!("Host {:?}", request.values("host")));
    }
    for name in [
        "proxy-authorization",
        "proxy-connection",
        "proxy-authenticate",
        "keep-alive",
        "http2-settings",
    ] {
        if !request.values(name).is_empty() {
            faults.push(format!("{name} crossed"));
        }
    }
    let named = request.values("connection").join(",").to_lowercase();
    for token in named
        .split(',')
        .map(str::trim)
        .filter(|token| !token.is_empty())
    {
        if !["te", "upgrade", "close", "keep-alive"].contains(&token) {
            faults.push(format!("Connection names {token}"));
        }
    }
    if request.target.starts_with("/smuggled") {
        faults.push("a request was smuggled".to_owned());
    }
    faults
}

/// The way that bytes take.
#[derive(Clone, Copy, Debug)]
enum Way {
    Whole,
    /// In pieces of so many bytes.
    Pieces(usize),
}

/// Sends bytes and reads what comes back to the end; whether that end was a reset.
fn ask(proxy: SocketAddr, bytes: &[u8], way: Way) -> (Vec<u8>, bool) {
    let stream = wire::connect(proxy);
    let mut reader = stream.try_clone().unwrap();
    let sent = bytes[..bytes.len().min(80)].escape_ascii().to_string();
    let answers = std::thread::spawn(move || {
        let mut answers = Vec::new();
        let mut room = [0; 4096];
        loop {
            match reader.read(&mut room) {
                Ok(0) => return (answers, false),
                Ok(count) => answers.extend_from_slice(&room[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return (answers, true);
                }
                Err(error) => panic!(
                    "{error} behind {:?}, asked {sent}",
                    String::from_utf8_lossy(&answers)
                ),
            }
        }
    });
    let size = match way {
        Way::Whole => bytes.len().max(1),
        // Long ones in longer pieces: they are about limits, not borders.
        Way::Pieces(size) => size.max(bytes.len() / 500),
    };
    for piece in bytes.chunks(size) {
        // The proxy may have heard enough.
        if (&stream).write_all(piece).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    answers.join().unwrap()
}

/// One outcome of a case that is expected, word by word: `200 GET /x body`, `400`, `closed`, `400 cut`.
fn is_as_expected(expected: &str, answers: &[Message], heard: &Heard) -> bool {
    let (mut statuses, mut requests, mut may_be_cut) = (Vec::new(), Vec::new(), false);
    for part in expected.split(" then ") {
        let words: Vec<&str> = part.splitn(4, ' ').collect();
        if words[0] != "closed" {
            statuses.push(words[0]);
        }
        match words[1..] {
            [] => {}
            ["cut"] => may_be_cut = true,
            [method, target] => requests.push((method, target, "")),
            [method, target, body] => requests.push((method, target, body)),
            [_] | [..] => panic!("{expected:?}"),
        }
    }
    let heard_of = heard.requests.iter();
    let asked: Vec<_> = heard_of
        .map(|request| {
            (
                &*request.what,
                &*request.target,
                std::str::from_utf8(&request.body).unwrap_or("?"),
            )
        })
        .collect();
    answers.iter().map(|answer| &*answer.what).eq(statuses)
        && asked == requests
        && (may_be_cut || heard.parts == 0)
        && answers
            .iter()
            .filter(|answer| answer.what == "200")
            .zip(&asked)
            .all(|(answer, (method, target, _))| {
                *method == "HEAD" || answer.body == format!("{method} {target}").into_bytes()
            })
}

/// Runs a request's case, and says what is wrong with its outcome.
fn run(
    case: &Case,
    proxy: &Proxy,
    way: Way,
    other: SocketAddr,
    told: &mut Tally,
) -> Result<(), String> {
    let origin = Strict::start(None, false);
    let bytes = bytes_of(&case.text, origin.address, other);
    let (expected, wishes) = case
        .expected
        .split_once("; ")
        .unwrap_or((&case.expected, ""));
    let expected = String::from_utf8(bytes_of(expected, origin.address, other)).unwrap();
    let (raw, _) = ask(proxy.address, &bytes, way);
    let is_head = bytes.starts_with(b"HEAD ");
    let (mut answers, mut rest) = (Vec::new(), &*raw);
    while !rest.is_empty() {
        let method = if is_head && answers.is_empty() {
            "HEAD"
        } else {
            "GET"
        };
        match strict::answer(rest, method, true) {
            Read::Whole(answer, used) => {
                answers.push(*answer);
                rest = &rest[used..];
            }
            other @ (Read::Part | Read::Broken(_)) => {
                return Err(format!(
                    "the client reads {other:?} at {:?}",
                    rest.escape_ascii().to_string()
                ));
            }
        }
    }
    told.records += answers.len().max(1);
    // The proxy serves the next client, over the same connection to the origin where it kept that.
    let after = format!(
        "GET http://{0}/after HTTP/1.1\r\nHost: {0}\r\n\r\n",
        origin.address
    );
    let (after, _) = ask(proxy.address, after.as_bytes(), Way::Whole);
    told.records += 1;
    if !after.ends_with(b"GET /after") {
        return Err(format!(
            "the next client reads {:?}",
            after.escape_ascii().to_string()
        ));
    }
    let mut heard = std::mem::take(&mut *origin.heard.lock().unwrap());
    let last = heard.requests.pop();
    if last.is_none_or(|last| last.target != "/after") {
        return Err(format!(
            "the next request is not the last: {:?}",
            heard.requests
        ));
    }
    if !heard.broken.is_empty() {
        return Err(format!(
            "the origin hears {:?} in {:?}",
            heard.broken,
            heard.bytes.escape_ascii().to_string()
        ));
    }
    if [&heard.bytes, &raw].iter().any(|bytes| holds_secret(bytes)) {
        return Err("a credential crossed".to_owned());
    }
    if !expected
        .split(" or ")
        .any(|one| is_as_expected(one, &answers, &heard))
    {
        let statuses: Vec<_> = answers.iter().map(|answer| &answer.what).collect();
        let asked: Vec<_> = heard
            .requests
            .iter()
            .map(|r| (&r.what, clip(&r.target), String::from_utf8_lossy(&r.body)))
            .collect();
        return Err(format!(
            "expected {}, not {statuses:?} with {asked:?} and {} parts",
            clip(&expected),
            heard.parts
        ));
    }
    let wishes = String::from_utf8(bytes_of(wishes, origin.address, other)).unwrap();
    for wish in wishes.split("; ").filter(|wish| !wish.is_empty()) {
        let request = &heard.requests[0];
        let is_so = match wish.split_once(' ') {
            Some(("lacks", name)) => request.values(name).is_empty(),
            Some(("has", field)) => {
                let (name, value) = field.split_once(": ").unwrap();
                request.values(name).iter().any(|has| has.contains(value))
            }
            _ => panic!("{wish:?}"),
        };
        if !is_so {
            return Err(format!("{wish}: {:?}", request.fields));
        }
    }
    Ok(())
}

/// The same for what an origin says.
fn run_answer(case: &Case, proxy: &Proxy, told: &mut Tally) -> Result<(), String> {
    let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
    let says = bytes_of(&case.text, nobody, nobody);
    let origin = Strict::start(Some(says), case.ends);
    let ask_for = |path: &str, close: &str| {
        format!(
            "GET http://{0}{path} HTTP/1.1\r\nHost: {0}\r\n{close}\r\n",
            origin.address
        )
    };
    let both = ask_for("/", "") + &ask_for("/after", "Connection: close\r\n");
    let (raw, was_reset) = ask(proxy.address, both.as_bytes(), Way::Whole);
    let first = strict::answer(&raw, "GET", !was_reset);
    let (outcome, rest) = match first {
        Read::Whole(answer, used) => {
            for name in ["proxy-authenticate", "x-hop", "keep-alive"] {
                if !answer.values(name).is_empty() {
                    return Err(format!("{name} crossed"));
                }
            }
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            // Of our own answers only the status counts.
            let is_ours = !answer.values("x-routecause-record").is_empty();
            let text = if is_ours { String::new() } else { body };
            (
                format!("{} {text}", answer.what).trim().to_owned(),
                &raw[used..],
            )
        }
        Read::Part => ("cut".to_owned(), &raw[raw.len()..]),
        Read::Broken(why) => {
            return Err(format!(
                "the client reads {why} in {:?}",
                clip(&raw.escape_ascii().to_string())
            ));
        }
    };
    told.records += 1;
    if !case.expected.split(" or ").any(|one| one == outcome) {
        return Err(format!("expected {}, not {outcome:?}", case.expected));
    }
    if !rest.is_empty() {
        told.records += 1;
        match strict::answer(rest, "GET", true) {
            Read::Whole(answer, used) if answer.body == b"GET /after" && used == rest.len() => {}
            other @ (Read::Whole(..) | Read::Part | Read::Broken(_)) => {
                return Err(format!("behind it the client reads {other:?}"));
            }
        }
    }
    let (after, _) = ask(proxy.address, ask_for("/after", "").as_bytes(), Way::Whole);
    told.records += 1;
    if !after.ends_with(b"GET /after") {
        return Err(format!(
            "the next client reads {:?}",
            after.escape_ascii().to_string()
        ));
    }
    let heard = origin.heard.lock().unwrap();
    if heard.broken.is_empty() {
        Ok(())
    } else {
        Err(format!("the origin hears {:?}", heard.broken))
    }
}

/// How many records the cases leave.
#[derive(Debug, Default)]
struct Tally {
    records: usize,
}

fn holds_secret(bytes: &[u8]) -> bool {
    let has = |secret: &str| {
        bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes())
    };
    has(SECRET) || has(PLAIN_SECRET)
}

fn clip(text: &str) -> &str {
    text.get(..200).unwrap_or(text)
}

/// Runs every case of a class through a proxy, over a way; what the proxy tells of it holds no secret, and one record for each
/// request.
#[track_caller]
fn class(file: &str, way: Way, proxy: Proxy) {
    let nobody = Listening::new();
    let mut tally = Tally::default();
    let mut wrong = Vec::new();
    for case in cases(file) {
        let outcome = if case.is_answer {
            run_answer(&case, &proxy, &mut tally)
        } else {
            run(&case, &proxy, way, nobody.address, &mut tally)
        };
        if let Err(problem) = outcome {
            wrong.push(format!("{file}.txt:{}: {problem}", case.line));
        }
    }
    assert!(wrong.is_empty(), "{way:?}:\n{}", wrong.join("\n"));
    assert!(
        nobody.is_untouched(),
        "a server that nobody may reach was reached"
    );
    let mut records = proxy.records(tally.records);
    let (diary, rest) = proxy.finish();
    records.extend(rest);
    assert_eq!(records.len(), tally.records, "one record for each request");
    for record in &records {
        assert_ne!(record["error.type"], "proxy.internal", "{record:#}");
        assert!(!holds_secret(record.to_string().as_bytes()), "{record:#}");
    }
    assert!(!holds_secret(diary.as_bytes()), "{diary}");
    assert!(!diary.contains("panic"), "{diary}");
}

/// Every class over every way.
macro_rules! classes {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use super::*;

            #[test]
            fn straight() {
                class(stringify!($name), Way::Whole, Proxy::start(DIRECT));
            }

            #[test]
            fn in_pieces() {
                class(stringify!($name), Way::Pieces(7), Proxy::start(DIRECT));
            }

            #[test]
            fn through_another_proxy() {
                let far = Proxy::start(DIRECT);
                let policy = format!(
                    "version: 1\nupstreams: {{far: {{url: 'http://{}'}}}}\nrules: []\ndefault: {{via: far}}\n",
                    far.address
                );
                class(stringify!($name), Way::Whole, Proxy::start(&policy));
            }
        }
    )+};
}

classes! { answers, chunks, coding, connect, guards, hop, length, residue, syntax, target }

#[test]
fn the_corpus_is_whole() {
    let folder = format!("{}/tests/corpus", env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(class) = name.strip_suffix(".txt") {
            count += cases(class).len();
        }
    }
    assert!(count >= 500, "{count} cases");
}

#[test]
fn the_reader_at_the_far_end_is_strict() {
    let is_whole = |bytes: &str| matches!(strict::request(bytes.as_bytes()), Read::Whole(_, used) if used == bytes.len());
    let is_broken = |bytes: &str| matches!(strict::request(bytes.as_bytes()), Read::Broken(_));
    assert!(is_whole(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na"
    ));
    assert!(is_whole(
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n"
    ));
    for broken in [
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nA : b\r\n\r\n",
        "GET / HTTP/1.1\r\n A: b\r\n\r\n",
        "GET / HTTP/1.1\r\nA: b\0\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        "GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\na",
        "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0;x\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: a\r\n\r\n",
    ] {
        assert!(is_broken(broken), "{broken:?}");
    }
    assert_eq!(strict::request(b"GET / HTTP/1.1\r\nA: b\r\n"), Read::Part);
    let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab";
    assert_eq!(strict::answer(cut, "GET", true), Read::Part);
}

#[test]
fn an_answer_that_is_cut_at_any_byte_never_looks_whole() {
    let proxy = Proxy::start(DIRECT);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nX-Long: {}\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{}\r\n5\r\nabcde\r\n0\r\nX-End: 1\r\n\r\n",
        "x".repeat(100),
        "y".repeat(64)
    );
    let counted = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 80\r\n\r\n{}",
        "z".repeat(80)
    );
    for whole in [answer.as_bytes(), counted.as_bytes()] {
        for length in 0..=whole.len() {
            let origin = Strict::start(Some(whole[..length].to_vec()), true);
            let request = format!(
                "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n",
                origin.address
            );
            let (raw, was_reset) = ask(proxy.address, request.as_bytes(), Way::Whole);
            let status = match strict::answer(&raw, "GET", !was_reset) {
                Read::Whole(answer, used) => {
                    assert_eq!(used, raw.len());
                    answer.what
                }
                Read::Part => "cut".to_owned(),
                Read::Broken(why) => panic!("{why} of {length} bytes"),
            };
            let is_whole = length == whole.len();
            assert_eq!(status == "200", is_whole, "{status} of {length} bytes");
            assert!(
                is_whole || ["502", "cut"].contains(&&*status),
                "{status} of {length} bytes"
            );
        }
    }
}
