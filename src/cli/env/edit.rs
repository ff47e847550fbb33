//! Changes to the text of a settings file that leave all else in it as it is.

use serde_json::{Map, Value};

/// How settings are put into a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// The file is ours alone.
    Whole,
    /// Behind all else.
    Append,
    /// Lines `key = value` of a section `[name]`, each in place of one with its key.
    Section {
        name: &'static str,
        lines: Vec<(String, String)>,
    },
    /// Lines `key=value`, each in place of one with its key.
    Flat(Vec<(String, String)>),
    /// Keys of a JSON object, merged into what is there.
    Json(Value),
    /// In front of an end tag, where no element of that name is there.
    Xml {
        element: &'static str,
        root: &'static str,
    },
}

impl Edit {
    /// The new text of a file.
    pub(super) fn apply(&self, before: &str, settings: &str) -> anyhow::Result<String> {
        Ok(match self {
            Self::Whole => settings.to_owned(),
            Self::Append => {
                let mut text = ended(before);
                text.push_str(settings);
                text
            }
            Self::Section { name, lines } => {
                let mut text = before.to_owned();
                for (key, line) in lines {
                    text = in_section(&text, name, key, line);
                }
                text
            }
            Self::Flat(lines) => {
                let mut text = before.to_owned();
                for (key, line) in lines {
                    text = flat(&text, key, line);
                }
                text
            }
            Self::Json(new) => {
                let mut old = match before.trim() {
                    "" => Value::Object(Map::new()),
                    text => serde_json::from_str(text)?,
                };
                anyhow::ensure!(old.is_object(), "it holds no JSON object");
                merge(&mut old, new);
                serde_json::to_string_pretty(&old)? + "\n"
            }
            Self::Xml { element, root } => {
                if before.trim().is_empty() {
                    return Ok(format!("<{root}>\n{settings}</{root}>\n"));
                }
                anyhow::ensure!(
                    !before.contains(&format!("<{element}")),
                    "it has <{element}> already; put this there by hand:\n{settings}"
                );
                let end = format!("</{root}>");
                let at = before.rfind(&end);
                let (head, tail) = at
                    .and_then(|at| before.split_at_checked(at))
                    .ok_or_else(|| anyhow::anyhow!("it has no {end}"))?;
                format!("{head}{settings}{tail}")
            }
        })
    }
}

/// The text, its last line ended.
fn ended(text: &str) -> String {
    let mut text = text.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn key_of(line: &str) -> &str {
    line.split('=').next().unwrap_or(line).trim()
}

fn in_section(text: &str, name: &str, key: &str, line: &str) -> String {
    let header = format!("[{name}]");
    let mut lines: Vec<&str> = text.lines().collect();
    let Some(start) = lines.iter().position(|line| line.trim() == header) else {
        return format!("{}{header}\n{line}\n", ended(text));
    };
    let is_header = |line: &str| line.trim_start().starts_with('[');
    let end = lines
        .iter()
        .skip(start + 1)
        .position(|line| is_header(line));
    let end = end.map_or(lines.len(), |at| start + 1 + at);
    let own = lines.iter().enumerate().take(end).skip(start + 1);
    let at = own
        .into_iter()
        .find(|(_, line)| key_of(line).eq_ignore_ascii_case(key));
    match at.map(|(at, _)| at) {
        Some(at) => {
            lines.splice(at..=at, [line]);
        }
        None => lines.insert(start + 1, line),
    }
    lines.join("\n") + "\n"
}

fn flat(text: &str, key: &str, line: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    match lines.iter().position(|line| key_of(line) == key) {
        Some(at) => {
            lines.splice(at..=at, [line]);
        }
        None => lines.push(line),
    }
    lines.join("\n") + "\n"
}

fn merge(old: &mut Value, new: &Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                merge(old.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (old, new) => *old = new.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(edit: &Edit, before: &str, after: &str) {
        assert_eq!(edit.apply(before, "NEW\n").unwrap(), after);
    }

    #[test]
    fn what_is_there_stays() {
        let section = Edit::Section {
            name: "http",
            lines: vec![("proxy".into(), "proxy = p".into())],
        };
        check(&section, "", "[http]\nproxy = p\n");
        check(
            &section,
            "[a]\nproxy = x",
            "[a]\nproxy = x\n[http]\nproxy = p\n",
        );
        check(
            &section,
            "[http]\nb = 1\n[c]\nproxy = x\n",
            "[http]\nproxy = p\nb = 1\n[c]\nproxy = x\n",
        );
        check(
            &section,
            "[http]\nb = 1\n  Proxy=old\n[c]\n",
            "[http]\nb = 1\nproxy = p\n[c]\n",
        );
        let flat = Edit::Flat(vec![("proxy".into(), "proxy=p".into())]);
        check(&flat, "a=1\nproxy=old\nb=2\n", "a=1\nproxy=p\nb=2\n");
        check(&flat, "a=1", "a=1\nproxy=p\n");
        check(&Edit::Append, "a", "a\nNEW\n");
        check(&Edit::Whole, "a", "NEW\n");
    }

    #[test]
    fn json_is_merged_and_xml_gets_an_element_of_its_own() {
        let json = Edit::Json(serde_json::json!({"proxies": {"default": {"httpProxy": "p"}}}));
        let after = json
            .apply(
                "{\"auths\": {}, \"proxies\": {\"default\": {\"noProxy\": \"x\"}}}",
                "",
            )
            .unwrap();
        let after: Value = serde_json::from_str(&after).unwrap();
        assert_eq!(after["auths"], serde_json::json!({}));
        assert_eq!(
            after["proxies"]["default"],
            serde_json::json!({"httpProxy": "p", "noProxy": "x"})
        );
        assert!(json.apply("[]", "").is_err());
        assert!(json.apply("{", "").is_err());
        let xml = Edit::Xml {
            element: "proxies",
            root: "settings",
        };
        check(&xml, "", "<settings>\nNEW\n</settings>\n");
        check(
            &xml,
            "<settings><a/></settings>\n",
            "<settings><a/>NEW\n</settings>\n",
        );
        assert!(xml.apply("<settings><proxies/></settings>", "").is_err());
    }
}
