//! Sessions: opened with a password, good for two weeks; or with a token of another issuer, good for a part of a day.

use jiff::SignedDuration;
use secrecy::SecretString;
use serde::Serialize;
use serde_json::json;
use sqlx::{PgConnection, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    AccountError, Credential, Principal, Role, Scopes, check_email,
    passwords::{SignInAttempt, hash_password, verify_password},
    tokens::{hash_token, new_token},
    totp::Proof,
};
use crate::{
    app::App,
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::UserId,
};

/// How long a session lasts.
pub const SESSION_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 14);

/// How long a session lasts that was opened with a token of another issuer: whoever is barred there is out here after that.
pub const ISSUED_SESSION_LIFETIME: SignedDuration = SignedDuration::from_hours(12);

/// How many sessions of one person are good at once; opening one more ends the oldest.
pub const MAX_SESSIONS: i64 = 100;

/// When a session was last used is written at most this often.
const USE_IS_NOTED_EVERY: SignedDuration = SignedDuration::from_mins(5);

/// What somebody signs in with, and from where.
#[derive(Debug)]
pub struct SignIn<'a> {
    /// Their address.
    pub email: &'a str,
    /// Their password.
    pub password: SecretString,
    /// A code of their authenticator app or a recovery code, if they have a second factor.
    pub code: Option<SecretString>,
    /// The network address the request comes from.
    pub from: &'a str,
    /// What the program that asks calls itself; what is longer than 200 characters is cut.
    pub user_agent: Option<&'a str>,
}

/// A session that was opened.
#[derive(Debug)]
pub struct Opened {
    /// For ending it.
    pub session: Uuid,
    /// Who is signed in.
    pub user: UserId,
    /// What it is used with: given out once, kept nowhere.
    pub token: SecretString,
    /// Until when it is good.
    pub expires_at: Time,
    /// Whether it was opened with a second factor.
    pub second_factor: bool,
}

/// Opens a session for somebody who knows the password and, if they have a second factor, has a code.
///
/// # Errors
/// [`AccountError::BadCredentials`] takes as long for an unknown address as for a wrong password; whether there is a second
/// factor is told to whoever knows the password.
pub async fn sign_in(app: &App, sign_in: SignIn<'_>) -> Result<Opened, AccountError> {
    // The hash of no password anybody can type: verified against when there is no such account.
    static NOBODY: tokio::sync::OnceCell<String> = tokio::sync::OnceCell::const_new();
    let nobody = NOBODY.get_or_init(|| async { hash_password(new_token("nobody").0).await }).await;

    let at = app.now();
    let email = check_email(sign_in.email).map_err(|_| AccountError::BadCredentials)?;
    let attempt = SignInAttempt::begin(&app.pool, &email, sign_in.from, at).await?;
    let account = sqlx::query!(
        r#"select id, password_hash,
               exists (select from second_factors f where f.user_id = u.id and confirmed_at is not null) as "second_factor!"
           from users u where email = $1"#,
        email
    )
    .fetch_optional(&app.pool)
    .await?
    .and_then(|account| Some((account.id, account.password_hash?, account.second_factor)));
    let hash = account.as_ref().map_or(nobody, |(_, hash, _)| hash).clone();
    let matches = verify_password(sign_in.password, hash).await;
    let (Some((user, hash, second_factor)), true) = (account, matches) else {
        return Err(AccountError::BadCredentials);
    };
    let proof = match (second_factor, sign_in.code) {
        (false, _) => None,
        (true, Some(code)) => Some(Proof::of(app, user, &code).await?.ok_or(AccountError::BadCode)?),
        (true, None) => {
            attempt.was_no_guess(&app.pool).await?;
            return Err(AccountError::SecondFactorNeeded);
        }
    };

    let (token, token_hash) = new_token("sps");
    let (session, expires_at) = (Uuid::now_v7(), Time(at.0 + SESSION_LIFETIME));
    let mut tx = app.pool.begin().await?;
    // By the hash that was verified: a password that is being changed opens nothing any more.
    let opened = sqlx::query!(
        "insert into sessions (id, user_id, token_hash, created_at, expires_at, user_agent, address, last_used_at, second_factor)
         select $1, u.id, $3, $4, $5, $6, $7, $4, $9 from users u where u.id = $2 and u.password_hash = $8 for share",
        session,
        user.0,
        &token_hash,
        at,
        expires_at,
        sign_in.user_agent.map(shown_user_agent),
        sign_in.from,
        hash,
        second_factor,
    )
    .execute(&mut *tx)
    .await?;
    if opened.rows_affected() == 0 {
        return Err(AccountError::BadCredentials);
    }
    if let Some(proof) = proof
        && !proof.spend_in(&mut tx, user, at).await?
    {
        return Err(AccountError::BadCode);
    }
    end_oldest_in(&mut tx, user, at).await?;
    let cause = Cause { actor: events::Actor::User(user), reason: String::new(), request_id: None };
    let event = Event { subject: Subject::User(user), action: "user.signed_in", before: None, after: None };
    events::record_in(&mut tx, at, &cause, event).await?;
    attempt.succeeded_in(&mut tx).await?;
    tx.commit().await?;
    Ok(Opened { session, user, token, expires_at, second_factor })
}

