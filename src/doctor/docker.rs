//! Docker and its proxies: what each place says, what answers from inside a container, and what that amounts to.
//!
//! Pure: [`places`] reads texts, [`judge`] is a table. Who asks the engine and starts a container stands above.

pub mod places;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::Verdict;
use super::facts::Probe;
use super::verdict::Certainty::{Certain, Medium, Strong};
use crate::target::Host;
use places::{Baked, Kind, Place, Setting};

/// From this version on the engine reads `proxies` of `daemon.json`.
const READS_PROXIES: u64 = 23;

/// Everything that was seen.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Seen {
    /// The engine's version; nothing where it does not answer.
    pub engine: Option<String>,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence: Option<String>,
    /// This machine's address on the bridge of containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The addresses of containers on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<IpNet>,
    /// The places that set proxies, the engine's own account among them.
    pub places: Vec<Place>,
    /// Lines of a Dockerfile, or variables of an image, that leave a proxy in what is built.
    pub baked: Vec<Baked>,
    /// The proxies that these places name, tried.
    pub proxies: Vec<Reached>,
    /// A URL, looked at from inside a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inside: Option<Inside>,
}

/// How a proxy is reached.
#[derive(Clone, Debug, Serialize)]
pub struct Reached {
    /// Host and port, as it is written.
    pub proxy: String,
    /// From this machine.
    pub outside: Probe,
    /// From inside a container, where one was started and the proxy is for containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inside: Option<Probe>,
}

/// What was found out inside a container about a URL, with the variables that Docker sets there.
#[derive(Clone, Debug, Serialize)]
pub struct Inside {
    /// The URL.
    pub url: String,
    /// The verdict's id there.
    pub id: String,
    /// Its sentence.
    pub sentence: String,
    /// What speaks for it.
    pub evidence: Vec<String>,
    /// Why the name is not found there; nothing where it is, or none was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
}

impl Seen {
    /// What a place says.
    fn of(&self, kind: Kind) -> Option<&Place> {
        self.places.iter().find(|place| place.kind == kind)
    }

    fn reached(&self, setting: &Setting) -> Option<&Reached> {
        let proxy = setting.target.as_ref()?.to_string();
        self.proxies.iter().find(|reached| reached.proxy == proxy)
    }

    /// Where containers find a proxy on this machine, and how it is made to listen there.
    fn on_the_bridge(&self, port: u16) -> (String, String) {
        let (Some(gateway), Some(subnet)) = (self.gateway, self.subnet) else {
            return (
                format!("http://host.docker.internal:{port}"),
                "let it listen on the bridge".to_owned(),
            );
        };
        let listen = format!(
            "let it listen there: routecause --listen 127.0.0.1:{port} --listen {gateway}:{port} --allow-from {subnet}"
        );
        (format!("http://{gateway}:{port}"), listen)
    }
}

/// Says what it amounts to. The first row that holds is the verdict.
pub fn judge(seen: &Seen) -> Verdict {
    let rows: [fn(&Seen) -> Option<Verdict>; 9] = [
        engine,
        unusable,
        loopback,
        unanswered,
        ignored,
        url,
        disagreement,
        baked,
        fine,
    ];
    let verdict = rows.iter().find_map(|row| row(seen));
    verdict.unwrap_or_else(|| {
        Verdict::new(
            "fine",
            Certain,
            "no place sets a proxy: Docker, its builds and its containers go straight",
        )
        .because(seen.inside.iter().map(told))
        .because([
            "daemon.json, the engine's unit, the client's config.json and the builder say nothing"
                .to_owned(),
        ])
        .mend_if(
            seen.inside.is_none(),
            "name a URL to see whether containers reach it: routecause doctor docker URL",
        )
    })
}

fn told(inside: &Inside) -> String {
    format!("inside a container: {} ({})", inside.sentence, inside.id)
}

fn engine(seen: &Seen) -> Option<Verdict> {
    let silence = seen.silence.as_deref()?;
    let lower = silence.to_lowercase();
    let verdict = |id, sentence: &str| Verdict::new(id, Certain, sentence);
    let verdict = if lower.contains("permission denied") {
        verdict(
            "engine_forbidden",
            "this user may not speak to Docker's engine",
        )
        .mend("run it as a user of the group docker, or with sudo")
    } else if lower.contains("run docker") {
        verdict("no_docker", "there is no command docker here")
            .mend("run this where Docker's client is")
    } else {
        verdict("engine_down", "Docker's engine does not answer")
            .mend("systemctl status docker; where it is elsewhere, look at DOCKER_HOST and docker context ls")
    };
    Some(verdict.because([silence.to_owned()]))
}

/// A value that names no proxy.
fn unusable(seen: &Seen) -> Option<Verdict> {
    let (place, setting, problem) = seen.places.iter().find_map(|place| {
        let setting = place
            .settings
            .iter()
            .find(|setting| setting.problem.is_some())?;
        Some((place, setting, setting.problem.as_deref()?))
    })?;
    Some(
        Verdict::new(
            "proxy_unusable",
            Certain,
            format!("{} names no proxy that can be used", setting.name),
        )
        .because([format!(
            "{}: {}={}: {problem}",
            place.source, setting.name, setting.value
        )])
        .mend(format!("write http://HOST:PORT there: {}", place.source)),
    )
}

