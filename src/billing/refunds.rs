//! Giving money back: what the end of a box returns, and what an operator decides.

use serde_json::json;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{
    ledger::{self, Account, Transfer, TransferKind},
    rules::{self, Policy},
};
use crate::{
    api::error::Problem,
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::UserId,
    money::Usd,
    seedbox::{Resource, SuspendReason, lifecycle::TransitionError, repository},
};

/// Books what the end of a box returns to its owner's balance, in the transaction that ends it: a prorated refund of the
/// running period in the first days, always when we or the upstream are at fault, never after abuse or for non-payment.
///
/// # Errors
/// Those of the database.
pub async fn on_end_in(
    connection: &mut PgConnection,
    resource: &Resource,
    reason: &str,
    at: Time,
    cause: &Cause,
    policy: &Policy,
) -> sqlx::Result<Usd> {
    let Some((charge, refund)) = on_end(connection, resource, reason, at, policy).await? else { return Ok(Usd::ZERO) };
    if refund.is_positive() {
        let key = format!("refund:{}:{}", charge.key, charge.refunds);
        book_in(connection, resource, &charge, refund, &key, &format!("the box ended ({reason})"), at).await?;
        tracing::info!(resource = %resource.id, %refund, actor = %cause.actor, "refunded at the end of a box");
    }
    Ok(refund)
}

/// What goes back to its owner's balance if they end a box now. Books nothing.
///
/// # Errors
/// Those of the database.
pub async fn preview_of_end(pool: &PgPool, resource: &Resource, at: Time, policy: &Policy) -> sqlx::Result<Usd> {
    let mut connection = pool.acquire().await?;
    let found = on_end(&mut connection, resource, "user", at, policy).await?;
    Ok(found.map_or(Usd::ZERO, |(_, refund)| refund))
}

/// The running period's charge, and what of it goes back if the box ends at a time for a reason.
async fn on_end(
    connection: &mut PgConnection,
    resource: &Resource,
    reason: &str,
    at: Time,
    policy: &Policy,
) -> sqlx::Result<Option<(Charged, Usd)>> {
    let Some(charge) = charge(connection, resource, resource.charged_total - 1).await? else { return Ok(None) };
    let Some(activated_at) = resource.activated_at else { return Ok(None) };
    let Some(mut end) = rules::EndReason::from_word(reason) else { return Ok(None) };
    // A box that the upstream cut off was not served since, whoever ends it now.
    let mut served_until = at;
    if resource.suspend_reason == Some(SuspendReason::Upstream) && end != rules::EndReason::Abuse {
        end = rules::EndReason::Fault;
        served_until = resource.suspended_at.unwrap_or(at).min(at);
    }
    let period = rules::Period { start: charge.period.0.0, end: charge.period.1.0 };
    let left = rules::refundable(charge.amount, charge.refunded);
    let price = rules::refundable(resource.price_cents, charge.refunded);
    let refund = rules::refund_on_end(price, &period, activated_at.0, served_until.0, end, policy).min(left);
    Ok(Some((charge, refund)))
}

/// Writes off what a box owes for its days of grace.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn write_off_arrears_in(
    connection: &mut PgConnection,
    resource: &mut Resource,
    why: &str,
    at: Time,
) -> Result<(), TransitionError> {
    if resource.arrears_cents.is_positive() {
        let owed = arrears(resource, Account::WrittenOff, resource.arrears_cents, TransferKind::ArrearsWrittenOff, why);
        ledger::book_in(connection, &[Transfer { idempotency_key: lapse_key("written_off", resource), ..owed }], at)
            .await?;
        repository::set_arrears_in(connection, resource, Usd::ZERO).await?;
    }
    Ok(())
}

/// Closes what a box owes for its days of grace when its months start anew by an operator's decision: out of the balance
/// where that covers it whole, written off otherwise.
///
/// # Errors
/// [`TransitionError::Stale`] if somebody else wrote first.
pub async fn close_arrears_in(
    connection: &mut PgConnection,
    resource: &mut Resource,
    at: Time,
) -> Result<(), TransitionError> {
    let user = resource.user_id;
    let balances = ledger::balances(&mut *connection, user).await?;
    let parts = rules::split(resource.arrears_cents, balances.promotional_cents, balances.paid_cents);
    let Some((from_promotional, from_paid)) = parts.filter(|_| resource.arrears_cents.is_positive()) else {
        return write_off_arrears_in(connection, resource, "its months start anew", at).await;
    };
    let key = lapse_key("arrears_paid", resource);
    let transfers: Vec<Transfer> =
        [(Account::Promotional(user), from_promotional, "promotional"), (Account::Paid(user), from_paid, "paid")]
            .into_iter()
            .filter(|(_, amount, _)| amount.is_positive())
            .map(|(debit, amount, part)| Transfer {
                idempotency_key: format!("{key}:{part}"),
                ..arrears(resource, debit, amount, TransferKind::ArrearsPaid, "days of grace")
            })
            .collect();
    ledger::book_in(connection, &transfers, at).await?;
    repository::set_arrears_in(connection, resource, Usd::ZERO).await
}

fn lapse_key(what: &str, resource: &Resource) -> String {
    format!("{what}:{}:{}", resource.id, resource.lapse_number)
}

/// What a box owes, or a part of it, paid from `debit`.
fn arrears(resource: &Resource, debit: Account, amount: Usd, kind: TransferKind, why: &str) -> Transfer {
    Transfer {
        debit,
        credit: Account::Receivable(resource.id),
        amount,
        kind,
        idempotency_key: String::new(),
        cause: why.to_owned(),
        user_id: resource.user_id,
        resource_id: Some(resource.id),
        order_id: None,
        period: None,
    }
}

