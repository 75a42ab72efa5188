//! Errors as `application/problem+json` (RFC 9457): what happened, what was left untouched, what to do next.

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::JsonRejection},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use utoipa::ToSchema;

use crate::{
    accounts::{AccountError, Scope, TokenError, issuers::IssuerError},
    orders::OrderError,
    reports::ReportError,
    seedbox::lifecycle::TransitionError,
};

/// A problem, as it is answered.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// What sort of problem, stable for programs: `not-found`, `balance-too-low`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened and what to do, for people.
    pub detail: String,
    /// After how many seconds to ask again, in the header.
    #[serde(skip)]
    retry_after: Option<i64>,
}

impl Problem {
    /// A problem of a kind.
    pub fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            retry_after: None,
        }
    }

    /// Not there, or not yours: the two are not told apart.
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", format!("there is no such {what}, or it is not yours"))
    }

    /// The input cannot be used.
    pub fn bad_input(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "bad-input", detail)
    }

    /// The thing is not in a state in which that can be done.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", detail)
    }

    /// The body is larger than any that is needed.
    pub fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "a body has at most 64 KiB; nothing was done")
    }

    /// What is said of an error that some layer below answered in words of its own, or in none.
    pub fn of_status(status: StatusCode) -> Self {
        let (kind, detail) = match status {
            StatusCode::NOT_FOUND => return Self::not_found("page"),
            StatusCode::METHOD_NOT_ALLOWED => {
                ("method-not-allowed", "this address does not take that method; the header `Allow` says which it takes")
            }
            StatusCode::PAYLOAD_TOO_LARGE => return Self::too_large(),
            StatusCode::GATEWAY_TIMEOUT => (
                "timed-out",
                "it took longer than 30 seconds; what was asked may or may not have been done. Ask again with the same \
                 Idempotency-Key: it is done once",
            ),
            StatusCode::BAD_REQUEST => ("bad-request", "the request cannot be read; nothing was done"),
            status if status.is_client_error() => ("refused", "the request was refused; nothing was done"),
            _ => (
                "internal-error",
                "something went wrong on our side; what was not confirmed may or may not have been done. Ask again with the \
                 same Idempotency-Key: it is done once",
            ),
        };
        Self::new(status, kind, detail)
    }

    /// What is asked for is for sessions alone.
    pub fn session_needed() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "session-needed",
            "this takes a session: sign in with your password. Neither an API token, whatever its scopes, nor another issuer's token \
             can do it. Nothing was changed",
        )
    }

    /// Somebody who reads or acts as an operator has proved too little.
    pub fn second_factor_required() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "second-factor-required",
            "operators and support need a second factor here; nothing was done. Set one up with POST /api/auth/totp and \
             POST /api/auth/totp/confirm, and sign in with a code of it; an API token is good here if it is made in such a session",
        )
    }

    /// There is nobody else who could approve.
    pub fn second_person_missing() -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "second-person-missing",
            "this needs the approval of a second operator, and there is no other; nothing was done. Make one with `seedplane operator \
             create EMAIL`, or turn the rule off with SEEDPLANE_TWO_PERSON_RULE=false in the settings of every copy",
        )
    }

    /// The token is not for this.
    pub fn scope_missing(one_of: &[Scope]) -> Self {
        let names: Vec<String> = one_of.iter().map(|scope| format!("`{scope}`")).collect();
        let detail = format!(
            "this API token lacks the scope {}, which this needs; nothing was done. Make a token that has it, with a session or \
             a token that has it",
            names.join(" or ")
        );
        Self::new(StatusCode::FORBIDDEN, "scope-missing", detail)
    }

    /// Nobody is signed in.
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "send a session or API token as `Authorization: Bearer <token>`",
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let retry_after = self.retry_after;
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        // Class 22 is a value that cannot be held, 23 one that breaks a rule of its table: the same again would be refused
        // again. Its own words name tables and values, which are for the log.
        let class =
            error.as_database_error().and_then(|error| error.code().map(|code| code[..2.min(code.len())].to_owned()));
        if matches!(class.as_deref(), Some("22" | "23")) {
            tracing::warn!(%error, "a value was refused by the database");
            return Self::bad_input(
                "a value cannot be stored: it is too long, too large, out of range or does not fit what is there. Nothing was done",
            );
        }
        tracing::error!(%error, "the database failed");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "database-unavailable",
            "the database cannot be reached or did not answer; what was asked may or may not have been done. Ask again in a \
             moment, with the same Idempotency-Key: it is done once",
        )
    }
}

impl From<crate::secrets::Error> for Problem {
    fn from(error: crate::secrets::Error) -> Self {
        tracing::error!(%error, "the secret store failed");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "secret-store-unavailable",
            "the secret store cannot be read; nothing was changed. Try again in a moment",
        )
    }
}

