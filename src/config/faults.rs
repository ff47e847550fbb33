//! Faults: from what is written to what the routes carry, and which pairs make sense.

use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, StatusCode};

use super::chains::unknown;
use super::decode::{At, Named, clip};
use super::diag::{Findings, Place};
use super::raw::faults as raw;
use super::upstreams::{Routes, check_name};
use crate::cause::Alert;
use crate::policy::ByScheme;
use crate::policy::fault::{
    self, Act, Chance, Direction, Fault, Page, Point, Side, Verb, When, Window, WrongCert,
};

/// A day: who waits longer for a fault has forgotten it.
const LONGEST: Duration = Duration::from_hours(24);

/// The faults of a policy by name.
#[derive(Debug, Default)]
pub(super) struct Profiles(Vec<Profile>);

#[derive(Debug)]
struct Profile {
    name: At<String>,
    /// `None` where it has a mistake.
    fault: Option<Fault>,
    is_used: bool,
}

impl Profiles {
    /// Reads the `faults` section.
    pub(super) fn compile(
        raw: Option<&At<Named<At<raw::Fault>>>>,
        findings: &mut Findings<'_>,
    ) -> Self {
        let mut profiles = Vec::new();
        for (name, raw) in raw.iter().flat_map(|raw| raw.iter()) {
            check_name(name, "a fault", findings);
            if name.as_str() == "none" {
                let message = "`none` is what a test expects where there is no fault";
                findings.error(name.place, message);
            }
            profiles.push(Profile {
                name: name.clone(),
                fault: fault(name, raw, findings),
                is_used: false,
            });
        }
        Self(profiles)
    }

    /// The fault of a name, as somebody uses it; `None` where that was a mistake.
    fn find(&mut self, name: &At<String>, by: &str, findings: &mut Findings<'_>) -> Option<Fault> {
        let found = self
            .0
            .iter_mut()
            .find(|profile| profile.name.as_str() == name.as_str());
        let Some(profile) = found else {
            let names = self.0.iter().map(|profile| profile.name.as_str());
            if self.0.is_empty() {
                let message = format!("there is no fault `{}`", clip(name));
                let help = "describe it under `faults`, as in `faults: {name: {at: client_hello, do: reset}}`";
                findings.error(name.place, message).with_help(help);
            } else {
                unknown(name, "fault", names, findings);
            }
            return None;
        };
        profile.is_used = true;
        let by = by.into();
        profile.fault.clone().map(|fault| Fault { by, ..fault })
    }

    /// Warns of those that nothing uses.
    pub(super) fn tell_unused(&self, findings: &mut Findings<'_>) {
        for profile in self.0.iter().filter(|profile| !profile.is_used) {
            let message = format!("nothing uses the fault `{}`", clip(&profile.name));
            findings.warn(profile.name.place, message);
        }
    }
}

impl Routes {
    /// Puts faults in the way of a route, or of its hops. `by` is who wants them; `is_of_lab`, whether that speaks of hosts of
    /// a lab alone.
    pub(super) fn with_faults(
        &mut self,
        routes: ByScheme,
        uses: &raw::Uses,
        by: &str,
        is_of_lab: bool,
        findings: &mut Findings<'_>,
    ) -> ByScheme {
        let mut routes = routes;
        for (at, raw) in uses.iter().enumerate() {
            let Some(profile) = &raw.0.profile else {
                continue;
            };
            // Two uses in one place count each for itself.
            let by = match at {
                0 => by.to_owned(),
                at => format!("{by} ({})", at + 1),
            };
            let Some(fault) = self.profiles.find(profile, &by, findings) else {
                continue;
            };
            if fault.act.verb() == Verb::WrongCert && !is_of_lab {
                // A tunnel stays opaque: only who ends TLS can show a certificate.
                let name = clip(profile);
                let message = format!(
                    "`{name}` strikes hosts of a lab alone: any other server shows its own certificate"
                );
                let help = "name them in the rule, as in `match: {host: api.lab.test}`; `routecause lab` serves them";
                findings.error(profile.place, message).with_help(help);
                continue;
            }
            let hop = raw.0.hop.as_ref();
            if let (Some(hop), Point::Accept) = (hop, fault.at.point()) {
                let message = "`accept` comes before any hop";
                findings
                    .error(hop.place, message)
                    .with_help("leave `hop` out");
                continue;
            }
            let found = match hop {
                Some(name) => match self.hop(name, findings) {
                    Some(found) => Some(found),
                    None => continue,
                },
                None => None,
            };
            match self.wrap(routes, &fault, found) {
                Some(wrapped) => routes = wrapped,
                None => tell_misfit(&fault, profile, hop, findings),
            }
        }
        routes
    }
}

