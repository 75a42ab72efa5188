//! A store in HashiCorp Vault or OpenBao: the KV engine, version 2, over HTTP.
//!
//! A secret `resource/<id>/password` lies at `<mount>/data/seedplane/resource/<id>/password`, with one field, `value`. The
//! server encrypts, keeps versions and writes its own audit log; the policy that Seedplane's role needs is in
//! `docs/security.md`. Facts: <https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2> and
//! <https://developer.hashicorp.com/vault/api-docs/auth/approle>.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::sync::RwLock;

use super::{Error, KEPT_VERSIONS, LONGEST_VALUE, SecretPath, SecretStore, SecretVersion};

/// Everything of ours lies below this.
const ROOT: &str = "seedplane";

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a request that changes nothing, or is safe to repeat, is tried while the server is busy.
const TRIES: u32 = 4;

/// The longest answer that is read, in bytes.
const MOST_ANSWER: usize = 8 * 1024 * 1024;

/// How many folders a listing goes into at most.
const MOST_FOLDERS: usize = 200_000;

/// How we show who we are.
#[derive(Debug, Clone)]
pub enum Login {
    /// A token that somebody else made and renews.
    Token(SecretString),
    /// A role: the token is fetched, and fetched anew before it ends.
    AppRole {
        /// Names the role.
        role_id: SecretString,
        /// Proves that we may be it.
        secret_id: SecretString,
    },
}

/// Where the server is and who we are there.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `https://vault.example.org:8200`; plain `http` only for this machine.
    pub address: String,
    /// Who we are.
    pub login: Login,
    /// The mount of the KV engine, `secret` as a rule.
    pub mount: String,
    /// The namespace, on servers that have them.
    pub namespace: Option<String>,
}

/// A store in Vault or OpenBao. Cheap to clone.
#[derive(Clone)]
pub struct Vault {
    inner: Arc<Inner>,
}

struct Inner {
    http: reqwest::Client,
    settings: Settings,
    token: RwLock<Option<Token>>,
}

#[derive(Clone)]
struct Token {
    value: SecretString,
    renew_at: Option<Instant>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("address", &self.inner.settings.address).finish_non_exhaustive()
    }
}

/// What a KV path is asked for.
#[derive(Debug, Clone, Copy)]
enum Part {
    Data,
    Metadata,
    Destroy,
}

impl Part {
    fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Metadata => "metadata",
            Self::Destroy => "destroy",
        }
    }
}

fn unavailable(what: impl fmt::Display) -> Error {
    Error::Unavailable(what.to_string())
}

