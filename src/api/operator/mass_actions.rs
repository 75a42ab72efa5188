//! The same done to many boxes at once, with one reason: all of them or none. Nothing is ended so.

use std::collections::BTreeSet;

use axum::{extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    approvals::{self, Answer, Asked, Request},
    hold_in, resume_check, suspend_check,
};
use crate::{
    api::{
        error::{Body, Problem},
        idempotency::NewId,
    },
    app::App,
    approvals::{Affected, Approval, Effects, boxes, part_of},
    audit::events::Cause,
    auth::Operator,
    billing::reserves,
    clock::Time,
    ids::{AttemptId, ResourceId},
    mailer::templates::date,
    money::Usd,
    seedbox::{Operation, Resource, Status, SuspendReason, repository},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(begin))
}

/// More than these at once are no list that anybody has read.
pub(crate) const MAX_BOXES: usize = 500;

/// What is done to each box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Change {
    /// Stop suspension and wipe until a time.
    Hold {
        /// Until when.
        until: Time,
    },
    /// Let go of a hold.
    ReleaseHold {},
    /// Cut it off.
    Suspend {
        /// `abuse` cuts everything; `operator` stops the service.
        suspend_reason: SuspendReason,
    },
    /// Bring it back.
    Resume {},
}

impl Change {
    /// What it is called, as the beginning of a summary.
    fn verb(&self) -> &'static str {
        match self {
            Self::Hold { .. } => "Hold",
            Self::ReleaseHold {} => "Release the hold of",
            Self::Suspend { .. } => "Suspend",
            Self::Resume {} => "Bring back",
        }
    }

    /// What changes for the owner of a box.
    fn words(&self, resource: &Resource) -> String {
        match self {
            Self::Hold { until } => format!("not suspended or wiped before {}", date(*until)),
            Self::ReleaseHold {} => match resource.past_due_since {
                Some(_) => "the rules go on with it: it is past due".to_owned(),
                None => "the rules go on with it".to_owned(),
            },
            Self::Suspend { suspend_reason: SuspendReason::Abuse } => {
                "everything is cut off, the data is kept".to_owned()
            }
            Self::Suspend { .. } => "the service stops, the data is kept".to_owned(),
            Self::Resume {} => match resource.suspend_reason {
                Some(reason) => format!("runs again; it was suspended for {reason}"),
                None => "runs again".to_owned(),
            },
        }
    }

    /// What will happen to so many boxes, and what it costs.
    fn effects(&self, resources: &[Resource]) -> Effects {
        let monthly: Usd = resources.iter().map(|one| one.price_cents).sum();
        let count = boxes(resources.len());
        let (will_happen, costs) = match self {
            Self::Hold { until } => (
                vec![
                    format!("Until {}, {count} will not be suspended or wiped, whatever the rules say.", date(*until)),
                    "Months go on being charged where the balance covers them.".to_owned(),
                ],
                format!("What nobody pays runs on: at most {monthly} a month."),
            ),
            Self::ReleaseHold {} => (
                vec![format!(
                    "{count} will not be held any more: what is unpaid may be suspended or wiped by the rules."
                )],
                format!("Nothing by itself; {monthly} a month depend on what the rules decide then."),
            ),
            Self::Suspend { suspend_reason } => (
                vec![
                    format!("{count} will be cut off at once, for {suspend_reason}; the data is kept."),
                    "Only an operator lifts it again.".to_owned(),
                ],
                format!("{monthly} a month are not charged meanwhile; at their providers they may go on costing."),
            ),
            Self::Resume {} => (
                vec![format!("{count} will run again, whatever the suspension was for.")],
                format!("Their owners' months go on: {monthly} a month."),
            ),
        };
        let reaches = resources
            .iter()
            .map(|one| Affected {
                user_id: one.user_id,
                resource_id: Some(one.id),
                label: one.label.clone(),
                change: self.words(one),
                amount_cents: one.price_cents,
            })
            .collect();
        Effects { will_happen, costs, reaches }
    }

    /// Whether it can be done to a box.
    fn check(&self, resource: &Resource, now: Time) -> Result<(), Problem> {
        let over = matches!(resource.status, Status::Terminating | Status::Terminated);
        match self {
            Self::Hold { .. } | Self::ReleaseHold {} if over => {
                Err(Problem::conflict(format!("the box is {} and cannot be held", resource.status)))
            }
            Self::Hold { .. } => Ok(()),
            Self::ReleaseHold {} if resource.hold_until.is_none_or(|until| until <= now) => {
                Err(Problem::conflict("the box is not held"))
            }
            Self::ReleaseHold {} => Ok(()),
            Self::Suspend { suspend_reason } => suspend_check(resource, *suspend_reason),
            Self::Resume {} => resume_check(resource),
        }
    }
}

