//! Payments: opens them at the gateway, asks about them, and books what the gateway itself says. Webhooks only make this
//! happen sooner.

use std::time::Duration;

use rust_decimal::Decimal;

use super::{Next, StepError};
use crate::{
    alerts,
    app::App,
    billing::{
        rules::payments as rules,
        topups::{self, Topup, TopupStatus},
    },
    clock::Time,
    ids::TopupId,
    jobs::{self, Job},
    mailer::{self, templates},
    money::Usd,
    orders,
    payments::{CreatePayment, Error as GatewayError, Observation, PaymentStatus},
};

/// After so many idempotency keys that the gateway burned, something else is wrong.
const MAX_GATEWAY_ATTEMPTS: i32 = 5;

/// After so many failures in a row a payment is left to the plan of polls.
const MAX_TRIES_IN_A_ROW: i32 = 5;

/// Opens a payment for a top-up. The key belongs to the attempt, so that a lost answer is found again and not made twice.
///
/// # Errors
/// Those of the database.
pub async fn open(app: &App, id: TopupId) -> Result<Next, StepError> {
    let Some(topup) = topups::by_id(app, id).await? else { return Ok(Next::Done) };
    if topup.status != TopupStatus::Created {
        return Ok(Next::Done);
    }
    if let Some(wait) = left_alone(app, &topup) {
        return Ok(Next::Again(wait));
    }
    let request = CreatePayment {
        idempotency_key: format!("topup:{id}:{}", topup.gateway_attempt),
        amount_cents: topup.amount_cents.cents(),
        coin: topup.coin.clone(),
        description: format!("Top-up of {}", topup.amount_cents),
        reference: id.0,
        return_url: Some(app.public_url.to_string()),
    };
    let quote = match app.gateway.create(&request).await {
        Ok(quote) => quote,
        Err(GatewayError::BurnedKey { why }) if topup.gateway_attempt < MAX_GATEWAY_ATTEMPTS => {
            tracing::info!(topup = %id, why, "the gateway burned an idempotency key; a new one is used");
            sqlx::query!(
                "update topup_intents set gateway_attempt = gateway_attempt + 1 where id = $1 and gateway_attempt = $2",
                id.0,
                topup.gateway_attempt
            )
            .execute(&app.pool)
            .await?;
            return Ok(Next::Again(Duration::ZERO));
        }
        Err(error) => {
            let wait = note_failure(app, &topup, &error).await?;
            let age = app.now().duration_since(topup.created_at.0);
            let hopeless = matches!(error, GatewayError::Refused { .. } | GatewayError::BurnedKey { .. });
            if hopeless || age > jiff::SignedDuration::from_hours(24) {
                alerts::raise(&app.pool, "topup_not_opened", &id.to_string(), &error.to_string(), app.now()).await?;
                sqlx::query!("update topup_intents set status = 'failed', version = version + 1 where id = $1 and status = 'created'", id.0)
                    .execute(&app.pool)
                    .await?;
                return Ok(Next::Done);
            }
            return Ok(Next::Again(wait));
        }
    };
    let now = app.now();
    sqlx::query!(
        "update topup_intents set status = 'pending', version = version + 1, payment_id = $2, address = $3, expected_crypto = $4,
             amount_to_pay = $5, quoted_total_cents = $6, pay_page_url = $7, quoted_at = $8, expires_at = $9,
             next_poll_at = $10, last_error = null, last_answered_at = $8, failures = 0, ask_not_before = null
         where id = $1 and status = 'created'",
        id.0,
        quote.payment_id,
        quote.address,
        quote.expected,
        quote.amount_to_pay,
        quote.quoted_total_cents,
        quote.pay_page_url,
        now,
        Time(quote.expires_at),
        rules::next_poll(now.0, 0).map(Time) as _,
    )
    .execute(&app.pool)
    .await?;
    Ok(Next::Done)
}

/// How long the gateway asked to be left alone with this payment, if that is not over.
fn left_alone(app: &App, topup: &Topup) -> Option<Duration> {
    let until = topup.ask_not_before?.0;
    Duration::try_from(until.duration_since(app.now().0)).ok().filter(|wait| !wait.is_zero())
}

