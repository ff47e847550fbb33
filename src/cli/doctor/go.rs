//! `routecause doctor go`: each place that Go fetches modules from, and what happens where one fails.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::super::{exit, print};
use super::DoctorArgs;
use super::plan::{announce_controls, plan_below};
use super::{find_out, load};
use crate::config::env::{Environment, without_credentials};

/// What `go env -json` says, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE", default)]
struct Settings {
    goproxy: String,
    gosumdb: String,
    goprivate: String,
    gonoproxy: String,
    gonosumdb: String,
    goinsecure: String,
    goflags: String,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Told {
    schema: &'static str,
    goproxy: String,
    hops: Vec<Hop>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sumdb: Option<Hop>,
    notes: Vec<String>,
}

/// A place that modules or their checksums come from.
#[derive(Serialize)]
struct Hop {
    #[serde(rename = "hop")]
    place: String,
    /// When the next one is asked: `,` behind 404 and 410, `|` behind any failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    then: Option<char>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<crate::doctor::Verdict>,
}

impl Hop {
    fn fails(&self) -> bool {
        self.verdict
            .as_ref()
            .is_some_and(|verdict| !verdict.is_fine())
    }
}

pub(super) fn run(args: &DoctorArgs, env: &Environment) -> u8 {
    let settings = match read() {
        Ok(settings) => settings,
        Err(error) => {
            say!("error: {error:#}");
            return exit::FAILED;
        }
    };
    let (policy, _) = match load(args, env) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if let Err(error) = announce_controls(args, env) {
        say!("error: {error:#}");
        return exit::USAGE;
    }
    let mut notes = notes(&settings);
    let mut look = |url: &str, then: Option<char>| {
        let place = without_credentials(url);
        let verdict = match url {
            "direct" | "off" => None,
            // What is fetched stands below.
            url => match plan_below(url, args, &policy, env)
                .and_then(|plan| find_out(plan, &policy, env))
            {
                Ok(found) => Some(found.verdict),
                Err(error) => {
                    notes.push(format!("{place}: {error:#}"));
                    None
                }
            },
        };
        Hop {
            place,
            then,
            verdict,
        }
    };
    let hops: Vec<_> = hops(&settings.goproxy)
        .iter()
        .map(|(url, then)| look(url, *then))
        .collect();
    let sumdb = sumdb(&settings).map(|url| look(&url, None));
    let mut told = Told {
        schema: "routecause.doctor.go/1",
        goproxy: shown(&settings.goproxy),
        hops,
        sumdb,
        notes,
    };
    for hop in told
        .hops
        .iter()
        .filter(|hop| hop.fails() && hop.then == Some(','))
    {
        told.notes.push(format!(
            "{} fails, and a comma behind it: Go goes on only where a hop answers 404 or 410. Write | there, or put a hop that works first",
            hop.place
        ));
    }
    let failing = told.hops.iter().chain(&told.sumdb).any(Hop::fails);
    if args.json {
        match serde_json::to_string_pretty(&told) {
            Ok(text) => print(&(text + "\n")),
            Err(error) => say!("error: {error}"),
        }
    } else {
        print(&tell(&told));
    }
    if failing { exit::FAILED } else { 0 }
}

fn read() -> anyhow::Result<Settings> {
    let output = Command::new("go")
        .args(["env", "-json"])
        .output()
        .context("run go env")?;
    anyhow::ensure!(
        output.status.success(),
        "go env: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).context("read what go env says")
}

/// A GOPROXY without user names and passwords.
fn shown(list: &str) -> String {
    list.split_inclusive([',', '|'])
        .map(without_credentials)
        .collect()
}

/// The hops of a GOPROXY, each with the separator behind it. What stands behind `direct` or `off` is never asked.
fn hops(list: &str) -> Vec<(String, Option<char>)> {
    let mut hops: Vec<(String, Option<char>)> = Vec::new();
    for part in list.split_inclusive([',', '|']) {
        let then = part.chars().last().filter(|c| ",|".contains(*c));
        let hop = part.trim_end_matches([',', '|']).trim().to_owned();
        if hop.is_empty() {
            continue;
        }
        let is_last = hop == "direct" || hop == "off";
        hops.push((hop, then.filter(|_| !is_last)));
        if is_last {
            break;
        }
    }
    if let Some((_, then)) = hops.last_mut() {
        *then = None;
    }
    hops
}

/// Where checksums come from: `off`, `name`, or `name url`; a key may stand behind the name.
fn sumdb(settings: &Settings) -> Option<String> {
    let mut words = settings.gosumdb.split_whitespace();
    let name = words.next().filter(|name| *name != "off")?;
    let name = name.split('+').next().unwrap_or(name);
    Some(
        words
            .next()
            .map_or_else(|| format!("https://{name}"), str::to_owned),
    )
}

fn notes(settings: &Settings) -> Vec<String> {
    let mut notes = Vec::new();
    let private = |list: &str| {
        if list.is_empty() {
            "none".to_owned()
        } else {
            list.to_owned()
        }
    };
    let Settings {
        goprivate,
        gonoproxy,
        gonosumdb,
        ..
    } = settings;
    if goprivate.is_empty() && gonoproxy.is_empty() && gonosumdb.is_empty() {
        notes.push("no private patterns: every module is asked of all hops, and its checksum of the database".to_owned());
    } else {
        notes.push(format!(
            "private patterns: GOPRIVATE {}, GONOPROXY {}, GONOSUMDB {}",
            private(goprivate),
            private(gonoproxy),
            private(gonosumdb)
        ));
    }
    if settings.goflags.contains("-insecure") {
        notes.push("GOFLAGS holds -insecure".to_owned());
    }
    if !settings.goinsecure.is_empty() {
        notes.push(format!(
            "GOINSECURE {}: what these are fetched by may be plain http, or TLS that nobody has checked. Let Go trust their authority instead (SSL_CERT_FILE)",
            settings.goinsecure
        ));
    }
    if settings.gosumdb == "off" {
        notes.push(
            "GOSUMDB=off: no checksum of a module that is new here is compared with anybody's. For modules of your own GONOSUMDB does, or GOPRIVATE"
                .to_owned(),
        );
    }
    if settings.goproxy == "off" {
        notes.push("GOPROXY=off: nothing is fetched at all".to_owned());
    }
    notes
}

fn tell(told: &Told) -> String {
    let mut text = format!("GOPROXY={}\n", told.goproxy);
    let line = |at: &str, hop: &Hop| {
        let (word, what) = match &hop.verdict {
            None if hop.place == "direct" => {
                ("", "each module's own host, by git and the like".to_owned())
            }
            None => ("", String::new()),
            Some(verdict) if verdict.is_fine() => ("ok", verdict.sentence.clone()),
            Some(verdict) => ("FAILS", format!("{} ({})", verdict.sentence, verdict.id)),
        };
        let mut line = format!(" {at:>2}  {word:<5}  {}", hop.place);
        if !what.is_empty() {
            let _ = write!(line, "\n            {what}");
        }
        if let Some(fix) = hop
            .verdict
            .as_ref()
            .filter(|v| !v.is_fine())
            .and_then(|v| v.fix.as_ref())
        {
            let _ = write!(line, "\n            fix: {fix}");
        }
        match hop.then {
            Some(',') => line.push_str("\n            then, behind 404 and 410 only:"),
            Some(_) => line.push_str("\n            then, behind any failure:"),
            None => {}
        }
        line + "\n"
    };
    for (at, hop) in told.hops.iter().enumerate() {
        text.push_str(&line(&(at + 1).to_string(), hop));
    }
    if let Some(sumdb) = &told.sumdb {
        text.push_str("checksums:\n");
        text.push_str(&line("", sumdb));
    }
    for note in &told.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_taken_apart_as_go_does() {
        let told = |list: &str| {
            let hops = hops(list);
            let words: Vec<_> = hops
                .iter()
                .map(|(hop, then)| format!("{hop}{}", then.map(String::from).unwrap_or_default()))
                .collect();
            words.join(" ")
        };
        assert_eq!(
            told("https://a|https://b,direct"),
            "https://a| https://b, direct"
        );
        assert_eq!(told("https://a,,direct,https://b"), "https://a, direct");
        assert_eq!(told("off"), "off");
        assert_eq!(told(""), "");
    }

    #[test]
    fn a_list_is_shown_without_credentials() {
        assert_eq!(
            shown("https://me:s3cret@a/go,https://token@b|direct"),
            "https://…@a/go,https://…@b|direct"
        );
    }

    #[test]
    fn the_checksum_database_has_a_url() {
        let of = |gosumdb: &str| {
            sumdb(&Settings {
                gosumdb: gosumdb.to_owned(),
                ..Settings::default()
            })
        };
        assert_eq!(of("off"), None);
        assert_eq!(of("sum.example").as_deref(), Some("https://sum.example"));
        assert_eq!(
            of("sum.example+abc+key https://mirror.example/s").as_deref(),
            Some("https://mirror.example/s")
        );
    }
}
