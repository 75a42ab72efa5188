//! Connections to a customer's own servers: what is shown, what can be asked. Handlers write what is wanted; only workers
//! reach a server.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::SignedDuration;
use seedplane_provisioning::node::gate;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    api::{
        byos::view::{ConnectionView, view},
        error::{Body, Id, Parameters, Problem},
        idempotency::NewId,
    },
    app::App,
    auth::Customer,
    byos::{
        address, certificates,
        commands::{self, Command, Difference, LogLine},
        connections::{self, Access, Connection, ConnectionStatus, NewConnection},
        keys,
    },
    clock::Time,
    ids::{CommandId, ConnectionId},
    jobs::{self, Job},
};

/// An owner who presses a button again and again makes us knock at a server no more often than this.
const LOOK_EVERY: SignedDuration = SignedDuration::from_secs(3);

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(manifest))
        .routes(routes!(list, create))
        .routes(routes!(show, revoke))
        .routes(routes!(verify))
        .routes(routes!(confirm_host_key))
        .routes(routes!(consent))
        .routes(routes!(run))
        .routes(routes!(rotate))
        .routes(routes!(list_commands))
        .routes(routes!(show_command))
        .routes(routes!(server_log))
}

async fn own(app: &App, customer: &Customer, id: Uuid) -> Result<Connection, Problem> {
    connections::of_owner(&app.pool, customer.principal.user_id, ConnectionId(id))
        .await?
        .ok_or_else(|| Problem::not_found("connection"))
}

/// One that is not over or about to be.
async fn own_open(app: &App, customer: &Customer, id: Uuid) -> Result<Connection, Problem> {
    let connection = own(app, customer, id).await?;
    if connection.status == ConnectionStatus::Revoked || connection.revoke_requested_at.is_some() {
        return Err(Problem::conflict("this connection is revoked; connect the server anew for another one"));
    }
    Ok(connection)
}

/// Everything that can be done on a connected server: byte for byte the file that the gate on it reads, with each command's
/// exact text.
#[utoipa::path(get, path = "/api/byos/manifest", tag = "your own servers", security(()),
    responses((status = 200, body = String, content_type = "text/plain")))]
async fn manifest() -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], gate::MANIFEST).into_response()
}

/// Connections, newest first.
#[utoipa::path(get, path = "/api/byos/connections", tag = "your own servers", responses((status = 200, body = Vec<ConnectionView>)))]
async fn list(State(app): State<App>, customer: Customer) -> Result<Json<Vec<ConnectionView>>, Problem> {
    let mut views = Vec::new();
    for connection in connections::list_of_owner(&app.pool, customer.principal.user_id).await? {
        views.push(view(&app, connection).await?);
    }
    Ok(Json(views))
}

/// A server to connect.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewConnectionBody {
    /// Its name or address, as it can be reached from the internet.
    pub(crate) host: String,
    /// The port of its sshd; 22 if left out.
    pub(crate) port: Option<u16>,
    /// What to call it; the host if left out.
    pub(crate) label: Option<String>,
    /// How we are to log in: with a `key` on the server, or with a `certificate` of five minutes each time; `key` if left out.
    pub(crate) access: Option<Access>,
}