impl From<AccountError> for Problem {
    fn from(error: AccountError) -> Self {
        let detail = error.to_string();
        match error {
            AccountError::EmailTaken => Self::new(StatusCode::CONFLICT, "email-taken", detail),
            AccountError::BadEmail | AccountError::BadPassword => Self::bad_input(detail),
            AccountError::BadCredentials => Self::new(StatusCode::UNAUTHORIZED, "bad-credentials", detail),
            AccountError::WrongPassword => Self::new(StatusCode::FORBIDDEN, "wrong-password", detail),
            AccountError::NoPassword => Self::new(StatusCode::CONFLICT, "no-password", detail),
            AccountError::SecondFactorNeeded => Self::new(StatusCode::UNAUTHORIZED, "second-factor-needed", detail),
            AccountError::BadCode => Self::new(StatusCode::UNAUTHORIZED, "wrong-code", detail),
            AccountError::WrongCode => Self::new(StatusCode::FORBIDDEN, "wrong-code", detail),
            AccountError::SecondFactorOn => Self::new(StatusCode::CONFLICT, "second-factor-on", detail),
            AccountError::SecondFactorOff => Self::new(StatusCode::CONFLICT, "second-factor-off", detail),
            AccountError::ResetClosed => Self::new(StatusCode::GONE, "link-closed", detail),
            AccountError::TooManyResets { retry_after } => Self {
                retry_after: Some(retry_after),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-resets", detail)
            },
            AccountError::TooManyTries { retry_after } => Self {
                retry_after: Some(retry_after),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-tries", detail)
            },
            AccountError::Database(error) => error.into(),
            AccountError::Secrets(error) => error.into(),
        }
    }
}

impl From<IssuerError> for Problem {
    fn from(error: IssuerError) -> Self {
        let detail = error.to_string();
        match error {
            IssuerError::Refused(_) => Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail),
            IssuerError::EmailOfAnother => Self::new(StatusCode::FORBIDDEN, "email-of-another-account", detail),
            IssuerError::Unavailable => Self::new(StatusCode::SERVICE_UNAVAILABLE, "issuer-unavailable", detail),
            IssuerError::Database(error) => error.into(),
        }
    }
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        let detail = error.to_string();
        match error {
            TokenError::TooMany => Self::new(StatusCode::CONFLICT, "too-many-tokens", detail),
            TokenError::Made(_) => Self::conflict(detail),
            TokenError::Database(error) => error.into(),
        }
    }
}

impl From<OrderError> for Problem {
    fn from(error: OrderError) -> Self {
        let detail = error.to_string();
        match error {
            OrderError::PlanNotOnSale => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "plan-not-on-sale", detail),
            OrderError::TooMany => Self::new(StatusCode::CONFLICT, "too-many-orders", detail),
            OrderError::Held => Self::new(StatusCode::CONFLICT, "balance-held", detail),
            OrderError::Unavailable(_) => Self::new(StatusCode::CONFLICT, "plan-unavailable", detail),
            OrderError::NotCancellable(_) => Self::conflict(detail),
            OrderError::Database(error) => error.into(),
        }
    }
}

impl From<ReportError> for Problem {
    fn from(error: ReportError) -> Self {
        let detail = error.to_string();
        match error {
            ReportError::Wrong(_) => Self::bad_input(detail),
            ReportError::TooOften { minutes } => Self {
                retry_after: Some(minutes * 60),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-reports", detail)
            },
            ReportError::TooManyOpen => Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-reports", detail),
            ReportError::Full => Self::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-reports", detail),
            ReportError::Sent { .. } => Self::conflict(detail),
            ReportError::Database(error) => error.into(),
        }
    }
}

impl From<TransitionError> for Problem {
    fn from(error: TransitionError) -> Self {
        match error {
            TransitionError::Database(error) => error.into(),
            other => Self::conflict(other.to_string()),
        }
    }
}

/// A JSON body; what is wrong with it is answered as a problem.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let body = match Bytes::from_request(Request::from_parts(parts.clone(), body), state).await {
            Ok(body) => body,
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => return Err(Problem::too_large()),
            Err(_) => {
                return Err(Problem::new(
                    StatusCode::BAD_REQUEST,
                    "cut-short",
                    "the body did not arrive whole; nothing was done",
                ));
            }
        };
        if has_nul(&body) {
            return Err(Problem::bad_input(
                "a text holds the character NUL (\\u0000), which cannot be stored; nothing was done",
            ));
        }
        match Json::<T>::from_request(Request::from_parts(parts, body.into()), state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not-json",
                "send the body as JSON with `Content-Type: application/json`",
            )),
            Err(rejection) => Err(Problem::bad_input(plainly(&rejection.body_text()))),
        }
    }
}

/// What is wrong with a JSON body or a query, without the name of the part of the program that found it.
fn plainly(said: &str) -> String {
    let cause = [
        "Failed to deserialize the JSON body into the target type: ",
        "Failed to parse the request body as JSON: ",
        "Failed to deserialize query string: ",
    ]
    .iter()
    .find_map(|prefix| said.strip_prefix(prefix));
    match cause {
        Some(cause) => format!("the request is not understood: {cause}. Nothing was done; /docs shows what it takes"),
        None => said.to_owned(),
    }
}

/// Whether JSON holds an escaped NUL, which is the only way it can hold one. A backslash stands in texts only, and takes the
/// character after it with it.
fn has_nul(json: &[u8]) -> bool {
    let mut rest = json;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        if rest[at + 1..].starts_with(b"u0000") {
            return true;
        }
        rest = rest.get(at + 2..).unwrap_or_default();
    }
    false
}

/// A body as it came, for what is signed.
pub struct Raw(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        Bytes::from_request(request, state).await.map(Self).map_err(|_| Problem::too_large())
    }
}

/// An id in the path; one that is no id is nobody's.
pub struct Id<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Id<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(id) = Path::<T>::from_request_parts(parts, state).await.map_err(|_| Problem::not_found("thing"))?;
        Ok(Self(id))
    }
}

/// Query parameters; what is wrong with them is answered as a problem.
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        if parts.uri.query().is_some_and(|query| query.contains("%00")) {
            return Err(Problem::bad_input(
                "a parameter holds the character NUL (%00), which cannot be stored; nothing was done",
            ));
        }
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::bad_input(plainly(&rejection.body_text()))),
        }
    }
}
