//! Errors as `application/problem+json` (RFC 9457): what happened, what was left untouched, what to do next.

use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::JsonRejection},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use utoipa::ToSchema;

use crate::{
    accounts::{AccountError, TokenError},
    orders::OrderError,
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
}

impl Problem {
    /// A problem of a kind.
    pub fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
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
        response
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        tracing::error!(%error, "the database failed");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "database-unavailable",
            "the database cannot be reached or refused; nothing was changed. Try again in a moment",
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
            AccountError::Database(error) => error.into(),
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
            OrderError::NotCancellable(_) => Self::conflict(detail),
            OrderError::Database(error) => error.into(),
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
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not-json",
                "send the body as JSON with `Content-Type: application/json`",
            )),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "a body has at most 64 KiB"))
            }
            Err(rejection) => Err(Problem::bad_input(rejection.body_text())),
        }
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
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::bad_input(rejection.body_text())),
        }
    }
}
