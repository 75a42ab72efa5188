//! Orders: where money meets boxes. An order is paid from the balance, whole or not at all; only then is there a resource.

use jiff::SignedDuration;
use serde::Serialize;
use serde_json::json;
use sqlx::{PgConnection, PgExecutor, PgPool};
use utoipa::ToSchema;

use crate::{
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::{AttemptId, OrderId, PlanId, ResourceId, UserId},
    money::Usd,
    seedbox::{Unavailable, plans, words},
};

/// How long an order can be paid for.
pub const ORDER_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 7);

/// How many orders of one customer can wait for payment at once.
pub const MAX_AWAITING_ORDERS: i64 = 20;

words! {
    /// The life of an order. No resource exists before `paid`.
    OrderStatus {
        /// Placed; the balance does not cover it yet.
        AwaitingPayment = "awaiting_payment",
        /// The price is reserved and a box is being made.
        Paid = "paid",
        /// The box is active.
        Fulfilled = "fulfilled",
        /// Nobody paid in time.
        Expired = "expired",
        /// Called off, or the box could not be made and the price was given back.
        Cancelled = "cancelled",
    }
}

/// An order.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Order {
    /// Its id.
    pub id: OrderId,
    #[serde(skip)]
    #[schema(ignore)]
    /// Who placed it.
    pub user_id: UserId,
    /// The version of the plan.
    pub plan_id: PlanId,
    /// The price of a month, in US cents, as it was when the order was placed.
    pub price_cents: Usd,
    /// Where it stands.
    pub status: OrderStatus,
    /// When it was placed.
    pub created_at: Time,
    /// Until when it can be paid.
    pub expires_at: Time,
    /// When it was paid.
    pub paid_at: Option<Time>,
    /// When the box became active.
    pub fulfilled_at: Option<Time>,
    /// Why it was closed without a box.
    pub close_reason: Option<String>,
    /// The box, once it is paid for.
    pub resource_id: Option<ResourceId>,
}

/// Why an order could not be placed or changed; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// No such plan, or it is not on sale.
    #[error("this plan is not on sale; GET /api/seedbox/plans lists those that are")]
    PlanNotOnSale,
    /// Too many unpaid orders.
    #[error("{MAX_AWAITING_ORDERS} orders wait for payment already; pay or cancel one first")]
    TooMany,
    /// The balance is held after abuse.
    #[error("your balance is held by an operator and nothing can be bought from it; write to us. Nothing was ordered")]
    Held,
    /// No box of this plan can be made now.
    #[error("no boxes of this plan can be made right now: {}. Nothing was ordered and nothing was charged; take another plan, or try again later", .0.words())]
    Unavailable(Unavailable),
    /// It is past the point where that can be done.
    #[error("an order that is {0} cannot be cancelled; end the box instead")]
    NotCancellable(OrderStatus),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// An order of this customer; somebody else's does not exist.
///
/// # Errors
/// Those of the database.
pub async fn order_of(executor: impl PgExecutor<'_>, owner: UserId, id: OrderId) -> sqlx::Result<Option<Order>> {
    sqlx::query_as!(
        Order,
        r#"select o.id, o.user_id, o.plan_id, o.price_cents, o.status as "status: OrderStatus", o.created_at, o.expires_at,
               o.paid_at, o.fulfilled_at, o.close_reason, r.id as "resource_id?: ResourceId"
           from seedbox_orders o left join seedbox_resources r on r.order_id = o.id
           where o.id = $1 and o.user_id = $2"#,
        id.0,
        owner.0
    )
    .fetch_optional(executor)
    .await
}

/// Orders of this customer, newest first, at most 200.
///
/// # Errors
/// Those of the database.
pub async fn orders_of(executor: impl PgExecutor<'_>, owner: UserId) -> sqlx::Result<Vec<Order>> {
    sqlx::query_as!(
        Order,
        r#"select o.id, o.user_id, o.plan_id, o.price_cents, o.status as "status: OrderStatus", o.created_at, o.expires_at,
               o.paid_at, o.fulfilled_at, o.close_reason, r.id as "resource_id?: ResourceId"
           from seedbox_orders o left join seedbox_resources r on r.order_id = o.id
           where o.user_id = $1 order by o.created_at desc, o.id desc limit 200"#,
        owner.0
    )
    .fetch_all(executor)
    .await
}

