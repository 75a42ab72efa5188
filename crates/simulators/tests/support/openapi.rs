//! Holds exchanges with the stand-in to DigitalOcean's own description of its API (OpenAPI 3.0): every request that is sent, and
//! every answer that the stand-in gives.
//!
//! Stricter than the description in one thing: it lets a request have fields that it does not know, and a typo would be one.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use jsonschema::Validator;
use seedplane_simulators::digitalocean::{Exchange, Simulator};
use serde_json::{Value, json};

/// The description, and what did not follow it.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    document: Value,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
    checked: Mutex<u64>,
    violations: Mutex<BTreeSet<String>>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("checked", &self.checked()).finish_non_exhaustive()
    }
}

impl Gate {
    /// Reads the description; `None` if it is not there.
    ///
    /// # Panics
    /// If it is there and is not JSON.
    pub fn load(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let mut document: Value = serde_json::from_str(&text).expect("the description is JSON");
        modernize(&mut document);
        let inner =
            Inner { document, validators: Mutex::default(), checked: Mutex::default(), violations: Mutex::default() };
        Some(Self { inner: Arc::new(inner) })
    }

    /// Looks at every exchange with a stand-in from now on.
    pub fn watch(&self, simulator: &Simulator) {
        let gate = self.clone();
        simulator.observe(move |exchange| gate.check(exchange));
    }

