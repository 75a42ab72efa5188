//! Signing up, in and out, and a new password by mail.

use askama::Template;
use axum::{
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};

use super::{
    Fields, Said, Shell, page, page_with, status_of,
    visitor::{SignedIn, Visitor, safe_next, session_cookie, url_encoded},
};
use crate::{
    accounts::{self, Role},
    api::error::{Id, Problem},
    app::App,
    audit::events::{Actor, Cause},
    auth::{ClientAddress, LONGEST_TOKEN, RequestId, user_agent},
    ids::UserId,
};

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    shell: Shell,
    /// Whether it makes an account.
    new: bool,
    next: String,
    email: String,
    /// Whether a code is asked for, too.
    asks_for_code: bool,
    /// Another issuer whose people can come in: its name, and where they sign in there or, if that is not known, with its token.
    elsewhere: Option<(String, String)>,
    said: Option<Said>,
}

/// Where to go on to afterwards.
#[derive(Deserialize)]
pub(super) struct Next {
    next: Option<String>,
}

/// An e-mail address and a password.
#[derive(Deserialize)]
pub(super) struct SignIn {
    email: String,
    #[serde(deserialize_with = "secret")]
    password: SecretString,
    /// Of the second factor, where there is one.
    #[serde(default, deserialize_with = "given_secret")]
    code: Option<SecretString>,
    next: Option<String>,
}

fn given_secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()).map(SecretString::from))
}

/// Text that nothing prints.
pub(super) fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

fn sign_in_page(app: &App, new: bool, next: &str, email: &str, said: Option<Said>) -> SignInPage {
    let (title, section) = if new { ("Make an account", "sign-up") } else { ("Sign in", "sign-in") };
    let shell = Shell::new(app, None, title, section);
    let elsewhere = app.issuer.as_ref().map(|issuer| {
        let ours = || format!("/sign-in/elsewhere?next={}", url_encoded(next));
        (issuer.name().to_owned(), issuer.sign_in_url().map_or_else(ours, str::to_owned))
    });
    SignInPage { shell, new, next: next.to_owned(), email: email.to_owned(), asks_for_code: false, elsewhere, said }
}

/// `GET /sign-in`
pub(super) async fn ask_sign_in(
    State(app): State<App>,
    Visitor(visitor): Visitor,
    Query(next): Query<Next>,
) -> Result<Response, Problem> {
    let next = safe_next(next.next.as_deref());
    match visitor {
        Some(_) => Ok(Redirect::to(next).into_response()),
        None => page(&sign_in_page(&app, false, next, "", None)),
    }
}

/// `GET /sign-up`
pub(super) async fn ask_sign_up(
    State(app): State<App>,
    Visitor(visitor): Visitor,
    Query(next): Query<Next>,
) -> Result<Response, Problem> {
    let next = safe_next(next.next.as_deref());
    match visitor {
        Some(_) => Ok(Redirect::to(next).into_response()),
        None => page(&sign_in_page(&app, true, next, "", None)),
    }
}

/// `POST /sign-in`
pub(super) async fn sign_in(
    State(app): State<App>,
    from: ClientAddress,
    headers: HeaderMap,
    Fields(form): Fields<SignIn>,
) -> Result<Response, Problem> {
    enter(&app, &from, &headers, form, false).await
}

/// `POST /sign-up`
pub(super) async fn sign_up(
    State(app): State<App>,
    from: ClientAddress,
    headers: HeaderMap,
    Fields(form): Fields<SignIn>,
) -> Result<Response, Problem> {
    let cause = |id| Cause { actor: Actor::User(id), reason: String::new(), request_id: None };
    let (id, password) = (UserId::new(), form.password.clone());
    match accounts::sign_up(&app.pool, id, &form.email, password, Role::Customer, app.now(), cause).await {
        // Sent twice, or already there: whoever has the password may come in.
        Ok(_) | Err(accounts::AccountError::EmailTaken) => enter(&app, &from, &headers, form, true).await,
        Err(error) => {
            let problem = Problem::from(error);
            let next = safe_next(form.next.as_deref());
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &sign_in_page(&app, true, next, &form.email, said))
        }
    }
}

