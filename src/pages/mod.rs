//! The few pages there are beside the API: the start page, the one-time link of a mail, and the trial's inbox. Plain HTML
//! without scripts.

use std::fmt::Write as _;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use secrecy::ExposeSecret;
use seedplane_provisioning::node::gate;

use crate::{
    accounts,
    api::{
        error::{Id, Problem},
        seedbox::resources,
    },
    app::App,
    audit::events::{Actor, Cause},
    byos::onboarding,
    ids::{ResourceId, UserId},
    seedbox::repository,
};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fbfbfa; --soft: #667085; --line: #dfe3e8; --accent: #1f6f54; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaee; --paper: #14171c; --soft: #9aa4b2; --line: #2c323b; --accent: #5fc39c; } }
* { box-sizing: border-box } body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 44rem; margin: 0 auto; padding: 2rem 1.25rem 4rem } h1 { font-size: 1.5rem; margin: 0 0 1rem } a { color: var(--accent) }
.mark { background: #b54708; color: #fff; padding: .4rem 1.25rem; font-weight: 600 } .soft { color: var(--soft) }
article { border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.25rem; margin: 0 0 1rem } article h2 { font-size: 1.05rem; margin: 0 0 .25rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; margin: .75rem 0 0 } dt { color: var(--soft) } dd { margin: 0 0 .75rem; font-family: ui-monospace, monospace; overflow-wrap: anywhere }
button { font: inherit; font-weight: 600; color: #fff; background: #1f6f54; border: 0; border-radius: .5rem; padding: .6rem 1.1rem; cursor: pointer } button:focus-visible, a:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px }
";

pub(crate) fn routes(trial: bool) -> Router<App> {
    let router = Router::new()
        .route("/", get(start))
        .route("/link/{token}", get(ask).post(open))
        .route(onboarding::INSTALLER_PATH, get(async || script(gate::install_script())))
        .route("/byos/gate", get(async || script(gate::GATE)));
    if trial { router.route("/trial/inbox", get(inbox)) } else { router }
}

/// A shell script, shown as text where somebody opens it to read it.
fn script(text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

fn page(app: &App, title: &str, body: &str) -> Html<String> {
    let mark =
        if app.trial { "<div class=\"mark\" role=\"note\">Trial: sandbox payments, no real money</div>" } else { "" };
    Html(format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title} - Seedplane</title><style>{STYLE}</style></head><body>{mark}<main><h1>{title}</h1>{body}</main></body></html>"
    ))
}

async fn start(State(app): State<App>) -> Html<String> {
    let mut body = String::from(
        "<p>This is the control plane of a seedbox service.</p>\
         <p><a href=\"/docs\">The API, to read and to try</a><br><span class=\"soft\">sign up, order, pay in, run and end boxes</span></p>",
    );
    if app.trial {
        body.push_str(
            "<p><a href=\"/trial/inbox\">The inbox</a><br><span class=\"soft\">every mail this trial would have sent</span></p>\
             <p class=\"soft\">Each top-up shows the page of the sandbox gateway where it is paid.</p>",
        );
    }
    page(&app, "Seedplane", &body)
}

/// The link of a mail. Looking opens nothing: mail scanners look too.
async fn ask(State(app): State<App>, Id(_token): Id<String>) -> Response {
    let body = "<p>This link shows the login of your seedbox, once.</p>\
                <form method=\"post\"><button>Show the login</button></form>\
                <p class=\"soft\">Have a place ready to keep the password: it cannot be shown again, only replaced.</p>";
    ([(header::CACHE_CONTROL, "no-store")], page(&app, "Your login", body)).into_response()
}

async fn open(State(app): State<App>, Id(token): Id<String>) -> Result<Response, Problem> {
    let now = app.now();
    let link = sqlx::query!(
        r#"update one_time_links set used_at = $2
           where token_hash = $1 and used_at is null and expires_at > $2 and purpose = 'credentials'
           returning user_id as "user_id: UserId", resource_id as "resource_id: ResourceId", credentials_version"#,
        &accounts::hash_token(&token),
        now,
    )
    .fetch_optional(&app.pool)
    .await?;
    let closed = |why: &str| {
        let body = format!(
            "<p>{}</p><p class=\"soft\">A new password makes a new link: rotate the credentials of the box.</p>",
            escape(why)
        );
        (StatusCode::GONE, [(header::CACHE_CONTROL, "no-store")], page(&app, "This link does not open", &body))
            .into_response()
    };
    let Some(link) = link else { return Ok(closed("It was used before, has expired, or was never one of ours.")) };
    let resource = match link.resource_id {
        Some(id) => repository::resource_of(&app.pool, link.user_id, id).await?,
        None => None,
    };
    let Some(resource) = resource else { return Ok(closed("The box it is for is gone.")) };
    // Whoever has an old mail has no new password.
    if link.credentials_version != Some(resource.credentials_version) {
        return Ok(closed(
            "The password it was for has been replaced since. The mail about the new password has a link of its own.",
        ));
    }
    let cause = Cause { actor: Actor::User(link.user_id), reason: "one-time link".to_owned(), request_id: None };
    match resources::reveal(&app, &resource, &cause).await {
        Ok((login, password)) => {
            let url = resource.web_url.unwrap_or_default();
            let body = format!(
                "<dl><dt>Web interface</dt><dd><a href=\"{0}\">{0}</a></dd><dt>Login name</dt><dd>{1}</dd><dt>Password</dt><dd>{2}</dd></dl>\
                 <p class=\"soft\">Shown once. Close this page when you have kept it.</p>",
                escape(&url),
                escape(&login),
                escape(password.expose_secret()),
            );
            Ok(([(header::CACHE_CONTROL, "no-store")], page(&app, &escape(&resource.label), &body)).into_response())
        }
        Err(problem) => Ok(closed(&problem.detail)),
    }
}

/// Every mail of the trial, newest first.
async fn inbox(State(app): State<App>) -> Html<String> {
    let mut mails = Vec::new();
    if let Some(folder) = app.mailer.inbox()
        && let Ok(mut entries) = tokio::fs::read_dir(folder).await
    {
        while let Ok(Some(entry)) = entries.next_entry().await {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".txt") && !name.starts_with('.') {
                mails.push((name, entry.path()));
            }
        }
    }
    // The names are ids that sort by time.
    mails.sort_by(|a, b| b.0.cmp(&a.0));
    let mut body = String::new();
    for (_, path) in mails.into_iter().take(200) {
        let Ok(text) = tokio::fs::read_to_string(path).await else { continue };
        let (head, text) = text.split_once("\n\n").unwrap_or(("", &text));
        let line = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        let text: Vec<String> = text
            .lines()
            .map(|line| {
                let shown = escape(line);
                if line.starts_with("http") && !line.contains(' ') {
                    format!("<a href=\"{shown}\">{shown}</a>")
                } else {
                    shown
                }
            })
            .collect();
        let _ = write!(
            body,
            "<article><h2>{}</h2><div class=\"soft\">to {}</div><pre>{}</pre></article>",
            escape(line("Subject:")),
            escape(line("To:")),
            text.join("\n")
        );
    }
    if body.is_empty() {
        body.push_str("<p>Nothing was sent yet. Order a box: the first mail comes when it is ready.</p>");
    }
    page(&app, "Inbox", &body)
}
