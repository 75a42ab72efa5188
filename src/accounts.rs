//! People, how they prove who they are, and the tokens they act with. Passwords are kept as argon2id hashes, tokens as
//! SHA-256 hashes; the tokens themselves are shown once and kept nowhere.

use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::SignedDuration;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use tokio::sync::Semaphore;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::UserId,
    seedbox::words,
};

/// How long a session lasts.
pub const SESSION_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 14);

/// How many password hashes are computed at once: each takes 19 MiB and tens of milliseconds of a core.
static HASHING: Semaphore = Semaphore::const_new(4);

words! {
    /// What a person may do.
    Role {
        /// Buys and runs boxes of their own.
        Customer = "customer",
        /// Reads what operators read.
        Support = "support",
        /// Runs the business.
        Operator = "operator",
        /// Runs the business and appoints operators.
        Owner = "owner",
    }
}

impl Role {
    /// Whether it may read what operators read.
    pub fn reads_as_operator(self) -> bool {
        matches!(self, Self::Support | Self::Operator | Self::Owner)
    }

    /// Whether it may act on other people's things, with a reason.
    pub fn is_operator(self) -> bool {
        matches!(self, Self::Operator | Self::Owner)
    }
}

/// Why an account could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The e-mail address has an account already.
    #[error("there is an account with this e-mail address already; sign in instead")]
    EmailTaken,
    /// The address is not one.
    #[error("an e-mail address has a name, an @ and a domain")]
    BadEmail,
    /// The password is too weak.
    #[error("a password has 10 to 200 characters")]
    BadPassword,
    /// Wrong e-mail or password; which one is not said.
    #[error("the e-mail address or the password is wrong")]
    BadCredentials,
    /// Too many wrong passwords, for this account or from this address.
    #[error(
        "too many wrong passwords were tried; wait {retry_after} seconds and try again. Nobody is locked out for longer"
    )]
    TooManyTries {
        /// In seconds.
        retry_after: i64,
    },
    /// The database failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Who acts on a request.
#[derive(Debug, Clone, Copy)]
pub struct Principal {
    /// The person.
    pub user_id: UserId,
    /// What they may do.
    pub role: Role,
    /// The session or token they act with.
    pub credential_id: Uuid,
}

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

fn check_email(email: &str) -> Result<String, AccountError> {
    let email = email.trim().to_lowercase();
    let (name, domain) = email.split_once('@').ok_or(AccountError::BadEmail)?;
    let plain = |part: &str| {
        !part.is_empty() && !part.chars().any(|c| c.is_whitespace() || c.is_control() || "@<>,;\"".contains(c))
    };
    // What the mailer could not address would never get a warning.
    let addressable = email.parse::<lettre::Address>().is_ok();
    if !plain(name) || !plain(domain) || email.len() > 254 || !addressable {
        return Err(AccountError::BadEmail);
    }
    Ok(email)
}

async fn hash_password(password: SecretString) -> String {
    let _permit = HASHING.acquire().await.expect("the semaphore is never closed");
    tokio::task::spawn_blocking(move || {
        Argon2::default()
            .hash_password(password.expose_secret().as_bytes())
            .expect("argon2 hashes any password of at most 200 characters")
            .to_string()
    })
    .await
    .expect("hashing does not panic")
}

async fn verify_password(password: SecretString, hash: String) -> bool {
    let _permit = HASHING.acquire().await.expect("the semaphore is never closed");
    tokio::task::spawn_blocking(move || {
        PasswordHash::new(&hash)
            .is_ok_and(|hash| Argon2::default().verify_password(password.expose_secret().as_bytes(), &hash).is_ok())
    })
    .await
    .expect("verifying does not panic")
}

/// The id of the account that a sign-up with this key makes: always the same, so that a sign-up repeated because its answer
/// was lost is told from somebody else's. The password is no part of it: an id is not secret.
pub fn id_by_key(key: &str, email: &str) -> UserId {
    let mut hasher = Sha256::new();
    for part in ["seedplane sign-up", key, &email.trim().to_lowercase()] {
        hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(part);
    }
    let hash: [u8; 32] = hasher.finalize().into();
    UserId(Uuid::new_v8(hash[..16].try_into().expect("16 of 32 bytes")))
}

