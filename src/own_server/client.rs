//! Talks to a Seedplane over HTTP on behalf of an owner: the token stays off the command line and, in clear, off the network.

use std::{
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Method, StatusCode, Url, header};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use uuid::Uuid;

/// Where the token is looked for if no file is named.
const TOKEN_VARIABLE: &str = "SEEDPLANE_TOKEN";

/// A token is shorter than this, in bytes.
const LONGEST_TOKEN: u64 = 4096;

/// The most that is read of an answer, in bytes.
const LARGEST_ANSWER: usize = 8 << 20;

/// How often something is sent until it is answered.
const TRIES: u32 = 3;

/// How it ended, as an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// Seedplane refused.
    Refused = 1,
    /// What was given cannot be used; nothing was sent.
    Misused = 2,
    /// Seedplane did not answer.
    Unreachable = 3,
    /// It is not so after the wait.
    NotSo = 4,
    /// It is done, and its proof is missing: not verified, or two records that differ.
    Unproved = 5,
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    /// A word for it, stable for programs.
    pub(super) kind: String,
    /// The HTTP status, where Seedplane answered.
    pub(super) status: Option<u16>,
    /// What happened.
    pub(super) what: String,
    /// What was left untouched.
    pub(super) untouched: String,
    /// What to do next.
    pub(super) next: String,
}

impl Failure {
    pub(super) fn new(
        exit: Exit,
        kind: &str,
        what: impl Into<String>,
        untouched: &str,
        next: impl Into<String>,
    ) -> Self {
        let what = what.into();
        Self { exit, kind: kind.to_owned(), status: None, what, untouched: untouched.to_owned(), next: next.into() }
    }

    fn misused(kind: &str, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Exit::Misused, kind, what, "nothing was sent", next)
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({ "type": self.kind, "status": self.status, "detail": self.what, "left_untouched": self.untouched, "next": self.next })
    }
}

/// Where a Seedplane is and what lets us in.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Where to and as whom")]
pub(super) struct Access {
    /// The public URL of the Seedplane, https:// unless it is on this machine
    #[arg(long, global = true, env = "SEEDPLANE_URL", value_name = "URL")]
    url: Option<String>,
    /// A file of mode 0600 with your API token; without it the token is taken from the environment variable SEEDPLANE_TOKEN
    #[arg(long, global = true, env = "SEEDPLANE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Send the token in clear to another machine: everybody on the way can read it
    #[arg(long, global = true)]
    allow_plain_http: bool,
}

/// A Seedplane.
pub(super) struct Client {
    http: reqwest::Client,
    /// Without a slash at the end.
    base: String,
    token: Option<SecretString>,
}

/// Whether a URL leads to this machine, so that nobody on a network reads what is sent there.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn base_of(access: &Access) -> Result<Url, Failure> {
    let text = access.url.as_deref().filter(|text| !text.is_empty()).ok_or_else(|| {
        Failure::misused(
            "no-url",
            "it is not said where the Seedplane is",
            "give its public URL with --url or SEEDPLANE_URL",
        )
    })?;
    let bad =
        |why: &str| Failure::misused("bad-url", format!("the URL cannot be used: {why}"), "give it as https://<host>");
    // What stands in a wrong URL may be a secret: it is not said again.
    let url = Url::parse(text).map_err(|error| bad(&error.to_string()))?;
    if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none() {
        return Err(bad("it is not an http:// or https:// URL"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it has more than a host and a path; a token does not belong into a URL"));
    }
    if url.scheme() == "http" && !is_loopback(&url) && !access.allow_plain_http {
        return Err(Failure::misused(
            "plain-http",
            format!("{url} is plain http to another machine, and everybody on the way could read your token"),
            "use https://, or say --allow-plain-http if the way there is safe otherwise",
        ));
    }
    Ok(url)
}

fn read_token_file(file: &Path) -> Result<String, Failure> {
    let name = file.display();
    let unreadable = |error: std::io::Error| {
        Failure::misused(
            "token-file-unreadable",
            format!("the token file {name} cannot be read: {error}"),
            "name a file that is there and yours, with --token-file",
        )
    };
    let opened = std::fs::File::open(file).map_err(unreadable)?;
    let about = opened.metadata().map_err(unreadable)?;
    let mode = about.permissions().mode() & 0o777;
    if !about.is_file() {
        return Err(Failure::misused(
            "token-file-unreadable",
            format!("{name} is not a file"),
            "name a file that holds the token alone",
        ));
    }
    if mode & 0o077 != 0 {
        return Err(Failure::misused(
            "token-file-open-to-others",
            format!("the token file {name} has mode {mode:04o}: others on this machine may have read your token"),
            format!("`chmod 600 {name}`, and make a new token if anybody else uses this machine"),
        ));
    }
    let mut text = String::new();
    opened.take(LONGEST_TOKEN).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

fn token_of(access: &Access) -> Result<SecretString, Failure> {
    let text = match &access.token_file {
        Some(file) => read_token_file(file)?,
        None => std::env::var(TOKEN_VARIABLE).map_err(|_| {
            Failure::misused(
                "no-token",
                "there is no API token",
                format!(
                    "put one into the environment variable {TOKEN_VARIABLE}, or into a file of mode 0600 and name it with \
                     --token-file; POST /api/auth/tokens makes one"
                ),
            )
        })?,
    };
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::misused(
            "bad-token",
            "what was given as the API token is none: it is empty, or has spaces or line breaks in it",
            "give the token alone, as it was shown when it was made",
        ));
    }
    Ok(SecretString::from(token.to_owned()))
}

