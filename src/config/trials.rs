//! The `tests` of a policy: what it must decide, run at every load.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use jiff::Timestamp;

use super::chains::unknown;
use super::check::{self, Context};
use super::clients;
use super::decode::{At, clip, nearest};
use super::diag::{Diagnostic, Findings, Place};
use super::env::Environment;
use super::matchers;
use super::raw;
use crate::client::{Claim, Client};
use crate::policy::clients::Role;
use crate::policy::explain::{Does, Explanation, Injected, explain};
use crate::policy::flight::Flight;
use crate::policy::matcher::Matcher;
use crate::policy::{Lookup, Needs, Policy, Query, Scheme};
use crate::target::Target;

/// A test of a policy, ready to run.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What is asked, as in `CONNECT git.corp.example:443`.
    pub name: String,
    /// The policy under the environment of this test.
    policy: Arc<Policy>,
    client: Client,
    claim: Claim,
    scheme: Scheme,
    method: Method,
    target: Target,
    path: Option<String>,
    headers: Option<HeaderMap>,
    addresses: Option<Vec<IpAddr>>,
    flight: Flight,
    now: Option<Timestamp>,
    expect: Expected,
    /// What a failure is told with.
    diagnostic: Diagnostic,
}

/// What must come of a test.
#[derive(Clone, Debug, Default)]
struct Expected {
    rule: Option<String>,
    action: Option<Does>,
    route: Option<String>,
    would: Option<String>,
    reason: Option<String>,
    status: Option<u16>,
    code: Option<String>,
    /// Names with commas, or `none`.
    fault: Option<String>,
    user: Option<String>,
    label: Option<String>,
    roles: Vec<String>,
}

/// What came of a test.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was asked.
    pub name: String,
    /// What was decided.
    pub explanation: Explanation,
    /// Expected against got, at the test's place; `None` where it passed.
    pub failure: Option<Diagnostic>,
}

impl Outcome {
    /// Whether the policy decided as expected.
    pub fn passed(&self) -> bool {
        self.failure.is_none()
    }
}

impl Trial {
    /// Runs the test. Reads nothing, dials nothing.
    pub fn run(&self, now: Timestamp) -> Outcome {
        let explanation = self.explain(now);
        Outcome {
            name: self.name.clone(),
            failure: self.compare(&explanation),
            explanation,
        }
    }