/// Makes an account with its ledger accounts.
///
/// # Errors
/// [`AccountError`]; nothing is written then.
pub async fn sign_up(
    pool: &PgPool,
    id: UserId,
    email: &str,
    password: SecretString,
    role: Role,
    at: Time,
    cause: impl FnOnce(UserId) -> Cause,
) -> Result<UserId, AccountError> {
    let email = check_email(email)?;
    if !(10..=200).contains(&password.expose_secret().chars().count()) {
        return Err(AccountError::BadPassword);
    }
    let hash = hash_password(password).await;
    let mut tx = pool.begin().await?;
    let inserted = sqlx::query!(
        "insert into users (id, email, password_hash, role, created_at) values ($1, $2, $3, $4, $5) on conflict (email) do nothing",
        id.0,
        email,
        hash,
        role.as_str(),
        at,
    )
    .execute(&mut *tx)
    .await?;
    if inserted.rows_affected() == 0 {
        return Err(AccountError::EmailTaken);
    }
    sqlx::query!("select seedbox_billing_account_open($1, $2)", id.0, at).execute(&mut *tx).await?;
    let event = Event {
        subject: Subject::User(id),
        action: "user.signed_up",
        before: None,
        after: Some(json!({ "role": role })),
    };
    events::record_in(&mut tx, at, &cause(id), event).await?;
    tx.commit().await?;
    Ok(id)
}

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

/// Wrong passwords for one account in the window: from one address, and from all those it was never opened from.
const WRONG_FOR_ACCOUNT: i64 = 10;
/// Wrong passwords from one address in the window, whosever.
const WRONG_FROM_ADDRESS: i64 = 30;
/// For how long a wrong password counts.
const WRONG_COUNTS_FOR: SignedDuration = SignedDuration::from_mins(15);
/// An address from which the account was opened is known for so long, and keeps a budget of its own: somebody else's
/// guessing does not lock the owner out.
const ADDRESS_KNOWN_FOR: SignedDuration = SignedDuration::from_hours(24 * 30);

/// A sign-in that is being tried. It counts as failed until it has succeeded, so that many at once are counted, too.
struct SignInAttempt {
    id: Uuid,
    account_hash: [u8; 32],
    address_hash: [u8; 32],
}

impl SignInAttempt {
    async fn begin(pool: &PgPool, email: &str, from: &str, at: Time) -> Result<Self, AccountError> {
        let hash = |kind: &str, text: &str| -> [u8; 32] { Sha256::digest(format!("{kind}:{text}")).into() };
        let (account_hash, address_hash) = (hash("account", email), hash("address", from));
        let attempt = Self { id: Uuid::now_v7(), account_hash, address_hash };
        sqlx::query!(
            "insert into sign_in_attempts (id, account_hash, address_hash, succeeded, at) values ($1, $2, $3, false, $4)",
            attempt.id,
            &account_hash,
            &address_hash,
            at,
        )
        .execute(pool)
        .await?;
        let wrong = sqlx::query!(
            r#"select count(*) filter (where account_hash = $1 and address_hash = $2) as "here!",
                   count(*) filter (where account_hash = $1) as "account!",
                   count(*) filter (where address_hash = $2) as "address!",
                   min(at) as "oldest: Time",
                   exists (select from sign_in_attempts
                           where account_hash = $1 and address_hash = $2 and succeeded and at > $4) as "known!"
               from sign_in_attempts where (account_hash = $1 or address_hash = $2) and not succeeded and at > $3"#,
            &account_hash,
            &address_hash,
            Time(at.0 - WRONG_COUNTS_FOR),
            Time(at.0 - ADDRESS_KNOWN_FOR),
        )
        .fetch_one(pool)
        .await?;
        // This one is among them.
        let refused = wrong.here > WRONG_FOR_ACCOUNT
            || wrong.address > WRONG_FROM_ADDRESS
            || (!wrong.known && wrong.account > WRONG_FOR_ACCOUNT);
        if refused {
            // What is refused is no guess: it does not make the wait longer.
            sqlx::query!("delete from sign_in_attempts where id = $1", attempt.id).execute(pool).await?;
            let oldest = wrong.oldest.unwrap_or(at);
            let retry_after = (oldest.0 + WRONG_COUNTS_FOR).duration_since(at.0).as_secs().max(1);
            return Err(AccountError::TooManyTries { retry_after });
        }
        Ok(attempt)
    }

