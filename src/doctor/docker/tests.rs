use serde_json::json;

use super::*;

/// What was seen, by lines:
///
/// ```text
/// engine VERSION | silence WORDS
/// client|file|unit|runs NAME=VALUE…
/// proxy HOST:PORT ok|CAUSE [ok|CAUSE]         outside, inside
/// inside ID
/// baked LINE
/// ```
fn seen(lines: &str) -> Seen {
    let mut seen = Seen {
        engine: Some("27.1.0".to_owned()),
        gateway: Some("172.17.0.1".parse().unwrap()),
        subnet: Some("172.17.0.0/16".parse().unwrap()),
        ..Seen::default()
    };
    let probe = |word: &str| Probe {
        cause: (word != "ok").then(|| word.to_owned()),
        ..Probe::default()
    };
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (word, rest) = line.split_once(' ').unwrap();
        let words: Vec<_> = rest.split(' ').collect();
        let object = |names: [&str; 3]| {
            let given = |name: &str| {
                words
                    .iter()
                    .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            };
            let [http, https, no] = names;
            json!({http: given("HTTP_PROXY"), https: given("HTTPS_PROXY"), no: given("NO_PROXY")})
        };
        match word {
            "engine" => seen.engine = Some(rest.to_owned()),
            "silence" => seen.silence = Some(rest.to_owned()),
            "client" => {
                let text =
                    json!({"proxies": {"default": object(["httpProxy", "httpsProxy", "noProxy"])}});
                seen.places
                    .extend(Place::of_client("config.json", &text.to_string(), "").unwrap());
            }
            "file" => {
                let text = json!({"proxies": object(["http-proxy", "https-proxy", "no-proxy"])});
                seen.places
                    .extend(Place::of_engine_file("daemon.json", &text.to_string()).unwrap());
            }
            "unit" => seen.places.extend(Place::of_unit("docker.service", rest)),
            "runs" => seen.places.extend(Place::of_engine(&object([
                "HttpProxy",
                "HttpsProxy",
                "NoProxy",
            ]))),
            "proxy" => seen.proxies.push(Reached {
                proxy: words[0].to_owned(),
                outside: probe(words[1]),
                inside: words.get(2).map(|word| probe(word)),
            }),
            "inside" => {
                seen.inside = Some(Inside {
                    url: "https://files.example/".to_owned(),
                    id: rest.to_owned(),
                    sentence: "what it says".to_owned(),
                    evidence: Vec::new(),
                    dns: None,
                });
            }
            "baked" => seen.baked.push(Baked {
                place: "Dockerfile:3".to_owned(),
                line: rest.to_owned(),
            }),
            other => panic!("{other}"),
        }
    }
    seen
}

#[track_caller]
fn check(lines: &str, id: &str, part: &str) {
    let verdict = judge(&seen(lines));
    let text = format!("{verdict:?}");
    assert_eq!(verdict.id, id, "{text}");
    assert!(text.contains(part), "{part} is not in {text}");
    assert!(!verdict.evidence.is_empty(), "{text}");
    assert!(
        verdict.fix.is_some() || verdict.is_fine() || id == "fails_inside_containers",
        "{text}"
    );
}

#[test]
fn an_engine_that_does_not_answer_is_the_matter() {
    check(
        "silence Got permission denied while trying to connect to the socket",
        "engine_forbidden",
        "group docker",
    );
    check(
        "silence Cannot connect to the Docker daemon",
        "engine_down",
        "DOCKER_HOST",
    );
    check(
        "silence run docker: No such file or directory",
        "no_docker",
        "client",
    );
}

#[test]
fn a_proxy_that_containers_cannot_use_comes_before_places_that_disagree() {
    check(
        "client HTTPS_PROXY=htp://p:1",
        "proxy_unusable",
        "htp:// is no proxy's scheme",
    );
    check(
        "client HTTPS_PROXY=http://localhost:3128\nproxy localhost:3128 ok",
        "proxy_on_containers_loopback",
        "http://172.17.0.1:3128",
    );
    // The engine shares this machine's loopback.
    check(
        "runs HTTPS_PROXY=http://127.0.0.1:3128\nclient HTTPS_PROXY=http://172.17.0.1:3128\nproxy 127.0.0.1:3128 ok\nproxy 172.17.0.1:3128 ok ok",
        "fine",
        "agree",
    );
    check(
        "client HTTPS_PROXY=http://172.17.0.1:3128\nproxy 172.17.0.1:3128 ok connect.timeout",
        "proxy_unreachable_from_bridge",
        "inside a container: connect.timeout",
    );
    check(
        "client HTTPS_PROXY=http://corp:3128\nproxy corp:3128 ok dns.nxdomain",
        "proxy_name_unknown_inside",
        "daemon.json",
    );
    check(
        "client HTTPS_PROXY=http://corp:3128\nproxy corp:3128 connect.refused connect.refused",
        "proxy_down",
        "corp:3128",
    );
    // Only containers can know it.
    check(
        "client HTTPS_PROXY=http://corp:3128\nruns HTTPS_PROXY=http://corp:3128\nproxy corp:3128 dns.nxdomain ok",
        "fine",
        "agree",
    );
}

#[test]
fn what_the_engine_runs_with_is_held_against_its_files() {
    check(
        "engine 20.10.24\nfile HTTPS_PROXY=http://p:1",
        "engine_too_old_for_its_file",
        "from 23 on",
    );
    check(
        "file HTTPS_PROXY=http://p:1",
        "engine_runs_with_other_settings",
        "docker info: no HTTPS_PROXY",
    );
    check(
        "unit HTTPS_PROXY=http://p:1\nruns HTTPS_PROXY=http://q:1",
        "engine_runs_with_other_settings",
        "HTTPS_PROXY=http://q:1",
    );
    // The file comes before the unit.
    check(
        "file HTTPS_PROXY=http://p:1\nunit HTTPS_PROXY=http://q:1\nruns HTTPS_PROXY=http://p:1\nclient HTTPS_PROXY=http://p:1",
        "fine",
        "agree",
    );
}

#[test]
fn places_are_held_against_each_other() {
    check(
        "runs HTTPS_PROXY=http://p:1",
        "places_disagree",
        "docker-client",
    );
    check(
        "client HTTPS_PROXY=http://p:1",
        "places_disagree",
        "docker-daemon",
    );
    check(
        "client HTTPS_PROXY=http://p:1\nruns HTTPS_PROXY=http://q:1",
        "places_disagree",
        "one proxy",
    );
    check(
        "baked ENV http_proxy=http://p:1",
        "proxy_baked_in",
        "build-arg",
    );
    check(
        "inside sni_filtering",
        "fails_inside_containers",
        "docker-client --write",
    );
    check("inside fine", "fine", "go straight");
    check("engine 27.0.0", "fine", "no place sets a proxy");
}
