//! The dashboard: server-rendered pages that call the same functions as the API. They work without scripts; with them, parts
//! of a page are kept up to date ([`live`]).
//!
//! A page's module has its routes' handlers and its templates' values; the templates are in `templates/`, the words for states,
//! money and time in [`show`].

use askama::Template;
use axum::{
    Form, Router,
    body::to_bytes,
    extract::{FromRequest, Request, State},
    handler::Handler,
    http::{HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{Html, IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use seedplane_provisioning::node::gate;
use serde::{Deserialize, de::DeserializeOwned};
use tower_http::csrf::CsrfLayer;
use uuid::Uuid;

use crate::{api::error::Problem, app::App, byos::onboarding, pages::visitor::Person};

mod accounts;
mod assets;
mod boxes;
mod links;
mod live;
mod money;
mod operator;
mod orders;
mod public;
mod reports;
mod servers;
mod settings;
mod show;
mod topups;
mod usage;
mod visitor;

/// Every page, and who may see it: the first word of a path says whose it is.
///
/// | pages | who |
/// |---|---|
/// | `/`, `/plans`, `/terms`, `/privacy`, `/dmca`, `/abuse`, `/sign-up`, `/sign-in`, `/forgot-password`, `/assets/*`, `/brand*` | everybody |
/// | `/seedbox/*` | a signed-in person, for their own things; others' are 404 |
/// | `/operator/*` | operators; support reads; 404 for others |
/// | `/link/{token}`, `/reset/{token}` | whoever has the link, once |
/// | `/byos/install.sh`, `/byos/gate` | everybody |
/// | `/trial/inbox` | everybody, in the trial only |
/// | `/trial/enter/{token}` | whoever has the link, once, in the trial only |
fn pages(trial: bool) -> Pages {
    let pages = Pages::default()
        .get("/", public::start)
        .get("/plans", public::plans)
        .get("/terms", public::terms)
        .get("/privacy", public::privacy)
        .get("/dmca", reports::ask_notice)
        .post("/dmca", reports::send_notice)
        .get("/abuse", reports::ask_complaint)
        .post("/abuse", reports::send_complaint)
        .get("/sign-up", accounts::ask_sign_up)
        .post("/sign-up", accounts::sign_up)
        .get("/sign-in", accounts::ask_sign_in)
        .post("/sign-in", accounts::sign_in)
        .get("/sign-in/elsewhere", accounts::ask_elsewhere)
        .post("/sign-in/elsewhere", accounts::sign_in_elsewhere)
        .post("/sign-out", accounts::sign_out)
        .get("/forgot-password", accounts::ask_reset)
        .post("/forgot-password", accounts::request_reset)
        .get("/reset/{token}", accounts::ask_new_password)
        .post("/reset/{token}", accounts::complete_reset)
        .get("/seedbox/account", settings::show)
        .post("/seedbox/account/password", settings::change_password)
        .post("/seedbox/account/sessions/{id}/end", settings::end_session)
        .post("/seedbox/account/sessions/end-others", settings::end_other_sessions)
        .post("/seedbox/account/tokens", settings::create_token)
        .post("/seedbox/account/tokens/{id}/revoke", settings::revoke_token)
        .post("/seedbox/account/second-factor", settings::begin_factor)
        .post("/seedbox/account/second-factor/confirm", settings::confirm_factor)
        .post("/seedbox/account/second-factor/remove", settings::remove_factor)
        .get("/seedbox", boxes::home)
        .get("/seedbox/live", boxes::home_live)
        .get("/seedbox/boxes/{id}", boxes::show)
        .get("/seedbox/boxes/{id}/live", boxes::show_live)
        .post("/seedbox/boxes/{id}/login", boxes::show_login)
        .get("/seedbox/boxes/{id}/usage", usage::show)
        .post("/seedbox/boxes/{id}/restart", boxes::restart)
        .post("/seedbox/boxes/{id}/rotate", boxes::rotate)
        .post("/seedbox/boxes/{id}/suspend", boxes::suspend)
        .post("/seedbox/boxes/{id}/resume", boxes::resume)
        .get("/seedbox/boxes/{id}/plan", boxes::ask_plan)
        .post("/seedbox/boxes/{id}/plan", boxes::change_plan)
        .get("/seedbox/boxes/{id}/end", boxes::ask_end)
        .post("/seedbox/boxes/{id}/end", boxes::end)
        .get("/seedbox/order", orders::ask)
        .post("/seedbox/orders", orders::place)
        .get("/seedbox/orders/{id}", orders::show)
        .get("/seedbox/orders/{id}/live", orders::show_live)
        .post("/seedbox/orders/{id}/cancel", orders::cancel)
        .get("/seedbox/servers/new", servers::ask)
        .post("/seedbox/servers", servers::connect)
        .get("/seedbox/servers/{id}", servers::show)
        .get("/seedbox/servers/{id}/live", servers::show_live)
        .post("/seedbox/servers/{id}/verify", servers::verify)
        .post("/seedbox/servers/{id}/host-key", servers::confirm_host_key)
        .post("/seedbox/servers/{id}/consent", servers::consent)
        .post("/seedbox/servers/{id}/run", servers::run)
        .post("/seedbox/servers/{id}/rotate", servers::rotate)
        .get("/seedbox/servers/{id}/revoke", servers::ask_revoke)
        .post("/seedbox/servers/{id}/revoke", servers::revoke)
        .get("/seedbox/money", money::show)
        .post("/seedbox/money/order", money::set_order)
        .get("/seedbox/money/statement.csv", money::csv)
        .post("/seedbox/topups", topups::open)
        .get("/seedbox/topups/{id}", topups::show)
        .get("/seedbox/topups/{id}/live", topups::show_live)
        .get("/operator", operator::overview)
        .post("/operator/alerts/resolve", operator::resolve_alert)
        .get("/operator/approvals", operator::approvals::list)
        .get("/operator/approvals/{id}", operator::approvals::show)
        .post("/operator/approvals/{id}/decide", operator::approvals::decide)
        .get("/operator/mass-action", operator::mass_actions::ask)
        .post("/operator/mass-action", operator::mass_actions::begin)
        .get("/operator/boxes", operator::boxes::list)
        .get("/operator/boxes/{id}", operator::boxes::show)
        .post("/operator/boxes/{id}/hold", operator::boxes::hold)
        .post("/operator/boxes/{id}/suspend", operator::boxes::suspend)
        .post("/operator/boxes/{id}/resume", operator::boxes::resume)
        .post("/operator/boxes/{id}/refund", operator::boxes::refund)
        .post("/operator/boxes/{id}/terminate", operator::boxes::terminate)
        .get("/operator/customers", operator::money::customers)
        .get("/operator/customers/{id}", operator::money::customer)
        .post("/operator/customers/{id}/adjust", operator::money::adjust)
        .get("/operator/payments", operator::money::payments)
        .post("/operator/payments/{id}/resolve", operator::money::resolve)
        .post("/operator/payouts/{id}/close", operator::money::close_payout)
        .get("/operator/plans", operator::plans::show)
        .post("/operator/plans", operator::plans::add)
        .get("/operator/providers", operator::providers::show)
        .post("/operator/providers/{provider}/permission", operator::providers::permit)
        .get("/operator/reports", operator::reports::list)
        .get("/operator/reports/{id}", operator::reports::show)
        .post("/operator/reports/{id}/close", operator::reports::close)
        .get("/operator/drift", operator::drift)
        .get("/operator/jobs", operator::failed_jobs)
        .post("/operator/jobs/retry", operator::retry_job)
        .get("/operator/audit", operator::audit)
        .post("/operator/audit/verify", operator::verify_audit)
        .get("/operator/audit/export.jsonl", operator::export_audit)
        .get("/link/{token}", links::ask)
        .post("/link/{token}", links::open)
        .get("/assets/{version}/{name}", assets::asset)
        .get("/brand.css", assets::brand_css)
        .get("/brand-logo", assets::brand_logo)
        .get(onboarding::INSTALLER_PATH, async || script(gate::install_script()))
        .get("/byos/gate", async || script(gate::GATE));
    if !trial {
        return pages;
    }
    pages
        .get("/trial/inbox", links::inbox)
        .get("/trial/enter/{token}", accounts::ask_enter)
        .post("/trial/enter/{token}", accounts::enter_by_link)
}

/// The routes of the pages.
pub(crate) fn routes(app: &App) -> Router<App> {
    let csrf = CsrfLayer::new();
    // A proxy may hide the name that the browser used; the public one is always ours.
    let csrf = csrf.clone().add_trusted_origin(&app.public_url).unwrap_or(csrf);
    pages(app.trial).router.layer(csrf)
}

/// The method and path of every page, in the trial: what a test of who may see what has to try.
pub fn listed() -> Vec<(Method, &'static str)> {
    pages(true).listed
}

/// Routes, and the list of them.
#[derive(Default)]
struct Pages {
    router: Router<App>,
    listed: Vec<(Method, &'static str)>,
}

impl Pages {
    fn get<H: Handler<T, App>, T: 'static>(self, path: &'static str, handler: H) -> Self {
        self.add(Method::GET, path, get(handler))
    }

    fn post<H: Handler<T, App>, T: 'static>(self, path: &'static str, handler: H) -> Self {
        self.add(Method::POST, path, post(handler))
    }

    fn add(mut self, method: Method, path: &'static str, handler: MethodRouter<App>) -> Self {
        self.listed.push((method, path));
        Self { router: self.router.route(path, handler), ..self }
    }
}

/// A shell script, shown as text where somebody opens it to read it.
fn script(text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// What the frame around every page shows.
struct Shell {
    /// The name of the service.
    brand: String,
    logo: bool,
    title: String,
    trial: bool,
    /// Which entry of the navigation this page belongs to.
    section: &'static str,
    /// Who is signed in.
    email: Option<String>,
    /// Whether the operator's pages are theirs to read.
    operator: bool,
    contact: Option<String>,
    /// The clock here, in milliseconds since 1970: counters on the page go by it.
    now_milliseconds: i64,
    assets: &'static str,
}

impl Shell {
    fn new(app: &App, person: Option<&Person>, title: impl Into<String>, section: &'static str) -> Self {
        Self {
            brand: app.brand.name().to_owned(),
            logo: app.brand.logo.is_some(),
            title: title.into(),
            trial: app.trial,
            section,
            email: person.map(|person| person.email.clone()),
            operator: person.is_some_and(Person::reads_as_operator),
            contact: app.brand.contact_email.clone(),
            now_milliseconds: app.now().as_millisecond(),
            assets: assets::VERSION.as_str(),
        }
    }
}

/// A template as an answer. Pages are for one person at one moment: nobody stores them.
fn page(template: &impl Template) -> Result<Response, Problem> {
    page_with(StatusCode::OK, template)
}

fn page_with(status: StatusCode, template: &impl Template) -> Result<Response, Problem> {
    let html = rendered(template)?;
    Ok((status, [(header::CACHE_CONTROL, "no-store")], Html(html)).into_response())
}

fn rendered(template: &impl Template) -> Result<String, Problem> {
    template.render().map_err(|error| {
        tracing::error!(%error, "a page could not be rendered");
        Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR)
    })
}

/// Something said at the top of a page about what was just done or refused.
#[derive(Debug, Clone)]
struct Said {
    /// `good`, `warn` or `bad`: its colour.
    tone: &'static str,
    text: String,
}

impl Said {
    fn good(text: impl Into<String>) -> Self {
        Self { tone: "good", text: text.into() }
    }

    fn refused(problem: &Problem) -> Self {
        Self { tone: "bad", text: sentence(&problem.detail) }
    }
}

/// A problem's detail as a sentence for people, to whom a field is no code.
fn sentence(detail: &str) -> String {
    let detail = &detail.replace('`', "");
    let mut characters = detail.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let end = if detail.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{first}{}{end}", characters.as_str())
}

/// The status a page is answered with that says why something was refused.
fn status_of(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Which thing a form makes: drawn when the form is shown, so that one form makes one thing, however often it is sent.
#[derive(Deserialize)]
struct FormId {
    form_id: Uuid,
}

/// The fields of a form; what is wrong with them is answered as a problem.
struct Fields<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Fields<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, crate::api::idempotency::MAX_BODY).await.map_err(|_| Problem::too_large())?;
        if body.windows(3).any(|window| window == b"%00") || body.contains(&0) {
            return Err(Problem::bad_input(
                "a field holds the character NUL, which cannot be stored; nothing was done",
            ));
        }
        match Form::<T>::from_request(Request::from_parts(parts, body.into()), state).await {
            Ok(Form(fields)) => Ok(Self(fields)),
            Err(_) => Err(Problem::bad_input(
                "the form did not arrive as it was sent; nothing was done. Go back, load the page again, and send it once more",
            )),
        }
    }
}

