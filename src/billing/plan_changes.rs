//! Another plan for a box. One that costs as much or more is had at once, for the difference over the days that are left;
//! a cheaper one begins with the next month and gives no credit.

use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::{
    adjustments,
    ledger::{self, Reserve},
    rules,
};
use crate::{
    api::error::Problem,
    audit::events::Cause,
    clock::Time,
    ids::{AttemptId, PlanId, ResourceId, UserId},
    money::Usd,
    seedbox::{Plan, Resource, Status, lifecycle::TransitionError, operations, plans, repository},
};

/// The first word of the reason of a resize that is paid for now.
pub const UPGRADE: &str = "upgrade";

/// The first word of the reason of a resize that follows from a cheaper month.
pub const DOWNGRADE: &str = "downgrade";

/// What another plan costs a box, and from when.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PlanChange {
    /// The plan.
    pub plan_id: PlanId,
    /// Whether it is had at once; otherwise it begins with the next month.
    pub immediate: bool,
    /// From when.
    pub takes_effect_at: Time,
    /// What is taken from the balance now, in US cents: the difference of both plans for the whole days that are left of the
    /// month, from the next midnight UTC.
    pub pay_now_cents: Usd,
    /// What of that the balance does not cover, in US cents.
    pub short_by_cents: Usd,
    /// Price of a month from the next one on, in US cents.
    pub price_cents: Usd,
}

/// What a change to `plan` would cost a box now.
///
/// # Errors
/// A problem that says why the box cannot have this plan.
pub async fn quote(
    connection: &mut PgConnection,
    resource: &Resource,
    plan: PlanId,
    now: Time,
) -> Result<(PlanChange, Plan), Problem> {
    let status = resource.status;
    let (Status::Active, Some(provider), Some(anchor)) = (status, &resource.provider, resource.anchor_at) else {
        return Err(Problem::conflict(format!("the plan of an active box can be changed; this one is {status}")));
    };
    if resource.past_due_since.is_some() {
        return Err(Problem::conflict("this box is past due; pay in first, then change its plan"));
    }
    let plan = plans::find(&mut *connection, plan).await?;
    let plan = plan.filter(|plan| plan.on_sale || resource.plan_id == Some(plan.id)).ok_or_else(|| {
        Problem::bad_input("this plan is not on sale; GET /api/seedbox/plans lists those that are. Nothing was changed")
    })?;
    if plan.provider != *provider {
        return Err(Problem::conflict(
            "this plan is made by another provider, and data is not moved between providers; order a new box, move your \
             data, and end this one",
        ));
    }
    let present = match resource.plan_id {
        Some(present) => plans::find(&mut *connection, present).await?,
        None => None,
    };
    let place = |region: &Option<String>| region.clone().unwrap_or_else(|| "the provider's only region".to_owned());
    if let Some(present) = present.filter(|present| present.region != plan.region) {
        return Err(Problem::conflict(format!(
            "this plan is for {}, this box is in {}, and data is not moved between regions; order a new box, move your data, and              end this one. Nothing was changed",
            place(&plan.region),
            place(&present.region)
        )));
    }
    let charged = u32::try_from(resource.periods_charged).unwrap_or(0);
    let period =
        rules::Period { start: rules::due(anchor.0, charged.saturating_sub(1)), end: rules::due(anchor.0, charged) };
    if charged == 0 || now.0 >= period.end {
        return Err(Problem::conflict("a new month of this box is being charged just now; try again in a minute"));
    }
    let immediate = plan.price_cents >= resource.price_cents;
    let pay_now_cents = if immediate {
        rules::upgrade_price(resource.price_cents, plan.price_cents, &period, now.0)
    } else {
        Usd::ZERO
    };
    let available = ledger::balances(connection, resource.user_id).await?.available();
    let change = PlanChange {
        plan_id: plan.id,
        immediate,
        takes_effect_at: if immediate { now } else { Time(period.end) },
        pay_now_cents,
        short_by_cents: if pay_now_cents > available { pay_now_cents - available } else { Usd::ZERO },
        price_cents: plan.price_cents,
    };
    Ok((change, plan))
}

