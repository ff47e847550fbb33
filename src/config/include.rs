//! The other files of a policy: named things and rules that it includes, and the lists of its sets.
//!
//! Includes are put in place in the tree, before anything is decoded: each value keeps the file that it stands in, and all
//! that is checked later is checked alike, wherever it was written.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::decode::{At, clip};
use super::diag::{Findings, Place};
use super::upstreams;
use super::yaml::{self, Key, Node, Value};
use crate::pac;

/// What an included file may name, and how deep the names of it lie.
const NAMED: &[(&str, usize)] = &[
    ("clients", 2),
    ("chains", 1),
    ("faults", 1),
    ("groups", 1),
    ("sets", 1),
    ("upstreams", 1),
];

/// A policy in more files than these is a mistake, or a machine's.
const MOST_FILES: usize = 256;

/// The largest list of a set, in bytes: several hundred thousand names fit.
const LARGEST_LIST: usize = 16 * 1024 * 1024;

/// Puts everything that a policy includes into its tree.
pub(super) fn expand(root: &mut Node, findings: &mut Findings<'_>) {
    let mut files = Files::default();
    let Value::Map(entries) = &mut root.value else {
        return;
    };
    for (name, place) in files_named_by(entries) {
        files.merge_named(&name, place, entries, findings);
    }
    let rules = entries.iter_mut().find(|(key, _)| key.text == "rules");
    if let Some((_, Node { value, .. })) = rules
        && let Value::List(items) = value
    {
        files.expand_rules(items, findings);
    }
}

/// The files that were included, in order, and where.
#[derive(Default)]
struct Files {
    taken: Vec<(PathBuf, Place)>,
    /// Those that are being read, the outermost first.
    open: Vec<(PathBuf, String)>,
}

impl Files {
    /// Takes the named things of a file, and of those that it includes.
    fn merge_named(
        &mut self,
        name: &str,
        place: Place,
        into: &mut Vec<(Key, Node)>,
        findings: &mut Findings<'_>,
    ) {
        let Some(node) = self.open(name, place, findings) else {
            return;
        };
        let Value::Map(entries) = node.value else {
            let message = format!("a file of named things is a mapping, not {}", node.kind());
            let help = "a file of rules is included in `rules`, as `- include: FILE`";
            findings.error(node.place, message).with_help(help);
            self.open.pop();
            return;
        };
        let nested = files_named_by(&entries);
        for (key, node) in entries {
            let named = NAMED.iter().find(|(name, _)| *name == key.text);
            match named {
                Some((_, depth)) => merge(key, node, into, *depth, findings),
                None if key.text == "include" => {}
                None => {
                    let message =
                        format!("`{}` does not stand in an included file", clip(&key.text));
                    let names: Vec<_> = NAMED.iter().map(|(name, _)| *name).collect();
                    let help = format!("its keys are include, {}", names.join(", "));
                    findings.error(key.place, message).with_help(help);
                }
            }
        }
        for (name, place) in nested {
            self.merge_named(&name, place, into, findings);
        }
        self.open.pop();
    }

    /// Puts the rules of files in the place of the entries that name them.
    fn expand_rules(&mut self, items: &mut Vec<Node>, findings: &mut Findings<'_>) {
        for item in std::mem::take(items) {
            let Some((name, place)) = rules_named_by(&item, findings) else {
                items.push(item);
                continue;
            };
            let Some(node) = self.open(&name, place, findings) else {
                continue;
            };
            match node.value {
                Value::List(mut rules) => {
                    self.expand_rules(&mut rules, findings);
                    items.extend(rules);
                }
                Value::Scalar { .. } | Value::Map(_) => {
                    let message = format!("a file of rules is a list, not {}", node.kind());
                    let help =
                        "a file of named things is included at the top, as `include: [FILE]`";
                    findings.error(node.place, message).with_help(help);
                }
            }
            self.open.pop();
        }
    }

    /// Reads a file into a tree, once.
    fn open(&mut self, name: &str, place: Place, findings: &mut Findings<'_>) -> Option<Node> {
        let path = findings.folder(place).join(name);
        let same = path.canonicalize().unwrap_or_else(|_| path.clone());
        if let Some(from) = self.open.iter().position(|(open, _)| *open == same) {
            let chain = self.open.iter().skip(from).map(|(_, name)| &**name);
            let chain: Vec<_> = chain.chain([name]).collect();
            let message = format!("files include each other: {}", chain.join(", "));
            findings.error(place, message);
            return None;
        }
        if findings
            .paths()
            .first()
            .is_some_and(|main| is_same(main, &same))
        {
            findings.error(place, "the policy includes itself");
            return None;
        }
        if let Some((_, first)) = self.taken.iter().find(|(taken, _)| *taken == same) {
            let message = format!("`{}` is included a second time", clip(name));
            let help = format!("the first is in {}", findings.whereabouts(*first, place));
            findings.error(place, message).with_help(help);
            return None;
        }
        if self.taken.len() >= MOST_FILES {
            let message = format!("a policy is at most {MOST_FILES} files");
            findings.error(place, message);
            return None;
        }
        self.taken.push((same.clone(), place));
        let (file, text) = take(&path, place, yaml::LARGEST, false, findings)?;
        let node = yaml::tree(&text, file, findings)?;
        upstreams::conceal_secrets(&node, findings);
        self.open.push((same, name.to_owned()));
        Some(node)
    }
}

fn is_same(main: &Path, other: &Path) -> bool {
    main.canonicalize().is_ok_and(|main| main == other)
}