#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage {
    shell: Shell,
    status: u16,
    title: &'static str,
    detail: String,
}

/// Shows problems as pages to whoever asked with a browser.
pub(crate) async fn problems_as_pages(State(app): State<App>, request: Request, next: Next) -> Response {
    let wants_html = request
        .headers()
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"));
    let path = request.uri().path();
    let for_programs = ["/api/", "/openapi.json", "/docs", "/sandbox"].iter().any(|start| path.starts_with(start));
    let headers = request.headers().clone();
    let response = next.run(request).await;
    let status = response.status();
    if !wants_html || for_programs || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("text/plain");
    let detail = match kind {
        "application/problem+json" => {
            let (parts, body) = response.into_parts();
            let Ok(bytes) = to_bytes(body, 64 * 1024).await else { return Problem::of_status(status).into_response() };
            match serde_json::from_slice::<serde_json::Value>(&bytes) {
                Ok(problem) => problem["detail"].as_str().unwrap_or_default().to_owned(),
                Err(_) => return Response::from_parts(parts, bytes.into()),
            }
        }
        kind if kind.starts_with("text/plain") && status == StatusCode::FORBIDDEN => {
            "this was not sent from a page of ours, so it was not done. Open the page here and send it again".to_owned()
        }
        kind if kind.starts_with("text/plain") => Problem::of_status(status).detail,
        _ => return response,
    };
    let title = match status {
        StatusCode::NOT_FOUND => "There is nothing here",
        StatusCode::FORBIDDEN => "That was refused",
        StatusCode::TOO_MANY_REQUESTS => "Too often",
        status if status.is_server_error() => "Something went wrong on our side",
        _ => "That could not be done",
    };
    // A page that says why something failed does not fail for want of a name in its frame.
    let visitor = visitor::find(&app, &headers).await.unwrap_or_default();
    let shell = Shell::new(&app, visitor.as_ref(), title, "");
    let shown = page_with(status, &ProblemPage { shell, status: status.as_u16(), title, detail: sentence(&detail) });
    shown.unwrap_or_else(IntoResponse::into_response)
}

/// What pages may load: themselves, and nothing written into them. `/docs` and the sandbox gateway bring styles of their own.
pub(crate) async fn content_security_policy(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let own_styles = path.starts_with("/docs") || path.starts_with("/sandbox");
    let policy = if own_styles {
        "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; script-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    } else {
        "default-src 'none'; style-src 'self'; img-src 'self' data:; script-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    };
    let mut response = next.run(request).await;
    response.headers_mut().entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(policy));
    response
}
