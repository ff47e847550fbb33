//! As much of JSON Schema (2020-12) as our own schemas use. Another keyword fails the test that meets it.

use serde_json::{Map, Value};

/// A schema that has been looked through.
#[derive(Debug)]
pub struct Schema(Value);

/// What tells and does not judge.
const ANNOTATIONS: [&str; 7] = [
    "$schema",
    "$defs",
    "title",
    "description",
    "examples",
    "default",
    "format",
];

impl Schema {
    /// Takes a schema, and fails the test where it is none.
    #[track_caller]
    pub fn new(text: &str) -> Self {
        let schema = Self(serde_json::from_str(text).unwrap());
        assert_eq!(
            schema.0["$schema"],
            "https://json-schema.org/draft/2020-12/schema"
        );
        schema.look_through(&schema.0);
        for definition in schema.0["$defs"]
            .as_object()
            .into_iter()
            .flat_map(Map::values)
        {
            schema.look_through(definition);
        }
        schema
    }

    /// What is wrong with a value: a place and a reason each.
    pub fn mistakes(&self, value: &Value) -> Vec<String> {
        let mut mistakes = Vec::new();
        self.judge(&self.0, value, "", &mut mistakes);
        mistakes
    }

    /// The keywords of a schema; none where it is a plain yes.
    fn keywords(schema: &Value) -> impl Iterator<Item = (&str, &Value)> {
        assert!(
            schema.is_object() || schema.is_boolean(),
            "no schema: {schema}"
        );
        let keywords = schema.as_object().into_iter().flatten();
        keywords
            .map(|(key, value)| (key.as_str(), value))
            .filter(|(key, _)| !ANNOTATIONS.contains(key))
    }

    fn look_through(&self, schema: &Value) {
        for (key, value) in Self::keywords(schema) {
            match key {
                "$ref" => drop(self.resolve(value)),
                "properties" => value
                    .as_object()
                    .unwrap()
                    .values()
                    .for_each(|schema| self.look_through(schema)),
                "items" | "additionalProperties" | "not" => self.look_through(value),
                "oneOf" | "anyOf" => {
                    let schemas = value.as_array().unwrap();
                    assert!(!schemas.is_empty());
                    for schema in schemas {
                        self.look_through(schema);
                    }
                }
                "type" => {
                    let names = [
                        "null", "boolean", "integer", "number", "string", "array", "object",
                    ];
                    assert!(
                        types(value).iter().all(|name| names.contains(name)),
                        "{value}"
                    );
                }
                "required" => assert!(value.as_array().unwrap().iter().all(Value::is_string)),
                "pattern" => drop(regex::Regex::new(value.as_str().unwrap()).unwrap()),
                "minimum" | "maximum" => assert!(value.is_number()),
                "minItems" | "maxItems" => assert!(value.is_u64()),
                "enum" => assert!(value.is_array()),
                "const" => {}
                key => panic!("{key} is not known here"),
            }
        }
    }

    #[track_caller]
    fn resolve(&self, reference: &Value) -> &Value {
        let name = reference
            .as_str()
            .unwrap()
            .strip_prefix("#/$defs/")
            .unwrap();
        let definition = self.0["$defs"].get(name);
        definition.unwrap_or_else(|| panic!("{reference} leads nowhere"))
    }

    fn holds(&self, schema: &Value, value: &Value) -> bool {
        let mut mistakes = Vec::new();
        self.judge(schema, value, "", &mut mistakes);
        mistakes.is_empty()
    }

    fn judge(&self, schema: &Value, value: &Value, at: &str, mistakes: &mut Vec<String>) {
        let mut expect = |is_so: bool, what: String| {
            if !is_so {
                mistakes.push(format!("{at}: {value} is not {what}"));
            }
        };
        expect(*schema != Value::Bool(false), "allowed".to_owned());
        let holds = |schemas: &Value| -> usize {
            let schemas = schemas.as_array().unwrap().iter();
            schemas.filter(|schema| self.holds(schema, value)).count()
        };
        for (key, word) in Self::keywords(schema) {
            let what = format!("{key} {word}");
            match key {
                "type" => expect(types(word).iter().any(|name| is_of(name, value)), what),
                "const" => expect(value == word, what),
                "enum" => expect(word.as_array().unwrap().contains(value), what),
                "oneOf" => expect(holds(word) == 1, what),
                "anyOf" => expect(holds(word) > 0, what),
                "not" => expect(!self.holds(word, value), what),
                "pattern" => {
                    let pattern = regex::Regex::new(word.as_str().unwrap()).unwrap();
                    expect(
                        value.as_str().is_none_or(|text| pattern.is_match(text)),
                        what,
                    );
                }
                "minimum" => expect(
                    value.as_f64().is_none_or(|n| n >= word.as_f64().unwrap()),
                    what,
                ),
                "maximum" => expect(
                    value.as_f64().is_none_or(|n| n <= word.as_f64().unwrap()),
                    what,
                ),
                "minItems" => expect(
                    value
                        .as_array()
                        .is_none_or(|list| list.len() as u64 >= word.as_u64().unwrap()),
                    what,
                ),
                "maxItems" => expect(
                    value
                        .as_array()
                        .is_none_or(|list| list.len() as u64 <= word.as_u64().unwrap()),
                    what,
                ),
                "required" => {
                    let has = |name: &Value| value.get(name.as_str().unwrap()).is_some();
                    let has_all = word.as_array().unwrap().iter().all(has);
                    expect(!value.is_object() || has_all, what);
                }
                _ => {}
            }
        }
        let known = schema.get("properties").and_then(Value::as_object);
        for (name, inner) in value.as_object().into_iter().flatten() {
            let at = format!("{at}/{name}");
            match (
                known.and_then(|known| known.get(name)),
                schema.get("additionalProperties"),
            ) {
                (Some(schema), _) | (None, Some(schema)) => {
                    self.judge(schema, inner, &at, mistakes);
                }
                (None, None) => {}
            }
        }
        if let Some(schema) = schema.get("items") {
            for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
                self.judge(schema, inner, &format!("{at}/{index}"), mistakes);
            }
        }
        if let Some(reference) = schema.get("$ref") {
            self.judge(self.resolve(reference), value, at, mistakes);
        }
    }

    /// The properties that a schema names at its top.
    pub fn names(&self) -> Vec<&str> {
        self.0["properties"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect()
    }
}

fn types(word: &Value) -> Vec<&str> {
    let names = word
        .as_array()
        .map_or(std::slice::from_ref(word), Vec::as_slice);
    names.iter().map(|name| name.as_str().unwrap()).collect()
}

fn is_of(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        _ => value.is_object(),
    }
}
