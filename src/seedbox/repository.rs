//! Every query on resources, plans and operations that is not a move of the lifecycle.

use serde_json::json;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::{Operation, Plan, Resource, lifecycle::TransitionError};
use crate::{
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::{AttemptId, PlanId, ResourceId, UserId},
    jobs::{self, Job},
    money::Usd,
};

/// A resource by its id.
///
/// # Errors
/// Those of the database.
pub async fn resource(executor: impl PgExecutor<'_>, id: ResourceId) -> sqlx::Result<Option<Resource>> {
    sqlx::query_as!(Resource, "select * from seedbox_resources where id = $1", id.0).fetch_optional(executor).await
}

/// A resource of this owner; somebody else's does not exist.
///
/// # Errors
/// Those of the database.
pub async fn resource_of(
    executor: impl PgExecutor<'_>,
    owner: UserId,
    id: ResourceId,
) -> sqlx::Result<Option<Resource>> {
    sqlx::query_as!(Resource, "select * from seedbox_resources where id = $1 and user_id = $2", id.0, owner.0)
        .fetch_optional(executor)
        .await
}

/// Every resource of an owner, newest first, at most 500.
///
/// # Errors
/// Those of the database.
pub async fn resources_of(executor: impl PgExecutor<'_>, owner: UserId) -> sqlx::Result<Vec<Resource>> {
    sqlx::query_as!(
        Resource,
        "select * from seedbox_resources where user_id = $1 order by created_at desc, id desc limit 500",
        owner.0
    )
    .fetch_all(executor)
    .await
}

/// The plans that can be ordered, cheapest first.
///
/// # Errors
/// Those of the database.
pub async fn plans_on_sale(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<Plan>> {
    sqlx::query_as!(
        Plan,
        "select id, code, version, name, description, price_cents, provider, size, disk_gb, on_sale
         from seedbox_plans where on_sale order by price_cents, code limit 200"
    )
    .fetch_all(executor)
    .await
}

/// A version of a plan.
///
/// # Errors
/// Those of the database.
pub async fn plan(executor: impl PgExecutor<'_>, id: PlanId) -> sqlx::Result<Option<Plan>> {
    sqlx::query_as!(
        Plan,
        "select id, code, version, name, description, price_cents, provider, size, disk_gb, on_sale
         from seedbox_plans where id = $1",
        id.0
    )
    .fetch_optional(executor)
    .await
}

/// What a new version of a plan holds.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the fields are those of Plan")]
pub struct NewPlan<'a> {
    pub code: &'a str,
    pub name: &'a str,
    pub description: &'a str,
    pub price: Usd,
    pub provider: &'a str,
    pub size: &'a str,
    pub disk_gb: i32,
}

/// Adds a version of a plan and takes the one before off sale. Boxes keep the price they were bought at.
///
/// # Errors
/// Those of the database.
pub async fn add_plan_version_in(connection: &mut PgConnection, at: Time, plan: &NewPlan<'_>) -> sqlx::Result<PlanId> {
    sqlx::query!("update seedbox_plans set on_sale = false where code = $1 and on_sale", plan.code)
        .execute(&mut *connection)
        .await?;
    let id = PlanId::new();
    sqlx::query!(
        "insert into seedbox_plans (id, code, version, name, description, price_cents, provider, size, disk_gb, created_at)
         select $1, $2, coalesce(max(version), 0) + 1, $3, $4, $5, $6, $7, $8, $9 from seedbox_plans where code = $2",
        id.0,
        plan.code,
        plan.name,
        plan.description,
        plan.price.cents(),
        plan.provider,
        plan.size,
        plan.disk_gb,
        at,
    )
    .execute(connection)
    .await?;
    Ok(id)
}