/// How long to wait after the `failures`th failure in a row: what the gateway asks for, or longer and longer.
fn pause(error: &GatewayError, failures: i32) -> Duration {
    let longer = Duration::from_secs(2_u64.saturating_pow(u32::try_from(failures.clamp(1, 8)).unwrap_or(1)));
    match error {
        GatewayError::Transient { retry_after: Some(wait), .. }
        | GatewayError::RateLimited { retry_after: Some(wait), .. } => longer.max(*wait),
        GatewayError::Transient { .. } | GatewayError::RateLimited { .. } | GatewayError::Unknown { .. } => longer,
        _ => longer.max(Duration::from_secs(30)),
    }
}

/// Notes that the gateway did not do what was asked of it for a payment, and goes on in the plan of polls as if it had, so
/// that a payment that always fails is asked about less and less often. Answers how long to leave it alone.
async fn note_failure(app: &App, topup: &Topup, error: &GatewayError) -> Result<Duration, StepError> {
    metrics::counter!("seedplane_gateway_errors_total").increment(1);
    tracing::warn!(topup = %topup.id, %error, "the gateway did not do what was asked");
    let now = app.now();
    let wait = pause(error, topup.failures + 1);
    let (next_poll_at, polls_done) = next_poll_of(topup, now);
    // A payment that is not there yet says nothing about whether the gateway works.
    let failed = !matches!(error, GatewayError::NotFoundYet);
    sqlx::query!(
        "update topup_intents set
             last_error = left($3, 500), last_error_at = case when $4 then $5 else last_error_at end, failures = failures + 1,
             ask_not_before = $6, polls_done = $7, next_poll_at = $8
         where id = $1 and version = $2",
        topup.id.0,
        topup.version,
        error.to_string(),
        failed,
        now,
        Time(now.0 + jiff::SignedDuration::try_from(wait).unwrap_or(jiff::SignedDuration::from_hours(1))),
        polls_done,
        next_poll_at as _,
    )
    .execute(&app.pool)
    .await?;
    Ok(wait)
}

/// Where a payment stands in the plan of polls once it was asked about now.
fn next_poll_of(topup: &Topup, now: Time) -> (Option<Time>, i32) {
    if topup.next_poll_at.is_none() {
        return (None, topup.polls_done);
    }
    let due = topup.next_poll_at.is_some_and(|at| at <= now);
    next_poll_after(topup.quoted_at.unwrap_or(topup.created_at), topup.polls_done + i32::from(due), now)
}

/// Asks the gateway: how much came while the quote is open, which only one of its calls reveals, and the state.
async fn observe(app: &App, topup: &Topup, payment_id: &str) -> Result<Observation, GatewayError> {
    let open = matches!(topup.status, TopupStatus::Pending | TopupStatus::Detected);
    if !open {
        return app.gateway.fetch(payment_id).await;
    }
    match app.gateway.check(payment_id).await {
        Ok(checked) if checked.status.is_paid() || checked.received.is_some() => Ok(checked),
        // It may have been settled by the gateway itself, or the call is limited: its state can be had another way.
        Ok(_) | Err(GatewayError::RateLimited { .. } | GatewayError::Unknown { .. }) => {
            app.gateway.fetch(payment_id).await
        }
        Err(error) => Err(error),
    }
}