    async fn succeeded_in(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query!("update sign_in_attempts set succeeded = true where id = $1", self.id)
            .execute(&mut *connection)
            .await?;
        sqlx::query!(
            "delete from sign_in_attempts where account_hash = $1 and address_hash = $2 and not succeeded",
            &self.account_hash,
            &self.address_hash,
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// Forgets what is of no use any more, a little at a time: sessions and links that ended, answers kept for a repeated
/// request, sign-ins that were tried. What makes money be booked once is the ledger's own keys, which are never forgotten.
///
/// # Errors
/// Those of the database.
pub async fn forget(pool: &PgPool, at: Time) -> sqlx::Result<()> {
    let month_ago = Time(at.0 - SignedDuration::from_hours(24 * 30));
    sqlx::query!(
        "with old as (select id from sessions where expires_at < $1 order by expires_at limit 500 for update skip locked)
         delete from sessions s using old where s.id = old.id",
        month_ago
    )
    .execute(pool)
    .await?;
    sqlx::query!(
        "with old as (select token_hash from one_time_links where expires_at < $1 order by expires_at limit 500 for update skip locked)
         delete from one_time_links l using old where l.token_hash = old.token_hash",
        month_ago
    )
    .execute(pool)
    .await?;
    sqlx::query!(
        "with old as (select user_id, key from idempotency_keys where created_at < $1 order by created_at limit 500 for update skip locked)
         delete from idempotency_keys k using old where k.user_id = old.user_id and k.key = old.key",
        month_ago
    )
    .execute(pool)
    .await?;
    sqlx::query!(
        "with old as (select id from sign_in_attempts where at < $1 order by at limit 500 for update skip locked)
         delete from sign_in_attempts a using old where a.id = old.id",
        month_ago
    )
    .execute(pool)
    .await?;
    Ok(())
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

/// Makes an API token; it is shown once. With an id that was used before nothing is made.
///
/// # Errors
/// [`TokenError`]; nothing is written then.
pub async fn create_api_token(
    pool: &PgPool,
    id: Uuid,
    user: UserId,
    name: &str,
    expires_at: Option<Time>,
    at: Time,
    cause: &Cause,
) -> Result<(ApiToken, SecretString), TokenError> {
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
        "insert into api_tokens (id, user_id, name, token_hash, created_at, expires_at) values ($1, $2, $3, $4, $5, $6)",
        id,
        user.0,
        name,
        &hash,
        at,
        expires_at as _,
    )
    .execute(&mut *tx)
    .await?;
    let after = Some(json!({ "credential_id": id, "name": name }));
    let event = Event { subject: Subject::User(user), action: "user.token_created", before: None, after };
    events::record_in(&mut tx, at, cause, event).await?;
    tx.commit().await?;
    Ok((ApiToken { id, name: name.to_owned(), created_at: at, expires_at }, token))
}

/// The API tokens of a person that are not revoked.
///
/// # Errors
/// Those of the database.
pub async fn api_tokens(pool: &PgPool, user: UserId) -> sqlx::Result<Vec<ApiToken>> {
    sqlx::query_as!(
        ApiToken,
        "select id, name, created_at, expires_at from api_tokens where user_id = $1 and revoked_at is null
         order by created_at desc limit 200",
        user.0
    )
    .fetch_all(pool)
    .await
}

/// The operator with this address, if there is one: who a command on the command line is recorded for.
///
/// # Errors
/// Those of the database.
pub async fn operator_by_email(pool: &PgPool, email: &str) -> sqlx::Result<Option<UserId>> {
    sqlx::query_scalar!("select id from users where email = lower($1) and role in ('operator', 'owner')", email)
        .fetch_optional(pool)
        .await
}

/// The e-mail address of a person.
///
/// # Errors
/// Those of the database.
pub async fn email_of(pool: &PgPool, user: UserId) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!("select email from users where id = $1", user.0).fetch_optional(pool).await
}

/// A person by their address, with why their balance is held, if it is.
///
/// # Errors
/// Those of the database.
pub async fn customer_by_email(pool: &PgPool, email: &str) -> sqlx::Result<Option<(UserId, String, Option<String>)>> {
    let found = sqlx::query!(
        r#"select u.id as "id: UserId", u.email, a.payout_hold_reason from users u
           join seedbox_billing_accounts a on a.user_id = u.id where u.email = lower($1)"#,
        email
    )
    .fetch_optional(pool)
    .await?;
    Ok(found.map(|row| (row.id, row.email, row.payout_hold_reason)))
}

/// Whether there is such a person.
///
/// # Errors
/// Those of the database.
pub async fn exists(pool: &PgPool, user: UserId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"select exists (select from users where id = $1) as "exists!""#, user.0).fetch_one(pool).await
}
