//! Operators and customers' own servers: they see what is wrong, and can take our key back for good.

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    api::{
        byos::view::{ConnectionView, view},
        error::{Body, Id, Problem},
    },
    app::App,
    auth::{Operator, Reader},
    byos::connections::{self, Connection},
    ids::{ConnectionId, UserId},
};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(revoke))
}

/// A connection, for operators: whose it is, and what is wrong with it.
#[derive(Serialize, ToSchema)]
struct ConnectionLine {
    id: ConnectionId,
    user_id: UserId,
    label: String,
    host: String,
    status: connections::ConnectionStatus,
    status_reason: Option<String>,
    last_error: Option<String>,
    /// Lines of the server's own log and of our record that do not agree.
    log_differences: Option<i32>,
    last_seen_at: Option<crate::clock::Time>,
}

impl From<Connection> for ConnectionLine {
    fn from(connection: Connection) -> Self {
        Self {
            id: connection.id,
            user_id: connection.user_id,
            label: connection.label,
            host: connection.host,
            status: connection.status,
            status_reason: connection.status_reason,
            last_error: connection.last_error,
            log_differences: connection.log_differences,
            last_seen_at: connection.last_seen_at,
        }
    }
}

/// Connections that are not over, those with trouble first, at most 500.
#[utoipa::path(get, path = "/api/operator/byos/connections", tag = "operator", responses((status = 200, body = Vec<ConnectionLine>)))]
async fn list(State(app): State<App>, _reader: Reader) -> Result<Json<Vec<ConnectionLine>>, Problem> {
    let open = connections::open_of_everybody(&app.pool).await?;
    Ok(Json(open.into_iter().map(Into::into).collect()))
}

async fn any(app: &App, id: Uuid) -> Result<Connection, Problem> {
    connections::find(&app.pool, ConnectionId(id)).await?.ok_or_else(|| Problem::not_found("connection"))
}

/// Any connection. Nothing an operator can do sends a command to somebody's server.
#[utoipa::path(get, path = "/api/operator/byos/connections/{id}", tag = "operator", params(("id" = ConnectionId, Path)),
    responses((status = 200, body = ConnectionView), (status = 404, body = Problem)))]
async fn show(State(app): State<App>, _reader: Reader, Id(id): Id<Uuid>) -> Result<Json<ConnectionView>, Problem> {
    Ok(Json(view(&app, any(&app, id).await?).await?))
}

/// Why a connection is ended.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Revoke {
    /// Why.
    reason: String,
}

/// Revoke a connection, as its owner could: our key is taken off the server and destroyed.
#[utoipa::path(post, path = "/api/operator/byos/connections/{id}/revoke", tag = "operator", params(("id" = ConnectionId, Path)),
    request_body = Revoke,
    responses((status = 202, body = ConnectionView), (status = 404, body = Problem), (status = 422, body = Problem)))]
async fn revoke(
    State(app): State<App>,
    operator: Operator,
    Id(id): Id<Uuid>,
    Body(body): Body<Revoke>,
) -> Result<(StatusCode, Json<ConnectionView>), Problem> {
    let cause = operator.cause(&body.reason)?;
    let mut connection = any(&app, id).await?;
    let mut tx = app.pool.begin().await?;
    connections::request_revocation_in(&mut tx, &mut connection, app.now(), &cause).await?;
    tx.commit().await?;
    Ok((StatusCode::ACCEPTED, Json(view(&app, any(&app, id).await?).await?)))
}
