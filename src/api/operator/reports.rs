//! Reports of infringement and other abuse: what strangers sent, and what came of it. Nothing here acts on a box.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    api::error::{Body, Id, Parameters, Problem},
    app::App,
    auth::{Operator, Reader},
    ids::ResourceId,
    reports::{self, Candidate, Listed, Outcome, Report},
    seedbox::repository,
};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_reports)).routes(routes!(show_report)).routes(routes!(close_report))
}

/// How many reports one answer lists.
pub(crate) const PAGE: i64 = 50;

/// Which reports.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Open ones alone, or closed ones alone.
    open: Option<bool>,
    /// Those that come after this one in the list.
    after: Option<Uuid>,
}

/// Reports, open ones first and each part newest first, 50 at a time.
#[utoipa::path(get, path = "/api/operator/reports", tag = "operator", params(Wanted), responses((status = 200, body = Vec<Listed>)))]
async fn list_reports(
    State(app): State<App>,
    _reader: Reader,
    Parameters(wanted): Parameters<Wanted>,
) -> Result<Json<Vec<Listed>>, Problem> {
    Ok(Json(reports::list(&app.pool, wanted.open, wanted.after, PAGE).await?))
}

/// A report, and the boxes that it may be about.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReportView {
    #[serde(flatten)]
    pub(crate) report: Report,
    /// Boxes that it names, or that answer at a host that it names; nothing is done to them because of it.
    pub(crate) candidates: Vec<Candidate>,
}

impl ReportView {
    pub(crate) async fn load(app: &App, id: Uuid) -> Result<Self, Problem> {
        let report = reports::find(&app.pool, id).await?.ok_or_else(|| Problem::not_found("report"))?;
        let candidates = reports::candidates(&app.pool, &report).await?;
        Ok(Self { report, candidates })
    }
}

/// A report, with everything in it.
#[utoipa::path(get, path = "/api/operator/reports/{id}", tag = "operator", params(("id" = Uuid, Path)),
    responses((status = 200, body = ReportView), (status = 404, body = Problem)))]
async fn show_report(State(app): State<App>, _reader: Reader, Id(id): Id<Uuid>) -> Result<Json<ReportView>, Problem> {
    Ok(Json(ReportView::load(&app, id).await?))
}

/// What came of a report.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CloseReport {
    pub(crate) outcome: Outcome,
    /// The box that was acted on; said with `acted_on`, and with nothing else.
    #[serde(default)]
    pub(crate) resource_id: Option<ResourceId>,
    /// Why.
    pub(crate) reason: String,
}

/// Close a report. It suspends nothing: that is done to the box, with a reason of its own.
#[utoipa::path(post, path = "/api/operator/reports/{id}/close", tag = "operator", params(("id" = Uuid, Path)), request_body = CloseReport,
    responses((status = 200, body = ReportView), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn close_report(
    State(app): State<App>,
    operator: Operator,
    Id(id): Id<Uuid>,
    Body(body): Body<CloseReport>,
) -> Result<Json<ReportView>, Problem> {
    let cause = operator.cause(&body.reason)?;
    let before = reports::find(&app.pool, id).await?.ok_or_else(|| Problem::not_found("report"))?;
    match (body.outcome, body.resource_id) {
        (Outcome::ActedOn, None) => {
            return Err(Problem::bad_input("`acted_on` says which box in `resource_id`; the report is still open"));
        }
        (Outcome::ActedOn, Some(resource)) if repository::resource(&app.pool, resource).await?.is_none() => {
            return Err(Problem::bad_input("`resource_id` is no box; the report is still open"));
        }
        (Outcome::NotOurs | Outcome::Rejected, Some(_)) => {
            return Err(Problem::bad_input("`resource_id` goes with `acted_on` alone; the report is still open"));
        }
        _ => {}
    }
    let by = operator.principal.user_id;
    let mut tx = app.pool.begin().await?;
    if !reports::close_in(&mut tx, id, body.outcome, body.resource_id, by, app.now(), &cause).await? {
        return Err(Problem::conflict(format!("{} is closed already; nothing was changed", before.reference)));
    }
    tx.commit().await?;
    Ok(Json(ReportView::load(&app, id).await?))
}
