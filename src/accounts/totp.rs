//! The second factor: codes of an authenticator app (RFC 6238), and recovery codes for when the app is gone.

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use totp_rs::{Algorithm, Builder, Secret, Totp};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    AccountError,
    passwords::{SignInAttempt, verify_password},
};
use crate::{
    app::App,
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::UserId,
    mailer::{self, templates},
    secrets::{SecretPath, SecretStore},
};

/// How long one code is good, in seconds; those just before and after are taken, too.
const STEP: u64 = 30;
/// How many recovery codes there are.
const RECOVERY_CODES: usize = 10;

/// What an authenticator app is given, once.
#[derive(Debug)]
pub struct TotpSecret {
    /// To type in: base32.
    pub secret: SecretString,
    /// To scan: `otpauth://totp/…`.
    pub url: SecretString,
}

/// How it stands with somebody's second factor.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct SecondFactor {
    /// Whether sign-in asks for a code.
    pub on: bool,
    /// Since when it does.
    pub since: Option<Time>,
    /// How many recovery codes are not used yet.
    pub recovery_codes_left: i64,
}

/// How it stands with somebody's second factor.
///
/// # Errors
/// Those of the database.
pub async fn second_factor(pool: &PgPool, user: UserId) -> sqlx::Result<SecondFactor> {
    let row = sqlx::query!(
        r#"select (select confirmed_at from second_factors where user_id = $1) as "since: Time",
               (select count(*) from recovery_codes where user_id = $1 and used_at is null) as "left!""#,
        user.0
    )
    .fetch_one(pool)
    .await?;
    Ok(SecondFactor { on: row.since.is_some(), since: row.since, recovery_codes_left: row.left })
}

fn totp(secret: Secret, account: &str) -> Totp {
    Builder::new()
        .with_algorithm(Algorithm::SHA1)
        .with_digits(6)
        .with_skew(1)
        .with_step_duration(STEP)
        .with_secret(secret)
        // A colon ends the issuer in what apps read.
        .with_account_name(account.replace(':', "_"))
        .with_issuer(Some("Seedplane"))
        .build()
        .expect("a secret of 160 bits and names without colons are taken")
}

