//! The double-entry ledger: the only writer of money in Rust. (The two movements that a customer waits for, crediting a
//! payment and paying an order, are single SQL statements in the migrations, `topup_apply` and `order_pay`.)
//!
//! A transfer is one immutable row with both accounts, so every row balances by construction. Balances are moved by a
//! trigger in the database as the rows come in; the application is not allowed to touch them. The caller's key makes a
//! transfer happen once.

use std::collections::HashSet;

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    clock::Time,
    ids::{OrderId, ResourceId, TransferId, UserId},
    money::Usd,
    seedbox::words,
};

/// A customer's accounts that hold money, and the house's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// Paid-in balance of a customer.
    Paid(UserId),
    /// Promotional balance of a customer: spent first, never paid out.
    Promotional(UserId),
    /// Set aside for something not delivered yet.
    Reserved(UserId),
    /// What a resource owes for days of grace.
    Receivable(ResourceId),
    /// Money at the payment gateway.
    Gateway,
    /// Earned.
    Revenue,
    /// Given away as promotional credit.
    PromotionCost,
    /// Over-payments that wait for an operator.
    Held,
    /// Paid out by hand.
    Payouts,
    /// Arrears nobody will pay.
    WrittenOff,
    /// What suspended boxes went on costing us.
    UpstreamCost,
    /// What we owe providers for that.
    UpstreamOwed,
}

impl Account {
    /// The account's kind in SQL, with the customer or resource it belongs to.
    fn parts(self) -> (&'static str, Option<Uuid>) {
        match self {
            Self::Paid(user) => ("paid", Some(user.0)),
            Self::Promotional(user) => ("promotional", Some(user.0)),
            Self::Reserved(user) => ("reserved", Some(user.0)),
            Self::Receivable(resource) => ("receivable", Some(resource.0)),
            Self::Gateway => ("gateway", None),
            Self::Revenue => ("revenue", None),
            Self::PromotionCost => ("promotion_cost", None),
            Self::Held => ("held", None),
            Self::Payouts => ("payouts", None),
            Self::WrittenOff => ("written_off", None),
            Self::UpstreamCost => ("upstream_cost", None),
            Self::UpstreamOwed => ("upstream_owed", None),
        }
    }
}

words! {
    /// What a transfer is for.
    TransferKind {
        /// A payment came in.
        Topup = "topup",
        /// What came in above the quote.
        TopupExcess = "topup_excess",
        /// What came in above the quote and waits for an operator.
        TopupHeld = "topup_held",
        /// An operator gave a held sum to its payer.
        HeldRelease = "held_release",
        /// Promotional credit.
        Promotion = "promotion",
        /// Set aside until something is delivered.
        Reserve = "reserve",
        /// A reserve was earned.
        Post = "post",
        /// A reserve was given back.
        Void = "void",
        /// A period was charged.
        Charge = "charge",
        /// Days of grace became owed.
        Arrears = "arrears",
        /// Owed days were paid.
        ArrearsPaid = "arrears_paid",
        /// Owed days will not be paid.
        ArrearsWrittenOff = "arrears_written_off",
        /// A charge was given back, wholly or partly.
        Refund = "refund",
        /// Set aside until an operator has paid it out.
        PayoutReserve = "payout_reserve",
        /// Paid out.
        Payout = "payout",
        /// A payout was called off.
        PayoutVoid = "payout_void",
        /// What an upstream cost us.
        UpstreamCost = "upstream_cost",
    }
}

/// One movement of money.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Where it comes from, in the customer's eyes: the account that is debited.
    pub debit: Account,
    /// Where it goes: the account that is credited.
    pub credit: Account,
    /// How much, more than nothing.
    pub amount: Usd,
    /// What for.
    pub kind: TransferKind,
    /// Makes it happen once: `charge:<resource>:<n>`.
    pub idempotency_key: String,
    /// What brought it about, for people: `renewal`, `order <id>`.
    pub cause: String,
    /// Whose statement it stands on.
    pub user_id: UserId,
    /// The resource it is about.
    pub resource_id: Option<ResourceId>,
    /// The order it is about.
    pub order_id: Option<OrderId>,
    /// The period it pays for.
    pub period: Option<(Time, Time)>,
}

