//! `routecause doctor URL`: why it does not work, in one verdict.

mod compare;
mod docker;
mod git;
mod go;
mod idle;
pub(super) mod page;
mod plan;
mod program;
pub(super) mod reach;
mod thorough;

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;

use self::page::{Page, Tone};
use self::plan::{Rule, announce_controls, asked, plan};
use super::{PolicyArg, exit, parse, quoted, variables};
use crate::config::env::{Environment, without_credentials};
use crate::config::{self, Loaded, Options, Source};
use crate::doctor::probe::Progress;
use crate::doctor::verdict::rule as rule_for;
use crate::doctor::{Facts, Plan, Verdict, examine, judge};
use crate::net::resolve::Resolver;
use crate::policy::Policy;
use crate::target::Target;
use crate::timeouts::Brief;

#[derive(Clone, Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag by itself")]
pub(in crate::cli) struct DoctorArgs {
    #[command(flatten)]
    pub(in crate::cli) policy: PolicyArg,
    /// Print JSON: the verdict, and all that was seen.
    #[arg(long)]
    pub(in crate::cli) json: bool,
    /// A host that works, near to the target or to you, with its port where that is not 443, or 80 for http://; may be
    /// repeated.
    #[arg(
        long,
        value_name = "HOST",
        env = "ROUTECAUSE_CONTROL",
        value_delimiter = ','
    )]
    pub(in crate::cli) control: Vec<String>,
    /// Ask no controls, whatever else says. Blocking cannot be told from an outage then.
    #[arg(long)]
    pub(in crate::cli) no_control: bool,
    /// A page of plain http that answers 204, to find a captive portal.
    #[arg(long, value_name = "URL")]
    pub(in crate::cli) portal: Option<String>,
    /// Ask for the URL's own path and query, rather than for `/`.
    #[arg(long)]
    pub(in crate::cli) full_url: bool,
    /// With `env`: the variables of a unit of systemd.
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) unit: Option<String>,
    /// With `env`: the variables of a process.
    #[arg(long, value_name = "PID", conflicts_with = "unit")]
    pub(in crate::cli) pid: Option<u32>,
    /// With `docker`: an image whose variables are looked at as well.
    #[arg(long, value_name = "IMAGE")]
    pub(in crate::cli) image: Option<String>,
    /// What does not work; `go`, for the places that Go fetches modules from; `docker` and `git`, for the places that
    /// they take proxies from; or `env`, for the proxy variables.
    #[arg(value_name = "URL|go|docker|git|env")]
    pub(in crate::cli) subject: String,
    /// Hold mirrors against each other: what each gives for its URL, what differs, and which to take.
    #[arg(long, conflicts_with_all = ["idle", "image", "unit", "pid"])]
    pub(in crate::cli) compare: bool,
    /// Leave connections alone for up to this long, to find what cuts silent ones, and when.
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, conflicts_with_all = ["image", "unit", "pid"])]
    pub(in crate::cli) idle: Option<Duration>,
    /// Where something resets what is said to the target: look for the place on the way from where it does. Takes up to a
    /// minute.
    #[arg(long, conflicts_with_all = ["compare", "idle", "image", "unit", "pid"])]
    pub(in crate::cli) locate: bool,
    /// Take some minutes: look three times, to see whether it is always so, look for the place of a reset, and where all is well
    /// leave connections alone for a while.
    #[arg(long, conflicts_with_all = ["compare", "idle", "image", "unit", "pid"])]
    pub(in crate::cli) thorough: bool,
    /// With `docker`: what a container is to reach. With `git`: the URL or the remote; without it `origin`. With
    /// `--compare`: the other mirrors.
    #[arg(value_name = "URL")]
    pub(in crate::cli) more: Vec<String>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    schema: &'static str,
    policy: String,
    /// The rule that decides, and where it stands.
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule_source: Option<&'a str>,
    verdict: &'a Verdict,
    facts: &'a Facts,
    /// How to look again.
    recheck: &'a str,
}

