//! The documents: every command in their `console` blocks is run and must print what stands there, in a network of its own
//! where the hosts that they speak of are; and the reference of the policy is what the schema says.
//!
//! A line `...` stands for any lines, `[..]` for anything in a line. `# exit N` behind a command is its exit code.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Map, Value};
use support::web::Ca;
use support::{goods, needs, routecause, run_within};

/// A whole guide.
const GUIDE: Duration = Duration::from_mins(2);

/// Who is where in that network.
const HOSTS: &str = "\
127.0.0.1 localhost
127.0.0.2 files.example packages.example modules.example git.corp.example telemetry.example
127.0.0.3 proxy.corp.example
";

fn docs() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docs"))
}

macro_rules! guides {
    ($($name:ident: $file:literal),* $(,)?) => {
        $(#[test]
        fn $name() {
            follow($file);
        })*

        #[test]
        fn no_guide_is_left_out() {
            let followed = [$($file),*];
            for folder in ["", "guides"] {
                for entry in fs::read_dir(docs().join(folder)).unwrap().map(Result::unwrap) {
                    let path = entry.path();
                    let is_text = path.extension().is_some_and(|extension| extension == "md");
                    let name = path.strip_prefix(docs()).unwrap().to_str().unwrap();
                    if is_text && !steps(&fs::read_to_string(&path).unwrap()).is_empty() {
                        assert!(followed.contains(&name), "nobody follows docs/{name}");
                    }
                }
            }
        }
    };
}

guides! {
    the_guide_for_a_laptop_can_be_followed: "guides/laptop.md",
    the_guide_for_docker_can_be_followed: "guides/docker.md",
    the_guide_for_ci_can_be_followed: "guides/ci.md",
    the_guide_to_reproduce_a_failure_can_be_followed: "guides/reproduce.md",
    the_guide_for_go_can_be_followed: "guides/go.md",
    the_guide_for_clusters_can_be_followed: "guides/cluster.md",
    the_front_page_can_be_followed: "../README.md",
    what_is_told_of_clients_can_be_followed: "clients.md",
    what_is_told_of_records_can_be_followed: "records.md",
    what_operators_read_can_be_followed: "operations.md",
    what_those_who_come_from_elsewhere_read_can_be_followed: "migrating.md",
}

/// A command, and what it prints.
#[derive(Debug)]
struct Step {
    line: usize,
    command: String,
    prints: Vec<String>,
    exits: i32,
}

/// What is in the `console` blocks.
fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut is_inside, mut is_going_on) = (false, false);
    for (at, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            is_inside = line == "```console";
            is_going_on = false;
        } else if !is_inside {
        } else if let Some(command) = line.strip_prefix("$ ") {
            let exits = command
                .rsplit_once("# exit ")
                .map_or(0, |(_, code)| code.trim().parse().unwrap());
            steps.push(Step {
                line: at + 1,
                command: command.to_owned(),
                prints: Vec::new(),
                exits,
            });
            is_going_on = true;
        } else if let (true, Some(more)) = (is_going_on, line.strip_prefix("> ")) {
            let step = steps.last_mut().unwrap();
            step.command.push('\n');
            step.command.push_str(more);
        } else {
            is_going_on = false;
            steps
                .last_mut()
                .expect("a block begins with a command")
                .prints
                .push(line.to_owned());
        }
    }
    steps
}

