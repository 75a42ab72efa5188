//! Connections to customers' servers: the states they go through, and every query on them.
//!
//! What is on a row has been observed. A row is written fenced by its version: whoever read it earlier writes nothing.

use serde_json::json;
use sqlx::{PgConnection, PgExecutor};

use super::keys::KeyReference;
use crate::{
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::{ConnectionId, ResourceId, UserId},
    jobs::{self, Job},
    seedbox::{
        Resource, Status,
        lifecycle::{self, Transition, TransitionError},
        repository, words,
    },
};

/// How many connections that are not revoked one customer can have.
pub const MAX_CONNECTIONS: i64 = 50;

words! {
    /// The life of a connection.
    ConnectionStatus {
        /// Our key was made and has not been proved: the line was not pasted yet.
        Pending = "pending",
        /// A login with our key led to the gate, and to nothing else.
        Connected = "connected",
        /// It was connected and is not usable now; `status_reason` says why and what lifts it.
        Error = "error",
        /// Over: our private key is destroyed.
        Revoked = "revoked",
    }
}

words! {
    /// How we log in to a server.
    Access {
        /// With a key of this connection's own, which is in the server's `authorized_keys`.
        Key = "key",
        /// With a certificate of five minutes each time; the server trusts our authority for this connection's name.
        Certificate = "certificate",
    }
}

words! {
    /// How a connection ended.
    Revocation {
        /// A login with our key was tried and refused.
        LockedOut = "locked_out",
        /// The server could not be reached; our key is destroyed, so that nobody can log in with it.
        Unverified = "unverified",
        /// The owner removed the line on the server, which was noticed.
        ByOwner = "by_owner",
    }
}

/// Every move there is; the database's trigger allows the same, and a test compares the two.
pub const MOVES: &[(ConnectionStatus, ConnectionStatus)] = &[
    (ConnectionStatus::Pending, ConnectionStatus::Connected),
    (ConnectionStatus::Pending, ConnectionStatus::Revoked),
    (ConnectionStatus::Connected, ConnectionStatus::Error),
    (ConnectionStatus::Connected, ConnectionStatus::Revoked),
    (ConnectionStatus::Error, ConnectionStatus::Connected),
    (ConnectionStatus::Error, ConnectionStatus::Revoked),
];

/// A connection: a row of `byos_connections`.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the columns are described in the migrations")]
pub struct Connection {
    pub id: ConnectionId,
    pub user_id: UserId,
    pub label: String,
    pub host: String,
    pub port: i32,
    pub status: ConnectionStatus,
    pub status_reason: Option<String>,
    pub status_since: Time,
    pub version: i64,
    pub access: Access,
    pub public_key: String,
    pub secret_ref: String,
    pub key_number: i32,
    pub next_public_key: Option<String>,
    pub next_secret_ref: Option<String>,
    pub rotation_error: Option<String>,
    pub host_key: Option<String>,
    pub host_key_fingerprint: Option<String>,
    pub seen_host_key: Option<String>,
    pub seen_host_key_fingerprint: Option<String>,
    pub consented_gate_sha256: String,
    pub consented_manifest_sha256: String,
    pub gate_sha256: Option<String>,
    pub manifest_sha256: Option<String>,
    pub server_version: Option<String>,
    pub os_name: Option<String>,
    pub latency_ms: Option<i32>,
    pub connected_at: Option<Time>,
    pub last_seen_at: Option<Time>,
    pub next_probe_at: Option<Time>,
    pub last_probe_at: Option<Time>,
    pub probe_failures: i32,
    pub refused_since: Option<Time>,
    pub last_error_kind: Option<String>,
    pub last_error: Option<String>,
    pub server_log: Option<String>,
    pub server_log_at: Option<Time>,
    pub log_differences: Option<i32>,
    pub revoke_requested_at: Option<Time>,
    pub revocation: Option<Revocation>,
    pub locked_out_at: Option<Time>,
    pub revoked_at: Option<Time>,
    pub created_at: Time,
}

impl Connection {
    /// What audit events are about.
    pub fn subject(&self) -> Subject {
        Subject::Other("connection", self.id.0)
    }

    /// The port of its sshd.
    pub fn ssh_port(&self) -> u16 {
        u16::try_from(self.port).unwrap_or(22)
    }

