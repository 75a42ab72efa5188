//! Your own servers: connecting one with a line to paste, seeing what we can do and did on it, and taking it back.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use seedplane_provisioning::node::gate::{self, Action, Argument};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Fields, FormId, Said, Shell, live, page, page_with, rendered,
    show::{self, Badge, Since, When},
    status_of,
    topups::id_of,
    visitor::{Person, SignedIn},
};
use crate::{
    api::{
        byos::{
            connections::{self as api, Consent, HostKey, NewConnectionBody, Run, TwoLogs},
            view::{ConnectionView, view},
        },
        error::{Body, Id, Problem},
        idempotency::NewId,
    },
    app::App,
    byos::{
        commands::{self, Command, CommandStatus},
        connections::{self, Access, Connection, ConnectionStatus},
    },
    ids::ConnectionId,
};

/// A server in the list of boxes.
pub(super) struct Listed {
    pub(super) id: ConnectionId,
    pub(super) label: String,
    pub(super) host: String,
    pub(super) badge: Badge,
}

/// The servers of somebody that are not revoked.
pub(super) async fn listed(app: &App, person: &Person) -> Result<Vec<Listed>, Problem> {
    let connections = connections::list_of_owner(&app.pool, person.customer.principal.user_id).await?;
    let open = connections.into_iter().filter(|one| one.status != ConnectionStatus::Revoked);
    Ok(open
        .map(|one| Listed {
            badge: show::connection_badge(one.status, one.revoke_requested_at.is_some()),
            id: one.id,
            label: one.label,
            host: one.host,
        })
        .collect())
}

#[derive(Template)]
#[template(path = "server_new.html")]
struct NewServerPage {
    shell: Shell,
    said: Option<Said>,
    host: String,
    port: String,
    label: String,
    actions: &'static [Action],
    form_id: Uuid,
}

fn new_page(app: &App, person: &Person, form: Option<&NewServer>, said: Option<Said>) -> NewServerPage {
    let field = |get: fn(&NewServer) -> &str| form.map(get).unwrap_or_default().to_owned();
    NewServerPage {
        shell: Shell::new(app, Some(person), "Connect your own server", "boxes"),
        said,
        host: field(|form| &form.host),
        port: if form.is_none() { "22".to_owned() } else { field(|form| &form.port) },
        label: field(|form| &form.label),
        actions: gate::actions(),
        form_id: Uuid::now_v7(),
    }
}

/// `GET /seedbox/servers/new`
pub(super) async fn ask(State(app): State<App>, SignedIn(person): SignedIn) -> Result<Response, Problem> {
    page(&new_page(&app, &person, None, None))
}

/// A server to connect.
#[derive(Deserialize)]
pub(super) struct NewServer {
    form_id: Uuid,
    host: String,
    port: String,
    label: String,
    access: Access,
}

/// `POST /seedbox/servers`
pub(super) async fn connect(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Fields(form): Fields<NewServer>,
) -> Result<Response, Problem> {
    let port = form.port.trim().parse().map_err(|_| Problem::bad_input("a port is 1 to 65535; nothing was made"));
    let made = match port {
        Ok(port) => {
            let label = Some(form.label.trim().to_owned()).filter(|label| !label.is_empty());
            let body = NewConnectionBody {
                host: form.host.trim().to_owned(),
                port: Some(port),
                label,
                access: Some(form.access),
            };
            api::create(State(app.clone()), person.customer.clone(), NewId(form.form_id), Body(body)).await
        }
        Err(problem) => Err(problem),
    };
    match made {
        Ok((_, connection)) => Ok(Redirect::to(&format!("/seedbox/servers/{}", connection.id)).into_response()),
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &new_page(&app, &person, Some(&form), said))
        }
    }
}

/// A command that was sent, as its owner reads it.
struct Sent {
    at: When,
    action: String,
    argument: Option<String>,
    who: &'static str,
    badge: Badge,
    output: Option<String>,
    error: Option<String>,
}

/// As much of what a command printed as a page shows; all of it is in the API's answer.
const SHOWN_OUTPUT: usize = 4000;

fn sent(command: Command, person: &Person) -> Sent {
    let shown = |output: String| output.trim().chars().take(SHOWN_OUTPUT).collect::<String>();
    Sent {
        at: When(command.requested_at),
        who: show::actor_words(&command.actor, person.customer.principal.user_id),
        badge: show::command_badge(command.status, command.exit_status),
        action: command.action,
        argument: command.argument,
        output: command.output.map(shown).filter(|output| !output.is_empty()),
        error: command.error,
    }
}

