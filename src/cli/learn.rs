//! `routecause learn`: the smallest readable allow-list that covers what was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;

use super::{exit, print};
use crate::observe::text::bytes;
use crate::record::Outcome;
use crate::record::seen::{NotSeen, Seen};

#[derive(Debug, Args)]
pub(in crate::cli) struct LearnArgs {
    /// Logs of records; - for standard input.
    #[arg(value_name = "RECORDS", required = true)]
    pub(in crate::cli) records: Vec<PathBuf>,
}

/// So many names below one domain become a wildcard.
const SIBLINGS: usize = 3;

/// So many names are told behind a wildcard.
const MOST_TOLD: usize = 4;

pub(super) fn run(args: &LearnArgs) -> u8 {
    match read(&args.records) {
        Ok(seen) if seen.is_empty() => {
            say!("error: there is no record in {}", names(&args.records));
            exit::FAILED
        }
        Ok(seen) => {
            print(&policy(&seen, Timestamp::now()));
            0
        }
        Err(error) => {
            say!("error: {error:#}");
            exit::FAILED
        }
    }
}

fn names(files: &[PathBuf]) -> String {
    let names: Vec<_> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    names.join(", ")
}

/// Reads the records of some logs; `-` is standard input. Lines that are no records are told of, and left out.
pub(super) fn read(files: &[PathBuf]) -> anyhow::Result<Vec<Seen>> {
    let mut all = Vec::new();
    for file in files {
        let mut strange = 0;
        each(file, |_, _, read| match read {
            Ok(seen) => all.push(seen),
            Err(_) => strange += 1,
        })?;
        if strange > 0 {
            say!(
                "warning: {}: {strange} lines are no records, and are left out",
                file.display()
            );
        }
    }
    Ok(all)
}

/// Hands on each line of a log that is not empty: its number, its JSON, and what that tells. `-` is standard input.
pub(super) fn each(
    file: &Path,
    mut take: impl FnMut(usize, &[u8], Result<Seen, NotSeen>),
) -> anyhow::Result<()> {
    let failed = |error| anyhow::Error::new(error).context(format!("read {}", file.display()));
    let lines: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(file).map_err(failed)?))
    };
    for (at, line) in lines.split(b'\n').enumerate() {
        let line = line.map_err(failed)?;
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        // A CI or a container's log puts times and names before its lines.
        let begin = line.iter().position(|byte| *byte == b'{').unwrap_or(0);
        let json = line.get(begin..).unwrap_or(line);
        take(at + 1, json, Seen::read(json));
    }
    Ok(())
}

/// What was seen of one target.
#[derive(Debug, Default)]
struct Use {
    passed: u64,
    /// How often a block with the code `expected` refused it, or would have.
    expected: u64,
    down: u64,
    up: u64,
    agents: BTreeSet<String>,
    /// How often by which hop.
    hops: BTreeMap<String, u64>,
    /// Why not, and how often.
    causes: BTreeMap<String, u64>,
    /// What the policy would have refused it by, were it enforced.
    would: BTreeSet<String>,
}

