//! Signing up, in and out.

use askama::Template;
use axum::{
    extract::{Query, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Redirect, Response},
};
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

use super::{
    Fields, Said, Shell, page, page_with, status_of,
    visitor::{SignedIn, Visitor, safe_next, session_cookie},
};
use crate::{
    accounts::{self, Role},
    api::error::Problem,
    app::App,
    audit::events::{Actor, Cause},
    auth::{ClientAddress, user_agent},
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
    next: Option<String>,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

fn sign_in_page(app: &App, new: bool, next: &str, email: &str, said: Option<Said>) -> SignInPage {
    let (title, section) = if new { ("Make an account", "sign-up") } else { ("Sign in", "sign-in") };
    let shell = Shell::new(app, None, title, section);
    SignInPage { shell, new, next: next.to_owned(), email: email.to_owned(), said }
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
        code: None,
        from: &from.0,
        user_agent: user_agent(headers),
    };
    match accounts::sign_in(app, sign_in).await {
        Ok(opened) => {
            Ok(([(header::SET_COOKIE, session_cookie(app, Some(&opened.token)))], Redirect::to(next)).into_response())
        }
        Err(error) => {
            let taken = new && matches!(error, accounts::AccountError::BadCredentials);
            let problem = if taken { accounts::AccountError::EmailTaken.into() } else { Problem::from(error) };
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &sign_in_page(app, new && !taken, next, &form.email, said))
        }
    }
}

/// `POST /sign-out`
pub(super) async fn sign_out(State(app): State<App>, SignedIn(person): SignedIn) -> Result<Response, Problem> {
    let (user, session) = (person.customer.principal.user_id, person.customer.session()?);
    accounts::revoke(&app.pool, user, session, app.now(), &person.customer.cause()).await?;
    Ok(([(header::SET_COOKIE, session_cookie(&app, None))], Redirect::to("/")).into_response())
}