/// Loopback of a container is the container.
fn loopback(seen: &Seen) -> Option<Verdict> {
    let (place, setting) = seen.places.iter().find_map(|place| {
        let is_inside = place.kind.is_for_containers();
        let setting = place.proxies().find(|setting| setting.is_loopback())?;
        is_inside.then_some((place, setting))
    })?;
    let port = setting.target.as_ref()?.port;
    let (url, listen) = seen.on_the_bridge(port);
    let outside = seen
        .reached(setting)
        .map(|reached| reached.outside.is_fine());
    let verdict = Verdict::new(
        "proxy_on_containers_loopback",
        Certain,
        format!(
            "{} sends containers to {}, which inside a container is the container itself",
            place.source, setting.value
        ),
    )
    .because([format!("{}={}", setting.name, setting.value)])
    .mend(format!("write {url} there, and {listen}"));
    Some(match outside {
        Some(true) => verdict.because(["on this machine the proxy answers".to_owned()]),
        Some(false) => verdict.because(["it does not answer on this machine either".to_owned()]),
        None => verdict,
    })
}

/// A proxy that is named and not there, for this machine or for containers.
fn unanswered(seen: &Seen) -> Option<Verdict> {
    seen.proxies.iter().find_map(|reached| {
        let proxy = &reached.proxy;
        let told = |place: &str, probe: &Probe| match (&probe.cause, &probe.message) {
            (Some(cause), Some(message)) => format!("{place}: {cause}: {message}"),
            (Some(cause), None) => format!("{place}: {cause}"),
            (None, _) => format!("{place}: it answers"),
        };
        let (outside, inside) = (&reached.outside, reached.inside.as_ref());
        let evidence = [("on this machine", Some(outside)), ("inside a container", inside)]
            .into_iter()
            .filter_map(|(place, probe)| Some(told(place, probe?)));
        let says = seen.places.iter().filter(|place| {
            place.proxies().any(|setting| setting.target.as_ref().is_some_and(|target| target.to_string() == *proxy))
        });
        let says = says.map(|place| format!("named by {}", place.source));
        match (outside.is_fine(), inside.map(Probe::is_fine)) {
            (_, Some(true)) | (true, None) => None,
            (false, Some(false) | None) => Some(
                Verdict::new("proxy_down", Certain, format!("nothing answers at {proxy}, which Docker is told to use"))
                    .because(evidence)
                    .because(says)
                    .mend("start that proxy, or write the address at which it is"),
            ),
            (true, Some(false)) => {
                let is_name = inside.is_some_and(|probe| probe.failed_of("dns."));
                Some(if is_name {
                    Verdict::new("proxy_name_unknown_inside", Certain, format!("containers do not find the name of {proxy}, this machine does"))
                        .because(evidence)
                        .because(says)
                        .mend("write its address, or give the engine a name server that knows it: \"dns\" in daemon.json")
                } else {
                    Verdict::new("proxy_unreachable_from_bridge", Certain, format!("{proxy} answers this machine and not its containers"))
                        .because(evidence)
                        .because(says)
                        .mend(format!(
                            "a firewall stands between ({}), or the proxy listens elsewhere, or takes no clients of the bridge: --allow-from",
                            seen.gateway.map_or_else(|| "iptables -L INPUT".to_owned(), |gateway| format!("iptables -L INPUT; the bridge is {gateway}"))
                        ))
                })
            }
        }
    })
}

/// What the engine runs with is not what its files say.
fn ignored(seen: &Seen) -> Option<Verdict> {
    let running = seen.of(Kind::Engine);
    let version = seen.engine.as_deref().unwrap_or_default();
    let major: Option<u64> = version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok());
    let is_old = major.is_some_and(|major| major < READS_PROXIES);
    let (file, unit) = (seen.of(Kind::EngineFile), seen.of(Kind::EngineUnit));
    if let (Some(file), true) = (file, is_old)
        && file.proxies().next().is_some()
    {
        return Some(
            Verdict::new("engine_too_old_for_its_file", Certain, format!("Engine {version} does not read the proxies of {}", file.source))
                .because(file.told())
                .because([format!("it does from {READS_PROXIES} on")])
                .mend("set them in its unit: routecause env --for systemd --unit docker --write, then systemctl daemon-reload && systemctl restart docker"),
        );
    }
    let wanted = |name: &str| {
        let of = |place: Option<&Place>| place?.value(name).map(str::to_owned);
        of(file).or_else(|| of(unit))
    };
    let stale = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"]
        .into_iter()
        .find_map(|name| {
            let wanted = wanted(name)?;
            let runs = running.and_then(|place| place.value(name));
            (runs != Some(&*wanted)).then(|| (name, wanted, runs.map(str::to_owned)))
        });
    let (name, wanted, runs) = stale?;
    let source = [file, unit]
        .into_iter()
        .flatten()
        .find(|place| place.value(name).is_some())?;
    Some(
        Verdict::new(
            "engine_runs_with_other_settings",
            Certain,
            format!("the engine runs with another {name} than its settings say"),
        )
        .because([
            format!("{}: {name}={wanted}", source.source),
            format!(
                "docker info: {}",
                runs.map_or_else(|| format!("no {name}"), |runs| format!("{name}={runs}"))
            ),
        ])
        .mend("systemctl daemon-reload && systemctl restart docker"),
    )
}