/// An error with its causes, without the URL, which is said already.
fn reasons(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(deeper) = cause {
        let said = deeper.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = deeper.source();
    }
    text
}

/// What is said of an answer that is an error.
fn problem_of(status: StatusCode, retry_after: Option<&str>, body: &[u8], repeat: Option<&str>) -> Failure {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let code = status.as_u16();
    let (Some(kind), Some(detail)) = (problem["type"].as_str(), problem["detail"].as_str()) else {
        return Failure {
            status: Some(code),
            ..Failure::new(
                Exit::Unreachable,
                "not-seedplane",
                format!("what answers there, with status {code}, is not a Seedplane or stands in front of one"),
                "whether anything was done is not known, if it was a Seedplane; else nothing was",
                "check the URL: it is the one that the Seedplane's own links begin with",
            )
        };
    };
    let untouched = match code {
        500.. => "whether it was done is not known",
        _ => "the request was refused, and nothing was changed by it",
    };
    let next = match (code, kind) {
        (401, _) => "check the token; a new one is made with POST /api/auth/tokens".to_owned(),
        (404, _) => "`seedplane own-server list` lists your connections".to_owned(),
        (409, _) => "`seedplane own-server show` says where the connection stands".to_owned(),
        (429, _) => format!("wait {} seconds, then ask again", retry_after.unwrap_or("some")),
        (500.., _) => match repeat {
            Some(key) => format!("give the same command again with --idempotency-key {key}: it is done once"),
            None => "give the same command again in a moment".to_owned(),
        },
        _ => "mend what it says and give the command again; --help says what it takes".to_owned(),
    };
    let exit = if code >= 500 { Exit::Unreachable } else { Exit::Refused };
    Failure { status: Some(code), ..Failure::new(exit, kind, detail, untouched, next) }
}

impl Client {
    /// A Seedplane to talk to; without a token only what everybody may read can be asked for.
    pub(super) fn new(access: &Access, with_token: bool) -> Result<Self, Failure> {
        let url = base_of(access)?;
        let token = with_token.then(|| token_of(access)).transpose()?;
        // The token goes where it was said to go and nowhere else.
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(40))
            .user_agent(concat!("seedplane/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&url) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| {
            Failure::misused("no-client", format!("no connection can be made: {}", reasons(error)), "mend that first")
        })?;
        Ok(Self { http, base: url.as_str().trim_end_matches('/').to_owned(), token })
    }

    /// Its public URL, without a slash at the end.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.json(Method::GET, path, None, None).await
    }

    /// A text that everybody may read.
    pub(super) async fn text(&self, path: &str) -> Result<String, Failure> {
        let body = self.send(Method::GET, path, None, None).await?;
        String::from_utf8(body).map_err(|_| self.strange())
    }

    /// Asks for something to be done, once: a lost answer is asked for again under the same key.
    pub(super) async fn post(&self, path: &str, body: &Value, key: Option<&str>) -> Result<Value, Failure> {
        self.json(Method::POST, path, Some(body), key).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.json(Method::DELETE, path, None, None).await
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
    ) -> Result<Value, Failure> {
        let answer = self.send(method, path, body, key).await?;
        serde_json::from_slice(&answer).map_err(|_| self.strange())
    }

    fn strange(&self) -> Failure {
        Failure::new(
            Exit::Unreachable,
            "not-seedplane",
            format!("what answers at {} does not answer as a Seedplane of this version does", self.base),
            "whether anything was done is not known, if it was a Seedplane; else nothing was",
            "check the URL, and that this program is as new as the Seedplane",
        )
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        given_key: Option<&str>,
    ) -> Result<Vec<u8>, Failure> {
        let posted = method == Method::POST;
        let key = given_key.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
        let key = posted.then_some(key.as_str());
        let mut tried = 0;
        loop {
            tried += 1;
            let failure = match self.once(&method, path, body, key, given_key).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let passes = failure.exit == Exit::Unreachable && failure.status.is_none_or(|status| status > 500);
            if !passes || tried == TRIES {
                return Err(failure);
            }
            tokio::time::sleep(Duration::from_millis(500) * tried).await;
        }
    }

    async fn once(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
        repeat: Option<&str>,
    ) -> Result<Vec<u8>, Failure> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose_secret());
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let lost = |error: reqwest::Error| {
            let unsent = error.is_connect() || error.is_builder() || *method == Method::GET;
            let untouched = if unsent { "nothing was changed" } else { "whether it was done is not known" };
            let next = match repeat {
                Some(key) if !unsent => {
                    format!("when it answers, give the same command with --idempotency-key {key}: it is done once")
                }
                _ => "check the URL and the network, then give the command again".to_owned(),
            };
            let what = format!("{} cannot be reached, or did not answer: {}", self.base, reasons(error));
            Failure::new(Exit::Unreachable, "unreachable", what, untouched, next)
        };
        let mut response = request.send().await.map_err(lost)?;
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if status.is_redirection() {
            let to = header(header::LOCATION).unwrap_or_else(|| "somewhere else".to_owned());
            let what = format!("{} sends us on to {to}; your token was not sent there", self.base);
            let next = "if you trust that address, give it with --url";
            let redirected = Failure::new(Exit::Unreachable, "redirected", what, "nothing was changed", next);
            return Err(Failure { status: Some(status.as_u16()), ..redirected });
        }
        let retry_after = header(header::RETRY_AFTER);
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if answer.len() + chunk.len() > LARGEST_ANSWER {
                return Err(self.strange());
            }
            answer.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(answer);
        }
        Err(problem_of(status, retry_after.as_deref(), &answer, repeat))
    }
}