/// Books transfers in one statement; those whose key is booked already are left out. Answers the keys that were new.
///
/// # Errors
/// Those of the database; a balance that would go negative is one of them, and nothing is booked then.
pub async fn book_in(connection: &mut PgConnection, transfers: &[Transfer], at: Time) -> sqlx::Result<HashSet<String>> {
    if transfers.is_empty() {
        return Ok(HashSet::new());
    }
    for receivable in transfers.iter().flat_map(|transfer| [transfer.debit, transfer.credit]) {
        if let Account::Receivable(resource) = receivable {
            sqlx::query!("select ledger_receivable_of($1) as account", resource.0).fetch_one(&mut *connection).await?;
        }
    }
    let column = |side: fn(&Transfer) -> Account| -> (Vec<&'static str>, Vec<Option<Uuid>>) {
        transfers.iter().map(|transfer| side(transfer).parts()).unzip()
    };
    let (debit_kinds, debit_owners) = column(|transfer| transfer.debit);
    let (credit_kinds, credit_owners) = column(|transfer| transfer.credit);
    let booked = sqlx::query_scalar!(
        r#"insert into ledger_transfers (id, debit_account_id, credit_account_id, amount_cents, kind, idempotency_key, cause,
               user_id, resource_id, order_id, period_start, period_end, created_at)
           select t.id, debit.id, credit.id, t.amount, t.kind, t.key, t.cause, t.user_id, t.resource_id, t.order_id,
               t.period_start, t.period_end, $14
           from unnest($1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::uuid[], $6::bigint[], $7::text[], $8::text[],
               $9::text[], $10::uuid[], $11::uuid[], $12::uuid[], $13::timestamptz[], $15::timestamptz[])
               as t (id, debit_kind, debit_owner, credit_kind, credit_owner, amount, kind, key, cause, user_id, resource_id,
                   order_id, period_start, period_end)
           join ledger_accounts debit on debit.kind = t.debit_kind
               and t.debit_owner is not distinct from coalesce(debit.resource_id, debit.user_id)
           join ledger_accounts credit on credit.kind = t.credit_kind
               and t.credit_owner is not distinct from coalesce(credit.resource_id, credit.user_id)
           order by t.key
           on conflict (idempotency_key) do nothing
           returning idempotency_key"#,
        &transfers.iter().map(|_| TransferId::new().0).collect::<Vec<_>>(),
        &debit_kinds as _,
        &debit_owners as _,
        &credit_kinds as _,
        &credit_owners as _,
        &transfers.iter().map(|t| t.amount.cents()).collect::<Vec<_>>(),
        &transfers.iter().map(|t| t.kind.as_str()).collect::<Vec<_>>() as _,
        &transfers.iter().map(|t| t.idempotency_key.as_str()).collect::<Vec<_>>() as _,
        &transfers.iter().map(|t| t.cause.as_str()).collect::<Vec<_>>() as _,
        &transfers.iter().map(|t| t.user_id.0).collect::<Vec<_>>(),
        &transfers.iter().map(|t| t.resource_id.map(|id| id.0)).collect::<Vec<_>>() as _,
        &transfers.iter().map(|t| t.order_id.map(|id| id.0)).collect::<Vec<_>>() as _,
        &transfers.iter().map(|t| t.period.map(|period| period.0)).collect::<Vec<_>>() as _,
        at,
        &transfers.iter().map(|t| t.period.map(|period| period.1)).collect::<Vec<_>>() as _,
    )
    .fetch_all(connection)
    .await?;
    Ok(booked.into_iter().collect())
}

/// What a customer has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Balances {
    /// Paid in and not spent, in US cents.
    pub paid_cents: Usd,
    /// Promotional credit, in US cents: spent first, never paid out.
    pub promotional_cents: Usd,
    /// Set aside for something not delivered yet, in US cents.
    pub reserved_cents: Usd,
}