/// Something that can be asked for, as a form offers it.
struct Offered {
    name: &'static str,
    words: Vec<&'static str>,
    form_id: Uuid,
}

#[derive(Template)]
#[template(path = "server.html")]
struct ServerPage {
    shell: Shell,
    id: ConnectionId,
    said: Option<Said>,
    part: String,
    manifest: &'static str,
    actions: &'static [Action],
}

#[derive(Template)]
#[template(path = "server_part.html")]
struct ServerPart {
    view: ConnectionView,
    badge: Badge,
    waiting: Option<Since>,
    connected_at: Option<When>,
    last_seen_at: Option<When>,
    log_compared_at: Option<When>,
    revoked_at: Option<When>,
    locked_out_at: Option<When>,
    pending: bool,
    revoked: bool,
    certificate: bool,
    /// Whether the server runs something else than what its owner agreed to, and it is this version of ours.
    may_consent: bool,
    may_rotate: bool,
    commands: Vec<Sent>,
    offered: Vec<Offered>,
    logs: TwoLogs,
    differences: Vec<String>,
}

/// What owners ask for by hand: keys are our business, and have routes of their own.
fn offered(connection: &Connection, number: usize) -> Vec<Offered> {
    let words = |argument: &'static Argument| match argument {
        Argument::OneOf(words) => Some(words.iter().map(String::as_str).collect()),
        Argument::None => Some(Vec::new()),
        Argument::Ed25519Key | Argument::PasswordHash => None,
    };
    gate::actions()
        .iter()
        .filter(|action| action.name != "revoke")
        .filter_map(|action| {
            Some(Offered {
                name: &action.name,
                words: words(&action.argument)?,
                form_id: id_of(&format!("run:{}:{}:{number}", connection.id, action.name)),
            })
        })
        .collect()
}

async fn own(app: &App, person: &Person, id: Uuid) -> Result<Connection, Problem> {
    connections::of_owner(&app.pool, person.customer.principal.user_id, ConnectionId(id))
        .await?
        .ok_or_else(|| Problem::not_found("server"))
}

async fn server_part(app: &App, person: &Person, id: Uuid) -> Result<String, Problem> {
    let connection = own(app, person, id).await?;
    let customer = person.customer.clone();
    let logs = api::server_log(State(app.clone()), customer, Id(id)).await?.0;
    // Our own looks every few minutes say nothing: what was asked for by somebody does.
    let commands = commands::list(&app.pool, connection.id, None, 200).await?;
    let newest = commands.iter().filter(|command| command.actor != "system").count();
    let offered = offered(&connection, newest);
    let mut listed = Vec::new();
    for command in commands {
        if command.actor == "system" && command.status != CommandStatus::Failed {
            continue;
        }
        // The two logs are compared below; what the others printed is read one by one, for the newest.
        let printed = match (listed.len(), command.action.as_str()) {
            (_, "log") | (5.., _) => None,
            _ => commands::find(&app.pool, connection.id, command.id).await?.and_then(|found| found.output),
        };
        listed.push(sent(Command { output: printed, ..command }, person));
        if listed.len() == 15 {
            break;
        }
    }
    let badge = show::connection_badge(connection.status, connection.revoke_requested_at.is_some());
    let view = view(app, connection).await?;
    let usable = view.status == ConnectionStatus::Connected && view.gate.is_agreed == Some(true) && !view.revoking;
    rendered(&ServerPart {
        badge,
        waiting: (view.status == ConnectionStatus::Pending).then(|| Since { start: view.created_at, now: app.now() }),
        connected_at: view.connected_at.map(When),
        last_seen_at: view.last_seen_at.map(When),
        log_compared_at: view.log_compared_at.map(When),
        revoked_at: view.revoked_at.map(When),
        locked_out_at: view.locked_out_at.map(When),
        pending: view.status == ConnectionStatus::Pending,
        revoked: view.status == ConnectionStatus::Revoked,
        certificate: view.access == Access::Certificate,
        may_consent: view.gate.is_agreed == Some(false) && view.gate.is_current == Some(true) && !view.revoking,
        may_rotate: usable && view.access == Access::Key && !view.rotating,
        commands: listed,
        offered: if usable { offered } else { Vec::new() },
        differences: logs.differences.iter().map(|one| super::sentence(&one.sentence())).collect(),
        logs,
        view,
    })
}

