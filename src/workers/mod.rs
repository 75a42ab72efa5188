//! The background: one step a job, on graphile_worker with its recovery on.

use std::time::Duration;

use graphile_worker::{
    IntoTaskHandlerResult, TaskHandler, Worker, WorkerContext, WorkerOptions, WorkerRecoveryConfig,
    WorkerShutdownConfig, WorkerUtils,
};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    accounts, alerts,
    app::App,
    audit::chain,
    billing::sweep::CLOCK_JUMPED,
    byos::{broker::BrokerError, commands},
    clock::{JumpWatch, Time},
    ids::{AttemptId, CommandId, ConnectionId, TopupId, UserId},
    jobs::{self, Job},
    mailer, secrets,
    seedbox::{lifecycle::TransitionError, operations},
};

pub mod byos_connector;
mod byos_log;
pub mod payments;
pub mod reconciler;
pub mod seedbox_billing;
pub mod seedbox_provisioner;

/// The schema graphile_worker keeps its tables in; `enqueue_job` in the migrations names it too.
pub const SCHEMA: &str = "graphile_worker";

/// How many jobs one copy runs at once.
pub const CONCURRENCY: usize = 8;

/// Every so often each periodic job is asked for; a job that still waits is not asked for twice.
const TICK: Duration = Duration::from_secs(5);

/// What a step wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: it is done, given up or no longer needed.
    Done,
    /// To be run again after this long.
    Again(Duration),
}