impl Balances {
    /// What can be spent.
    pub fn available(&self) -> Usd {
        self.paid_cents + self.promotional_cents
    }
}

/// What a customer has now.
///
/// # Errors
/// Those of the database.
pub async fn balances(executor: impl PgExecutor<'_>, user: UserId) -> sqlx::Result<Balances> {
    sqlx::query_as!(
        Balances,
        r#"select
               coalesce(sum(balance_cents) filter (where kind = 'paid'), 0)::bigint as "paid_cents!: Usd",
               coalesce(sum(balance_cents) filter (where kind = 'promotional'), 0)::bigint as "promotional_cents!: Usd",
               coalesce(sum(balance_cents) filter (where kind = 'reserved'), 0)::bigint as "reserved_cents!: Usd"
           from ledger_accounts where user_id = $1 and resource_id is null"#,
        user.0
    )
    .fetch_one(executor)
    .await
}

/// What an order, a return from suspension or an upgrade set aside.
#[derive(Debug, Clone, Copy)]
struct OpenReserve {
    promotional: Usd,
    paid: Usd,
}

async fn reserve_of(connection: &mut PgConnection, key: &str) -> sqlx::Result<OpenReserve> {
    let row = sqlx::query!(
        r#"select coalesce(sum(amount_cents) filter (where idempotency_key = $1 || ':promotional'), 0)::bigint as "promotional!: Usd",
                  coalesce(sum(amount_cents) filter (where idempotency_key = $1 || ':paid'), 0)::bigint as "paid!: Usd"
           from ledger_transfers where idempotency_key in ($1 || ':promotional', $1 || ':paid')"#,
        key
    )
    .fetch_one(connection)
    .await?;
    Ok(OpenReserve { promotional: row.promotional, paid: row.paid })
}

/// What the two ends of a reserve have in common.
#[derive(Debug, Clone)]
pub struct Reserve {
    /// The reserve's key, `reserve:<order>`, `resume:<attempt>` or `resize:<attempt>`: its parts are `<key>:promotional` and `<key>:paid`.
    pub key: String,
    /// Whose.
    pub user_id: UserId,
    /// For which resource.
    pub resource_id: ResourceId,
    /// From which order.
    pub order_id: Option<OrderId>,
}

/// Sets money aside until something is delivered, in two parts. Safe to repeat.
///
/// # Errors
/// Those of the database; a balance that does not cover it is one of them, and nothing is set aside then.
pub async fn reserve_in(
    connection: &mut PgConnection,
    reserve: &Reserve,
    cause: &str,
    (from_promotional, from_paid): (Usd, Usd),
    at: Time,
) -> sqlx::Result<()> {
    let transfers: Vec<Transfer> = [
        (Account::Promotional(reserve.user_id), from_promotional, "promotional"),
        (Account::Paid(reserve.user_id), from_paid, "paid"),
    ]
    .into_iter()
    .filter(|(_, amount, _)| amount.is_positive())
    .map(|(debit, amount, part)| Transfer {
        debit,
        credit: Account::Reserved(reserve.user_id),
        amount,
        kind: TransferKind::Reserve,
        idempotency_key: format!("{}:{part}", reserve.key),
        cause: cause.to_owned(),
        user_id: reserve.user_id,
        resource_id: Some(reserve.resource_id),
        order_id: reserve.order_id,
        period: None,
    })
    .collect();
    book_in(connection, &transfers, at).await?;
    Ok(())
}

