//! Passwords: how they are hashed, changed, and how often they can be guessed.

use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier};
use jiff::SignedDuration;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{AccountError, reset::end_resets_in, sessions::end_sessions_in};
use crate::{
    app::App,
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::UserId,
    mailer::{self, templates},
};

/// How many password hashes are computed at once: each takes 19 MiB and tens of milliseconds of a core.
static HASHING: Semaphore = Semaphore::const_new(4);

/// The hash of a password that somebody chose.
pub(super) async fn hash_new_password(password: SecretString) -> Result<String, AccountError> {
    if !(10..=200).contains(&password.expose_secret().chars().count()) {
        return Err(AccountError::BadPassword);
    }
    Ok(hash_password(password).await)
}

pub(super) async fn hash_password(password: SecretString) -> String {
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

pub(super) async fn verify_password(password: SecretString, hash: String) -> bool {
    let _permit = HASHING.acquire().await.expect("the semaphore is never closed");
    tokio::task::spawn_blocking(move || {
        PasswordHash::new(&hash)
            .is_ok_and(|hash| Argon2::default().verify_password(password.expose_secret().as_bytes(), &hash).is_ok())
    })
    .await
    .expect("verifying does not panic")
}

/// A new password, and what proves that it is the owner who wants it.
#[derive(Debug)]
pub struct PasswordChange<'a> {
    /// Whose.
    pub user: UserId,
    /// The session it is asked for in, which goes on.
    pub session: Uuid,
    /// The present password.
    pub current: SecretString,
    /// The new one, 10 to 200 characters.
    pub new: SecretString,
    /// The address it comes from.
    pub from: &'a str,
}

/// Changes a password. All other sessions end; API tokens stay, as what runs with them knows no password.
///
/// # Errors
/// [`AccountError`]; nothing is changed then. Wrong guesses at the present password count like those of sign-in.
pub async fn change_password(app: &App, change: PasswordChange<'_>, cause: &Cause) -> Result<(), AccountError> {
    let (user, at) = (change.user, app.now());
    let account =
        sqlx::query!("select email, password_hash from users where id = $1", user.0).fetch_one(&app.pool).await?;
    let old = account.password_hash.ok_or(AccountError::NoPassword)?;
    let attempt = SignInAttempt::begin(&app.pool, &account.email, change.from, at).await?;
    if !verify_password(change.current, old.clone()).await {
        return Err(AccountError::WrongPassword);
    }
    let new = match hash_new_password(change.new).await {
        Ok(new) => new,
        Err(error) => {
            attempt.was_no_guess(&app.pool).await?;
            return Err(error);
        }
    };
    let mut tx = app.pool.begin().await?;
    // By the hash that was verified: of two changes at once, the second finds another password.
    let changed = sqlx::query!(
        "update users set password_hash = $2, password_changed_at = $3 where id = $1 and password_hash = $4",
        user.0,
        new,
        at,
        old,
    )
    .execute(&mut *tx)
    .await?;
    if changed.rows_affected() == 0 {
        return Err(AccountError::WrongPassword);
    }
    attempt.succeeded_in(&mut tx).await?;
    password_changed_in(&mut tx, user, Some(change.session), at, cause).await?;
    tx.commit().await?;
    Ok(())
}

/// What follows from a changed password: sessions end, links for a new one end, and its owner is told.
pub(super) async fn password_changed_in(
    connection: &mut PgConnection,
    user: UserId,
    keep: Option<Uuid>,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<()> {
    end_sessions_in(connection, user, keep, at).await?;
    end_resets_in(connection, user, at).await?;
    let event = Event { subject: Subject::User(user), action: "user.password_changed", before: None, after: None };
    events::record_in(connection, at, cause, event).await?;
    mailer::notify_in(connection, templates::accounts::password_changed(user, at), at).await?;
    Ok(())
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
pub(super) struct SignInAttempt {
    id: Uuid,
    account_hash: [u8; 32],
    address_hash: [u8; 32],
}

impl SignInAttempt {
    pub(super) async fn begin(pool: &PgPool, email: &str, from: &str, at: Time) -> Result<Self, AccountError> {
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
            attempt.was_no_guess(pool).await?;
            let oldest = wrong.oldest.unwrap_or(at);
            let retry_after = (oldest.0 + WRONG_COUNTS_FOR).duration_since(at.0).as_secs().max(1);
            return Err(AccountError::TooManyTries { retry_after });
        }
        Ok(attempt)
    }

    /// Nothing was guessed: it is forgotten.
    pub(super) async fn was_no_guess(self, pool: &PgPool) -> sqlx::Result<()> {
        sqlx::query!("delete from sign_in_attempts where id = $1", self.id).execute(pool).await?;
        Ok(())
    }

    pub(super) async fn succeeded_in(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
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
