//! All boxes at a glance, for who runs the business.

use serde::Serialize;
use sqlx::PgPool;

use super::{Status, SuspendReason};
use crate::{
    clock::Time,
    ids::{ResourceId, UserId},
    money::Usd,
};

/// How many boxes are in a status, and what they bring in a month.
#[derive(Debug, Clone, Serialize)]
pub struct StatusCount {
    /// The status.
    pub status: Status,
    /// How many.
    pub count: i64,
    /// The sum of their prices, in US cents.
    pub monthly_cents: Usd,
}

/// Boxes that have not ended, by status.
///
/// # Errors
/// Those of the database.
pub async fn by_status(pool: &PgPool) -> sqlx::Result<Vec<StatusCount>> {
    sqlx::query_as!(
        StatusCount,
        r#"select status as "status!: Status", count(*) as "count!", coalesce(sum(price_cents), 0)::bigint as "monthly_cents!: Usd"
           from seedbox_resources where status <> 'terminated' and connection_id is null group by status order by status"#
    )
    .fetch_all(pool)
    .await
}

/// A box in the list.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct Listed {
    pub id: ResourceId,
    pub user_id: UserId,
    pub email: String,
    pub label: String,
    pub status: Status,
    pub status_since: Time,
    pub suspend_reason: Option<SuspendReason>,
    pub provider: Option<String>,
    pub price_cents: Usd,
    pub paid_until: Option<Time>,
    pub past_due_since: Option<Time>,
    pub hold_until: Option<Time>,
    pub own_server: bool,
}

impl Listed {
    /// Whether it has been in a passing status for longer than it should.
    pub fn is_stuck(&self, now: Time) -> bool {
        self.status.stuck_after().is_some_and(|limit| now.duration_since(self.status_since.0) > limit)
    }
}

/// Which boxes are asked for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// In this status; those that have not ended if left out.
    pub status: Option<Status>,
    /// A month of theirs is unpaid.
    pub past_due: bool,
    /// Part of the label, the beginning of the owner's e-mail address, or a whole id.
    pub text: String,
    /// Of this person.
    pub owner: Option<UserId>,
    /// Only those made before this one.
    pub before: Option<ResourceId>,
}

/// Boxes, newest first, at most `limit`.
///
/// # Errors
/// Those of the database.
pub async fn find(pool: &PgPool, filter: &Filter, limit: i64) -> sqlx::Result<Vec<Listed>> {
    let text = filter.text.trim().to_lowercase();
    // What somebody typed is text, and no pattern.
    let quoted = text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
    sqlx::query_as!(
        Listed,
        r#"select r.id as "id: ResourceId", r.user_id as "user_id: UserId", u.email, r.label, r.status as "status: Status", r.status_since,
               r.suspend_reason as "suspend_reason: SuspendReason", r.provider, r.price_cents as "price_cents: Usd", r.paid_until,
               r.past_due_since, r.hold_until, r.connection_id is not null as "own_server!"
           from seedbox_resources r join users u on u.id = r.user_id
           where ($1::text is null and (r.status <> 'terminated' or $2 <> '') or r.status = $1)
             and ($2 = '' or lower(r.label) like '%' || $3 || '%' or u.email like $3 || '%' or r.id::text = $2 or r.user_id::text = $2)
             and (not $4 or r.past_due_since is not null)
             and ($5::uuid is null or r.id < $5)
             and ($6::uuid is null or r.user_id = $6)
           order by r.id desc limit $7"#,
        filter.status.map(Status::as_str),
        text,
        quoted,
        filter.past_due,
        filter.before.map(|id| id.0),
        filter.owner.map(|id| id.0),
        limit,
    )
    .fetch_all(pool)
    .await
}

/// Money of a time: what came in, and what was earned.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Takings {
    /// Payments that were credited, in US cents.
    pub paid_in_cents: Usd,
    /// Months charged and delivered, less what was given back, in US cents.
    pub earned_cents: Usd,
    /// What suspended boxes cost upstream, in US cents.
    pub upstream_cents: Usd,
}

/// What came in and was earned from a time on.
///
/// # Errors
/// Those of the database.
pub async fn takings(pool: &PgPool, from: Time) -> sqlx::Result<Takings> {
    sqlx::query_as!(
        Takings,
        r#"select coalesce(sum(amount_cents) filter (where kind in ('topup', 'topup_excess', 'held_release')), 0)::bigint as "paid_in_cents!: Usd",
               (coalesce(sum(amount_cents) filter (where kind in ('post', 'charge', 'arrears_paid')), 0)
                - coalesce(sum(amount_cents) filter (where kind = 'refund'), 0))::bigint as "earned_cents!: Usd",
               coalesce(sum(amount_cents) filter (where kind = 'upstream_cost'), 0)::bigint as "upstream_cents!: Usd"
           from ledger_transfers where created_at >= $1"#,
        from
    )
    .fetch_one(pool)
    .await
}

/// A customer in the list.
#[derive(Debug, Clone, Serialize)]
pub struct Customer {
    /// Their id.
    pub id: UserId,
    /// Their address.
    pub email: String,
    /// Since when.
    pub created_at: Time,
    /// What they can spend, in US cents.
    pub available_cents: Usd,
    /// Boxes that have not ended.
    pub boxes: i64,
    /// What those cost a month, in US cents.
    pub monthly_cents: Usd,
    /// Why their balance is held, if it is.
    pub payout_hold_reason: Option<String>,
}

/// Customers whose address begins so, or with this id, newest first, at most `limit`.
///
/// # Errors
/// Those of the database.
pub async fn customers(pool: &PgPool, text: &str, limit: i64) -> sqlx::Result<Vec<Customer>> {
    sqlx::query_as!(
        Customer,
        r#"select u.id as "id: UserId", u.email, u.created_at,
               (select coalesce(sum(balance_cents), 0)::bigint from ledger_accounts a
                where a.user_id = u.id and a.kind in ('paid', 'promotional') and a.resource_id is null) as "available_cents!: Usd",
               (select count(*) from seedbox_resources r where r.user_id = u.id and r.status <> 'terminated'
                and r.connection_id is null) as "boxes!",
               (select coalesce(sum(price_cents), 0)::bigint from seedbox_resources r where r.user_id = u.id
                and r.status <> 'terminated' and r.connection_id is null) as "monthly_cents!: Usd",
               b.payout_hold_reason
           from users u join seedbox_billing_accounts b on b.user_id = u.id
           where u.role = 'customer' and ($1 = '' or starts_with(u.email, $1) or u.id::text = $1)
           order by u.created_at desc limit $2"#,
        text.trim().to_lowercase(),
        limit,
    )
    .fetch_all(pool)
    .await
}