/// Earns a reserve: all of it goes to revenue, or its first `arrears` to what the resource owes. Safe to repeat.
///
/// # Errors
/// Those of the database.
pub async fn post_in(
    connection: &mut PgConnection,
    reserve: &Reserve,
    charge_key: &str,
    arrears: Usd,
    period: (Time, Time),
    at: Time,
) -> sqlx::Result<()> {
    let set_aside = reserve_of(connection, &reserve.key).await?;
    let arrears_from_promotional = arrears.min(set_aside.promotional);
    let arrears_from_paid = arrears - arrears_from_promotional;
    let part = |credit, amount, kind, key: &str, period| Transfer {
        debit: Account::Reserved(reserve.user_id),
        credit,
        amount,
        kind,
        idempotency_key: key.to_owned(),
        cause: reserve.key.clone(),
        user_id: reserve.user_id,
        resource_id: Some(reserve.resource_id),
        order_id: reserve.order_id,
        period,
    };
    let mut transfers = Vec::new();
    if arrears.is_positive() {
        let key = format!("{charge_key}:arrears");
        transfers.push(part(Account::Receivable(reserve.resource_id), arrears, TransferKind::ArrearsPaid, &key, None));
    }
    for (amount, origin) in [
        (set_aside.promotional - arrears_from_promotional, "promotional"),
        (set_aside.paid - arrears_from_paid, "paid"),
    ] {
        if amount.is_positive() {
            let key = format!("{charge_key}:{origin}");
            transfers.push(part(Account::Revenue, amount, TransferKind::Post, &key, Some(period)));
        }
    }
    book_in(connection, &transfers, at).await?;
    Ok(())
}

/// Gives a reserve back to the cent, each part to where it came from. Safe to repeat.
///
/// # Errors
/// Those of the database.
pub async fn void_in(connection: &mut PgConnection, reserve: &Reserve, at: Time) -> sqlx::Result<()> {
    let set_aside = reserve_of(connection, &reserve.key).await?;
    let transfers: Vec<Transfer> = [
        (Account::Promotional(reserve.user_id), set_aside.promotional, "promotional"),
        (Account::Paid(reserve.user_id), set_aside.paid, "paid"),
    ]
    .into_iter()
    .filter(|(_, amount, _)| amount.is_positive())
    .map(|(credit, amount, part)| Transfer {
        debit: Account::Reserved(reserve.user_id),
        credit,
        amount,
        kind: TransferKind::Void,
        idempotency_key: format!("void:{}:{part}", reserve.key),
        cause: reserve.key.clone(),
        user_id: reserve.user_id,
        resource_id: Some(reserve.resource_id),
        order_id: reserve.order_id,
        period: None,
    })
    .collect();
    book_in(connection, &transfers, at).await?;
    Ok(())
}

/// A line of a customer's statement.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StatementLine {
    /// The transfer.
    pub id: TransferId,
    /// When.
    pub at: Time,
    /// What for.
    pub kind: TransferKind,
    /// What brought it about.
    pub cause: String,
    /// What it changed of what can be spent (paid and promotional together), in US cents; negative for money spent.
    pub change_cents: Usd,
    /// What could be spent after it, in US cents.
    pub available_cents: Usd,
    /// The resource it is about.
    pub resource_id: Option<ResourceId>,
    /// The start of the period it pays for.
    pub period_start: Option<Time>,
    /// The end of that period, not included.
    pub period_end: Option<Time>,
}

/// A customer's statement, oldest first: every transfer that touched a balance, with the running sum. At most 10,000 lines.
///
/// # Errors
/// Those of the database.
pub async fn statement(
    pool: &PgPool,
    user: UserId,
    from: Option<Time>,
    until: Option<Time>,
) -> sqlx::Result<Vec<StatementLine>> {
    sqlx::query_as!(
        StatementLine,
        r#"with own as (
               select id, kind from ledger_accounts where user_id = $1 and kind in ('paid', 'promotional') and resource_id is null
           ), lines as (
               select t.*,
                   (case when t.credit_account_id in (select id from own) then t.amount_cents else 0 end
                    - case when t.debit_account_id in (select id from own) then t.amount_cents else 0 end) as change
               from ledger_transfers t where t.user_id = $1 and t.kind <> 'upstream_cost'
           ), running as (
               select *, sum(change) over (order by created_at, id) as available from lines
           )
           select id as "id!: TransferId", created_at as "at!", kind as "kind!: TransferKind", cause as "cause!",
               change::bigint as "change_cents!: Usd", available::bigint as "available_cents!: Usd",
               resource_id as "resource_id?: ResourceId", period_start as "period_start?", period_end as "period_end?"
           from running
           where created_at >= coalesce($2, '-infinity'::timestamptz) and created_at < coalesce($3, 'infinity'::timestamptz)
           order by created_at, id limit 10000"#,
        user.0,
        from as _,
        until as _,
    )
    .fetch_all(pool)
    .await
}

