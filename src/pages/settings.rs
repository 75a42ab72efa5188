//! Your account: password, second factor, sessions, API tokens.

use askama::Template;
use axum::{
    extract::{Query, State},
    http::header,
    response::{IntoResponse, Redirect, Response},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Fields, FormId, Said, Shell,
    accounts::secret,
    page, page_with,
    show::When,
    status_of,
    topups::qr,
    visitor::{Person, SignedIn, session_cookie},
};
use crate::{
    accounts::{self, NewApiToken, PasswordChange, Scope, Scopes, SecondFactor, TotpRemoval},
    api::error::{Id, Problem},
    app::App,
    auth::ClientAddress,
};

struct SessionRow {
    id: Uuid,
    here: bool,
    user_agent: String,
    address: String,
    created_at: When,
    last_used_at: Option<When>,
    second_factor: bool,
}

struct TokenRow {
    id: Uuid,
    name: String,
    scopes: String,
    created_at: When,
}

/// Something that is shown once.
enum Shown {
    Token { name: String, token: String },
    Totp { secret: String, qr: String },
    RecoveryCodes(Vec<String>),
}

#[derive(Template)]
#[template(path = "account.html")]
struct AccountPage {
    shell: Shell,
    said: Option<Said>,
    shown: Option<Shown>,
    factor: SecondFactor,
    factor_since: Option<When>,
    /// The issuer that has their password and second factor, if they came with its token.
    issuer: Option<String>,
    /// Whether an operator's pages wait for a second factor.
    factor_needed: bool,
    sessions: Vec<SessionRow>,
    tokens: Vec<TokenRow>,
    scopes: Vec<(&'static str, &'static str)>,
    form_id: Uuid,
}

fn scope_words(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "read everything of yours",
        Scope::Boxes => "order, run and end boxes",
        Scope::Money => "pay in",
        Scope::Servers => "connect your own servers and run commands on them",
        Scope::Account => "make and revoke tokens, end sessions",
        Scope::Operator => "what your role as an operator allows",
    }
}

async fn account_page(
    app: &App,
    person: &Person,
    said: Option<Said>,
    shown: Option<Shown>,
) -> Result<AccountPage, Problem> {
    let principal = person.customer.principal;
    let (user, now) = (principal.user_id, app.now());
    let factor = accounts::second_factor(&app.pool, user).await?;
    let available = Scopes::of_role(principal.role);
    Ok(AccountPage {
        shell: Shell::new(app, Some(person), "Your account", "account"),
        said,
        shown,
        issuer: app.issuer.as_ref().filter(|_| principal.session().is_none()).map(|issuer| issuer.name().to_owned()),
        factor_since: factor.since.map(When),
        factor_needed: principal.role.reads_as_operator() && !app.trial && !principal.second_factor,
        factor,
        sessions: accounts::sessions_of(&app.pool, user, now)
            .await?
            .into_iter()
            .map(|one| SessionRow {
                id: one.id,
                here: principal.any_session() == Some(one.id),
                user_agent: one.user_agent.unwrap_or_else(|| "unknown program".to_owned()),
                address: one.address.unwrap_or_default(),
                created_at: When(one.created_at),
                last_used_at: one.last_used_at.map(When),
                second_factor: one.second_factor,
            })
            .collect(),
        tokens: accounts::api_tokens(&app.pool, user)
            .await?
            .into_iter()
            .map(|one| TokenRow {
                id: one.id,
                name: one.name,
                scopes: one.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(", "),
                created_at: When(one.created_at),
            })
            .collect(),
        scopes: Scope::ALL
            .iter()
            .filter(|scope| available.has(**scope))
            .map(|scope| (scope.as_str(), scope_words(*scope)))
            .collect(),
        form_id: Uuid::now_v7(),
    })
}

/// Which good news the page begins with.
#[derive(Deserialize)]
pub(super) struct Done {
    done: Option<String>,
}

/// `GET /seedbox/account`
pub(super) async fn show(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Query(done): Query<Done>,
) -> Result<Response, Problem> {
    let said = match done.done.as_deref() {
        Some("password") => {
            Some(Said::good("The password is changed. Every other session has ended; API tokens stay good."))
        }
        Some("session") => Some(Said::good("That session has ended.")),
        Some("sessions") => Some(Said::good("Every other session has ended.")),
        Some("token") => Some(Said::good("That token is revoked.")),
        Some("factor-off") => Some(Said::good("The second factor is off: the password alone signs you in.")),
        Some("factor-needed") => Some(Said {
            tone: "warn",
            text: "The operator's pages need a second factor. Set one up below, then sign in again with it.".to_owned(),
        }),
        _ => None,
    };
    page(&account_page(&app, &person, said, None).await?)
}

async fn answer<T>(app: &App, person: &Person, done: &str, result: Result<T, Problem>) -> Result<Response, Problem> {
    match result {
        Ok(_) => Ok(Redirect::to(&format!("/seedbox/account?done={done}")).into_response()),
        Err(problem) if problem.status == 404 => Err(problem),
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &account_page(app, person, said, None).await?)
        }
    }
}

/// A new password.
#[derive(Deserialize)]
pub(super) struct NewPassword {
    #[serde(deserialize_with = "secret")]
    current: SecretString,
    #[serde(deserialize_with = "secret")]
    new: SecretString,
}

/// `POST /seedbox/account/password`
pub(super) async fn change_password(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    from: ClientAddress,
    Fields(form): Fields<NewPassword>,
) -> Result<Response, Problem> {
    let change = PasswordChange {
        user: person.customer.principal.user_id,
        session: person.customer.session()?,
        current: form.current,
        new: form.new,
        from: &from.0,
    };
    let result = accounts::change_password(&app, change, &person.customer.cause()).await;
    answer(&app, &person, "password", result.map_err(Problem::from)).await
}

