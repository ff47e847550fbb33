//! Facts by lines, and what is checked of a verdict.

use jiff::Timestamp;

use crate::config::env::Environment;
use crate::config::{self, Options, Source};
use crate::doctor::Facts;
use crate::doctor::facts::{Answer, Cell, Certificate, Content, Http, Probe, Spoken, Tcp, Way};
use crate::doctor::verdict::{Certainty, judge};

/// Facts by lines, one thing each:
///
/// ```text
/// plain                                      no TLS there
/// path /a                                    what is asked for, where that is not `/`
/// below                                      more is wanted than that
/// chosen corp                                what the policy chooses
/// dns SERVER ADDRESS,ADDRESS | dns SERVER !CAUSE       `~` behind the server: encrypted
/// tcp ADDRESS [!CAUSE]
/// way ROUTE control=ok|CAUSE,… target=ok|CAUSE,… [cert=VERDICT:ISSUER] [product] [h1=STATUS|!] [h2=STATUS|!] [portal=STATUS]
///     [proven]                              the controls passed by it lately
/// cell CONTENT ok|CAUSE
/// ```
pub(super) fn facts(lines: &str) -> Facts {
    let probe = |word: &str| Probe {
        with: "control.example".to_owned(),
        cause: (word != "ok").then(|| word.to_owned()),
        message: (word != "ok").then(|| format!("the words of {word}")),
        ms: 1.0,
    };
    let http = |word: &str| match word {
        "!" => Http::failed("GOAWAY".to_owned()),
        status => Http::of(status.parse().unwrap()),
    };
    let mut facts = Facts {
        target: "files.example:443".to_owned(),
        host: "files.example".to_owned(),
        is_name: true,
        path: "/".to_owned(),
        chosen: Some("direct".to_owned()),
        ..Facts::default()
    };
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[0] {
            "plain" => facts.spoken = Spoken::Http,
            "path" => words[1].clone_into(&mut facts.path),
            "below" => facts.wants_more = true,
            "chosen" => facts.chosen = Some(words[1].to_owned()),
            "dns" => {
                let cause = words[2].strip_prefix('!').map(str::to_owned);
                let addresses = words[2].split(',').filter_map(|ip| ip.parse().ok());
                facts.dns.push(Answer {
                    server: words[1].trim_end_matches('~').to_owned(),
                    is_encrypted: words[1].ends_with('~'),
                    addresses: addresses.collect(),
                    message: cause.as_ref().map(|cause| format!("the words of {cause}")),
                    cause,
                });
            }
            "tcp" => facts.tcp.push(Tcp {
                address: words[1].parse().unwrap(),
                outcome: probe(
                    words
                        .get(2)
                        .map_or("ok", |word| word.trim_start_matches('!')),
                ),
            }),
            "way" => {
                let mut way = Way {
                    route: words[1].to_owned(),
                    ..Way::default()
                };
                for word in &words[2..] {
                    let (key, value) = word.split_once('=').unwrap_or((word, ""));
                    match key {
                        "control" => way.controls = value.split(',').map(probe).collect(),
                        "target" => way.target = value.split(',').map(probe).collect(),
                        "portal" => way.portal = value.parse().ok(),
                        "cert" => {
                            let (verdict, issuer) = value.split_once(':').unwrap();
                            way.certificate = Some(Certificate {
                                verdict: String::leak(verdict.to_owned()),
                                is_trusted: verdict == "valid",
                                issuer: issuer.to_owned(),
                                ..Certificate::default()
                            });
                        }
                        "proven" => way.is_proven = true,
                        "product" => {
                            way.certificate.as_mut().unwrap().interceptor = Some("a product");
                        }
                        "h1" => way.http1 = Some(http(value)),
                        "h2" => way.http2 = Some(http(value)),
                        _ => panic!("{word}"),
                    }
                }
                facts.ways.push(way);
            }
            "cell" => facts.cells.push(Cell {
                content: match words[1] {
                    "decoy" => Content::DecoyName,
                    "none" => Content::NoName,
                    "noise" => Content::Noise,
                    "elsewhere" => Content::NameElsewhere,
                    "control" => Content::Control,
                    "small" => Content::Small,
                    "only12" => Content::Only12,
                    "segments" => Content::SmallSegments,
                    _ => panic!("{line}"),
                },
                outcome: probe(words[2]),
            }),
            _ => panic!("{line}"),
        }
    }
    facts
}

#[track_caller]
pub(super) fn check(expected: &str, certainty: Certainty, lines: &str) {
    let verdict = judge(&facts(lines));
    assert_eq!(
        (verdict.id, verdict.certainty),
        (expected, certainty),
        "{lines}\n{verdict:#?}"
    );
    if let Some(fix) = &verdict.fix {
        loads(fix);
    }
    assert!(verdict.evidence.len() <= 3, "{verdict:#?}");
    assert!(
        verdict.is_fine() || !verdict.evidence.is_empty(),
        "{verdict:#?}"
    );
}

/// A fix that is part of a policy is taken where its upstreams and name servers stand there.
#[track_caller]
pub(super) fn loads(fix: &str) {
    if !fix.contains(": {") {
        return;
    }
    let fix = [
        (
            "default: clean}",
            "default: clean, servers: {clean: {udp: [192.0.2.53]}}}",
        ),
        ("inner: {", "inner: {udp: [192.0.2.53], "),
        ("corp: {", "corp: {url: 'http://p.test:1', "),
    ]
    .iter()
    .fold(fix.to_owned(), |fix, (part, whole)| {
        fix.replace(part, whole)
    });
    let (rules, keys) = match fix.strip_prefix("- ") {
        Some(rule) => (rule, "upstreams: {corp: {url: 'http://p.test:1'}}"),
        None => ("", &*fix),
    };
    let text = format!("version: 1\n{keys}\nrules: [{rules}]\ndefault: {{direct: true}}\n");
    let source = Source::Text {
        name: "the fix".to_owned(),
        text: text.clone(),
    };
    let options = Options::check(Timestamp::UNIX_EPOCH);
    if let Err(report) = config::load(&source, &Environment::default(), &options) {
        panic!("{text}\n{}", report.render(false));
    }
}
