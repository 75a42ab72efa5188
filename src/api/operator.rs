//! What operators do: every change with a reason.

use axum::{Json, extract::State, http::StatusCode};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{PgConnection, PgPool};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use self::approvals::{Answer, Asked, Request};
use super::{
    error::{Body, Id, Problem},
    idempotency::NewId,
    seedbox::resources::{ResourceView, refuse_byos, request},
};
use crate::{
    alerts::{self, Alert},
    app::App,
    approvals::{Affected, Approval, Effects, boxes},
    audit::{
        chain::{self, Copy, Verification},
        events::{self, Cause, Event, Subject},
    },
    auth::{Operator, Reader},
    billing::{
        ledger::{self, LedgerCheck},
        sweep,
    },
    clock::Time,
    ids::{ResourceId, UserId},
    money::Usd,
    seedbox::{Operation, Resource, Status, SuspendReason, repository},
};

pub(crate) mod approvals;
mod byos;
mod drift;
pub(crate) mod mass_actions;
pub(crate) mod money;
pub(crate) mod plans;
mod providers;
pub(crate) mod reports;
mod runway;

pub use drift::{DriftReport, ProviderLook, drift_report};
pub use providers::{ProviderView, forbid_torrents, permit_torrents, providers};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(approvals::routes())
        .merge(mass_actions::routes())
        .merge(money::routes())
        .merge(byos::routes())
        .merge(plans::routes())
        .merge(providers::routes())
        .merge(drift::routes())
        .merge(runway::routes())
        .merge(reports::routes())
        .routes(routes!(alerts))
        .routes(routes!(resolve_alert))
        .routes(routes!(show_resource))
        .routes(routes!(hold))
        .routes(routes!(suspend))
        .routes(routes!(resume))
        .routes(routes!(terminate))
        .routes(routes!(check_ledger))
        .routes(routes!(verify_audit))
}

/// What needs a look, newest first.
#[utoipa::path(get, path = "/api/operator/alerts", tag = "operator", responses((status = 200, body = Vec<Alert>)))]
async fn alerts(State(app): State<App>, _reader: Reader) -> Result<Json<Vec<Alert>>, Problem> {
    Ok(Json(alerts::open(&app.pool).await?))
}

/// An alert that was dealt with.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resolve {
    pub(crate) kind: String,
    pub(crate) subject: String,
    /// What was done about it.
    pub(crate) reason: String,
}

/// The alert that stops the sweep: resolved, it goes on for an hour.
pub(crate) const BLAST_LIMIT: &str = "blast_limit";

