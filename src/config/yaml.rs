//! From bytes to a tree that knows where each value and key stands. The only file that knows the YAML crate.
//!
//! A policy is read by strangers' editors and by us alike, so the tree takes plain YAML only: no
//! anchors, aliases, merge keys or tags, one document, 4 MiB, 16 levels.

use std::collections::HashMap;
use std::ops::ControlFlow;

use serde_yaml::granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, Span, options};

use super::diag::{Findings, Place};

/// The largest policy, in bytes: 10,000 rules and 100,000 entries of sets fit. A larger file is a mistake.
pub(super) const LARGEST: usize = 4 * 1024 * 1024;

/// How deep lists and mappings may nest.
const DEEPEST: usize = 16;

/// A value with its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A text, number, boolean or nothing: `is_plain` tells that no quotes stand around it.
    Scalar { text: String, is_plain: bool },
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping with its place.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) place: Place,
}

impl Node {
    /// The word for what it is, as in error texts.
    pub(super) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => "nothing",
            Value::Scalar { .. } => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// Whether there is no value.
    pub(super) fn is_null(&self) -> bool {
        match &self.value {
            Value::Scalar { text, is_plain } => {
                *is_plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            Value::List(_) | Value::Map(_) => false,
        }
    }
}

/// Reads bytes as UTF-8 text, with or without a byte order mark.
///
/// # Errors
/// Where and why they are none.
pub(super) fn text(bytes: &[u8]) -> Result<&str, (Option<Place>, String)> {
    if bytes.starts_with(&[0xfe, 0xff]) || bytes.starts_with(&[0xff, 0xfe]) {
        let message = "this is UTF-16; save it as UTF-8".to_owned();
        return Err((None, message));
    }
    let place_of = |offset: usize| {
        let before = String::from_utf8_lossy(bytes.get(..offset).unwrap_or_default());
        let last = before.rsplit('\n').next().unwrap_or_default();
        let (line, column) = (before.matches('\n').count() + 1, last.chars().count() + 1);
        Some(Place {
            file: 0,
            line,
            column,
            end_line: line,
            end_column: column + 1,
        })
    };
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        return Err((place_of(at), "a NUL byte stands here".to_owned()));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => Err((
            place_of(error.valid_up_to()),
            "this is not UTF-8".to_owned(),
        )),
    }
}

/// Parses the text of a file into a tree; what is wrong with it goes to `findings`.
///
/// A syntax error ends the parse and gives `None`. Duplicate keys, tags and the like leave a tree,
/// so that the mistakes behind them can be told as well.
pub(super) fn tree(text: &str, file: usize, findings: &mut Findings<'_>) -> Option<Node> {
    let options = options! {
        flow_nesting_limit: DEEPEST,
        block_nesting_limit: DEEPEST,
    };
    let mut tree = Tree {
        file,
        findings,
        open: Vec::new(),
        root: None,
        documents: 0,
    };
    for event in Parser::new_from_str_with_options(text, options) {
        match event {
            Ok((event, span)) => {
                if tree.take(event, span).is_break() {
                    return None;
                }
            }
            Err(error) => {
                let place = place_of(&Span::empty(*error.marker()), file);
                let message = match error.info().trim() {
                    _ if *error.kind() == ErrorKind::RecursionLimitExceeded => too_deep(),
                    "" => "this is not YAML".to_owned(),
                    info => format!("this is not YAML: {info}"),
                };
                tree.findings.error(place, message);
                return None;
            }
        }
    }
    if tree.root.as_ref().is_none_or(Node::is_null) {
        let message = match file {
            0 => "the policy is empty; it needs at least `version` and `default`",
            _ => "the file is empty",
        };
        let start = Place {
            file,
            ..Place::START
        };
        tree.findings.error(start, message);
        return None;
    }
    tree.root
}

struct Tree<'a, 't> {
    file: usize,
    findings: &'a mut Findings<'t>,
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
}

/// A list or mapping whose end was not seen yet.
enum Open {
    List(Vec<Node>, Place),
    Map {
        entries: Vec<(Key, Node)>,
        key: Option<Key>,
        seen: HashMap<String, usize>,
        place: Place,
    },
}