/// A policy that lets through what went through, and nothing else. What is expected to be refused stays so.
pub(super) fn policy(seen: &[Seen], now: Timestamp) -> String {
    let mut uses: BTreeMap<(u16, &str), Use> = BTreeMap::new();
    let mut upstreams: BTreeMap<&str, Option<(IpAddr, u16)>> = BTreeMap::new();
    for seen in seen {
        let (Some(host), Some(port)) = (seen.host.as_deref(), seen.port) else {
            continue;
        };
        let entry = uses.entry((port, host)).or_default();
        let cause = seen.cause.as_deref().unwrap_or_default();
        let has_passed = seen.outcome == Outcome::Success || cause.starts_with("http.status.");
        if seen.is_expected() {
            entry.expected += 1;
            continue;
        }
        if has_passed {
            entry.passed += 1;
            let hop = seen.hop.as_deref().unwrap_or("direct");
            *entry.hops.entry(hop.to_owned()).or_default() += 1;
            if hop != "direct" {
                let known = upstreams.entry(hop).or_default();
                *known = known.or(seen.peer.zip(seen.peer_port));
            }
        } else if !cause.is_empty() {
            *entry.causes.entry(cause.to_owned()).or_default() += 1;
        }
        entry.down += seen.down;
        entry.up += seen.up;
        entry.would.extend(seen.would.clone());
        entry.agents.extend(seen.agent.clone());
    }
    let (allowed, rest): (Vec<_>, Vec<_>) = uses.iter().partition(|(_, entry)| entry.passed > 0);
    let (expected, refused): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|(_, entry)| entry.expected > 0);
    let requests: u64 = allowed.iter().map(|(_, entry)| entry.passed).sum();
    let mut text = format!(
        "# An allow-list learned on {}: it covers {requests} request{} to {} target{}, and nothing else.\n\
         # Each line says what it was needed for. Look at it, then run `routecause check` on it.\n\
         version: 1\n",
        now.strftime("%F"),
        plural(requests == 1),
        allowed.len(),
        plural(allowed.len() == 1),
    );
    if !upstreams.is_empty() {
        text.push_str("upstreams:\n");
    }
    for (name, address) in &upstreams {
        let (url, why) = match (*name, address) {
            ("env", _) => ("env".to_owned(), "HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"),
            (_, Some((ip, port))) => (
                format!("\"http://{}\"", std::net::SocketAddr::new(*ip, *port)),
                "seen at this address; write its name, scheme and login as your policy has them",
            ),
            (_, None) => ("env".to_owned(), "its address was not seen"),
        };
        let _ = writeln!(text, "  {}: {{url: {url}}}    # {why}", quoted(name));
    }
    let mut ways: BTreeMap<(&str, u16), Vec<(&str, &Use)>> = BTreeMap::new();
    for ((port, host), entry) in &allowed {
        let most = entry.hops.iter().max_by_key(|(_, count)| **count);
        let hop = most.map_or("direct", |(hop, _)| hop.as_str());
        ways.entry((hop, *port)).or_default().push((host, entry));
    }
    text.push_str(if ways.is_empty() && expected.is_empty() {
        "rules: []\n"
    } else {
        "rules:\n"
    });
    // In front: a wildcard below may cover such a name. None of theirs may cover what is let through. The name of such a rule
    // ends as no hop's does, whatever the hop is called.
    let mut unwanted: BTreeMap<u16, Vec<(String, String)>> = BTreeMap::new();
    for ((port, host), entry) in &expected {
        let count = entry.expected;
        let why = format!("{count} request{}", plural(count == 1));
        unwanted.entry(*port).or_default().push((quoted(host), why));
    }
    for (port, lines) in unwanted {
        let name = format!("{}-expected", service(port));
        write_match(&mut text, &name, port, &lines);
        text.push_str("    block: {reason: \"expected to be refused\", code: expected}\n");
    }
    for ((hop, port), hosts) in &ways {
        let name = format!("{hop}-{}", service(*port));
        write_match(&mut text, &name, *port, &lines(hosts));
        let way = if *hop == "direct" {
            "direct: true".to_owned()
        } else {
            format!("via: {}", quoted(hop))
        };
        let _ = writeln!(text, "    {way}");
    }
    text.push_str("default: {block: {reason: \"not on the list\"}}\n");
    if !refused.is_empty() {
        text.push_str("\n# Asked for, never reached, and not on the list:\n");
    }
    for ((port, host), entry) in refused {
        let causes = entry.causes.iter();
        let causes: Vec<_> = causes
            .map(|(cause, count)| format!("{cause} {count}×"))
            .collect();
        let _ = writeln!(
            text,
            "#   {}  {}",
            authority(host, *port),
            causes.join(", ")
        );
    }
    text
}

/// The head of a rule for some hosts at a port.
fn write_match(text: &mut String, name: &str, port: u16, lines: &[(String, String)]) {
    let name = quoted(name);
    let _ = write!(
        text,
        "  - name: {name}\n    match:\n      port: {port}\n      host:\n"
    );
    let width = lines.iter().map(|line| line.0.len()).max().unwrap_or(0);
    for (pattern, why) in lines {
        let _ = writeln!(text, "        - {pattern:width$}    # {why}");
    }
}

/// What is called at a port.
fn service(port: u16) -> String {
    match port {
        80 => "http".to_owned(),
        443 => "https".to_owned(),
        port => port.to_string(),
    }
}

