//! A stand-in for Vault and OpenBao: the KV engine, version 2, and the AppRole login, as their API documents say, with the
//! faults that a real server shows: sealed, busy, tokens that end, policies that refuse.
//!
//! Facts: <https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2>,
//! <https://developer.hashicorp.com/vault/api-docs/auth/approle>.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Response},
    routing::{any, post},
};
use serde_json::{Value, json};

/// How many versions the engine keeps unless it is told otherwise.
const MAX_VERSIONS: u64 = 10;

/// The server. Cheap to clone; clones are the same server.
#[derive(Debug, Clone)]
pub struct Vault {
    state: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    role_id: String,
    secret_id: String,
    lease: Duration,
    root_token: String,
    tokens: HashMap<String, Instant>,
    logins: u32,
    secrets: BTreeMap<String, Secret>,
    sealed: bool,
    busy_answers: u32,
    refuse_writes: bool,
    lose_answers: u32,
    max_versions: u64,
}

#[derive(Debug, Clone, Default)]
struct Secret {
    current: u64,
    versions: BTreeMap<u64, Option<Value>>,
}

fn errors(status: StatusCode, said: &[&str]) -> Response {
    (status, Json(json!({ "errors": said }))).into_response()
}

impl Vault {
    /// A server with one role and one token that never ends.
    pub fn new(role_id: &str, secret_id: &str, root_token: &str) -> Self {
        let inner = Inner {
            role_id: role_id.to_owned(),
            secret_id: secret_id.to_owned(),
            lease: Duration::from_secs(3600),
            root_token: root_token.to_owned(),
            tokens: HashMap::new(),
            logins: 0,
            secrets: BTreeMap::new(),
            sealed: false,
            busy_answers: 0,
            refuse_writes: false,
            lose_answers: 0,
            max_versions: MAX_VERSIONS,
        };
        Self { state: Arc::new(Mutex::new(inner)) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a token of the role lasts from now on.
    pub fn set_lease(&self, lease: Duration) {
        self.inner().lease = lease;
    }

    /// Ends every token of the role, as a restart of the server or a revocation does.
    pub fn end_tokens(&self) {
        self.inner().tokens.clear();
    }

    /// Seals it, or unseals it: sealed, it answers 503.
    pub fn set_sealed(&self, sealed: bool) {
        self.inner().sealed = sealed;
    }

    /// Answers so many requests with 429 and then goes on.
    pub fn be_busy(&self, answers: u32) {
        self.inner().busy_answers = answers;
    }

    /// Does what the next so many writes ask, and loses the answer.
    pub fn lose_answers(&self, answers: u32) {
        self.inner().lose_answers = answers;
    }

    /// Whether the policy refuses writes.
    pub fn set_refuse_writes(&self, refuse: bool) {
        self.inner().refuse_writes = refuse;
    }

    /// How many versions the engine keeps.
    pub fn set_max_versions(&self, versions: u64) {
        self.inner().max_versions = versions;
    }

    /// How often somebody logged in with the role.
    pub fn logins(&self) -> u32 {
        self.inner().logins
    }

    /// How many secrets there are.
    pub fn secrets(&self) -> usize {
        self.inner().secrets.len()
    }

    /// Its API.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/v1/auth/approle/login", post(login))
            .route("/v1/secret/{part}/{*path}", any(kv))
            .with_state(self.clone())
    }
}

async fn login(State(vault): State<Vault>, Json(body): Json<Value>) -> Response {
    let mut inner = vault.inner();
    if inner.sealed {
        return errors(StatusCode::SERVICE_UNAVAILABLE, &["Vault is sealed"]);
    }
    if body["role_id"] != inner.role_id || body["secret_id"] != inner.secret_id {
        return errors(StatusCode::BAD_REQUEST, &["invalid role or secret ID"]);
    }
    inner.logins += 1;
    let token = format!("hvs.stand-in-{}", inner.logins);
    let lease = inner.lease;
    inner.tokens.insert(token.clone(), Instant::now() + lease);
    Json(json!({ "auth": { "client_token": token, "lease_duration": lease.as_secs(), "renewable": true } }))
        .into_response()
}

async fn kv(
    State(vault): State<Vault>,
    method: Method,
    Path((part, path)): Path<(String, String)>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut inner = vault.inner();
    if inner.sealed {
        return errors(StatusCode::SERVICE_UNAVAILABLE, &["Vault is sealed"]);
    }
    if inner.busy_answers > 0 {
        inner.busy_answers -= 1;
        return errors(StatusCode::TOO_MANY_REQUESTS, &["request path: rate limit quota exceeded"]);
    }
    let token = headers.get("x-vault-token").and_then(|token| token.to_str().ok()).unwrap_or_default();
    let live = token == inner.root_token || inner.tokens.get(token).is_some_and(|until| Instant::now() < *until);
    if !live {
        return errors(StatusCode::FORBIDDEN, &["permission denied"]);
    }
    let writes = method != Method::GET;
    if writes && inner.refuse_writes {
        return errors(StatusCode::FORBIDDEN, &["1 error occurred:\n\t* permission denied\n\n"]);
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let list = query.get("list").is_some_and(|list| list == "true");
    let path = path.trim_end_matches('/').to_owned();
    let answer = match (part.as_str(), &method) {
        ("data", &Method::GET) => read(&inner, &path, &query),
        ("data", &Method::POST | &Method::PUT) => write(&mut inner, &path, &body),
        ("destroy", &Method::POST | &Method::PUT) => destroy(&mut inner, &path, &body),
        ("metadata", &Method::GET) if list => names(&inner, &path),
        ("metadata", &Method::GET) => match inner.secrets.get(&path) {
            Some(secret) => Json(json!({ "data": { "current_version": secret.current } })).into_response(),
            None => errors(StatusCode::NOT_FOUND, &[]),
        },
        ("metadata", &Method::DELETE) => {
            inner.secrets.remove(&path);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => errors(StatusCode::METHOD_NOT_ALLOWED, &["unsupported operation"]),
    };
    if writes && inner.lose_answers > 0 {
        inner.lose_answers -= 1;
        return errors(StatusCode::BAD_GATEWAY, &["the answer was lost on the way"]);
    }
    answer
}

fn read(inner: &Inner, path: &str, query: &HashMap<String, String>) -> Response {
    let asked = query.get("version").and_then(|version| version.parse::<u64>().ok()).filter(|version| *version > 0);
    let Some(secret) = inner.secrets.get(path) else { return errors(StatusCode::NOT_FOUND, &[]) };
    let version = asked.unwrap_or(secret.current);
    match secret.versions.get(&version) {
        Some(Some(data)) => {
            Json(json!({ "data": { "data": data, "metadata": { "version": version, "destroyed": false } } }))
                .into_response()
        }
        // Destroyed: there is metadata, no data, and the status of what is not there.
        Some(None) => {
            let body = json!({ "data": { "data": null, "metadata": { "version": version, "destroyed": true } } });
            (StatusCode::NOT_FOUND, Json(body)).into_response()
        }
        None => errors(StatusCode::NOT_FOUND, &[]),
    }
}

fn write(inner: &mut Inner, path: &str, body: &Value) -> Response {
    let max = inner.max_versions;
    let current = inner.secrets.get(path).map_or(0, |secret| secret.current);
    if let Some(cas) = body["options"]["cas"].as_u64()
        && cas != current
    {
        return errors(StatusCode::BAD_REQUEST, &["check-and-set parameter did not match the current version"]);
    }
    if !body["data"].is_object() {
        return errors(StatusCode::BAD_REQUEST, &["no data provided"]);
    }
    let secret = inner.secrets.entry(path.to_owned()).or_default();
    secret.current += 1;
    let version = secret.current;
    secret.versions.insert(version, Some(body["data"].clone()));
    secret.versions.retain(|known, _| known + max > version);
    Json(json!({ "data": { "version": version, "destroyed": false } })).into_response()
}

fn destroy(inner: &mut Inner, path: &str, body: &Value) -> Response {
    let Some(secret) = inner.secrets.get_mut(path) else { return errors(StatusCode::NOT_FOUND, &[]) };
    for version in body["versions"].as_array().into_iter().flatten().filter_map(Value::as_u64) {
        if let Some(data) = secret.versions.get_mut(&version) {
            *data = None;
        }
    }
    StatusCode::NO_CONTENT.into_response()
}

fn names(inner: &Inner, folder: &str) -> Response {
    let prefix = format!("{folder}/");
    let mut keys: Vec<String> = inner
        .secrets
        .keys()
        .filter_map(|path| path.strip_prefix(&prefix))
        .map(|rest| rest.split_once('/').map_or_else(|| rest.to_owned(), |(folder, _)| format!("{folder}/")))
        .collect();
    keys.sort();
    keys.dedup();
    if keys.is_empty() {
        return errors(StatusCode::NOT_FOUND, &[]);
    }
    Json(json!({ "data": { "keys": keys } })).into_response()
}