/// Connect a server. Answered with a line to paste on it, which adds our public key restricted to the gate; nobody ever
/// gives us a key. It is looked at every few seconds from then on.
#[utoipa::path(post, path = "/api/byos/connections", tag = "your own servers", request_body = NewConnectionBody,
    params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = ConnectionView), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    customer: Customer,
    NewId(id): NewId,
    Body(body): Body<NewConnectionBody>,
) -> Result<(StatusCode, Json<ConnectionView>), Problem> {
    let host = address::host(&body.host).map_err(|error| Problem::bad_input(format!("`host`: {error}")))?;
    let port = body.port.unwrap_or(22);
    if port == 0 {
        return Err(Problem::bad_input("`port` is 1 to 65535"));
    }
    let label = body.label.as_deref().map_or(host.as_str(), str::trim);
    let label: String = if label.is_empty() { host.clone() } else { label.to_owned() };
    if label.chars().count() > 80 || label.chars().any(char::is_control) {
        return Err(Problem::bad_input("`label` has 1 to 80 characters, on one line"));
    }
    if let Ok(inside) = host.parse()
        && !app.allow_private_servers
        && !address::is_public(inside)
    {
        let error = address::AddressError::NotPublic { host, address: inside };
        return Err(Problem::bad_input(format!("`host`: {error}")));
    }
    let (user_id, id) = (customer.principal.user_id, ConnectionId(id));
    if let Some(known) = connections::of_owner(&app.pool, user_id, id).await? {
        return Ok((StatusCode::CREATED, Json(view(&app, known).await?)));
    }
    let access = body.access.unwrap_or(Access::Key);
    let key = match access {
        Access::Key => keys::make(app.secrets.as_ref(), id, 1).await,
        Access::Certificate => certificates::authority(app.secrets.as_ref()).await,
    };
    let key = key.map_err(|error| {
        tracing::error!(%error, "no key could be made for a connection");
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "secret-store-unavailable",
            "no key could be made for this connection; nothing was stored. Try again in a moment",
        )
    })?;
    let new = NewConnection {
        id,
        user_id,
        label: &label.chars().take(80).collect::<String>(),
        host: &host,
        port,
        access,
        key: &key,
        gate_sha256: gate::gate_sha256(),
        manifest_sha256: gate::manifest_sha256(),
    };
    let mut tx = app.pool.begin().await?;
    if !connections::insert_in(&mut tx, &new, app.now(), &customer.cause()).await? {
        drop(tx);
        keys::destroy_all(app.secrets.as_ref(), id).await?;
        return Err(Problem::conflict(format!(
            "{} servers are connected already; revoke one first",
            connections::MAX_CONNECTIONS
        )));
    }
    tx.commit().await?;
    let connection = own(&app, &customer, id.0).await?;
    Ok((StatusCode::CREATED, Json(view(&app, connection).await?)))
}

/// A connection.
#[utoipa::path(get, path = "/api/byos/connections/{id}", tag = "your own servers", params(("id" = ConnectionId, Path)),
    responses((status = 200, body = ConnectionView), (status = 404, body = Problem)))]
async fn show(State(app): State<App>, customer: Customer, Id(id): Id<Uuid>) -> Result<Json<ConnectionView>, Problem> {
    let connection = own(&app, &customer, id).await?;
    Ok(Json(view(&app, connection).await?))
}

/// Revoke a connection: our key is taken off the server where it can be reached, a login is tried and must be refused, and
/// our private key is destroyed in any case. A server that is off or gone does not stop it.
#[utoipa::path(delete, path = "/api/byos/connections/{id}", tag = "your own servers", params(("id" = ConnectionId, Path)),
    responses((status = 202, body = ConnectionView), (status = 404, body = Problem)))]
pub(crate) async fn revoke(
    State(app): State<App>,
    customer: Customer,
    Id(id): Id<Uuid>,
) -> Result<(StatusCode, Json<ConnectionView>), Problem> {
    let mut connection = own(&app, &customer, id).await?;
    let mut tx = app.pool.begin().await?;
    connections::request_revocation_in(&mut tx, &mut connection, app.now(), &customer.cause()).await?;
    tx.commit().await?;
    let connection = own(&app, &customer, id).await?;
    Ok((StatusCode::ACCEPTED, Json(view(&app, connection).await?)))
}