/// Six digits, however they are grouped.
fn digits(code: &str) -> Option<String> {
    let digits: String = code.chars().filter(|character| !character.is_whitespace()).collect();
    (digits.len() == 6 && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(digits)
}

/// Which time step a code is of, if it is a good one at `at`.
fn step_of(secret: Secret, code: &str, at: Time) -> Option<i64> {
    let seconds = u64::try_from(at.0.as_second()).ok()?;
    let step = totp(secret, "").check(&digits(code)?, seconds)?;
    i64::try_from(step).ok()
}

/// A recovery code as it is kept: of one person, whatever case and dashes it was typed with.
fn hash_recovery_code(user: UserId, code: &str) -> [u8; 32] {
    let plain: String = code.chars().filter(char::is_ascii_alphanumeric).collect();
    Sha256::digest(format!("{user}:{}", plain.to_ascii_lowercase())).into()
}

fn new_recovery_code() -> SecretString {
    let text = Secret::from(rand::random::<[u8; 10]>().to_vec()).to_base32().to_ascii_lowercase();
    SecretString::from(format!("{}-{}-{}-{}", &text[..4], &text[4..8], &text[8..12], &text[12..]))
}

/// The time by which codes go: that of phones, whatever the trial's clock says.
fn phones_time(app: &App) -> Time {
    Time(app.clock.now() - app.clock.offset())
}

async fn secret_of(app: &App, reference: &str) -> Result<Option<Secret>, AccountError> {
    let kept = app.secrets.get_reference(reference).await?;
    Ok(kept.and_then(|secret| Secret::try_from_base32(secret.expose_secret()).ok()))
}

/// A secret that nothing leads to any more opens nothing: that it could not be destroyed is no failure of what was asked.
async fn destroy(secrets: &dyn SecretStore, reference: &str) {
    if let Err(error) = secrets.destroy_reference(reference).await {
        tracing::warn!(%error, reference, "the secret of a second factor that is no longer used was not destroyed");
    }
}

/// Begins to set up a second factor: sign-in does not ask for it before it is confirmed. What was begun before is replaced.
///
/// # Errors
/// [`AccountError::SecondFactorOn`]; nothing is changed then.
pub async fn begin_totp(app: &App, user: UserId, cause: &Cause) -> Result<TotpSecret, AccountError> {
    let at = app.now();
    let email = sqlx::query_scalar!("select email from users where id = $1", user.0).fetch_one(&app.pool).await?;
    if second_factor(&app.pool, user).await?.on {
        return Err(AccountError::SecondFactorOn);
    }
    let made = totp(Secret::from(rand::random::<[u8; 20]>().to_vec()), &email);
    let secret = SecretString::from(made.secret().to_base32());
    let url = SecretString::from(made.to_url().expect("it has an account's name"));
    let path = SecretPath::new(format!("user/{user}/second-factor-{}", Uuid::now_v7()))?;
    app.secrets.put(&path, secret.clone()).await?;
    let reference = app.secrets.reference(&path);

    let mut tx = app.pool.begin().await?;
    let old = sqlx::query_scalar!("select secret_ref from second_factors where user_id = $1 for update", user.0)
        .fetch_optional(&mut *tx)
        .await?;
    let begun = sqlx::query!(
        "insert into second_factors (user_id, secret_ref, created_at) values ($1, $2, $3)
         on conflict (user_id) do update set secret_ref = $2, created_at = $3 where second_factors.confirmed_at is null",
        user.0,
        reference,
        at,
    )
    .execute(&mut *tx)
    .await?;
    if begun.rows_affected() == 0 {
        drop(tx);
        destroy(app.secrets.as_ref(), &reference).await;
        return Err(AccountError::SecondFactorOn);
    }
    let event = Event { subject: Subject::User(user), action: "user.second_factor_begun", before: None, after: None };
    events::record_in(&mut tx, at, cause, event).await?;
    tx.commit().await?;
    if let Some(old) = old {
        destroy(app.secrets.as_ref(), &old).await;
    }
    Ok(TotpSecret { secret, url })
}

/// Turns the second factor on, with a code that proves that the app has the secret. The session counts as opened with it
/// from then on. The recovery codes are given out once.
///
/// # Errors
/// [`AccountError::SecondFactorOn`], [`AccountError::SecondFactorOff`] if none was begun, [`AccountError::WrongCode`].
pub async fn confirm_totp(
    app: &App,
    user: UserId,
    session: Uuid,
    code: &SecretString,
    cause: &Cause,
) -> Result<Vec<SecretString>, AccountError> {
    let at = app.now();
    let begun = sqlx::query!(
        r#"select secret_ref, confirmed_at as "confirmed: Time" from second_factors where user_id = $1"#,
        user.0
    )
    .fetch_optional(&app.pool)
    .await?
    .ok_or(AccountError::SecondFactorOff)?;
    if begun.confirmed.is_some() {
        return Err(AccountError::SecondFactorOn);
    }
    let secret = secret_of(app, &begun.secret_ref).await?.ok_or(AccountError::SecondFactorOff)?;
    let step = step_of(secret, code.expose_secret(), phones_time(app)).ok_or(AccountError::WrongCode)?;
    let codes: Vec<SecretString> = (0..RECOVERY_CODES).map(|_| new_recovery_code()).collect();
    let hashes: Vec<Vec<u8>> =
        codes.iter().map(|code| hash_recovery_code(user, code.expose_secret()).to_vec()).collect();
    let mut tx = app.pool.begin().await?;
    let confirmed = sqlx::query!(
        "update second_factors set confirmed_at = $3, last_step = $4
         where user_id = $1 and secret_ref = $2 and confirmed_at is null",
        user.0,
        begun.secret_ref,
        at,
        step,
    )
    .execute(&mut *tx)
    .await?;
    if confirmed.rows_affected() == 0 {
        // Begun anew or confirmed meanwhile.
        return Err(AccountError::WrongCode);
    }
    sqlx::query!("delete from recovery_codes where user_id = $1", user.0).execute(&mut *tx).await?;
    sqlx::query!(
        "insert into recovery_codes (user_id, code_hash, created_at) select $1, hash, $3 from unnest($2::bytea[]) hash",
        user.0,
        &hashes,
        at,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("update sessions set second_factor = true where id = $1 and user_id = $2", session, user.0)
        .execute(&mut *tx)
        .await?;
    let event = Event { subject: Subject::User(user), action: "user.second_factor_on", before: None, after: None };
    events::record_in(&mut tx, at, cause, event).await?;
    mailer::notify_in(&mut tx, templates::accounts::second_factor_on(user, at), at).await?;
    tx.commit().await?;
    Ok(codes)
}

/// What turns the second factor off.
#[derive(Debug)]
pub struct TotpRemoval<'a> {
    /// Whose.
    pub user: UserId,
    /// The password.
    pub password: SecretString,
    /// A code of the app, or a recovery code.
    pub code: SecretString,
    /// The address it comes from.
    pub from: &'a str,
}

/// Turns the second factor off. What was opened or made with it no longer counts as such.
///
/// # Errors
/// [`AccountError`]; nothing is changed then. Wrong guesses count like those of sign-in.
pub async fn remove_totp(app: &App, removal: TotpRemoval<'_>, cause: &Cause) -> Result<(), AccountError> {
    let (user, at) = (removal.user, app.now());
    let account =
        sqlx::query!("select email, password_hash from users where id = $1", user.0).fetch_one(&app.pool).await?;
    let hash = account.password_hash.ok_or(AccountError::NoPassword)?;
    if !second_factor(&app.pool, user).await?.on {
        return Err(AccountError::SecondFactorOff);
    }
    let attempt = SignInAttempt::begin(&app.pool, &account.email, removal.from, at).await?;
    if !verify_password(removal.password, hash).await {
        return Err(AccountError::WrongPassword);
    }
    let proof = Proof::of(app, user, &removal.code).await?.ok_or(AccountError::WrongCode)?;
    let mut tx = app.pool.begin().await?;
    if !proof.spend_in(&mut tx, user, at).await? {
        return Err(AccountError::WrongCode);
    }
    let reference = remove_in(&mut tx, user, at, cause).await?;
    attempt.succeeded_in(&mut tx).await?;
    tx.commit().await?;
    if let Some(reference) = reference {
        destroy(app.secrets.as_ref(), &reference).await;
    }
    Ok(())
}

/// Takes somebody's second factor away who lost it, on an operator's word. Every session of theirs ends. False if there is none.
///
/// # Errors
/// Those of the database.
pub async fn reset_second_factor(
    pool: &PgPool,
    secrets: Option<&dyn SecretStore>,
    user: UserId,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<bool> {
    let mut tx = pool.begin().await?;
    let Some(reference) = remove_in(&mut tx, user, at, cause).await? else { return Ok(false) };
    super::sessions::end_sessions_in(&mut tx, user, None, at).await?;
    tx.commit().await?;
    if let Some(secrets) = secrets {
        destroy(secrets, &reference).await;
    }
    Ok(true)
}

/// Removes it; where its secret was.
async fn remove_in(
    connection: &mut PgConnection,
    user: UserId,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<Option<String>> {
    let removed = sqlx::query_scalar!("delete from second_factors where user_id = $1 returning secret_ref", user.0)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(reference) = removed else { return Ok(None) };
    sqlx::query!("delete from recovery_codes where user_id = $1", user.0).execute(&mut *connection).await?;
    sqlx::query!("update sessions set second_factor = false where user_id = $1 and second_factor", user.0)
        .execute(&mut *connection)
        .await?;
    sqlx::query!("update api_tokens set second_factor = false where user_id = $1 and second_factor", user.0)
        .execute(&mut *connection)
        .await?;
    let event = Event { subject: Subject::User(user), action: "user.second_factor_off", before: None, after: None };
    events::record_in(&mut *connection, at, cause, event).await?;
    mailer::notify_in(connection, templates::accounts::second_factor_off(user, at), at).await?;
    Ok(Some(reference))
}

/// What a good code proves, to be spent in the transaction that it is for.
pub(super) enum Proof {
    /// A code of the app.
    Step { secret_ref: String, step: i64 },
    /// What may be a recovery code.
    Recovery([u8; 32]),
}

impl Proof {
    /// What a code proves of somebody whose second factor is on; `None` if it is wrong.
    pub(super) async fn of(app: &App, user: UserId, code: &SecretString) -> Result<Option<Self>, AccountError> {
        let code = code.expose_secret();
        if digits(code).is_none() {
            return Ok(Some(Self::Recovery(hash_recovery_code(user, code))));
        }
        let secret_ref = sqlx::query_scalar!(
            "select secret_ref from second_factors where user_id = $1 and confirmed_at is not null",
            user.0
        )
        .fetch_optional(&app.pool)
        .await?;
        let Some(secret_ref) = secret_ref else { return Ok(None) };
        let Some(secret) = secret_of(app, &secret_ref).await? else { return Ok(None) };
        Ok(step_of(secret, code, phones_time(app)).map(|step| Self::Step { secret_ref, step }))
    }

    /// Uses it up. False if it was used before, or is no recovery code of theirs.
    pub(super) async fn spend_in(&self, connection: &mut PgConnection, user: UserId, at: Time) -> sqlx::Result<bool> {
        match self {
            Self::Step { secret_ref, step } => {
                let spent = sqlx::query!(
                    "update second_factors set last_step = $3
                     where user_id = $1 and secret_ref = $2 and confirmed_at is not null
                       and (last_step is null or last_step < $3)",
                    user.0,
                    secret_ref,
                    step,
                )
                .execute(connection)
                .await?;
                Ok(spent.rows_affected() == 1)
            }
            Self::Recovery(hash) => {
                let spent = sqlx::query!(
                    "update recovery_codes set used_at = $3 where user_id = $1 and code_hash = $2 and used_at is null",
                    user.0,
                    &hash[..],
                    at,
                )
                .execute(&mut *connection)
                .await?;
                if spent.rows_affected() == 0 {
                    return Ok(false);
                }
                let left = sqlx::query_scalar!(
                    r#"select count(*) as "left!" from recovery_codes where user_id = $1 and used_at is null"#,
                    user.0
                )
                .fetch_one(&mut *connection)
                .await?;
                let cause = Cause { actor: events::Actor::User(user), reason: String::new(), request_id: None };
                let after = Some(serde_json::json!({ "recovery_codes_left": left }));
                let event =
                    Event { subject: Subject::User(user), action: "user.recovery_code_used", before: None, after };
                events::record_in(&mut *connection, at, &cause, event).await?;
                let notice = templates::accounts::recovery_code_used(user, at, left);
                mailer::notify_in(connection, notice, at).await?;
                Ok(true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_good_one_step_early_or_late_and_no_more() {
        let secret = || Secret::from(b"12345678901234567890".to_vec());
        let at = |seconds: i64| Time(jiff::Timestamp::from_second(seconds).unwrap());
        // RFC 6238, appendix B: 94287082 at 59 seconds, of which these are the last six digits.
        for (seconds, step) in [(0, Some(1)), (29, Some(1)), (59, Some(1)), (89, Some(1)), (90, None), (150, None)] {
            assert_eq!(step_of(secret(), "287082", at(seconds)), step, "at {seconds}");
        }
        assert_eq!(step_of(secret(), " 287 082 ", at(59)), Some(1));
        for wrong in ["", "28708", "2870821", "94287082", "28708x", "٢٨٧٠٨٢"] {
            assert_eq!(step_of(secret(), wrong, at(59)), None, "{wrong}");
        }
    }

    #[test]
    fn a_recovery_code_is_one_persons_however_it_is_typed() {
        let (one, other) = (UserId::new(), UserId::new());
        let code = new_recovery_code();
        let code = code.expose_secret();
        assert_eq!(code.len(), 19);
        assert!(digits(code).is_none());
        let typed = code.to_uppercase().replace('-', " ");
        assert_eq!(hash_recovery_code(one, code), hash_recovery_code(one, &typed));
        assert_ne!(hash_recovery_code(one, code), hash_recovery_code(other, code));
    }
}
