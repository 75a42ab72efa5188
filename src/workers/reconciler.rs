//! Looks at everything as it is: what is stuck, what lost its job, what does not agree. It repairs what is safe to repair,
//! asking again for work that is written down, and tells an operator the rest.

use std::collections::HashSet;

use jiff::SignedDuration;
use seedplane_provisioning::{Machine, MachineState, ProvisioningProvider, ResourceRef};
use uuid::Uuid;

use crate::{
    alerts,
    app::App,
    billing::{ledger, rules, topups},
    clock::Time,
    ids::{AttemptId, ResourceId},
    jobs::{self, Job},
    mailer,
    seedbox::repository,
};

use super::{StepError, seedbox_provisioner};

/// How often the providers are asked for their machines, in the system's time.
const PROVIDERS_EVERY: SignedDuration = SignedDuration::from_mins(5);

/// How many machines of a provider are looked at one by one in a round, at most.
const LOOKS_A_ROUND: usize = 100;

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

/// Compares our boxes with the machines that the providers say they have, every few minutes of the system's time, whatever
/// the number of copies.
///
/// # Errors
/// Those of the database.
pub async fn look_at_providers(app: &App) -> Result<(), StepError> {
    let now = Time(jiff::Timestamp::now());
    let mine = sqlx::query_scalar!(
        r#"insert into worker_rounds (name, begun_at) values ('look_at_providers', $1)
           on conflict (name) do update set begun_at = $1 where worker_rounds.begun_at <= $2
           returning true as "mine!""#,
        now,
        Time(now.0 - PROVIDERS_EVERY),
    )
    .fetch_optional(&app.pool)
    .await?;
    if mine.is_none() {
        return Ok(());
    }
    for (name, provider) in app.providers.iter() {
        compare_with(app, name, provider.as_ref()).await?;
    }
    Ok(())
}

/// A box of ours, to be compared.
struct Ours {
    id: ResourceId,
    resource_ref: Option<String>,
}

/// One provider: machines that nobody pays for, and boxes whose machine is gone. Either is looked at once more by itself
/// before it is believed. No transaction is open during a call.
///
/// # Errors
/// Those of the database.
pub async fn compare_with(app: &App, name: &str, provider: &dyn ProvisioningProvider) -> Result<(), StepError> {
    let machines = match provider.list_owned().await {
        Ok(machines) => machines,
        Err(error) => {
            tracing::warn!(provider = name, %error, "the provider's machines could not be listed; nothing was compared");
            return Ok(());
        }
    };
    report_orphans(app, name, provider, &machines).await?;

    let listed: HashSet<Uuid> = machines.iter().map(|machine| machine.resource_id).collect();
    let (mut after, mut fleet, mut gone) = (Uuid::nil(), 0_u32, Vec::new());
    loop {
        let batch = sqlx::query_as!(
            Ours,
            "select id, resource_ref from seedbox_resources
             where id > $1 and provider = $2 and status in ('active', 'suspended') order by id limit 500",
            after,
            name,
        )
        .fetch_all(&app.pool)
        .await?;
        let Some(last) = batch.last() else { break };
        after = last.id.0;
        fleet += u32::try_from(batch.len()).unwrap_or(u32::MAX);
        for ours in batch {
            if listed.contains(&ours.id.0) || gone.len() >= LOOKS_A_ROUND {
                continue;
            }
            let Some(resource_ref) = ours.resource_ref.map(ResourceRef) else { continue };
            if provider.status(&resource_ref).await.is_ok_and(|status| status.state == MachineState::Gone) {
                gone.push(ours.id);
            }
        }
    }
    let count = u32::try_from(gone.len()).unwrap_or(u32::MAX);
    let now = app.now();
    if count > 0 && !rules::within_blast_limit(count - 1, fleet, &app.policy) {
        // A provider that has lost a part of its fleet at once has more likely lost its memory, or we our access to it.
        let detail = format!(
            "'{name}' says that {count} of {fleet} boxes have no machine. Nothing was done about any of them: look at the \
             provider and at our access to it; boxes whose machine is really gone are suspended (`upstream`) or ended (`fault`) \
             by you"
        );
        alerts::raise(&app.pool, "provider_lost_machines", name, &detail, now).await?;
        return Ok(());
    }
    for id in gone {
        let mut tx = app.pool.begin().await?;
        if let Some(resource) = repository::resource(&mut *tx, id).await? {
            repository::lock_account_in(&mut tx, resource.user_id).await?;
            seedbox_provisioner::report_gone_in(&mut tx, &resource, now).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

/// Machines that carry our tag and belong to no box that lives: they cost money, and may hold somebody's data.
async fn report_orphans(
    app: &App,
    name: &str,
    provider: &dyn ProvisioningProvider,
    machines: &[Machine],
) -> Result<(), StepError> {
    let mut looked_at = 0;
    for batch in machines.chunks(500) {
        let ids: Vec<Uuid> = batch.iter().map(|machine| machine.resource_id).collect();
        let living: HashSet<Uuid> = sqlx::query_scalar!(
            r#"select id as "id!: Uuid" from seedbox_resources where id = any($1) and status <> 'terminated'"#,
            &ids
        )
        .fetch_all(&app.pool)
        .await?
        .into_iter()
        .collect();
        for machine in batch {
            if living.contains(&machine.resource_id) || looked_at >= LOOKS_A_ROUND {
                continue;
            }
            looked_at += 1;
            // Listed just before it was wiped, it is no orphan.
            let status = provider.status(&machine.resource_ref).await;
            if status.is_ok_and(|status| status.state == MachineState::Gone) {
                continue;
            }
            let detail = format!(
                "'{name}' has the machine {} with our tag, and there is no box {} or it has ended. It costs money and may hold \
                 somebody's data; nothing was done to it. Look at it, and delete it at the provider",
                machine.resource_ref, machine.resource_id
            );
            alerts::raise(&app.pool, "orphan_machine", &format!("{name}:{}", machine.resource_ref), &detail, app.now())
                .await?;
        }
    }
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