    /// Whether what the server runs is what its owner agreed to. `None` before the server said what it runs.
    pub fn runs_what_was_agreed(&self) -> Option<bool> {
        let (gate, manifest) = (self.gate_sha256.as_ref()?, self.manifest_sha256.as_ref()?);
        Some(*gate == self.consented_gate_sha256 && *manifest == self.consented_manifest_sha256)
    }
}

/// A connection to make.
#[derive(Debug, Clone)]
pub struct NewConnection<'a> {
    /// Its id, from the request.
    pub id: ConnectionId,
    /// Whose.
    pub user_id: UserId,
    /// What its owner calls it.
    pub label: &'a str,
    /// A name or an address, as [`super::address::host`] gives it.
    pub host: &'a str,
    /// The port of its sshd.
    pub port: u16,
    /// How we log in.
    pub access: Access,
    /// Its first pair, or our authority's.
    pub key: &'a KeyReference,
    /// The gate and the manifest that its owner is shown.
    pub gate_sha256: &'a str,
    /// See `gate_sha256`.
    pub manifest_sha256: &'a str,
}

/// Writes a connection, fresh and not proved, with its audit event. False if its owner has too many.
///
/// # Errors
/// Those of the database.
pub async fn insert_in(
    connection: &mut PgConnection,
    new: &NewConnection<'_>,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<bool> {
    // One at a time for one person, so that two requests do not both find room for the last one.
    repository::lock_account_in(connection, new.user_id).await?;
    let inserted = sqlx::query!(
        "insert into byos_connections (id, user_id, label, host, port, status_since, public_key, secret_ref,
             consented_gate_sha256, consented_manifest_sha256, next_probe_at, created_at, access)
         select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $6, $6, $12
         where (select count(*) from byos_connections where user_id = $2 and status <> 'revoked') < $11",
        new.id.0,
        new.user_id.0,
        new.label,
        new.host,
        i32::from(new.port),
        at,
        new.key.public_key,
        new.key.secret_ref,
        new.gate_sha256,
        new.manifest_sha256,
        MAX_CONNECTIONS,
        new.access.as_str(),
    )
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(false);
    }
    let event = Event {
        subject: Subject::Other("connection", new.id.0),
        action: "connection.pending",
        before: None,
        after: Some(json!({
            "status": "pending", "user_id": new.user_id, "access": new.access, "public_key": new.key.public_key,
            "consented_gate_sha256": new.gate_sha256, "consented_manifest_sha256": new.manifest_sha256,
        })),
    };
    events::record_in(connection, at, cause, event).await?;
    Ok(true)
}

/// A connection by its id.
///
/// # Errors
/// Those of the database.
pub async fn find(executor: impl PgExecutor<'_>, id: ConnectionId) -> sqlx::Result<Option<Connection>> {
    sqlx::query_as!(Connection, "select * from byos_connections where id = $1", id.0).fetch_optional(executor).await
}

/// A connection of this owner; somebody else's does not exist.
///
/// # Errors
/// Those of the database.
pub async fn of_owner(
    executor: impl PgExecutor<'_>,
    owner: UserId,
    id: ConnectionId,
) -> sqlx::Result<Option<Connection>> {
    sqlx::query_as!(Connection, "select * from byos_connections where id = $1 and user_id = $2", id.0, owner.0)
        .fetch_optional(executor)
        .await
}

/// Connections of this owner, newest first, at most 200.
///
/// # Errors
/// Those of the database.
pub async fn list_of_owner(executor: impl PgExecutor<'_>, owner: UserId) -> sqlx::Result<Vec<Connection>> {
    sqlx::query_as!(
        Connection,
        "select * from byos_connections where user_id = $1 order by created_at desc, id desc limit 200",
        owner.0
    )
    .fetch_all(executor)
    .await
}

/// Takes the connections that are due to be looked at, at most 200, and puts their next look off for two minutes, so that
/// two workers do not take the same and none is lost with a worker.
///
/// # Errors
/// Those of the database.
pub async fn claim_due(executor: impl PgExecutor<'_>, at: Time) -> sqlx::Result<Vec<ConnectionId>> {
    sqlx::query_scalar!(
        r#"update byos_connections set next_probe_at = $1::timestamptz + interval '2 minutes', version = version + 1
           where id in (select id from byos_connections where next_probe_at <= $1
                        order by next_probe_at limit 200 for update skip locked)
           returning id as "id: ConnectionId""#,
        at
    )
    .fetch_all(executor)
    .await
}

