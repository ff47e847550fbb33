//! Where records and spans are exported to by OTLP: the policy's word, and OpenTelemetry's variables where it says nothing.
//!
//! Source: OpenTelemetry specification, "OTLP Exporter" and "SDK Environment Variables".

use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use super::decode::At;
use super::diag::Findings;
use super::env::Environment;
use super::raw;
use super::server::{TokenSource, token_source};
use crate::record::trace::Sampler;
use crate::secret::Secret;

/// How long a collector may take when nobody says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const LOGS_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT";

/// The variables that name a collector.
pub const VARIABLES: [&str; 3] = [ENDPOINT, TRACES_ENDPOINT, LOGS_ENDPOINT];

/// What the policy says; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The collector.
    pub endpoint: Option<Endpoint>,
    /// What it is told beside, and where that is found.
    pub headers: Vec<(HeaderName, TokenSource)>,
    /// The name that the process goes by.
    pub service_name: Option<String>,
    /// How long a collector may take.
    pub timeout: Option<Duration>,
    /// What is exported.
    pub signals: Option<Signals>,
    /// Of which requests a span is made.
    pub sampler: Option<Sampler>,
}

/// A collector, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Nothing is exported, whatever the environment says.
    Off,
    /// Its URL; what each signal is sent to stands below it.
    Url(Uri),
}

impl Endpoint {
    /// Reads `off` or a URL.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        url(text).map(Self::Url)
    }

    /// Reads what a flag says.
    ///
    /// # Errors
    /// What to write instead, or that this build cannot export.
    pub fn of_flag(text: &str) -> Result<Self, String> {
        let endpoint = Self::parse(text)?;
        if !cfg!(feature = "otlp") && endpoint != Self::Off {
            return Err("this build exports nothing: build it with --features otlp".to_owned());
        }
        Ok(endpoint)
    }
}

/// Reads the URL of a collector.
fn url(text: &str) -> Result<Uri, String> {
    let wrong = || {
        "a collector is named by a URL without a password, as in http://127.0.0.1:4318, or `off`"
            .to_owned()
    };
    let url: Uri = text.trim().parse().map_err(|_| wrong())?;
    let is_known = matches!(url.scheme_str(), Some("http" | "https"));
    let has_userinfo = url.authority().is_some_and(|a| a.as_str().contains('@'));
    (is_known && url.host().is_some() && !has_userinfo && url.query().is_none())
        .then_some(url)
        .ok_or_else(wrong)
}

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    /// Spans.
    pub traces: bool,
    /// Records.
    pub logs: bool,
}

/// An export that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Otlp {
    /// Where spans go.
    pub traces: Option<Uri>,
    /// Where records go.
    pub logs: Option<Uri>,
    /// What the collector is told beside.
    pub headers: Vec<(HeaderName, HeaderSource)>,
    /// What the process is, as names and values.
    pub resource: Vec<(String, String)>,
    /// How long a collector may take.
    pub timeout: Duration,
    sampler: Sampler,
}

/// Where a field's value is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderSource {
    /// In a variable or file of the policy's.
    Written(TokenSource),
    /// Here: it stood in a variable of OpenTelemetry's.
    Given(Secret),
}

/// Settings that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct OtlpError {
    name: String,
    problem: String,
}

impl Otlp {
    /// Of which requests a span is made; `None` where spans go nowhere.
    pub fn sampler(&self) -> Option<Sampler> {
        self.traces.as_ref().map(|_| self.sampler)
    }

