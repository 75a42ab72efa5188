//! Who may call: extractors shared by the API and the pages. Somebody else's thing does not exist, and neither do the
//! operators' routes for anybody who is none.

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::{ConnectInfo, FromRef, FromRequestParts, MatchedPath, OptionalFromRequestParts},
    http::{HeaderMap, header, request::Parts},
};

use uuid::Uuid;

use crate::{
    accounts::{self, Needed, Principal, Scope, issuers::looks_like_jwt},
    api::error::Problem,
    app::App,
    audit::events::{Actor, Cause},
};

/// A signed-in person.
#[derive(Debug, Clone)]
pub struct Customer {
    /// Who.
    pub principal: Principal,
    /// The request, for the audit log.
    pub request_id: Option<String>,
}

impl Customer {
    /// What an audit event says of this person's own doings.
    pub fn cause(&self) -> Cause {
        Cause { actor: Actor::User(self.principal.user_id), reason: String::new(), request_id: self.request_id.clone() }
    }

    /// The session this is asked for in.
    ///
    /// # Errors
    /// A problem if it is asked for with anything else.
    pub fn session(&self) -> Result<Uuid, Problem> {
        self.principal.session().ok_or_else(Problem::session_needed)
    }
}

/// What the program that sends a request calls itself, as far as it can be read.
pub fn user_agent(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::USER_AGENT)?.to_str().ok()
}

/// The longest bearer token that is looked at: other issuers write a lot into theirs.
pub const LONGEST_TOKEN: usize = 8192;

/// Who a bearer token belongs to: a session or API token of ours, or a token of the issuer that is configured.
///
/// # Errors
/// Why another issuer's token is not taken, and those of the database.
pub async fn principal_of(app: &App, token: &str) -> Result<Option<Principal>, Problem> {
    match &app.issuer {
        Some(issuer) if looks_like_jwt(token) => Ok(Some(issuer.authenticate(app, token).await?)),
        _ => Ok(accounts::authenticate(&app.pool, token, app.now()).await?),
    }
}

/// The bearer token of a request.
pub fn bearer(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && token.len() <= LONGEST_TOKEN).then(|| token.trim())
}

/// The id the request carries through logs and the audit log.
pub fn request_id(headers: &HeaderMap) -> Option<String> {
    headers.get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned)
}

/// The same as an extractor, for what nobody has to be signed in for.
#[derive(Debug, Clone)]
pub struct RequestId(pub Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for RequestId {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(request_id(&parts.headers)))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Customer
where
    App: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let app = App::from_ref(state);
        let token = bearer(parts).ok_or_else(Problem::unauthorized)?;
        let principal = principal_of(&app, token).await?.ok_or_else(Problem::unauthorized)?;
        if principal.session().is_none() {
            let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
            within_scopes(&principal, accounts::needed(&parts.method, path))?;
        }
        Ok(Self { principal, request_id: request_id(&parts.headers) })
    }
}

/// Whether what is no session may be used for this.
fn within_scopes(principal: &Principal, needed: Option<Needed>) -> Result<(), Problem> {
    match needed {
        // What is not there for somebody is not a matter of scopes.
        Some(Needed::OneOf([Scope::Operator])) if !principal.role.reads_as_operator() => {
            Err(Problem::not_found("page"))
        }
        Some(Needed::OneOf(scopes)) if scopes.iter().any(|scope| principal.scopes.has(*scope)) => Ok(()),
        Some(Needed::OneOf(scopes)) => Err(Problem::scope_missing(scopes)),
        Some(Needed::Session) | None => Err(Problem::session_needed()),
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Customer
where
    App: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, Problem> {
        if bearer(parts).is_none() {
            return Ok(None);
        }
        <Self as FromRequestParts<S>>::from_request_parts(parts, state).await.map(Some)
    }
}

/// Whether somebody has proved enough to act or read as an operator: outside the trial, with a second factor.
///
/// # Errors
/// A problem that says how to set one up.
pub fn proved_enough(app: &App, principal: &Principal) -> Result<(), Problem> {
    if app.trial || principal.second_factor { Ok(()) } else { Err(Problem::second_factor_required()) }
}

/// Somebody who runs the business.
#[derive(Debug, Clone)]
pub struct Operator {
    /// Who.
    pub principal: Principal,
    /// The request, for the audit log.
    pub request_id: Option<String>,
}

impl Operator {
    /// What an audit event says of an operator's doings: the reason is compulsory.
    ///
    /// # Errors
    /// A problem if there is no reason.
    pub fn cause(&self, reason: &str) -> Result<Cause, Problem> {
        Ok(Cause {
            actor: Actor::Operator(self.principal.user_id),
            reason: checked_reason(reason)?,
            request_id: self.request_id.clone(),
        })
    }
}

/// Why an operator does something, by HTTP or on the command line.
///
/// # Errors
/// A problem if it says nothing or too much.
pub fn checked_reason(reason: &str) -> Result<String, Problem> {
    let reason = reason.trim();
    if reason.is_empty() || reason.chars().count() > 1000 {
        return Err(Problem::bad_input("an operator says why: the reason has 1 to 1000 characters; nothing was done"));
    }
    Ok(reason.to_owned())
}

impl<S: Send + Sync> FromRequestParts<S> for Operator
where
    App: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let customer = <Customer as FromRequestParts<S>>::from_request_parts(parts, state).await?;
        if !customer.principal.role.is_operator() {
            return Err(Problem::not_found("page"));
        }
        proved_enough(&App::from_ref(state), &customer.principal)?;
        Ok(Self { principal: customer.principal, request_id: customer.request_id })
    }
}

/// Somebody who may read what operators read, and change nothing.
#[derive(Debug, Clone)]
pub struct Reader;

impl<S: Send + Sync> FromRequestParts<S> for Reader
where
    App: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let customer = <Customer as FromRequestParts<S>>::from_request_parts(parts, state).await?;
        if !customer.principal.role.reads_as_operator() {
            return Err(Problem::not_found("page"));
        }
        proved_enough(&App::from_ref(state), &customer.principal)?;
        Ok(Self)
    }
}

/// The address a request comes from, as text. Behind a proxy on this machine or its network, the one that the proxy says it
/// answered: the last of `X-Forwarded-For`, which is the only one that it wrote itself.
#[derive(Debug, Clone)]
pub struct ClientAddress(pub String);

impl<S: Send + Sync> FromRequestParts<S> for ClientAddress {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        let Some(ConnectInfo(peer)) = parts.extensions.get::<ConnectInfo<SocketAddr>>() else {
            return Ok(Self("unknown".to_owned()));
        };
        let near = match peer.ip().to_canonical() {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_private(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local(),
        };
        let forwarded = parts.headers.get_all("x-forwarded-for").iter().next_back();
        let last = forwarded.and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse::<IpAddr>().ok());
        Ok(Self(last.filter(|_| near).unwrap_or(peer.ip()).to_canonical().to_string()))
    }
}
