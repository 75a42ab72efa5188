//! Background jobs: a closed set, kept in Postgres by graphile_worker, added in the transaction that makes them needed.
//!
//! A job is one step, safe to run twice and from anywhere: it reads the world again, fences what it writes, and instead of
//! waiting it asks to be run later. Business time lives in rows (`next_sweep_at`, `next_poll_at`), not in jobs.

use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    clock::Time,
    ids::{AttemptId, CommandId, ConnectionId, ResourceId, TopupId, UserId},
};

/// Everything that can run in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// The next step of an operation on a resource. Jobs of one resource run one after the other.
    Operate {
        /// Which operation.
        attempt: AttemptId,
        /// On which resource.
        resource: ResourceId,
    },
    /// Open a payment at the gateway for a top-up.
    OpenTopup(TopupId),
    /// Ask the gateway about a top-up's payment and book what it says.
    CheckPayment(TopupId),
    /// Apply the billing rules to one account now.
    SettleAccount(UserId),
    /// Apply the billing rules to every account that is due.
    BillingSweep,
    /// Ask the gateway about every payment that is due for it, and close orders nobody paid.
    PollPayments,
    /// Hand waiting mails to the mailer; asked for on behalf of one person or, by the clock, of everybody.
    SendMail(Option<UserId>),
    /// Write the mail with which a forgotten password is replaced, if there is such an account.
    AnswerReset(Uuid),
    /// Look for what is stuck, lost or different from what the providers say.
    Reconcile,
    /// Compare our boxes with the machines that the providers have.
    LookAtProviders,
    /// Count what every box uses that is due for it.
    CountUsage,
    /// Seal the heads of the audit chains in a signed checkpoint.
    SealAudit,
    /// Look at every customer's server that is due for it.
    ProbeConnections,
    /// Look at one customer's server now. Jobs of one connection run one after the other.
    ProbeConnection(ConnectionId),
    /// Send one command to a customer's server.
    RunCommand {
        /// Which command.
        command: CommandId,
        /// Over which connection.
        connection: ConnectionId,
    },
    /// The next step of replacing a connection's key.
    RotateConnection(ConnectionId),
    /// Take our key off a customer's server, see that it is locked out, and destroy it.
    RevokeConnection(ConnectionId),
}

impl Job {
    /// Its name in the job table.
    pub fn identifier(&self) -> &'static str {
        match self {
            Self::Operate { .. } => "operate",
            Self::OpenTopup(_) => "open_topup",
            Self::CheckPayment(_) => "check_payment",
            Self::SettleAccount(_) => "settle_account",
            Self::BillingSweep => "billing_sweep",
            Self::PollPayments => "poll_payments",
            Self::SendMail(_) => "send_mail",
            Self::AnswerReset(_) => "answer_reset",
            Self::Reconcile => "reconcile",
            Self::LookAtProviders => "look_at_providers",
            Self::CountUsage => "count_usage",
            Self::SealAudit => "seal_audit",
            Self::ProbeConnections => "probe_connections",
            Self::ProbeConnection(_) => "probe_connection",
            Self::RunCommand { .. } => "run_command",
            Self::RotateConnection(_) => "rotate_connection",
            Self::RevokeConnection(_) => "revoke_connection",
        }
    }

    fn payload(&self) -> Value {
        match self {
            Self::Operate { attempt, .. } => json!({ "attempt_id": attempt }),
            Self::OpenTopup(id) | Self::CheckPayment(id) => json!({ "topup_id": id }),
            Self::SettleAccount(id) => json!({ "user_id": id }),
            Self::AnswerReset(id) => json!({ "request_id": id }),
            Self::RunCommand { command, .. } => json!({ "command_id": command }),
            Self::ProbeConnection(id) | Self::RotateConnection(id) | Self::RevokeConnection(id) => {
                json!({ "connection_id": id })
            }
            _ => json!({}),
        }
    }

    /// A waiting job with the same key is replaced, so that a thousand hints make one look.
    fn key(&self) -> String {
        match self {
            Self::Operate { attempt, .. } => format!("operate:{attempt}"),
            Self::OpenTopup(id) => format!("open_topup:{id}"),
            Self::CheckPayment(id) => format!("check_payment:{id}"),
            Self::SettleAccount(id) => format!("settle_account:{id}"),
            // A key of its own for each person: jobs with one key make their transactions wait for each other.
            Self::SendMail(Some(id)) => format!("send_mail:{id}"),
            Self::AnswerReset(id) => format!("answer_reset:{id}"),
            Self::RunCommand { command, .. } => format!("run_command:{command}"),
            Self::ProbeConnection(id) | Self::RotateConnection(id) | Self::RevokeConnection(id) => {
                format!("{}:{id}", self.identifier())
            }
            _ => self.identifier().to_owned(),
        }
    }

    fn queue(&self) -> Option<String> {
        match self {
            Self::Operate { resource, .. } => Some(format!("resource:{resource}")),
            Self::RunCommand { connection: id, .. }
            | Self::ProbeConnection(id)
            | Self::RotateConnection(id)
            | Self::RevokeConnection(id) => Some(format!("connection:{id}")),
            // Jobs of one queue run one after the other: a gateway or a mail server that hangs takes so many workers and not
            // all of them.
            Self::OpenTopup(id) => Some(format!("gateway-open:{}", lane(id.0, OPEN_LANES))),
            Self::CheckPayment(id) => Some(format!("gateway-check:{}", lane(id.0, CHECK_LANES))),
            Self::SendMail(id) => Some(format!("mail:{}", id.map_or(0, |id| lane(id.0, MAIL_LANES)))),
            _ => None,
        }
    }
}

