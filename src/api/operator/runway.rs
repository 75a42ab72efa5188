//! Who runs out of money next.

use axum::{Json, extract::State};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::error::Problem,
    app::App,
    auth::Reader,
    billing::runway::{self, Runways},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(show))
}

/// Who runs out of money next, by the forecast that they see of their own boxes, and how much revenue with them.
#[utoipa::path(get, path = "/api/operator/runway", tag = "operator", responses((status = 200, body = Runways)))]
async fn show(State(app): State<App>, _reader: Reader) -> Result<Json<Runways>, Problem> {
    Ok(Json(runway::look(&app).await?))
}