/// Mark an alert as dealt with. Resolving `blast_limit` lets the sweep go on for an hour, and waits for a second person where the
/// two-person rule is on; resolving `clock_went_back` says that the clock is right now.
#[utoipa::path(post, path = "/api/operator/alerts/resolve", tag = "operator", request_body = Resolve,
    responses((status = 204), (status = 202, body = Approval, description = "It waits for a second person"),
    (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn resolve_alert(
    State(app): State<App>,
    operator: Operator,
    NewId(id): NewId,
    Body(body): Body<Resolve>,
) -> Result<Answer<()>, Problem> {
    let (cause, by) = (operator.cause(&body.reason)?, operator.principal.user_id);
    if app.two_person_rule && body.kind == BLAST_LIMIT {
        if let Some(answer) = approvals::asked_before(&app, id).await? {
            return Ok(answer);
        }
        if !alerts::is_open(&app.pool, &body.kind, &body.subject).await? {
            return Err(Problem::not_found("alert"));
        }
        let effects = blast_effects(&app).await?;
        let asked = Asked {
            summary: format!("Lift the blast limit for an hour: {}", boxes(effects.reaches.len())),
            request: Request::BlastLimit { subject: body.subject.clone() },
            subject: body.subject,
            effects,
        };
        return approvals::ask(&app, id, asked, by, &cause).await;
    }
    let mut tx = app.pool.begin().await?;
    resolve_in(&mut tx, &body.kind, &body.subject, by, app.now(), &cause).await?;
    tx.commit().await?;
    Ok(Answer::Done(StatusCode::NO_CONTENT, ()))
}

async fn resolve_in(
    connection: &mut PgConnection,
    kind: &str,
    subject: &str,
    by: UserId,
    now: Time,
    cause: &Cause,
) -> Result<(), Problem> {
    if !alerts::resolve_in(connection, kind, subject, now).await? {
        return Err(Problem::not_found("alert"));
    }
    if kind == chain::CLOCK_WENT_BACK {
        chain::trust_clock_in(connection, now).await?;
    }
    let after = Some(json!({ "kind": kind, "subject": subject }));
    let event = Event { subject: Subject::User(by), action: "alert.resolved", before: None, after };
    events::record_in(connection, now, cause, event).await?;
    Ok(())
}

/// What the sweep would cut off in the hour that a resolved `blast_limit` gives it.
async fn blast_effects(app: &App) -> Result<Effects, Problem> {
    let hour = Time(app.now().0 + SignedDuration::from_hours(1));
    let unpaid = sweep::cut_off_by(app, hour).await?;
    let ended = unpaid.iter().filter(|(_, operation)| *operation == Operation::Terminate).count();
    let monthly: Usd = unpaid.iter().map(|(resource, _)| resource.price_cents).sum();
    Ok(Effects {
        will_happen: vec![
            "For an hour from the approval the billing sweep suspends and ends unpaid boxes without the limit."
                .to_owned(),
            format!("By the rules it will suspend {} and wipe {} for good.", boxes(unpaid.len() - ended), boxes(ended)),
        ],
        costs: format!("They bring {monthly} a month where they are paid; suspended or wiped they bring nothing."),
        reaches: unpaid
            .into_iter()
            .map(|(resource, operation)| Affected {
                user_id: resource.user_id,
                resource_id: Some(resource.id),
                amount_cents: resource.price_cents,
                change: match operation {
                    Operation::Terminate => "ended, and all its data wiped".to_owned(),
                    _ => "suspended; its data is kept".to_owned(),
                },
                label: resource.label,
            })
            .collect(),
    })
}

/// Whether the sweep would cut off none but those that were asked about.
async fn still_the_same_boxes(app: &App, asked: &Effects) -> Result<(), Problem> {
    let now = blast_effects(app).await?;
    let same = |one: &Affected, other: &Affected| one.resource_id == other.resource_id && one.change == other.change;
    let more = now.reaches.iter().filter(|one| !asked.reaches.iter().any(|known| same(one, known))).count();
    match more {
        0 => Ok(()),
        more => Err(approvals::outdated(&format!("{more} boxes more than were shown would be suspended or wiped"))),
    }
}

async fn any(app: &App, id: Uuid) -> Result<Resource, Problem> {
    repository::resource(&app.pool, ResourceId(id)).await?.ok_or_else(|| Problem::not_found("box"))
}

/// Any box.
#[utoipa::path(get, path = "/api/operator/resources/{id}", tag = "operator", params(("id" = ResourceId, Path)),
    responses((status = 200, body = ResourceView), (status = 404, body = Problem)))]
async fn show_resource(
    State(app): State<App>,
    _reader: Reader,
    Id(id): Id<Uuid>,
) -> Result<Json<ResourceView>, Problem> {
    let resource = any(&app, id).await?;
    Ok(Json(ResourceView::load(&app, resource).await?))
}

/// A hold.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hold {
    /// Until when; `null` releases it. One of the two is said: what is forgotten is not a release.
    #[schema(value_type = Option<Time>, required = true)]
    #[serde(default, deserialize_with = "said")]
    pub(crate) until: Option<Option<Time>>,
    /// Why.
    pub(crate) reason: String,
}

/// Tells `null` from nothing.
fn said<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Time>>, D::Error> {
    Option::<Time>::deserialize(deserializer).map(Some)
}

/// Stops suspension and wipe of a box until a time, whatever the workers want: also for the command line. Safe to repeat with its id.
///
/// # Errors
/// Those of the database.
pub async fn place_hold(
    pool: &PgPool,
    now: Time,
    id: Uuid,
    resource: ResourceId,
    until: Option<Time>,
    cause: &Cause,
) -> Result<(), Problem> {
    let mut tx = pool.begin().await?;
    let held = repository::resource(&mut *tx, resource).await?.ok_or_else(|| Problem::not_found("box"))?;
    hold_in(&mut tx, now, id, &held, until, cause).await?;
    tx.commit().await?;
    Ok(())
}