/// Writes everything that was observed or is wanted of a connection, save its status. Fenced by the version.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn write_in(connection: &mut PgConnection, known: &mut Connection) -> Result<(), TransitionError> {
    known.version = sqlx::query_scalar!(
        "update byos_connections set
             version = version + 1, public_key = $3, secret_ref = $4, key_number = $5, next_public_key = $6,
             next_secret_ref = $7, rotation_error = $8, host_key = $9, host_key_fingerprint = $10, seen_host_key = $11,
             seen_host_key_fingerprint = $12, consented_gate_sha256 = $13, consented_manifest_sha256 = $14,
             gate_sha256 = $15, manifest_sha256 = $16, server_version = $17, os_name = $18, latency_ms = $19,
             last_seen_at = $20, next_probe_at = $21, last_probe_at = $22, probe_failures = $23, refused_since = $24,
             last_error_kind = $25, last_error = $26, server_log = $27, server_log_at = $28, log_differences = $29,
             revoke_requested_at = $30, revocation = $31, locked_out_at = $32, status_reason = $33
         where id = $1 and version = $2 returning version",
        known.id.0,
        known.version,
        known.public_key,
        known.secret_ref,
        known.key_number,
        known.next_public_key,
        known.next_secret_ref,
        known.rotation_error,
        known.host_key,
        known.host_key_fingerprint,
        known.seen_host_key,
        known.seen_host_key_fingerprint,
        known.consented_gate_sha256,
        known.consented_manifest_sha256,
        known.gate_sha256,
        known.manifest_sha256,
        known.server_version,
        known.os_name,
        known.latency_ms,
        known.last_seen_at as _,
        known.next_probe_at as _,
        known.last_probe_at as _,
        known.probe_failures,
        known.refused_since as _,
        known.last_error_kind,
        known.last_error,
        known.server_log,
        known.server_log_at as _,
        known.log_differences,
        known.revoke_requested_at as _,
        known.revocation.map(Revocation::as_str),
        known.locked_out_at as _,
        known.status_reason,
    )
    .fetch_optional(connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    Ok(())
}

