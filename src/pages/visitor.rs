//! Who looks at a page: a session in a cookie. The API takes no cookies, so that nothing another site can make a browser do
//! reaches it; for pages every change is refused unless it comes from a page of ours (the router's `CsrfLayer`).

use axum::{
    extract::{FromRef, FromRequestParts},
    http::{HeaderMap, HeaderValue, Method, header, request::Parts},
    response::{IntoResponse, Redirect, Response},
};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::{
    accounts::{self, SESSION_LIFETIME},
    api::error::Problem,
    app::App,
    auth::{Customer, Operator, proved_enough, request_id},
};

/// The cookie of a session. The prefix `__Host-` keeps it from every other host and path, and needs https.
fn cookie_name(app: &App) -> &'static str {
    if app.public_url.starts_with("https://") { "__Host-seedplane-session" } else { "seedplane-session" }
}

/// The header that keeps a session in the browser, or ends it there.
pub(super) fn session_cookie(app: &App, token: Option<&SecretString>) -> HeaderValue {
    let secure = if app.public_url.starts_with("https://") { "; Secure" } else { "" };
    let (value, age) = match token {
        Some(token) => (token.expose_secret(), SESSION_LIFETIME.as_secs()),
        None => ("", 0),
    };
    let text = format!("{}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={age}{secure}", cookie_name(app));
    let mut header = HeaderValue::try_from(text).expect("a token is letters, digits, - and _");
    header.set_sensitive(true);
    header
}

/// The session token that a request carries.
fn token_of<'a>(app: &App, headers: &'a HeaderMap) -> Option<&'a str> {
    let name = cookie_name(app);
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|value| value.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find(|(key, value)| *key == name && (1..=200).contains(&value.len()))
        .map(|(_, value)| value)
}

/// Somebody who is signed in on pages, and what the frame of a page says of them.
#[derive(Debug, Clone)]
pub(super) struct Person {
    /// As the API's functions take them.
    pub(super) customer: Customer,
    /// Shown in the frame.
    pub(super) email: String,
}

impl Person {
    /// Whether the operator's pages are theirs to read.
    pub(super) fn reads_as_operator(&self) -> bool {
        self.customer.principal.role.reads_as_operator()
    }

    /// The session that they look with.
    ///
    /// # Errors
    /// A problem if there is none, which pages do not come to.
    pub(super) fn session(&self) -> Result<Uuid, Problem> {
        self.customer.principal.any_session().ok_or_else(Problem::session_needed)
    }

    /// Whether they may act there, too.
    pub(super) fn is_operator(&self) -> bool {
        self.customer.principal.role.is_operator()
    }
}

/// Whoever has the session that a request carries.
///
/// # Errors
/// Those of the database.
pub(super) async fn find(app: &App, headers: &HeaderMap) -> Result<Option<Person>, Problem> {
    let Some(token) = token_of(app, headers) else { return Ok(None) };
    let principal = accounts::authenticate(&app.pool, token, app.now()).await?;
    // An API token is none: pages ask for no scopes.
    let Some(principal) = principal.filter(|principal| principal.any_session().is_some()) else { return Ok(None) };
    let Some(email) = accounts::email_of(&app.pool, principal.user_id).await? else { return Ok(None) };
    Ok(Some(Person { customer: Customer { principal, request_id: request_id(headers) }, email }))
}

/// Whoever looks at a page that anybody may see.
pub(super) struct Visitor(pub(super) Option<Person>);

impl<S: Send + Sync> FromRequestParts<S> for Visitor
where
    App: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        Ok(Self(find(&App::from_ref(state), &parts.headers).await?))
    }
}

/// Somebody who has to be signed in; whoever is not is asked to, and comes back to where they wanted to go.
pub(super) struct SignedIn(pub(super) Person);

impl<S: Send + Sync> FromRequestParts<S> for SignedIn
where
    App: FromRef<S>,
{
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let app = App::from_ref(state);
        match find(&app, &parts.headers).await.map_err(IntoResponse::into_response)? {
            Some(person) => Ok(Self(person)),
            None => Err(to_sign_in(parts)),
        }
    }
}

/// Somebody who may read what operators read. For anybody else who is signed in there is no such page.
pub(super) struct Reading(pub(super) Person);

impl<S: Send + Sync> FromRequestParts<S> for Reading
where
    App: FromRef<S>,
{
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let SignedIn(person) = SignedIn::from_request_parts(parts, state).await?;
        if !person.reads_as_operator() {
            return Err(Problem::not_found("page").into_response());
        }
        if proved_enough(&App::from_ref(state), &person.customer.principal).is_err() {
            return Err(Redirect::to("/seedbox/account?done=factor-needed").into_response());
        }
        Ok(Self(person))
    }
}

/// Somebody who acts on other people's things.
pub(super) struct Acting {
    pub(super) person: Person,
    pub(super) operator: Operator,
}

impl<S: Send + Sync> FromRequestParts<S> for Acting
where
    App: FromRef<S>,
{
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let Reading(person) = Reading::from_request_parts(parts, state).await?;
        let customer = &person.customer;
        if !customer.principal.role.is_operator() {
            return Err(Problem::not_found("page").into_response());
        }
        let operator = Operator { principal: customer.principal, request_id: customer.request_id.clone() };
        Ok(Self { person, operator })
    }
}

fn to_sign_in(parts: &Parts) -> Response {
    let wanted = parts.uri.path_and_query().map_or("/seedbox", |path| path.as_str());
    if parts.method != Method::GET || wanted.ends_with("/live") {
        return Redirect::to("/sign-in").into_response();
    }
    let next: String = url_encoded(wanted);
    Redirect::to(&format!("/sign-in?next={next}")).into_response()
}

/// A text as the value of a query parameter.
pub(super) fn url_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// A page of ours to go on to: a path on this host, and nothing that a browser would take for another one.
pub(super) fn safe_next(next: Option<&str>) -> &str {
    let good = |next: &&str| {
        next.starts_with('/')
            && !next.starts_with("//")
            && !next.contains(['\\', '\r', '\n', '\t'])
            && next.len() <= 500
            && next.bytes().all(|byte| (0x21..0x7f).contains(&byte))
    };
    next.filter(good).unwrap_or("/seedbox")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_another_host() {
        for good in ["/seedbox", "/seedbox/boxes/1?tab=a%20b", "/"] {
            assert_eq!(safe_next(Some(good)), good);
        }
        for bad in
            ["//evil.example", "/\\evil.example", "https://evil.example", "", "javascript:1", "/a\r\nb", "/\t/x", "/ü"]
        {
            assert_eq!(safe_next(Some(bad)), "/seedbox", "{bad}");
        }
        assert_eq!(safe_next(None), "/seedbox");
        assert_eq!(url_encoded("/a?b=c&d é"), "/a%3Fb%3Dc%26d%20%C3%A9");
    }
}
