//! One call over HTTP: no redirects, bounded in time and size, errors without the URL.

use std::time::Duration;

use reqwest::{RequestBuilder, StatusCode, header};

/// The most that is read of an answer.
pub(super) const LARGEST_ANSWER: usize = 1 << 20;
/// The longest wait that a `Retry-After` can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// A client for gateways.
pub(super) fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10))
        .user_agent(concat!("seedplane/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection: the other side has seen nothing.
    NotSent(String),
    /// It may have been seen and done.
    Lost(String),
}

/// Sends the request and reads the answer.
pub(super) async fn call(request: RequestBuilder, timeout: Duration) -> Result<Answer, Failure> {
    let mut response = request.timeout(timeout).send().await.map_err(|error| {
        let unsent = error.is_connect() || error.is_builder();
        let why = describe(error);
        if unsent { Failure::NotSent(why) } else { Failure::Lost(why) }
    })?;
    let status = response.status();
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(retry_after);
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::Lost(describe(error)))? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Err(Failure::Lost("the answer is larger than 1 MiB".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, retry_after, body })
}

/// Seconds only: a date would have to be compared with somebody else's clock.
fn retry_after(value: &header::HeaderValue) -> Option<Duration> {
    let seconds = value.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
}

fn describe(error: reqwest::Error) -> String {
    let kind = if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the connection broke"
    };
    let mut cause: &dyn std::error::Error = &error.without_url();
    let mut root = cause.to_string();
    while let Some(source) = cause.source() {
        cause = source;
        root = cause.to_string();
    }
    format!("{kind}: {root}")
}
