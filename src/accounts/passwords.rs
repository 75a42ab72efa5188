//! Passwords: how they are hashed, and how often they can be guessed.

use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier};
use jiff::SignedDuration;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::AccountError;
use crate::clock::Time;

/// How many password hashes are computed at once: each takes 19 MiB and tens of milliseconds of a core.
static HASHING: Semaphore = Semaphore::const_new(4);

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
            sqlx::query!("delete from sign_in_attempts where id = $1", attempt.id).execute(pool).await?;
            let oldest = wrong.oldest.unwrap_or(at);
            let retry_after = (oldest.0 + WRONG_COUNTS_FOR).duration_since(at.0).as_secs().max(1);
            return Err(AccountError::TooManyTries { retry_after });
        }
        Ok(attempt)
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
