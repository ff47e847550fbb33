//! `routecause doctor env`: where each proxy variable comes from, and what is wrong with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use super::doctor::DoctorArgs;
use super::doctor::reach::reach;
use super::{exit, print};
use crate::config::DEFAULT_LISTEN;
use crate::config::env::{Environment, is_usable_proxy, proxy_target, proxy_without_credentials};
use crate::doctor::docker::places::words;
use crate::doctor::facts::Probe;
use crate::policy::no_proxy::{Dialect, NoProxy};
use crate::record::quote;
use crate::target::Target;

/// Names of variables that programs read, in lower case.
const NAMES: [&str; 4] = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"];

/// Those of them that name a proxy.
const PROXIES: [&str; 3] = ["http_proxy", "https_proxy", "all_proxy"];

/// What `--json` prints.
#[derive(Serialize)]
struct Told {
    schema: &'static str,
    /// Whose variables they are.
    of: String,
    variables: Vec<Variable>,
    /// The proxies that they name, tried from this machine.
    proxies: Vec<Reached>,
    problems: Vec<String>,
    /// What was not looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// A proxy, and what came of a connection to it.
#[derive(Serialize)]
struct Reached {
    /// Host and port.
    proxy: String,
    /// The variables that name it.
    named_by: Vec<String>,
    #[serde(flatten)]
    outcome: Probe,
}

/// A variable, and the files that set it.
#[derive(Serialize)]
struct Variable {
    name: String,
    /// Without user name and password.
    value: String,
    /// Files that speak of it, as `file:line`.
    set_in: Vec<String>,
}

pub(super) fn run(args: &DoctorArgs, env: &Environment) -> u8 {
    let mut notes = Vec::new();
    let (of, variables) = match (&args.unit, args.pid) {
        (Some(unit), _) => match of_unit(unit, &mut notes) {
            Ok(variables) => (format!("unit {unit}"), variables),
            Err(error) => {
                say!("error: --unit {unit}: {error:#}");
                return exit::FAILED;
            }
        },
        (None, Some(pid)) => match fs::read(format!("/proc/{pid}/environ")) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                let pairs = text.split('\0').filter_map(pair);
                (format!("process {pid}"), pairs.collect())
            }
            Err(error) => {
                say!("error: --pid {pid}: {error}");
                return if error.kind() == io::ErrorKind::PermissionDenied {
                    exit::NO_PERMISSION
                } else {
                    exit::FAILED
                };
            }
        },
        (None, None) => {
            let names = NAMES
                .iter()
                .flat_map(|name| [(*name).to_owned(), name.to_uppercase()]);
            let names = names.chain(["NOPROXY", "noproxy", "REQUEST_METHOD"].map(str::to_owned));
            let own = names.filter_map(|name| Some((name.clone(), env.raw(&name)?.to_owned())));
            ("this shell".to_owned(), own.collect())
        }
    };
    let mut told = examine(of, &variables, &places(env));
    told.notes = notes;
    if let Err(error) = told.reach(&variables, env) {
        say!("error: {error:#}");
        return exit::FAILED;
    }
    if args.json {
        match serde_json::to_string_pretty(&told) {
            Ok(text) => print(&(text + "\n")),
            Err(error) => say!("error: {error}"),
        }
    } else {
        print(&tell(&told));
    }
    if told.problems.is_empty() {
        0
    } else {
        exit::FAILED
    }
}