/// What an approval holds of a mass action.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MassAction {
    /// The request's id: each box's hold or operation has one made of it.
    pub(crate) id: Uuid,
    pub(crate) change: Change,
    pub(crate) resource_ids: Vec<ResourceId>,
}

/// The same for many boxes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MassActionBody {
    /// What is done to each of them.
    pub(crate) change: Change,
    /// Which: at most 500.
    pub(crate) resource_ids: Vec<ResourceId>,
    /// Why.
    pub(crate) reason: String,
}

/// Boxes to which the same was done.
#[derive(Serialize, ToSchema)]
pub(crate) struct MassActionDone {
    /// What.
    change: Change,
    /// Which.
    resource_ids: Vec<ResourceId>,
}

/// Boxes that something can be done to, and those that it cannot, with why.
pub(crate) struct Sorted {
    pub(crate) can: Vec<Resource>,
    pub(crate) cannot: Vec<(ResourceId, String, String)>,
    /// What doing it comes to.
    pub(crate) effects: Effects,
    /// Whether a second person has to approve it.
    pub(crate) needs_approval: bool,
}

/// Sorts boxes by whether something can be done to them. Changes nothing.
///
/// # Errors
/// A problem if they are none or too many.
pub(crate) async fn sort(app: &App, change: &Change, ids: &[ResourceId]) -> Result<Sorted, Problem> {
    let ids: BTreeSet<ResourceId> = ids.iter().copied().collect();
    if ids.is_empty() || ids.len() > MAX_BOXES {
        return Err(Problem::bad_input(format!("choose 1 to {MAX_BOXES} boxes; nothing was done")));
    }
    let now = app.now();
    if matches!(change, Change::Hold { until } if *until <= now) {
        return Err(Problem::bad_input("`until` is in the past; nothing was done"));
    }
    let found = repository::resources_by_id(&app.pool, &ids.iter().copied().collect::<Vec<_>>()).await?;
    let mut cannot: Vec<_> = ids
        .iter()
        .filter(|id| found.iter().all(|one| one.id != **id))
        .map(|id| (*id, id.to_string(), "there is no such box".to_owned()))
        .collect();
    let mut can = Vec::new();
    for resource in found {
        match change.check(&resource, now) {
            Ok(()) => can.push(resource),
            Err(problem) => cannot.push((resource.id, resource.label.clone(), problem.detail)),
        }
    }
    let effects = change.effects(&can);
    Ok(Sorted { needs_approval: needs_approval(app, can.len()), effects, can, cannot })
}

/// Whether so many boxes at once are a mass action, which a second person has to approve.
fn needs_approval(app: &App, boxes: usize) -> bool {
    app.two_person_rule && boxes > usize::try_from(app.policy.blast_boxes).unwrap_or(usize::MAX)
}

fn refuse_some(cannot: &[(ResourceId, String, String)], of: usize) -> Problem {
    let first: Vec<String> = cannot.iter().take(5).map(|(id, label, why)| format!("'{label}' ({id}): {why}")).collect();
    let more = if cannot.len() > 5 { format!(", and {} more", cannot.len() - 5) } else { String::new() };
    Problem::conflict(format!(
        "{} of {of} boxes cannot be done that to: {}{more}. Nothing was done to any of them; leave these out",
        cannot.len(),
        first.join("; ")
    ))
}