/// How many payments are opened at once.
const OPEN_LANES: u8 = 2;

/// How many payments are asked about at once.
pub(crate) const CHECK_LANES: u8 = 3;

/// How many mails are handed over at once. With the lanes of the gateway they leave a worker for everything else.
const MAIL_LANES: u8 = 2;

/// Which of so many queues the work about a payment or a person waits in.
fn lane(id: Uuid, lanes: u8) -> u8 {
    id.as_bytes()[15] % lanes
}

/// Adds a job in the caller's transaction: it exists if and only if the change that needs it does.
///
/// # Errors
/// Those of the database.
pub async fn enqueue_in(connection: &mut PgConnection, job: Job) -> sqlx::Result<()> {
    enqueue_at_in(connection, job, None).await
}

/// Like [`enqueue_in`], to run no earlier than `at`, in the system's time (not the trial's clock).
///
/// # Errors
/// Those of the database.
pub async fn enqueue_at_in(connection: &mut PgConnection, job: Job, at: Option<Time>) -> sqlx::Result<()> {
    sqlx::query!(
        "select enqueue_job($1, $2::jsonb::json, $3, $4, $5)",
        job.identifier(),
        job.payload(),
        job.key(),
        job.queue(),
        at as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A job that has failed, and is run again by itself or not any more.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct FailedJob {
    /// Its number.
    pub id: i64,
    /// What it does: the name of a [`Job`].
    pub name: String,
    /// What it is about.
    pub key: Option<String>,
    /// How often it was run.
    pub attempts: i16,
    /// How often it is run at most.
    pub max_attempts: i16,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When it is run next, if it is.
    pub run_at: Time,
}

impl FailedJob {
    /// Whether it is not run again by itself.
    pub fn is_given_up(&self) -> bool {
        self.attempts >= self.max_attempts
    }
}

/// Jobs that have failed, those first that are not run again by themselves; at most 200.
///
/// # Errors
/// Those of the database.
pub async fn failed(pool: &PgPool) -> sqlx::Result<Vec<FailedJob>> {
    // The tables are graphile_worker's, which the migrations do not make: these statements are not checked when it is built.
    sqlx::query_as(
        "select j.id, t.identifier as name, j.key, j.attempts, j.max_attempts, j.last_error, j.run_at
         from graphile_worker._private_jobs j join graphile_worker._private_tasks t on t.id = j.task_id
         where j.last_error is not null
         order by j.attempts < j.max_attempts, j.run_at limit 200",
    )
    .fetch_all(pool)
    .await
}

/// Lets a job that has failed be run again at once, with all its tries. False if there is no such job, or it is being run now.
///
/// # Errors
/// Those of the database.
pub async fn retry_in(connection: &mut PgConnection, id: i64) -> sqlx::Result<bool> {
    let retried = sqlx::query(
        "update graphile_worker._private_jobs set attempts = 0, run_at = now(), last_error = null
         where id = $1 and last_error is not null and locked_at is null",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(retried.rows_affected() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_hangs_leaves_workers_for_the_rest() {
        let queues: std::collections::BTreeSet<String> = (0..1000)
            .flat_map(|_| [Job::OpenTopup(TopupId::new()), Job::CheckPayment(TopupId::new())])
            .map(|job| job.queue().expect("the gateway's jobs wait in queues"))
            .collect();
        assert_eq!(queues.len(), 5);
        assert!(queues.len() < crate::workers::CONCURRENCY, "{queues:?}");
    }
}
