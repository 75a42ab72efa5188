//! What waits for a second person: asked for by the routes that need one, approved, refused or withdrawn here.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{Why, mass_actions, money, plans, resolve_in};
use crate::{
    api::error::{Body, Id, Problem},
    app::App,
    approvals::{self, Approval, ApprovalStatus, Effects, Kind, NewApproval},
    audit::events::{Actor, Cause},
    auth::{Operator, Reader},
    clock::Time,
    ids::UserId,
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(approve))
        .routes(routes!(refuse))
        .routes(routes!(withdraw))
}

/// What an approval carries out.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Lets a payout be sent.
    Payout { payout_id: Uuid },
    /// Resolves the alert of this subject.
    BlastLimit { subject: String },
    /// Adds the version of a plan, and tells the owners of the boxes that were asked about.
    PlanPrice(plans::NewPrice),
    /// Does the same to many boxes.
    MassAction(mass_actions::MassAction),
}

impl Request {
    fn kind(&self) -> Kind {
        match self {
            Self::Payout { .. } => Kind::Payout,
            Self::BlastLimit { .. } => Kind::BlastLimit,
            Self::PlanPrice(_) => Kind::PlanPrice,
            Self::MassAction(_) => Kind::MassAction,
        }
    }
}

/// What came of a request: it was carried out, or waits for a second person.
pub(crate) enum Answer<T> {
    Done(StatusCode, T),
    Waits(Box<Approval>),
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        match self {
            Self::Done(StatusCode::NO_CONTENT, _) => StatusCode::NO_CONTENT.into_response(),
            Self::Done(status, made) => (status, Json(made)).into_response(),
            Self::Waits(approval) => (StatusCode::ACCEPTED, Json(approval)).into_response(),
        }
    }
}

impl<T> Answer<T> {
    /// Where its approval is, for pages.
    pub(crate) fn waits_at(&self) -> Option<String> {
        match self {
            Self::Done(..) => None,
            Self::Waits(approval) => Some(format!("/operator/approvals/{}", approval.id)),
        }
    }
}

/// The id of the approval that the request with this id asks for.
pub(crate) fn id_for(request: Uuid) -> Uuid {
    approvals::part_of(request, "approval")
}

/// The approval that a request asked for before its answer was lost.
pub(crate) async fn asked_before<T>(app: &App, request: Uuid) -> Result<Option<Answer<T>>, Problem> {
    Ok(approvals::find(&app.pool, id_for(request)).await?.map(|found| Answer::Waits(Box::new(found))))
}

/// What is asked for, and what will come of it, in words.
pub(crate) struct Asked {
    pub(crate) request: Request,
    pub(crate) subject: String,
    pub(crate) summary: String,
    pub(crate) effects: Effects,
}

/// Asks for a second person in the caller's transaction; answers with the approval's id.
pub(crate) async fn ask_in(
    connection: &mut PgConnection,
    app: &App,
    request: Uuid,
    asked: Asked,
    by: UserId,
    cause: &Cause,
) -> Result<Uuid, Problem> {
    let new = NewApproval {
        id: id_for(request),
        kind: asked.request.kind(),
        subject: asked.subject,
        request: serde_json::to_value(asked.request).map_err(|error| Problem::bad_input(error.to_string()))?,
        summary: asked.summary,
        effects: asked.effects,
    };
    approvals::ask_in(connection, &new, by, app.now(), cause).await?;
    Ok(new.id)
}

/// Asks for a second person, and answers so.
pub(crate) async fn ask<T>(
    app: &App,
    request: Uuid,
    asked: Asked,
    by: UserId,
    cause: &Cause,
) -> Result<Answer<T>, Problem> {
    let mut tx = app.pool.begin().await?;
    let id = ask_in(&mut tx, app, request, asked, by, cause).await?;
    tx.commit().await?;
    Ok(Answer::Waits(Box::new(one(app, id).await?)))
}

