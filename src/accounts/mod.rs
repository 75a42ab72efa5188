//! People, how they prove who they are, and the tokens they act with. Passwords are kept as argon2id hashes, tokens as
//! SHA-256 hashes; the tokens themselves are shown once and kept nowhere.

pub mod issuers;
mod passwords;
mod reset;
mod scopes;
mod sessions;
mod tokens;
mod totp;

use std::collections::HashMap;

use jiff::SignedDuration;
use secrecy::SecretString;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use uuid::Uuid;

pub use passwords::{PasswordChange, change_password};
pub use reset::{RESET_LIFETIME, answer_reset, complete_reset, open_reset, request_reset, reset_is_open};
pub use scopes::{Needed, Scope, Scopes, needed};
pub use sessions::{
    MAX_SESSIONS, Opened, SESSION_LIFETIME, SessionView, SignIn, authenticate, end_other_sessions, make_sign_in_link,
    revoke, session_is_good, sessions_of, sign_in, sign_in_by_issuer, sign_in_by_link,
};
pub use tokens::{
    ApiToken, MAX_API_TOKENS, NewApiToken, TokenError, api_tokens, create_api_token, hash_token, new_token,
};
pub use totp::{
    SecondFactor, TotpRemoval, TotpSecret, begin_totp, confirm_totp, remove_totp, reset_second_factor, second_factor,
};

use crate::{
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::UserId,
    seedbox::words,
};

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
    /// Somebody who is signed in gave a wrong password where theirs is asked for again.
    #[error("that is not your present password; nothing was changed")]
    WrongPassword,
    /// There is no password to change.
    #[error("this account has no password: it signs in elsewhere. Nothing was changed; change the password there")]
    NoPassword,
    /// The password was right, and a code is needed too.
    #[error(
        "the password is right, and this account has a second factor: sign in with a code of the authenticator app, or a recovery \
         code, too"
    )]
    SecondFactorNeeded,
    /// A wrong code at sign-in.
    #[error("the code is wrong, or was used before: wait for the next one, or use a recovery code")]
    BadCode,
    /// Somebody who is signed in gave a wrong code.
    #[error("the code is wrong, or was used before; nothing was changed. Wait for the next one and try again")]
    WrongCode,
    /// There is a second factor already.
    #[error("the second factor is on already; nothing was changed. Turn it off first to set up another one")]
    SecondFactorOn,
    /// There is no second factor, or none was begun.
    #[error(
        "there is no second factor to confirm or turn off; nothing was changed. Begin one with POST /api/auth/totp"
    )]
    SecondFactorOff,
    /// The link for a new password was used, is too old or has been replaced.
    #[error(
        "this link does not open: it was used before, is older than an hour, a newer one was sent, or the password was changed \
         since. Nothing was changed; ask for a new link"
    )]
    ResetClosed,
    /// Too many resets were asked for.
    #[error(
        "a new password was asked for too often; wait {retry_after} seconds and ask again. The newest mail that was sent stays good"
    )]
    TooManyResets {
        /// In seconds.
        retry_after: i64,
    },
    /// Too many wrong passwords, for this account or from this address.
    #[error(
        "too many wrong passwords or codes were tried; wait {retry_after} seconds and try again. Nobody is locked out for longer"
    )]
    TooManyTries {
        /// In seconds.
        retry_after: i64,
    },
    /// The database failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// The secret store failed.
    #[error(transparent)]
    Secrets(#[from] crate::secrets::Error),
}

/// Who acts on a request.
#[derive(Debug, Clone, Copy)]
pub struct Principal {
    /// The person.
    pub user_id: UserId,
    /// What they may do.
    pub role: Role,
    /// What they act with.
    pub credential: Credential,
    /// What that may be used for.
    pub scopes: Scopes,
    /// Whether that was opened with a second factor, or made in such a session.
    pub second_factor: bool,
}

/// What somebody proves with a request who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// A session, opened with a password.
    Session(Uuid),
    /// An API token.
    Token(Uuid),
    /// A token of another issuer, which alone can end it.
    Issued,
    /// A session on pages, opened with such a token.
    IssuedSession(Uuid),
}

impl Principal {
    /// The session they act in, if it was opened with a password: what changes how somebody proves who they are needs one.
    pub fn session(&self) -> Option<Uuid> {
        match self.credential {
            Credential::Session(id) => Some(id),
            Credential::Token(_) | Credential::Issued | Credential::IssuedSession(_) => None,
        }
    }

    /// The session they act in, whatever it was opened with.
    pub fn any_session(&self) -> Option<Uuid> {
        match self.credential {
            Credential::Session(id) | Credential::IssuedSession(id) => Some(id),
            Credential::Token(_) | Credential::Issued => None,
        }
    }
}

/// An e-mail address as it is kept, if it is one that a mail can go to.
///
/// # Errors
/// [`AccountError::BadEmail`].
pub fn check_email(email: &str) -> Result<String, AccountError> {
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
    let hash = passwords::hash_new_password(password).await?;
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

/// Forgets what is of no use any more, a little at a time: sessions and links that ended, answers kept for a repeated
/// request, sign-ins that were tried, resets that were asked for. What makes money be booked once is the ledger's own keys, which are never forgotten.
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
        "with old as (select id from password_reset_requests where at < $1 order by at limit 500 for update skip locked)
         delete from password_reset_requests r using old where r.id = old.id",
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

/// The e-mail addresses of these people.
///
/// # Errors
/// Those of the database.
pub async fn emails_of(pool: &PgPool, users: &[UserId]) -> sqlx::Result<HashMap<UserId, String>> {
    let users: Vec<Uuid> = users.iter().map(|user| user.0).collect();
    let found = sqlx::query!("select id, email from users where id = any($1)", &users).fetch_all(pool).await?;
    Ok(found.into_iter().map(|row| (row.id, row.email)).collect())
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

/// The person with this address, if there is one.
///
/// # Errors
/// Those of the database.
pub async fn by_email(pool: &PgPool, email: &str) -> sqlx::Result<Option<UserId>> {
    sqlx::query_scalar!("select id from users where email = lower($1)", email).fetch_optional(pool).await
}

/// Whether there is such a person.
///
/// # Errors
/// Those of the database.
pub async fn exists(pool: &PgPool, user: UserId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"select exists (select from users where id = $1) as "exists!""#, user.0).fetch_one(pool).await
}