    /// What is asked, with nothing found out yet.
    fn query(&self, now: Timestamp) -> Query<'_> {
        Query {
            client: &self.client,
            claim: &self.claim,
            scheme: self.scheme,
            method: &self.method,
            target: &self.target,
            path: self.path.as_deref(),
            headers: self.headers.as_ref(),
            is_here: None,
            addresses: None,
            first_flight: None,
            now: self.now.unwrap_or(now),
        }
    }

    fn explain(&self, now: Timestamp) -> Explanation {
        let pinned = self
            .target
            .host
            .name()
            .and_then(|name| self.policy.pinned(name));
        let addresses = self.addresses.as_deref().or(pinned);
        let lookup = addresses.map_or(Lookup::Failed, Lookup::Found);
        let mut query = self.query(now);
        let mut explanation = loop {
            match explain(&self.policy, &query) {
                Ok(explanation) => break explanation,
                // A test comes out the same on every machine.
                Err(Needs::Machine) => query.is_here = Some(false),
                Err(Needs::Addresses) => query.addresses = Some(lookup),
                Err(Needs::FirstFlight) => query.first_flight = Some(&self.flight),
            }
        };
        // The guards look once more at what is about to be dialled.
        if let (Does::Direct, Some(addresses)) = (explanation.decision.action, addresses) {
            let admit = |ip: &IpAddr| {
                let address = SocketAddr::new(*ip, self.target.port);
                self.policy.guards.admit(address, &self.client, |_| false)
            };
            let refused = addresses.iter().map(admit).collect::<Vec<_>>();
            if let (false, Some(Err(guard))) = (refused.iter().any(Result::is_ok), refused.first())
            {
                let decision = &mut explanation.decision;
                decision.action = Does::Block;
                guard.name().clone_into(&mut decision.rule);
                (decision.source, decision.route) = (None, None);
                decision.status = Some(403);
            }
        }
        explanation
    }

    fn compare(&self, explanation: &Explanation) -> Option<Diagnostic> {
        let (asked, got) = (&explanation.request, &explanation.decision);
        let word = |does: Does| match does {
            Does::Direct => "direct",
            Does::Via => "via",
            Does::Block => "block",
        };
        let expect = &self.expect;
        let status = |status: Option<u16>| status.map(|status| status.to_string());
        let pairs = [
            ("rule", expect.rule.clone(), Some(got.rule.clone())),
            (
                "action",
                expect.action.map(word).map(str::to_owned),
                Some(word(got.action).to_owned()),
            ),
            ("route", expect.route.clone(), got.route.clone()),
            ("would", expect.would.clone(), got.would.clone()),
            ("reason", expect.reason.clone(), got.reason.clone()),
            ("status", status(expect.status), status(got.status)),
            ("code", expect.code.clone(), got.code.clone()),
            ("fault", expect.fault.clone(), Some(names_of(&got.faults))),
            ("user", expect.user.clone(), asked.user.clone()),
            ("label", expect.label.clone(), asked.label.clone()),
        ];
        let lacks = (expect.roles.iter()).filter(|role| !asked.roles.contains(role));
        let lacks = lacks.map(|role| format!("the client has no role {role}"));
        let differ = pairs.iter().filter_map(|(key, expected, got)| {
            let expected = expected.as_ref().filter(|_| expected != got)?;
            let got = got.as_deref().unwrap_or("none");
            Some(format!("{key} is {got}, expected {expected}"))
        });
        let differ: Vec<_> = differ.chain(lacks).collect();
        if differ.is_empty() {
            return None;
        }
        let mut diagnostic = self.diagnostic.clone();
        diagnostic.message = format!("test {}: {}", self.name, differ.join("; "));
        let by = got
            .source
            .as_ref()
            .map(|source| format!(" ({source})"))
            .unwrap_or_default();
        let mut help = format!("`{}`{by} decided", got.rule);
        let expected = explanation
            .passed
            .iter()
            .find(|p| Some(&p.rule) == expect.rule.as_ref());
        if let Some(passed) = expected {
            help = format!("`{}` was passed over: {}\n{help}", passed.rule, passed.why);
        }
        diagnostic.help = Some(help);
        Some(diagnostic)
    }
}

/// The names of faults, with commas.
fn names_of(faults: &[Injected]) -> String {
    let mut names: Vec<&str> = faults.iter().map(|fault| &*fault.name).collect();
    names.dedup();
    let names = if names.is_empty() {
        vec!["none"]
    } else {
        names
    };
    names.join(", ")
}