/// Whether a session still is good: for what goes on for longer than a request.
///
/// # Errors
/// Those of the database.
pub async fn session_is_good(pool: &PgPool, session: Uuid, at: Time) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from sessions where id = $1 and revoked_at is null and expires_at > $2) as "good!""#,
        session,
        at,
    )
    .fetch_one(pool)
    .await
}

/// How long a link that signs somebody in is good.
const SIGN_IN_LINK_LIFETIME: SignedDuration = SignedDuration::from_hours(1);

/// Makes the token of a link that signs its owner in, once. The trial alone has such links.
///
/// # Errors
/// Those of the database.
pub async fn make_sign_in_link(pool: &PgPool, user: UserId, at: Time) -> sqlx::Result<SecretString> {
    let (token, hash) = new_token("spe");
    sqlx::query!(
        "insert into one_time_links (token_hash, user_id, purpose, created_at, expires_at) values ($1, $2, 'sign_in', $3, $4)",
        &hash,
        user.0,
        at,
        Time(at.0 + SIGN_IN_LINK_LIFETIME),
    )
    .execute(pool)
    .await?;
    Ok(token)
}

/// Opens a session by such a link, without a second factor. `None` if it was used, is too old or never was one.
///
/// # Errors
/// Those of the database.
pub async fn sign_in_by_link(
    pool: &PgPool,
    link: &str,
    from: &str,
    user_agent: Option<&str>,
    at: Time,
) -> sqlx::Result<Option<SecretString>> {
    let mut tx = pool.begin().await?;
    let user = sqlx::query_scalar!(
        r#"update one_time_links set used_at = $2
           where token_hash = $1 and used_at is null and expires_at > $2 and purpose = 'sign_in'
           returning user_id as "user_id: UserId""#,
        &hash_token(link),
        at,
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(user) = user else { return Ok(None) };
    let new = NewSession { user, issued: false, from, user_agent, at, reason: "one-time link" };
    let token = open_in(&mut tx, new).await?;
    tx.commit().await?;
    Ok(Some(token))
}

/// Opens a session on pages for somebody whose token of another issuer was taken. It reaches what the token does.
///
/// # Errors
/// Those of the database.
pub async fn sign_in_by_issuer(
    pool: &PgPool,
    user: UserId,
    from: &str,
    user_agent: Option<&str>,
    at: Time,
) -> sqlx::Result<SecretString> {
    let mut tx = pool.begin().await?;
    let new = NewSession { user, issued: true, from, user_agent, at, reason: "token of another issuer" };
    let token = open_in(&mut tx, new).await?;
    tx.commit().await?;
    Ok(token)
}

/// A session that needs no password: somebody proved otherwise who they are.
struct NewSession<'a> {
    user: UserId,
    issued: bool,
    from: &'a str,
    user_agent: Option<&'a str>,
    at: Time,
    reason: &'a str,
}

async fn open_in(connection: &mut PgConnection, new: NewSession<'_>) -> sqlx::Result<SecretString> {
    let (token, token_hash) = new_token("sps");
    let lifetime = if new.issued { ISSUED_SESSION_LIFETIME } else { SESSION_LIFETIME };
    sqlx::query!(
        "insert into sessions (id, user_id, token_hash, created_at, expires_at, user_agent, address, last_used_at, second_factor,
             issued)
         values ($1, $2, $3, $4, $5, $6, $7, $4, false, $8)",
        Uuid::now_v7(),
        new.user.0,
        &token_hash,
        new.at,
        Time(new.at.0 + lifetime),
        new.user_agent.map(shown_user_agent),
        new.from,
        new.issued,
    )
    .execute(&mut *connection)
    .await?;
    end_oldest_in(connection, new.user, new.at).await?;
    let cause = Cause { actor: events::Actor::User(new.user), reason: new.reason.to_owned(), request_id: None };
    let event = Event { subject: Subject::User(new.user), action: "user.signed_in", before: None, after: None };
    events::record_in(connection, new.at, &cause, event).await?;
    Ok(token)
}

