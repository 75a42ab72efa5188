//! Money that an operator moves, always with a reason: promotional credit, payments that could not be booked by the rules,
//! and payouts.

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{PgConnection, PgExecutor};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ledger::{self, Account, Transfer, TransferKind},
    rules::{self, Policy},
};
use crate::{
    alerts,
    api::error::Problem,
    approvals::ApprovalStatus,
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::{TopupId, UserId},
    money::Usd,
    seedbox::repository,
};

fn transfer(debit: Account, credit: Account, amount: Usd, kind: TransferKind, key: String, of: UserId) -> Transfer {
    Transfer {
        debit,
        credit,
        amount,
        kind,
        idempotency_key: key,
        cause: String::new(),
        user_id: of,
        resource_id: None,
        order_id: None,
        period: None,
    }
}

/// Gives promotional credit. Safe to repeat with its id.
///
/// # Errors
/// A problem if the sum is not one that may be given.
pub async fn grant_promotion_in(
    connection: &mut PgConnection,
    id: Uuid,
    user: UserId,
    amount: Usd,
    at: Time,
    cause: &Cause,
    policy: &Policy,
) -> Result<(), Problem> {
    if !amount.is_positive() || amount > policy.topup_max {
        return Err(Problem::bad_input(format!(
            "promotional credit is more than nothing and at most {}; nothing was given",
            policy.topup_max
        )));
    }
    repository::lock_account_in(connection, user).await?;
    let key = format!("promotion:{id}");
    let granted = Transfer {
        cause: cause.reason.clone(),
        ..transfer(Account::PromotionCost, Account::Promotional(user), amount, TransferKind::Promotion, key, user)
    };
    if ledger::book_in(connection, &[granted], at).await?.is_empty() {
        return Ok(());
    }
    let after = Some(json!({ "amount_cents": amount }));
    let event = Event { subject: Subject::User(user), action: "account.promotion_granted", before: None, after };
    events::record_in(connection, at, cause, event).await?;
    repository::wake_account_in(connection, user, at).await?;
    Ok(())
}

/// A payment that waits for an operator.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UnresolvedTopup {
    /// The top-up.
    pub id: TopupId,
    /// Whose.
    pub user_id: UserId,
    /// The gateway's name of the payment.
    pub payment_id: Option<String>,
    /// `underpaid`, `paid_late`, `excess_held`, `excess_claimed` or `failed_after_confirmed`.
    pub reason: String,
    /// The coin.
    pub coin: String,
    /// What the quote credits, in US cents.
    pub amount_cents: Usd,
    /// How much of the coin was asked for.
    #[schema(value_type = Option<String>)]
    pub amount_to_pay: Option<rust_decimal::Decimal>,
    /// How much of it came, as far as the gateway says.
    #[schema(value_type = Option<String>)]
    pub received: Option<rust_decimal::Decimal>,
    /// How much of it came by the word of a webhook, where the gateway itself no longer tells: a claim, to be proved on the
    /// chain before it is credited.
    #[schema(value_type = Option<String>)]
    pub claimed: Option<rust_decimal::Decimal>,
    /// What was credited of it, in US cents.
    pub credited_cents: Usd,
    /// What is held of it, in US cents.
    pub held_cents: Usd,
    /// When it was asked for.
    pub created_at: Time,
}

/// Payments that wait for an operator, oldest first, at most 200.
///
/// # Errors
/// Those of the database.
pub async fn unresolved(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<UnresolvedTopup>> {
    sqlx::query_as!(
        UnresolvedTopup,
        r#"select id, user_id, payment_id, unresolved_reason as "reason!", coin, amount_cents, amount_to_pay,
               received_crypto as "received", claimed_crypto as "claimed", credited_cents, held_cents, created_at
           from topup_intents where unresolved_reason is not null and resolved_at is null order by created_at limit 200"#
    )
    .fetch_all(executor)
    .await
}

/// What an operator does with such a payment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum Resolution {
    /// Add a sum to the payer's balance: what an under-paid or late payment was worth, or an excess that was proved. What
    /// is held of the payment goes on waiting until it is released or returned.
    Credit {
        /// In US cents.
        amount_cents: Usd,
    },
    /// Add all that is held to the payer's balance.
    ReleaseHeld {},
    /// What is held was sent back by hand.
    ReturnHeld {
        /// The transaction that sent it.
        transaction_id: String,
    },
    /// Nothing is to be done.
    Dismiss {},
}

