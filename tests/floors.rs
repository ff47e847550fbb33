//! A module uses its own floor and those above it, never one below: the table in `src/lib.rs`.

use std::fs;
use std::path::{Path, PathBuf};

const FLOORS: [&[&str]; 8] = [
    &["target", "client", "timeouts", "secret", "cause", "record"],
    &["policy", "config", "pac"],
    &["net", "relay", "tls"],
    &["failure", "observe", "memory", "exchange", "route"],
    &["snapshot", "proxy", "listen"],
    &["app", "admin", "doctor"],
    &["lab"],
    &["cli"],
];

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The first part of every `crate::…` path, tests cut off.
fn used_modules(source: &str) -> Vec<&str> {
    let code = source.split("#[cfg(test)]").next().unwrap_or(source);
    let code = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| {
            rest.split(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
                .unwrap_or(rest)
        })
        .filter(|module| !module.is_empty())
        .collect()
}

#[test]
fn no_module_uses_a_floor_below_its_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    let mut breaches = Vec::new();
    for file in sources(&root) {
        let path = file.strip_prefix(&root).unwrap();
        let module = path
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let floor = floor_of(module).unwrap_or_else(|| panic!("{module} stands on no floor"));
        for used in used_modules(&fs::read_to_string(&file).unwrap()) {
            let used_floor = floor_of(used)
                .unwrap_or_else(|| panic!("{used}, used in {path:?}, stands on no floor"));
            seen += 1;
            if used_floor > floor {
                breaches.push(format!(
                    "{} (floor {floor}) uses {used} (floor {used_floor})",
                    path.display()
                ));
            }
        }
    }
    assert!(seen > 100, "the scan saw only {seen} uses");
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn every_module_of_the_library_stands_on_a_floor() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let modules: Vec<_> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod "))
        .map(|line| line.trim_end_matches(';'))
        .collect();
    let mut expected: Vec<_> = FLOORS.concat();
    expected.sort_unstable();
    assert_eq!(modules, expected);
}

#[test]
fn judgement_is_pure() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = sources(&root.join("policy"));
    files.push(root.join("policy.rs"));
    for file in files {
        let source = fs::read_to_string(&file).unwrap();
        let code = source.split("#[cfg(test)]").next().unwrap();
        for word in [
            "async ",
            "tokio::",
            "std::fs",
            "std::env",
            "Mutex",
            "RwLock",
            "Timestamp::now",
            "Instant::now",
        ] {
            assert!(!code.contains(word), "{} has {word}", file.display());
        }
    }
}