async fn server_page(app: &App, person: &Person, id: Uuid, said: Option<Said>) -> Result<ServerPage, Problem> {
    let connection = own(app, person, id).await?;
    let part = server_part(app, person, id).await?;
    Ok(ServerPage {
        shell: Shell::new(app, Some(person), connection.label, "boxes"),
        id: connection.id,
        said,
        part,
        manifest: gate::MANIFEST,
        actions: gate::actions(),
    })
}

/// `GET /seedbox/servers/{id}`
pub(super) async fn show(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    page(&server_page(&app, &person, id, None).await?)
}

/// `GET /seedbox/servers/{id}/live`
pub(super) async fn show_live(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    own(&app, &person, id).await?;
    live::stream(&app.clone(), &person.clone(), move || {
        let (app, person) = (app.clone(), person.clone());
        async move { server_part(&app, &person, id).await }
    })
}

/// Back to the server's page, or the same page with why something was not done.
async fn answer<T>(app: &App, person: &Person, id: Uuid, result: Result<T, Problem>) -> Result<Response, Problem> {
    match result {
        Ok(_) => Ok(Redirect::to(&format!("/seedbox/servers/{id}")).into_response()),
        Err(problem) if problem.status == 404 => Err(problem),
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &server_page(app, person, id, said).await?)
        }
    }
}

/// `POST /seedbox/servers/{id}/verify`
pub(super) async fn verify(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    let result = api::verify(State(app.clone()), person.customer.clone(), Id(id)).await;
    answer(&app, &person, id, result).await
}

/// A host key's fingerprint, typed or pasted from the server.
#[derive(Deserialize)]
pub(super) struct Fingerprint {
    fingerprint: String,
}

/// `POST /seedbox/servers/{id}/host-key`
pub(super) async fn confirm_host_key(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
    Fields(form): Fields<Fingerprint>,
) -> Result<Response, Problem> {
    let body = Body(HostKey { fingerprint: form.fingerprint });
    let result = api::confirm_host_key(State(app.clone()), person.customer.clone(), Id(id), body).await;
    answer(&app, &person, id, result).await
}

/// Which gate and manifest were shown to whoever agrees.
#[derive(Deserialize)]
pub(super) struct Agreed {
    gate_sha256: String,
    manifest_sha256: String,
}

/// `POST /seedbox/servers/{id}/consent`
pub(super) async fn consent(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
    Fields(form): Fields<Agreed>,
) -> Result<Response, Problem> {
    let body = Body(Consent { gate_sha256: form.gate_sha256, manifest_sha256: form.manifest_sha256 });
    let result = api::consent(State(app.clone()), person.customer.clone(), Id(id), body).await;
    answer(&app, &person, id, result).await
}

/// What to run.
#[derive(Deserialize)]
pub(super) struct RunForm {
    form_id: Uuid,
    action: String,
    argument: Option<String>,
}

/// `POST /seedbox/servers/{id}/run`
pub(super) async fn run(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
    Fields(form): Fields<RunForm>,
) -> Result<Response, Problem> {
    let argument = form.argument.filter(|argument| !argument.is_empty());
    // The same form with another argument is another command.
    let command = id_of(&format!("{}:{}", form.form_id, argument.as_deref().unwrap_or_default()));
    let body = Body(Run { action: form.action, argument });
    let result = api::run(State(app.clone()), person.customer.clone(), NewId(command), Id(id), body).await;
    answer(&app, &person, id, result).await
}

/// `POST /seedbox/servers/{id}/rotate`
pub(super) async fn rotate(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    let result = api::rotate(State(app.clone()), person.customer.clone(), Id(id)).await;
    answer(&app, &person, id, result).await
}

#[derive(Template)]
#[template(path = "server_revoke.html")]
struct RevokePage {
    shell: Shell,
    id: ConnectionId,
    label: String,
    remove_line: String,
    form_id: Uuid,
}

/// `GET /seedbox/servers/{id}/revoke`
pub(super) async fn ask_revoke(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    let view = view(&app, own(&app, &person, id).await?).await?;
    let shell = Shell::new(&app, Some(&person), format!("Revoke {}", view.label), "boxes");
    let remove_line = view.onboarding.map(|onboarding| onboarding.remove_line).unwrap_or_default();
    page(&RevokePage { shell, id: view.id, label: view.label, remove_line, form_id: Uuid::now_v7() })
}

/// `POST /seedbox/servers/{id}/revoke`
pub(super) async fn revoke(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
    Fields(_form): Fields<FormId>,
) -> Result<Response, Problem> {
    let result = api::revoke(State(app.clone()), person.customer.clone(), Id(id)).await;
    answer(&app, &person, id, result).await
}
