//! Top-ups: a customer's intention to pay a sum, and how it is shown to them.

use axum::http::StatusCode;
use jiff::SignedDuration;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::json;
use sqlx::PgExecutor;
use utoipa::ToSchema;

use crate::{
    api::error::Problem,
    app::App,
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::{OrderId, TopupId, UserId},
    jobs::{self, Job},
    money::Usd,
    orders,
    seedbox::words,
};

/// How many top-ups of one customer can be open at once.
const MAX_OPEN: i64 = 20;

/// How many top-ups one customer can ask for in an hour: each of them is a call at the gateway.
const MAX_IN_AN_HOUR: i64 = 20;

/// A look at a top-up asks the gateway again, but not more often than this.
const LOOK_EVERY: SignedDuration = SignedDuration::from_secs(3);

words! {
    /// Where a top-up stands. Only upward moves take effect: `pending < detected < {expired, failed} < confirmed < forwarded`.
    TopupStatus {
        /// Asked for; the gateway has not quoted yet.
        Created = "created",
        /// Quoted; nothing came yet.
        Pending = "pending",
        /// Something came, not enough or not confirmed.
        Detected = "detected",
        /// The quote ended before enough came. What comes later is not lost.
        Expired = "expired",
        /// The gateway says that the payment failed.
        Failed = "failed",
        /// Paid and credited.
        Confirmed = "confirmed",
        /// The gateway sent the money on to us.
        Forwarded = "forwarded",
    }
}

/// A top-up as its owner sees it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TopupView {
    /// Its id.
    pub id: TopupId,
    /// The order it is for.
    pub order_id: Option<OrderId>,
    /// What it adds to the balance, in US cents.
    pub amount_cents: Usd,
    /// The coin to pay in.
    pub coin: String,
    /// Where it stands.
    pub status: TopupStatus,
    /// The gateway's name of the payment.
    pub payment_id: Option<String>,
    /// Where to send the coin.
    pub address: Option<String>,
    /// How much of the coin to send, rounded up to what the token can hold.
    #[schema(value_type = Option<String>)]
    pub amount_to_pay: Option<Decimal>,
    /// How much of it came.
    #[schema(value_type = Option<String>)]
    pub received: Option<Decimal>,
    /// How much is missing, while the quote lasts.
    #[schema(value_type = Option<String>)]
    pub missing: Option<Decimal>,
    /// The quote's total in US cents, with the network fee.
    pub quoted_total_cents: Option<i64>,
    /// The gateway's own page for this payment.
    pub pay_page_url: Option<String>,
    /// Until when the quote lasts.
    pub expires_at: Option<Time>,
    /// What was added to the balance, in US cents.
    pub credited_cents: Usd,
    /// What came above the quote and waits for an operator, in US cents.
    pub held_cents: Usd,
    /// Why an operator has to look at it, until one has.
    pub unresolved_reason: Option<String>,
    /// What went wrong with asking for a quote, if anything; it is being tried again.
    pub last_error: Option<String>,
    /// When it was asked for.
    pub created_at: Time,
}

/// A top-up as the workers see it.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct Topup {
    pub id: TopupId,
    pub user_id: UserId,
    pub order_id: Option<OrderId>,
    pub amount_cents: Usd,
    pub coin: String,
    pub status: TopupStatus,
    pub version: i64,
    pub gateway_attempt: i32,
    pub payment_id: Option<String>,
    pub address: Option<String>,
    pub expected_crypto: Option<Decimal>,
    pub amount_to_pay: Option<Decimal>,
    pub quoted_total_cents: Option<i64>,
    pub received_crypto: Option<Decimal>,
    pub pay_page_url: Option<String>,
    pub quoted_at: Option<Time>,
    pub expires_at: Option<Time>,
    pub credited_at: Option<Time>,
    pub credited_cents: Usd,
    pub held_cents: Usd,
    pub unresolved_reason: Option<String>,
    pub resolved_at: Option<Time>,
    pub polls_done: i32,
    pub next_poll_at: Option<Time>,
    pub last_error: Option<String>,
    pub failures: i32,
    pub ask_not_before: Option<Time>,
    pub created_at: Time,
}