    /// What is asked for: by a flag, else by the policy, else by OpenTelemetry's variables. `None` where nothing is.
    ///
    /// # Errors
    /// A variable that cannot be followed; where nobody asks for an export, none is looked at.
    pub fn settle(
        flag: Option<&Endpoint>,
        written: &Written,
        environment: &Environment,
    ) -> Result<Option<Self>, OtlpError> {
        let read = |name: &str| environment.get(name).map(str::trim);
        let wrong = |name: &str, problem: &str| OtlpError {
            name: name.to_owned(),
            problem: problem.to_owned(),
        };
        let endpoint = flag.or(written.endpoint.as_ref());
        let of_variable = |name: &str| -> Result<Option<Uri>, OtlpError> {
            let url = read(name).map(url).transpose();
            url.map_err(|problem| wrong(name, &problem))
        };
        let is_disabled = read("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
        let (traces, logs) = match endpoint {
            Some(Endpoint::Off) => return Ok(None),
            Some(Endpoint::Url(url)) => (Some(below(url, "traces")), Some(below(url, "logs"))),
            None if is_disabled => return Ok(None),
            None => {
                let both = of_variable(ENDPOINT)?;
                let of = |signal| both.as_ref().map(|url| below(url, signal));
                (
                    of_variable(TRACES_ENDPOINT)?.or_else(|| of("traces")),
                    of_variable(LOGS_ENDPOINT)?.or_else(|| of("logs")),
                )
            }
        };
        let signals = match written.signals {
            Some(signals) => signals,
            None => Signals {
                traces: exporter("OTEL_TRACES_EXPORTER", environment)?,
                logs: exporter("OTEL_LOGS_EXPORTER", environment)?,
            },
        };
        let (traces, logs) = (
            traces.filter(|_| signals.traces),
            logs.filter(|_| signals.logs),
        );
        if traces.is_none() && logs.is_none() {
            return Ok(None);
        }
        let protocol = "OTEL_EXPORTER_OTLP_PROTOCOL";
        if let Some(other) = read(protocol).filter(|name| *name != "http/protobuf")
            && endpoint.is_none()
        {
            let problem = format!(
                "{other} is not spoken here: write http/protobuf and the collector's port for it (4318 as a rule), or --otlp off"
            );
            return Err(wrong(protocol, &problem));
        }
        let timeout = match (written.timeout, read("OTEL_EXPORTER_OTLP_TIMEOUT")) {
            (Some(timeout), _) => timeout,
            (None, None) => TIMEOUT,
            (None, Some(text)) => text.parse().map(Duration::from_millis).map_err(|_| {
                let problem = "write a number of milliseconds, as in 10000";
                wrong("OTEL_EXPORTER_OTLP_TIMEOUT", problem)
            })?,
        };
        let sampler = match written.sampler {
            Some(sampler) => sampler,
            None => sampler(environment)?,
        };
        Ok(Some(Self {
            traces,
            logs,
            headers: headers(written, environment)?,
            resource: resource(written, environment)?,
            timeout,
            sampler,
        }))
    }
}

/// The place of a signal below a collector's URL.
fn below(url: &Uri, signal: &str) -> Uri {
    let base = url.path().trim_end_matches('/');
    let mut parts = url.clone().into_parts();
    // What follows a good path is one.
    parts.path_and_query = PathAndQuery::try_from(format!("{base}/v1/{signal}")).ok();
    Uri::from_parts(parts).unwrap_or_else(|_| url.clone())
}

/// Whether a variable lets a signal be exported.
fn exporter(name: &str, environment: &Environment) -> Result<bool, OtlpError> {
    match environment.get(name).map(str::trim) {
        None | Some("otlp") => Ok(true),
        Some("none") => Ok(false),
        Some(_) => Err(OtlpError {
            name: name.to_owned(),
            problem: "write otlp or none".to_owned(),
        }),
    }
}

/// `name=value` pairs behind commas, percent-encoded. An error does not quote them: they may hold secrets.
fn pairs(name: &str, environment: &Environment) -> Result<Vec<(String, String)>, OtlpError> {
    let text = environment.get(name).unwrap_or_default();
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let key = key.trim();
        (!key.is_empty()).then(|| (key.to_owned(), value.into_owned()))
    };
    pairs
        .map(pair)
        .collect::<Option<_>>()
        .ok_or_else(|| OtlpError {
            name: name.to_owned(),
            problem: "write name=value pairs with commas between them, percent-encoded".to_owned(),
        })
}

/// The fields of the policy, and those of the environment that it does not name.
fn headers(
    written: &Written,
    environment: &Environment,
) -> Result<Vec<(HeaderName, HeaderSource)>, OtlpError> {
    const NAME: &str = "OTEL_EXPORTER_OTLP_HEADERS";
    let own = written.headers.iter().cloned();
    let mut headers: Vec<_> = own
        .map(|(name, source)| (name, HeaderSource::Written(source)))
        .collect();
    for (name, value) in pairs(NAME, environment)? {
        let name = HeaderName::from_bytes(name.as_bytes()).ok();
        let (Some(name), true) = (name, HeaderValue::from_str(&value).is_ok()) else {
            return Err(OtlpError {
                name: NAME.to_owned(),
                problem: "what stands there is no header field".to_owned(),
            });
        };
        if !headers.iter().any(|(known, _)| *known == name) {
            headers.push((name, HeaderSource::Given(Secret::new(value))));
        }
    }
    Ok(headers)
}