/// Places an order at the plan's present price and pays it at once if the balance covers it. Safe to repeat with its id.
///
/// # Errors
/// [`OrderError`].
pub async fn place(
    pool: &PgPool,
    id: OrderId,
    user: UserId,
    plan: PlanId,
    at: Time,
    cause: &Cause,
) -> Result<Order, OrderError> {
    if let Some(placed) = order_of(pool, user, id).await? {
        return Ok(placed);
    }
    let plan = plans::find(pool, plan).await?.filter(|plan| plan.on_sale).ok_or(OrderError::PlanNotOnSale)?;
    if let Some(why) = plan.unavailable {
        return Err(OrderError::Unavailable(why));
    }
    let mut tx = pool.begin().await?;
    let placed = sqlx::query!(
        "insert into seedbox_orders (id, user_id, plan_id, price_cents, created_at, expires_at)
         select $1, $2, $3, $4, $5, $6
         where (select count(*) from seedbox_orders where user_id = $2 and status = 'awaiting_payment') < $7
         on conflict (id) do nothing",
        id.0,
        user.0,
        plan.id.0,
        plan.price_cents.cents(),
        at,
        Time(at.0 + ORDER_LIFETIME),
        MAX_AWAITING_ORDERS,
    )
    .execute(&mut *tx)
    .await?;
    if placed.rows_affected() == 0 {
        drop(tx);
        // The same order sent twice at once: the other one has placed it.
        return order_of(pool, user, id).await?.ok_or(OrderError::TooMany);
    }
    let after = Some(
        json!({ "status": "awaiting_payment", "plan_id": plan.id, "price_cents": plan.price_cents, "user_id": user }),
    );
    let event = Event { subject: Subject::Order(id), action: "order.placed", before: None, after };
    events::record_in(&mut tx, at, cause, event).await?;
    // In one transaction, so that no crash leaves an order waiting for money that is there.
    match pay(&mut *tx, id, at, cause).await? {
        Payment::Held => return Err(OrderError::Held),
        Payment::Unavailable => {
            let why = plans::find(&mut *tx, plan.id).await?.and_then(|plan| plan.unavailable);
            return Err(OrderError::Unavailable(why.unwrap_or(Unavailable::AccessRefused)));
        }
        _ => {}
    }
    tx.commit().await?;
    Ok(order_of(pool, user, id).await?.expect("the order was just written"))
}

/// What came of trying to pay an order from the balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payment {
    /// Reserved; a box is being made.
    Paid,
    /// The balance does not cover it.
    Short,
    /// The balance is held after abuse: nothing is bought from it.
    Held,
    /// No box can be made of its plan now: it waits, and its price stays on the balance.
    Unavailable,
    /// It can no longer be paid.
    Expired,
    /// It was paid, cancelled or closed before.
    NotAwaiting,
}

/// Pays an order from the balance, whole or not at all, in one statement: reserve, order, resource, audit and job.
///
/// # Errors
/// Those of the database.
pub async fn pay(executor: impl PgExecutor<'_>, order: OrderId, at: Time, cause: &Cause) -> sqlx::Result<Payment> {
    let outcome = sqlx::query_scalar!(
        r#"select order_pay($1, $2, $3, $4, $5, $6) as "outcome!""#,
        order.0,
        ResourceId::new().0,
        AttemptId::new().0,
        at,
        cause.actor.to_string(),
        cause.request_id,
    )
    .fetch_one(executor)
    .await?;
    Ok(match outcome.as_str() {
        "paid" => Payment::Paid,
        "short" => Payment::Short,
        "held" => Payment::Held,
        "unavailable" => Payment::Unavailable,
        "expired" => Payment::Expired,
        _ => Payment::NotAwaiting,
    })
}

