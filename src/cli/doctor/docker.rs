//! `routecause doctor docker`: the places where Docker takes proxies from, and what answers inside a container.

mod inside;

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::super::exit;
use super::super::run::docker::Bridge;
use super::DoctorArgs;
use super::page::{Page, Tone};
use super::plan::without_user;
use super::program::{command, told};
use super::reach::reach as reach_from_here;
use super::recheck;
use crate::config::env::Environment;
use crate::doctor::Verdict;
use crate::doctor::docker::places::{Baked, Kind, Place, baked, baked_in_image};
use crate::doctor::docker::{Reached, Seen, judge};
use crate::doctor::facts::Probe;
use crate::target::Target;
use inside::Container;

/// Where the engine reads its settings.
const ENGINE_FILE: &str = "/etc/docker/daemon.json";

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    schema: &'static str,
    verdict: &'a Verdict,
    seen: &'a Seen,
    notes: &'a [String],
    recheck: &'a str,
}

pub(super) fn run(args: &DoctorArgs, env: &Environment) -> u8 {
    let mut notes = Vec::new();
    let seen = match look(args, env, &mut notes) {
        Ok(seen) => seen,
        Err(error) => {
            say!("error: {error:#}");
            return exit::FAILED;
        }
    };
    let verdict = judge(&seen);
    let recheck = recheck(args);
    let mut page = Page::new(env);
    page.verdict(&verdict);
    tell(&mut page, &seen, &notes);
    page.put("again", Tone::Plain, &recheck);
    let told = Told {
        schema: "routecause.doctor.docker/1",
        verdict: &verdict,
        seen: &seen,
        notes: &notes,
        recheck: &recheck,
    };
    page.give(args.json.then_some(&told));
    if verdict.is_fine() { 0 } else { exit::FAILED }
}

fn look(args: &DoctorArgs, env: &Environment, notes: &mut Vec<String>) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let info = match told(command("docker", ["info", "--format", "{{json .}}"])) {
        Ok(text) => serde_json::from_str::<Value>(&text)?,
        Err(error) => {
            seen.silence = Some(format!("{error:#}"));
            return Ok(seen);
        }
    };
    // Where the engine is away, the client succeeds and tells of itself.
    let errors = info.get("ServerErrors").and_then(Value::as_array);
    if let Some(error) = errors.and_then(|errors| errors.first()?.as_str()) {
        seen.silence = Some(error.to_owned());
        return Ok(seen);
    }
    let text = |key: &str| info.get(key).and_then(Value::as_str).unwrap_or_default();
    seen.engine = Some(text("ServerVersion").to_owned());
    if text("OperatingSystem").contains("Docker Desktop") {
        notes.push("Docker Desktop reads neither daemon.json's proxies nor a unit: it has settings of its own".to_owned());
    }
    places(&mut seen, env, &info, notes);
    if let Ok(text) = fs::read_to_string("Dockerfile") {
        seen.baked = baked("Dockerfile", &text);
    }
    if let Some(image) = &args.image {
        seen.baked.extend(of_image(image)?);
    }
    let bridge = told(command("docker", ["network", "inspect", "bridge"]));
    match bridge.and_then(|text| Bridge::read(text.as_bytes())) {
        Ok(bridge) => {
            seen.gateway = Some(bridge.gateway);
            seen.subnet = Some(bridge.subnet);
        }
        Err(error) => notes.push(format!("the bridge: {error:#}")),
    }
    reach(&mut seen, args, env, notes)?;
    Ok(seen)
}

/// Reads the places one by one. A place that cannot be read is noted.
fn places(seen: &mut Seen, env: &Environment, info: &Value, notes: &mut Vec<String>) {
    let folder = env.get("DOCKER_CONFIG").map(PathBuf::from);
    let folder = folder.or_else(|| Some(Path::new(env.get("HOME")?).join(".docker")));
    let host = told(command(
        "docker",
        [
            "context",
            "inspect",
            "--format",
            "{{.Endpoints.docker.Host}}",
        ],
    ));
    let host = host.unwrap_or_default();
    if let Some(file) = folder.map(|folder| folder.join("config.json")) {
        let read = |source: &str, text: &str| Place::of_client(source, text, host.trim());
        take(seen, notes, &file, read);
    }
    take(seen, notes, Path::new(ENGINE_FILE), Place::of_engine_file);
    let show = [
        "show",
        "--property=Environment",
        "--value",
        "--",
        "docker.service",
    ];
    match told(command("systemctl", show)) {
        Ok(text) => seen
            .places
            .extend(Place::of_unit("docker.service (systemctl show)", &text)),
        Err(error) => notes.push(format!("the engine's unit was not read: {error:#}")),
    }
    seen.places.extend(Place::of_engine(info));
    // The newer builder is a part that not every client has.
    if let Ok(text) = told(command("docker", ["buildx", "inspect"])) {
        seen.places.extend(Place::of_builder(&text));
    }
}