/// What the process is; the name that is said last counts.
fn resource(
    written: &Written,
    environment: &Environment,
) -> Result<Vec<(String, String)>, OtlpError> {
    const SERVICE: &str = "service.name";
    let mut all = pairs("OTEL_RESOURCE_ATTRIBUTES", environment)?;
    let of_variable = || environment.get("OTEL_SERVICE_NAME").map(str::to_owned);
    let named = all.iter().position(|(name, _)| name == SERVICE);
    let of_attributes = named.map(|at| all.remove(at).1);
    let name = (written.service_name.clone())
        .or_else(of_variable)
        .or(of_attributes);
    all.insert(
        0,
        (
            SERVICE.to_owned(),
            name.unwrap_or_else(|| "routecause".to_owned()),
        ),
    );
    Ok(all)
}

/// The sampler that the environment names.
fn sampler(environment: &Environment) -> Result<Sampler, OtlpError> {
    const NAME: &str = "OTEL_TRACES_SAMPLER";
    const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
    let name = environment.get(NAME).unwrap_or("parentbased_always_on");
    let (follows_client, kind) = match name.trim().strip_prefix("parentbased_") {
        Some(kind) => (true, kind),
        None => (false, name.trim()),
    };
    let share = match kind {
        "always_on" => 1_000_000,
        "always_off" => 0,
        "traceidratio" => match environment.get(ARGUMENT).map(str::trim) {
            None => 1_000_000,
            Some("0" | "0.0") => 0,
            Some(text) => raw::faults::millionths(text).ok_or_else(|| OtlpError {
                name: ARGUMENT.to_owned(),
                problem: "write a share from 0 to 1, as in 0.1".to_owned(),
            })?,
        },
        _ => {
            return Err(OtlpError {
                name: NAME.to_owned(),
                problem: "write always_on, always_off or traceidratio, or parentbased_ before one of them"
                    .to_owned(),
            });
        }
    };
    Ok(Sampler {
        follows_client,
        per_million: share,
    })
}