pub(super) fn run(args: &DoctorArgs, env: &Environment) -> u8 {
    let most = match args.subject.as_str() {
        "docker" | "git" => 1,
        _ if args.compare => usize::MAX,
        _ => 0,
    };
    if let Some(odd) = args.more.get(most) {
        say!("error: {}: one subject at a time", without_credentials(odd));
        return exit::USAGE;
    }
    if let Some((flag, with)) = misfit(args) {
        say!("error: {flag} goes with {with}");
        return exit::USAGE;
    }
    if args.compare {
        return compare::run(args, env);
    }
    if args.idle.is_some() {
        return idle::run(args, env);
    }
    match args.subject.as_str() {
        "env" => return variables::run(args, env),
        "docker" => return docker::run(args, env),
        "git" => return git::run(args, env),
        "go" => return go::run(args, env),
        _ => {}
    }
    let subject = args.subject.as_str();
    if let Err(error) = asked(subject) {
        say!("error: {}: {error}", without_credentials(subject));
        return exit::USAGE;
    }
    let (policy, source) = match load(args, env) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if let Err(error) = announce_controls(args, env) {
        say!("error: {error:#}");
        return exit::USAGE;
    }
    let diagnosis = if args.thorough {
        thorough::diagnose(subject, args, &policy, env)
    } else {
        diagnose(subject, args, &policy, env)
    };
    let Diagnosis {
        facts,
        verdict,
        rule,
    } = match diagnosis {
        Ok(diagnosis) => diagnosis,
        Err(error) => {
            say!("error: {error:#}");
            return exit::USAGE;
        }
    };
    let recheck = recheck(args);
    let told = Told {
        schema: "routecause.doctor/1",
        policy: source,
        rule: rule.as_ref().map(|rule| &*rule.name),
        rule_source: rule.as_ref().and_then(|rule| rule.source.as_deref()),
        verdict: &verdict,
        facts: &facts,
        recheck: &recheck,
    };
    let page = tell(Page::new(env), &facts, &verdict, rule.as_ref(), &recheck);
    page.give(args.json.then_some(&told));
    if verdict.is_fine() { 0 } else { exit::FAILED }
}

/// A flag that does nothing for what is looked at, and what it goes with.
fn misfit(args: &DoctorArgs) -> Option<(&'static str, &'static str)> {
    let subject = args.subject.as_str();
    let (is_env, is_docker) = (subject == "env", subject == "docker");
    let is_url = !matches!(subject, "env" | "docker" | "git" | "go");
    let is_looked_at = !is_env && !is_docker && !args.compare && args.idle.is_none();
    let flags = [
        ("--unit", args.unit.is_some(), is_env, "env"),
        ("--pid", args.pid.is_some(), is_env, "env"),
        ("--image", args.image.is_some(), is_docker, "docker"),
        ("--compare", args.compare, is_url, "URLs"),
        ("--idle", args.idle.is_some(), is_url, "a URL"),
        ("--thorough", args.thorough, is_url, "a URL"),
        (
            "--full-url",
            args.full_url,
            is_url && is_looked_at,
            "one look at a URL",
        ),
        ("--locate", args.locate, is_looked_at, "a URL, git or go"),
        (
            "--portal",
            args.portal.is_some(),
            is_looked_at,
            "one look at a URL, git or go",
        ),
    ];
    let odd = flags
        .into_iter()
        .find(|(_, is_given, fits, _)| *is_given && !fits);
    odd.map(|(flag, _, _, with)| (flag, with))
}

/// Reads the policy, or says what is wrong with it.
fn load(args: &DoctorArgs, env: &Environment) -> Result<(Arc<Policy>, String), u8> {
    let source = config::locate(args.policy.policy.as_deref(), env);
    match config::load(&source, env, &Options::check(Timestamp::now())) {
        Ok(Loaded { policy, .. }) => Ok((Arc::new(policy), source.to_string())),
        Err(report) => {
            say!("{}", report.render(false));
            Err(exit::BAD_POLICY)
        }
    }
}

/// A policy of nothing but the direct way, to any port of any place: other programs know no guards.
const STRAIGHT: &str = "\
version: 1
guards: {loopback: allow, link_local: allow}
rules: [{name: any_port, match: {port: 1-65535}, direct: true}]
default: {direct: true}
";

/// A policy of this program's own, for a way that another program goes.
pub(super) fn of_text(text: &str, env: &Environment) -> anyhow::Result<Arc<Policy>> {
    let source = Source::Text {
        name: "routecause's own".to_owned(),
        text: text.to_owned(),
    };
    match config::load(&source, env, &Options::check(Timestamp::now())) {
        Ok(Loaded { policy, .. }) => Ok(Arc::new(policy)),
        Err(report) => anyhow::bail!("{}", report.render(false)),
    }
}

/// What was found out about one URL.
struct Diagnosis {
    facts: Facts,
    verdict: Verdict,
    /// The rule that decides.
    rule: Option<Rule>,
}

/// Finds out why a URL does not work.
fn diagnose(
    url: &str,
    args: &DoctorArgs,
    policy: &Arc<Policy>,
    env: &Environment,
) -> anyhow::Result<Diagnosis> {
    find_out(plan(url, args, policy, env)?, policy, env)
}

