//! Operations asked of a provider: rows of `provision_attempts`, written before any provider hears of them.

use serde_json::json;
use sqlx::{PgConnection, PgExecutor};

use super::{Operation, lifecycle::TransitionError};
use crate::{
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
    ids::{AttemptId, PlanId, ResourceId},
    jobs::{self, Job},
    money::Usd,
};

/// An operation asked of a provider: a row of `provision_attempts`.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct Attempt {
    pub id: AttemptId,
    pub resource_id: ResourceId,
    pub operation: Operation,
    pub reason: String,
    pub actor: String,
    pub status: String,
    pub tries: i32,
    pub last_error: Option<String>,
    pub arrears_cents: Usd,
    pub plan_id: Option<PlanId>,
    pub requested_at: Time,
    pub started_at: Option<Time>,
    pub finished_at: Option<Time>,
    pub asked_at: Option<Time>,
    pub outcome_unknown: bool,
    pub facts: serde_json::Value,
}

impl Attempt {
    /// Whether it still has to be carried out.
    pub fn is_open(&self) -> bool {
        matches!(self.status.as_str(), "requested" | "running")
    }
}

/// Asks for an operation: writes its row, its audit event and its job in the caller's transaction. False if the same operation is already
/// asked for, or this very attempt was, in which case nothing is written.
///
/// # Errors
/// Those of the database.
pub async fn request_in(
    connection: &mut PgConnection,
    attempt: AttemptId,
    resource: ResourceId,
    operation: Operation,
    reason: &str,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<bool> {
    let inserted = sqlx::query_scalar!(
        "insert into provision_attempts (id, resource_id, operation, reason, actor, requested_at)
         values ($1, $2, $3, $4, $5, $6)
         on conflict do nothing
         returning id",
        attempt.0,
        resource.0,
        operation.as_str(),
        reason,
        cause.actor.to_string(),
        at,
    )
    .fetch_optional(&mut *connection)
    .await?;
    if inserted.is_none() {
        return Ok(false);
    }
    let event = Event {
        subject: Subject::Resource(resource),
        action: &format!("resource.{operation}_requested"),
        before: None,
        after: Some(json!({ "attempt_id": attempt, "reason": reason })),
    };
    events::record_in(&mut *connection, at, cause, event).await?;
    jobs::enqueue_in(connection, Job::Operate { attempt, resource }).await?;
    Ok(true)
}

/// Asks for the size of another plan, like [`request_in`]. The reason's first word is `upgrade` or `downgrade`.
///
/// # Errors
/// Those of the database.
pub async fn request_resize_in(
    connection: &mut PgConnection,
    attempt: AttemptId,
    resource: ResourceId,
    plan: PlanId,
    reason: &str,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<bool> {
    let asked = request_in(&mut *connection, attempt, resource, Operation::Resize, reason, at, cause).await?;
    if asked {
        sqlx::query!("update provision_attempts set plan_id = $2 where id = $1", attempt.0, plan.0)
            .execute(connection)
            .await?;
    }
    Ok(asked)
}

/// An operation by its id.
///
/// # Errors
/// Those of the database.
pub async fn find(executor: impl PgExecutor<'_>, id: AttemptId) -> sqlx::Result<Option<Attempt>> {
    sqlx::query_as!(Attempt, "select * from provision_attempts where id = $1", id.0).fetch_optional(executor).await
}

/// The open operations of a resource, oldest first.
///
/// # Errors
/// Those of the database.
pub async fn open_of(executor: impl PgExecutor<'_>, resource: ResourceId) -> sqlx::Result<Vec<Attempt>> {
    sqlx::query_as!(
        Attempt,
        "select * from provision_attempts where resource_id = $1 and status in ('requested', 'running')
         order by requested_at, id limit 100",
        resource.0
    )
    .fetch_all(executor)
    .await
}

/// The newest operations of a resource, open or over, newest first.
///
/// # Errors
/// Those of the database.
pub async fn newest_of(executor: impl PgExecutor<'_>, resource: ResourceId, limit: i64) -> sqlx::Result<Vec<Attempt>> {
    sqlx::query_as!(
        Attempt,
        "select * from provision_attempts where resource_id = $1 order by requested_at desc, id desc limit $2",
        resource.0,
        limit
    )
    .fetch_all(executor)
    .await
}

/// Notes that an operation is being tried once more; the number of this try.
///
/// # Errors
/// Those of the database.
pub async fn begin_try(executor: impl PgExecutor<'_>, id: AttemptId, at: Time) -> sqlx::Result<i32> {
    sqlx::query_scalar!(
        "update provision_attempts set status = 'running', tries = tries + 1, started_at = coalesce(started_at, $2)
         where id = $1 returning tries",
        id.0,
        at,
    )
    .fetch_one(executor)
    .await
}

/// Writes down, before the provider hears of it, that it is asked to make a machine: so that whoever comes after a crash knows
/// that there may be one. `at` is by the system's clock.
///
/// # Errors
/// Those of the database.
pub async fn note_asking(executor: impl PgExecutor<'_>, id: AttemptId, at: Time) -> sqlx::Result<()> {
    sqlx::query!("update provision_attempts set asked_at = $2, outcome_unknown = true where id = $1", id.0, at)
        .execute(executor)
        .await?;
    Ok(())
}

/// Writes down what is known after the provider was asked to make a machine.
///
/// # Errors
/// Those of the database.
pub async fn note_asked(
    executor: impl PgExecutor<'_>,
    id: AttemptId,
    asked_at: Option<Time>,
    outcome_unknown: bool,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update provision_attempts set asked_at = $2, outcome_unknown = $3 where id = $1",
        id.0,
        asked_at,
        outcome_unknown,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// When a provider was last asked to make the machine of a resource, by the system's clock.
///
/// # Errors
/// Those of the database.
pub async fn last_asked(executor: impl PgExecutor<'_>, resource: ResourceId) -> sqlx::Result<Option<Time>> {
    sqlx::query_scalar!(
        "select max(asked_at) from provision_attempts where resource_id = $1 and operation = 'create'",
        resource.0
    )
    .fetch_one(executor)
    .await
}

/// Keeps what was done and seen of a wipe, for the certificate; all of it so far. What is said again and again is kept once.
///
/// # Errors
/// Those of the database.
pub async fn add_facts(
    executor: impl PgExecutor<'_>,
    id: AttemptId,
    facts: &serde_json::Value,
) -> sqlx::Result<serde_json::Value> {
    sqlx::query_scalar!(
        "update provision_attempts a
         set facts = a.facts || coalesce((
             select jsonb_agg(new order by n) from jsonb_array_elements($2) with ordinality as listed (new, n)
             where not exists (select from jsonb_array_elements(a.facts) old where old ->> 'fact' = new ->> 'fact')
               and jsonb_array_length(a.facts) + n <= 500
         ), '[]')
         where id = $1 returning facts",
        id.0,
        facts,
    )
    .fetch_one(executor)
    .await
}

/// Notes why a try did not succeed; it will be tried again.
///
/// # Errors
/// Those of the database.
pub async fn note_error(executor: impl PgExecutor<'_>, id: AttemptId, error: &str) -> sqlx::Result<()> {
    sqlx::query!("update provision_attempts set last_error = left($2, 2000) where id = $1", id.0, error)
        .execute(executor)
        .await?;
    Ok(())
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Done,
    /// Given up; an operator is told.
    Failed,
    /// No longer needed: the world moved on.
    Superseded,
}

/// Ends an operation, in the transaction that writes what came of it: once, so that what it set aside is earned or given
/// back once.
///
/// # Errors
/// [`TransitionError::Stale`] if it is not open any more: somebody called it off or carried it out in the meantime, and
/// nothing of what was to be written with it may stand.
pub async fn finish_in(
    connection: &mut PgConnection,
    id: AttemptId,
    outcome: Outcome,
    error: Option<&str>,
    at: Time,
) -> Result<(), TransitionError> {
    let status = match outcome {
        Outcome::Done => "done",
        Outcome::Failed => "failed",
        Outcome::Superseded => "superseded",
    };
    let finished = sqlx::query!(
        "update provision_attempts set status = $2, last_error = coalesce(left($3, 2000), last_error), finished_at = $4
         where id = $1 and status in ('requested', 'running')",
        id.0,
        status,
        error,
        at,
    )
    .execute(connection)
    .await?;
    if finished.rows_affected() == 0 { Err(TransitionError::Stale) } else { Ok(()) }
}