/// Pays what waits for payment, oldest first, for as long as the balance covers it whole; what it does not is skipped.
///
/// # Errors
/// Those of the database.
pub async fn pay_awaiting(pool: &PgPool, user: UserId, at: Time) -> sqlx::Result<usize> {
    let awaiting = sqlx::query_scalar!(
        "select id from seedbox_orders where user_id = $1 and status = 'awaiting_payment' and expires_at > $2
         order by created_at, id limit 20",
        user.0,
        at
    )
    .fetch_all(pool)
    .await?;
    let mut paid = 0;
    for order in awaiting {
        if pay(pool, order, at, &Cause::system()).await? == Payment::Paid {
            paid += 1;
        }
    }
    Ok(paid)
}

/// Calls off an order that is not paid. One that is paid is ended through its box.
///
/// # Errors
/// [`OrderError`].
pub async fn cancel(pool: &PgPool, order: &Order, at: Time, cause: &Cause) -> Result<(), OrderError> {
    let mut tx = pool.begin().await?;
    let closed = close_in(
        &mut tx,
        order.id,
        OrderStatus::AwaitingPayment,
        OrderStatus::Cancelled,
        "cancelled by the buyer",
        at,
        cause,
    )
    .await?;
    if !closed {
        return Err(OrderError::NotCancellable(order.status));
    }
    tx.commit().await?;
    Ok(())
}

/// Closes an order that is in status `from`. False if it is not.
///
/// # Errors
/// Those of the database.
pub async fn close_in(
    connection: &mut PgConnection,
    order: OrderId,
    from: OrderStatus,
    to: OrderStatus,
    reason: &str,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<bool> {
    let closed = sqlx::query!(
        "update seedbox_orders set status = $3, closed_at = $4, close_reason = $5 where id = $1 and status = $2",
        order.0,
        from.as_str(),
        to.as_str(),
        at,
        reason,
    )
    .execute(&mut *connection)
    .await?;
    if closed.rows_affected() == 0 {
        return Ok(false);
    }
    let action = format!("order.{to}");
    let event = Event {
        subject: Subject::Order(order),
        action: &action,
        before: Some(json!({ "status": from })),
        after: Some(json!({ "status": to, "reason": reason })),
    };
    events::record_in(connection, at, cause, event).await?;
    Ok(true)
}

/// Marks an order fulfilled, in the transaction that makes its box active.
///
/// # Errors
/// Those of the database.
pub async fn fulfil_in(connection: &mut PgConnection, order: OrderId, at: Time, cause: &Cause) -> sqlx::Result<()> {
    let fulfilled = sqlx::query!(
        "update seedbox_orders set status = 'fulfilled', fulfilled_at = $2 where id = $1 and status = 'paid'",
        order.0,
        at
    )
    .execute(&mut *connection)
    .await?;
    if fulfilled.rows_affected() == 1 {
        let event = Event {
            subject: Subject::Order(order),
            action: "order.fulfilled",
            before: Some(json!({ "status": "paid" })),
            after: Some(json!({ "status": "fulfilled" })),
        };
        events::record_in(connection, at, cause, event).await?;
    }
    Ok(())
}

/// Closes the orders nobody paid in time, at most 500 a call; how many.
///
/// # Errors
/// Those of the database.
pub async fn expire(pool: &PgPool, at: Time) -> sqlx::Result<usize> {
    let due = sqlx::query_scalar!(
        "select id from seedbox_orders where status = 'awaiting_payment' and expires_at <= $1 order by expires_at limit 500",
        at
    )
    .fetch_all(pool)
    .await?;
    let mut expired = 0;
    for order in due {
        let mut tx = pool.begin().await?;
        if close_in(
            &mut tx,
            order,
            OrderStatus::AwaitingPayment,
            OrderStatus::Expired,
            "not paid in time",
            at,
            &Cause::system(),
        )
        .await?
        {
            tx.commit().await?;
            expired += 1;
        }
    }
    Ok(expired)
}
