//! `Idempotency-Key` on every POST: the same key with the same request is carried out once and answered the same again.
//!
//! Two things make it exact. The first answer is kept and replayed. And what a request makes gets an id computed from
//! the key ([`NewId`]), so that a request repeated after a crash, before its answer was kept, finds what it made.
//! Answers that hold a secret (`Cache-Control: no-store`) are not kept.

use axum::{
    body::{Body, to_bytes},
    extract::{FromRequestParts, Request, State},
    http::{HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use jiff::SignedDuration;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::error::Problem;
use crate::{app::App, auth, clock::Time};

/// The largest body a request may have.
pub const MAX_BODY: usize = 64 * 1024;

/// Where bodies hold passwords and codes.
const HOLD_SECRETS: [&str; 4] = ["/api/auth/sign-in", "/api/auth/sign-up", "/api/auth/password", "/api/auth/totp"];

/// A request that was begun so long ago and has no answer was cut off: it is carried out again.
const ABANDONED_AFTER: SignedDuration = SignedDuration::from_secs(30);

/// The id of what this request makes: always the same for the same key.
#[derive(Debug, Clone, Copy)]
pub struct NewId(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for NewId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        Ok(parts.extensions.get::<Self>().copied().unwrap_or_else(|| Self(Uuid::now_v7())))
    }
}

/// The middleware.
///
/// # Errors
/// A problem if the key was used for something else, or its first request is still being carried out.
pub async fn layer(State(app): State<App>, request: Request, next: Next) -> Result<Response, Problem> {
    let (mut parts, body) = request.into_parts();
    let key = match parts.headers.get("idempotency-key") {
        Some(key) if parts.method == Method::POST => key.to_str().ok().map(str::to_owned).unwrap_or_default(),
        _ => return Ok(next.run(Request::from_parts(parts, body)).await),
    };
    if !(1..=255).contains(&key.len()) {
        return Err(Problem::bad_input("Idempotency-Key has 1 to 255 printable characters"));
    }
    let now = app.now();
    let principal = match auth::bearer(&parts) {
        // What is wrong with a token is for the route to say: it may be for everybody.
        Some(token) => match auth::principal_of(&app, token).await {
            Err(problem) if problem.status >= 500 => return Err(problem),
            other => other.unwrap_or_default(),
        },
        None => None,
    };
    // Without a person there is nobody the key could belong to. Sign-up takes it by itself; sign-in makes a session each time.
    let Some(principal) = principal else { return Ok(next.run(Request::from_parts(parts, body)).await) };
    let user = principal.user_id.0;

    let body = to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "a body has at most 64 KiB"))?;
    let mut hasher = Sha256::new();
    // The hash of a short secret tells the secret to whoever tries them all. With the bearer token in it, of which the database
    // holds only a hash, nobody can.
    if HOLD_SECRETS.iter().any(|start| parts.uri.path().starts_with(start)) {
        hasher.update(auth::bearer(&parts).unwrap_or_default());
    }
    for part in [parts.method.as_str().as_bytes(), parts.uri.path().as_bytes(), body.as_ref()] {
        hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(part);
    }
    let request_hash: [u8; 32] = hasher.finalize().into();

    let begun = sqlx::query_scalar!(
        r#"insert into idempotency_keys (user_id, key, request_hash, created_at) values ($1, $2, $3, $4)
           on conflict (user_id, key) do update set created_at = $4
           where idempotency_keys.response_status is null and idempotency_keys.request_hash = $3
             and idempotency_keys.created_at < $5
           returning true as "begun!""#,
        user,
        key,
        &request_hash,
        now,
        Time(now.0 - ABANDONED_AFTER),
    )
    .fetch_optional(&app.pool)
    .await?;
    if begun.is_none() {
        return replay(&app, user, &key, &request_hash).await;
    }

    let mut seed = Sha256::new();
    seed.update(user.as_bytes());
    seed.update(key.as_bytes());
    let seed: [u8; 32] = seed.finalize().into();
    parts.extensions.insert(NewId(Uuid::new_v8(seed[..16].try_into().expect("16 of 32 bytes"))));
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;

    if response.status().is_server_error() {
        // Whether it happened is not known, so the key stays with its request: repeated, it is carried out again at once and
        // finds what it made. Where the database does not answer this either, it can be repeated once it counts as cut off.
        let long_ago = Time(now.0 - ABANDONED_AFTER - ABANDONED_AFTER);
        let freed = sqlx::query!(
            "update idempotency_keys set created_at = $3 where user_id = $1 and key = $2",
            user,
            key,
            long_ago,
        )
        .execute(&app.pool)
        .await;
        if let Err(error) = freed {
            tracing::warn!(%error, "an Idempotency-Key stays taken for a moment");
        }
        return Ok(response);
    }
    let secret = response.headers().get(header::CACHE_CONTROL).is_some_and(|value| value == "no-store");
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 1 << 20).await.map_err(|_| Problem::conflict("the answer is too large to be kept"))?;
    let kept = if secret { None } else { std::str::from_utf8(&body).ok() };
    sqlx::query!(
        "update idempotency_keys set response_status = $3, response_body = $4 where user_id = $1 and key = $2",
        user,
        key,
        i16::try_from(parts.status.as_u16()).unwrap_or(500),
        kept,
    )
    .execute(&app.pool)
    .await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}

async fn replay(app: &App, user: Uuid, key: &str, request_hash: &[u8; 32]) -> Result<Response, Problem> {
    let kept = sqlx::query!(
        "select request_hash, response_status, response_body from idempotency_keys where user_id = $1 and key = $2",
        user,
        key
    )
    .fetch_optional(&app.pool)
    .await?;
    let still_running = || {
        Problem::new(
            StatusCode::CONFLICT,
            "in-progress",
            "the first request with this Idempotency-Key is still being carried out",
        )
    };
    let kept = kept.ok_or_else(still_running)?;
    if kept.request_hash != request_hash {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency-key-reused",
            "this Idempotency-Key was used for another request; nothing was done. Use a new key for a new request",
        ));
    }
    let status = kept.response_status.and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok());
    let status = status.ok_or_else(still_running)?;
    let Some(body) = kept.response_body else {
        return Err(Problem::conflict(
            "this was done already; its answer held a secret, which is shown once and not kept",
        ));
    };
    let mut response = (status, body).into_response();
    let kind = if status.is_success() { "application/json" } else { "application/problem+json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert("idempotent-replay", HeaderValue::from_static("true"));
    Ok(response)
}