/// The server's own words, which never hold a value: it answers errors with a list of sentences.
fn words_of(status: StatusCode, body: &Value) -> String {
    let said: Vec<&str> = body["errors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let said = said.join("; ").chars().take(300).collect::<String>();
    if said.is_empty() { format!("Vault answered {status}") } else { format!("Vault answered {status}: {said}") }
}

impl Vault {
    /// Logs in, and sees that the KV engine is there.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with what is wrong and what to do.
    pub async fn open(settings: Settings) -> Result<Self, Error> {
        let url = reqwest::Url::parse(&settings.address).map_err(|_| unavailable("VAULT_ADDR is no URL"))?;
        let local = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
        if url.scheme() != "https" && !local {
            return Err(unavailable("VAULT_ADDR must be an https:// URL (http:// only for this machine)"));
        }
        let settings = Settings { address: settings.address.trim_end_matches('/').to_owned(), ..settings };
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .timeout(PATIENCE)
            .build()
            .map_err(|error| unavailable(error.without_url()))?;
        let vault = Self { inner: Arc::new(Inner { http, settings, token: RwLock::new(None) }) };
        // A path that need not exist: what counts is that we may ask.
        let asked = vault.request(Method::GET, Part::Metadata, "check/reachable", &[], None).await?;
        match asked.0 {
            StatusCode::OK | StatusCode::NOT_FOUND => Ok(vault),
            status => Err(unavailable(format!(
                "{}; does the role's policy let it use {}/*, and is that a KV engine of version 2?",
                words_of(status, &asked.1),
                vault.inner.settings.mount
            ))),
        }
    }

    /// The token to use now.
    async fn token(&self, stale: Option<&SecretString>) -> Result<SecretString, Error> {
        let (role_id, secret_id) = match &self.inner.settings.login {
            Login::Token(token) => return Ok(token.clone()),
            Login::AppRole { role_id, secret_id } => (role_id, secret_id),
        };
        let usable = |token: &Token| {
            token.renew_at.is_none_or(|at| Instant::now() < at)
                && stale.is_none_or(|stale| stale.expose_secret() != token.value.expose_secret())
        };
        if let Some(token) = self.inner.token.read().await.as_ref().filter(|token| usable(token)) {
            return Ok(token.value.clone());
        }
        let mut held = self.inner.token.write().await;
        // Another one may have logged in while we waited.
        if let Some(token) = held.as_ref().filter(|token| usable(token)) {
            return Ok(token.value.clone());
        }
        let body = json!({ "role_id": role_id.expose_secret(), "secret_id": secret_id.expose_secret() });
        let url = format!("{}/v1/auth/approle/login", self.inner.settings.address);
        let (status, answer) = self.send(self.inner.http.post(url).json(&body)).await?;
        if status != StatusCode::OK {
            return Err(unavailable(format!(
                "{}; the role id or the secret id is not accepted, or has ended",
                words_of(status, &answer)
            )));
        }
        let auth = &answer["auth"];
        let value = auth["client_token"].as_str().map(SecretString::from);
        let value = value.ok_or_else(|| unavailable("Vault's login answered no token"))?;
        // Well before it ends; a lease of 0 never does.
        let lease = auth["lease_duration"].as_u64().unwrap_or(0);
        let renew_at = (lease > 0).then(|| Instant::now() + Duration::from_secs(lease) * 2 / 3);
        *held = Some(Token { value: value.clone(), renew_at });
        Ok(value)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<(StatusCode, Value), Error> {
        let mut request = request.header("x-vault-request", "true");
        if let Some(namespace) = &self.inner.settings.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        let mut response = request
            .send()
            .await
            .map_err(|error| unavailable(format!("Vault cannot be reached: {}", error.without_url())))?;
        let status = response.status();
        let mut body = zeroize::Zeroizing::new(Vec::new());
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= MOST_ANSWER => body.extend_from_slice(&chunk),
                Ok(Some(_)) => return Err(unavailable("Vault's answer is too long")),
                Ok(None) => break,
                Err(error) => return Err(unavailable(format!("Vault's answer broke off: {}", error.without_url()))),
            }
        }
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    /// Asks with the present token; with a fresh one if it is not accepted; again if the server is busy, sealed or away.
    async fn request(
        &self,
        method: Method,
        part: Part,
        path: &str,
        query: &[(&str, String)],
        body: Option<Value>,
    ) -> Result<(StatusCode, Value), Error> {
        let Settings { address, mount, .. } = &self.inner.settings;
        let url = format!("{address}/v1/{mount}/{}/{ROOT}/{path}", part.as_str());
        let url = reqwest::Url::parse_with_params(&url, query).map_err(|_| unavailable("VAULT_ADDR is no URL"))?;
        let (mut tried, mut stale) = (0, None);
        loop {
            tried += 1;
            let token = self.token(stale.as_ref()).await?;
            let mut request =
                self.inner.http.request(method.clone(), url.clone()).header("x-vault-token", token.expose_secret());
            if let Some(body) = &body {
                request = request.json(body);
            }
            let answered = self.send(request).await;
            match answered {
                Ok((StatusCode::FORBIDDEN, _))
                    if stale.is_none() && matches!(self.inner.settings.login, Login::AppRole { .. }) =>
                {
                    stale = Some(token);
                }
                Ok((status, _))
                    if tried < TRIES && (status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()) => {}
                Err(_) if tried < TRIES => {}
                other => return other,
            }
            tokio::time::sleep(Duration::from_millis(100 << tried)).await;
        }
    }

    fn refused(&self, status: StatusCode, body: &Value) -> Error {
        unavailable(words_of(status, body))
    }

    /// Writes; with `only_first`, only where nothing is. `None`: there is something.
    async fn write(
        &self,
        path: &SecretPath,
        value: &SecretString,
        only_first: bool,
    ) -> Result<Option<SecretVersion>, Error> {
        if value.expose_secret().len() > LONGEST_VALUE {
            return Err(Error::TooLong { path: path.clone() });
        }
        let mut body = json!({ "data": { "value": value.expose_secret() } });
        if only_first {
            body["options"] = json!({ "cas": 0 });
        }
        let (status, answer) = self.request(Method::POST, Part::Data, path.as_str(), &[], Some(body)).await?;
        if only_first && status == StatusCode::BAD_REQUEST && words_of(status, &answer).contains("check-and-set") {
            return Ok(None);
        }
        if !status.is_success() {
            return Err(self.refused(status, &answer));
        }
        let version = answer["data"]["version"].as_u64().ok_or_else(|| unavailable("Vault named no version"))?;
        // The engine may be set to keep more than we do.
        if let Some(oldest) = version.checked_sub(KEPT_VERSIONS).filter(|oldest| *oldest > 0) {
            let body = json!({ "versions": [oldest] });
            let (status, answer) = self.request(Method::PUT, Part::Destroy, path.as_str(), &[], Some(body)).await?;
            if !status.is_success() && status != StatusCode::NOT_FOUND {
                return Err(self.refused(status, &answer));
            }
        }
        Ok(Some(SecretVersion(version)))
    }

    async fn read(&self, path: &SecretPath, version: Option<SecretVersion>) -> Result<Option<SecretString>, Error> {
        let query: Vec<(&str, String)> = version.map(|version| ("version", version.to_string())).into_iter().collect();
        let (status, answer) = self.request(Method::GET, Part::Data, path.as_str(), &query, None).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => match &answer["data"]["data"]["value"] {
                Value::String(value) => Ok(Some(SecretString::from(value.clone()))),
                _ => Err(Error::Damaged { path: path.to_string() }),
            },
            status => Err(self.refused(status, &answer)),
        }
    }

    /// What lies directly in a folder: names of secrets, and of folders with a slash at their end.
    async fn names(&self, folder: &str) -> Result<Vec<String>, Error> {
        let query = [("list", "true".to_owned())];
        let (status, answer) = self.request(Method::GET, Part::Metadata, folder, &query, None).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(Vec::new()),
            status if status.is_success() => Ok(answer["data"]["keys"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect()),
            status => Err(self.refused(status, &answer)),
        }
    }
}