impl From<Topup> for TopupView {
    fn from(topup: Topup) -> Self {
        let open = matches!(topup.status, TopupStatus::Pending | TopupStatus::Detected);
        let missing = match (topup.amount_to_pay, open) {
            (Some(due), true) => Some((due - topup.received_crypto.unwrap_or_default()).max(Decimal::ZERO)),
            _ => None,
        };
        Self {
            missing,
            id: topup.id,
            order_id: topup.order_id,
            amount_cents: topup.amount_cents,
            coin: topup.coin,
            status: topup.status,
            payment_id: topup.payment_id,
            address: topup.address,
            amount_to_pay: topup.amount_to_pay,
            received: topup.received_crypto,
            quoted_total_cents: topup.quoted_total_cents,
            pay_page_url: topup.pay_page_url,
            expires_at: topup.expires_at,
            credited_cents: topup.credited_cents,
            held_cents: topup.held_cents,
            unresolved_reason: topup.unresolved_reason.filter(|_| topup.resolved_at.is_none()),
            last_error: topup.last_error,
            created_at: topup.created_at,
        }
    }
}

macro_rules! select_topups {
    ($condition:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            Topup,
            r#"select id, user_id, order_id, amount_cents, coin, status as "status: TopupStatus", version, gateway_attempt, payment_id,
                   address, expected_crypto, amount_to_pay, quoted_total_cents, received_crypto, pay_page_url, quoted_at,
                   expires_at, credited_at, credited_cents, held_cents, unresolved_reason, resolved_at, polls_done, next_poll_at,
                   last_error, failures, ask_not_before, created_at
               from topup_intents where "# + $condition,
            $($argument),*
        )
    };
}

/// A top-up by its id.
///
/// # Errors
/// Those of the database.
pub async fn by_id(app: &App, id: TopupId) -> sqlx::Result<Option<Topup>> {
    select_topups!("id = $1", id.0).fetch_optional(&app.pool).await
}

/// A top-up of this customer; somebody else's does not exist.
///
/// # Errors
/// Those of the database.
pub async fn of_user(app: &App, user: UserId, id: TopupId) -> sqlx::Result<Option<TopupView>> {
    Ok(select_topups!("id = $1 and user_id = $2", id.0, user.0).fetch_optional(&app.pool).await?.map(Into::into))
}

/// Top-ups of this customer, newest first, at most 200.
///
/// # Errors
/// Those of the database.
pub async fn list_of_user(app: &App, user: UserId) -> sqlx::Result<Vec<TopupView>> {
    let topups =
        select_topups!("user_id = $1 order by created_at desc, id desc limit 200", user.0).fetch_all(&app.pool).await?;
    Ok(topups.into_iter().map(Into::into).collect())
}

/// What a customer asks for.
#[derive(Debug, Clone)]
pub struct NewTopup {
    /// Its id, from the request.
    pub id: TopupId,
    /// Whose.
    pub user_id: UserId,
    /// The order it is for.
    pub order_id: Option<OrderId>,
    /// What it adds to the balance.
    pub amount: Usd,
    /// The coin; the gateway's first if left out.
    pub coin: Option<String>,
}

