//! The `tests` of a policy: what it must decide, run at every load.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use jiff::Timestamp;

use super::check::{self, Context};
use super::decode::{At, clip, nearest};
use super::diag::{Diagnostic, Findings, Place};
use super::env::Environment;
use super::matchers;
use super::raw;
use crate::client::Client;
use crate::policy::explain::{Does, Explanation, explain};
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
    scheme: Scheme,
    method: Method,
    target: Target,
    path: Option<String>,
    headers: Option<HeaderMap>,
    addresses: Option<Vec<IpAddr>>,
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

    fn explain(&self, now: Timestamp) -> Explanation {
        let pinned = self
            .target
            .host
            .name()
            .and_then(|name| self.policy.pinned(name));
        let addresses = self.addresses.as_deref().or(pinned);
        let lookup = addresses.map_or(Lookup::Failed, Lookup::Found);
        let mut query = Query {
            client: &self.client,
            scheme: self.scheme,
            method: &self.method,
            target: &self.target,
            path: self.path.as_deref(),
            headers: self.headers.as_ref(),
            addresses: None,
            now: self.now.unwrap_or(now),
        };
        let mut explanation = match explain(&self.policy, &query) {
            Ok(explanation) => explanation,
            Err(Needs::Addresses) => {
                query.addresses = Some(lookup);
                explain(&self.policy, &query).unwrap_or_else(|_| unreachable!("the fact is there"))
            }
        };
        // The guards look once more at what is about to be dialled.
        if let (Does::Direct, Some(addresses)) = (explanation.decision.action, addresses) {
            let admit = |ip: &IpAddr| {
                let address = SocketAddr::new(*ip, self.target.port);
                self.policy.guards.admit(address, &self.client)
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
        let got = &explanation.decision;
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
        ];
        let differ = pairs.iter().filter_map(|(key, expected, got)| {
            let expected = expected.as_ref().filter(|_| expected != got)?;
            let got = got.as_deref().unwrap_or("none");
            Some(format!("{key} is {got}, expected {expected}"))
        });
        let differ: Vec<_> = differ.collect();
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
        trials.extend(trial(test, policy, findings));
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
    let mut own = Findings::new(Arc::clone(findings.file()), "");
    let policy = check::policy(raw, &context, &mut own);
    if own.has_errors() {
        let errors = own.finish().into_iter().filter(Diagnostic::is_error);
        errors.for_each(|error| {
            findings.error(place, error.message);
        });
    }
    policy
}

fn trial(test: &At<raw::Test>, policy: Arc<Policy>, findings: &mut Findings<'_>) -> Option<Trial> {
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
    let client = test
        .client
        .as_ref()
        .map_or(Ipv4Addr::LOCALHOST.into(), |at| at.0.addr());
    Some(Trial {
        name: clip(&shown),
        client: Client {
            peer: SocketAddr::new(client, 40000),
            local: super::DEFAULT_LISTEN,
            listener: "proxy".into(),
        },
        scheme,
        method,
        target,
        path,
        headers: (scheme == Scheme::Http).then(|| headers(test, findings)),
        addresses: test
            .addresses
            .as_ref()
            .map(|list| list.iter().map(|at| at.0).collect()),
        now: test.now.as_ref().map(|now| now.0),
        expect: expected(test.expect.as_ref()?, &policy, findings),
        policy,
        diagnostic: findings.draft(place),
    })
}

/// The target and path of a plain request.
fn url(get: &At<String>, findings: &mut Findings<'_>) -> Option<(Target, String)> {
    let problem = match get.parse::<Uri>() {
        Err(error) => error.to_string(),
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

fn headers(test: &raw::Test, findings: &mut Findings<'_>) -> HeaderMap {
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

fn expected(raw: &At<raw::Expect>, policy: &Policy, findings: &mut Findings<'_>) -> Expected {
    const GUARDS: [&str; 7] = [
        "guards.loopback",
        "guards.link_local",
        "guards.private",
        "guards.connect_ports",
        "guards.special",
        "guards.own",
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
            raw::ExpectAction::Direct => Does::Direct,
            raw::ExpectAction::Via => Does::Via,
            raw::ExpectAction::Block => Does::Block,
        }),
        reason: raw.reason.as_ref().map(|reason| reason.value.clone()),
        status: raw
            .status
            .as_ref()
            .map(|status| u16::try_from(status.0).unwrap_or(u16::MAX)),
        code: raw.code.as_ref().map(|code| code.value.clone()),
    };
    let is_empty = this.rule.is_none()
        && this.action.is_none()
        && this.route.is_none()
        && this.would.is_none();
    if is_empty && this.reason.is_none() && this.status.is_none() && this.code.is_none() {
        findings.error(raw.place, "this expects nothing, so it always passes");
    }
    this
}
