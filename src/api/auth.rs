//! Sign-up, sign-in and tokens.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderName, StatusCode, header},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    error::{Body, Id, Problem},
    idempotency::NewId,
};
use crate::{
    accounts::{self, AccountError, ApiToken, Credential, Role, Scope, Scopes, SecondFactor, SessionView},
    app::App,
    audit::events::{Actor, Cause},
    auth::{ClientAddress, Customer, RequestId, user_agent},
    clock::Time,
    ids::UserId,
};

/// An answer that holds a secret is stored nowhere on its way.
const NO_STORE: [(HeaderName, &str); 1] = [(header::CACHE_CONTROL, "no-store")];

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(sign_up))
        .routes(routes!(sign_in))
        .routes(routes!(sign_out))
        .routes(routes!(list_sessions, end_other_sessions))
        .routes(routes!(end_session))
        .routes(routes!(change_password))
        .routes(routes!(show_totp, begin_totp, remove_totp))
        .routes(routes!(confirm_totp))
        .routes(routes!(ask_for_reset))
        .routes(routes!(complete_reset))
        .routes(routes!(list_tokens, create_token))
        .routes(routes!(revoke_token))
}

/// An e-mail address and a password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SignUp {
    /// The address notices go to.
    email: String,
    /// 10 to 200 characters.
    #[schema(value_type = String)]
    #[serde(deserialize_with = "secret")]
    password: SecretString,
}

/// An e-mail address and a password, and a code where there is a second factor.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SignIn {
    /// The address of the account.
    email: String,
    /// Its password.
    #[schema(value_type = String)]
    #[serde(deserialize_with = "secret")]
    password: SecretString,
    /// Six digits of the authenticator app, or a recovery code.
    #[schema(value_type = Option<String>)]
    #[serde(default, deserialize_with = "optional_secret")]
    code: Option<SecretString>,
}

/// Text that nothing prints.
fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

/// The same, or nothing.
fn optional_secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(SecretString::from))
}

/// A session, shown once.
#[derive(Serialize, ToSchema)]
struct Session {
    /// Who is signed in.
    user_id: UserId,
    /// Send it as `Authorization: Bearer <token>`.
    token: String,
    /// Until when it is good.
    expires_at: Time,
}