    /// How many exchanges were looked at.
    pub fn checked(&self) -> u64 {
        *self.inner.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What did not follow the description, each once.
    pub fn violations(&self) -> Vec<String> {
        self.inner.violations.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn check(&self, exchange: &Exchange) {
        *self.inner.checked.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let found = self.problems(exchange);
        let mut violations = self.inner.violations.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in found {
            violations.insert(format!("{} {}: {problem}", exchange.method, exchange.path));
        }
    }

    /// What in an exchange does not follow the description.
    pub fn problems(&self, exchange: &Exchange) -> Vec<String> {
        let (path, query) = exchange.path.split_once('?').unwrap_or((&exchange.path, ""));
        let Some((template, operation)) = self.operation(&exchange.method, path) else {
            return vec!["there is no such call".to_owned()];
        };
        let mut problems = Vec::new();

        let declared: Vec<&str> = self.parameters(&template, operation);
        for name in query.split('&').filter_map(|pair| pair.split('=').next()).filter(|name| !name.is_empty()) {
            if !declared.contains(&name) {
                problems.push(format!("the request has an unknown parameter '{name}'"));
            }
        }
        let pointer = format!("/paths/{}/{}", escape(&template), exchange.method.to_lowercase());
        if let Some(body) = &exchange.request {
            let at = format!("{pointer}/requestBody/content/application~1json/schema");
            match self.inner.document.pointer(&at) {
                Some(schema) => {
                    problems
                        .extend(self.invalid(&at, body).into_iter().map(|problem| format!("the request: {problem}")));
                    self.unknown_fields(schema, body, "", &mut problems);
                }
                None => problems.push("the request has a body and takes none".to_owned()),
            }
        }

        if exchange.by_api {
            let responses = &operation["responses"];
            let status = exchange.status.to_string();
            let key = if responses[&status].is_object() { status.as_str() } else { "default" };
            let mut at = format!("{pointer}/responses/{key}");
            if let Some(target) = responses[key]["$ref"].as_str() {
                target.trim_start_matches('#').clone_into(&mut at);
            }
            let at_schema = format!("{at}/content/application~1json/schema");
            let described = self.inner.document.pointer(&at_schema).is_some();
            match (&exchange.answer, described) {
                (Some(body), true) => {
                    problems
                        .extend(self.invalid(&at_schema, body).into_iter().map(|what| format!("the answer: {what}")));
                }
                (None, true) => problems.push(format!("the answer {status} has no body")),
                (Some(_), false) => problems.push(format!("the answer {status} has a body and should have none")),
                (None, false) => {}
            }
        }
        problems
    }

    /// The path as it is described, and the call.
    fn operation(&self, method: &str, path: &str) -> Option<(String, &Value)> {
        let wanted: Vec<&str> = path.split('/').collect();
        let paths = self.inner.document["paths"].as_object()?;
        let mut best: Option<(usize, &String, &Value)> = None;
        for (template, item) in paths {
            let parts: Vec<&str> = template.split('/').collect();
            let fits = parts.len() == wanted.len()
                && parts.iter().zip(&wanted).all(|(part, word)| part.starts_with('{') || part == word);
            let operation = &item[method.to_lowercase()];
            if fits && operation.is_object() {
                // A word beats a placeholder.
                let placeholders = parts.iter().filter(|part| part.starts_with('{')).count();
                if best.is_none_or(|(fewest, ..)| placeholders < fewest) {
                    best = Some((placeholders, template, operation));
                }
            }
        }
        best.map(|(_, template, operation)| (template.clone(), operation))
    }

    fn resolve<'a>(&'a self, mut value: &'a Value) -> &'a Value {
        while let Some(target) = value["$ref"].as_str() {
            value = self.inner.document.pointer(target.trim_start_matches('#')).unwrap_or(&Value::Null);
        }
        value
    }

    fn parameters<'a>(&'a self, template: &str, operation: &'a Value) -> Vec<&'a str> {
        let own = operation["parameters"].as_array().into_iter().flatten();
        let shared = self.inner.document["paths"][template]["parameters"].as_array().into_iter().flatten();
        own.chain(shared).filter_map(|one| self.resolve(one)["name"].as_str()).collect()
    }

    fn invalid(&self, pointer: &str, instance: &Value) -> Vec<String> {
        let validator = {
            let mut validators = self.inner.validators.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = validators.get(pointer) {
                Arc::clone(known)
            } else {
                let mut schema = self.inner.document.clone();
                let fragment = pointer.replace('{', "%7B").replace('}', "%7D");
                schema["$ref"] = json!(format!("#{fragment}"));
                let made = jsonschema::options().with_draft(jsonschema::Draft::Draft202012).build(&schema);
                let made = match made {
                    Ok(made) => Arc::new(made),
                    Err(error) => return vec![format!("the description cannot be used at {pointer}: {error}")],
                };
                validators.insert(pointer.to_owned(), Arc::clone(&made));
                made
            }
        };
        validator.iter_errors(instance).take(5).map(|error| format!("{error} at '{}'", error.instance_path())).collect()
    }

    /// The fields of a request that no part of its schema knows.
    fn unknown_fields(&self, schema: &Value, body: &Value, place: &str, problems: &mut Vec<String>) {
        match body {
            Value::Object(fields) => {
                let mut known = HashMap::new();
                self.known_fields(schema, &mut known);
                if known.is_empty() {
                    return;
                }
                for (name, value) in fields {
                    match known.get(name.as_str()) {
                        Some(inner) => self.unknown_fields(inner, value, &format!("{place}/{name}"), problems),
                        None => problems.push(format!("the request has an unknown field '{place}/{name}'")),
                    }
                }
            }
            Value::Array(entries) => {
                let items = &self.resolve(schema)["items"];
                for entry in entries {
                    self.unknown_fields(items, entry, place, problems);
                }
            }
            _ => {}
        }
    }

    fn known_fields<'a>(&'a self, schema: &'a Value, known: &mut HashMap<&'a str, &'a Value>) {
        let schema = self.resolve(schema);
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            known.insert(name, inner);
        }
        for word in ["allOf", "anyOf", "oneOf"] {
            for part in schema[word].as_array().into_iter().flatten() {
                self.known_fields(part, known);
            }
        }
    }
}

fn escape(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}

/// OpenAPI 3.0 has its own dialect of JSON Schema; what differs is brought to the one that validators know.
fn modernize(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for noise in ["example", "examples", "discriminator", "xml"] {
                // A property may have such a name; its value is an object with a type then.
                if fields.get(noise).is_some_and(|inner| inner.get("type").is_none()) {
                    fields.remove(noise);
                }
            }
            for inner in fields.values_mut() {
                modernize(inner);
            }
            if fields.get("nullable") == Some(&json!(true)) {
                fields.remove("nullable");
                if let Some(Value::String(kind)) = fields.get("type").cloned() {
                    fields.insert("type".to_owned(), json!([kind, "null"]));
                    if let Some(Value::Array(words)) = fields.get_mut("enum") {
                        words.push(Value::Null);
                    }
                } else {
                    let inner = Value::Object(std::mem::take(fields));
                    fields.insert("anyOf".to_owned(), json!([inner, { "type": "null" }]));
                }
            }
        }
        Value::Array(entries) => entries.iter_mut().for_each(modernize),
        _ => {}
    }
}