pub(crate) async fn one(app: &App, id: Uuid) -> Result<Approval, Problem> {
    approvals::find(&app.pool, id).await?.ok_or_else(|| Problem::not_found("approval"))
}

/// Approvals: those that wait, the next to expire first, and those that were decided, newest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct Approvals {
    /// They wait for somebody other than who asked.
    waiting: Vec<Approval>,
    /// The last hundred.
    decided: Vec<Approval>,
}

/// What waits for a second person, and what was decided.
#[utoipa::path(get, path = "/api/operator/approvals", tag = "operator", responses((status = 200, body = Approvals)))]
async fn list(State(app): State<App>, _reader: Reader) -> Result<Json<Approvals>, Problem> {
    let (waiting, decided) = (approvals::waiting(&app.pool).await?, approvals::decided(&app.pool).await?);
    Ok(Json(Approvals { waiting, decided }))
}

/// An approval: what was asked for, by whom and why, and exactly what will happen.
#[utoipa::path(get, path = "/api/operator/approvals/{id}", tag = "operator", params(("id" = Uuid, Path)),
    responses((status = 200, body = Approval), (status = 404, body = Problem)))]
async fn show(State(app): State<App>, _reader: Reader, Id(id): Id<Uuid>) -> Result<Json<Approval>, Problem> {
    Ok(Json(one(&app, id).await?))
}

/// Whether an approval still waits.
fn must_wait(approval: &Approval, now: Time) -> Result<(), Problem> {
    if approval.status != ApprovalStatus::Waiting {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "approval-decided",
            format!("this was {} already; nothing was done", approval.status),
        ));
    }
    if now >= approval.expires_at {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "approval-expired",
            format!(
                "this waited for a second person until {} and is off; nothing was done. Ask anew",
                approval.expires_at
            ),
        ));
    }
    Ok(())
}

fn must_be_somebody_else(approval: &Approval, by: UserId) -> Result<(), Problem> {
    if approval.asked_by == by {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "second-person-needed",
            "you asked for this, so somebody else has to decide; nothing was done. You can withdraw it",
        ));
    }
    Ok(())
}