/// Why a step could not be carried out; its job is run again.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// A write was refused or came too late.
    #[error(transparent)]
    Transition(#[from] TransitionError),
    /// The secret store failed.
    #[error(transparent)]
    Secrets(#[from] secrets::Error),
    /// The payment gateway failed.
    #[error(transparent)]
    Gateway(#[from] crate::payments::Error),
    /// The file system failed.
    #[error("a file could not be written: {0}")]
    File(#[from] std::io::Error),
    /// Something of ours failed on the way to a customer's server.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The copy of the audit checkpoints outside the database cannot be compared with.
    #[error("{0}")]
    Copy(String),
}

/// Makes graphile_worker's tables and lets the application use them. Run as the owner.
///
/// # Errors
/// What went wrong, for the operator.
pub async fn migrate(owner: &PgPool) -> anyhow::Result<()> {
    WorkerUtils::new(owner.clone(), SCHEMA).migrate().await?;
    sqlx::raw_sql(
        "grant usage on schema graphile_worker to seedplane_app;
         grant select, insert, update, delete on all tables in schema graphile_worker to seedplane_app;
         grant usage on all sequences in schema graphile_worker to seedplane_app;
         grant execute on all functions in schema graphile_worker to seedplane_app;
         do $$
         declare
             t text;
         begin
             -- It turns row-level security on and means its tables for their owner; the application is not that.
             for t in select c.relname from pg_class c where c.relnamespace = 'graphile_worker'::regnamespace and c.relkind = 'r'
                      and not exists (select from pg_policy p where p.polrelid = c.oid and p.polname = 'application') loop
                 execute format('create policy application on graphile_worker.%I to seedplane_app using (true) with check (true)', t);
             end loop;
         end $$;",
    )
    .execute(owner)
    .await?;
    Ok(())
}

macro_rules! tasks {
    ($($name:ident = $identifier:literal { $($field:ident: $type:ty),* } |$app:ident, $task:ident| $run:expr;)*) => {
        $(
            #[derive(Serialize, Deserialize, Clone)]
            struct $name { $($field: $type),* }

            impl TaskHandler for $name {
                const IDENTIFIER: &'static str = $identifier;

                async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
                    let $app: App = context.get_ext::<App>().cloned().ok_or("the worker has no application")?;
                    let $task = self;
                    let result: Result<(), StepError> = $run.await;
                    match result {
                        Ok(()) => Ok(()),
                        // Somebody else wrote first: look again at once, without counting it as a failure of anything.
                        Err(StepError::Transition(TransitionError::Stale)) => Err("changed by somebody else; run again".to_owned()),
                        Err(error) => {
                            tracing::warn!(job = $identifier, %error, "a job did not finish and will be run again");
                            metrics::counter!("seedplane_job_errors_total", "job" => $identifier).increment(1);
                            Err(error.to_string())
                        }
                    }
                }
            }
        )*

        fn define(mut options: WorkerOptions) -> WorkerOptions {
            $(options = options.define_job::<$name>();)*
            options
        }
    };
}

tasks! {
    Operate = "operate" { attempt_id: AttemptId } |app, task| async move {
        let next = seedbox_provisioner::operate(&app, task.attempt_id).await;
        // A write that came too late is repaired by running the step again on fresh eyes.
        let next = match next {
            Err(StepError::Transition(TransitionError::Stale)) => Next::Again(Duration::from_millis(50)),
            other => other?,
        };
        if let (Next::Again(wait), Some(attempt)) = (next, operations::find(&app.pool, task.attempt_id).await?) {
            again(&app, Job::Operate { attempt: attempt.id, resource: attempt.resource_id }, wait).await?;
        }
        Ok(())
    };
    OpenTopup = "open_topup" { topup_id: TopupId } |app, task| async move {
        if let Next::Again(wait) = payments::open(&app, task.topup_id).await? {
            again(&app, Job::OpenTopup(task.topup_id), wait).await?;
        }
        Ok(())
    };
    CheckPayment = "check_payment" { topup_id: TopupId } |app, task| async move {
        if let Next::Again(wait) = payments::check(&app, task.topup_id).await? {
            again(&app, Job::CheckPayment(task.topup_id), wait).await?;
        }
        Ok(())
    };
    SettleAccount = "settle_account" { user_id: UserId } |app, task| async move {
        seedbox_billing::settle(&app, task.user_id).await
    };
    BillingSweep = "billing_sweep" {} |app, _task| async move { seedbox_billing::sweep(&app).await };
    PollPayments = "poll_payments" {} |app, _task| async move { payments::poll(&app).await };
    SendMail = "send_mail" {} |app, _task| async move {
        let more = mailer::send_waiting(&app.pool, app.mailer.as_ref(), &app.public_url, &app.clock).await?;
        if more {
            again(&app, Job::SendMail(None), Duration::ZERO).await?;
        }
        Ok(())
    };
    AnswerReset = "answer_reset" { request_id: Uuid } |app, task| async move {
        Ok(accounts::answer_reset(&app, task.request_id).await?)
    };
    ProbeConnections = "probe_connections" {} |app, _task| async move { byos_connector::round(&app).await };
    ProbeConnection = "probe_connection" { connection_id: ConnectionId } |app, task| async move {
        let done = byos_connector::probe(&app, task.connection_id).await;
        unless_busy(&app, Job::ProbeConnection(task.connection_id), done).await
    };
    RunCommand = "run_command" { command_id: CommandId } |app, task| async move {
        let done = byos_connector::run_command(&app, task.command_id).await;
        let Err(StepError::Broker(BrokerError::Busy)) = &done else { return done };
        let Some(command) = commands::by_id(&app.pool, task.command_id).await? else { return Ok(()) };
        unless_busy(&app, Job::RunCommand { command: command.id, connection: command.connection_id }, done).await
    };
    RotateConnection = "rotate_connection" { connection_id: ConnectionId } |app, task| async move {
        let done = byos_connector::rotate(&app, task.connection_id).await;
        unless_busy(&app, Job::RotateConnection(task.connection_id), done).await
    };
    RevokeConnection = "revoke_connection" { connection_id: ConnectionId } |app, task| async move {
        let done = byos_connector::revoke(&app, task.connection_id).await;
        unless_busy(&app, Job::RevokeConnection(task.connection_id), done).await
    };
    Reconcile = "reconcile" {} |app, _task| async move {
        accounts::forget(&app.pool, app.now()).await?;
        reconciler::reconcile(&app).await
    };
    LookAtProviders = "look_at_providers" {} |app, _task| async move { reconciler::look_at_providers(&app).await };
    CountUsage = "count_usage" {} |app, _task| async move { reconciler::count_usage(&app).await };
    SealAudit = "seal_audit" {} |app, _task| async move {
        chain::seal(&app).await?;
        Ok(())
    };
}

/// Asks for a job to be run again soon if the server has as many sessions of ours as it gets: no worker waits for one.
async fn unless_busy(app: &App, job: Job, done: Result<(), StepError>) -> Result<(), StepError> {
    match done {
        Err(StepError::Broker(BrokerError::Busy)) => {
            let wait = Duration::from_millis(u64::from(rand::random::<u8>()) * 2 + 200);
            Ok(again(app, job, wait).await?)
        }
        done => done,
    }
}

/// Asks for a job to be run after `wait` of the system's time.
async fn again(app: &App, job: Job, wait: Duration) -> sqlx::Result<()> {
    let mut connection = app.pool.acquire().await?;
    let at = jiff::Timestamp::now() + wait;
    jobs::enqueue_at_in(&mut connection, job, Some(Time(at))).await
}

fn options(app: &App) -> WorkerOptions {
    let options = WorkerOptions::default()
        .pg_pool(app.pool.clone())
        .schema(SCHEMA)
        .poll_interval(Duration::from_millis(500))
        .add_extension(app.clone());
    define(options)
}

/// A worker for its `run_once`: it carries out the jobs that are due, one after the other, and nothing beside them. All of that
/// is in the one future, so that it stops where it is dropped, as in a copy that is killed there.
///
/// # Errors
/// Those of the database.
pub async fn single(app: &App) -> anyhow::Result<Worker> {
    Ok(options(app).concurrency(1).init().await?)
}

/// Runs jobs until `stop` becomes true; what is running then is given a few seconds to finish.
///
/// # Errors
/// What stopped it.
pub async fn run(app: App, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    let recovery = WorkerRecoveryConfig::default()
        .heartbeat_interval(Duration::from_secs(2))
        .sweep_interval(Duration::from_secs(5))
        .sweep_threshold(Duration::from_secs(15))
        .recovery_delay(Duration::from_secs(1));
    let mut stopped = stop.clone();
    let shutdown = WorkerShutdownConfig::default()
        .listen_os_shutdown_signals(false)
        .grace_period(Duration::from_secs(8))
        .interrupted_job_retry_delay(Duration::ZERO)
        .shutdown_signal(async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        });
    let options = options(&app).concurrency(CONCURRENCY).worker_recovery(recovery).worker_shutdown(shutdown);
    let worker = options.init().await?;

    let ticking = tokio::spawn(async move {
        let mut watch = JumpWatch::start();
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            if let Some(jump) = watch.look()
                && let Err(error) = report_jump(&app, jump).await
            {
                tracing::error!(%error, %jump, "the clock jumped, and no operator could be told");
            }
            if let Err(error) = tick(&app).await {
                tracing::warn!(%error, "the periodic jobs could not be asked for");
            }
        }
    });
    let result = worker.run().await;
    ticking.abort();
    Ok(result?)
}

