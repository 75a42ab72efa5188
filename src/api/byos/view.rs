//! How a connection to a customer's own server is shown.

use seedplane_provisioning::node::gate;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    api::error::Problem,
    app::App,
    byos::{
        connections::{self, Access, Connection, ConnectionStatus, Revocation},
        keys,
        onboarding::{self, Onboarding},
    },
    clock::Time,
    ids::{ConnectionId, ResourceId},
};

/// A connection as its owner sees it.
#[derive(Serialize, ToSchema)]
pub(crate) struct ConnectionView {
    pub(crate) id: ConnectionId,
    pub(crate) label: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) status: ConnectionStatus,
    /// Why it is in `error`: `host_key_changed`, `unreachable`, `timed_out`, `port_closed`, `not_restricted`, `gate_altered`, ...
    pub(crate) status_reason: Option<String>,
    pub(crate) status_since: Time,
    /// Its box, once our key was proved.
    pub(crate) resource_id: Option<ResourceId>,
    /// How we log in.
    pub(crate) access: Access,
    /// Our key, or our certificate authority's: the only half that leaves the secret store.
    pub(crate) public_key: String,
    pub(crate) key_fingerprint: String,
    /// The server's host key as it was at the first contact. Compare it with what the line you pasted printed.
    pub(crate) host_key_fingerprint: Option<String>,
    /// A changed host key that waits for your word; nothing is sent to the server until then.
    pub(crate) changed_host_key_fingerprint: Option<String>,
    pub(crate) gate: GateView,
    pub(crate) server_version: Option<String>,
    pub(crate) os_name: Option<String>,
    /// How long connecting and logging in took last, in milliseconds.
    pub(crate) latency_ms: Option<i32>,
    pub(crate) connected_at: Option<Time>,
    pub(crate) last_seen_at: Option<Time>,
    /// When it was looked at last, whether it answered or not.
    pub(crate) last_probe_at: Option<Time>,
    /// When it is looked at next; `null` if it is not any more: ask with `verify`.
    pub(crate) next_probe_at: Option<Time>,
    pub(crate) last_error: Option<ErrorView>,
    /// Whether our key is being replaced, and what is in the way if it takes long.
    pub(crate) rotating: bool,
    pub(crate) rotation_error: Option<String>,
    /// Whether a revocation is under way.
    pub(crate) revoking: bool,
    pub(crate) revoked_at: Option<Time>,
    pub(crate) revocation: Option<Revocation>,
    /// When a login with our key was seen to be refused.
    pub(crate) locked_out_at: Option<Time>,
    /// How many lines of the server's own log and of our record did not agree, when they were compared last.
    pub(crate) log_differences: Option<i32>,
    pub(crate) log_compared_at: Option<Time>,
    pub(crate) created_at: Time,
    /// How to connect it and how to undo that; not for one that is revoked.
    pub(crate) onboarding: Option<Onboarding>,
}

/// What runs on the server.
#[derive(Serialize, ToSchema)]
pub(crate) struct GateView {
    /// SHA-256 of the gate and the manifest that you agreed to.
    pub(crate) agreed_gate_sha256: String,
    pub(crate) agreed_manifest_sha256: String,
    /// SHA-256 of those on the server, as it said itself.
    pub(crate) gate_sha256: Option<String>,
    pub(crate) manifest_sha256: Option<String>,
    /// Whether the server runs what you agreed to. While it does not, nothing is sent but the question what it runs.
    pub(crate) is_agreed: Option<bool>,
    /// Whether the server runs this version of ours.
    pub(crate) is_current: Option<bool>,
}

/// What went wrong last.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorView {
    /// A word for it, stable for programs.
    pub(crate) kind: String,
    /// What happened and what to do.
    pub(crate) detail: String,
}

pub(crate) async fn view(app: &App, connection: Connection) -> Result<ConnectionView, Problem> {
    let resource = connections::resource_of(&app.pool, connection.id).await?;
    let revoked = connection.status == ConnectionStatus::Revoked;
    let is_current = match (&connection.gate_sha256, &connection.manifest_sha256) {
        (Some(of_gate), Some(of_manifest)) => {
            Some(*of_gate == gate::gate_sha256() && *of_manifest == gate::manifest_sha256())
        }
        _ => None,
    };
    Ok(ConnectionView {
        resource_id: resource.map(|resource| resource.id),
        key_fingerprint: keys::fingerprint(&connection.public_key),
        onboarding: (!revoked).then(|| onboarding::of(&connection, &app.public_url)),
        gate: GateView {
            is_agreed: connection.runs_what_was_agreed(),
            is_current,
            agreed_gate_sha256: connection.consented_gate_sha256,
            agreed_manifest_sha256: connection.consented_manifest_sha256,
            gate_sha256: connection.gate_sha256,
            manifest_sha256: connection.manifest_sha256,
        },
        last_error: connection
            .last_error_kind
            .zip(connection.last_error)
            .map(|(kind, detail)| ErrorView { kind, detail }),
        rotating: connection.next_public_key.is_some() && !revoked,
        revoking: connection.revoke_requested_at.is_some() && !revoked,
        port: u16::try_from(connection.port).unwrap_or(22),
        id: connection.id,
        label: connection.label,
        host: connection.host,
        status: connection.status,
        status_reason: connection.status_reason,
        status_since: connection.status_since,
        access: connection.access,
        public_key: connection.public_key,
        host_key_fingerprint: connection.host_key_fingerprint,
        changed_host_key_fingerprint: connection.seen_host_key_fingerprint,
        server_version: connection.server_version,
        os_name: connection.os_name,
        latency_ms: connection.latency_ms,
        connected_at: connection.connected_at,
        last_seen_at: connection.last_seen_at,
        last_probe_at: connection.last_probe_at,
        next_probe_at: connection.next_probe_at,
        rotation_error: connection.rotation_error,
        revoked_at: connection.revoked_at,
        revocation: connection.revocation,
        locked_out_at: connection.locked_out_at,
        log_differences: connection.log_differences,
        log_compared_at: connection.server_log_at,
        created_at: connection.created_at,
    })
}
