//! The calls of DigitalOcean's API that we make, one at a time, with what came of each told apart by what may have happened:
//! not done, done, or nobody knows.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use reqwest::{Method, StatusCode, header::HeaderMap};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Error;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest answer that is read, in bytes: a page of 200 droplets has about 1 MB.
const MOST_ANSWER: usize = 8 * 1024 * 1024;

/// The longest wait that the API can ask of us, in seconds.
const LONGEST_WAIT: i64 = 3600;

/// How much of an error message is passed on.
const MOST_MESSAGE: usize = 300;

/// The largest page that the API gives.
const PAGE: usize = 200;

/// How many pages of a list are read at most: 20,000 entries.
const MOST_PAGES: usize = 100;

/// Where "now" comes from.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Why a call did not do what was asked.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// 404: the thing named is not there, or not to be seen yet.
    NotFound,
    /// Nothing was done, for this reason.
    NotDone(Error),
    /// It may have been done: the answer was lost, or was none.
    Lost(String),
}

impl Failure {
    /// As a caller's error where nothing but a look was taken, or where "not there" is not expected.
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::NotFound => Error::transient("DigitalOcean does not find what it has just named"),
            Self::NotDone(error) => error,
            Self::Lost(what) => Error::Unknown(what),
        }
    }
}

/// Whether a call can wait for another hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Somebody waits for it.
    Needed,
    /// A look that comes again by itself: it leaves the last tenth of the hour's requests to those that are needed.
    Deferrable,
}

/// How many requests are left, by the headers of the newest answer
/// (<https://docs.digitalocean.com/reference/api/reference/introduction/#rate-limit>).
#[derive(Debug, Default)]
struct Budget {
    limit: i64,
    remaining: Option<i64>,
    /// When the oldest of the hour's requests expires.
    reset: i64,
    /// Nothing is sent before this.
    not_before: Option<Timestamp>,
}