/// Asks about a top-up's payment and books the answer: once, whatever the number of webhooks, polls and copies.
///
/// # Errors
/// Those of the database.
pub async fn check(app: &App, id: TopupId) -> Result<Next, StepError> {
    let Some(topup) = topups::by_id(app, id).await? else { return Ok(Next::Done) };
    let (Some(payment_id), Some(expected), Some(expires_at)) =
        (topup.payment_id.clone(), topup.expected_crypto, topup.expires_at)
    else {
        return Ok(Next::Done);
    };
    if topup.status == TopupStatus::Forwarded {
        return Ok(Next::Done);
    }
    if let Some(wait) = left_alone(app, &topup) {
        return Ok(Next::Again(wait));
    }
    let seen = match observe(app, &topup, &payment_id).await {
        Ok(seen) => seen,
        Err(error) => {
            let wait = note_failure(app, &topup, &error).await?;
            // A missing payment is not final, and what is refused now is refused again at once: the plan of polls asks later,
            // as it does after some tries in a row.
            let later = matches!(error, GatewayError::Refused { .. } | GatewayError::NotFoundYet);
            return Ok(if later || topup.failures >= MAX_TRIES_IN_A_ROW { Next::Done } else { Next::Again(wait) });
        }
    };
    let now = app.now();
    let status = match &seen.status {
        PaymentStatus::Pending => TopupStatus::Pending,
        PaymentStatus::Detected => TopupStatus::Detected,
        PaymentStatus::Expired => TopupStatus::Expired,
        PaymentStatus::Failed => TopupStatus::Failed,
        PaymentStatus::Confirmed => TopupStatus::Confirmed,
        PaymentStatus::Forwarded => TopupStatus::Forwarded,
        PaymentStatus::Unknown(word) => {
            tracing::warn!(topup = %id, word, "the gateway reports a state this version does not know; it is asked again");
            let (next_poll_at, polls_done) = next_poll_of(&topup, now);
            sqlx::query!(
                "update topup_intents set
                     last_error = left($3, 500), last_answered_at = $4, failures = 0, ask_not_before = null, polls_done = $5,
                     next_poll_at = $6
                 where id = $1 and version = $2",
                id.0,
                topup.version,
                format!("the gateway says '{word}', which this version does not know"),
                now,
                polls_done,
                next_poll_at as _,
            )
            .execute(&app.pool)
            .await?;
            return Ok(Next::Done);
        }
    };
    sqlx::query!(
        "update topup_intents set last_answered_at = $2, failures = 0, ask_not_before = null where id = $1",
        id.0,
        now
    )
    .execute(&app.pool)
    .await?;
    let stable = app.gateway.coins().iter().any(|coin| coin.code == topup.coin && coin.stable);
    let quoted_total = Usd::from_cents(topup.quoted_total_cents.unwrap_or(topup.amount_cents.cents()));
    let known = rules::Known {
        status: topup.status,
        credited: topup.credited_at.is_some(),
        amount: topup.amount_cents,
        quoted_total,
        expected,
        received: topup.received_crypto,
        expires_at: expires_at.0,
        stable,
        paid_late: topup.unresolved_reason.as_deref() == Some("paid_late"),
    };
    let mut claimed = None;
    let mut outcome = rules::advance(&known, status, seen.received, now.0, &app.policy);
    if outcome.credit.is_positive()
        && outcome.excess == Usd::ZERO
        && outcome.held == Usd::ZERO
        && seen.received.is_none()
    {
        // More than was asked may have come, by the word of a webhook alone, and the gateway tells it nowhere else once it
        // has confirmed: nothing is booked on that, an operator looks.
        claimed = claimed_above(app, &payment_id, expected).await?;
        if let Some(claimed) = claimed {
            outcome.unresolved = Some("excess_claimed");
            sqlx::query!("update topup_intents set claimed_crypto = $2 where id = $1", id.0, claimed)
                .execute(&app.pool)
                .await?;
        }
    }
    let changed =
        outcome.status != topup.status || seen.received.is_some_and(|received| Some(received) != topup.received_crypto);
    let polls_due = topup.next_poll_at.is_some_and(|at| at <= now);
    // The same as `topup_apply` means by it: what an operator has looked at is not shown again for no new reason.
    let more_came = seen.received.is_some_and(|received| received > topup.received_crypto.unwrap_or_default());
    let news = outcome.unresolved.filter(|reason| Some(*reason) != topup.unresolved_reason.as_deref() || more_came);
    if !changed && news.is_none() && !polls_due && topup.last_error.is_none() {
        return Ok(Next::Done);
    }
    let (next_poll_at, polls_done) = match (outcome.status, next_poll_of(&topup, now)) {
        (TopupStatus::Forwarded, (_, polls_done)) => (None, polls_done),
        (_, next) => next,
    };
    let applied = sqlx::query_scalar!(
        r#"select topup_apply($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) as "applied!""#,
        id.0,
        topup.version,
        outcome.status.as_str(),
        seen.received as Option<Decimal>,
        outcome.credit.cents(),
        outcome.excess.cents(),
        outcome.held.cents(),
        outcome.unresolved,
        polls_done,
        next_poll_at as _,
        now,
    )
    .fetch_one(&app.pool)
    .await?;
    if !applied {
        // Somebody else wrote first: look at what there is now.
        return Ok(Next::Again(Duration::from_millis(20)));
    }
    if let Some(reason) = news {
        let received = seen.received.or(topup.received_crypto);
        let received =
            received.map_or_else(|| "an amount the gateway no longer tells".to_owned(), |coins| coins.to_string());
        let claim =
            claimed.map_or_else(String::new, |coins| format!("; a webhook claims {coins}, which nothing proves"));
        let detail = format!("payment {payment_id}: {reason}; expected {expected}, received {received}{claim}");
        alerts::raise(&app.pool, "topup_unresolved", &id.to_string(), &detail, now).await?;
    }
    if outcome.credit.is_positive() {
        let mut tx = app.pool.begin().await?;
        let notice = templates::topup_credited(
            topup.user_id,
            None,
            format!("topup_credited:{id}"),
            outcome.credit + outcome.excess,
        );
        mailer::notify_in(&mut tx, notice, now).await?;
        tx.commit().await?;
        metrics::counter!("seedplane_topups_credited_total").increment(1);
    }
    Ok(Next::Done)
}