/// Checks the section.
pub(super) fn check(raw: Option<&At<raw::otlp::Otlp>>, findings: &mut Findings<'_>) -> Written {
    let Some(raw) = raw else {
        return Written::default();
    };
    let endpoint = raw.endpoint.as_ref().and_then(|at| {
        let parsed = Endpoint::parse(at);
        parsed
            .map_err(|problem| findings.error(at.place, problem))
            .ok()
    });
    if !cfg!(feature = "otlp") && endpoint != Some(Endpoint::Off) {
        let help = "build routecause with `--features otlp`, or leave it out";
        let message = "this build exports nothing";
        findings.error(raw.place, message).with_help(help);
    }
    let mut headers = Vec::new();
    for (name, source) in raw.headers.iter().flat_map(|headers| headers.iter()) {
        let field = HeaderName::from_bytes(name.as_bytes());
        if field.is_err() {
            findings.error(name.place, "this is no name of a header field");
        }
        let source = token_source(source, findings);
        headers.extend(field.ok().zip(source));
    }
    let signals = raw.signals.as_ref().map(|signals| {
        let has = |signal| signals.iter().any(|at| at.value == signal);
        Signals {
            traces: has(raw::otlp::Signal::Traces),
            logs: has(raw::otlp::Signal::Logs),
        }
    });
    Written {
        endpoint,
        headers,
        service_name: raw.service_name.as_ref().map(|at| at.value.clone()),
        timeout: raw.timeout.as_ref().map(|wait| wait.0),
        signals,
        sampler: raw.sample.as_ref().map(|share| Sampler {
            per_million: share.0,
            ..Sampler::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(
        flag: Option<&str>,
        written: &Written,
        variables: &[(&str, &str)],
    ) -> Result<Option<Otlp>, String> {
        let flag = flag.map(|text| Endpoint::parse(text).unwrap());
        let environment = variables.iter().copied().collect();
        Otlp::settle(flag.as_ref(), written, &environment).map_err(|error| error.to_string())
    }

    fn of_variables(variables: &[(&str, &str)]) -> Result<Option<Otlp>, String> {
        settle(None, &Written::default(), variables)
    }

    #[test]
    fn nothing_is_exported_where_nobody_asks_or_somebody_forbids_it() {
        let endpoint = (ENDPOINT, "http://c.test:4318");
        for variables in [
            &[][..],
            &[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER", "odd")],
            &[endpoint, ("OTEL_SDK_DISABLED", "true")],
            &[
                endpoint,
                ("OTEL_TRACES_EXPORTER", "none"),
                ("OTEL_LOGS_EXPORTER", "none"),
            ],
        ] {
            assert_eq!(of_variables(variables), Ok(None), "{variables:?}");
        }
        let off = settle(Some("off"), &Written::default(), &[endpoint]);
        assert_eq!(off, Ok(None));
    }

    #[test]
    fn variables_say_it_where_neither_flag_nor_policy_does() {
        let otlp = of_variables(&[
            (ENDPOINT, "https://c.test/base/"),
            (LOGS_ENDPOINT, "http://logs.test:4318/own"),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "api-key=s3cret, authorization=Bearer%20x",
            ),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "service.name=late,deployment.environment.name=ci",
            ),
            ("OTEL_SERVICE_NAME", "egress"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ]);
        let otlp = otlp.unwrap().unwrap();
        assert_eq!(
            otlp.traces.as_ref().unwrap(),
            "https://c.test/base/v1/traces"
        );
        assert_eq!(otlp.logs.as_ref().unwrap(), "http://logs.test:4318/own");
        let value = |at: usize| match &otlp.headers[at] {
            (name, HeaderSource::Given(secret)) => (name.as_str(), secret.reveal()),
            written @ (_, HeaderSource::Written(_)) => panic!("{written:?}"),
        };
        assert_eq!(value(0), ("api-key", "s3cret"));
        assert_eq!(value(1), ("authorization", "Bearer x"));
        assert!(!format!("{otlp:?}").contains("s3cret"));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            otlp.resource,
            [
                pair("service.name", "egress"),
                pair("deployment.environment.name", "ci")
            ]
        );
        assert_eq!(otlp.timeout, Duration::from_millis(250));
        let sampler = Sampler {
            follows_client: false,
            per_million: 250_000,
        };
        assert_eq!(otlp.sampler, sampler);
    }

    #[test]
    fn flag_and_policy_come_first() {
        let written = Written {
            endpoint: Some(Endpoint::parse("http://policy.test").unwrap()),
            service_name: Some("of-policy".to_owned()),
            signals: Some(Signals {
                traces: false,
                logs: true,
            }),
            ..Written::default()
        };
        let variables = [
            (ENDPOINT, "http://variable.test"),
            ("OTEL_SERVICE_NAME", "of-variable"),
            ("OTEL_SDK_DISABLED", "true"),
            // Of the endpoint that is not used.
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ];
        let otlp = settle(None, &written, &variables).unwrap().unwrap();
        assert_eq!(otlp.traces, None);
        assert_eq!(otlp.logs.unwrap(), "http://policy.test/v1/logs");
        assert_eq!(otlp.resource[0].1, "of-policy");
        let otlp = settle(Some("http://flag.test:1"), &written, &variables);
        assert_eq!(
            otlp.unwrap().unwrap().logs.unwrap(),
            "http://flag.test:1/v1/logs"
        );
    }

    #[test]
    fn a_variable_that_cannot_be_followed_is_told_without_what_it_holds() {
        let endpoint = (ENDPOINT, "http://c.test:4318");
        for (name, value) in [
            (ENDPOINT, "c.test:4318"),
            (ENDPOINT, "http://user:s3cret@c.test"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "s3cret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "bad name=s3cret"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_LOGS_EXPORTER", "console"),
        ] {
            let error = of_variables(&[endpoint, (name, value)]).unwrap_err();
            assert!(error.starts_with(name), "{name}={value}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        let argument = [
            endpoint,
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "7"),
        ];
        assert!(
            of_variables(&argument)
                .unwrap_err()
                .starts_with("OTEL_TRACES_SAMPLER_ARG")
        );
    }
}