impl Told {
    /// Connects to each proxy that is named.
    fn reach(
        &mut self,
        variables: &BTreeMap<String, String>,
        env: &Environment,
    ) -> anyhow::Result<()> {
        let mut proxies: Vec<(Target, Vec<String>)> = Vec::new();
        for (name, value) in variables {
            let lower = name.to_lowercase();
            // What is wrong with a value is told already.
            let target = match proxy_target(value) {
                Ok(target) if PROXIES.contains(&&*lower) && !value.is_empty() => target,
                Ok(_) | Err(_) => continue,
            };
            match proxies.iter_mut().find(|(proxy, _)| *proxy == target) {
                Some((_, names)) => names.push(name.clone()),
                None => proxies.push((target, vec![name.clone()])),
            }
        }
        if proxies.is_empty() {
            return Ok(());
        }
        let targets: Vec<_> = proxies.iter().map(|(proxy, _)| proxy.clone()).collect();
        let outcomes = reach(&targets, env)?;
        for ((proxy, named_by), outcome) in proxies.into_iter().zip(outcomes) {
            if let (Some(cause), Some(message)) = (&outcome.cause, &outcome.message) {
                self.problems.push(format!(
                    "{}: {proxy} cannot be reached from this machine: {cause}: {message}: look at host and port, and whether the proxy runs",
                    named_by.join(", ")
                ));
            }
            self.proxies.push(Reached {
                proxy: proxy.to_string(),
                named_by,
                outcome,
            });
        }
        Ok(())
    }
}

/// `NAME=value`.
fn pair(entry: &str) -> Option<(String, String)> {
    let (name, value) = entry.split_once('=')?;
    Some((name.to_owned(), value.to_owned()))
}

/// What systemd starts a unit with.
fn of_unit(unit: &str, notes: &mut Vec<String>) -> anyhow::Result<BTreeMap<String, String>> {
    let output = Command::new("systemctl")
        .args([
            "show",
            "--property=Environment,EnvironmentFiles",
            "--",
            unit,
        ])
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(of_systemd(&text, |file| fs::read_to_string(file), notes))
}

/// The variables of `systemctl show`: what `EnvironmentFile=` names counts more than `Environment=`.
fn of_systemd(
    text: &str,
    read: impl Fn(&str) -> io::Result<String>,
    notes: &mut Vec<String>,
) -> BTreeMap<String, String> {
    let of = |key: &'static str| text.lines().filter_map(move |line| line.strip_prefix(key));
    let mut variables: BTreeMap<_, _> = of("Environment=")
        .flat_map(words)
        .filter_map(|word| pair(&word))
        .collect();
    for file in of("EnvironmentFiles=").filter(|file| !file.is_empty()) {
        let (path, rest) = file.rsplit_once(" (").unwrap_or((file, ""));
        match read(path) {
            Ok(text) => variables.extend(of_file(&text)),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && rest.contains("errors=yes") => {}
            Err(error) => notes.push(format!("EnvironmentFile={path} was not read: {error}")),
        }
    }
    variables
}

/// The variables of an `EnvironmentFile`.
///
/// Source: systemd.exec(5): one a line, `#` and `;` begin comments, quotes are left out.
fn of_file(text: &str) -> BTreeMap<String, String> {
    let text = text.replace("\\\n", "");
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.starts_with(['#', ';']));
    let pairs = lines.filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        let value = value.trim();
        let value = if value.starts_with(['"', '\'']) {
            words(value).concat()
        } else {
            value.to_owned()
        };
        Some((name.trim().to_owned(), value))
    });
    pairs.collect()
}

/// Files that set variables for shells, logins and services.
fn places(env: &Environment) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = [
        "/etc/environment",
        "/etc/profile",
        "/etc/bash.bashrc",
        "/etc/zsh/zshenv",
    ]
    .into_iter()
    .map(PathBuf::from)
    .collect();
    let inside = |folder: &Path| {
        let mut files: Vec<_> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        files
    };
    places.extend(inside(Path::new("/etc/profile.d")));
    places.extend(inside(Path::new("/etc/environment.d")));
    if let Some(home) = env.get("HOME") {
        let own = [
            ".profile",
            ".bashrc",
            ".bash_profile",
            ".zshrc",
            ".zshenv",
            ".config/fish/config.fish",
        ];
        places.extend(own.iter().map(|name| Path::new(home).join(name)));
        places.extend(inside(&Path::new(home).join(".config/environment.d")));
        places.extend(inside(&Path::new(home).join(".config/fish/conf.d")));
    }
    places
}