fn take(
    seen: &mut Seen,
    notes: &mut Vec<String>,
    file: &Path,
    read: impl Fn(&str, &str) -> Result<Option<Place>, String>,
) {
    let source = file.display().to_string();
    match fs::read_to_string(file) {
        Ok(text) => match read(&source, &text) {
            Ok(place) => seen.places.extend(place),
            Err(error) => notes.push(error),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => notes.push(format!("read {source}: {error}")),
    }
}

fn of_image(image: &str) -> anyhow::Result<Vec<Baked>> {
    let text = told(command(
        "docker",
        [
            "image",
            "inspect",
            "--format",
            "{{json .Config.Env}}",
            "--",
            image,
        ],
    ))?;
    let variables: Option<Vec<String>> = serde_json::from_str(&text)?;
    Ok(baked_in_image(image, &variables.unwrap_or_default()))
}

/// Tries each proxy that a place names from here, and from inside a container where containers are told of it; then the URL.
fn reach(
    seen: &mut Seen,
    args: &DoctorArgs,
    env: &Environment,
    notes: &mut Vec<String>,
) -> anyhow::Result<()> {
    let mut wanted: Vec<(Target, bool)> = Vec::new();
    for place in &seen.places {
        for setting in place.proxies() {
            let Some(target) = &setting.target else {
                continue;
            };
            let is_inside = place.kind.is_for_containers() && !setting.is_loopback();
            match wanted.iter_mut().find(|(proxy, _)| proxy == target) {
                Some((_, inside)) => *inside |= is_inside,
                None => wanted.push((target.clone(), is_inside)),
            }
        }
    }
    let url = args.more.first().map(|url| without_user(url));
    let needs_container = url.is_some() || wanted.iter().any(|(_, inside)| *inside);
    let container = if needs_container {
        Some(Container::make(env))
    } else {
        None
    };
    let container = match container {
        Some(Err(error)) => {
            notes.push(format!("nothing was tried inside a container: {error:#}"));
            None
        }
        Some(Ok(container)) => Some(container),
        None => None,
    };
    let proxies: Vec<_> = wanted.iter().map(|(proxy, _)| proxy.clone()).collect();
    let outside = reach_from_here(&proxies, env)?;
    for ((proxy, is_inside), outside) in wanted.into_iter().zip(outside) {
        let proxy = proxy.to_string();
        let inside = match (&container, is_inside) {
            (Some(container), true) => match container.reaches(&proxy) {
                Ok(probe) => Some(probe),
                Err(error) => {
                    notes.push(format!(
                        "{proxy} was not tried inside a container: {error:#}"
                    ));
                    None
                }
            },
            _ => None,
        };
        seen.proxies.push(Reached {
            proxy,
            outside,
            inside,
        });
    }
    if let (Some(container), Some(url)) = (&container, url) {
        match container.examines(&url) {
            Ok(inside) => seen.inside = Some(inside),
            Err(error) => notes.push(format!("{url} was not tried inside a container: {error:#}")),
        }
    }
    Ok(())
}

/// The places as a table, and what was tried.
fn tell(page: &mut Page, seen: &Seen, notes: &[String]) {
    for kind in [
        Kind::Client,
        Kind::Builder,
        Kind::EngineFile,
        Kind::EngineUnit,
        Kind::Engine,
    ] {
        let mut places = seen
            .places
            .iter()
            .filter(|place| place.kind == kind)
            .peekable();
        if places.peek().is_none() && seen.engine.is_some() && kind != Kind::Builder {
            page.put(
                "place",
                Tone::Dim,
                &format!("{}: nothing is set", kind.as_str()),
            );
        }
        for place in places {
            let settings: Vec<_> = place
                .settings
                .iter()
                .map(|one| format!("{}={}", one.name, one.value))
                .collect();
            let text = format!(
                "{}: {} ({})",
                kind.as_str(),
                settings.join(" "),
                place.source
            );
            page.put("place", Tone::Plain, &text);
        }
    }
    for reached in &seen.proxies {
        let word = |probe: &Probe| probe.cause.clone().unwrap_or_else(|| "answers".to_owned());
        let inside = match &reached.inside {
            Some(probe) => word(probe),
            None => "not tried".to_owned(),
        };
        let text = format!(
            "{}: on this machine {}; inside a container {inside}",
            reached.proxy,
            word(&reached.outside)
        );
        page.put("seen", Tone::Plain, &text);
    }
    if let Some(inside) = &seen.inside {
        let text = format!("{} inside a container: {}", inside.url, inside.id);
        page.put("seen", Tone::Plain, &text);
    }
    for note in notes {
        page.put("note", Tone::Dim, note);
    }
}