async fn hold_in(
    connection: &mut PgConnection,
    now: Time,
    id: Uuid,
    held: &Resource,
    until: Option<Time>,
    cause: &Cause,
) -> Result<(), Problem> {
    repository::lock_account_in(connection, held.user_id).await?;
    if !repository::set_hold_in(connection, id, held.id, until, &cause.reason, now, cause).await? {
        return Ok(());
    }
    let action = if until.is_some() { "resource.held" } else { "resource.hold_released" };
    let event = Event {
        subject: Subject::Resource(held.id),
        action,
        before: None,
        after: Some(json!({ "hold_until": until })),
    };
    events::record_in(connection, now, cause, event).await?;
    // What it held back is decided again now, and not when it would have been over.
    repository::wake_account_in(connection, held.user_id, now).await?;
    Ok(())
}

/// Stop suspension and wipe of a box until a time. Charges go on.
#[utoipa::path(post, path = "/api/operator/resources/{id}/hold", tag = "operator", params(("id" = ResourceId, Path)),
    request_body = Hold, responses((status = 200, body = ResourceView), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn hold(
    State(app): State<App>,
    operator: Operator,
    NewId(hold): NewId,
    Id(id): Id<Uuid>,
    Body(body): Body<Hold>,
) -> Result<Json<ResourceView>, Problem> {
    let cause = operator.cause(&body.reason)?;
    let resource = any(&app, id).await?;
    let Some(until) = body.until else {
        return Err(Problem::bad_input("`until` says until when, or `null` to release the hold; nothing was changed"));
    };
    if until.is_some_and(|until| until <= app.now()) {
        return Err(Problem::bad_input("`until` is in the past; nothing was changed"));
    }
    place_hold(&app.pool, app.now(), hold, resource.id, until, &cause).await?;
    Ok(Json(ResourceView::load(&app, any(&app, id).await?).await?))
}

/// A suspension.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Suspend {
    /// `abuse` cuts everything; `operator` stops the service.
    pub(crate) suspend_reason: SuspendReason,
    /// Why.
    pub(crate) reason: String,
}

/// Suspend a box. Only an operator lifts it again.
#[utoipa::path(post, path = "/api/operator/resources/{id}/suspend", tag = "operator", params(("id" = ResourceId, Path)),
    request_body = Suspend, responses((status = 202, body = ResourceView), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn suspend(
    State(app): State<App>,
    operator: Operator,
    NewId(attempt): NewId,
    Id(id): Id<Uuid>,
    Body(body): Body<Suspend>,
) -> Result<(StatusCode, Json<ResourceView>), Problem> {
    let cause = operator.cause(&body.reason)?;
    let resource = any(&app, id).await?;
    suspend_check(&resource, body.suspend_reason)?;
    request(&app, &resource, attempt, Operation::Suspend, &format!("{}: {}", body.suspend_reason, cause.reason), &cause)
        .await
}

/// Whether an operator may suspend a box for this reason.
///
/// # Errors
/// A problem that says why not.
pub fn suspend_check(resource: &Resource, reason: SuspendReason) -> Result<(), Problem> {
    if !matches!(reason, SuspendReason::Abuse | SuspendReason::Operator | SuspendReason::Upstream) {
        return Err(Problem::bad_input(
            "an operator suspends for abuse, operator or upstream; billing and user do so by themselves",
        ));
    }
    refuse_byos(resource)?;
    if !matches!(resource.status, Status::Active | Status::Suspended) || resource.suspend_reason == Some(reason) {
        return Err(Problem::conflict(format!("the box is {} and cannot be suspended", resource.status)));
    }
    Ok(())
}

/// A reason.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Why {
    /// Why.
    pub(crate) reason: String,
}

