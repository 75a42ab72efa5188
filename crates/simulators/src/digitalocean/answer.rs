//! Answers, as the API gives them.

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json};

/// A status and a body, if there is one.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Option<Value>,
    pub(super) retry_after: Option<u32>,
}

impl Answer {
    pub(super) fn new(status: u16, body: Value) -> Self {
        Self { status, body: Some(body), retry_after: None }
    }

    pub(super) fn empty(status: u16) -> Self {
        Self { status, body: None, retry_after: None }
    }

    /// A refusal, in the API's one form.
    pub(super) fn error(status: u16, message: &str) -> Self {
        let id = match status {
            400 => "bad_request",
            401 => "unauthorized",
            403 => "forbidden",
            404 => "not_found",
            409 => "conflict",
            422 => "unprocessable_entity",
            429 => "too_many_requests",
            _ => "server_error",
        };
        Self::new(status, json!({ "id": id, "message": message, "request_id": "4d9d8375-3c56-4925-a3e7-eb137fed17e9" }))
    }

    pub(super) fn not_found() -> Self {
        Self::error(404, "The resource you were accessing could not be found.")
    }

    /// The whole answer, or one whose connection breaks in the middle of its body.
    pub(super) fn respond(self, limits: [i64; 3], broken: bool) -> Response {
        let empty = self.body.is_none();
        let text = self.body.map(|body| body.to_string()).unwrap_or_default();
        let body = match broken {
            true => {
                let half = Bytes::from(text.as_bytes()[..text.len() / 2].to_vec());
                let broken = std::io::Error::other("the connection breaks here");
                Body::from_stream(Broken { first: Some(half), then: Some(broken) })
            }
            false => Body::from(text),
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(self.status).expect("statuses are written as literals");
        let headers = response.headers_mut();
        if !empty {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        }
        for (name, value) in ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"].into_iter().zip(limits) {
            headers.insert(name, HeaderValue::from(value));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// What a proxy in front says in the API's place.
pub(super) fn page(status: u16, title: &str) -> Response {
    let mut response =
        Response::new(Body::from(format!("<html><head><title>{title}</title></head><body>{title}</body></html>")));
    *response.status_mut() = StatusCode::from_u16(status).expect("statuses are written as literals");
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
    response
}

/// A body that ends in an error.
struct Broken {
    first: Option<Bytes>,
    then: Option<std::io::Error>,
}

impl futures_core::Stream for Broken {
    type Item = std::io::Result<Bytes>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(self.first.take().map(Ok).or_else(|| self.then.take().map(Err)))
    }
}