/// The lines of some files that speak of a variable.
fn set_in(name: &str, places: &[PathBuf]) -> Vec<String> {
    let mut found = Vec::new();
    for place in places {
        let Ok(text) = fs::read_to_string(place) else {
            continue;
        };
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            let is_word = |part: &str| part.split('=').next() == Some(name);
            if !line.starts_with('#') && line.split_whitespace().any(is_word) {
                found.push(format!("{}:{}", place.display(), at + 1));
            }
        }
    }
    found
}

fn examine(of: String, variables: &BTreeMap<String, String>, places: &[PathBuf]) -> Told {
    let mut problems = Vec::new();
    let get = |name: &str| variables.get(name).map(String::as_str);
    let mut told = Vec::new();
    for (name, value) in variables {
        let lower = name.to_lowercase();
        if lower == "noproxy" {
            problems.push(format!("{name} is read by nobody: the name is NO_PROXY"));
        }
        if !NAMES.contains(&&*lower) {
            continue;
        }
        if lower != "no_proxy" && !value.is_empty() {
            match is_usable_proxy(value, DEFAULT_LISTEN) {
                Err(problem) => problems.push(format!("{name}: {problem}")),
                Ok(_) if !value.contains("://") => {
                    problems.push(format!(
                        "{name} names no scheme: write http://{}",
                        proxy_without_credentials(value)
                    ));
                }
                Ok(_) => {}
            }
        }
        if value.trim() != value {
            problems.push(format!("{name} begins or ends with a blank"));
        }
        told.push(Variable {
            name: name.clone(),
            value: if lower == "no_proxy" {
                value.clone()
            } else {
                proxy_without_credentials(value)
            },
            set_in: set_in(name, places),
        });
    }
    for name in NAMES {
        let upper = name.to_uppercase();
        match (get(name), get(&upper)) {
            (Some(lower), Some(big)) if lower != big => {
                problems.push(format!(
                    "{name} and {upper} differ: clients do not agree which counts"
                ));
            }
            (None, Some(_)) if name == "http_proxy" => {
                problems.push(
                    "HTTP_PROXY is set and http_proxy is not: curl and wget read the latter alone"
                        .to_owned(),
                );
            }
            // Whoever reads the one reads the other.
            (None, Some(_)) if name == "all_proxy" => {}
            (None, Some(_)) => problems.push(format!(
                "{upper} is set and {name} is not: wget reads the latter alone"
            )),
            (Some(""), None) | (None | Some(_), _) => {}
        }
    }
    if get("http_proxy").or(get("HTTP_PROXY")).is_some()
        && get("https_proxy").or(get("HTTPS_PROXY")).is_none()
    {
        problems.push("there is a proxy for http and none for https".to_owned());
    }
    let either = |name: &str| get(name).or(get(&name.to_uppercase()));
    if either("all_proxy").is_some_and(|value| !value.is_empty())
        && either("http_proxy").or(either("https_proxy")).is_none()
    {
        problems.push(
            "ALL_PROXY stands alone: Go and wget do not read it; set http_proxy and https_proxy"
                .to_owned(),
        );
    }
    if get("REQUEST_METHOD").is_some() {
        problems.push(
            "REQUEST_METHOD is set: many clients take this for CGI, and ignore HTTP_PROXY"
                .to_owned(),
        );
    }
    let list = get("NO_PROXY").or(get("no_proxy")).unwrap_or_default();
    let lint = NoProxy::parse(list, Dialect::default());
    problems.extend(lint.lint().iter().map(|line| format!("NO_PROXY: {line}")));
    Told {
        schema: "routecause.doctor.env/1",
        of,
        variables: told,
        proxies: Vec::new(),
        problems,
        notes: Vec::new(),
    }
}

/// A value on a terminal. A list may be longer than what strangers may say.
fn shown(value: &str) -> String {
    let parts: Vec<_> = value.split(',').map(quote).collect();
    parts.join(",")
}