/// Resolves a payment that waits for an operator: once each time it waits.
///
/// # Errors
/// A problem that says what does not fit; nothing was booked then.
pub async fn resolve_topup_in(
    connection: &mut PgConnection,
    id: TopupId,
    resolution: &Resolution,
    at: Time,
    cause: &Cause,
    policy: &Policy,
) -> Result<(), Problem> {
    let found = sqlx::query!(r#"select user_id as "user_id: UserId" from topup_intents where id = $1"#, id.0)
        .fetch_optional(&mut *connection)
        .await?
        .ok_or_else(|| Problem::not_found("top-up"))?;
    let user = found.user_id;
    repository::lock_account_in(connection, user).await?;
    let topup = sqlx::query!(
        r#"select payment_id as "payment_id!", unresolved_reason, resolved_at as "resolved_at: Time", held_cents as "held: Usd", resolutions
           from topup_intents where id = $1 for update"#,
        id.0
    )
    .fetch_one(&mut *connection)
    .await?;
    let waits = topup.unresolved_reason.is_some() && topup.resolved_at.is_none();
    // What is held is settled one day, whatever was decided before.
    let settles =
        matches!(resolution, Resolution::ReleaseHeld {} | Resolution::ReturnHeld { .. }) && topup.held.is_positive();
    if !waits && !settles {
        return Err(Problem::conflict("this payment does not wait for anybody; nothing was done"));
    }
    let (payment, number) = (&topup.payment_id, topup.resolutions);
    let (booked, credited, released) = match resolution {
        Resolution::Credit { amount_cents } => {
            if !amount_cents.is_positive() || *amount_cents > policy.topup_max {
                return Err(Problem::bad_input(format!(
                    "`amount_cents` is more than nothing and at most {}; nothing was booked",
                    policy.topup_max
                )));
            }
            let key = format!("coinpay:{payment}:resolved:{number}");
            let booked = transfer(Account::Gateway, Account::Paid(user), *amount_cents, TransferKind::Topup, key, user);
            (Some(booked), *amount_cents, Usd::ZERO)
        }
        Resolution::ReleaseHeld {} | Resolution::ReturnHeld { .. } if !topup.held.is_positive() => {
            return Err(Problem::conflict("nothing is held of this payment; nothing was done"));
        }
        Resolution::ReleaseHeld {} => {
            let key = format!("coinpay:{payment}:held_release:{number}");
            let booked = transfer(Account::Held, Account::Paid(user), topup.held, TransferKind::HeldRelease, key, user);
            (Some(booked), topup.held, topup.held)
        }
        Resolution::ReturnHeld { transaction_id } => {
            check_transaction_id(transaction_id)?;
            let key = format!("coinpay:{payment}:held_return:{number}");
            let booked = Transfer {
                cause: format!("sent back in {transaction_id}"),
                ..transfer(Account::Held, Account::Payouts, topup.held, TransferKind::Payout, key, user)
            };
            (Some(booked), Usd::ZERO, topup.held)
        }
        Resolution::Dismiss {} if topup.held.is_positive() => {
            return Err(Problem::conflict(format!(
                "{} are held of this payment; release or return them. Nothing was done",
                topup.held
            )));
        }
        Resolution::Dismiss {} => (None, Usd::ZERO, Usd::ZERO),
    };
    if let Some(mut booked) = booked {
        if booked.cause.is_empty() {
            booked.cause = format!("payment {payment}");
        }
        if ledger::book_in(connection, &[booked], at).await?.is_empty() {
            return Err(Problem::conflict("that was done with this payment already; nothing was booked again"));
        }
    }
    // A sum that was credited does not settle what is held: the payment goes on waiting until that is released or returned.
    let settled = topup.held == released;
    // What was credited by hand counts as credited: the gateway's later word adds nothing.
    sqlx::query!(
        "update topup_intents set
             resolved_at = case when $5 then $2 else resolved_at end, resolutions = resolutions + case when $5 then 1 else 0 end, version = version + 1,
             credited_cents = credited_cents + $3,
             credited_at = case when $3::bigint > 0 then coalesce(credited_at, $2) else credited_at end,
             held_cents = held_cents - $4
         where id = $1",
        id.0,
        at,
        credited.cents(),
        released.cents(),
        settled,
    )
    .execute(&mut *connection)
    .await?;
    if settled {
        alerts::resolve_in(connection, "topup_unresolved", &id.to_string(), at).await?;
    }
    let action = match resolution {
        Resolution::Credit { .. } => "credit",
        Resolution::ReleaseHeld {} => "release_held",
        Resolution::ReturnHeld { .. } => "return_held",
        Resolution::Dismiss {} => "dismiss",
    };
    let after = json!({ "action": action, "credited_cents": credited, "released_cents": released, "user_id": user });
    let before = json!({ "unresolved_reason": topup.unresolved_reason, "held_cents": topup.held });
    let event =
        Event { subject: Subject::Topup(id), action: "topup.resolved", before: Some(before), after: Some(after) };
    events::record_in(connection, at, cause, event).await?;
    repository::wake_account_in(connection, user, at).await?;
    Ok(())
}

fn check_transaction_id(id: &str) -> Result<(), Problem> {
    let plain = (1..=200).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then_some(()).ok_or_else(|| {
        Problem::bad_input("`transaction_id` has 1 to 200 printable characters without spaces; nothing was done")
    })
}

/// Money on its way out.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Payout {
    /// Its id.
    pub id: Uuid,
    /// Whose.
    pub user_id: UserId,
    /// How much, in US cents.
    pub amount_cents: Usd,
    /// `reserved`, `sent` or `voided`.
    pub status: String,
    /// The payments it is taken from, oldest first, with the sum of each in US cents.
    pub lots: serde_json::Value,
    /// The transaction that sent it.
    pub transaction_id: Option<String>,
    /// When it was decided.
    pub created_at: Time,
    /// When it was sent or called off.
    pub closed_at: Option<Time>,
    /// What a second person has to approve before it is sent; `null` if nobody has to.
    pub approval_id: Option<Uuid>,
    /// Where that stands.
    pub approval_status: Option<ApprovalStatus>,
}