type Shown<T> = (StatusCode, [(HeaderName, &'static str); 1], Json<T>);

async fn open_session(
    app: &App,
    body: SignIn,
    from: &ClientAddress,
    headers: &HeaderMap,
    status: StatusCode,
) -> Result<Shown<Session>, AccountError> {
    let sign_in = accounts::SignIn {
        email: &body.email,
        password: body.password,
        code: body.code,
        from: &from.0,
        user_agent: user_agent(headers),
    };
    let opened = accounts::sign_in(app, sign_in).await?;
    let (user_id, token, expires_at) = (opened.user, opened.token.expose_secret().to_owned(), opened.expires_at);
    Ok((status, NO_STORE, Json(Session { user_id, token, expires_at })))
}

/// Make an account and sign in. Repeated with the same `Idempotency-Key`, address and password because the answer was lost,
/// it signs in to the account that it made. Anybody else is told that the account exists, and to sign in.
#[utoipa::path(post, path = "/api/auth/sign-up", tag = "accounts", security(()), request_body = SignUp,
    responses((status = 201, body = Session), (status = 409, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem)))]
async fn sign_up(
    State(app): State<App>,
    from: ClientAddress,
    headers: HeaderMap,
    Body(SignUp { email, password }): Body<SignUp>,
) -> Result<Shown<Session>, Problem> {
    let key = headers.get("idempotency-key").map(|key| key.to_str().unwrap_or_default());
    if key.is_some_and(|key| !(1..=255).contains(&key.len())) {
        return Err(Problem::bad_input("Idempotency-Key has 1 to 255 printable characters; nothing was done"));
    }
    let id = key.map_or_else(UserId::new, |key| accounts::id_by_key(key, &email));
    let cause = |id| Cause { actor: Actor::User(id), reason: String::new(), request_id: None };
    let made = accounts::sign_up(&app.pool, id, &email, password.clone(), Role::Customer, app.now(), cause).await;
    let body = SignIn { email, password, code: None };
    match made {
        Ok(_) => Ok(open_session(&app, body, &from, &headers, StatusCode::CREATED).await?),
        // Made by this very request: whoever has its password may come in, as by signing in.
        Err(AccountError::EmailTaken) if key.is_some() && accounts::exists(&app.pool, id).await? => {
            match open_session(&app, body, &from, &headers, StatusCode::CREATED).await {
                Err(AccountError::BadCredentials) => Err(AccountError::EmailTaken.into()),
                other => Ok(other?),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Sign in. With a second factor, the right password without a code is answered 401 `second-factor-needed`: ask for the code
/// and send both. After ten wrong passwords or codes in 15 minutes it is answered 429, with `Retry-After`.
#[utoipa::path(post, path = "/api/auth/sign-in", tag = "accounts", security(()), request_body = SignIn,
    responses((status = 200, body = Session), (status = 401, body = Problem), (status = 429, body = Problem)))]
async fn sign_in(
    State(app): State<App>,
    from: ClientAddress,
    headers: HeaderMap,
    Body(body): Body<SignIn>,
) -> Result<Shown<Session>, Problem> {
    Ok(open_session(&app, body, &from, &headers, StatusCode::OK).await?)
}

/// End the session, or revoke the token, that this request is made with.
#[utoipa::path(post, path = "/api/auth/sign-out", tag = "accounts", responses((status = 204), (status = 401, body = Problem)))]
async fn sign_out(State(app): State<App>, customer: Customer) -> Result<StatusCode, Problem> {
    let (Credential::Session(id) | Credential::IssuedSession(id) | Credential::Token(id)) =
        customer.principal.credential
    else {
        return Err(Problem::conflict(
            "this token is another issuer's: sign out where it comes from. Nothing was ended here",
        ));
    };
    accounts::revoke(&app.pool, customer.principal.user_id, id, app.now(), &customer.cause()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A session in the list.
#[derive(Serialize, ToSchema)]
struct ListedSession {
    #[serde(flatten)]
    about: SessionView,
    /// Whether it is the one that asks.
    current: bool,
}

/// The sessions that are open, the newest first.
#[utoipa::path(get, path = "/api/auth/sessions", tag = "accounts", responses((status = 200, body = Vec<ListedSession>)))]
async fn list_sessions(State(app): State<App>, customer: Customer) -> Result<Json<Vec<ListedSession>>, Problem> {
    let sessions = accounts::sessions_of(&app.pool, customer.principal.user_id, app.now()).await?;
    let here = customer.principal.any_session();
    let listed = |about: SessionView| ListedSession { current: here == Some(about.id), about };
    Ok(Json(sessions.into_iter().map(listed).collect()))
}

/// End every session but the one that asks. API tokens stay.
#[utoipa::path(delete, path = "/api/auth/sessions", tag = "accounts", responses((status = 204)))]
async fn end_other_sessions(State(app): State<App>, customer: Customer) -> Result<StatusCode, Problem> {
    let principal = customer.principal;
    accounts::end_other_sessions(&app.pool, principal.user_id, principal.any_session(), app.now(), &customer.cause())
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// End a session.
#[utoipa::path(delete, path = "/api/auth/sessions/{id}", tag = "accounts", params(("id" = Uuid, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
async fn end_session(State(app): State<App>, customer: Customer, Id(id): Id<Uuid>) -> Result<StatusCode, Problem> {
    match accounts::revoke(&app.pool, customer.principal.user_id, id, app.now(), &customer.cause()).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found("session")),
    }
}

/// A new password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    /// The present one.
    #[schema(value_type = String)]
    #[serde(deserialize_with = "secret")]
    current_password: SecretString,
    /// 10 to 200 characters.
    #[schema(value_type = String)]
    #[serde(deserialize_with = "secret")]
    new_password: SecretString,
}

/// Change the password. Every other session ends; API tokens stay, so revoke those you do not want any more. Wrong guesses
/// at the present password count like those of sign-in.
#[utoipa::path(post, path = "/api/auth/password", tag = "accounts", request_body = NewPassword,
    responses((status = 204), (status = 403, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem)))]
async fn change_password(
    State(app): State<App>,
    customer: Customer,
    from: ClientAddress,
    Body(body): Body<NewPassword>,
) -> Result<StatusCode, Problem> {
    let change = accounts::PasswordChange {
        user: customer.principal.user_id,
        session: customer.session()?,
        current: body.current_password,
        new: body.new_password,
        from: &from.0,
    };
    accounts::change_password(&app, change, &customer.cause()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// How it stands with the second factor.
#[utoipa::path(get, path = "/api/auth/totp", tag = "accounts", responses((status = 200, body = SecondFactor)))]
async fn show_totp(State(app): State<App>, customer: Customer) -> Result<Json<SecondFactor>, Problem> {
    Ok(Json(accounts::second_factor(&app.pool, customer.principal.user_id).await?))
}

/// What an authenticator app takes, shown once.
#[derive(Serialize, ToSchema)]
struct BegunTotp {
    /// To type in.
    secret: String,
    /// To scan, as a QR code.
    otpauth_url: String,
}

/// Begin to set up a second factor: an authenticator app that shows codes. Nothing asks for it before it is confirmed. Takes a
/// session.
#[utoipa::path(post, path = "/api/auth/totp", tag = "accounts",
    responses((status = 201, body = BegunTotp), (status = 403, body = Problem), (status = 409, body = Problem)))]
async fn begin_totp(State(app): State<App>, customer: Customer) -> Result<Shown<BegunTotp>, Problem> {
    customer.session()?;
    let begun = accounts::begin_totp(&app, customer.principal.user_id, &customer.cause()).await?;
    let body = BegunTotp {
        secret: begun.secret.expose_secret().to_owned(),
        otpauth_url: begun.url.expose_secret().to_owned(),
    };
    Ok((StatusCode::CREATED, NO_STORE, Json(body)))
}

/// A code of the app.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Code {
    /// Six digits.
    #[schema(value_type = String)]
    #[serde(deserialize_with = "secret")]
    code: SecretString,
}