/// Writes the new price of a plan onto the boxes that were bought by it, to come into force once their owners have been
/// told for long enough; answers with the boxes whose owners have to be told.
///
/// # Errors
/// Those of the database.
pub async fn announce_price_in(connection: &mut PgConnection, code: &str, price: Usd) -> sqlx::Result<Vec<Resource>> {
    let ids = sqlx::query_scalar!(
        "update seedbox_resources r
         set next_price_cents = nullif($2, r.price_cents), next_price_notified_at = null, version = r.version + 1
         from seedbox_plans p
         where p.code = $1 and r.plan_id = p.id and r.status in ('pending', 'provisioning', 'active', 'suspended')
           and coalesce(r.next_price_cents, r.price_cents) <> $2
         returning r.id",
        code,
        price.cents(),
    )
    .fetch_all(&mut *connection)
    .await?;
    sqlx::query_as!(
        Resource,
        "select * from seedbox_resources where id = any($1) and next_price_cents is not null",
        &ids.iter().map(|id| id.0).collect::<Vec<_>>()
    )
    .fetch_all(connection)
    .await
}

/// Notes when the owner of a box was told of its new price, by the notice that told them: the time that counts.
///
/// # Errors
/// Those of the database.
pub async fn price_was_told(executor: impl PgExecutor<'_>, notice: Uuid, at: Time) -> sqlx::Result<()> {
    sqlx::query!(
        "update seedbox_resources r set next_price_notified_at = $2, version = r.version + 1
         from notices n
         where n.id = $1 and n.kind = 'price_change' and r.id = n.resource_id and r.next_price_notified_at is null
           and r.next_price_cents = (n.facts ->> 'price_cents')::bigint",
        notice,
        at,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// An operation asked of a provider: a row of `provision_attempts`.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct Attempt {
    pub id: AttemptId,
    pub resource_id: ResourceId,
    pub operation: Operation,
    pub reason: String,
    pub actor: String,
    pub status: String,
    pub tries: i32,
    pub last_error: Option<String>,
    pub arrears_cents: Usd,
    pub requested_at: Time,
    pub started_at: Option<Time>,
    pub finished_at: Option<Time>,
}

impl Attempt {
    /// Whether it still has to be carried out.
    pub fn is_open(&self) -> bool {
        matches!(self.status.as_str(), "requested" | "running")
    }
}

/// Asks for an operation: writes its row, its audit event and its job in the caller's transaction. False if the same operation is already
/// asked for, or this very attempt was, in which case nothing is written.
///
/// # Errors
/// Those of the database.
pub async fn request_operation_in(
    connection: &mut PgConnection,
    attempt: AttemptId,
    resource: ResourceId,
    operation: Operation,
    reason: &str,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<bool> {
    let inserted = sqlx::query_scalar!(
        "insert into provision_attempts (id, resource_id, operation, reason, actor, requested_at)
         values ($1, $2, $3, $4, $5, $6)
         on conflict do nothing
         returning id",
        attempt.0,
        resource.0,
        operation.as_str(),
        reason,
        cause.actor.to_string(),
        at,
    )
    .fetch_optional(&mut *connection)
    .await?;
    if inserted.is_none() {
        return Ok(false);
    }
    let event = Event {
        subject: Subject::Resource(resource),
        action: &format!("resource.{operation}_requested"),
        before: None,
        after: Some(json!({ "attempt_id": attempt, "reason": reason })),
    };
    events::record_in(&mut *connection, at, cause, event).await?;
    jobs::enqueue_in(connection, Job::Operate { attempt, resource }).await?;
    Ok(true)
}

/// An operation by its id.
///
/// # Errors
/// Those of the database.
pub async fn attempt(executor: impl PgExecutor<'_>, id: AttemptId) -> sqlx::Result<Option<Attempt>> {
    sqlx::query_as!(Attempt, "select * from provision_attempts where id = $1", id.0).fetch_optional(executor).await
}

/// The open operations of a resource, oldest first.
///
/// # Errors
/// Those of the database.
pub async fn open_attempts(executor: impl PgExecutor<'_>, resource: ResourceId) -> sqlx::Result<Vec<Attempt>> {
    sqlx::query_as!(
        Attempt,
        "select * from provision_attempts where resource_id = $1 and status in ('requested', 'running')
         order by requested_at, id limit 100",
        resource.0
    )
    .fetch_all(executor)
    .await
}

/// Notes that an operation is being tried once more; the number of this try.
///
/// # Errors
/// Those of the database.
pub async fn begin_try(executor: impl PgExecutor<'_>, id: AttemptId, at: Time) -> sqlx::Result<i32> {
    sqlx::query_scalar!(
        "update provision_attempts set status = 'running', tries = tries + 1, started_at = coalesce(started_at, $2)
         where id = $1 returning tries",
        id.0,
        at,
    )
    .fetch_one(executor)
    .await
}

/// Notes why a try did not succeed; it will be tried again.
///
/// # Errors
/// Those of the database.
pub async fn note_error(executor: impl PgExecutor<'_>, id: AttemptId, error: &str) -> sqlx::Result<()> {
    sqlx::query!("update provision_attempts set last_error = left($2, 2000) where id = $1", id.0, error)
        .execute(executor)
        .await?;
    Ok(())
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Done,
    /// Given up; an operator is told.
    Failed,
    /// No longer needed: the world moved on.
    Superseded,
}

/// Ends an operation, in the transaction that writes what came of it.
///
/// # Errors
/// Those of the database.
pub async fn finish_attempt_in(
    connection: &mut PgConnection,
    id: AttemptId,
    outcome: Outcome,
    error: Option<&str>,
    at: Time,
) -> sqlx::Result<()> {
    let status = match outcome {
        Outcome::Done => "done",
        Outcome::Failed => "failed",
        Outcome::Superseded => "superseded",
    };
    sqlx::query!(
        "update provision_attempts set status = $2, last_error = coalesce(left($3, 2000), last_error), finished_at = $4
         where id = $1 and status in ('requested', 'running')",
        id.0,
        status,
        error,
        at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Stores where the password of a resource is, before a provider hears of it. Fenced by the version.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn set_secret_in(
    connection: &mut PgConnection,
    resource: &mut Resource,
    secret_ref: &str,
) -> Result<(), TransitionError> {
    let row = sqlx::query!(
        "update seedbox_resources
         set secret_ref = $3, credentials_version = credentials_version + 1, version = version + 1
         where id = $1 and version = $2 returning version, credentials_version",
        resource.id.0,
        resource.version,
        secret_ref,
    )
    .fetch_optional(connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    resource.version = row.version;
    resource.credentials_version = row.credentials_version;
    resource.secret_ref = Some(secret_ref.to_owned());
    Ok(())
}

/// Marks the present password as shown to its owner. False if it already was: it is shown once.
///
/// # Errors
/// Those of the database.
pub async fn mark_credentials_shown_in(connection: &mut PgConnection, resource: &Resource) -> sqlx::Result<bool> {
    let marked = sqlx::query!(
        "update seedbox_resources set credentials_shown_version = credentials_version, version = version + 1
         where id = $1 and credentials_version = $2 and credentials_shown_version < credentials_version",
        resource.id.0,
        resource.credentials_version,
    )
    .execute(connection)
    .await?;
    Ok(marked.rows_affected() == 1)
}

/// Stops suspension and wipe of a resource until a time, whatever the workers want; `None` lifts it.
///
/// # Errors
/// Those of the database.
pub async fn set_hold_in(
    connection: &mut PgConnection,
    resource: ResourceId,
    until: Option<Time>,
    reason: &str,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update seedbox_resources set hold_until = $2, version = version + 1 where id = $1",
        resource.0,
        until as _
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("update holds set released_at = $2 where resource_id = $1 and released_at is null", resource.0, at)
        .execute(&mut *connection)
        .await?;
    if let Some(until) = until {
        sqlx::query!(
            "insert into holds (id, resource_id, reason, placed_by, placed_at, until) values ($1, $2, $3, $4, $5, $6)",
            Uuid::now_v7(),
            resource.0,
            reason,
            cause.actor.to_string(),
            at,
            until,
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Raises an alert for the operator, once while it is open.
///
/// # Errors
/// Those of the database.
pub async fn alert(
    executor: impl PgExecutor<'_>,
    kind: &str,
    subject: &str,
    detail: &str,
    at: Time,
) -> sqlx::Result<()> {
    tracing::warn!(kind, subject, detail, "operator alert");
    sqlx::query!(
        "insert into operator_alerts (id, kind, subject, detail, created_at) values ($1, $2, $3, left($4, 2000), $5)
         on conflict (kind, subject) where resolved_at is null do nothing",
        Uuid::now_v7(),
        kind,
        subject,
        detail,
        at,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// An open operator alert.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct Alert {
    /// What sort of thing needs a look.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// What happened.
    pub detail: String,
    /// Since when.
    pub created_at: Time,
}

/// Open alerts, newest first, at most 200.
///
/// # Errors
/// Those of the database.
pub async fn open_alerts(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<Alert>> {
    sqlx::query_as!(
        Alert,
        "select kind, subject, detail, created_at from operator_alerts where resolved_at is null
         order by created_at desc limit 200"
    )
    .fetch_all(executor)
    .await
}

/// Stores the provider's name of the machine as soon as it is known. Fenced by the version.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn set_resource_ref_in(
    connection: &mut PgConnection,
    resource: &mut Resource,
    resource_ref: &str,
) -> Result<(), TransitionError> {
    resource.version = sqlx::query_scalar!(
        "update seedbox_resources set resource_ref = $3, version = version + 1 where id = $1 and version = $2 returning version",
        resource.id.0,
        resource.version,
        resource_ref,
    )
    .fetch_optional(connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    resource.resource_ref = Some(resource_ref.to_owned());
    Ok(())
}

/// Starts the periods of a box anew from `at`, with the first one charged, and forgets what it owed.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn start_billing_in(
    connection: &mut PgConnection,
    resource: &mut Resource,
    at: Time,
    paid_until: Time,
) -> Result<(), TransitionError> {
    let row = sqlx::query!(
        "update seedbox_resources set
             anchor_at = $3, periods_charged = 1, charged_total = charged_total + 1, paid_until = $4, past_due_since = null,
             arrears_cents = 0, version = version + 1
         where id = $1 and version = $2 returning version, charged_total",
        resource.id.0,
        resource.version,
        at,
        paid_until,
    )
    .fetch_optional(connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    resource.version = row.version;
    resource.charged_total = row.charged_total;
    resource.periods_charged = 1;
    resource.anchor_at = Some(at);
    resource.paid_until = Some(paid_until);
    resource.past_due_since = None;
    resource.arrears_cents = Usd::ZERO;
    Ok(())
}

/// Starts the periods of a box anew from `at` with none charged: the next sweep charges the first.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn restart_periods_in(
    connection: &mut PgConnection,
    resource: &mut Resource,
    at: Time,
) -> Result<(), TransitionError> {
    resource.version = sqlx::query_scalar!(
        "update seedbox_resources set anchor_at = $3, periods_charged = 0, past_due_since = null, version = version + 1
         where id = $1 and version = $2 returning version",
        resource.id.0,
        resource.version,
        at,
    )
    .fetch_optional(connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    resource.anchor_at = Some(at);
    resource.periods_charged = 0;
    Ok(())
}

/// Writes what a suspended box owes for its days of grace; the ledger holds the same as a receivable.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn set_arrears_in(
    connection: &mut PgConnection,
    resource: &mut Resource,
    arrears: Usd,
) -> Result<(), TransitionError> {
    resource.version = sqlx::query_scalar!(
        "update seedbox_resources set arrears_cents = $3, version = version + 1
         where id = $1 and version = $2 returning version",
        resource.id.0,
        resource.version,
        arrears.cents(),
    )
    .fetch_optional(connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    resource.arrears_cents = arrears;
    Ok(())
}

/// Makes the billing sweep look at an account at once, in the transaction that gives it a reason to.
///
/// # Errors
/// Those of the database.
pub async fn wake_account_in(connection: &mut PgConnection, user: UserId, at: Time) -> sqlx::Result<()> {
    sqlx::query!(
        "update seedbox_billing_accounts set next_sweep_at = least(next_sweep_at, $2) where user_id = $1",
        user.0,
        at
    )
    .execute(&mut *connection)
    .await?;
    jobs::enqueue_in(connection, Job::SettleAccount(user)).await
}

/// After abuse: the unspent balance waits for an operator. It is never taken.
///
/// # Errors
/// Those of the database.
pub async fn hold_payout_in(connection: &mut PgConnection, user: UserId, reason: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "update seedbox_billing_accounts set payout_hold_reason = coalesce(payout_hold_reason, left($2, 500)) where user_id = $1",
        user.0,
        reason
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Lets a box end with its paid period, or takes that back.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn set_ends_at_period_end_in(
    connection: &mut PgConnection,
    resource: &Resource,
    ends: bool,
    at: Time,
    cause: &Cause,
) -> Result<(), TransitionError> {
    lock_account_in(connection, resource.user_id).await?;
    sqlx::query_scalar!(
        "update seedbox_resources set ends_at_period_end = $3, version = version + 1
         where id = $1 and version = $2 returning version",
        resource.id.0,
        resource.version,
        ends,
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    let event = Event {
        subject: Subject::Resource(resource.id),
        action: "resource.end_at_period_end_set",
        before: Some(json!({ "ends_at_period_end": resource.ends_at_period_end })),
        after: Some(json!({ "ends_at_period_end": ends })),
    };
    events::record_in(connection, at, cause, event).await?;
    wake_account_in(connection, resource.user_id, at).await?;
    Ok(())
}

/// Sets which box is charged first.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn set_priority_in(
    connection: &mut PgConnection,
    resource: &Resource,
    priority: i32,
    at: Time,
    cause: &Cause,
) -> Result<(), TransitionError> {
    lock_account_in(connection, resource.user_id).await?;
    sqlx::query_scalar!(
        "update seedbox_resources set priority = $3, version = version + 1
         where id = $1 and version = $2 returning version",
        resource.id.0,
        resource.version,
        priority,
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    let event = Event {
        subject: Subject::Resource(resource.id),
        action: "resource.priority_set",
        before: Some(json!({ "priority": resource.priority })),
        after: Some(json!({ "priority": priority })),
    };
    events::record_in(connection, at, cause, event).await?;
    wake_account_in(connection, resource.user_id, at).await?;
    Ok(())
}

/// Takes the row that everything moving this customer's money takes first, so that nobody waits for anybody in a circle.
///
/// # Errors
/// Those of the database.
pub async fn lock_account_in(connection: &mut PgConnection, user: UserId) -> sqlx::Result<()> {
    sqlx::query!("select 1 as one from seedbox_billing_accounts where user_id = $1 for update", user.0)
        .fetch_optional(connection)
        .await?;
    Ok(())
}

/// Marks an alert as dealt with. False if there is no such open alert.
///
/// # Errors
/// Those of the database.
pub async fn resolve_alert_in(
    connection: &mut PgConnection,
    kind: &str,
    subject: &str,
    at: Time,
) -> sqlx::Result<bool> {
    let resolved = sqlx::query!(
        "update operator_alerts set resolved_at = $3 where kind = $1 and subject = $2 and resolved_at is null",
        kind,
        subject,
        at
    )
    .execute(connection)
    .await?;
    Ok(resolved.rows_affected() > 0)
}

/// Notes that a period began that cannot be paid.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn set_past_due_in(
    connection: &mut PgConnection,
    resource: &Resource,
    since: Time,
    at: Time,
    cause: &Cause,
) -> Result<(), TransitionError> {
    sqlx::query_scalar!(
        "update seedbox_resources set past_due_since = $3, version = version + 1
         where id = $1 and version = $2 returning version",
        resource.id.0,
        resource.version,
        since,
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    let event = Event {
        subject: Subject::Resource(resource.id),
        action: "resource.past_due",
        before: None,
        after: Some(json!({ "past_due_since": since, "price_cents": resource.price_cents })),
    };
    events::record_in(connection, at, cause, event).await?;
    Ok(())
}

/// Writes on what terms a box comes back. Raises its version, so that an end decided on the old state is not carried out.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn set_resume_terms_in(
    connection: &mut PgConnection,
    attempt: AttemptId,
    resource: &Resource,
    arrears: Usd,
    price: Usd,
) -> Result<(), TransitionError> {
    sqlx::query!("update provision_attempts set arrears_cents = $2 where id = $1", attempt.0, arrears.cents())
        .execute(&mut *connection)
        .await?;
    sqlx::query_scalar!(
        "update seedbox_resources set
             price_cents = $3, version = version + 1,
             next_price_cents = case when next_price_cents = $3 then null else next_price_cents end,
             next_price_notified_at = case when next_price_cents = $3 then null else next_price_notified_at end
         where id = $1 and version = $2 returning version",
        resource.id.0,
        resource.version,
        price.cents(),
    )
    .fetch_optional(connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    Ok(())
}