/// Approve what somebody else asked for. It is carried out with that, after another look at whether it still can be: if not,
/// nothing is done, and it goes on waiting.
#[utoipa::path(post, path = "/api/operator/approvals/{id}/approve", tag = "operator", params(("id" = Uuid, Path)),
    request_body = Why, responses((status = 200, body = Approval), (status = 403, body = Problem), (status = 404, body = Problem),
    (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn approve(
    State(app): State<App>,
    operator: Operator,
    Id(id): Id<Uuid>,
    Body(body): Body<Why>,
) -> Result<Json<Approval>, Problem> {
    let (cause, by, now) = (operator.cause(&body.reason)?, operator.principal.user_id, app.now());
    let mut tx = app.pool.begin().await?;
    let approval = approvals::lock_in(&mut tx, id).await?.ok_or_else(|| Problem::not_found("approval"))?;
    must_be_somebody_else(&approval, by)?;
    must_wait(&approval, now)?;
    carry_out_in(&mut tx, &app, &approval, &cause, now).await?;
    approvals::decide_in(&mut tx, &approval, ApprovalStatus::Approved, Some(by), now, &cause).await?;
    tx.commit().await?;
    Ok(Json(one(&app, id).await?))
}

/// Refuse what somebody else asked for. What it had set aside goes back.
#[utoipa::path(post, path = "/api/operator/approvals/{id}/refuse", tag = "operator", params(("id" = Uuid, Path)),
    request_body = Why, responses((status = 200, body = Approval), (status = 403, body = Problem), (status = 404, body = Problem),
    (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn refuse(
    State(app): State<App>,
    operator: Operator,
    Id(id): Id<Uuid>,
    Body(body): Body<Why>,
) -> Result<Json<Approval>, Problem> {
    let (cause, by, now) = (operator.cause(&body.reason)?, operator.principal.user_id, app.now());
    let mut tx = app.pool.begin().await?;
    let approval = approvals::lock_in(&mut tx, id).await?.ok_or_else(|| Problem::not_found("approval"))?;
    must_be_somebody_else(&approval, by)?;
    must_wait(&approval, now)?;
    approvals::call_off_in(&mut tx, &approval, ApprovalStatus::Refused, Some(by), now, &cause).await?;
    tx.commit().await?;
    Ok(Json(one(&app, id).await?))
}

/// Withdraw what you asked for. What it had set aside goes back.
#[utoipa::path(post, path = "/api/operator/approvals/{id}/withdraw", tag = "operator", params(("id" = Uuid, Path)),
    request_body = Why, responses((status = 200, body = Approval), (status = 403, body = Problem), (status = 404, body = Problem),
    (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn withdraw(
    State(app): State<App>,
    operator: Operator,
    Id(id): Id<Uuid>,
    Body(body): Body<Why>,
) -> Result<Json<Approval>, Problem> {
    let (cause, by, now) = (operator.cause(&body.reason)?, operator.principal.user_id, app.now());
    let mut tx = app.pool.begin().await?;
    let approval = approvals::lock_in(&mut tx, id).await?.ok_or_else(|| Problem::not_found("approval"))?;
    if approval.asked_by != by {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "not-yours-to-withdraw",
            "somebody else asked for this; nothing was done. You can approve or refuse it",
        ));
    }
    must_wait(&approval, now)?;
    approvals::call_off_in(&mut tx, &approval, ApprovalStatus::Withdrawn, Some(by), now, &cause).await?;
    tx.commit().await?;
    Ok(Json(one(&app, id).await?))
}

/// Ends an approval with the thing that needs it: withdrawn by who asked, refused by anybody else.
pub(super) async fn end_in(
    connection: &mut PgConnection,
    id: Uuid,
    by: UserId,
    now: Time,
    cause: &Cause,
) -> Result<bool, Problem> {
    let approval = approvals::lock_in(connection, id).await?.ok_or_else(|| Problem::not_found("approval"))?;
    if approval.status != ApprovalStatus::Waiting {
        return Ok(false);
    }
    let status = if approval.asked_by == by { ApprovalStatus::Withdrawn } else { ApprovalStatus::Refused };
    approvals::call_off_in(connection, &approval, status, Some(by), now, cause).await?;
    Ok(true)
}

/// Carries out what was approved, as whoever approves it, for the reason that was given when it was asked for.
async fn carry_out_in(
    connection: &mut PgConnection,
    app: &App,
    approval: &Approval,
    approved: &Cause,
    now: Time,
) -> Result<(), Problem> {
    let request: Request = serde_json::from_value(approval.request.clone()).map_err(|error| {
        tracing::error!(id = %approval.id, %error, "an approval of another version cannot be read");
        outdated("it was asked for with another version of this service")
    })?;
    let cause =
        Cause { actor: approved.actor, reason: approval.reason.clone(), request_id: approved.request_id.clone() };
    match request {
        Request::Payout { payout_id } => money::may_be_sent_in(connection, payout_id).await,
        Request::BlastLimit { subject } => {
            super::still_the_same_boxes(app, &approval.effects).await?;
            let Actor::Operator(by) = cause.actor else { return Err(Problem::not_found("page")) };
            resolve_in(connection, super::BLAST_LIMIT, &subject, by, now, &cause).await
        }
        Request::PlanPrice(price) => {
            let reached = approval.effects.reaches.iter().filter_map(|one| one.resource_id).collect::<Vec<_>>();
            plans::carry_out_in(connection, app, &price, &reached, now, &cause).await
        }
        Request::MassAction(action) => mass_actions::carry_out_in(connection, &action, now, &cause).await,
    }
}

/// The world is another one than was asked about.
pub(super) fn outdated(why: &str) -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "approval-outdated",
        format!(
            "{why}, so that something else would happen than was asked for; nothing was done. Refuse it, and have it asked for anew"
        ),
    )
}