/// `POST /seedbox/account/sessions/{id}/end`
pub(super) async fn end_session(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    let user = person.customer.principal.user_id;
    let sessions = accounts::sessions_of(&app.pool, user, app.now()).await?;
    if !sessions.iter().any(|session| session.id == id) {
        return Err(Problem::not_found("session"));
    }
    accounts::revoke(&app.pool, user, id, app.now(), &person.customer.cause()).await?;
    if person.customer.principal.any_session() == Some(id) {
        return Ok(([(header::SET_COOKIE, session_cookie(&app, None))], Redirect::to("/")).into_response());
    }
    answer(&app, &person, "session", Ok(())).await
}

/// `POST /seedbox/account/sessions/end-others`
pub(super) async fn end_other_sessions(
    State(app): State<App>,
    SignedIn(person): SignedIn,
) -> Result<Response, Problem> {
    let (user, here) = (person.customer.principal.user_id, person.customer.principal.any_session());
    accounts::end_other_sessions(&app.pool, user, here, app.now(), &person.customer.cause()).await?;
    answer(&app, &person, "sessions", Ok(())).await
}

/// `POST /seedbox/account/tokens`: the fields are `form_id`, `name` and a `scope` for each that is ticked.
pub(super) async fn create_token(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Fields(fields): Fields<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let value = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.trim());
    let principal = person.customer.principal;
    let name = value("name").unwrap_or_default();
    let ticked = fields.iter().filter(|(key, _)| key == "scope").map(|(_, value)| value.as_str());
    let scopes: Option<Vec<Scope>> =
        ticked.map(|word| Scope::ALL.iter().copied().find(|scope| scope.as_str() == word)).collect();
    let scopes: Scopes = scopes.unwrap_or_default().into_iter().collect();
    let made = match value("form_id").and_then(|id| id.parse().ok()) {
        None => {
            Err(Problem::bad_input("the form did not arrive as it was sent; nothing was made. Load the page again"))
        }
        Some(_) if name.is_empty() || name.chars().count() > 80 => {
            Err(Problem::bad_input("a token has a name of 1 to 80 characters; nothing was made"))
        }
        Some(_) if scopes.is_empty() || !scopes.without(Scopes::of_role(principal.role)).is_empty() => {
            Err(Problem::bad_input("tick what the token may do; nothing was made"))
        }
        Some(id) => {
            let new = NewApiToken {
                id,
                user: principal.user_id,
                name,
                expires_at: None,
                scopes,
                second_factor: principal.second_factor,
            };
            accounts::create_api_token(&app.pool, new, app.now(), &person.customer.cause()).await.map_err(Problem::from)
        }
    };
    match made {
        Ok((about, token)) => {
            let shown = Shown::Token { name: about.name, token: token.expose_secret().to_owned() };
            page(&account_page(&app, &person, None, Some(shown)).await?)
        }
        Err(problem) => answer::<()>(&app, &person, "", Err(problem)).await,
    }
}

/// `POST /seedbox/account/tokens/{id}/revoke`
pub(super) async fn revoke_token(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    let user = person.customer.principal.user_id;
    if !accounts::api_tokens(&app.pool, user).await?.iter().any(|token| token.id == id) {
        return Err(Problem::not_found("token"));
    }
    accounts::revoke(&app.pool, user, id, app.now(), &person.customer.cause()).await?;
    answer(&app, &person, "token", Ok(())).await
}

/// `POST /seedbox/account/second-factor`: begins one, and shows its secret once.
pub(super) async fn begin_factor(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Fields(_form): Fields<FormId>,
) -> Result<Response, Problem> {
    person.customer.session()?;
    match accounts::begin_totp(&app, person.customer.principal.user_id, &person.customer.cause()).await {
        Ok(begun) => {
            let qr = qr(begun.url.expose_secret());
            let shown = Shown::Totp { secret: begun.secret.expose_secret().to_owned(), qr };
            page(&account_page(&app, &person, None, Some(shown)).await?)
        }
        Err(error) => answer::<()>(&app, &person, "", Err(error.into())).await,
    }
}

/// A code of the app.
#[derive(Deserialize)]
pub(super) struct Code {
    #[serde(deserialize_with = "secret")]
    code: SecretString,
}

/// `POST /seedbox/account/second-factor/confirm`: turns it on, and shows the recovery codes once.
pub(super) async fn confirm_factor(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Fields(form): Fields<Code>,
) -> Result<Response, Problem> {
    let (user, session) = (person.customer.principal.user_id, person.customer.session()?);
    match accounts::confirm_totp(&app, user, session, &form.code, &person.customer.cause()).await {
        Ok(codes) => {
            let codes = codes.iter().map(|code| code.expose_secret().to_owned()).collect();
            page(&account_page(&app, &person, None, Some(Shown::RecoveryCodes(codes))).await?)
        }
        Err(error) => answer::<()>(&app, &person, "", Err(error.into())).await,
    }
}

/// What turns the second factor off.
#[derive(Deserialize)]
pub(super) struct Removal {
    #[serde(deserialize_with = "secret")]
    password: SecretString,
    #[serde(deserialize_with = "secret")]
    code: SecretString,
}

/// `POST /seedbox/account/second-factor/remove`
pub(super) async fn remove_factor(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    from: ClientAddress,
    Fields(form): Fields<Removal>,
) -> Result<Response, Problem> {
    person.customer.session()?;
    let removal = TotpRemoval {
        user: person.customer.principal.user_id,
        password: form.password,
        code: form.code,
        from: &from.0,
    };
    let result = accounts::remove_totp(&app, removal, &person.customer.cause()).await;
    answer(&app, &person, "factor-off", result.map_err(Problem::from)).await
}