/// Look at the server now: after pasting the line, or after mending something.
#[utoipa::path(post, path = "/api/byos/connections/{id}/verify", tag = "your own servers", params(("id" = ConnectionId, Path)),
    responses((status = 202, body = ConnectionView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn verify(
    State(app): State<App>,
    customer: Customer,
    Id(id): Id<Uuid>,
) -> Result<(StatusCode, Json<ConnectionView>), Problem> {
    let connection = own_open(&app, &customer, id).await?;
    if connection.seen_host_key.is_some() {
        return Err(Problem::conflict(
            "the server's host key changed; confirm the new one first, with `confirm-host-key`, or revoke the connection",
        ));
    }
    let looked_just_now = connection.last_probe_at.is_some_and(|at| app.now().duration_since(at.0) < LOOK_EVERY);
    if !looked_just_now || connection.status != ConnectionStatus::Connected {
        let mut database = app.pool.acquire().await?;
        jobs::enqueue_in(&mut database, Job::ProbeConnection(connection.id)).await?;
    }
    Ok((StatusCode::ACCEPTED, Json(view(&app, connection).await?)))
}

/// A host key that its owner knows.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostKey {
    /// The new one's fingerprint, as `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints it on the server: `SHA256:...`.
    pub(crate) fingerprint: String,
}

/// Say that a changed host key is the server's own. The connection goes on with it.
#[utoipa::path(post, path = "/api/byos/connections/{id}/confirm-host-key", tag = "your own servers",
    params(("id" = ConnectionId, Path)), request_body = HostKey,
    responses((status = 202, body = ConnectionView), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn confirm_host_key(
    State(app): State<App>,
    customer: Customer,
    Id(id): Id<Uuid>,
    Body(body): Body<HostKey>,
) -> Result<(StatusCode, Json<ConnectionView>), Problem> {
    let mut connection = own_open(&app, &customer, id).await?;
    let (Some(seen), Some(fingerprint)) =
        (connection.seen_host_key.clone(), connection.seen_host_key_fingerprint.clone())
    else {
        return Err(Problem::conflict("this server's host key did not change; there is nothing to confirm"));
    };
    if body.fingerprint.trim() != fingerprint {
        return Err(Problem::bad_input(format!(
            "the server showed {fingerprint}, which is not the fingerprint you gave; nothing was changed. If yours is what the \
             server itself prints, somebody is between us and it"
        )));
    }
    let now = app.now();
    let before = connection.host_key_fingerprint.clone();
    connection.host_key = Some(seen);
    connection.host_key_fingerprint = Some(fingerprint.clone());
    connection.seen_host_key = None;
    connection.seen_host_key_fingerprint = None;
    connection.last_error = None;
    connection.last_error_kind = None;
    connection.next_probe_at = Some(now);
    let mut tx = app.pool.begin().await?;
    connections::write_in(&mut tx, &mut connection).await?;
    let after = json!({ "host_key_fingerprint": fingerprint, "before": before });
    connections::record_in(&mut tx, &connection, "connection.host_key_confirmed", after, now, &customer.cause())
        .await?;
    jobs::enqueue_in(&mut tx, Job::ProbeConnection(connection.id)).await?;
    tx.commit().await?;
    Ok((StatusCode::ACCEPTED, Json(view(&app, connection).await?)))
}

/// The version of the gate and the manifest that an owner agrees to.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Consent {
    pub(crate) gate_sha256: String,
    pub(crate) manifest_sha256: String,
}

/// Agree to this version of the gate and of its manifest, read at `GET /api/byos/manifest`. To have it on the server, paste
/// the line there again: nothing of ours can change the gate.
#[utoipa::path(post, path = "/api/byos/connections/{id}/consent", tag = "your own servers", params(("id" = ConnectionId, Path)),
    request_body = Consent,
    responses((status = 200, body = ConnectionView), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn consent(
    State(app): State<App>,
    customer: Customer,
    Id(id): Id<Uuid>,
    Body(body): Body<Consent>,
) -> Result<Json<ConnectionView>, Problem> {
    let mut connection = own_open(&app, &customer, id).await?;
    if body.gate_sha256 != gate::gate_sha256() || body.manifest_sha256 != gate::manifest_sha256() {
        return Err(Problem::bad_input(format!(
            "this version's gate is {} and its manifest {}; agree to these, or to nothing. Nothing was changed",
            gate::gate_sha256(),
            gate::manifest_sha256()
        )));
    }
    let now = app.now();
    connection.consented_gate_sha256 = body.gate_sha256;
    connection.consented_manifest_sha256 = body.manifest_sha256;
    connection.next_probe_at = connection.next_probe_at.map(|_| now);
    let after = json!({
        "consented_gate_sha256": connection.consented_gate_sha256,
        "consented_manifest_sha256": connection.consented_manifest_sha256,
    });
    let mut tx = app.pool.begin().await?;
    connections::write_in(&mut tx, &mut connection).await?;
    connections::record_in(&mut tx, &connection, "connection.consented", after, now, &customer.cause()).await?;
    tx.commit().await?;
    Ok(Json(view(&app, connection).await?))
}

/// Something to do on a server.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Run {
    /// An action of `GET /api/byos/manifest`.
    pub(crate) action: String,
    /// What it takes, if it takes anything.
    pub(crate) argument: Option<String>,
}

/// Run an action of the manifest on the server. Answered with the command; look at it again for what came of it.
#[utoipa::path(post, path = "/api/byos/connections/{id}/run", tag = "your own servers", params(("id" = ConnectionId, Path)),
    request_body = Run,
    responses((status = 202, body = Command), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn run(
    State(app): State<App>,
    customer: Customer,
    NewId(command): NewId,
    Id(id): Id<Uuid>,
    Body(body): Body<Run>,
) -> Result<(StatusCode, Json<Command>), Problem> {
    let connection = own_open(&app, &customer, id).await?;
    let Some(action) = gate::actions().iter().find(|action| action.name == body.action) else {
        let names: Vec<&str> = gate::actions().iter().map(|action| action.name.as_str()).collect();
        return Err(Problem::bad_input(format!("`action` is one of {}", names.join(", "))));
    };
    if matches!(action.name.as_str(), "key-add" | "key-remove" | "revoke") {
        return Err(Problem::bad_input(
            "keys are replaced with `rotate`, and a connection is ended by deleting it; the gate's actions for that are ours",
        ));
    }
    if !gate::is_valid_argument(action, body.argument.as_deref()) {
        return Err(Problem::bad_input(format!(
            "`argument` does not fit '{}'; GET /api/byos/manifest says what it takes. Nothing was sent",
            action.name
        )));
    }
    if connection.status != ConnectionStatus::Connected {
        return Err(Problem::conflict(format!(
            "the connection is {}; nothing is sent to the server until it is connected",
            connection.status
        )));
    }
    if connection.runs_what_was_agreed() != Some(true) {
        return Err(Problem::conflict(
            "the gate on the server is not the version that you agreed to; agree to it with `consent`, or paste the line again",
        ));
    }
    let (command, argument) = (CommandId(command), body.argument.as_deref());
    let now = app.now();
    let mut tx = app.pool.begin().await?;
    let asked =
        commands::request_in(&mut tx, command, &connection, &action.name, argument, now, &customer.cause()).await?;
    if !asked {
        return Err(Problem::conflict(format!(
            "{} commands wait for this server already; wait for their answers",
            commands::MAX_WAITING
        )));
    }
    jobs::enqueue_in(&mut tx, Job::RunCommand { command, connection: connection.id }).await?;
    tx.commit().await?;
    let command = commands::find(&app.pool, connection.id, command).await?;
    Ok((StatusCode::ACCEPTED, Json(command.ok_or_else(|| Problem::not_found("command"))?)))
}

/// Replace our key: the new one is added, proved, and then the old one is removed and destroyed.
#[utoipa::path(post, path = "/api/byos/connections/{id}/rotate", tag = "your own servers", params(("id" = ConnectionId, Path)),
    responses((status = 202, body = ConnectionView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn rotate(
    State(app): State<App>,
    customer: Customer,
    Id(id): Id<Uuid>,
) -> Result<(StatusCode, Json<ConnectionView>), Problem> {
    let mut connection = own_open(&app, &customer, id).await?;
    if connection.access == Access::Certificate {
        return Err(Problem::conflict(
            "there is no key of this connection to replace: each login has one of its own, with a certificate of five minutes",
        ));
    }
    if connection.status != ConnectionStatus::Connected {
        return Err(Problem::conflict(format!(
            "the connection is {}; a key is replaced while it is connected. To take the key away now, revoke it",
            connection.status
        )));
    }
    let mut tx = app.pool.begin().await?;
    if connection.next_public_key.is_none() {
        let number = connection.key_number + 1;
        let key = keys::make(app.secrets.as_ref(), connection.id, number).await.map_err(|error| {
            tracing::error!(%error, "no key could be made for a rotation");
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "secret-store-unavailable",
                "no new key could be made; the old one goes on working. Try again in a moment",
            )
        })?;
        let now = app.now();
        connection.next_public_key = Some(key.public_key.clone());
        connection.next_secret_ref = Some(key.secret_ref);
        connections::write_in(&mut tx, &mut connection).await?;
        let after = json!({ "next_public_key": key.public_key });
        let action = "connection.rotation_requested";
        connections::record_in(&mut tx, &connection, action, after, now, &customer.cause()).await?;
    }
    jobs::enqueue_in(&mut tx, Job::RotateConnection(connection.id)).await?;
    tx.commit().await?;
    Ok((StatusCode::ACCEPTED, Json(view(&app, connection).await?)))
}

/// Which part of a record.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct Page {
    /// Only commands asked for before this time.
    before: Option<Time>,
    /// How many, 1 to 200; 100 if left out.
    limit: Option<i64>,
}

/// Everything that was sent to the server, newest first: also our own looks at it.
#[utoipa::path(get, path = "/api/byos/connections/{id}/commands", tag = "your own servers",
    params(("id" = ConnectionId, Path), Page),
    responses((status = 200, body = Vec<Command>), (status = 404, body = Problem), (status = 422, body = Problem)))]