#[async_trait]
impl SecretStore for Vault {
    fn name(&self) -> &'static str {
        "vault"
    }

    async fn put(&self, path: &SecretPath, value: SecretString) -> Result<SecretVersion, Error> {
        self.write(path, &value, false).await?.ok_or_else(|| unavailable("Vault did not write"))
    }

    async fn get_or_put(&self, path: &SecretPath, value: SecretString) -> Result<SecretString, Error> {
        // Whoever is second is told so by the server and reads what the first one wrote.
        for _ in 0..TRIES {
            if let Some(known) = self.read(path, None).await? {
                return Ok(known);
            }
            if self.write(path, &value, true).await?.is_some() {
                return Ok(value);
            }
        }
        Err(unavailable(format!("{path} was written and deleted again and again by somebody else")))
    }

    async fn get(&self, path: &SecretPath) -> Result<Option<SecretString>, Error> {
        self.read(path, None).await
    }

    async fn get_version(&self, path: &SecretPath, version: SecretVersion) -> Result<Option<SecretString>, Error> {
        // To the server, version 0 is the newest.
        if version.0 == 0 { Ok(None) } else { self.read(path, Some(version)).await }
    }

    async fn delete(&self, path: &SecretPath) -> Result<(), Error> {
        let (status, answer) = self.request(Method::DELETE, Part::Metadata, path.as_str(), &[], None).await?;
        match status {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            status => Err(self.refused(status, &answer)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<SecretPath>, Error> {
        let mut found = Vec::new();
        if let Ok(itself) = SecretPath::new(prefix)
            && self.request(Method::GET, Part::Metadata, prefix, &[], None).await?.0.is_success()
        {
            found.push(itself);
        }
        let mut folders = vec![prefix.trim_end_matches('/').to_owned()];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            seen += 1;
            if seen > MOST_FOLDERS {
                return Err(unavailable("there are more folders in Vault than are listed at once"));
            }
            for name in self.names(&folder).await? {
                let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
                match path.strip_suffix('/') {
                    Some(below) => folders.push(below.to_owned()),
                    // What others put there under a name that is none of ours is not ours.
                    None => found.extend(SecretPath::new(path).ok()),
                }
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }
}