/// The lines of a set's file that name something; what it says of itself is no matter of ours. Of a file of secrets none is
/// shown, whatever is wrong with it.
pub(super) fn lines(
    path: &At<String>,
    is_secret: bool,
    findings: &mut Findings<'_>,
) -> Option<Vec<At<String>>> {
    let file_path = findings.folder(path.place).join(&path.value);
    let (file, text) = take(&file_path, path.place, LARGEST_LIST, is_secret, findings)?;
    let entry = |(at, line): (usize, &str)| {
        let bare = line.split('#').next().unwrap_or_default();
        let entry = bare.trim();
        let before = bare.len() - bare.trim_start().len();
        let column = bare.get(..before).unwrap_or_default().chars().count() + 1;
        (!entry.is_empty()).then(|| At {
            value: entry.to_owned(),
            place: Place {
                file,
                line: at + 1,
                column,
                end_line: at + 1,
                end_column: column + entry.chars().count(),
            },
        })
    };
    Some(text.lines().enumerate().filter_map(entry).collect())
}

/// The text of a script that a policy names.
pub(super) fn script(path: &At<String>, findings: &mut Findings<'_>) -> Option<(usize, String)> {
    let file = findings.folder(path.place).join(&path.value);
    take(&file, path.place, pac::LARGEST, false, findings)
}

/// Reads a file that a policy names; gives its place among them, and its text.
fn take(
    path: &Path,
    place: Place,
    limit: usize,
    is_secret: bool,
    findings: &mut Findings<'_>,
) -> Option<(usize, String)> {
    let bytes = match read(path, limit) {
        Ok(bytes) => bytes,
        Err(problem) => {
            let message = format!("`{}` {problem}", clip(&path.display().to_string()));
            findings.error(place, message);
            findings.miss(path.to_owned());
            return None;
        }
    };
    let name = path.display().to_string().into();
    let found = yaml::text(&bytes);
    let text = match &found {
        Ok(text) => (*text).to_owned(),
        Err(_) => String::from_utf8_lossy(&bytes).into_owned(),
    };
    let file = findings.include(name, path.to_owned(), text.clone());
    if is_secret {
        findings.conceal(Place {
            file,
            end_line: usize::MAX,
            ..Place::START
        });
    }
    match found {
        Ok(_) => Some((file, text)),
        Err((at, message)) => {
            let start = at.unwrap_or(Place::START);
            findings.error(Place { file, ..start }, message);
            None
        }
    }
}

/// Reads a file of at most so many bytes.
///
/// # Errors
/// What keeps it from being read, as the end of a sentence.
pub(super) fn read(path: &Path, limit: usize) -> Result<Vec<u8>, String> {
    use std::os::unix::fs::FileTypeExt as _;
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    // Asked before opening: a pipe that nobody writes to would hold us up for ever.
    let kind = std::fs::metadata(path).map_err(unreadable)?.file_type();
    if kind.is_fifo() && !path.starts_with("/dev/fd") && !path.starts_with("/proc") {
        return Err("cannot be read: it is a pipe".to_owned());
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() > limit {
        return Err(too_large(limit));
    }
    Ok(bytes)
}

/// That a file is over a limit, as the end of a sentence.
pub(super) fn too_large(limit: usize) -> String {
    format!("is larger than {} KiB", limit / 1024)
}

/// The files under `include` of a mapping. What is no text there is told of when it is decoded, or here for an included
/// file, which is not.
fn files_named_by(entries: &[(Key, Node)]) -> Vec<(String, Place)> {
    let include = entries.iter().find(|(key, _)| key.text == "include");
    let Some((_, node)) = include else {
        return Vec::new();
    };
    let of = |node: &Node| match &node.value {
        Value::Scalar { text, .. } if !node.is_null() => Some((text.clone(), node.place)),
        Value::Scalar { .. } | Value::List(_) | Value::Map(_) => None,
    };
    match &node.value {
        Value::List(items) => items.iter().filter_map(of).collect(),
        Value::Scalar { .. } | Value::Map(_) => of(node).into_iter().collect(),
    }
}

/// The file that an entry of `rules` names, if it is no rule.
fn rules_named_by(item: &Node, findings: &mut Findings<'_>) -> Option<(String, Place)> {
    let Value::Map(entries) = &item.value else {
        return None;
    };
    let (key, _) = entries.iter().find(|(key, _)| key.text == "include")?;
    if entries.len() > 1 {
        let message = "`include` stands alone: a rule has none";
        findings.error(key.place, message);
        return None;
    }
    let named = files_named_by(entries);
    if let [one] = &*named {
        return Some(one.clone());
    }
    findings.error(key.place, "`include` names one file here");
    None
}

/// Puts an entry among others; where both are mappings, so many levels deep, their entries.
fn merge(
    key: Key,
    node: Node,
    into: &mut Vec<(Key, Node)>,
    depth: usize,
    findings: &mut Findings<'_>,
) {
    let Some((first, old)) = into.iter_mut().find(|(old, _)| old.text == key.text) else {
        into.push((key, node));
        return;
    };
    match (&mut old.value, node.value) {
        (Value::Map(old), Value::Map(new)) if depth > 0 => {
            for (key, node) in new {
                merge(key, node, old, depth - 1, findings);
            }
        }
        _ => {
            let message = format!("`{}` is named a second time", clip(&key.text));
            let help = format!(
                "the first is in {}",
                findings.whereabouts(first.place, key.place)
            );
            findings.error(key.place, message).with_help(help);
        }
    }
}