async fn enter(
    app: &App,
    from: &ClientAddress,
    headers: &HeaderMap,
    form: SignIn,
    new: bool,
) -> Result<Response, Problem> {
    let next = safe_next(form.next.as_deref());
    let sign_in = accounts::SignIn {
        email: &form.email,
        password: form.password,
        code: form.code,
        from: &from.0,
        user_agent: user_agent(headers),
    };
    match accounts::sign_in(app, sign_in).await {
        Ok(opened) => {
            Ok(([(header::SET_COOKIE, session_cookie(app, Some(&opened.token)))], Redirect::to(next)).into_response())
        }
        Err(error) => {
            let taken = new && matches!(error, accounts::AccountError::BadCredentials);
            let asks_for_code =
                matches!(error, accounts::AccountError::SecondFactorNeeded | accounts::AccountError::BadCode);
            let problem = if taken { accounts::AccountError::EmailTaken.into() } else { Problem::from(error) };
            let said = Some(Said::refused(&problem));
            let new = new && !taken && !asks_for_code;
            let shown = SignInPage { asks_for_code, ..sign_in_page(app, new, next, &form.email, said) };
            page_with(status_of(&problem), &shown)
        }
    }
}

#[derive(Template)]
#[template(path = "sign_in_elsewhere.html")]
struct ElsewherePage {
    shell: Shell,
    issuer: String,
    next: String,
    said: Option<Said>,
}

fn elsewhere_page(app: &App, next: &str, said: Option<Said>) -> Result<ElsewherePage, Problem> {
    let issuer = app.issuer.as_ref().ok_or_else(|| Problem::not_found("page"))?.name().to_owned();
    Ok(ElsewherePage { shell: Shell::new(app, None, "Sign in", "sign-in"), issuer, next: next.to_owned(), said })
}

/// `GET /sign-in/elsewhere`: where another issuer sends people on to, with their token after the `#`.
pub(super) async fn ask_elsewhere(State(app): State<App>, Query(next): Query<Next>) -> Result<Response, Problem> {
    page(&elsewhere_page(&app, safe_next(next.next.as_deref()), None)?)
}

/// A token of another issuer.
#[derive(Deserialize)]
pub(super) struct Elsewhere {
    #[serde(deserialize_with = "secret")]
    access_token: SecretString,
    next: Option<String>,
}

/// `POST /sign-in/elsewhere`
pub(super) async fn sign_in_elsewhere(
    State(app): State<App>,
    from: ClientAddress,
    headers: HeaderMap,
    Fields(form): Fields<Elsewhere>,
) -> Result<Response, Problem> {
    let next = safe_next(form.next.as_deref());
    let issuer = app.issuer.as_ref().ok_or_else(|| Problem::not_found("page"))?;
    let token = form.access_token.expose_secret().trim();
    if token.len() > LONGEST_TOKEN {
        let problem = Problem::bad_input("that is longer than any token that is taken; nothing was done");
        return page_with(status_of(&problem), &elsewhere_page(&app, next, Some(Said::refused(&problem)))?);
    }
    match issuer.authenticate(&app, token).await {
        Ok(principal) => {
            let (user, agent) = (principal.user_id, user_agent(&headers));
            let token = accounts::sign_in_by_issuer(&app.pool, user, &from.0, agent, app.now()).await?;
            Ok(([(header::SET_COOKIE, session_cookie(&app, Some(&token)))], Redirect::to(next)).into_response())
        }
        Err(error) => {
            let problem = Problem::from(error);
            page_with(status_of(&problem), &elsewhere_page(&app, next, Some(Said::refused(&problem)))?)
        }
    }
}

/// Where a new password by mail stands.
enum Reset {
    /// Who asks?
    Ask,
    /// A mail may be on its way.
    Sent,
    /// The link is good.
    Choose,
    /// It is set.
    Done,
    /// The link is not good.
    Closed,
}

#[derive(Template)]
#[template(path = "reset.html")]
struct ResetPage {
    shell: Shell,
    said: Option<Said>,
    stage: Reset,
}