/// A balance that does not agree with the transfers: there must never be one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Mismatch {
    /// The ledger account.
    pub account_id: Uuid,
    /// The balance kept beside it, in US cents.
    pub cached_cents: i64,
    /// What its transfers add up to, in US cents.
    pub recomputed_cents: i64,
}

/// A box that says it owes something else than the ledger says: there must never be one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ArrearsMismatch {
    /// The box.
    pub resource_id: ResourceId,
    /// What stands on the box, in US cents.
    pub arrears_cents: Usd,
    /// What the ledger holds as its receivable, in US cents.
    pub receivable_cents: Usd,
}

/// What recomputing the ledger found.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LedgerCheck {
    /// How many transfers there are.
    pub transfers: i64,
    /// How many balances were recomputed.
    pub balances: i64,
    /// All accounts added up, in US cents: always zero.
    pub sum_cents: i64,
    /// Balances that do not agree; at most 100.
    pub mismatches: Vec<Mismatch>,
    /// Boxes whose arrears are not what the ledger says they owe; at most 100.
    pub arrears_mismatches: Vec<ArrearsMismatch>,
}

impl LedgerCheck {
    /// Whether every balance agrees, every box owes what the ledger says, and everything adds up to zero.
    pub fn is_sound(&self) -> bool {
        self.mismatches.is_empty() && self.arrears_mismatches.is_empty() && self.sum_cents == 0
    }
}

/// Recomputes every balance from the transfers and compares.
///
/// # Errors
/// Those of the database.
pub async fn check(pool: &PgPool) -> sqlx::Result<LedgerCheck> {
    let mut tx = pool.begin().await?;
    sqlx::query!("set transaction isolation level repeatable read read only").execute(&mut *tx).await?;
    let totals = sqlx::query!(
        r#"select (select count(*) from ledger_transfers) as "transfers!",
                  (select count(*) from ledger_accounts where balance_cents is not null) as "balances!",
                  (select coalesce(sum(c), 0)::bigint from (
                      select amount_cents as c from ledger_transfers t join ledger_accounts a on a.id = t.credit_account_id
                      union all
                      select -amount_cents from ledger_transfers t join ledger_accounts a on a.id = t.debit_account_id
                  ) halves) as "sum!""#
    )
    .fetch_one(&mut *tx)
    .await?;
    let mismatches = sqlx::query_as!(
        Mismatch,
        r#"with moved as (
               select account_id, sum(cents)::bigint as cents from (
                   select credit_account_id as account_id, amount_cents as cents from ledger_transfers
                   union all
                   select debit_account_id, -amount_cents from ledger_transfers
               ) halves group by account_id
           )
           select a.id as "account_id!", a.balance_cents as "cached_cents!: i64",
               (a.sign * coalesce(m.cents, 0))::bigint as "recomputed_cents!"
           from ledger_accounts a left join moved m on m.account_id = a.id
           where a.balance_cents is not null and a.balance_cents <> a.sign * coalesce(m.cents, 0)
           limit 100"#
    )
    .fetch_all(&mut *tx)
    .await?;
    let arrears_mismatches = sqlx::query_as!(
        ArrearsMismatch,
        r#"select r.id as "resource_id!: ResourceId", r.arrears_cents as "arrears_cents!: Usd",
               coalesce(a.balance_cents, 0) as "receivable_cents!: Usd"
           from seedbox_resources r left join ledger_accounts a on a.resource_id = r.id and a.kind = 'receivable'
           where r.arrears_cents <> coalesce(a.balance_cents, 0)
           limit 100"#
    )
    .fetch_all(&mut *tx)
    .await?;
    Ok(LedgerCheck {
        transfers: totals.transfers,
        balances: totals.balances,
        sum_cents: totals.sum,
        mismatches,
        arrears_mismatches,
    })
}