/// The URL that was asked for does not work inside.
fn url(seen: &Seen) -> Option<Verdict> {
    let inside = seen.inside.as_ref().filter(|inside| inside.id != "fine")?;
    let client = seen
        .of(Kind::Client)
        .filter(|place| place.proxies().next().is_some());
    let verdict = Verdict::new(
        "fails_inside_containers",
        Strong,
        format!(
            "{} does not work inside a container: {}",
            inside.url, inside.sentence
        ),
    )
    .because([format!("the doctor's verdict in there: {}", inside.id)])
    .because(inside.evidence.iter().cloned());
    let verdict = match &inside.dns {
        Some(dns) => verdict.but(format!("names inside: {dns}")),
        None => verdict,
    };
    Some(match client {
        Some(place) => verdict.but(format!("it was tried with the proxy of {}", place.source)),
        None => verdict.mend(
            "if only a proxy leads out here, give it to containers and builds: routecause env --for docker-client --write",
        ),
    })
}

/// The places name different proxies, or only some name one.
fn disagreement(seen: &Seen) -> Option<Verdict> {
    let first = |kind: Kind| {
        let place = seen.of(kind)?;
        Some((place, place.proxies().next()?))
    };
    let told = |(place, setting): &(&Place, &Setting)| {
        format!("{}: {}={}", place.source, setting.name, setting.value)
    };
    let engine = first(Kind::Engine);
    let inside = first(Kind::Client).or_else(|| first(Kind::Builder));
    match (engine, inside) {
        (Some(engine), None) => Some(
            Verdict::new(
                "places_disagree",
                Medium,
                "pulls go by a proxy, builds and containers go straight",
            )
            .because([
                told(&engine),
                "the client's config.json names no proxy".to_owned(),
            ])
            .mend("routecause env --for docker-client --write"),
        ),
        (None, Some(inside)) => Some(
            Verdict::new(
                "places_disagree",
                Medium,
                "builds and containers go by a proxy, pulls (docker pull, FROM) go straight",
            )
            .because([told(&inside), "docker info names no proxy".to_owned()])
            .mend("routecause env --for docker-daemon --write, then systemctl restart docker"),
        ),
        (Some(engine), Some(inside)) if !is_same(engine.1, inside.1, seen.gateway) => Some(
            Verdict::new(
                "places_disagree",
                Medium,
                "pulls go by one proxy, builds and containers by another",
            )
            .because([told(&engine), told(&inside)])
            .mend("if that is not meant, write the same in both places"),
        ),
        (Some(_), Some(_)) | (None, None) => None,
    }
}

/// Whether two settings mean one proxy: what is loopback on this machine has the gateway's address inside.
fn is_same(outside: &Setting, inside: &Setting, gateway: Option<IpAddr>) -> bool {
    let (Some(there), Some(here)) = (&outside.target, &inside.target) else {
        return false;
    };
    let is_host = match &here.host {
        Host::Ip(ip) => Some(*ip) == gateway,
        Host::Name(name) => &**name == "host.docker.internal",
    };
    there == here || there.port == here.port && outside.is_loopback() && is_host
}

fn baked(seen: &Seen) -> Option<Verdict> {
    let first = seen.baked.first()?;
    Some(
        Verdict::new("proxy_baked_in", Certain, format!("{} leaves a proxy in the image: whoever runs it elsewhere looks for that proxy", first.place))
            .because(seen.baked.iter().map(|baked| format!("{}: {}", baked.place, baked.line)))
            .mend("take ENV away: HTTP_PROXY and its like are build arguments that every build knows, --build-arg HTTP_PROXY=…"),
    )
}

/// The places that name a proxy agree, and it answers.
fn fine(seen: &Seen) -> Option<Verdict> {
    let setting = seen
        .places
        .iter()
        .find_map(|place| place.proxies().next())?;
    let verdict = Verdict::new(
        "fine",
        Certain,
        format!("Docker's places agree on {}, and it answers", setting.value),
    )
    .because(seen.inside.iter().map(told))
    .because(seen.places.iter().flat_map(Place::told));
    let is_seen_inside = seen.proxies.iter().any(|reached| reached.inside.is_some());
    Some(if is_seen_inside {
        verdict
    } else {
        verdict.but("no container was started: whether it answers from the bridge was not seen")
    })
}

#[cfg(test)]
mod tests;