impl Payout {
    /// Whether it may not be sent yet.
    pub fn waits_for_approval(&self) -> bool {
        self.status == "reserved" && self.approval_status == Some(ApprovalStatus::Waiting)
    }
}

/// A payout by its id.
///
/// # Errors
/// Those of the database.
pub async fn payout(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<Payout>> {
    sqlx::query_as!(
        Payout,
        r#"select p.*, a.status as "approval_status?" from payouts p left join operator_approvals a on a.id = p.approval_id
           where p.id = $1"#,
        id
    )
    .fetch_optional(executor)
    .await
}

/// Payouts that are decided and not sent, oldest first, at most 200.
///
/// # Errors
/// Those of the database.
pub async fn open_payouts(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<Payout>> {
    sqlx::query_as!(
        Payout,
        r#"select p.*, a.status as "approval_status?" from payouts p left join operator_approvals a on a.id = p.approval_id
           where p.status = 'reserved' order by p.created_at limit 200"#
    )
    .fetch_all(executor)
    .await
}

/// Why the balance of a customer is held, if it is; `None` if there is no such customer.
///
/// # Errors
/// Those of the database.
pub async fn held_reason(executor: impl PgExecutor<'_>, user: UserId) -> sqlx::Result<Option<Option<String>>> {
    sqlx::query_scalar!("select payout_hold_reason from seedbox_billing_accounts where user_id = $1", user.0)
        .fetch_optional(executor)
        .await
}

/// Sets paid credit aside to be sent by hand: never promotional credit, nothing while the balance is held after abuse. With an
/// approval, which is asked for in the same transaction, it is sent once that is given. Safe to repeat with its id.
///
/// # Errors
/// A problem that says how much can be paid out; nothing was set aside then.
pub async fn reserve_payout_in(
    connection: &mut PgConnection,
    id: Uuid,
    user: UserId,
    amount: Usd,
    approval: Option<Uuid>,
    at: Time,
    cause: &Cause,
) -> Result<(), Problem> {
    repository::lock_account_in(connection, user).await?;
    if payout(&mut *connection, id).await?.is_some() {
        return Ok(());
    }
    let held = held_reason(&mut *connection, user).await?.ok_or_else(|| Problem::not_found("customer"))?;
    let balance = ledger::balances(&mut *connection, user).await?.paid_cents;
    let limit = rules::payout_limit(balance, held.is_some());
    if !amount.is_positive() || amount > limit {
        let why = held.map_or_else(String::new, |reason| format!(": the balance is held ({reason})"));
        return Err(Problem::bad_input(format!("{limit} of paid credit can be paid out{why}; nothing was set aside")));
    }
    let paid_in: Vec<(String, Usd)> = sqlx::query!(
        r#"select idempotency_key, amount_cents as "amount: Usd" from ledger_transfers
           where user_id = $1 and kind in ('topup', 'topup_excess', 'held_release') and credit_account_id = ledger_account_of($1, 'paid')
           order by created_at, id"#,
        user.0
    )
    .fetch_all(&mut *connection)
    .await?
    .into_iter()
    .map(|row| (row.idempotency_key, row.amount))
    .collect();
    let lots: Vec<_> = rules::payout_lots(&paid_in, balance, amount)
        .into_iter()
        .map(|(payment, amount)| json!({ "payment": payment, "amount_cents": amount }))
        .collect();
    let key = format!("payout:{id}:reserve");
    let reserve = Transfer {
        cause: format!("payout {id}"),
        ..transfer(Account::Paid(user), Account::Reserved(user), amount, TransferKind::PayoutReserve, key, user)
    };
    ledger::book_in(connection, &[reserve], at).await?;
    sqlx::query!(
        "insert into payouts (id, user_id, amount_cents, lots, created_at, approval_id) values ($1, $2, $3, $4, $5, $6)",
        id,
        user.0,
        amount.cents(),
        json!(lots),
        at,
        approval,
    )
    .execute(&mut *connection)
    .await?;
    let after = Some(json!({ "user_id": user, "amount_cents": amount, "lots": lots, "approval_id": approval }));
    let event = Event { subject: Subject::Other("payout", id), action: "payout.reserved", before: None, after };
    events::record_in(connection, at, cause, event).await?;
    Ok(())
}

/// Closes a payout: with the id of the transaction that sent it, or called off, which gives the money back.
///
/// # Errors
/// A problem if it is closed already; nothing was booked then.
pub async fn close_payout_in(
    connection: &mut PgConnection,
    id: Uuid,
    transaction_id: Option<&str>,
    at: Time,
    cause: &Cause,
) -> Result<(), Problem> {
    if let Some(transaction_id) = transaction_id {
        check_transaction_id(transaction_id)?;
    }
    let found = payout(&mut *connection, id).await?.ok_or_else(|| Problem::not_found("payout"))?;
    let user = found.user_id;
    repository::lock_account_in(connection, user).await?;
    if let (Some(_), Some(status)) = (transaction_id, found.approval_status)
        && status != ApprovalStatus::Approved
        && found.status == "reserved"
    {
        return Err(Problem::new(
            axum::http::StatusCode::CONFLICT,
            "approval-needed",
            format!(
                "this payout needs the approval of a second person, which is {status}; nothing was booked. Do not send it before it is \
                 approved: GET /api/operator/approvals/{}",
                found.approval_id.unwrap_or_default()
            ),
        ));
    }
    let status = if transaction_id.is_some() { "sent" } else { "voided" };
    let closed = sqlx::query!(
        "update payouts set status = $2, transaction_id = $3, closed_at = $4 where id = $1 and status = 'reserved'",
        id,
        status,
        transaction_id,
        at,
    )
    .execute(&mut *connection)
    .await?;
    if closed.rows_affected() == 0 {
        return Err(Problem::conflict("this payout is closed already; nothing was done"));
    }
    let amount = found.amount_cents;
    let (credit, kind) = match transaction_id {
        Some(_) => (Account::Payouts, TransferKind::Payout),
        None => (Account::Paid(user), TransferKind::PayoutVoid),
    };
    let booked = Transfer {
        cause: transaction_id.map_or_else(|| format!("payout {id} called off"), |sent| format!("sent in {sent}")),
        ..transfer(Account::Reserved(user), credit, amount, kind, format!("payout:{id}:{status}"), user)
    };
    ledger::book_in(connection, &[booked], at).await?;
    let after = Some(json!({ "status": status, "transaction_id": transaction_id }));
    let event = Event {
        subject: Subject::Other("payout", id),
        action: &format!("payout.{status}"),
        before: Some(json!({ "status": "reserved" })),
        after,
    };
    events::record_in(connection, at, cause, event).await?;
    repository::wake_account_in(connection, user, at).await?;
    Ok(())
}

/// Lets go of a balance that was held after abuse.
///
/// # Errors
/// Those of the database.
pub async fn release_balance_in(
    connection: &mut PgConnection,
    user: UserId,
    at: Time,
    cause: &Cause,
) -> Result<(), Problem> {
    let held = sqlx::query_scalar!(
        "update seedbox_billing_accounts a set payout_hold_reason = null
         from (select payout_hold_reason from seedbox_billing_accounts where user_id = $1 for update) before
         where a.user_id = $1 returning before.payout_hold_reason",
        user.0
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or_else(|| Problem::not_found("customer"))?;
    let before = Some(json!({ "payout_hold_reason": held }));
    let event = Event { subject: Subject::User(user), action: "account.balance_released", before, after: None };
    events::record_in(connection, at, cause, event).await?;
    // Orders that waited for it are paid.
    repository::wake_account_in(connection, user, at).await?;
    Ok(())
}