async fn list_commands(
    State(app): State<App>,
    customer: Customer,
    Id(id): Id<Uuid>,
    Parameters(page): Parameters<Page>,
) -> Result<Json<Vec<Command>>, Problem> {
    let connection = own(&app, &customer, id).await?;
    let limit = page.limit.unwrap_or(100);
    if !(1..=200).contains(&limit) {
        return Err(Problem::bad_input("`limit` is 1 to 200"));
    }
    Ok(Json(commands::list(&app.pool, connection.id, page.before, limit).await?))
}

/// A command and what came of it.
#[utoipa::path(get, path = "/api/byos/connections/{id}/commands/{command_id}", tag = "your own servers",
    params(("id" = ConnectionId, Path), ("command_id" = CommandId, Path)),
    responses((status = 200, body = Command), (status = 404, body = Problem)))]
async fn show_command(
    State(app): State<App>,
    customer: Customer,
    Id((id, command)): Id<(Uuid, Uuid)>,
) -> Result<Json<Command>, Problem> {
    let connection = own(&app, &customer, id).await?;
    let command = commands::find(&app.pool, connection.id, CommandId(command)).await?;
    Ok(Json(command.ok_or_else(|| Problem::not_found("command"))?))
}

/// The two records side by side.
#[derive(Serialize, ToSchema)]
pub(crate) struct TwoLogs {
    /// The newest lines of the server's own log, oldest first, in the server's time.
    pub(crate) server: Vec<LogLine>,
    /// When they were fetched; `null` if they were not yet.
    pub(crate) fetched_at: Option<Time>,
    /// Where they do not agree with what we sent.
    pub(crate) differences: Vec<Difference>,
}

/// The server's own log of us, compared with our record. It is fetched every hour, and when you run the action `log`.
#[utoipa::path(get, path = "/api/byos/connections/{id}/log", tag = "your own servers", params(("id" = ConnectionId, Path)),
    responses((status = 200, body = TwoLogs), (status = 404, body = Problem)))]
pub(crate) async fn server_log(
    State(app): State<App>,
    customer: Customer,
    Id(id): Id<Uuid>,
) -> Result<Json<TwoLogs>, Problem> {
    let connection = own(&app, &customer, id).await?;
    let server = commands::read_log(connection.server_log.as_deref().unwrap_or_default(), connection.id);
    let whole = commands::goes_back_to(&connection, app.now());
    let differences = commands::compare(&server, &commands::sent(&app.pool, connection.id).await?, whole);
    Ok(Json(TwoLogs { server, fetched_at: connection.server_log_at, differences }))
}
