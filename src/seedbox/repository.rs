//! Every query on resources that is not a move of the lifecycle.

use std::collections::HashMap;

use serde_json::json;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::{Resource, lifecycle::TransitionError};
use crate::{
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::{AttemptId, ResourceId, UserId},
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

/// Those of these resources that there are, by id.
///
/// # Errors
/// Those of the database.
pub async fn resources_by_id(executor: impl PgExecutor<'_>, ids: &[ResourceId]) -> sqlx::Result<Vec<Resource>> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    sqlx::query_as!(Resource, "select * from seedbox_resources where id = any($1) order by id", &ids)
        .fetch_all(executor)
        .await
}

/// Whether a hold or an operation has this id.
///
/// # Errors
/// Those of the database.
pub async fn was_asked(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from holds where id = $1) or exists (select from provision_attempts where id = $1) as "asked!""#,
        id
    )
    .fetch_one(executor)
    .await
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

/// How many boxes a provider has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct BoxCounts {
    /// Boxes that run.
    pub active: i64,
    /// Boxes that are suspended.
    pub suspended: i64,
    /// Boxes that are being made or ended, or could not be made.
    pub others: i64,
}

/// How many boxes that have not ended each provider has.
///
/// # Errors
/// Those of the database.
pub async fn count_by_provider(executor: impl PgExecutor<'_>) -> sqlx::Result<HashMap<String, BoxCounts>> {
    let rows = sqlx::query!(
        r#"select provider as "provider!",
               count(*) filter (where status = 'active') as "active!",
               count(*) filter (where status = 'suspended') as "suspended!",
               count(*) filter (where status not in ('active', 'suspended')) as "others!"
           from seedbox_resources where provider is not null and status <> 'terminated' group by provider"#
    )
    .fetch_all(executor)
    .await?;
    let counts = rows
        .into_iter()
        .map(|row| (row.provider, BoxCounts { active: row.active, suspended: row.suspended, others: row.others }));
    Ok(counts.collect())
}

/// Has orders that wait for boxes of a provider looked at again, because boxes can be made there again.
///
/// # Errors
/// Those of the database.
pub async fn wake_waiting_orders_in(connection: &mut PgConnection, provider: &str) -> sqlx::Result<()> {
    let buyers = sqlx::query_scalar!(
        r#"select distinct o.user_id as "user_id: UserId" from seedbox_orders o join seedbox_plans p on p.id = o.plan_id
           where o.status = 'awaiting_payment' and p.provider = $1 limit 1000"#,
        provider
    )
    .fetch_all(&mut *connection)
    .await?;
    for buyer in buyers {
        jobs::enqueue_in(connection, Job::SettleAccount(buyer)).await?;
    }
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

/// Stops suspension and wipe of a resource until a time, whatever the workers want; `None` lifts it. False if the hold with
/// this id was placed before, in which case nothing is written.
///
/// # Errors
/// Those of the database.
pub async fn set_hold_in(
    connection: &mut PgConnection,
    id: Uuid,
    resource: ResourceId,
    until: Option<Time>,
    reason: &str,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<bool> {
    let placed = sqlx::query_scalar!(r#"select exists (select from holds where id = $1) as "placed!""#, id)
        .fetch_one(&mut *connection)
        .await?;
    if placed {
        return Ok(false);
    }
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
            id,
            resource.0,
            reason,
            cause.actor.to_string(),
            at,
            until,
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(true)
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
             lapse_number = lapse_number + 1, arrears_cents = 0, version = version + 1
         where id = $1 and version = $2 returning version, charged_total, lapse_number",
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
    resource.lapse_number = row.lapse_number;
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
    let row = sqlx::query!(
        "update seedbox_resources set
             anchor_at = $3, periods_charged = 0, past_due_since = null, lapse_number = lapse_number + 1, version = version + 1
         where id = $1 and version = $2 returning version, lapse_number",
        resource.id.0,
        resource.version,
        at,
    )
    .fetch_optional(connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    resource.version = row.version;
    resource.lapse_number = row.lapse_number;
    resource.past_due_since = None;
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

/// Notes that a period began that cannot be paid.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn set_past_due_in(
    connection: &mut PgConnection,
    resource: &mut Resource,
    since: Time,
    at: Time,
    cause: &Cause,
) -> Result<(), TransitionError> {
    resource.version = sqlx::query_scalar!(
        "update seedbox_resources set past_due_since = $3, version = version + 1
         where id = $1 and version = $2 returning version",
        resource.id.0,
        resource.version,
        since,
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    resource.past_due_since = Some(since);
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
    resource: &mut Resource,
    arrears: Usd,
    price: Usd,
) -> Result<(), TransitionError> {
    sqlx::query!("update provision_attempts set arrears_cents = $2 where id = $1", attempt.0, arrears.cents())
        .execute(&mut *connection)
        .await?;
    resource.version = sqlx::query_scalar!(
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