fn tell(told: &Told) -> String {
    let mut text = format!("proxy variables of {}:\n", told.of);
    if told.variables.is_empty() {
        text.push_str("  none is set\n");
    }
    for variable in &told.variables {
        let _ = writeln!(
            text,
            "  {:<12} {}",
            quote(&variable.name),
            shown(&variable.value)
        );
        if !variable.set_in.is_empty() {
            let _ = writeln!(
                text,
                "               spoken of in {}",
                variable.set_in.join(", ")
            );
        }
    }
    for reached in told.proxies.iter().filter(|tried| tried.outcome.is_fine()) {
        let _ = writeln!(text, "{} takes connections", quote(&reached.proxy));
    }
    for problem in &told.problems {
        let _ = writeln!(text, "! {}", quote(problem));
    }
    for note in &told.notes {
        let _ = writeln!(text, "note: {}", quote(note));
    }
    if told.problems.is_empty() {
        text.push_str("nothing is wrong with them\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(variables: &str, expected: &[&str]) {
        let variables_of = variables.split(' ').filter_map(pair).collect();
        let told = examine("x".into(), &variables_of, &[]);
        assert_eq!(
            told.problems.len(),
            expected.len(),
            "{variables}: {:?}",
            told.problems
        );
        for (problem, part) in told.problems.iter().zip(expected) {
            assert!(problem.contains(part), "{variables}: {problem}");
        }
        assert!(!tell(&told).contains("secret"));
    }

    #[test]
    fn what_is_wrong_with_variables_is_told_without_their_secrets() {
        check("", &[]);
        check(
            "http_proxy=http://p:1 HTTP_PROXY=http://p:1 https_proxy=http://p:1 HTTPS_PROXY=http://p:1",
            &[],
        );
        check("http_proxy=http://me:secret@p:1", &["none for https"]);
        check("HTTPS_PROXY=http://p:1", &["wget reads the latter alone"]);
        check("https_proxy=http://a:1 HTTPS_PROXY=http://b:1", &["differ"]);
        check("https_proxy=p:1", &["names no scheme"]);
        check("https_proxy=htp://p:1", &["htp:// is no proxy's scheme"]);
        check("https_proxy=http://127.0.0.1:3128", &[]);
        check("ALL_PROXY=http://p:1", &["Go and wget do not read it"]);
        check(
            "ALL_PROXY=http://p:1 http_proxy=http://p:1 https_proxy=http://p:1",
            &[],
        );
        check("NOPROXY=x", &["read by nobody"]);
        check("no_proxy=.x.test", &["write both to mean both"]);
    }
    #[test]
    fn a_unit_is_read_with_its_quotes_and_its_files() {
        let read = |file: &str| {
            match file {
            "/etc/default/a" => Ok("# one\n; two\nhttp_proxy = http://f:1\nno_proxy=\"a, b\"\nHTTPS_PROXY=http://f\\\n:2\n".to_owned()),
            "/etc/closed" => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
        };
        let mut notes = Vec::new();
        let variables = of_systemd(
            "EnvironmentFiles=/etc/default/a (ignore_errors=no)\n\
             EnvironmentFiles=/etc/gone (ignore_errors=yes)\n\
             EnvironmentFiles=/etc/closed (ignore_errors=no)\n\
             Environment=\"NO_PROXY=localhost, .corp.example\" http_proxy=http://p:1\n",
            read,
            &mut notes,
        );
        let told: Vec<_> = variables
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            told,
            [
                "HTTPS_PROXY=http://f:2",
                "NO_PROXY=localhost, .corp.example",
                "http_proxy=http://f:1",
                "no_proxy=a, b",
            ]
        );
        assert_eq!(
            notes,
            ["EnvironmentFile=/etc/closed was not read: permission denied"]
        );
    }

    #[test]
    fn a_value_moves_no_cursor() {
        let variables = [("no_proxy".to_owned(), "a,\x1b[2Jb".to_owned())].into();
        let text = tell(&examine("x".into(), &variables, &[]));
        assert!(
            !text.contains('\x1b') && text.contains("a,\\u{1b}[2Jb"),
            "{text}"
        );
    }
}