fn reset_page(app: &App, stage: Reset, said: Option<Said>) -> ResetPage {
    ResetPage { shell: Shell::new(app, None, "A new password", "sign-in"), said, stage }
}

/// `GET /forgot-password`
pub(super) async fn ask_reset(State(app): State<App>) -> Result<Response, Problem> {
    page(&reset_page(&app, Reset::Ask, None))
}

/// Whose password.
#[derive(Deserialize)]
pub(super) struct Forgotten {
    email: String,
}

/// `POST /forgot-password`
pub(super) async fn request_reset(
    State(app): State<App>,
    from: ClientAddress,
    Fields(form): Fields<Forgotten>,
) -> Result<Response, Problem> {
    match accounts::request_reset(&app, &form.email, &from.0, app.now()).await {
        Ok(()) => page(&reset_page(&app, Reset::Sent, None)),
        Err(error) => {
            let problem = Problem::from(error);
            page_with(status_of(&problem), &reset_page(&app, Reset::Ask, Some(Said::refused(&problem))))
        }
    }
}

/// `GET /reset/{token}`: looking changes nothing, as mail scanners look, too.
pub(super) async fn ask_new_password(State(app): State<App>, Id(token): Id<String>) -> Result<Response, Problem> {
    match accounts::reset_is_open(&app.pool, &token, app.now()).await? {
        true => page(&reset_page(&app, Reset::Choose, None)),
        false => page_with(StatusCode::GONE, &reset_page(&app, Reset::Closed, None)),
    }
}

/// The new password.
#[derive(Deserialize)]
pub(super) struct Chosen {
    #[serde(deserialize_with = "secret")]
    new: SecretString,
}

/// `POST /reset/{token}`
pub(super) async fn complete_reset(
    State(app): State<App>,
    RequestId(request_id): RequestId,
    Id(token): Id<String>,
    Fields(form): Fields<Chosen>,
) -> Result<Response, Problem> {
    match accounts::complete_reset(&app, &token, form.new, request_id).await {
        Ok(()) => page(&reset_page(&app, Reset::Done, None)),
        Err(accounts::AccountError::ResetClosed) => page_with(StatusCode::GONE, &reset_page(&app, Reset::Closed, None)),
        Err(error) => {
            let problem = Problem::from(error);
            page_with(status_of(&problem), &reset_page(&app, Reset::Choose, Some(Said::refused(&problem))))
        }
    }
}

#[derive(Template)]
#[template(path = "enter.html")]
struct EnterPage {
    shell: Shell,
    closed: bool,
}

/// `GET /trial/enter/{token}`: a link signs nobody in by itself.
pub(super) async fn ask_enter(State(app): State<App>, Id(_token): Id<String>) -> Result<Response, Problem> {
    page(&EnterPage { shell: Shell::new(&app, None, "Come in", "sign-in"), closed: false })
}

/// `POST /trial/enter/{token}`
pub(super) async fn enter_by_link(
    State(app): State<App>,
    from: ClientAddress,
    headers: HeaderMap,
    Id(token): Id<String>,
) -> Result<Response, Problem> {
    match accounts::sign_in_by_link(&app.pool, &token, &from.0, user_agent(&headers), app.now()).await? {
        Some(token) => {
            Ok(([(header::SET_COOKIE, session_cookie(&app, Some(&token)))], Redirect::to("/seedbox")).into_response())
        }
        None => {
            let shell = Shell::new(&app, None, "This link does not open", "sign-in");
            page_with(StatusCode::GONE, &EnterPage { shell, closed: true })
        }
    }
}

/// `POST /sign-out`
pub(super) async fn sign_out(State(app): State<App>, SignedIn(person): SignedIn) -> Result<Response, Problem> {
    let (user, session) = (person.customer.principal.user_id, person.session()?);
    accounts::revoke(&app.pool, user, session, app.now(), &person.customer.cause()).await?;
    Ok(([(header::SET_COOKIE, session_cookie(&app, None))], Redirect::to("/")).into_response())
}