/// Makes the tests of a policy without mistakes ready to run.
pub(super) fn check(
    raw: &raw::Policy,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Vec<Trial> {
    // Most tests share the empty environment, and with it one policy.
    let mut policies: Vec<(Environment, Arc<Policy>)> = Vec::new();
    let mut trials = Vec::new();
    for test in raw.tests.iter().flat_map(|tests| tests.iter()) {
        let variables = test.env.iter().flat_map(|env| env.iter());
        let environment: Environment = variables
            .map(|(name, value)| (name.value.as_str(), value.as_str()))
            .collect();
        let known = policies.iter().find(|(of, _)| *of == environment);
        let policy = if let Some((_, policy)) = known {
            Arc::clone(policy)
        } else {
            let place = test.env.as_ref().map_or(test.place, |env| env.place);
            let policy = Arc::new(compile(raw, &environment, place, context, findings));
            policies.push((environment, Arc::clone(&policy)));
            policy
        };
        trials.extend(trial(test, policy, context, findings));
    }
    trials
}

/// The policy under the environment of a test. It is known to be free of mistakes of its own.
fn compile(
    raw: &raw::Policy,
    environment: &Environment,
    place: Place,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Policy {
    let context = Context {
        environment,
        secrets: None,
        ..*context
    };
    let mut own = findings.aside();
    let policy = check::policy(raw, &context, &mut own);
    if own.has_errors() {
        let errors = own.finish().into_iter().filter(Diagnostic::is_error);
        errors.for_each(|error| {
            findings.error(place, error.message);
        });
    }
    policy
}

fn trial(
    test: &At<raw::trials::Test>,
    policy: Arc<Policy>,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Option<Trial> {
    let head = test
        .connect
        .as_ref()
        .or(test.get.as_ref())
        .map_or(test.place, |at| at.place);
    let (scheme, target, path, place) = match (&test.connect, &test.get) {
        (Some(connect), None) => {
            let target = Target::from_authority(connect)
                .map_err(|error| findings.error(connect.place, error.to_string()));
            (Scheme::Connect, target.ok()?, None, connect.place)
        }
        (None, Some(get)) => {
            let (target, path) = url(get, findings)?;
            (Scheme::Http, target, Some(path), get.place)
        }
        (Some(_), Some(_)) | (None, None) => {
            let message = "a test asks for one thing: `connect: host:port` or `get: http://…`";
            findings.error(head, message);
            return None;
        }
    };
    if scheme == Scheme::Connect {
        let fields = [
            test.method.as_ref().map(|at| at.place),
            test.headers.as_ref().map(|at| at.place),
        ];
        for place in fields.into_iter().flatten() {
            findings.error(
                place,
                "a tunnel shows neither method nor headers; ask with `get`",
            );
        }
    }
    let method = match (&test.method, scheme) {
        (Some(name), _) => matchers::method(name, findings)?,
        (None, Scheme::Connect) => Method::CONNECT,
        (None, Scheme::Http) => Method::GET,
    };
    let path_text = path.as_deref().unwrap_or_default();
    let shown = match scheme {
        Scheme::Connect => format!("CONNECT {target}"),
        Scheme::Http => format!("{method} http://{target}{path_text}"),
    };
    let roles = named_roles(test, context, findings);
    let (client, claim) = client(test, &roles, &policy, context);
    let flight = flight(test, scheme, &target, findings);
    let trial = Trial {
        name: clip(&shown),
        client,
        claim,
        scheme,
        method,
        target,
        path,
        headers: (scheme == Scheme::Http).then(|| headers(test, findings)),
        addresses: test
            .addresses
            .as_ref()
            .map(|list| list.iter().map(|at| at.0).collect()),
        flight,
        now: test.now.as_ref().map(|now| now.0),
        expect: expected(test.expect.as_ref()?, &policy, context, findings),
        policy,
        diagnostic: findings.draft(place),
    };
    let query = trial.query(Timestamp::UNIX_EPOCH);
    for (name, role) in &roles {
        if !clients::has_role(role, &query) {
            let message = format!(
                "the client of this test does not have role `{}`",
                clip(name)
            );
            let help =
                "say what the role asks for: its label, its address, its user or its listener";
            findings.error(name.place, message).with_help(help);
        }
    }
    Some(trial)
}

/// The roles that a test's client is to have.
fn named_roles<'t>(
    test: &'t raw::trials::Test,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Vec<(&'t At<String>, Arc<Role>)> {
    let names = test
        .client
        .as_ref()
        .and_then(|client| client.0.role.as_ref());
    let names = names.iter().flat_map(|names| names.iter());
    names
        .filter_map(|name| Some((name, clients::role(name, context.clients, findings)?)))
        .collect()
}

/// The client of a test: as it is written, and where nothing is, as its roles ask.
fn client(
    test: &raw::trials::Test,
    roles: &[(&At<String>, Arc<Role>)],
    policy: &Policy,
    context: &Context<'_>,
) -> (Client, Claim) {
    let mut ip = None;
    let mut claim = Claim::NONE;
    let mut listener = None;
    for (_, role) in roles {
        let Matcher::All(parts) = &role.matcher else {
            continue;
        };
        for part in parts {
            if let Matcher::Client(nets) = part {
                ip = ip.or(nets.first().map(ipnet::IpNet::addr));
            } else if let Matcher::User(users) = part {
                claim.user = claim.user.or(users.first().cloned());
            } else if let Matcher::Label(patterns) = part {
                let fits = patterns.written().iter().find_map(|pattern| {
                    let example = pattern.replace(['*', '?'], "x");
                    patterns.contain(&example).then(|| example.into())
                });
                claim.label = claim.label.or(fits);
            } else if let Matcher::Listener(names) = part {
                listener = listener.or(names.first().cloned());
            }
        }
    }
    if let Some(raw) = test.client.as_ref().map(|client| &client.0) {
        ip = raw.cidr.as_ref().map(|net| net.0.addr()).or(ip);
        if let Some(name) = &raw.user {
            let given = Claim::of(name, policy.labels);
            claim.user = given.user;
            claim.label = given.label.or(claim.label);
        }
        if let Some(label) = &raw.label {
            claim.label = Some(label.as_str().into());
        }
        if let Some(name) = &raw.listener {
            listener = Some(name.as_str().into());
        }
    }
    claim.is_proven = claim.user.is_some() && policy.proves_users;
    let client = Client {
        peer: SocketAddr::new(ip.unwrap_or(Ipv4Addr::LOCALHOST.into()), 40000),
        local: context.address_of(listener.as_deref()),
        listener: listener
            .or(context.listeners.written.first().cloned())
            .unwrap_or_else(|| "proxy".into()),
    };
    (client, claim)
}

/// What comes first in the tunnel of a test.
fn flight(
    test: &raw::trials::Test,
    scheme: Scheme,
    target: &Target,
    findings: &mut Findings<'_>,
) -> Flight {
    let written = [
        test.sni.as_ref().map(|at| at.place),
        test.alpn.as_ref().map(|at| at.place),
        test.proto.as_ref().map(|at| at.place),
    ];
    let Some(first) = written.into_iter().flatten().next() else {
        return Flight::usual(target);
    };
    if scheme == Scheme::Http {
        findings.error(
            first,
            "a plain request has no first flight; ask with `connect`",
        );
    }
    let proto = test.proto.as_ref().map(|proto| proto.value);
    let is_tls = matches!(proto, None | Some(raw::matchers::Proto::Tls));
    if let (false, [Some(place), _, _] | [None, Some(place), _]) = (is_tls, written) {
        findings.error(place, "only TLS has SNI and ALPN");
    }
    match proto {
        None | Some(raw::matchers::Proto::Tls) => {
            let alpn = test.alpn.iter().flat_map(|alpn| alpn.iter());
            Flight::tls(
                test.sni.as_ref().map(|name| name.as_str()),
                alpn.map(|protocol| protocol.as_str()),
            )
        }
        Some(raw::matchers::Proto::Http) => Flight::Http,
        Some(raw::matchers::Proto::Ssh) => Flight::Ssh,
        Some(raw::matchers::Proto::Other) => Flight::Other,
    }
}

/// The target and path of a plain request.
fn url(get: &At<String>, findings: &mut Findings<'_>) -> Option<(Target, String)> {
    if !get.contains("://") {
        let host = if get.starts_with('/') { "host" } else { "" };
        let path = if get.contains('/') { "" } else { "/" };
        let message = format!("`{}` is no URL", clip(get));
        let help = format!("write `http://{host}{}{path}`", clip(get));
        findings.error(get.place, message).with_help(help);
        return None;
    }
    let problem = match get.parse::<Uri>() {
        Err(error) => format!("`{}` is no URL: {error}", clip(get)),
        Ok(uri) if uri.scheme_str() == Some("https") => {
            let host = uri
                .authority()
                .map(|a| a.host().to_owned())
                .unwrap_or_default();
            let help = format!("write `connect: \"{host}:443\"`");
            let message = "a proxy sees an https URL as a tunnel";
            findings.error(get.place, message).with_help(help);
            return None;
        }
        Ok(uri) => match Target::from_absolute(&uri) {
            Ok(target) => {
                let path = uri.path_and_query().map_or("/", |path| path.as_str());
                return Some((target, path.to_owned()));
            }
            Err(error) => error.to_string(),
        },
    };
    findings.error(get.place, problem);
    None
}

fn headers(test: &raw::trials::Test, findings: &mut Findings<'_>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in test.headers.iter().flat_map(|headers| headers.iter()) {
        match (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(value),
        ) {
            (Ok(name), Ok(value)) => {
                map.append(name, value);
            }
            (Err(_), _) | (_, Err(_)) => {
                findings.error(name.place, format!("`{}` is no header field", clip(name)));
            }
        }
    }
    map
}

fn expected(
    raw: &At<raw::trials::Expect>,
    policy: &Policy,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Expected {
    const GUARDS: [&str; 8] = [
        "guards.loopback",
        "guards.link_local",
        "guards.private",
        "guards.connect_ports",
        "guards.special",
        "guards.own",
        "guards.sni_mismatch",
        "never_ports",
    ];
    let rules = || {
        policy
            .rules
            .iter()
            .map(|rule| &*rule.name)
            .chain(["default"])
            .chain(GUARDS)
    };
    let routes = || policy.routes.iter().map(|route| &*route.name);
    // A test that names what is not there can never pass, and a typo in `would` could hide in that.
    let mut known = |at: &Option<At<String>>, what: &str, names: Vec<&str>| {
        let at = at.as_ref()?;
        if !names.contains(&at.as_str()) {
            let diagnostic = findings.error(at.place, format!("there is no {what} `{}`", clip(at)));
            if let Some(near) = nearest(at, names) {
                diagnostic.with_help(format!("did you mean `{near}`?"));
            }
        }
        Some(at.value.clone())
    };
    let this = Expected {
        rule: known(&raw.rule, "rule", rules().collect()),
        would: known(&raw.would, "rule", rules().collect()),
        route: match &raw.route {
            // Upstreams from the environment are routes only where a variable is set.
            Some(route) if policy.routes.len() == 1 => Some(route.value.clone()),
            route => known(route, "route", routes().collect()),
        },
        action: raw.action.as_ref().map(|action| match action.value {
            raw::trials::ExpectAction::Direct => Does::Direct,
            raw::trials::ExpectAction::Via => Does::Via,
            raw::trials::ExpectAction::Block => Does::Block,
        }),
        reason: raw.reason.as_ref().map(|reason| reason.value.clone()),
        status: raw
            .status
            .as_ref()
            .map(|status| u16::try_from(status.0).unwrap_or(u16::MAX)),
        code: raw.code.as_ref().map(|code| code.value.clone()),
        fault: raw.fault.as_ref().map(|names| {
            let known = || policy.faults().into_iter().chain(["none"]);
            for name in names
                .iter()
                .filter(|name| !known().any(|one| one == name.as_str()))
            {
                unknown(name, "fault at work", known(), findings);
            }
            let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
            names.join(", ")
        }),
        user: (raw.client.as_ref()).and_then(|client| Some(client.user.as_ref()?.value.clone())),
        label: (raw.client.as_ref()).and_then(|client| Some(client.label.as_ref()?.value.clone())),
        roles: (raw.client.iter())
            .flat_map(|client| client.role.iter().flat_map(|names| names.iter()))
            .filter_map(|name| clients::role(name, context.clients, findings))
            .map(|role| role.name.to_string())
            .collect(),
    };
    let is_empty = this.rule.is_none()
        && this.action.is_none()
        && this.route.is_none()
        && this.fault.is_none()
        && raw.client.is_none()
        && this.would.is_none();
    if is_empty && this.reason.is_none() && this.status.is_none() && this.code.is_none() {
        findings.error(raw.place, "this expects nothing, so it always passes");
    }
    this
}