/// Moves a connection to another status with its audit event, fenced by the version.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first; the database refuses a move that there is not.
pub async fn transition_in(
    connection: &mut PgConnection,
    known: &mut Connection,
    to: ConnectionStatus,
    reason: Option<&str>,
    at: Time,
    cause: &Cause,
) -> Result<(), TransitionError> {
    let from = known.status;
    known.version = sqlx::query_scalar!(
        "update byos_connections set
             status = $3, status_reason = $4, status_since = $5, version = version + 1,
             connected_at = case when $3 = 'connected' then coalesce(connected_at, $5) else connected_at end,
             revoked_at = case when $3 = 'revoked' then $5 end,
             next_probe_at = case when $3 = 'revoked' then null else next_probe_at end
         where id = $1 and version = $2 returning version",
        known.id.0,
        known.version,
        to.as_str(),
        reason,
        at,
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    known.status = to;
    known.status_reason = reason.map(str::to_owned);
    known.status_since = at;
    match to {
        ConnectionStatus::Connected => _ = known.connected_at.get_or_insert(at),
        ConnectionStatus::Revoked => {
            known.revoked_at = Some(at);
            known.next_probe_at = None;
        }
        _ => {}
    }
    let mut after = json!({ "status": to });
    if let Some(reason) = reason {
        after["reason"] = reason.into();
    }
    if to == ConnectionStatus::Revoked {
        after["revocation"] = json!(known.revocation);
        after["locked_out_at"] = json!(known.locked_out_at);
    }
    if to == ConnectionStatus::Connected {
        after["host_key_fingerprint"] = json!(known.host_key_fingerprint);
    }
    let event = Event {
        subject: known.subject(),
        action: &format!("connection.{to}"),
        before: Some(json!({ "status": from })),
        after: Some(after),
    };
    events::record_in(connection, at, cause, event).await?;
    Ok(())
}

/// Writes an audit event about a connection.
///
/// # Errors
/// Those of the database.
pub async fn record_in(
    connection: &mut PgConnection,
    known: &Connection,
    action: &str,
    after: serde_json::Value,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<()> {
    let event = Event { subject: known.subject(), action, before: None, after: Some(after) };
    events::record_in(connection, at, cause, event).await
}

/// The resource of a connection, once its key was proved.
///
/// # Errors
/// Those of the database.
pub async fn resource_of(executor: impl PgExecutor<'_>, id: ConnectionId) -> sqlx::Result<Option<Resource>> {
    sqlx::query_as!(Resource, "select * from seedbox_resources where connection_id = $1", id.0)
        .fetch_optional(executor)
        .await
}

/// Makes the resource of a connection whose key was proved just now, by the same guarded lifecycle as any other.
///
/// # Errors
/// Those of the lifecycle.
pub async fn add_resource_in(
    connection: &mut PgConnection,
    known: &Connection,
    at: Time,
    cause: &Cause,
) -> Result<(), TransitionError> {
    if resource_of(&mut *connection, known.id).await?.is_some() {
        return Ok(());
    }
    let id = ResourceId::new();
    sqlx::query!(
        "insert into seedbox_resources (id, user_id, kind, connection_id, label, status_since, created_at)
         values ($1, $2, 'byos', $3, $4, $5, $5)",
        id.0,
        known.user_id.0,
        known.id.0,
        known.label,
        at,
    )
    .execute(&mut *connection)
    .await?;
    let event = Event {
        subject: Subject::Resource(id),
        action: "resource.pending",
        before: None,
        after: Some(json!({ "status": "pending", "connection_id": known.id })),
    };
    events::record_in(&mut *connection, at, cause, event).await?;
    let resource = repository::resource(&mut *connection, id).await?;
    let mut resource = resource.ok_or(TransitionError::Stale)?;
    for status in [Status::Provisioning, Status::Active] {
        let transition = Transition::to(status).because("its key was proved");
        lifecycle::transition_in(connection, &mut resource, at, cause, transition).await?;
    }
    Ok(())
}

/// Ends the resource of a connection that is revoked. Nothing on the server is wiped: it is its owner's.
///
/// # Errors
/// Those of the lifecycle.
pub async fn end_resource_in(
    connection: &mut PgConnection,
    known: &Connection,
    at: Time,
    cause: &Cause,
) -> Result<(), TransitionError> {
    let Some(mut resource) = resource_of(&mut *connection, known.id).await? else { return Ok(()) };
    for (from, to) in [(Status::Active, Status::Terminating), (Status::Terminating, Status::Terminated)] {
        if resource.status == from {
            let transition =
                Transition::to(to).because("its connection was revoked; nothing on the server was touched");
            lifecycle::transition_in(connection, &mut resource, at, cause, transition).await?;
        }
    }
    Ok(())
}

/// Asks for the end of a connection, in the caller's transaction: a worker carries it out. False if it was asked for before.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn request_revocation_in(
    connection: &mut PgConnection,
    known: &mut Connection,
    at: Time,
    cause: &Cause,
) -> Result<bool, TransitionError> {
    if known.status == ConnectionStatus::Revoked || known.revoke_requested_at.is_some() {
        return Ok(false);
    }
    known.revoke_requested_at = Some(at);
    known.next_probe_at = None;
    write_in(connection, known).await?;
    record_in(connection, known, "connection.revocation_requested", json!({}), at, cause).await?;
    jobs::enqueue_in(connection, Job::RevokeConnection(known.id)).await?;
    Ok(true)
}

/// Every connection that is not over, those with trouble first, at most 500: for operators.
///
/// # Errors
/// Those of the database.
pub async fn open_of_everybody(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<Connection>> {
    sqlx::query_as!(
        Connection,
        "select * from byos_connections where status <> 'revoked'
         order by status = 'error' desc, coalesce(log_differences, 0) desc, created_at desc limit 500"
    )
    .fetch_all(executor)
    .await
}

/// Connections whose revocation was asked for and is not done: their job may have been lost. At most 200.
///
/// # Errors
/// Those of the database.
pub async fn being_revoked(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<ConnectionId>> {
    sqlx::query_scalar!(
        "select id from byos_connections where revoke_requested_at is not null and status <> 'revoked'
         order by revoke_requested_at limit 200"
    )
    .fetch_all(executor)
    .await
}