fn find_out(
    (plan, rule): (Plan, Option<Rule>),
    policy: &Arc<Policy>,
    env: &Environment,
) -> anyhow::Result<Diagnosis> {
    let facts = look(env, async |resolver, progress| {
        examine(policy, resolver, &plan, progress).await
    })?;
    let verdict = match &rule {
        Some(rule) if plan.chosen.is_none() => denied(&plan.target, rule, &judge(&facts)),
        _ => judge(&facts),
    };
    Ok(Diagnosis {
        facts,
        verdict,
        rule,
    })
}

/// Looks, and shows how far it is on a terminal.
fn look<T>(
    env: &Environment,
    work: impl AsyncFnOnce(&Resolver, Progress<'_>) -> T,
) -> anyhow::Result<T> {
    let is_shown = io::stderr().is_terminal() && env.get("TERM") != Some("dumb");
    let bar = if is_shown {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tell = |what: &str| bar.set_message(what.to_owned());
    let resolver = Resolver::from_system();
    let found = runtime.block_on(work(&resolver, &tell));
    bar.finish_and_clear();
    Ok(found)
}

/// What the policy refuses it refuses, whatever the network does.
fn denied(target: &Target, rule: &Rule, of_network: &Verdict) -> Verdict {
    let network = format!("the network alone: {}", of_network.sentence);
    Verdict {
        id: "denied_by_policy",
        certainty: crate::doctor::verdict::Certainty::Certain,
        sentence: format!("the policy refuses {target}, by {rule}"),
        evidence: vec![network],
        counter: Vec::new(),
        fix: Some(rule_for(
            &target.host.to_string(),
            Some(target.port),
            "direct: true",
        )),
    }
}

fn recheck(args: &DoctorArgs) -> String {
    // Each is named, so that none is forgotten here.
    let DoctorArgs {
        policy: PolicyArg { policy },
        json,
        control,
        no_control,
        portal,
        full_url,
        unit,
        pid,
        image,
        subject,
        compare,
        idle,
        locate,
        thorough,
        more,
    } = args;
    let mut words = vec!["routecause".to_owned(), "doctor".to_owned()];
    let is_path_asked = *full_url || *compare;
    // What is typed behind `git`, or `docker`, is theirs.
    let shown = without_credentials(subject);
    words.push(match shown.split_once("://") {
        Some((scheme, rest)) if !is_path_asked => {
            let host = rest.split(['/', '?', '#']).next().unwrap_or(rest);
            format!("{scheme}://{host}/")
        }
        _ => shown,
    });
    words.extend(more.iter().map(|url| without_credentials(url)));
    let flags = [
        (*compare, "--compare"),
        (*full_url, "--full-url"),
        (*locate, "--locate"),
        (*thorough, "--thorough"),
        (*no_control, "--no-control"),
        (*json, "--json"),
    ];
    let flags = flags.into_iter().filter(|(is_given, _)| *is_given);
    words.extend(flags.map(|(_, flag)| flag.to_owned()));
    let values = [
        ("--idle", idle.map(|idle| Brief(idle).to_string())),
        ("--unit", unit.clone()),
        ("--pid", pid.map(|pid| pid.to_string())),
        ("--image", image.clone()),
        ("--portal", portal.as_deref().map(without_credentials)),
        (
            "--policy",
            policy.as_ref().map(|path| path.display().to_string()),
        ),
    ];
    let controls = control
        .iter()
        .map(|control| ("--control", Some(control.clone())));
    for (flag, value) in values.into_iter().chain(controls) {
        words.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
    }
    let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    words.join(" ")
}

/// The verdict as a tired person reads it: what is the matter first.
fn tell(
    mut page: Page,
    facts: &Facts,
    verdict: &Verdict,
    rule: Option<&Rule>,
    recheck: &str,
) -> Page {
    page.verdict(verdict);
    let mut seen = Vec::new();
    for way in &facts.ways {
        let word = |is_fine: bool| if is_fine { "works" } else { "fails" };
        let controls = match way.is_up() {
            Some(is_up) => format!(", controls {}", if is_up { "work" } else { "fail" }),
            None => String::new(),
        };
        seen.push(format!("{} {}{controls}", way.route, word(way.works())));
    }
    page.put("seen", Tone::Plain, &seen.join("; "));
    if let Some(rule) = rule {
        let chosen = facts.chosen.as_deref().unwrap_or("refused");
        page.put("policy", Tone::Plain, &format!("{chosen}, by {rule}"));
    }
    page.put("again", Tone::Plain, recheck);
    page
}
