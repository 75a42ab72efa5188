//! Looks at everything as it is: what is stuck, what lost its job, what does not agree. It repairs what is safe to repair,
//! asking again for work that is written down, and tells an operator the rest.

use jiff::SignedDuration;

use crate::{
    alerts,
    app::App,
    billing::{ledger, topups},
    clock::Time,
    ids::{AttemptId, ResourceId},
    jobs::{self, Job},
    mailer,
};

use super::StepError;

mod providers;
mod usage;

pub use providers::{ask_for_look, compare_with, look_at_providers, look_at_start};
pub use usage::count_usage;

/// A warning that has waited for so long is reported.
const UNWARNED_AFTER: SignedDuration = SignedDuration::from_hours(2 * 24);

/// One round. Everything it asks for is limited and safe to ask twice.
///
/// # Errors
/// Those of the database.
pub async fn reconcile(app: &App) -> Result<(), StepError> {
    requeue_lost_operations(app).await?;
    report_stuck(app).await?;
    report_not_forwarded(app).await?;
    report_failing(app).await?;
    report_unwarned(app).await?;
    report_dead_jobs(app).await?;
    report_ledger(app).await?;
    Ok(())
}

/// An operation that is open and has no job: its job was lost with a crash or ran out of tries. Asked for again.
async fn requeue_lost_operations(app: &App) -> sqlx::Result<()> {
    // graphile_worker's tables are made at run time, so this query is not checked when it is compiled.
    let lost: Vec<(AttemptId, ResourceId)> = sqlx::query_as(
        "select a.id, a.resource_id from provision_attempts a
         where a.status in ('requested', 'running') and not exists (
             select from graphile_worker._private_jobs j
             where j.key = 'operate:' || a.id and j.attempts < j.max_attempts)
           and not exists (
             select from graphile_worker._private_jobs j
             join graphile_worker._private_tasks t on t.id = j.task_id
             where t.identifier = 'operate' and j.payload ->> 'attempt_id' = a.id::text and j.locked_at is not null)
         order by a.requested_at limit 200",
    )
    .fetch_all(&app.pool)
    .await?;
    for (attempt, resource) in lost {
        let mut connection = app.pool.acquire().await?;
        jobs::enqueue_in(&mut connection, Job::Operate { attempt, resource }).await?;
    }
    Ok(())
}

/// Boxes that are in a passing status for longer than they should.
async fn report_stuck(app: &App) -> sqlx::Result<()> {
    let now = app.now();
    let moving = sqlx::query!(
        "select id, status, status_since from seedbox_resources
         where status in ('pending', 'provisioning', 'terminating') order by status_since limit 500"
    )
    .fetch_all(&app.pool)
    .await?;
    for resource in moving {
        let Some(limit) = resource.status.stuck_after() else { continue };
        let since = now.duration_since(resource.status_since.0);
        if since > limit {
            let detail = format!(
                "{} for {} minutes; it should take at most {}",
                resource.status,
                since.as_mins(),
                limit.as_mins()
            );
            alerts::raise(&app.pool, "stuck", &resource.id.to_string(), &detail, now).await?;
        }
    }
    Ok(())
}

/// Payments that are credited and that the gateway has not sent on to us for 6 hours.
async fn report_not_forwarded(app: &App) -> sqlx::Result<()> {
    let now = app.now();
    let late = sqlx::query!(
        "select id, payment_id, credited_cents, credited_at from topup_intents
         where status = 'confirmed' and credited_at < $1 and forwarded_at is null order by credited_at limit 200",
        Time(now.0 - app.policy.not_forwarded_after),
    )
    .fetch_all(&app.pool)
    .await?;
    for topup in late {
        let detail = format!(
            "{} were credited for payment {} and the gateway has not sent the money on",
            topup.credited_cents,
            topup.payment_id.unwrap_or_default()
        );
        alerts::raise(&app.pool, "not_forwarded", &topup.id.to_string(), &detail, now).await?;
    }
    Ok(())
}

/// A gateway or a mailer that fails stops suspensions and wipes of the whole fleet: an operator has to know.
async fn report_failing(app: &App) -> sqlx::Result<()> {
    let now = app.now();
    if topups::gateway_is_failing(&app.pool, now).await? {
        let detail = "the payment gateway has answered nothing for half an hour; nothing is suspended or wiped while it does \
                      not. Look at the `last_error` of open top-ups";
        alerts::raise(&app.pool, "gateway_failing", "gateway", detail, now).await?;
    }
    if mailer::is_failing(&app.pool, now).await? {
        let detail = "mails have waited for more than 15 minutes; nothing is suspended or wiped while they do. Look at the \
                      mailer and its settings";
        alerts::raise(&app.pool, "mailer_failing", "mailer", detail, now).await?;
    }
    Ok(())
}

/// Boxes that are past due and whose owner no warning reaches: they run on unpaid, because nothing is cut off unwarned.
async fn report_unwarned(app: &App) -> sqlx::Result<()> {
    let now = app.now();
    let unwarned = sqlx::query!(
        r#"select r.id as "id!: ResourceId", min(n.created_at) as "since!: Time" from seedbox_resources r
           join notices n on n.user_id = r.user_id and n.resource_id = r.id
               and n.kind in ('past_due', 'final_warning') and n.handed_at is null and n.created_at < $1
           where r.past_due_since is not null and r.status = 'active' and n.created_at >= r.past_due_since
           group by r.id limit 200"#,
        Time(now.0 - UNWARNED_AFTER),
    )
    .fetch_all(&app.pool)
    .await?;
    for resource in unwarned {
        let detail = format!(
            "this box is past due and its owner has not been handed a warning since {}; it runs on unpaid until one is. Look at \
             the mailer and at their address",
            resource.since
        );
        alerts::raise(&app.pool, "warning_not_handed", &resource.id.to_string(), &detail, now).await?;
    }
    Ok(())
}

/// Jobs that ran out of tries.
async fn report_dead_jobs(app: &App) -> sqlx::Result<()> {
    let dead: Vec<(String, i64, Option<String>)> = sqlx::query_as(
        "select t.identifier, j.id, j.last_error from graphile_worker._private_jobs j
         join graphile_worker._private_tasks t on t.id = j.task_id
         where j.attempts >= j.max_attempts and j.locked_at is null and j.key is not null order by j.id limit 50",
    )
    .fetch_all(&app.pool)
    .await?;
    for (identifier, id, error) in dead {
        let detail = format!("job {id} ({identifier}) ran out of tries: {}", error.unwrap_or_default());
        alerts::raise(&app.pool, "job_failed", &format!("{identifier}:{id}"), &detail, app.now()).await?;
    }
    Ok(())
}

/// A balance that does not agree with its transfers is the worst there is: said at once.
async fn report_ledger(app: &App) -> sqlx::Result<()> {
    // The whole ledger is recomputed, so not on every round.
    if app.now().as_second() % 3600 >= 6 {
        return Ok(());
    }
    let check = ledger::check(&app.pool).await?;
    metrics::gauge!("seedplane_ledger_sound").set(if check.is_sound() { 1.0 } else { 0.0 });
    if !check.is_sound() {
        let detail = format!(
            "the transfers add up to {} cents; {} balances do not agree with them; {} boxes owe something else than they say",
            check.sum_cents,
            check.mismatches.len(),
            check.arrears_mismatches.len()
        );
        alerts::raise(&app.pool, "ledger_unsound", "ledger", &detail, app.now()).await?;
    }
    Ok(())
}
