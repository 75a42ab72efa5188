//! Sessions: opened with a password, good for two weeks.

use jiff::SignedDuration;
use secrecy::SecretString;
use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

use super::{
    AccountError, Principal, Role, check_email,
    passwords::{SignInAttempt, hash_password, verify_password},
    tokens::{hash_token, new_token},
};
use crate::{
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::UserId,
};

/// How long a session lasts.
pub const SESSION_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 14);

/// Opens a session for somebody who knows the password.
///
/// # Errors
/// [`AccountError::BadCredentials`] takes as long for an unknown address as for a wrong password.
pub async fn sign_in(
    pool: &PgPool,
    email: &str,
    password: SecretString,
    from: &str,
    at: Time,
) -> Result<(UserId, SecretString), AccountError> {
    // The hash of no password anybody can type: verified against when there is no such account.
    static NOBODY: tokio::sync::OnceCell<String> = tokio::sync::OnceCell::const_new();
    let nobody = NOBODY.get_or_init(|| async { hash_password(new_token("nobody").0).await }).await;

    let email = check_email(email).map_err(|_| AccountError::BadCredentials)?;
    let attempt = SignInAttempt::begin(pool, &email, from, at).await?;
    let user =
        sqlx::query!(r#"select id, password_hash from users where email = $1"#, email).fetch_optional(pool).await?;
    let (id, hash) = match user {
        Some(user) => (Some(user.id), user.password_hash),
        None => (None, None),
    };
    let matches = verify_password(password, hash.unwrap_or_else(|| nobody.clone())).await;
    let (Some(id), true) = (id, matches) else { return Err(AccountError::BadCredentials) };

    let (token, token_hash) = new_token("sps");
    let mut tx = pool.begin().await?;
    sqlx::query!(
        "insert into sessions (id, user_id, token_hash, created_at, expires_at) values ($1, $2, $3, $4, $5)",
        Uuid::now_v7(),
        id.0,
        &token_hash,
        at,
        Time(at.0 + SESSION_LIFETIME),
    )
    .execute(&mut *tx)
    .await?;
    let cause = Cause { actor: events::Actor::User(id), reason: String::new(), request_id: None };
    let event = Event { subject: Subject::User(id), action: "user.signed_in", before: None, after: None };
    events::record_in(&mut tx, at, &cause, event).await?;
    attempt.succeeded_in(&mut tx).await?;
    tx.commit().await?;
    Ok((id, token))
}

/// Who a session or API token belongs to, if it is good.
///
/// # Errors
/// Those of the database.
pub async fn authenticate(pool: &PgPool, token: &str, at: Time) -> sqlx::Result<Option<Principal>> {
    let hash = hash_token(token);
    let row = sqlx::query!(
        r#"select c.id as "credential_id!", u.id as "user_id!: UserId", u.role as "role!: Role"
           from (
               select id, user_id from sessions where token_hash = $1 and revoked_at is null and expires_at > $2
               union all
               select id, user_id from api_tokens
               where token_hash = $1 and revoked_at is null and (expires_at is null or expires_at > $2)
           ) c join users u on u.id = c.user_id"#,
        &hash,
        at,
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| Principal { user_id: row.user_id, role: row.role, credential_id: row.credential_id }))
}

/// Ends a session or revokes an API token of this person. False if there is none.
///
/// # Errors
/// Those of the database.
pub async fn revoke(pool: &PgPool, user: UserId, credential: Uuid, at: Time, cause: &Cause) -> sqlx::Result<bool> {
    let mut tx = pool.begin().await?;
    let ended = sqlx::query_scalar!(
        r#"with ended_sessions as (
               update sessions set revoked_at = $3 where id = $1 and user_id = $2 and revoked_at is null returning 1 as one
           ), ended_tokens as (
               update api_tokens set revoked_at = $3 where id = $1 and user_id = $2 and revoked_at is null returning 1 as one
           )
           select (select count(*) from ended_sessions) + (select count(*) from ended_tokens) as "ended!""#,
        credential,
        user.0,
        at,
    )
    .fetch_one(&mut *tx)
    .await?;
    if ended > 0 {
        let after = Some(json!({ "credential_id": credential }));
        let event = Event { subject: Subject::User(user), action: "user.credential_revoked", before: None, after };
        events::record_in(&mut tx, at, cause, event).await?;
    }
    tx.commit().await?;
    Ok(ended > 0)
}