/// The key of what an upgrade set aside.
pub fn reserve(attempt: AttemptId, resource: &Resource) -> Reserve {
    Reserve { key: format!("resize:{attempt}"), user_id: resource.user_id, resource_id: resource.id, order_id: None }
}

/// Changes the plan of a box of `owner`, or asks for what that needs: a dearer plan is reserved whole or refused, and
/// resized to by a worker; a cheaper one is noted for the next month; the plan it has takes such a note back. Safe to
/// repeat with the same `attempt`.
///
/// # Errors
/// A problem that says why not; nothing was changed then.
pub async fn request_in(
    connection: &mut PgConnection,
    attempt: AttemptId,
    owner: UserId,
    id: ResourceId,
    plan: PlanId,
    at: Time,
    cause: &Cause,
) -> Result<(), Problem> {
    repository::lock_account_in(connection, owner).await?;
    if operations::find(&mut *connection, attempt).await?.is_some() {
        return Ok(());
    }
    let resource = repository::resource_of(&mut *connection, owner, id).await?;
    let resource = resource.ok_or_else(|| Problem::not_found("box"))?;
    let (change, plan) = quote(connection, &resource, plan, at).await?;
    if resource.plan_id == Some(plan.id) {
        if resource.next_plan_id.is_none() {
            return Err(Problem::conflict("this box has this plan already, and no other one is to follow it"));
        }
        plans::set_next_in(connection, &resource, None, at, cause).await?;
    } else if change.immediate {
        if adjustments::held_reason(&mut *connection, owner).await?.flatten().is_some() {
            return Err(Problem::conflict(
                "your balance is held by an operator and nothing can be bought from it; write to us. Nothing was changed",
            ));
        }
        let balances = ledger::balances(&mut *connection, owner).await?;
        let price = change.pay_now_cents;
        let parts = rules::split(price, balances.promotional_cents, balances.paid_cents).ok_or_else(|| {
            Problem::conflict(format!(
                "this plan costs {price} now and your balance is {} short of that; pay in and ask again. Nothing was changed",
                change.short_by_cents
            ))
        })?;
        let reason = format!("{UPGRADE}: {}", plan.name);
        if !operations::request_resize_in(connection, attempt, id, plan.id, &reason, at, cause).await? {
            return Err(Problem::conflict(
                "another change of this box's plan is being carried out; wait for it to end",
            ));
        }
        let words = format!("upgrade of {} to {}", resource.label, plan.name);
        ledger::reserve_in(connection, &reserve(attempt, &resource), &words, parts, at).await?;
    } else {
        if resource.ends_at_period_end {
            return Err(Problem::conflict("this box ends with its paid month; take that back first"));
        }
        plans::set_next_in(connection, &resource, Some(&plan), at, cause).await?;
    }
    repository::wake_account_in(connection, owner, at).await?;
    Ok(())
}

/// Begins the month of the plan that its owner chose for a box: its price is charged already, its size is asked for.
///
/// # Errors
/// Those of the database.
pub async fn take_next_in(connection: &mut PgConnection, id: ResourceId, at: Time) -> Result<(), TransitionError> {
    let Some(mut resource) = repository::resource(&mut *connection, id).await? else { return Ok(()) };
    let Some(next) = resource.next_plan_id else { return Ok(()) };
    let Some(plan) = plans::find(&mut *connection, next).await? else { return Ok(()) };
    let cause = Cause::system();
    plans::switch_in(connection, &mut resource, &plan, at, &cause).await?;
    let reason = format!("{DOWNGRADE}: {}", plan.name);
    operations::request_resize_in(connection, AttemptId::new(), id, plan.id, &reason, at, &cause).await?;
    Ok(())
}