/// A client for one token.
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    token: SecretString,
    now: Now,
    budget: Mutex<Budget>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(base: &str, token: SecretString, now: Now) -> Result<Self, Error> {
        let plain = base.strip_prefix("http://");
        if !base.starts_with("https://") && !plain.is_some_and(is_this_machine) {
            let why = "DigitalOcean's API is reached by https; plain http is for this machine only".to_owned();
            return Err(Error::Refused { why });
        }
        let mut builder = reqwest::Client::builder();
        if plain.is_some() {
            // Nothing is certified on this machine, and reading the system's certificates takes longer than a request.
            builder = builder.no_proxy().tls_certs_only([]);
        }
        let http = builder
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .timeout(PATIENCE)
            // Sent again by itself, a request could make a second machine.
            .retry(reqwest::retry::never())
            .user_agent(concat!("seedplane/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::transient(error.without_url()))?;
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self { http, base, token, now, budget: Mutex::default() })
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T, Failure> {
        self.get_with(Urgency::Needed, path, query).await
    }

    async fn get_with<T: DeserializeOwned>(
        &self,
        urgency: Urgency,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let path = match query {
            [] => path.to_owned(),
            _ => {
                let mut url = reqwest::Url::parse("http://unused.invalid").expect("a constant");
                url.query_pairs_mut().extend_pairs(query);
                format!("{path}?{}", url.query().unwrap_or_default())
            }
        };
        let body = self.send(urgency, Method::GET, &path, None).await.map_err(|failure| match failure {
            // A look can be taken again.
            Failure::Lost(what) => Failure::NotDone(Error::transient(what)),
            other => other,
        })?;
        serde_json::from_slice(&body).map_err(|error| {
            Failure::NotDone(Error::transient(format!("DigitalOcean's answer cannot be read: {error}")))
        })
    }

    /// Every entry of a list under `key`, page by page.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        urgency: Urgency,
        path: &str,
        key: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, Failure> {
        let per_page = PAGE.to_string();
        let mut entries = Vec::new();
        // Pages are counted here: a link to the next page that leads in a circle has been seen from such APIs.
        for page in 1..=MOST_PAGES {
            let number = page.to_string();
            let paging = [("page", number.as_str()), ("per_page", per_page.as_str())];
            let query: Vec<_> = query.iter().copied().chain(paging).collect();
            let mut answer: Value = self.get_with(urgency, path, &query).await?;
            let Value::Array(found) = answer[key].take() else {
                return Err(Failure::NotDone(Error::transient(format!("DigitalOcean's list has no '{key}'"))));
            };
            let more = answer["links"]["pages"]["next"].is_string() && !found.is_empty();
            for entry in found {
                let entry = serde_json::from_value(entry).map_err(|error| {
                    let what = format!("an entry of DigitalOcean's '{key}' cannot be read: {error}");
                    Failure::NotDone(Error::transient(what))
                })?;
                entries.push(entry);
            }
            if !more {
                return Ok(entries);
            }
        }
        Err(Failure::NotDone(Error::transient(format!("DigitalOcean's list of '{key}' does not end"))))
    }

    /// A call that changes something. Its answer is `T` if it can be read; where it cannot, it may have been done.
    pub(super) async fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        let answer = self.send(Urgency::Needed, method, path, body).await?;
        let text: &[u8] = if answer.is_empty() { b"null" } else { &answer };
        serde_json::from_slice(text)
            .map_err(|error| Failure::Lost(format!("DigitalOcean's answer cannot be read: {error}")))
    }

    async fn send(
        &self,
        urgency: Urgency,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Vec<u8>, Failure> {
        self.may_send(urgency).map_err(Failure::NotDone)?;
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        request = request.bearer_auth(self.token.expose_secret());
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut response = request.send().await.map_err(|error| {
            let unsent = error.is_connect() || error.is_builder();
            let what = format!("no answer from DigitalOcean: {}", root_cause(error));
            if unsent { Failure::NotDone(Error::transient(what)) } else { Failure::Lost(what) }
        })?;
        let status = response.status();
        let asked_to_wait = self.note_budget(status, response.headers());
        let mut answer = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if answer.len() + chunk.len() <= MOST_ANSWER => answer.extend_from_slice(&chunk),
                Ok(Some(_)) => return Err(Failure::Lost("DigitalOcean's answer is larger than 8 MiB".to_owned())),
                Ok(None) => break,
                // What was refused stays refused, whether the reason came through or not.
                Err(_) if status.is_client_error() => break,
                Err(error) => {
                    return Err(Failure::Lost(format!("DigitalOcean's answer broke off: {}", root_cause(error))));
                }
            }
        }
        if status.is_success() {
            return Ok(answer);
        }
        Err(classify(status, &answer, asked_to_wait))
    }

    /// Whether the budget allows a request now.
    fn may_send(&self, urgency: Urgency) -> Result<(), Error> {
        let now = (self.now)();
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = |until: i64, message: &str| {
            let seconds = (until - now.as_second()).clamp(1, LONGEST_WAIT);
            let retry_after = Some(Duration::from_secs(seconds.unsigned_abs()));
            Err(Error::Transient { message: message.to_owned(), retry_after })
        };
        match budget.not_before {
            Some(until) if until > now => {
                return wait(until.as_second() + 1, "DigitalOcean asked us to wait; nothing was sent");
            }
            _ => budget.not_before = None,
        }
        let scarce = budget.remaining.is_some_and(|remaining| remaining * 10 < budget.limit);
        if urgency == Urgency::Deferrable && scarce && budget.reset > now.as_second() {
            return wait(budget.reset, "few of DigitalOcean's hourly requests are left; this look waits for others");
        }
        Ok(())
    }

    /// Reads how many requests are left; how long to wait, if this answer says so.
    fn note_budget(&self, status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
        let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<i64>().ok();
        let now = (self.now)();
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(limit), Some(remaining)) = (number("ratelimit-limit"), number("ratelimit-remaining")) {
            (budget.limit, budget.remaining) = (limit, Some(remaining));
            budget.reset = number("ratelimit-reset").unwrap_or(0);
        }
        if status != StatusCode::TOO_MANY_REQUESTS {
            return None;
        }
        // Only the limit on bursts says for how long. The hourly one is over when the oldest request expires.
        let seconds = number("retry-after").or_else(|| (budget.reset > 0).then(|| budget.reset - now.as_second()));
        let wait = Duration::from_secs(seconds.unwrap_or(60).clamp(1, LONGEST_WAIT).unsigned_abs());
        budget.not_before = now.checked_add(wait).ok();
        Some(wait)
    }
}

