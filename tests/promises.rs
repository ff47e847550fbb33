//! The promises of `docs/security.md` stand beside tests that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Adds the names of a file's tests, behind the file's own name; the modules of a macro count as tests.
fn tests_in(file: &Path, names: &mut BTreeSet<String>) {
    let text = fs::read_to_string(file).unwrap();
    let stem = file.file_stem().unwrap().to_str().unwrap();
    for part in text
        .split("#[test]")
        .chain(text.split("#[tokio::test"))
        .skip(1)
    {
        let Some((_, rest)) = part.split_once("fn ") else {
            continue;
        };
        let name: String = rest
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        names.insert(format!("{stem}::{name}"));
    }
    for list in ["classes! {", "targets! {"] {
        let Some((_, rest)) = text.split_once(list) else {
            continue;
        };
        let (inside, _) = rest.split_once('}').unwrap();
        for entry in inside.split(',') {
            let name = entry.split(':').next().unwrap().trim();
            names.insert(format!("{stem}::{name}"));
        }
    }
}

fn scan(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            scan(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            tests_in(&path, names);
        }
    }
}

#[test]
fn every_promise_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    scan(&root.join("src"), &mut names);
    scan(&root.join("tests"), &mut names);
    let text = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let mut promises = 0;
    for row in rows.filter(|row| !row.ends_with("| tests |")) {
        let tests: Vec<_> = row.split('`').filter(|word| word.contains("::")).collect();
        assert!(!tests.is_empty(), "no test beside: {row}");
        for test in tests {
            assert!(names.contains(test), "there is no test {test}");
        }
        promises += 1;
    }
    assert!(promises > 40, "{promises} promises");
}
