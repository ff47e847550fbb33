//! The promises of loading, kept over whole policies.

mod chains;
mod defaults;
mod dns;
mod environment;
mod faults;
mod files;
mod mistakes;
mod rules;
mod server;
mod trials;
mod upstreams;

use std::time::Duration;

use super::*;
use crate::policy::{Circuit, OnReload, RouteSpec, Triage, matcher::Matcher};

fn now() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn text(text: &str) -> Source {
    Source::Text {
        name: "p.yaml".to_owned(),
        text: text.to_owned(),
    }
}

fn try_load(policy: &str, environment: &Environment) -> Result<Loaded, Report> {
    load(&text(policy), environment, &Options::serve(now()))
}

#[track_caller]
fn loaded(policy: &str) -> Loaded {
    match try_load(policy, &Environment::default()) {
        Ok(loaded) => loaded,
        Err(report) => panic!("{report}"),
    }
}

/// What is wrong with a policy, one line each: `line:column message`.
fn mistakes(policy: &str) -> Vec<String> {
    let diagnostics = match try_load(policy, &Environment::default()) {
        Ok(loaded) => loaded.warnings,
        Err(report) => report.diagnostics,
    };
    let line = |d: &Diagnostic| {
        let place = d.place.map(|p| format!("{}:{} ", p.line, p.column));
        let word = if d.is_error() { "" } else { "warning: " };
        format!("{}{word}{}", place.unwrap_or_default(), d.message)
    };
    diagnostics.iter().map(line).collect()
}

/// The mistakes of a rule that stands in an otherwise good policy, from line 3 on.
#[track_caller]
fn check_rule(rule: &str, expected: &[&str]) {
    let policy =
        format!("version: 1\nrules:\n  - {{name: r, {rule}}}\ndefault: {{direct: true}}\n");
    let got: Vec<_> = mistakes(&policy)
        .into_iter()
        .map(|line| {
            line.split_once(' ')
                .map(|(_, text)| text.to_owned())
                .unwrap()
        })
        .collect();
    assert_eq!(got, expected, "{rule}");
}

#[test]
fn the_no_proxy_key_is_the_first_rule() {
    let loaded = loaded(
        "version: 1\nno_proxy: {list: .corp.example, dialect: curl}\nrules: [{name: r, match: {port: 80}, direct: true}]\ndefault: {direct: true}\n",
    );
    let rule = &loaded.policy.rules[0];
    assert_eq!((&*rule.name, &*rule.source), ("no_proxy", "p.yaml:2"));
    assert!(
        matches!(&rule.matcher, Matcher::NoProxy(list) if list.dialect() == crate::policy::no_proxy::Dialect::Curl)
    );
}

#[test]
fn a_policy_is_known_by_its_text() {
    let one = loaded("version: 1\ndefault: {direct: true}\n").policy.hash;
    let two = loaded("version: 1\ndefault: {direct: true}\n# other\n")
        .policy
        .hash;
    assert!(one.len() == 12 && one != two);
    assert_eq!(&*hash(["abc"].into_iter()), "ba7816bf8f01"); // the example of FIPS 180-2
}

#[test]
fn the_policy_is_looked_for_in_order() {
    let folder = std::env::temp_dir().join(format!("routecause-locate-{}", std::process::id()));
    let user = folder.join("routecause/policy.yaml");
    std::fs::create_dir_all(user.parent().unwrap()).unwrap();
    let environment = |named: &str| -> Environment {
        [
            ("XDG_CONFIG_HOME", folder.to_str().unwrap()),
            ("ROUTECAUSE_POLICY", named),
        ]
        .into_iter()
        .collect()
    };
    assert_ne!(locate(None, &environment("")), Source::File(user.clone()));
    std::fs::write(&user, "").unwrap();
    assert_eq!(locate(None, &environment("")), Source::File(user));
    assert_eq!(
        locate(None, &environment("/nowhere/p.yaml")),
        Source::File("/nowhere/p.yaml".into())
    );
    assert_eq!(
        locate(Some(Path::new("f")), &environment("/nowhere/p.yaml")),
        Source::File("f".into())
    );
    let report = load(
        &Source::File("/nowhere/p.yaml".into()),
        &environment(""),
        &Options::serve(now()),
    )
    .unwrap_err();
    assert!(
        report
            .to_string()
            .starts_with("/nowhere/p.yaml: error: the policy cannot be read: No such file"),
        "{report}"
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn every_policy_of_ours_loads_without_a_word_and_passes_its_tests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        // They name secrets that are not here, as on any other machine.
        let loaded = load(
            &Source::File(path.clone()),
            &Environment::default(),
            &Options::check(now()),
        )
        .unwrap_or_else(|report| panic!("{report}"));
        let told: Vec<_> = loaded
            .warnings
            .iter()
            .filter(|w| !w.message.contains("is not set"))
            .map(|w| w.render(false))
            .collect();
        assert!(told.is_empty(), "{}", told.join("\n"));
        assert!(!loaded.trials.is_empty(), "{}", path.display());
        for trial in &loaded.trials {
            let outcome = trial.run(now());
            assert!(
                outcome.passed(),
                "{}",
                outcome.failure.unwrap().render(false)
            );
        }
        count += 1;
    }
    assert!(count >= 5, "{count} policies");
}

/// Every key of every mapping that the decoder takes, by the name of its schema.
#[test]
fn the_schema_tells_every_key_in_a_sentence() {
    let schema = schema();
    assert_eq!(schema["title"], "routecause.policy/1");
    let mut mappings: Vec<&serde_json::Value> = vec![&schema];
    mappings.extend(schema["$defs"].as_object().unwrap().values());
    let mut keys = 0;
    for mapping in mappings {
        let Some(properties) = mapping.get("properties").and_then(|p| p.as_object()) else {
            continue;
        };
        assert_eq!(mapping["additionalProperties"], false, "{mapping}");
        for (key, value) in properties {
            let description = value["description"].as_str().unwrap_or_default();
            assert!(
                description.ends_with(['.', ')', '`', ':']) || description.len() > 10,
                "{key}: {value}"
            );
            keys += 1;
        }
    }
    assert!(keys > 70, "{keys}");
    for key in ["version", "rules", "default", "tests"] {
        assert!(schema["properties"][key].is_object(), "{key}");
    }
    assert_eq!(
        schema["required"],
        serde_json::json!(["version", "default"])
    );
}
