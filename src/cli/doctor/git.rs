//! `routecause doctor git`: where git takes its proxy from for a remote, and why it does not reach it.

use std::time::Duration;

use serde::Serialize;
use tokio::process::Command;

use super::super::exit;
use super::DoctorArgs;
use super::page::{Page, Tone};
use super::plan::{announce_controls, plan_below};
use super::program::{command, run as run_program, told};
use super::{Diagnosis, find_out, of_text, recheck};
use crate::config::env::{Environment, without_credentials};
use crate::doctor::Verdict;
use crate::doctor::git::{
    Place, Remote, Seen, Transport, commands, entries, exempted, judge, places,
};
use crate::policy::no_proxy::clients::Variables;

/// Until a remote has told its branches.
const LIMIT: Duration = Duration::from_secs(30);

/// Everything by one proxy. Nobody listens here: no proxy is taken for a listener of this program's own, whatever its port.
const BY_PROXY: &str = "\
version: 1
server: {listen: [{name: nobody, address: '127.0.0.1:1'}]}
guards: {loopback: allow}
upstreams: {git: {url: env}}
rules: [{name: any_port, match: {port: 1-65535}, via: git}]
default: {via: git}
";

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    schema: &'static str,
    verdict: &'a Verdict,
    seen: &'a Seen,
    /// The doctor's verdict about the way that git goes.
    network: Option<&'a Verdict>,
    recheck: &'a str,
}

pub(super) fn run(args: &DoctorArgs, env: &Environment) -> u8 {
    let asked = args.more.first().map_or("origin", String::as_str);
    let seen = match look(asked, env) {
        Ok(seen) => seen,
        Err(error) => {
            say!("error: {error:#}");
            return exit::USAGE;
        }
    };
    // Where git is content there is nothing to look for.
    let network = match &seen.said {
        None => None,
        Some(_) => match of_network(&seen, args, env) {
            Ok(verdict) => Some(verdict),
            Err(error) => {
                say!("warning: the way was not looked at: {error:#}");
                None
            }
        },
    };
    let verdict = judge(&seen, network.as_ref());
    let recheck = recheck(args);
    let mut page = Page::new(env);
    page.verdict(&verdict);
    page.put("way", Tone::Plain, &seen.way());
    for place in seen.places.iter().skip(1) {
        page.put("", Tone::Dim, &format!("hidden by that: {}", place.told()));
    }
    page.put("again", Tone::Plain, &recheck);
    let told = Told {
        schema: "routecause.doctor.git/1",
        verdict: &verdict,
        seen: &seen,
        network: network.as_ref(),
        recheck: &recheck,
    };
    page.give(args.json.then_some(&told));
    if verdict.is_fine() { 0 } else { exit::FAILED }
}

/// Reads the places, and asks the remote for its branches as git would.
fn look(asked: &str, env: &Environment) -> anyhow::Result<Seen> {
    // A name becomes its URL, and `insteadOf` is minded, for URLs as well.
    let url = told(command("git", ["ls-remote", "--get-url", "--", asked]))?;
    let url = url.trim();
    let Some(remote) = Remote::parse(url) else {
        anyhow::bail!(
            "{} is no remote here, and no URL that leaves this machine: name one, as in: routecause doctor git https://git.example/a.git",
            without_credentials(asked)
        );
    };
    let name = (url != asked && !asked.contains(['/', ':'])).then_some(asked);
    let entries = entries(&told(command(
        "git",
        ["config", "--list", "-z", "--show-origin"],
    ))?);
    let get = |name: &str| env.raw(name);
    let variables: Variables<'_> = &get;
    let mut found = Vec::new();
    let mut exemption = None;
    let mut unused = None;
    match remote.transport {
        Transport::Http => {
            let matched = told(command(
                "git",
                ["config", "--get-urlmatch", "http.proxy", url],
            ))
            .ok();
            let matched = matched.as_deref().map(|value| value.trim_end_matches('\n'));
            found = places(&entries, matched, name, &remote, variables);
            exemption = exempted(&remote, variables);
        }
        Transport::Ssh | Transport::Git => {
            let ssh = (remote.transport == Transport::Ssh)
                .then(|| told(command("ssh", ["-G", "--", &remote.host])));
            let ssh = ssh.transpose().ok().flatten();
            found.extend(commands(&entries, &remote, ssh.as_deref(), variables));
            let https = Remote {
                transport: Transport::Http,
                is_tls: true,
                ..remote.clone()
            };
            let of_https: Vec<Place> = places(&entries, None, None, &https, variables);
            let is_exempted = exempted(&https, variables).is_some();
            let first = of_https.into_iter().next();
            unused = first.filter(|place| !place.value.is_empty() && !is_exempted);
        }
    }
    let mut ask = command("git", ["ls-remote", "--quiet", "--", asked, "HEAD"]);
    ask.env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C");
    if remote.transport == Transport::Ssh {
        ask_nobody(&mut ask, env);
    }
    let said = match run_program(ask, None, LIMIT) {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(without_urls(&String::from_utf8_lossy(&output.stderr))),
        Err(error) => Some(format!("{error:#}")),
    };
    Ok(Seen {
        url: without_credentials(url),
        remote,
        places: found,
        exempted: exemption,
        unused,
        said,
    })
}

/// Has ssh fail where it would ask a person.
fn ask_nobody(git: &mut Command, env: &Environment) {
    let own = env.get("GIT_SSH_COMMAND").map(str::to_owned);
    let own = own.or_else(|| {
        let set = told(command("git", ["config", "core.sshCommand"])).ok()?;
        Some(set.trim().to_owned())
    });
    let ssh = own.or_else(|| env.get("GIT_SSH").map(str::to_owned));
    let ssh = ssh.unwrap_or_else(|| "ssh".to_owned());
    git.env(
        "GIT_SSH_COMMAND",
        format!("{ssh} -o BatchMode=yes -o ConnectTimeout=10"),
    );
}

/// What git says, without user names and passwords in URLs.
fn without_urls(text: &str) -> String {
    let words = text.trim().split_inclusive(char::is_whitespace);
    words
        .map(|word| {
            if word.contains("://") {
                without_credentials(word)
            } else {
                word.to_owned()
            }
        })
        .collect()
}

/// The doctor's own verdict about the way that git goes.
fn of_network(seen: &Seen, args: &DoctorArgs, env: &Environment) -> anyhow::Result<Verdict> {
    let remote = &seen.remote;
    let place = seen.places.first().filter(|place| {
        remote.transport == Transport::Http && seen.exempted.is_none() && !place.value.is_empty()
    });
    let policy = match place {
        Some(place) => {
            let proxies = ["HTTP_PROXY", "HTTPS_PROXY"].map(|name| (name, place.secret.reveal()));
            of_text(BY_PROXY, &proxies.into_iter().collect())?
        }
        None => of_text(super::STRAIGHT, &Environment::default())?,
    };
    let host = if remote.host.contains(':') {
        format!("[{}]", remote.host)
    } else {
        remote.host.clone()
    };
    let scheme = match (remote.transport, remote.is_tls) {
        (Transport::Http, true) => "https://",
        (Transport::Http, false) => "http://",
        (Transport::Ssh | Transport::Git, _) => "",
    };
    announce_controls(args, env)?;
    let url = format!("{scheme}{host}:{}", remote.port());
    // Repositories stand below.
    let Diagnosis { verdict, .. } = find_out(plan_below(&url, args, &policy, env)?, &policy, env)?;
    Ok(verdict)
}
