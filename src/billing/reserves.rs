//! Asking for operations where money may be set aside for the one that is asked for already, and calling such a one off.

use serde_json::json;
use sqlx::PgConnection;

use super::{
    ledger::{self, Reserve},
    plan_changes,
};
use crate::{
    api::error::Problem,
    audit::events::{self, Actor, Cause, Event, Subject},
    clock::Time,
    ids::AttemptId,
    seedbox::{
        Operation, Resource,
        lifecycle::TransitionError,
        operations::{self, Attempt, Outcome},
        repository,
    },
};

/// What an operation set aside of its owner's money: given back when it is not carried out.
pub fn reserve_of(attempt: &Attempt, resource: &Resource) -> Option<Reserve> {
    match attempt.operation {
        Operation::Resume => Some(Reserve {
            key: format!("resume:{}", attempt.id),
            user_id: resource.user_id,
            resource_id: resource.id,
            order_id: None,
        }),
        Operation::Resize => Some(plan_changes::reserve(attempt.id, resource)),
        _ => None,
    }
}

/// Calls an open operation off and gives back what it set aside. The caller holds the account's row.
///
/// # Errors
/// [`TransitionError::Stale`] if it is not open any more.
pub async fn supersede_in(
    connection: &mut PgConnection,
    attempt: &Attempt,
    resource: &Resource,
    why: &str,
    at: Time,
) -> Result<(), TransitionError> {
    operations::finish_in(connection, attempt.id, Outcome::Superseded, Some(why), at).await?;
    if let Some(reserve) = reserve_of(attempt, resource) {
        ledger::void_in(connection, &reserve, at).await?;
    }
    let event = Event {
        subject: Subject::Resource(resource.id),
        action: &format!("resource.{}_superseded", attempt.operation),
        before: None,
        after: Some(json!({ "attempt_id": attempt.id, "asked_by": attempt.actor, "why": why })),
    };
    events::record_in(connection, at, &Cause::system(), event).await?;
    Ok(())
}

/// Asks for an operation on somebody's behalf: written, or refused in words. An operator's request takes the place of one
/// that is open; anybody else's waits for it. Safe to repeat with the same `attempt`.
///
/// # Errors
/// A problem that says what is being carried out already; nothing was written then.
pub async fn request_in(
    connection: &mut PgConnection,
    attempt: AttemptId,
    resource: &Resource,
    operation: Operation,
    reason: &str,
    at: Time,
    cause: &Cause,
) -> Result<(), Problem> {
    repository::lock_account_in(connection, resource.user_id).await?;
    if operations::find(&mut *connection, attempt).await?.is_some() {
        return Ok(());
    }
    if matches!(cause.actor, Actor::Operator(_)) {
        for open in operations::open_of(&mut *connection, resource.id).await? {
            if open.operation == operation {
                supersede_in(connection, &open, resource, "an operator asked for it in another way", at).await?;
            }
        }
    }
    if operations::request_in(connection, attempt, resource.id, operation, reason, at, cause).await? {
        return Ok(());
    }
    let words = operation.as_str().replace('_', " ");
    Err(Problem::conflict(format!(
        "'{words}' was asked for before and is being carried out; this request was not taken. Look at the box's \
         `operations`, and ask again when it is over"
    )))
}