/// Recovery codes, shown once.
#[derive(Serialize, ToSchema)]
struct RecoveryCodes {
    /// Each signs in once in place of a code of the app.
    recovery_codes: Vec<String>,
}

/// Turn the second factor on with a code of the app. From then on sign-in asks for one. The recovery codes are shown once: if
/// they are lost on their way, turn it off and begin again. Takes a session.
#[utoipa::path(post, path = "/api/auth/totp/confirm", tag = "accounts", request_body = Code,
    responses((status = 200, body = RecoveryCodes), (status = 403, body = Problem), (status = 409, body = Problem)))]
async fn confirm_totp(
    State(app): State<App>,
    customer: Customer,
    Body(body): Body<Code>,
) -> Result<Shown<RecoveryCodes>, Problem> {
    let (user, session) = (customer.principal.user_id, customer.session()?);
    let codes = accounts::confirm_totp(&app, user, session, &body.code, &customer.cause()).await?;
    let recovery_codes = codes.iter().map(|code| code.expose_secret().to_owned()).collect();
    Ok((StatusCode::OK, NO_STORE, Json(RecoveryCodes { recovery_codes })))
}

/// What proves that it is the owner who wants it off.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RemovedTotp {
    /// The password.
    #[schema(value_type = String)]
    #[serde(deserialize_with = "secret")]
    password: SecretString,
    /// Six digits of the app, or a recovery code.
    #[schema(value_type = String)]
    #[serde(deserialize_with = "secret")]
    code: SecretString,
}

/// Turn the second factor off. Sessions and API tokens stay, and none of them counts as made with one any more. Takes a session.
#[utoipa::path(delete, path = "/api/auth/totp", tag = "accounts", request_body = RemovedTotp,
    responses((status = 204), (status = 403, body = Problem), (status = 409, body = Problem), (status = 429, body = Problem)))]
async fn remove_totp(
    State(app): State<App>,
    customer: Customer,
    from: ClientAddress,
    Body(body): Body<RemovedTotp>,
) -> Result<StatusCode, Problem> {
    customer.session()?;
    let removal = accounts::TotpRemoval {
        user: customer.principal.user_id,
        password: body.password,
        code: body.code,
        from: &from.0,
    };
    accounts::remove_totp(&app, removal, &customer.cause()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whose password was forgotten.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Forgotten {
    /// The address of the account.
    email: String,
}

/// Ask for a mail with a link to set a new password, good for an hour and once. The answer is the same whether or not there
/// is such an account. Three times an hour for one account, ten times an hour from one network address.
#[utoipa::path(post, path = "/api/auth/password-reset", tag = "accounts", security(()), request_body = Forgotten,
    responses((status = 202), (status = 422, body = Problem), (status = 429, body = Problem)))]
