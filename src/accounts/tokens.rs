//! What programs act with: API tokens, and how every random token is made and kept.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use secrecy::SecretString;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Scope, Scopes};
use crate::{
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::UserId,
};

/// A new random token with its hash: 256 bits, URL-safe, with a prefix that secret scanners can find.
pub fn new_token(prefix: &str) -> (SecretString, [u8; 32]) {
    let token = format!("{prefix}_{}", BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()));
    let hash = hash_token(&token);
    (SecretString::from(token), hash)
}

/// The hash under which a token is stored.
pub fn hash_token(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// An API token as its owner sees it: never the token itself.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ApiToken {
    /// For revoking it.
    pub id: Uuid,
    /// What its owner calls it.
    pub name: String,
    /// Since when.
    pub created_at: Time,
    /// Until when; `null` for as long as it is not revoked.
    pub expires_at: Option<Time>,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
}

/// An API token to make.
#[derive(Debug)]
pub struct NewApiToken<'a> {
    /// Its id; with one that was used before nothing is made.
    pub id: Uuid,
    /// Whose.
    pub user: UserId,
    /// What its owner calls it, 1 to 80 characters.
    pub name: &'a str,
    /// Until when it is good; for as long as it is not revoked if left out.
    pub expires_at: Option<Time>,
    /// What it may be used for: not none, and no more than what asks for it may.
    pub scopes: Scopes,
    /// Whether what asks for it was opened with a second factor.
    pub second_factor: bool,
}

/// How many API tokens that are good one person has at most.
pub const MAX_API_TOKENS: i64 = 50;

/// Why a token was not made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// There are too many.
    #[error(
        "you have {MAX_API_TOKENS} API tokens, which is as many as one person can have; revoke one first. Nothing was made"
    )]
    TooMany,
    /// A request repeated: the token was made and shown, or its showing was lost.
    #[error(
        "this token was made already, and a token is shown once. If its answer never reached you, revoke it \
         (DELETE /api/auth/tokens/{0}) and make another under a new Idempotency-Key"
    )]
    Made(Uuid),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Makes an API token; it is shown once.
///
/// # Errors
/// [`TokenError`]; nothing is written then.
pub async fn create_api_token(
    pool: &PgPool,
    new: NewApiToken<'_>,
    at: Time,
    cause: &Cause,
) -> Result<(ApiToken, SecretString), TokenError> {
    let NewApiToken { id, user, name, expires_at, scopes, second_factor } = new;
    let (token, hash) = new_token("spt");
    let mut tx = pool.begin().await?;
    // One at a time for each person, so that the limit holds.
    sqlx::query!("select from users where id = $1 for update", user.0).execute(&mut *tx).await?;
    let good = sqlx::query!(
        r#"select count(*) as "count!", count(*) filter (where id = $2) as "made!" from api_tokens
           where user_id = $1 and (id = $2 or (revoked_at is null and (expires_at is null or expires_at > $3)))"#,
        user.0,
        id,
        at,
    )
    .fetch_one(&mut *tx)
    .await?;
    if good.made > 0 {
        return Err(TokenError::Made(id));
    }
    if good.count >= MAX_API_TOKENS {
        return Err(TokenError::TooMany);
    }
    sqlx::query!(
        "insert into api_tokens (id, user_id, name, token_hash, created_at, expires_at, scopes, second_factor) values ($1, $2, $3, $4, $5, $6, $7, $8)",
        id,
        user.0,
        name,
        &hash,
        at,
        expires_at as _,
        &scopes.words(),
        second_factor,
    )
    .execute(&mut *tx)
    .await?;
    let after = Some(json!({ "credential_id": id, "name": name, "scopes": scopes.words() }));
    let event = Event { subject: Subject::User(user), action: "user.token_created", before: None, after };
    events::record_in(&mut tx, at, cause, event).await?;
    tx.commit().await?;
    Ok((ApiToken { id, name: name.to_owned(), created_at: at, expires_at, scopes: scopes.list() }, token))
}

/// The API tokens of a person that are not revoked.
///
/// # Errors
/// Those of the database.
pub async fn api_tokens(pool: &PgPool, user: UserId) -> sqlx::Result<Vec<ApiToken>> {
    let tokens = sqlx::query!(
        r#"select id, name, created_at, expires_at as "expires_at: Time", scopes from api_tokens
           where user_id = $1 and revoked_at is null order by created_at desc limit 200"#,
        user.0
    )
    .fetch_all(pool)
    .await?;
    Ok(tokens
        .into_iter()
        .map(|row| ApiToken {
            id: row.id,
            name: row.name,
            created_at: row.created_at,
            expires_at: row.expires_at,
            scopes: Scopes::from_words(&row.scopes).list(),
        })
        .collect())
}
