//! The one-time link of a mail, and the trial's inbox.

use askama::Template;
use axum::{extract::State, http::StatusCode, response::Response};
use secrecy::ExposeSecret;

use super::{Shell, page, page_with, sentence, visitor::Visitor};
use crate::{
    accounts,
    api::{
        error::{Id, Problem},
        seedbox::resources,
    },
    app::App,
    audit::events::{Actor, Cause},
    ids::{ResourceId, UserId},
    seedbox::repository,
};

#[derive(Template)]
#[template(path = "link.html")]
struct LinkPage {
    shell: Shell,
    state: Link,
}

/// What a one-time link shows.
enum Link {
    /// It has to be opened by hand.
    Closed,
    /// A login.
    Open { web_url: String, name: String, password: String },
    /// Why it does not open.
    Spent(String),
}

/// The link of a mail. Looking opens nothing: mail scanners look too.
pub(super) async fn ask(State(app): State<App>, Id(_token): Id<String>) -> Result<Response, Problem> {
    page(&LinkPage { shell: Shell::new(&app, None, "Your login", ""), state: Link::Closed })
}

/// `POST /link/{token}`: the login, once.
pub(super) async fn open(State(app): State<App>, Id(token): Id<String>) -> Result<Response, Problem> {
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
    let spent = |why: &str| {
        let shell = Shell::new(&app, None, "This link does not open", "");
        page_with(StatusCode::GONE, &LinkPage { shell, state: Link::Spent(sentence(why)) })
    };
    let Some(link) = link else { return spent("It was used before, has expired, or was never one of ours") };
    let resource = match link.resource_id {
        Some(id) => repository::resource_of(&app.pool, link.user_id, id).await?,
        None => None,
    };
    let Some(resource) = resource else { return spent("The box it is for is gone") };
    // Whoever has an old mail has no new password.
    if link.credentials_version != Some(resource.credentials_version) {
        return spent(
            "The password it was for has been replaced since. The mail about the new password has a link of its own",
        );
    }
    let cause = Cause { actor: Actor::User(link.user_id), reason: "one-time link".to_owned(), request_id: None };
    match resources::reveal(&app, &resource, &cause).await {
        Ok((name, password)) => {
            let state = Link::Open {
                web_url: resource.web_url.clone().unwrap_or_default(),
                name,
                password: password.expose_secret().to_owned(),
            };
            page(&LinkPage { shell: Shell::new(&app, None, resource.label, ""), state })
        }
        Err(problem) => spent(&problem.detail),
    }
}

/// A mail of the trial.
struct Mail {
    subject: String,
    to: String,
    /// Its lines, and for each whether it is a link.
    lines: Vec<(String, bool)>,
}

#[derive(Template)]
#[template(path = "inbox.html")]
struct InboxPage {
    shell: Shell,
    mails: Vec<Mail>,
}

/// `GET /trial/inbox`: every mail of the trial, newest first.
pub(super) async fn inbox(State(app): State<App>, Visitor(visitor): Visitor) -> Result<Response, Problem> {
    let mut files = Vec::new();
    if let Some(folder) = app.mailer.inbox()
        && let Ok(mut entries) = tokio::fs::read_dir(folder).await
    {
        while let Ok(Some(entry)) = entries.next_entry().await {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".txt") && !name.starts_with('.') {
                files.push((name, entry.path()));
            }
        }
    }
    // The names are ids that sort by time.
    files.sort_by(|a, b| b.0.cmp(&a.0));
    let mut mails = Vec::new();
    for (_, path) in files.into_iter().take(200) {
        let Ok(text) = tokio::fs::read_to_string(path).await else { continue };
        let (head, text) = text.split_once("\n\n").unwrap_or(("", &text));
        let line = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        mails.push(Mail {
            subject: line("Subject:").to_owned(),
            to: line("To:").to_owned(),
            lines: text
                .lines()
                .map(|line| (line.to_owned(), line.starts_with("http") && !line.contains(' ')))
                .collect(),
        });
    }
    page(&InboxPage { shell: Shell::new(&app, visitor.as_ref(), "Inbox", "inbox"), mails })
}