/// Runs all commands of a document in one shell, and compares.
fn follow(file: &str) {
    let all = ["netns", "python3", "curl", "go"];
    if !all.into_iter().all(needs::has) {
        return;
    }
    let text = fs::read_to_string(docs().join(file)).unwrap();
    let steps = steps(&text);
    assert!(!steps.is_empty());
    let stage = stage();
    let mut script = preamble(stage.path());
    for (at, step) in steps.iter().enumerate() {
        // Markers of a byte that nothing prints.
        writeln!(
            script,
            "printf '\\036begin {at}\\n'\n{}\ncode=$?",
            step.command
        )
        .unwrap();
        if step.command.ends_with('&') {
            // Readers are slower than that. A connection would leave a record: the kernel is asked who listens at 127.0.0.1:3128.
            script.push_str("for _ in $(seq 100); do grep -q ' 0100007F:0C38 .* 0A ' /proc/net/tcp && break; sleep 0.05; done\n");
        }
        writeln!(script, "printf '\\036end {at} %d\\n' $code").unwrap();
    }
    script.push_str("kill $(jobs -p)\n");
    fs::write(stage.path().join("script"), script).unwrap();
    let mut shell = Command::new("unshare");
    shell.args([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "bash",
    ]);
    shell
        .arg(stage.path().join("script"))
        .current_dir(stage.path().join("home"));
    for (name, value) in routecause().get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let path = std::env::var("PATH").unwrap();
    shell
        .env(
            "PATH",
            format!(
                "{}:{path}:/usr/sbin:/sbin",
                stage.path().join("bin").display()
            ),
        )
        .env("HOME", stage.path().join("home"))
        .env("SSL_CERT_FILE", stage.path().join("ca.pem"))
        .env("CURL_CA_BUNDLE", stage.path().join("ca.pem"))
        .env("NO_COLOR", "1")
        .env("GOFLAGS", "-modcacherw")
        .env("GONOSUMDB", "*");
    let (_, stdout, stderr) = run_within(&mut shell, GUIDE);
    for (at, step) in steps.iter().enumerate() {
        let place = format!("docs/{file}:{}: {}", step.line, step.command);
        let (begin, end) = (format!("\u{1e}begin {at}\n"), format!("\u{1e}end {at} "));
        let (_, rest) = stdout
            .split_once(&begin)
            .unwrap_or_else(|| panic!("{place}: not reached: {stdout}{stderr}"));
        let (printed, rest) = rest
            .split_once(&end)
            .unwrap_or_else(|| panic!("{place}: did not end: {stdout}{stderr}"));
        let code = rest.lines().next().unwrap();
        let printed: Vec<_> = printed.lines().collect();
        let told = || {
            format!(
                "{place}\nexit {code}, prints:\n{}\nexpected:\n{}",
                printed.join("\n"),
                step.prints.join("\n")
            )
        };
        assert_eq!(code, step.exits.to_string(), "{}", told());
        assert!(is_like(&printed, &step.prints), "{}", told());
    }
}

/// A folder with the program, what a checkout has, and what the servers show.
fn stage() -> tempfile::TempDir {
    let stage = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["home", "bin", "site"] {
        fs::create_dir(stage.path().join(folder)).unwrap();
    }
    let link =
        |to: &Path, name: &str| std::os::unix::fs::symlink(to, stage.path().join(name)).unwrap();
    link(
        Path::new(env!("CARGO_BIN_EXE_routecause")),
        "bin/routecause",
    );
    for folder in ["policies", "deploy"] {
        link(&root.join(folder), &format!("home/{folder}"));
    }
    fs::write(stage.path().join("hosts"), HOSTS).unwrap();
    fs::write(stage.path().join("resolv.conf"), "nameserver 127.0.0.9\n").unwrap();
    let ca = Ca::new();
    fs::write(stage.path().join("ca.pem"), ca.pem()).unwrap();
    let names: Vec<_> = HOSTS
        .split_whitespace()
        .filter(|word| word.ends_with(".example"))
        .collect();
    let identity = ca.identity_for(&names);
    fs::write(stage.path().join("chain.pem"), identity.chain_pem()).unwrap();
    fs::write(stage.path().join("key.pem"), identity.key_pem()).unwrap();
    let site = stage.path().join("site");
    fs::write(site.join("answer"), "42\n").unwrap();
    goods::go_module(&site);
    fs::write(stage.path().join("upstream.yaml"), support::DIRECT).unwrap();
    stage
}

/// The network, its servers, and the company's proxy.
fn preamble(stage: &Path) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/stage.py");
    let stage = stage.display();
    format!(
        "exec 2>&1\n\
         ip link set lo up\n\
         mount --bind {stage}/hosts /etc/hosts\n\
         mount --bind {stage}/resolv.conf /etc/resolv.conf\n\
         exec 4< <(exec python3 {script} {stage}/site {stage}/chain.pem {stage}/key.pem)\n\
         read -r _ <&4\n\
         exec 5< <(exec routecause --policy {stage}/upstream.yaml --listen 127.0.0.3:8080 --admin off 2>&1)\n\
         read -r _ <&5\n\
         cat <&5 > /dev/null &\n\
         disown\n"
    )
}

/// Whether lines are like a pattern of lines.
fn is_like(lines: &[&str], pattern: &[String]) -> bool {
    match pattern.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=lines.len()).any(|at| is_like(&lines[at..], rest))
        }
        Some((first, rest)) => lines
            .split_first()
            .is_some_and(|(line, others)| is_like_line(line, first) && is_like(others, rest)),
    }
}

fn is_like_line(line: &str, pattern: &str) -> bool {
    let mut parts = pattern.split("[..]");
    let Some(mut left) = parts.next().and_then(|first| line.strip_prefix(first)) else {
        return false;
    };
    let mut parts: Vec<_> = parts.collect();
    let Some(last) = parts.pop() else {
        return left.is_empty();
    };
    for part in parts {
        match left.split_once(part) {
            Some((_, rest)) => left = rest,
            None => return false,
        }
    }
    left.ends_with(last)
}