/// Bring a suspended box back, whatever it was suspended for.
#[utoipa::path(post, path = "/api/operator/resources/{id}/resume", tag = "operator", params(("id" = ResourceId, Path)),
    request_body = Why, responses((status = 202, body = ResourceView), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn resume(
    State(app): State<App>,
    operator: Operator,
    NewId(attempt): NewId,
    Id(id): Id<Uuid>,
    Body(body): Body<Why>,
) -> Result<(StatusCode, Json<ResourceView>), Problem> {
    let cause = operator.cause(&body.reason)?;
    let resource = any(&app, id).await?;
    resume_check(&resource)?;
    request(&app, &resource, attempt, Operation::Resume, &format!("operator: {}", cause.reason), &cause).await
}

/// Whether an operator may bring a box back.
fn resume_check(resource: &Resource) -> Result<(), Problem> {
    if resource.status != Status::Suspended {
        return Err(Problem::conflict(format!("the box is {}, not suspended", resource.status)));
    }
    Ok(())
}

/// An end.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Terminate {
    /// The box's label, typed again.
    pub(crate) confirm_label: String,
    /// `operator`, `fault` (ours or the upstream's: the rest is always refunded) or `abuse`.
    pub(crate) end_reason: String,
    /// Why.
    pub(crate) reason: String,
}

/// End a box and wipe it.
#[utoipa::path(post, path = "/api/operator/resources/{id}/terminate", tag = "operator", params(("id" = ResourceId, Path)),
    request_body = Terminate, responses((status = 202, body = ResourceView), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn terminate(
    State(app): State<App>,
    operator: Operator,
    NewId(attempt): NewId,
    Id(id): Id<Uuid>,
    Body(body): Body<Terminate>,
) -> Result<(StatusCode, Json<ResourceView>), Problem> {
    let cause = operator.cause(&body.reason)?;
    let resource = any(&app, id).await?;
    terminate_check(app.now(), &resource, &body.confirm_label, &body.end_reason)?;
    request(&app, &resource, attempt, Operation::Terminate, &format!("{}: {}", body.end_reason, cause.reason), &cause)
        .await
}

/// Whether an operator may end a box so.
///
/// # Errors
/// A problem that says why not.
pub fn terminate_check(now: Time, resource: &Resource, confirm_label: &str, end_reason: &str) -> Result<(), Problem> {
    if !matches!(end_reason, "operator" | "fault" | "abuse") {
        return Err(Problem::bad_input("`end_reason` is operator, fault or abuse"));
    }
    refuse_byos(resource)?;
    if confirm_label != resource.label {
        return Err(Problem::bad_input(format!(
            "the confirmation is not this box's label, '{}'; nothing was ended",
            resource.label
        )));
    }
    if matches!(resource.status, Status::Terminating | Status::Terminated) {
        return Err(Problem::conflict(format!("the box is {} already", resource.status)));
    }
    if resource.hold_until.is_some_and(|until| until > now) {
        return Err(Problem::conflict("the box is held; release the hold first"));
    }
    Ok(())
}

/// The ledger, recomputed, with whether it is sound.
#[derive(Serialize, ToSchema)]
struct LedgerView {
    /// Whether every balance agrees and everything adds up to zero.
    sound: bool,
    #[serde(flatten)]
    check: LedgerCheck,
}

/// Recompute every balance from the transfers.
#[utoipa::path(get, path = "/api/operator/ledger/check", tag = "operator", responses((status = 200, body = LedgerView)))]
async fn check_ledger(State(app): State<App>, _reader: Reader) -> Result<Json<LedgerView>, Problem> {
    let check = ledger::check(&app.pool).await?;
    Ok(Json(LedgerView { sound: check.is_sound(), check }))
}

/// Verify the whole audit log.
#[utoipa::path(get, path = "/api/operator/audit/verify", tag = "operator", responses((status = 200, body = Verification)))]
async fn verify_audit(State(app): State<App>, _reader: Reader) -> Result<Json<Verification>, Problem> {
    let verification = chain::verify(&app.pool, Copy::Own(&app.checkpoint_file))
        .await
        .map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "audit-unreadable", error.to_string()))?;
    Ok(Json(verification))
}