fn is_this_machine(rest: &str) -> bool {
    let host = rest.split(['/', ':']).next().unwrap_or_default();
    host == "localhost" || host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

/// What a refusal means, by its status and, where many things share one, by its words.
fn classify(status: StatusCode, body: &[u8], asked_to_wait: Option<Duration>) -> Failure {
    let said: Option<Value> = serde_json::from_slice(body).ok();
    let message = said.as_ref().and_then(|said| said["message"].as_str()).unwrap_or_default();
    let message: String = message.chars().filter(|c| !c.is_control()).take(MOST_MESSAGE).collect();
    let message = if message.is_empty() { format!("DigitalOcean answered {status}") } else { message };
    let lower = message.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    match status.as_u16() {
        404 => Failure::NotFound,
        401 | 403 => Failure::NotDone(Error::Auth(message)),
        429 => Failure::NotDone(Error::Transient { message, retry_after: asked_to_wait }),
        409 => Failure::NotDone(Error::transient(message)),
        422 if has(&["pending event", "try again", "is locked", "currently being"]) => {
            Failure::NotDone(Error::transient(message))
        }
        422 if has(&["limit", "not available", "unavailable", "capacity", "sold out", "out of stock"]) => {
            Failure::NotDone(Error::NoCapacity(message))
        }
        400..500 => Failure::NotDone(Error::Refused { why: message }),
        // A gateway in front may have given up while the request went on behind it.
        _ => Failure::Lost(message),
    }
}

fn root_cause(error: reqwest::Error) -> String {
    let kind = if error.is_timeout() { "it took too long" } else { "the connection broke" };
    let mut cause: &dyn std::error::Error = &error.without_url();
    let mut root = cause.to_string();
    while let Some(source) = cause.source() {
        cause = source;
        root = cause.to_string();
    }
    format!("{kind}: {root}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(status: u16, body: &str) -> String {
        let failure = classify(StatusCode::from_u16(status).unwrap(), body.as_bytes(), None);
        match failure {
            Failure::NotFound => "not found".to_owned(),
            Failure::Lost(_) => "lost".to_owned(),
            Failure::NotDone(Error::Transient { .. }) => "again".to_owned(),
            Failure::NotDone(Error::NoCapacity(_)) => "no capacity".to_owned(),
            Failure::NotDone(Error::Auth(_)) => "auth".to_owned(),
            Failure::NotDone(Error::Refused { why }) => format!("refused: {why}"),
            Failure::NotDone(error) => error.to_string(),
        }
    }

    #[test]
    fn refusals_are_told_apart_by_what_to_do_next() {
        let error = |message: &str| format!(r#"{{"id":"unprocessable_entity","message":"{message}"}}"#);
        for (status, body, expected) in [
            (401, error("Unable to authenticate you."), "auth"),
            (403, error("You do not have access for the attempted action."), "auth"),
            (404, error("The resource you were accessing could not be found."), "not found"),
            (409, error("The request could not be completed due to a conflict."), "again"),
            (422, error("Droplet already has a pending event."), "again"),
            (422, error("Something went wrong, please try again."), "again"),
            (422, error("creating this/these droplet(s) will exceed your droplet limit"), "no capacity"),
            (422, error("Size is not available in this region."), "no capacity"),
            (
                422,
                error("You specified an invalid image for Droplet creation."),
                "refused: You specified an invalid image for Droplet creation.",
            ),
            (429, error("API rate limit exceeded."), "again"),
            (500, error("Unexpected server-side error"), "lost"),
            (502, "<html><body>Bad Gateway</body></html>".to_owned(), "lost"),
            (503, String::new(), "lost"),
            (302, String::new(), "lost"),
        ] {
            assert_eq!(classified(status, &body), expected, "{status} {body}");
        }
    }
}