fn tell_misfit(
    fault: &Fault,
    profile: &At<String>,
    hop: Option<&At<String>>,
    findings: &mut Findings<'_>,
) {
    let name = clip(profile);
    let (place, message) = match (hop, fault.at.point(), fault.act.verb()) {
        (_, Point::UpstreamReply, _) => (
            profile.place,
            format!("`{name}` strikes nothing here: only an upstream has a reply"),
        ),
        (_, _, Verb::WrongCert) => (
            profile.place,
            format!("`{name}` strikes nothing here: a lab's own hosts are reached by `direct`"),
        ),
        (_, _, Verb::Answer) => (
            profile.place,
            format!("`{name}` strikes nothing here: only `direct` looks the target up itself"),
        ),
        (Some(hop), _, _) => (
            hop.place,
            format!("`{}` is no hop of this route", clip(hop)),
        ),
        (None, _, _) => (profile.place, format!("`{name}` strikes nothing here")),
    };
    findings.error(place, message);
}

pub(super) fn fault(
    name: &At<String>,
    raw: &At<raw::Fault>,
    findings: &mut Findings<'_>,
) -> Option<Fault> {
    let (raw_at, raw_do) = (raw.at.as_ref(), raw.r#do.as_ref());
    let at = raw_at.and_then(|at| point(at, findings));
    let act = raw_do.and_then(|verb| act(verb, raw.with.as_ref(), findings));
    let when = raw.when.as_ref().map(|raw| when(raw, findings));
    let (at, act) = (at?, act?);
    let (point, verb) = (at.point(), act.verb());
    let fit = point.acts();
    if !fit.contains(&verb) {
        let place = raw_do.map_or(name.place, |at| at.place);
        let message = format!(
            "`do: {}` makes no sense at {}",
            verb.as_str(),
            point.as_str()
        );
        let fit: Vec<_> = fit.iter().map(|verb| verb.as_str()).collect();
        let help = format!("what fits there: {}", fit.join(", "));
        findings.error(place, message).with_help(help);
        return None;
    }
    if let Act::Status(page) = &act {
        check_status(page, point, raw.with.as_ref(), findings);
    }
    Some(Fault {
        name: name.value.as_str().into(),
        by: "".into(),
        at,
        direction: direction(point, verb, raw, findings),
        side: side(point, verb, raw, findings),
        act,
        when: when.unwrap_or_default(),
    })
}

fn point(raw: &At<raw::Point>, findings: &mut Findings<'_>) -> Option<fault::At> {
    let measure = match &raw.value {
        raw::Point::Named(name) => {
            return Some(match name {
                raw::PointName::Accept => fault::At::Accept,
                raw::PointName::Dns => fault::At::Dns,
                raw::PointName::Connect => fault::At::Connect,
                raw::PointName::UpstreamReply => fault::At::UpstreamReply,
                raw::PointName::ClientHello => fault::At::ClientHello,
                raw::PointName::ServerHello => fault::At::ServerHello,
                raw::PointName::Request => fault::At::Request,
                raw::PointName::Response => fault::At::Response,
            });
        }
        raw::Point::Measured(measure) => measure,
    };
    match (&measure.bytes, &measure.idle) {
        (Some(bytes), None) => Some(fault::At::Bytes(bytes.0)),
        (None, Some(idle)) => {
            check_wait(idle.0, idle.place, findings);
            Some(fault::At::Idle(idle.0))
        }
        (None, None) if measure.has.len() == 1 => None, // and that one was told of
        (None, None) | (Some(_), Some(_)) => {
            findings.error(raw.place, "`at` is exactly one of `bytes` and `idle`");
            None
        }
    }
}

fn act(
    raw: &At<raw::Verb>,
    with: Option<&At<raw::With>>,
    findings: &mut Findings<'_>,
) -> Option<Act> {
    let verb = match raw.value {
        raw::Verb::Reset => Verb::Reset,
        raw::Verb::Close => Verb::Close,
        raw::Verb::Hang => Verb::Hang,
        raw::Verb::Delay => Verb::Delay,
        raw::Verb::NxDomain => Verb::NxDomain,
        raw::Verb::ServFail => Verb::ServFail,
        raw::Verb::Answer => Verb::Answer,
        raw::Verb::Refuse => Verb::Refuse,
        raw::Verb::Status => Verb::Status,
        raw::Verb::Alert => Verb::Alert,
        raw::Verb::NotTls => Verb::NotTls,
        raw::Verb::Throttle => Verb::Throttle,
        raw::Verb::Truncate => Verb::Truncate,
        raw::Verb::Corrupt => Verb::Corrupt,
        raw::Verb::WrongCert => Verb::WrongCert,
    };
    let (needs, may): (&[&str], &[&str]) = match verb {
        Verb::Answer => (&["ip"], &[]),
        Verb::Status => (&["status"], &["reason", "headers", "body"]),
        Verb::NotTls => (&[], &["status", "reason", "headers", "body"]),
        Verb::Alert => (&["alert"], &[]),
        Verb::Delay => (&["delay"], &["jitter"]),
        Verb::Throttle => (&["rate"], &[]),
        Verb::Truncate => (&[], &["bytes"]),
        Verb::Corrupt => (&[], &["bytes", "every"]),
        Verb::WrongCert => (&["certificate"], &[]),
        Verb::Reset | Verb::Close | Verb::Hang | Verb::NxDomain | Verb::ServFail | Verb::Refuse => {
            (&[], &[])
        }
    };
    let has = with.map_or(&[][..], |with| &with.has);
    let mut is_fit = true;
    for key in needs.iter().filter(|key| !has.contains(key)) {
        let message = format!("`do: {}` needs `with.{key}`", verb.as_str());
        findings.error(raw.place, message);
        is_fit = false;
    }
    let stray = |key: &&&str| !needs.contains(*key) && !may.contains(*key);
    if let (Some(key), Some(with)) = (has.iter().find(stray), with) {
        let message = format!("`{key}` does not go with `do: {}`", verb.as_str());
        let fit: Vec<_> = needs.iter().chain(may).copied().collect();
        let help = match fit.as_slice() {
            [] => "nothing does: leave `with` out".to_owned(),
            fit => format!("what does: {}", fit.join(", ")),
        };
        let place = with_place(with);
        findings.error(place, message).with_help(help);
        is_fit = false;
    }
    if !is_fit {
        return None;
    }
    let none = raw::With::default();
    let with = with.map_or(&none, |with| &with.value);
    Some(match verb {
        Verb::Reset => Act::Reset,
        Verb::Close => Act::Close,
        Verb::Hang => Act::Hang,
        Verb::NxDomain => Act::NxDomain,
        Verb::ServFail => Act::ServFail,
        Verb::Refuse => Act::Refuse,
        Verb::Answer => Act::Answer(with.ip.as_ref()?.iter().map(|ip| ip.0).collect()),
        Verb::Status => Act::Status(page(with, findings)?),
        Verb::NotTls => not_tls(with, findings)?,
        Verb::Alert => Act::Alert(alert(with.alert.as_ref()?, findings)?),
        Verb::WrongCert => Act::WrongCert(match with.certificate.as_ref()?.value {
            raw::Certificate::SelfSigned => WrongCert::SelfSigned,
            raw::Certificate::Expired => WrongCert::Expired,
            raw::Certificate::WrongName => WrongCert::WrongName,
            raw::Certificate::UnknownIssuer => WrongCert::UnknownIssuer,
            raw::Certificate::MissingIntermediate => WrongCert::MissingIntermediate,
        }),
        Verb::Delay => {
            let by = with.delay.as_ref()?;
            check_wait(by.0, by.place, findings);
            let jitter = with.jitter.as_ref().map_or(Duration::ZERO, |at| at.0);
            if let Some(at) = with.jitter.as_ref().filter(|at| at.0 > by.0) {
                let message = "the jitter is more than the delay itself";
                findings.error(at.place, message);
            }
            Act::Delay { by: by.0, jitter }
        }
        Verb::Throttle => {
            let rate = with.rate.as_ref()?;
            if rate.0 == 0 {
                let message = "nothing passes at 0 bytes a second";
                findings
                    .error(rate.place, message)
                    .with_help("write `do: hang`");
            }
            Act::Throttle(rate.0.max(1))
        }
        Verb::Truncate => Act::Truncate(with.bytes.as_ref().map_or(1, |bytes| bytes.0)),
        Verb::Corrupt => {
            if let Some(every) = with.every.as_ref().filter(|every| every.0 == 0) {
                findings.error(every.place, "every 0 bytes is no measure");
            }
            Act::Corrupt {
                from: with.bytes.as_ref().map_or(0, |bytes| bytes.0),
                every: with.every.as_ref().map(|every| every.0.max(1)),
            }
        }
    })
}

/// The beginning of `with`.
fn with_place(with: &At<raw::With>) -> Place {
    Place {
        end_line: with.place.line,
        end_column: if with.place.end_line == with.place.line {
            with.place.end_column
        } else {
            with.place.column + 1
        },
        ..with.place
    }
}

fn page(with: &raw::With, findings: &mut Findings<'_>) -> Option<Page> {
    let raw = with.status.as_ref()?;
    let status = u16::try_from(raw.0)
        .ok()
        .filter(|status| (200..=599).contains(status));
    let Some(status) = status.and_then(|status| StatusCode::from_u16(status).ok()) else {
        let message = format!("{} is no status of an answer", raw.0);
        findings.error(raw.place, message).with_help("200 to 599");
        return None;
    };
    let reason = with.reason.as_ref().map_or_else(
        || status.canonical_reason().unwrap_or_default().to_owned(),
        |reason| reason.value.clone(),
    );
    if let Some(at) = &with.reason
        && at.contains(|c: char| !c.is_ascii_graphic() && c != ' ')
    {
        let message = "a reason phrase is one line of printable ASCII";
        findings.error(at.place, message);
        return None;
    }
    let mut headers = Vec::new();
    for (name, value) in with.headers.iter().flat_map(|headers| headers.iter()) {
        match (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(value),
        ) {
            (Ok(field), _) if [CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION].contains(&field) => {
                let message = format!("`{field}` follows from the body");
                findings
                    .error(name.place, message)
                    .with_help("leave it out");
            }
            (Ok(field), Ok(value)) => headers.push((field, value)),
            (Err(_), _) | (_, Err(_)) => {
                findings.error(name.place, format!("`{}` is no header field", clip(name)));
            }
        }
    }
    Some(Page {
        status,
        reason,
        headers,
        body: with
            .body
            .as_ref()
            .map_or_else(String::new, |body| body.value.clone()),
    })
}

/// A page, or any text; what a plain HTTP server says of a ClientHello where neither is written.
fn not_tls(with: &raw::With, findings: &mut Findings<'_>) -> Option<Act> {
    let bytes = match (&with.status, &with.body) {
        (Some(_), _) => page(with, findings)?.bytes(),
        (None, Some(body)) => {
            let stray = [
                with.reason.as_ref().map(|at| at.place),
                with.headers.as_ref().map(|at| at.place),
            ];
            for place in stray.into_iter().flatten() {
                let message = "this belongs to a page, which needs a `status`";
                findings.error(place, message);
            }
            if body.is_empty() || body.starts_with(|c: char| ('\u{14}'..='\u{18}').contains(&c)) {
                let message = "this may be taken for TLS, or for nothing";
                findings.error(body.place, message);
            }
            body.as_bytes().to_vec()
        }
        (None, None) => {
            let status = StatusCode::BAD_REQUEST;
            let page = Page {
                status,
                reason: "Bad Request".to_owned(),
                headers: Vec::new(),
                body: "The plain HTTP request was sent to HTTPS port".to_owned(),
            };
            page.bytes()
        }
    };
    Some(Act::NotTls(bytes.into()))
}

fn alert(raw: &At<String>, findings: &mut Findings<'_>) -> Option<Alert> {
    let named = (0..=u8::MAX)
        .map(Alert)
        .find(|alert| alert.to_string() == raw.as_str());
    let alert = named.or_else(|| raw.parse().ok().map(Alert));
    if alert.is_none() {
        let names: Vec<String> = (0..=u8::MAX)
            .map(|number| Alert(number).to_string())
            .filter(|name| !name.starts_with("alert_"))
            .collect();
        unknown(raw, "TLS alert", names.iter().map(String::as_str), findings);
    }
    alert
}

/// A 2xx in the place of an answer to CONNECT would open a tunnel to nowhere.
fn check_status(
    page: &Page,
    point: Point,
    with: Option<&At<raw::With>>,
    findings: &mut Findings<'_>,
) {
    let may_be_success = matches!(point, Point::Request | Point::Response);
    if page.status.is_success()
        && !may_be_success
        && let Some(at) = with.and_then(|with| with.status.as_ref())
    {
        let message = format!(
            "{} would be the beginning of a tunnel",
            page.status.as_u16()
        );
        findings
            .error(at.place, message)
            .with_help("300 to 599, or `at: request`");
    }
}

fn direction(
    point: Point,
    verb: Verb,
    raw: &raw::Fault,
    findings: &mut Findings<'_>,
) -> Option<Direction> {
    let at = raw.direction.as_ref()?;
    let direction = match at.value {
        raw::Direction::Up => Direction::Up,
        raw::Direction::Down => Direction::Down,
        raw::Direction::Both => Direction::Both,
    };
    let is_open =
        point == Point::Bytes || point.is_on_wire() && matches!(verb, Verb::Hang | Verb::Throttle);
    let (verb, point) = (verb.as_str(), point.as_str());
    if !is_open {
        let message = format!("`{verb}` at {point} has one direction");
        findings
            .error(at.place, message)
            .with_help("leave `direction` out");
    } else if verb == "truncate" && direction == Direction::Both {
        let message = "a direction is truncated; the end of both is `do: close`";
        findings.error(at.place, message);
    }
    Some(direction)
}

fn side(point: Point, verb: Verb, raw: &raw::Fault, findings: &mut Findings<'_>) -> Option<Side> {
    let at = raw.side.as_ref()?;
    if !point.is_on_wire() || !matches!(verb, Verb::Reset | Verb::Close) {
        let (verb, point) = (verb.as_str(), point.as_str());
        let message = format!("`{verb}` at {point} has no sides");
        let help = "`side` is for `reset` and `close` of a connection that stands";
        findings.error(at.place, message).with_help(help);
    }
    Some(match at.value {
        raw::Side::Client => Side::Client,
        raw::Side::Server => Side::Server,
    })
}

fn when(raw: &raw::When, findings: &mut Findings<'_>) -> When {
    let mut count = |at: &Option<At<super::decode::Count>>| {
        let at = at.as_ref()?;
        if at.0 == 0 {
            findings.error(at.place, "connections are counted from 1 on");
        }
        Some(at.0.max(1))
    };
    let (first, nth, every) = (count(&raw.first), count(&raw.nth), count(&raw.every));
    let chance = raw.probability.as_ref().map(|probability| Chance {
        per_million: probability.0,
        seed: raw.seed.as_ref().map_or(0, |seed| seed.0),
    });
    if let (None, Some(seed)) = (&raw.probability, &raw.seed) {
        let message = "a `seed` without a `probability` is drawn from by nobody";
        findings.error(seed.place, message);
    }
    let window = raw.window.as_ref().map(|window| Window {
        start: window.start.as_ref().map_or(Duration::ZERO, |at| at.0),
        duration: window.duration.as_ref().map(|at| at.0),
    });
    When {
        first,
        nth,
        every,
        chance,
        window,
    }
}

fn check_wait(wait: Duration, place: Place, findings: &mut Findings<'_>) {
    if wait > LONGEST {
        let message = "a fault waits for a day at most";
        findings
            .error(place, message)
            .with_help("write `24h` or less");
    }
}
