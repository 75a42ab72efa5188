//! Plans: versioned, priced in US dollars. A box keeps the version it was bought by.

use serde_json::json;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::{Plan, Resource, Unavailable, lifecycle::TransitionError};
use crate::{
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::{PlanId, ResourceId},
    money::Usd,
};

/// The plans that can be ordered, cheapest first.
///
/// # Errors
/// Those of the database.
pub async fn on_sale(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<Plan>> {
    sqlx::query_as!(
        Plan,
        r#"select id, code, version, name, description, price_cents, provider, size, region, disk_gb, on_sale,
               seedbox_unavailable(provider, region) as "unavailable: Unavailable"
           from seedbox_plans where on_sale order by price_cents, code limit 200"#
    )
    .fetch_all(executor)
    .await
}

/// Whether there ever was a plan of this code.
///
/// # Errors
/// Those of the database.
pub async fn is_known(executor: impl PgExecutor<'_>, code: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"select exists (select from seedbox_plans where code = $1) as "known!""#, code)
        .fetch_one(executor)
        .await
}

/// A version of a plan.
///
/// # Errors
/// Those of the database.
pub async fn find(executor: impl PgExecutor<'_>, id: PlanId) -> sqlx::Result<Option<Plan>> {
    sqlx::query_as!(
        Plan,
        r#"select id, code, version, name, description, price_cents, provider, size, region, disk_gb, on_sale,
               seedbox_unavailable(provider, region) as "unavailable: Unavailable"
           from seedbox_plans where id = $1"#,
        id.0
    )
    .fetch_optional(executor)
    .await
}

/// Makes `plan` the plan of a box, with its price, and takes every change to come off it.
/// A box that goes by its plan's name goes by the new one's.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn switch_in(
    connection: &mut PgConnection,
    resource: &mut Resource,
    plan: &Plan,
    at: Time,
    cause: &Cause,
) -> Result<(), TransitionError> {
    let (before_plan, before_price) = (resource.plan_id, resource.price_cents);
    let row = sqlx::query!(
        "update seedbox_resources r set
             plan_id = $3, price_cents = $4, next_plan_id = null, next_plan_price_cents = null, next_price_cents = null,
             next_price_notified_at = null, version = version + 1,
             label = case when label = (select name from seedbox_plans where id = r.plan_id) then $5 else label end
         where id = $1 and version = $2 returning version, label",
        resource.id.0,
        resource.version,
        plan.id.0,
        plan.price_cents.cents(),
        plan.name,
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    resource.version = row.version;
    resource.label = row.label;
    resource.plan_id = Some(plan.id);
    resource.price_cents = plan.price_cents;
    (resource.next_plan_id, resource.next_plan_price_cents) = (None, None);
    (resource.next_price_cents, resource.next_price_notified_at) = (None, None);
    let event = Event {
        subject: Subject::Resource(resource.id),
        action: "resource.plan_changed",
        before: Some(json!({ "plan_id": before_plan, "price_cents": before_price })),
        after: Some(json!({ "plan_id": plan.id, "price_cents": plan.price_cents, "label": resource.label })),
    };
    events::record_in(connection, at, cause, event).await?;
    Ok(())
}

/// Writes which plan a box has from its next month on; `None` takes that back.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn set_next_in(
    connection: &mut PgConnection,
    resource: &Resource,
    next: Option<&Plan>,
    at: Time,
    cause: &Cause,
) -> Result<(), TransitionError> {
    sqlx::query_scalar!(
        "update seedbox_resources set next_plan_id = $3, next_plan_price_cents = $4, version = version + 1
         where id = $1 and version = $2 returning version",
        resource.id.0,
        resource.version,
        next.map(|plan| plan.id.0),
        next.map(|plan| plan.price_cents.cents()),
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    let event = Event {
        subject: Subject::Resource(resource.id),
        action: "resource.next_plan_set",
        before: Some(json!({ "next_plan_id": resource.next_plan_id })),
        after: Some(json!({ "next_plan_id": next.map(|plan| plan.id) })),
    };
    events::record_in(connection, at, cause, event).await?;
    Ok(())
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
    pub region: Option<&'a str>,
    pub disk_gb: i32,
}

/// Adds a version of a plan and takes the one before off sale. Boxes keep the price they were bought at.
///
/// # Errors
/// Those of the database.
pub async fn add_version_in(
    connection: &mut PgConnection,
    id: PlanId,
    at: Time,
    plan: &NewPlan<'_>,
) -> sqlx::Result<PlanId> {
    sqlx::query!("update seedbox_plans set on_sale = false where code = $1 and on_sale", plan.code)
        .execute(&mut *connection)
        .await?;
    sqlx::query!(
        "insert into seedbox_plans (id, code, version, name, description, price_cents, provider, size, region, disk_gb, created_at)
         select $1, $2, coalesce(max(version), 0) + 1, $3, $4, $5, $6, $7, $8, $9, $10 from seedbox_plans where code = $2",
        id.0,
        plan.code,
        plan.name,
        plan.description,
        plan.price.cents(),
        plan.provider,
        plan.size,
        plan.region,
        plan.disk_gb,
        at,
    )
    .execute(connection)
    .await?;
    Ok(id)
}

/// The boxes that a new price of a plan would reach.
///
/// # Errors
/// Those of the database.
pub async fn reached_by_price(executor: impl PgExecutor<'_>, code: &str, price: Usd) -> sqlx::Result<Vec<Resource>> {
    sqlx::query_as!(
        Resource,
        "select r.* from seedbox_resources r join seedbox_plans p on p.id = r.plan_id
         where p.code = $1 and r.status in ('pending', 'provisioning', 'active', 'suspended')
           and coalesce(r.next_price_cents, r.price_cents) <> $2
         order by r.id",
        code,
        price.cents(),
    )
    .fetch_all(executor)
    .await
}

/// The version of a plan that is on sale.
///
/// # Errors
/// Those of the database.
pub async fn version_on_sale(executor: impl PgExecutor<'_>, code: &str) -> sqlx::Result<Option<i32>> {
    sqlx::query_scalar!("select version from seedbox_plans where code = $1 and on_sale", code)
        .fetch_optional(executor)
        .await
}

/// Writes the new price of a plan onto the boxes that were bought by it, or those of them that are named, to come into force once
/// their owners have been told for long enough; answers with the boxes whose owners have to be told.
///
/// # Errors
/// Those of the database.
pub async fn announce_price_in(
    connection: &mut PgConnection,
    code: &str,
    price: Usd,
    only: Option<&[ResourceId]>,
) -> sqlx::Result<Vec<Resource>> {
    let only: Option<Vec<Uuid>> = only.map(|ids| ids.iter().map(|id| id.0).collect());
    let ids = sqlx::query_scalar!(
        "update seedbox_resources r
         set next_price_cents = nullif($2, r.price_cents), next_price_notified_at = null, version = r.version + 1
         from seedbox_plans p
         where p.code = $1 and r.plan_id = p.id and r.status in ('pending', 'provisioning', 'active', 'suspended')
           and coalesce(r.next_price_cents, r.price_cents) <> $2 and ($3::uuid[] is null or r.id = any($3))
         returning r.id",
        code,
        price.cents(),
        only.as_deref(),
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