/// Gives back a part of a charge by an operator's decision: the `n`th of the box, from 0, or its last. The refunds of a
/// charge never add up to more than it. Safe to repeat with its id: what was booked under it stays the only one, also when
/// the box has been charged again in between.
///
/// # Errors
/// A problem that says how much can be refunded; nothing was booked then.
pub async fn refund_in(
    connection: &mut PgConnection,
    id: Uuid,
    resource: &Resource,
    n: Option<i32>,
    amount: Usd,
    at: Time,
    cause: &Cause,
) -> Result<(), Problem> {
    repository::lock_account_in(connection, resource.user_id).await?;
    let key = format!("refund:{id}");
    let booked = sqlx::query_scalar!(
        r#"select exists (select from ledger_transfers
               where idempotency_key in ($1 || ':paid', $1 || ':promotional')) as "booked!""#,
        key
    )
    .fetch_one(&mut *connection)
    .await?;
    if booked {
        return Ok(());
    }
    let n = n.unwrap_or(resource.charged_total - 1);
    let Some(charge) = charge(connection, resource, n).await? else {
        return Err(Problem::bad_input(format!(
            "this box has no charge {n}; its charges are 0 to {}. Nothing was refunded",
            resource.charged_total - 1
        )));
    };
    let limit = rules::refundable(charge.amount, charge.refunded);
    if !amount.is_positive() || amount > limit {
        return Err(Problem::bad_input(format!(
            "{limit} can be refunded of this charge ({} less {} refunded before); nothing was refunded",
            charge.amount, charge.refunded
        )));
    }
    book_in(connection, resource, &charge, amount, &key, &cause.reason, at).await?;
    let event = Event {
        subject: Subject::Resource(resource.id),
        action: "resource.refunded",
        before: None,
        after: Some(json!({ "charge": n, "amount_cents": amount })),
    };
    events::record_in(connection, at, cause, event).await?;
    repository::wake_account_in(connection, resource.user_id, at).await?;
    Ok(())
}

/// What the end of a box gave back, once it has ended.
///
/// # Errors
/// Those of the database.
pub async fn of_end(connection: &mut PgConnection, resource: &Resource) -> sqlx::Result<Usd> {
    sqlx::query_scalar!(
        r#"select coalesce(sum(amount_cents), 0)::bigint as "sum!: Usd" from ledger_transfers
           where resource_id = $1 and kind = 'refund' and cause like 'charge:% the box ended (%'"#,
        resource.id.0
    )
    .fetch_one(connection)
    .await
}

/// A charge with the upgrades in its period, and what was given back of it.
struct Charged {
    key: String,
    amount: Usd,
    refunded: Usd,
    refunds: i64,
    period: (Time, Time),
    promotional: Usd,
}

async fn charge(connection: &mut PgConnection, resource: &Resource, n: i32) -> sqlx::Result<Option<Charged>> {
    let key = format!("charge:{}:{n}", resource.id);
    let row = sqlx::query!(
        r#"select coalesce(sum(amount_cents), 0)::bigint as "amount!: Usd", min(period_start) as "start: Time", max(period_end) as "end: Time",
               coalesce(sum(amount_cents) filter (where idempotency_key like '%:promotional'), 0)::bigint as "promotional!: Usd",
               (select coalesce(sum(amount_cents), 0)::bigint from ledger_transfers r
                where r.resource_id = $2 and r.kind = 'refund' and r.cause like $1 || ' %') as "refunded!: Usd",
               (select count(*) from ledger_transfers r
                where r.resource_id = $2 and r.kind = 'refund' and r.cause like $1 || ' %') as "refunds!"
           from ledger_transfers
           where resource_id = $2 and kind in ('charge', 'post')
             and (idempotency_key in ($1 || ':paid', $1 || ':promotional') or idempotency_key like $1 || ':upgrade-%')"#,
        key,
        resource.id.0,
    )
    .fetch_one(connection)
    .await?;
    let (Some(start), Some(end)) = (row.start, row.end) else { return Ok(None) };
    Ok(Some(Charged {
        key,
        amount: row.amount,
        refunded: row.refunded,
        refunds: row.refunds,
        period: (start, end),
        promotional: row.promotional,
    }))
}

async fn book_in(
    connection: &mut PgConnection,
    resource: &Resource,
    charge: &Charged,
    amount: Usd,
    key: &str,
    why: &str,
    at: Time,
) -> sqlx::Result<()> {
    // Paid money goes back first: promotional credit is what is left of a refund once everything paid is returned.
    let paid_part = charge.amount - charge.promotional;
    let to_paid = amount.min(if paid_part > charge.refunded { paid_part - charge.refunded } else { Usd::ZERO });
    let transfer = |credit: fn(UserId) -> Account, amount, part: &str| Transfer {
        debit: Account::Revenue,
        credit: credit(resource.user_id),
        amount,
        kind: TransferKind::Refund,
        idempotency_key: format!("{key}:{part}"),
        cause: format!("{} {why}", charge.key),
        user_id: resource.user_id,
        resource_id: Some(resource.id),
        order_id: None,
        period: None,
    };
    let transfers: Vec<Transfer> =
        [transfer(Account::Paid, to_paid, "paid"), transfer(Account::Promotional, amount - to_paid, "promotional")]
            .into_iter()
            .filter(|transfer| transfer.amount.is_positive())
            .collect();
    ledger::book_in(connection, &transfers, at).await?;
    Ok(())
}