#[test]
fn lines_are_compared_as_the_documents_say() {
    let like = |lines: &[&str], pattern: &[&str]| {
        let pattern: Vec<_> = pattern.iter().map(|&line| line.to_owned()).collect();
        is_like(lines, &pattern)
    };
    assert!(like(&["a", "b", "c"], &["a", "...", "c"]));
    assert!(like(&["took 3ms, at 10:00"], &["took [..]ms, at [..]"]));
    assert!(like(&[], &[]) && like(&["a"], &["..."]) && like(&["a"], &["...", "a"]));
    assert!(
        !like(&["a"], &[])
            && !like(&[], &["a"])
            && !like(&["ab"], &["a"])
            && !like(&["ab"], &["[..]a"])
    );
}

/// The part of `docs/policy.md` that is made of the schema.
#[test]
fn the_reference_of_the_policy_is_what_the_schema_says() {
    let schema = routecause::config::schema();
    let mut made = reference("The policy", &schema);
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        made.push_str(&reference(name, definition));
    }
    let path = docs().join("policy.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("<!-- schema: begin -->\n").unwrap();
    let (told, after) = rest.split_once("<!-- schema: end -->\n").unwrap();
    if std::env::var_os("ROUTECAUSE_TEST_REWRITE").is_some() {
        fs::write(
            &path,
            format!("{before}<!-- schema: begin -->\n{made}<!-- schema: end -->\n{after}"),
        )
        .unwrap();
        return;
    }
    assert!(
        told == made,
        "docs/policy.md differs from the schema: ROUTECAUSE_TEST_REWRITE=1 cargo test --test docs schema writes it anew"
    );
}

/// One kind of thing in a policy, with its keys.
fn reference(name: &str, definition: &Value) -> String {
    let mut text = format!("\n## {name}\n");
    if !told(definition).is_empty() {
        writeln!(text, "\n{}", told(definition)).unwrap();
    }
    let Some(keys) = definition["properties"].as_object() else {
        writeln!(text, "\nIt is {}.", kind(definition)).unwrap();
        return text;
    };
    let required: Vec<_> = definition["required"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    text.push_str("\n| key | is | what |\n| --- | --- | --- |\n");
    for (key, value) in keys {
        let must = if required.iter().any(|required| *required == key) {
            " **needed.**"
        } else {
            ""
        };
        writeln!(
            text,
            "| `{key}` | {} | {}{must}{} |",
            kind(value),
            told(value),
            choices(value)
        )
        .unwrap();
    }
    text
}

fn told(value: &Value) -> String {
    let text = value["description"].as_str().unwrap_or_default();
    text.replace('\n', " ").replace('|', "\\|")
}

/// The words that a key knows, with what they mean.
fn choices(value: &Value) -> String {
    let all = value["oneOf"].as_array().into_iter().flatten();
    let told: Vec<_> = all
        .filter_map(|choice| {
            Some(format!(
                " `{}`: {}",
                choice["const"].as_str()?,
                told(choice)
            ))
        })
        .collect();
    told.join("")
}

/// What may stand there, in words.
fn kind(value: &Value) -> String {
    let one_of = |all: &Vec<Value>| {
        let mut kinds: Vec<String> = Vec::new();
        for kind in all.iter().filter(|kind| kind["not"].is_null()).map(kind) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kinds.join(" or ")
    };
    if let Some(name) = value["$ref"]
        .as_str()
        .and_then(|link| link.strip_prefix("#/$defs/"))
    {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(all) = value["anyOf"]
        .as_array()
        .or_else(|| value["oneOf"].as_array())
    {
        return one_of(all);
    }
    if !value["const"].is_null() {
        return format!(
            "`{}`",
            value["const"]
                .as_str()
                .map_or_else(|| value["const"].to_string(), str::to_owned)
        );
    }
    if let Some(all) = value["enum"].as_array() {
        return one_of(
            &all.iter()
                .map(|word| Value::Object(Map::from_iter([("const".to_owned(), word.clone())])))
                .collect(),
        );
    }
    let example = value["examples"][0].as_str().unwrap_or_default();
    match value["type"].as_str() {
        Some("array") => format!("list of {}", kind(&value["items"])),
        Some("object") if value["additionalProperties"].is_object() => {
            format!("map of names to {}", kind(&value["additionalProperties"]))
        }
        Some("object") => "map".to_owned(),
        Some("boolean") => "`true` or `false`".to_owned(),
        Some("integer" | "number") => "number".to_owned(),
        Some("string") if example.is_empty() => "text".to_owned(),
        Some("string") => format!("text, as `{}`", example.replace('|', "\\|")),
        _ => "anything".to_owned(),
    }
}