/// Ends what somebody has open above [`MAX_SESSIONS`], the oldest first.
async fn end_oldest_in(connection: &mut PgConnection, user: UserId, at: Time) -> sqlx::Result<()> {
    sqlx::query!(
        "update sessions set revoked_at = $2 where id in (
             select id from sessions where user_id = $1 and revoked_at is null and expires_at > $2
             order by created_at desc, id desc offset $3)",
        user.0,
        at,
        MAX_SESSIONS,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A user agent as it is kept: one line of at most 200 characters.
fn shown_user_agent(sent: &str) -> String {
    sent.chars().filter(|character| !character.is_control()).take(200).collect()
}

/// A session as its owner sees it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SessionView {
    /// For ending it.
    pub id: Uuid,
    /// Since when.
    pub created_at: Time,
    /// Until when.
    pub expires_at: Time,
    /// When it was last used, to five minutes; `null` where that was not kept yet.
    pub last_used_at: Option<Time>,
    /// What opened it, in its own words.
    pub user_agent: Option<String>,
    /// The network address it was opened from.
    pub address: Option<String>,
    /// Whether it was opened with a second factor.
    pub second_factor: bool,
}

/// The sessions of a person that are good, the newest first.
///
/// # Errors
/// Those of the database.
pub async fn sessions_of(pool: &PgPool, user: UserId, at: Time) -> sqlx::Result<Vec<SessionView>> {
    sqlx::query_as!(
        SessionView,
        r#"select id, created_at, expires_at, last_used_at as "last_used_at: Time", user_agent, address, second_factor
           from sessions where user_id = $1 and revoked_at is null and expires_at > $2
           order by created_at desc, id desc limit $3"#,
        user.0,
        at,
        MAX_SESSIONS,
    )
    .fetch_all(pool)
    .await
}

/// Ends all sessions of a person but one, or all of them. How many they were.
///
/// # Errors
/// Those of the database.
pub async fn end_other_sessions(
    pool: &PgPool,
    user: UserId,
    keep: Option<Uuid>,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<u64> {
    let mut tx = pool.begin().await?;
    let ended = end_sessions_in(&mut tx, user, keep, at).await?;
    if ended > 0 {
        let after = Some(json!({ "sessions": ended }));
        let event = Event { subject: Subject::User(user), action: "user.sessions_ended", before: None, after };
        events::record_in(&mut tx, at, cause, event).await?;
    }
    tx.commit().await?;
    Ok(ended)
}

/// Ends all sessions of a person, but `keep`.
pub(super) async fn end_sessions_in(
    connection: &mut PgConnection,
    user: UserId,
    keep: Option<Uuid>,
    at: Time,
) -> sqlx::Result<u64> {
    let ended = sqlx::query!(
        "update sessions set revoked_at = $3
         where user_id = $1 and id is distinct from $2 and revoked_at is null and expires_at > $3",
        user.0,
        keep,
        at,
    )
    .execute(connection)
    .await?;
    Ok(ended.rows_affected())
}

/// Notes that a session is used, without anybody waiting for it.
fn note_use(pool: &PgPool, session: Uuid, at: Time) {
    let pool = pool.clone();
    tokio::spawn(async move {
        let noted = sqlx::query!(
            "update sessions set last_used_at = $2 where id = $1 and (last_used_at is null or last_used_at <= $3)",
            session,
            at,
            Time(at.0 - USE_IS_NOTED_EVERY),
        )
        .execute(&pool)
        .await;
        if let Err(error) = noted {
            tracing::debug!(%error, "when a session was used is not noted");
        }
    });
}

/// Who a session or API token belongs to, if it is good.
///
/// # Errors
/// Those of the database.
pub async fn authenticate(pool: &PgPool, token: &str, at: Time) -> sqlx::Result<Option<Principal>> {
    let hash = hash_token(token);
    let row = sqlx::query!(
        r#"select c.id as "id!", c.is_session as "is_session!", c.last_used_at as "last_used_at: Time", c.scopes,
               c.second_factor as "second_factor!", c.issued as "issued!",
               u.id as "user_id!: UserId", u.role as "role!: Role"
           from (
               select id, user_id, true as is_session, last_used_at, null::text[] as scopes, second_factor, issued from sessions
               where token_hash = $1 and revoked_at is null and expires_at > $2
               union all
               select id, user_id, false, null, scopes, second_factor, false from api_tokens
               where token_hash = $1 and revoked_at is null and (expires_at is null or expires_at > $2)
           ) c join users u on u.id = c.user_id"#,
        &hash,
        at,
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    if row.is_session && row.last_used_at.is_none_or(|used| used.0 + USE_IS_NOTED_EVERY <= at.0) {
        note_use(pool, row.id, at);
    }
    if row.issued {
        // As with the token that it was opened with: what another issuer says makes nobody an operator.
        let role = Role::Customer;
        let (credential, scopes) = (Credential::IssuedSession(row.id), Scopes::of_role(role));
        return Ok(Some(Principal { user_id: row.user_id, role, credential, scopes, second_factor: false }));
    }
    let credential = if row.is_session { Credential::Session(row.id) } else { Credential::Token(row.id) };
    let scopes = row.scopes.map_or(Scopes::ALL, |words| Scopes::from_words(&words));
    Ok(Some(Principal { user_id: row.user_id, role: row.role, credential, scopes, second_factor: row.second_factor }))
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
