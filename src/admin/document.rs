//! The API's description (OpenAPI 3.1), made of the same list as its router.

use schemars::generate::{Contract, SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::api::operations;
use super::problem::Problem;

/// What an operation answers where all is well.
pub(super) enum Answers {
    /// JSON.
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// A text of this type.
    Text(&'static str),
    /// Nothing.
    Nothing,
}

/// One method of one path.
pub(super) struct Operation {
    /// The method, in lower case.
    pub(super) method: &'static str,
    /// The path, with `{name}` for what varies.
    pub(super) path: &'static str,
    /// What it does.
    pub(super) summary: &'static str,
    /// What its query may say: an object.
    pub(super) query: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// What its body says.
    pub(super) body: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// A header that it needs, and what that holds.
    pub(super) header: Option<(&'static str, &'static str)>,
    /// What it answers.
    pub(super) answers: Answers,
}

/// The schema of a type.
pub(super) fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The description of the API.
pub fn document() -> Value {
    let settings = |contract: Contract| {
        let mut settings = SchemaSettings::draft2020_12();
        settings.definitions_path = "/components/schemas".into();
        settings.contract = contract;
        settings.meta_schema = None;
        settings.into_generator()
    };
    let mut written = settings(Contract::Serialize);
    let mut read = settings(Contract::Deserialize);
    let problem = of::<Problem>(&mut written);
    let mut paths = Map::new();
    for operation in operations() {
        let told = describe(&operation, &problem, &mut written, &mut read);
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.insert(operation.method.to_owned(), told);
        }
    }
    let mut schemas = written.take_definitions(true);
    schemas.append(&mut read.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Routecause admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What a running proxy tells of itself, and what can be changed while it runs. Lists answer \
                an object with one list. Errors are problems (RFC 9457).",
            "license": {"name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    })
}

fn describe(
    operation: &Operation,
    problem: &Schema,
    written: &mut SchemaGenerator,
    read: &mut SchemaGenerator,
) -> Value {
    let mut parameters = parameters_of_path(operation.path);
    if let Some(query) = operation.query {
        parameters.extend(parameters_of_query(query(read)));
    }
    if let Some((name, description)) = operation.header {
        parameters.push(json!({
            "name": name, "in": "header", "required": true, "description": description, "schema": {"type": "string"},
        }));
    }
    let (status, answer) = match &operation.answers {
        Answers::Json(schema) => (
            "200",
            json!({
                "description": "As asked.",
                "content": {"application/json": {"schema": schema(written)}},
            }),
        ),
        Answers::Text(kind) => (
            "200",
            json!({
                "description": "As asked.",
                "content": {*kind: {"schema": {"type": "string"}}},
            }),
        ),
        Answers::Nothing => ("204", json!({"description": "Done."})),
    };
    let mut told = json!({
        "summary": operation.summary,
        "operationId": operation_id(operation),
        "responses": {
            status: answer,
            "default": {
                "description": "What is wrong.",
                "content": {"application/problem+json": {"schema": problem}},
            },
        },
    });
    let Some(object) = told.as_object_mut() else {
        return told;
    };
    if !parameters.is_empty() {
        object.insert("parameters".to_owned(), parameters.into());
    }
    if let Some(body) = operation.body {
        let schema = body(read);
        let content = json!({"application/json": {"schema": schema}});
        object.insert(
            "requestBody".to_owned(),
            json!({"required": true, "content": content}),
        );
    }
    told
}

fn operation_id(operation: &Operation) -> String {
    let words = operation.path.trim_start_matches("/v1").split(['/', '.']);
    let words = words.map(|word| word.trim_matches(['{', '}']));
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    format!("{}_{}", operation.method, words.join("_"))
}

fn parameters_of_path(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| {
        let name = part.strip_prefix('{')?.strip_suffix('}')?;
        Some(json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}))
    });
    names.collect()
}

/// Each property of a query's object.
fn parameters_of_query(schema: Schema) -> Vec<Value> {
    let object = schema.to_value();
    let required = object.get("required").and_then(Value::as_array);
    let is_required = |name: &str| {
        required.is_some_and(|required| required.iter().any(|required| required == name))
    };
    let properties = object.get("properties").and_then(Value::as_object);
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let description = (schema.as_object_mut())
            .and_then(|schema| schema.remove("description"))
            .unwrap_or_default();
        // A query's key is there or not; it cannot be null.
        if let Some(kinds) = schema.get_mut("type")
            && let Some(kind) = kinds.as_array().and_then(|kinds| kinds.first()).cloned()
        {
            *kinds = kind;
        }
        if let Some(any) = schema.get("anyOf").and_then(|any| any.get(0)).cloned() {
            schema = any;
        }
        json!({
            "name": name, "in": "query", "required": is_required(name), "description": description, "schema": schema,
        })
    };
    let properties = properties.into_iter().flatten();
    properties.map(parameter).collect()
}