async fn ask_for_reset(
    State(app): State<App>,
    from: ClientAddress,
    Body(body): Body<Forgotten>,
) -> Result<StatusCode, Problem> {
    accounts::request_reset(&app, &body.email, &from.0, app.now()).await?;
    Ok(StatusCode::ACCEPTED)
}

/// A new password, with the link of a mail.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CompletedReset {
    /// What follows `/reset/` in the link.
    #[schema(value_type = String)]
    #[serde(deserialize_with = "secret")]
    token: SecretString,
    /// 10 to 200 characters.
    #[schema(value_type = String)]
    #[serde(deserialize_with = "secret")]
    new_password: SecretString,
}

/// Set a new password with the link of a mail. Every session ends and none is opened: sign in after it. API tokens and the
/// second factor stay as they are.
#[utoipa::path(post, path = "/api/auth/password-reset/complete", tag = "accounts", security(()), request_body = CompletedReset,
    responses((status = 204), (status = 410, body = Problem), (status = 422, body = Problem)))]
async fn complete_reset(
    State(app): State<App>,
    RequestId(request_id): RequestId,
    Body(body): Body<CompletedReset>,
) -> Result<StatusCode, Problem> {
    accounts::complete_reset(&app, body.token.expose_secret(), body.new_password, request_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A token to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewToken {
    /// What its owner calls it, 1 to 80 characters.
    name: String,
    /// Until when it is good; for as long as it is not revoked if left out.
    expires_at: Option<Time>,
    /// What it may be used for: all that you may if left out, and never more than what you ask with.
    scopes: Option<Vec<Scope>>,
}

/// A token, shown once.
#[derive(Serialize, ToSchema)]
struct CreatedToken {
    #[serde(flatten)]
    about: ApiToken,
    /// Send it as `Authorization: Bearer <token>`.
    token: String,
}

/// API tokens.
#[utoipa::path(get, path = "/api/auth/tokens", tag = "accounts", responses((status = 200, body = Vec<ApiToken>)))]
async fn list_tokens(State(app): State<App>, customer: Customer) -> Result<Json<Vec<ApiToken>>, Problem> {
    Ok(Json(accounts::api_tokens(&app.pool, customer.principal.user_id).await?))
}

/// Make an API token.
#[utoipa::path(post, path = "/api/auth/tokens", tag = "accounts", request_body = NewToken,
    responses((status = 201, body = CreatedToken), (status = 403, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
async fn create_token(
    State(app): State<App>,
    customer: Customer,
    NewId(id): NewId,
    Body(body): Body<NewToken>,
) -> Result<Shown<CreatedToken>, Problem> {
    let now = app.now();
    let name = body.name.trim();
    if name.is_empty() || name.chars().count() > 80 {
        return Err(Problem::bad_input("`name` has 1 to 80 characters"));
    }
    if body.expires_at.is_some_and(|at| at <= now) {
        return Err(Problem::bad_input("`expires_at` is in the past"));
    }
    let principal = customer.principal;
    let allowed = Scopes::of_role(principal.role).and(principal.scopes);
    let scopes = body.scopes.map_or(allowed, Scopes::from_iter);
    if scopes.is_empty() {
        return Err(Problem::bad_input("`scopes` has one scope or more; leave it out for all that you may do"));
    }
    let beyond = scopes.without(allowed);
    if !beyond.is_empty() {
        return Err(Problem::scope_missing(&beyond.list()));
    }
    let new = accounts::NewApiToken {
        id,
        user: principal.user_id,
        name,
        expires_at: body.expires_at,
        scopes,
        second_factor: principal.second_factor,
    };
    let (about, token) = accounts::create_api_token(&app.pool, new, now, &customer.cause()).await?;
    Ok((StatusCode::CREATED, NO_STORE, Json(CreatedToken { about, token: token.expose_secret().to_owned() })))
}

/// Revoke an API token.
#[utoipa::path(delete, path = "/api/auth/tokens/{id}", tag = "accounts", params(("id" = Uuid, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
async fn revoke_token(State(app): State<App>, customer: Customer, Id(id): Id<Uuid>) -> Result<StatusCode, Problem> {
    match accounts::revoke(&app.pool, customer.principal.user_id, id, app.now(), &customer.cause()).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found("token")),
    }
}