/// The next poll that is not past yet, so that a worker that was off does not make up for what it missed.
fn next_poll_after(quoted_at: Time, mut polls_done: i32, now: Time) -> (Option<Time>, i32) {
    loop {
        let next = rules::next_poll(quoted_at.0, u32::try_from(polls_done).unwrap_or(0)).map(Time);
        match next {
            Some(at) if at <= now => polls_done += 1,
            other => return (other, polls_done),
        }
    }
}

/// The most that a verified webhook of this payment claims to have come, if that is more than was asked.
async fn claimed_above(app: &App, payment_id: &str, expected: Decimal) -> sqlx::Result<Option<Decimal>> {
    let raws = sqlx::query_scalar!(
        "select raw from gateway_events where payment_id = $1 order by received_at limit 20",
        payment_id
    )
    .fetch_all(&app.pool)
    .await?;
    let claims = raws.iter().filter_map(|raw| {
        let event = serde_json::from_str::<serde_json::Value>(raw).ok()?;
        let claimed = match &event["data"]["received_amount"] {
            serde_json::Value::Number(number) => number.to_string(),
            serde_json::Value::String(text) => text.clone(),
            _ => return None,
        };
        claimed.parse().or_else(|_| Decimal::from_scientific(&claimed)).ok()
    });
    // Less than a cent's worth above is what rounding up to the token's decimals makes.
    Ok(claims.filter(|claimed| *claimed > expected * Decimal::new(1001, 3)).max())
}

/// An open quote is asked about no more often than this. The gateway looks for money by itself about once a minute, and
/// from then on tells nobody how much it found: whoever asks before that knows an over-payment to the cent.
const WATCH_EVERY: jiff::SignedDuration = jiff::SignedDuration::from_secs(4);

/// Asks about every payment that is due for it, at most 500, about open quotes all the time, and closes the orders nobody
/// paid in time.
///
/// # Errors
/// Those of the database.
pub async fn poll(app: &App) -> Result<(), StepError> {
    let now = app.now();
    let due = sqlx::query_scalar!(
        "select id from topup_intents
         where next_poll_at <= $1 and (ask_not_before is null or ask_not_before <= $1) order by next_poll_at limit 500",
        now
    )
    .fetch_all(&app.pool)
    .await?;
    let watched = sqlx::query_scalar!(
        "update topup_intents set looked_at = $1
         where id in (select id from topup_intents
                      where status in ('pending', 'detected') and (looked_at is null or looked_at < $2) and expires_at > $1
                      order by looked_at nulls first limit 200 for update skip locked)
         returning id",
        now,
        Time(now.0 - WATCH_EVERY),
    )
    .fetch_all(&app.pool)
    .await?;
    let lost = sqlx::query_scalar!(
        "select id from topup_intents
         where status = 'created' and created_at < $1 and (ask_not_before is null or ask_not_before <= $2)
         order by created_at limit 500",
        Time(now.0 - jiff::SignedDuration::from_mins(1)),
        now
    )
    .fetch_all(&app.pool)
    .await?;
    let mut connection = app.pool.acquire().await?;
    for id in due.into_iter().chain(watched) {
        jobs::enqueue_in(&mut connection, Job::CheckPayment(id)).await?;
    }
    for id in lost {
        jobs::enqueue_in(&mut connection, Job::OpenTopup(id)).await?;
    }
    drop(connection);
    orders::expire(&app.pool, now).await?;
    Ok(())
}