/// Patterns with their comments: a wildcard where many names have the same parent.
fn lines(hosts: &[(&str, &Use)]) -> Vec<(String, String)> {
    let mut families: BTreeMap<&str, Vec<(&str, &Use)>> = BTreeMap::new();
    for (host, entry) in hosts {
        families
            .entry(parent(host).unwrap_or(host))
            .or_default()
            .push((host, entry));
    }
    let mut lines = Vec::new();
    for (parent, members) in families {
        if members.len() >= SIBLINGS {
            let mut names: Vec<_> = members.iter().map(|(host, _)| *host).collect();
            let more = names.len().saturating_sub(MOST_TOLD);
            names.truncate(MOST_TOLD);
            let more = if more == 0 {
                String::new()
            } else {
                format!(" and {more} more")
            };
            let why = format!("{}: {}{more}", why(&members), names.join(", "));
            lines.push((quoted(&format!("*.{parent}")), why));
        } else {
            lines.extend(
                members
                    .iter()
                    .map(|member| (quoted(member.0), why(std::slice::from_ref(member)))),
            );
        }
    }
    lines
}

/// The domain above a name, where it is somebody's own: not `co.uk`, nor a provider that many share.
fn parent(host: &str) -> Option<&str> {
    if host.parse::<IpAddr>().is_ok() {
        return None;
    }
    let (_, parent) = host.split_once('.')?;
    psl::domain_str(parent)?;
    Some(parent)
}

fn why(members: &[(&str, &Use)]) -> String {
    let sum = |of: fn(&Use) -> u64| members.iter().map(|(_, entry)| of(entry)).sum::<u64>();
    let requests = sum(|entry| entry.passed);
    let mut why = format!(
        "{requests} request{}, {} down",
        plural(requests == 1),
        bytes(sum(|entry| entry.down))
    );
    let up = sum(|entry| entry.up);
    if up > 1 << 20 {
        let _ = write!(why, ", {} up", bytes(up));
    }
    let agents: BTreeSet<_> = members
        .iter()
        .flat_map(|(_, entry)| &entry.agents)
        .filter_map(|agent| agent.split_whitespace().next())
        .take(3)
        .collect();
    let agents: Vec<_> = agents.into_iter().map(printable).collect();
    if !agents.is_empty() {
        let _ = write!(why, ", by {}", agents.join(" "));
    }
    let would: BTreeSet<_> = members.iter().flat_map(|(_, entry)| &entry.would).collect();
    let would: Vec<_> = would.into_iter().map(|rule| printable(rule)).collect();
    if !would.is_empty() {
        let _ = write!(why, ", refused so far by {}", would.join(" "));
    }
    let failed: u64 = members.iter().flat_map(|(_, e)| e.causes.values()).sum();
    if failed > 0 {
        let _ = write!(why, ", {failed} failed");
    }
    let expected = sum(|entry| entry.expected);
    if expected > 0 {
        let _ = write!(why, ", {expected} refused as expected");
    }
    why
}

/// Text in a comment: it ends with the line at the latest.
fn printable(text: &str) -> String {
    crate::record::quote(text).chars().take(60).collect()
}

fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(plain);
    let is_word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text);
    if is_plain && !is_word {
        return text.to_owned();
    }
    let text = crate::record::quote(text);
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn plural(is_one: bool) -> &'static str {
    if is_one { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Options, Source};

    fn seen(line: &str) -> Seen {
        let words: Vec<_> = line.split_whitespace().collect();
        let (host, port) = words[0].rsplit_once(':').unwrap();
        let cause = words.get(2);
        let line = serde_json::json!({
            "schema": crate::record::SCHEMA,
            "event.id": "x",
            "event.outcome": if cause.is_some() { "failure" } else { "success" },
            "error.type": cause,
            "server.address": host,
            "server.port": port.parse::<u16>().unwrap(),
            "egress.hop": words[1],
            "network.peer.address": "192.0.2.8",
            "network.peer.port": 3128,
            "user_agent.original": "pip/1 \"x\"\n# y",
        });
        Seen::read(line.to_string().as_bytes()).unwrap()
    }

    fn learned(lines: &[&str]) -> String {
        let seen: Vec<_> = lines.iter().map(|line| seen(line)).collect();
        policy(&seen, Timestamp::UNIX_EPOCH)
    }

    /// What is learned is a policy.
    fn assert_loads(text: String) {
        let source = Source::Text {
            name: "learned".into(),
            text,
        };
        let options = Options::check(Timestamp::UNIX_EPOCH);
        let loaded = config::load(&source, &[("A", "b")].into_iter().collect(), &options);
        loaded.unwrap_or_else(|report| panic!("{report}"));
    }

    #[test]
    fn what_was_seen_is_a_policy_that_loads() {
        let text = learned(&[
            "a.cdn.example:443 direct",
            "b.cdn.example:443 direct",
            "c.cdn.example:443 direct",
            "files.example:80 corp",
            "2001:db8::1:8443 direct",
            "odd.example:443 direct http.status.404",
            "telemetry.example:443 direct policy.denied.default",
        ]);
        for part in [
            "\"*.cdn.example\"",
            "3 requests, 0B down, by pip/1: a.cdn.example, b.cdn.example, c.cdn.example",
            "corp: {url: \"http://192.0.2.8:3128\"}",
            "- \"2001:db8::1\"",
            "- odd.example",
            "#   telemetry.example:443  policy.denied.default 1×",
            "via: corp",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let source = Source::Text {
            name: "learned".into(),
            text,
        };
        let options = Options::check(Timestamp::UNIX_EPOCH);
        let loaded = config::load(&source, &[("A", "b")].into_iter().collect(), &options);
        let loaded = loaded.unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(loaded.policy.rules.len(), 3);
    }

    #[test]
    fn what_is_expected_to_be_refused_stays_so() {
        let mut seen: Vec<_> = [
            "a.cdn.example:443 direct",
            "b.cdn.example:443 direct",
            "c.cdn.example:443 direct",
            // Only noted; refused; refused once where it passes at another time.
            "noise.cdn.example:443 direct",
            "noise.example:443 direct policy.denied.rule",
            "a.cdn.example:443 direct policy.denied.rule",
        ]
        .map(seen)
        .into();
        for seen in seen.iter_mut().skip(3) {
            seen.code = Some("expected".to_owned());
            seen.would = Some("noise".to_owned());
            seen.agent = Some("curl/8".to_owned());
            seen.down = 7;
        }
        let text = policy(&seen, Timestamp::UNIX_EPOCH);
        let begin = text.find("rules:").unwrap();
        let expected = "rules:
  - name: https-expected
    match:
      port: 443
      host:
        - noise.cdn.example    # 1 request
        - noise.example        # 1 request
    block: {reason: \"expected to be refused\", code: expected}
  - name: direct-https
    match:
      port: 443
      host:
        - \"*.cdn.example\"    # 3 requests, 0B down, by pip/1, 1 refused as expected: a.cdn.example, b.cdn.example, c.cdn.example
    direct: true
default: {block: {reason: \"not on the list\"}}
";
        assert_eq!(&text[begin..], expected);
        assert_loads(text);
    }

    #[test]
    fn what_is_expected_is_told_apart_from_a_hop_of_that_name() {
        let mut seen: Vec<_> = [
            "a.example:443 expected",
            "b.example:443 https",
            "noise.example:443 direct policy.denied.rule",
        ]
        .map(seen)
        .into();
        seen[2].code = Some("expected".to_owned());
        let text = policy(&seen, Timestamp::UNIX_EPOCH);
        for name in ["https-expected", "expected-https", "https-https"] {
            assert!(text.contains(&format!("- name: {name}\n")), "{text}");
        }
        assert_loads(text);
    }

    #[test]
    fn names_of_strangers_get_no_wildcard() {
        let text = learned(&[
            "a.co.uk:443 direct",
            "b.co.uk:443 direct",
            "c.co.uk:443 direct",
        ]);
        assert!(!text.contains('*'), "{text}");
        let text = learned(&["a.x.co.uk:443 direct", "b.x.co.uk:443 direct"]);
        assert!(!text.contains('*'), "{text}");
    }

    #[test]
    fn nothing_seen_is_a_list_of_nothing() {
        assert!(learned(&[]).contains("rules: []\n"));
    }
}
