//! A new password for somebody who forgot theirs, by a link in a mail. Who asks is told the same after the same work, whether
//! or not there is such an account: a worker looks for it.

use jiff::SignedDuration;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{
    AccountError, check_email,
    passwords::{hash_new_password, password_changed_in},
    tokens::{hash_token, new_token},
};
use crate::{
    app::App,
    audit::events::{self, Actor, Cause, Event, Subject},
    clock::Time,
    ids::UserId,
    jobs::{self, Job},
    mailer::{self, templates},
};

/// How long the link of a mail opens, from when the mail is handed over.
pub const RESET_LIFETIME: SignedDuration = SignedDuration::from_hours(1);

/// How often a reset can be asked for within [`ASKED_WITHIN`]: for one account, and from one network address.
const ASKED_FOR_ACCOUNT: i64 = 3;
const ASKED_FROM_ADDRESS: i64 = 10;
/// The time that the limits are of.
const ASKED_WITHIN: SignedDuration = SignedDuration::from_hours(1);

/// Asks for a mail with a link to set a new password, if there is an account of this address.
///
/// # Errors
/// [`AccountError::BadEmail`], or [`AccountError::TooManyResets`], which counts addresses without an account too.
pub async fn request_reset(app: &App, email: &str, from: &str, at: Time) -> Result<(), AccountError> {
    let email = check_email(email)?;
    let hash = |kind: &str, text: &str| -> [u8; 32] { Sha256::digest(format!("{kind}:{text}")).into() };
    let (id, account_hash, address_hash) = (Uuid::now_v7(), hash("account", &email), hash("address", from));
    // Written before it is counted, so that many at once are counted too.
    sqlx::query!(
        "insert into password_reset_requests (id, account_hash, address_hash, email, at) values ($1, $2, $3, $4, $5)",
        id,
        &account_hash,
        &address_hash,
        email,
        at,
    )
    .execute(&app.pool)
    .await?;
    let asked = sqlx::query!(
        r#"select count(*) filter (where account_hash = $1) as "account!",
               count(*) filter (where address_hash = $2) as "address!", min(at) as "oldest: Time"
           from password_reset_requests where (account_hash = $1 or address_hash = $2) and at > $3"#,
        &account_hash,
        &address_hash,
        Time(at.0 - ASKED_WITHIN),
    )
    .fetch_one(&app.pool)
    .await?;
    // This one is among them.
    if asked.account > ASKED_FOR_ACCOUNT || asked.address > ASKED_FROM_ADDRESS {
        sqlx::query!("delete from password_reset_requests where id = $1", id).execute(&app.pool).await?;
        let oldest = asked.oldest.unwrap_or(at);
        let retry_after = (oldest.0 + ASKED_WITHIN).duration_since(at.0).as_secs().max(1);
        return Err(AccountError::TooManyResets { retry_after });
    }
    let mut connection = app.pool.acquire().await?;
    jobs::enqueue_in(&mut connection, Job::AnswerReset(id)).await?;
    Ok(())
}

/// Writes the mail that was asked for, if there is such an account and it has a password to replace.
///
/// # Errors
/// Those of the database.
pub async fn answer_reset(app: &App, request: Uuid) -> sqlx::Result<()> {
    let mut tx = app.pool.begin().await?;
    let email = sqlx::query_scalar!(
        r#"select email as "email!" from password_reset_requests where id = $1 and email is not null for update"#,
        request
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(email) = email else { return Ok(()) };
    sqlx::query!("update password_reset_requests set email = null where id = $1", request).execute(&mut *tx).await?;
    let user = sqlx::query_scalar!("select id from users where email = $1 and password_hash is not null", email)
        .fetch_optional(&mut *tx)
        .await?;
    if let Some(user) = user {
        let at = app.now();
        let event =
            Event { subject: Subject::User(user), action: "user.password_reset_asked", before: None, after: None };
        events::record_in(&mut tx, at, &Cause::system(), event).await?;
        mailer::notify_in(&mut tx, templates::accounts::password_reset(user, request, at), at).await?;
    }
    tx.commit().await
}

/// Makes the link of a mail that was asked for at `asked`; it ends those before it. What was asked for before the password
/// was changed opens nothing.
///
/// # Errors
/// Those of the database.
pub async fn open_reset(pool: &PgPool, user: UserId, asked: Time, at: Time) -> sqlx::Result<SecretString> {
    let (token, hash) = new_token("spl");
    let mut tx = pool.begin().await?;
    // The account's row first, here and wherever its links are ended.
    let changed = sqlx::query_scalar!(
        r#"select password_changed_at as "changed: Time" from users where id = $1 for update"#,
        user.0
    )
    .fetch_one(&mut *tx)
    .await?;
    end_resets_in(&mut tx, user, at).await?;
    let ended = changed.filter(|changed| *changed >= asked).map(|_| at);
    sqlx::query!(
        "insert into one_time_links (token_hash, user_id, purpose, created_at, expires_at, used_at)
         values ($1, $2, 'password_reset', $3, $4, $5)",
        &hash,
        user.0,
        at,
        Time(at.0 + RESET_LIFETIME),
        ended as _,
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(token)
}

/// Ends every link that would set a new password.
pub(super) async fn end_resets_in(connection: &mut PgConnection, user: UserId, at: Time) -> sqlx::Result<()> {
    sqlx::query!(
        "update one_time_links set used_at = $2 where user_id = $1 and purpose = 'password_reset' and used_at is null",
        user.0,
        at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether a link still opens; looking uses nothing up.
///
/// # Errors
/// Those of the database.
pub async fn reset_is_open(pool: &PgPool, token: &str, at: Time) -> sqlx::Result<bool> {
    Ok(reset_of(pool, token, at).await?.is_some())
}

/// Whose password a link would set.
async fn reset_of(pool: &PgPool, token: &str, at: Time) -> sqlx::Result<Option<UserId>> {
    sqlx::query_scalar!(
        r#"select user_id as "user: UserId" from one_time_links
           where token_hash = $1 and purpose = 'password_reset' and used_at is null and expires_at > $2"#,
        &hash_token(token),
        at,
    )
    .fetch_optional(pool)
    .await
}

/// Sets a new password with a link. Every session ends and none is opened; the second factor stays as it is.
///
/// # Errors
/// [`AccountError::ResetClosed`], or that the password is too weak: then the link can be used again.
pub async fn complete_reset(
    app: &App,
    token: &str,
    new_password: SecretString,
    request_id: Option<String>,
) -> Result<(), AccountError> {
    let at = app.now();
    // Before the password is hashed, which takes a while.
    let user = reset_of(&app.pool, token, at).await?.ok_or(AccountError::ResetClosed)?;
    let new = hash_new_password(new_password).await?;
    let mut tx = app.pool.begin().await?;
    sqlx::query!("update users set password_hash = $2, password_changed_at = $3 where id = $1", user.0, new, at)
        .execute(&mut *tx)
        .await?;
    let used = sqlx::query!(
        "update one_time_links set used_at = $2
         where token_hash = $1 and purpose = 'password_reset' and used_at is null and expires_at > $2",
        &hash_token(token),
        at,
    )
    .execute(&mut *tx)
    .await?;
    if used.rows_affected() == 0 {
        return Err(AccountError::ResetClosed);
    }
    let cause = Cause { actor: Actor::User(user), reason: "one-time link".to_owned(), request_id };
    password_changed_in(&mut tx, user, None, at, &cause).await?;
    tx.commit().await?;
    Ok(())
}