/// Writes the intention and asks a worker to open a payment. Safe to repeat with its id.
///
/// # Errors
/// A problem that says what is wrong with the request.
pub async fn request(app: &App, new: NewTopup, cause: &Cause) -> Result<(), Problem> {
    let now = app.now();
    let (min, max) = (app.policy.topup_min, app.policy.topup_max);
    if new.amount < min || new.amount > max {
        return Err(Problem::bad_input(format!("a top-up is {min} to {max}")));
    }
    let coin = match &new.coin {
        None => app.gateway.coins().first(),
        Some(code) => app.gateway.coins().iter().find(|coin| *coin.code == **code),
    };
    let Some(coin) = coin else {
        let codes: Vec<&str> = app.gateway.coins().iter().map(|coin| coin.code).collect();
        return Err(Problem::bad_input(format!("`coin` is one of {}", codes.join(", "))));
    };
    if let Some(order) = new.order_id
        && orders::order_of(&app.pool, new.user_id, order).await?.is_none()
    {
        return Err(Problem::not_found("order"));
    }
    let mut tx = app.pool.begin().await?;
    let in_an_hour = sqlx::query_scalar!(
        r#"select count(*) as "count!" from topup_intents where user_id = $1 and created_at > $2 and id <> $3"#,
        new.user_id.0,
        Time(now.0 - SignedDuration::from_hours(1)),
        new.id.0,
    )
    .fetch_one(&mut *tx)
    .await?;
    if in_an_hour >= MAX_IN_AN_HOUR {
        return Err(Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many-topups",
            format!(
                "{MAX_IN_AN_HOUR} top-ups were asked for within an hour; nothing was opened. Pay one of them, or wait"
            ),
        ));
    }
    let inserted = sqlx::query!(
        "insert into topup_intents (id, user_id, order_id, amount_cents, coin, created_at)
         select $1, $2, $3, $4, $5, $6
         where (select count(*) from topup_intents
                where user_id = $2 and status in ('created', 'pending', 'detected')) < $7
         on conflict (id) do nothing",
        new.id.0,
        new.user_id.0,
        new.order_id.map(|id| id.0),
        new.amount.cents(),
        coin.code,
        now,
        MAX_OPEN,
    )
    .execute(&mut *tx)
    .await?;
    if inserted.rows_affected() == 0 {
        drop(tx);
        return match of_user(app, new.user_id, new.id).await? {
            Some(_) => Ok(()),
            None => {
                Err(Problem::conflict(format!("{MAX_OPEN} top-ups are open already; pay one or let it expire first")))
            }
        };
    }
    let after = Some(
        json!({ "amount_cents": new.amount, "coin": coin.code, "order_id": new.order_id, "user_id": new.user_id }),
    );
    let event = Event { subject: Subject::Topup(new.id), action: "topup.requested", before: None, after };
    events::record_in(&mut tx, now, cause, event).await?;
    jobs::enqueue_in(&mut tx, Job::OpenTopup(new.id)).await?;
    tx.commit().await?;
    Ok(())
}

/// Asks the gateway again because somebody is looking, if it was not asked just now.
///
/// # Errors
/// Those of the database.
pub async fn look_soon(app: &App, topup: &TopupView) -> sqlx::Result<()> {
    if !matches!(topup.status, TopupStatus::Pending | TopupStatus::Detected | TopupStatus::Expired) {
        return Ok(());
    }
    let now = app.now();
    let mut tx = app.pool.begin().await?;
    let due = sqlx::query_scalar!(
        "update topup_intents set looked_at = $2 where id = $1 and (looked_at is null or looked_at < $3) returning id",
        topup.id.0,
        now,
        Time(now.0 - LOOK_EVERY),
    )
    .fetch_optional(&mut *tx)
    .await?;
    if due.is_some() {
        jobs::enqueue_in(&mut tx, Job::CheckPayment(topup.id)).await?;
    }
    tx.commit().await
}

/// Whether the gateway is failing: in the last half hour it answered about no payment, and failed for three of them, or for
/// every one that is open where those are fewer. One payment that always fails is not a gateway that fails.
///
/// # Errors
/// Those of the database.
pub async fn gateway_is_failing(executor: impl PgExecutor<'_>, at: Time) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select not exists (select from topup_intents where last_answered_at > $1::timestamptz - interval '30 minutes')
               and (select count(*) from (
                       select 1 from topup_intents
                       where last_error is not null and last_error_at > $1::timestamptz - interval '30 minutes'
                           and status <> 'failed' limit 3) failed)
                   >= greatest(1, (select count(*) from (
                       (select 1 from topup_intents where next_poll_at is not null limit 3)
                       union all (select 1 from topup_intents where status = 'created' limit 3) limit 3) open)) as "failing!""#,
        at
    )
    .fetch_one(executor)
    .await
}