/// Tells an operator that the clock jumped, which stops suspensions and wipes until the alert is resolved.
async fn report_jump(app: &App, jump: SignedDuration) -> sqlx::Result<()> {
    let direction = if jump.is_negative() { "back" } else { "forward" };
    let detail = format!(
        "the system's clock jumped {direction} by {} seconds (or the machine slept). Nothing is suspended or wiped until \
         this alert is resolved; look at what would happen first",
        jump.abs().as_secs()
    );
    alerts::raise(&app.pool, CLOCK_JUMPED, "clock", &detail, app.now()).await
}

/// Asks for every periodic job once.
///
/// # Errors
/// Those of the database.
pub async fn tick(app: &App) -> sqlx::Result<()> {
    let mut connection = app.pool.acquire().await?;
    for job in [
        Job::BillingSweep,
        Job::PollPayments,
        Job::SendMail(None),
        Job::Reconcile,
        Job::LookAtProviders,
        Job::CountUsage,
        Job::SealAudit,
        Job::ProbeConnections,
    ] {
        jobs::enqueue_in(&mut connection, job).await?;
    }
    Ok(())
}

/// Gives back what died with this installation: jobs that were being carried out, whose try does not count, and idempotency keys
/// whose request has no answer. Right only where no other copy can be running, which is what the lock on the data folder ensures for the
/// embedded database.
///
/// # Errors
/// Those of the database.
pub async fn release_all_claims(app: &App) -> sqlx::Result<()> {
    sqlx::raw_sql(
        "delete from idempotency_keys where response_status is null;
         update graphile_worker._private_jobs set locked_at = null, locked_by = null, attempts = greatest(0, attempts - 1)
             where locked_at is not null;
         update graphile_worker._private_job_queues set locked_at = null, locked_by = null where locked_at is not null;",
    )
    .execute(&app.pool)
    .await?;
    Ok(())
}