/// Hold, release, suspend or bring back many boxes at once: all of them or none. More than 5 wait for a second person, where
/// the two-person rule is on.
#[utoipa::path(post, path = "/api/operator/mass-actions", tag = "operator", request_body = MassActionBody,
    responses((status = 200, body = MassActionDone), (status = 202, body = Approval, description = "It waits for a second person"),
    (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn begin(
    State(app): State<App>,
    operator: Operator,
    NewId(id): NewId,
    Body(body): Body<MassActionBody>,
) -> Result<Answer<MassActionDone>, Problem> {
    let cause = operator.cause(&body.reason)?;
    if let Some(answer) = approvals::asked_before(&app, id).await? {
        return Ok(answer);
    }
    let ids: BTreeSet<ResourceId> = body.resource_ids.iter().copied().collect();
    let action = MassAction { id, change: body.change, resource_ids: ids.into_iter().collect() };
    let done = || MassActionDone { change: action.change.clone(), resource_ids: action.resource_ids.clone() };
    if was_carried_out(&app, &action).await? {
        return Ok(Answer::Done(StatusCode::OK, done()));
    }
    let sorted = sort(&app, &action.change, &action.resource_ids).await?;
    if !sorted.cannot.is_empty() {
        return Err(refuse_some(&sorted.cannot, action.resource_ids.len()));
    }
    if sorted.needs_approval {
        let asked = Asked {
            summary: format!("{} {}", action.change.verb(), boxes(sorted.can.len())),
            effects: sorted.effects,
            subject: id.to_string(),
            request: Request::MassAction(action),
        };
        return approvals::ask(&app, id, asked, operator.principal.user_id, &cause).await;
    }
    let mut tx = app.pool.begin().await?;
    carry_out_in(&mut tx, &action, app.now(), &cause).await?;
    tx.commit().await?;
    Ok(Answer::Done(StatusCode::OK, done()))
}

/// Whether a request was carried out before its answer was lost: then its first box has what it made. A release makes nothing.
async fn was_carried_out(app: &App, action: &MassAction) -> Result<bool, Problem> {
    let Some(first) = action.resource_ids.first() else { return Ok(false) };
    Ok(repository::was_asked(&app.pool, part_of(action.id, &first.to_string())).await?)
}

/// Does it to every box, in the caller's transaction.
///
/// # Errors
/// A problem if it cannot be done to one of them any more.
pub(super) async fn carry_out_in(
    connection: &mut PgConnection,
    action: &MassAction,
    now: Time,
    cause: &Cause,
) -> Result<(), Problem> {
    if matches!(action.change, Change::Hold { until } if until <= now) {
        return Err(approvals::outdated("the hold would be over already"));
    }
    let found = repository::resources_by_id(&mut *connection, &action.resource_ids).await?;
    // In one order, so that two of these do not wait for each other.
    for user in found.iter().map(|one| one.user_id).collect::<BTreeSet<_>>() {
        repository::lock_account_in(connection, user).await?;
    }
    let resources = repository::resources_by_id(&mut *connection, &action.resource_ids).await?;
    let mut cannot = Vec::new();
    for resource in &resources {
        if let Err(problem) = action.change.check(resource, now) {
            cannot.push((resource.id, resource.label.clone(), problem.detail));
        }
    }
    if !cannot.is_empty() {
        return Err(refuse_some(&cannot, action.resource_ids.len()));
    }
    if resources.len() != action.resource_ids.len() {
        return Err(approvals::outdated("some of the boxes are not there any more"));
    }
    let reason = &cause.reason;
    for resource in &resources {
        let part = part_of(action.id, &resource.id.to_string());
        match &action.change {
            Change::Hold { until } => hold_in(connection, now, part, resource, Some(*until), cause).await?,
            Change::ReleaseHold {} => hold_in(connection, now, part, resource, None, cause).await?,
            Change::Suspend { suspend_reason } => {
                let why = format!("{suspend_reason}: {reason}");
                let attempt = AttemptId(part);
                reserves::request_in(connection, attempt, resource, Operation::Suspend, &why, now, cause).await?;
            }
            Change::Resume {} => {
                let why = format!("operator: {reason}");
                let attempt = AttemptId(part);
                reserves::request_in(connection, attempt, resource, Operation::Resume, &why, now, cause).await?;
            }
        }
    }
    Ok(())
}