impl Tree<'_, '_> {
    fn take(&mut self, event: Event<'_>, span: Span) -> ControlFlow<()> {
        let place = place_of(&span, self.file);
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    let message = "a second document begins here; a policy is one";
                    self.findings.error(place, message);
                    return ControlFlow::Break(());
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_decoration(place, anchor, tag.is_some());
                self.add(Node {
                    value: Value::Scalar {
                        text: text.into_owned(),
                        is_plain: style == ScalarStyle::Plain,
                    },
                    place,
                });
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_decoration(place, anchor, tag.is_some());
                self.open.push(Open::List(Vec::new(), place));
                return self.measure(place);
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_decoration(place, anchor, tag.is_some());
                self.open.push(Open::Map {
                    entries: Vec::new(),
                    key: None,
                    seen: HashMap::new(),
                    place,
                });
                return self.measure(place);
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(&span.end),
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                // One is enough: what stands for what is not known any more.
                let message = "anchors and aliases are not read; write the value out";
                self.findings.error(place, message);
                return ControlFlow::Break(());
            }
            // The enum is open; what is no node means nothing here.
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Anchor(..) | _ => {}
        }
        ControlFlow::Continue(())
    }

    fn measure(&mut self, place: Place) -> ControlFlow<()> {
        if self.open.len() <= DEEPEST {
            return ControlFlow::Continue(());
        }
        self.findings.error(place, too_deep());
        ControlFlow::Break(())
    }

    fn refuse_decoration(&mut self, place: Place, anchor: usize, has_tag: bool) {
        if anchor != 0 {
            let message = "anchors and aliases are not read; write the value out";
            self.findings.error(place, message);
        }
        if has_tag {
            let message = "tags are not read; write the value without `!`";
            self.findings.error(place, message);
        }
    }

    fn close(&mut self, end: &Marker) {
        let node = match self.open.pop() {
            Some(Open::List(items, place)) => Node {
                value: Value::List(items),
                place: Place {
                    end_line: end.line(),
                    end_column: end.col() + 1,
                    ..place
                },
            },
            Some(Open::Map { entries, place, .. }) => Node {
                value: Value::Map(entries),
                place: Place {
                    end_line: end.line(),
                    end_column: end.col() + 1,
                    ..place
                },
            },
            None => return,
        };
        self.add(node);
    }

    fn add(&mut self, node: Node) {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List(items, _)) => items.push(node),
            Some(Open::Map {
                entries, key, seen, ..
            }) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => *key = Some(key_of(node, seen, self.findings)),
            },
        }
    }
}

fn too_deep() -> String {
    format!("the policy nests deeper than {DEEPEST} levels here")
}

fn key_of(node: Node, seen: &mut HashMap<String, usize>, findings: &mut Findings<'_>) -> Key {
    let place = node.place;
    let text = match node.value {
        Value::Scalar { text, is_plain } if is_plain && text == "<<" => {
            findings.error(place, "merge keys are not read; write the entries out");
            text
        }
        Value::Scalar { text, .. } => text,
        Value::List(_) | Value::Map(_) => {
            findings.error(place, "a key is a text");
            String::new()
        }
    };
    match seen.get(&text) {
        Some(line) => {
            let message = format!("`{text}` stands here a second time");
            let help = format!("the first is in line {line}; keep one");
            findings.error(place, message).with_help(help);
        }
        None => {
            seen.insert(text.clone(), place.line);
        }
    }
    Key { text, place }
}

/// The parser counts columns from 0; an empty span is shown one character wide.
fn place_of(span: &Span, file: usize) -> Place {
    let (line, column) = (span.start.line(), span.start.col() + 1);
    let (end_line, end_column) = (span.end.line(), span.end.col() + 1);
    if (end_line, end_column) > (line, column) {
        Place {
            file,
            line,
            column,
            end_line,
            end_column,
        }
    } else {
        Place {
            file,
            line,
            column,
            end_line: line,
            end_column: column + 1,
        }
    }
}
