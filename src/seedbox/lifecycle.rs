//! The one guarded lifecycle. This file holds the only statement that sets a resource's status; the database refuses the
//! same pairs by trigger, and a test compares the two over all pairs.

use serde_json::json;
use sqlx::PgConnection;

use super::{Resource, Status, SuspendReason};
use crate::{
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
};

/// Every move there is.
pub const MOVES: &[(Status, Status)] = &[
    (Status::Pending, Status::Provisioning),
    (Status::Provisioning, Status::Active),
    (Status::Active, Status::Suspended),
    (Status::Suspended, Status::Active),
    (Status::Provisioning, Status::Failed),
    (Status::Active, Status::Terminating),
    (Status::Suspended, Status::Terminating),
    (Status::Failed, Status::Terminating),
    (Status::Terminating, Status::Terminated),
];

impl Status {
    /// Whether the lifecycle has a move from here to `next`.
    pub fn can_become(self, next: Self) -> bool {
        MOVES.contains(&(self, next))
    }

    /// After how long in it a resource counts as stuck, for the states that should pass.
    pub fn stuck_after(self) -> Option<jiff::SignedDuration> {
        match self {
            Self::Pending | Self::Provisioning => Some(jiff::SignedDuration::from_mins(10)),
            Self::Terminating => Some(jiff::SignedDuration::from_mins(30)),
            _ => None,
        }
    }
}

/// Why a transition did not happen; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum TransitionError {
    /// The lifecycle has no such move.
    #[error("a resource that is {from} cannot become {to}")]
    NotAllowed {
        /// What it is.
        from: Status,
        /// What was asked.
        to: Status,
    },
    /// Somebody else changed the resource first: read it again.
    #[error("the resource was changed by somebody else in the meantime; nothing was written")]
    Stale,
    /// The database failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// A move and what is observed with it.
#[derive(Debug, Clone)]
pub struct Transition<'a> {
    /// Where to.
    pub to: Status,
    /// A word on why, kept on the row and shown to the owner.
    pub reason: Option<&'a str>,
    /// With `Suspended`: why.
    pub suspend_reason: Option<SuspendReason>,
    /// The provider's name of the machine, once known.
    pub resource_ref: Option<&'a str>,
    /// Where the web interface answers, once known.
    pub web_url: Option<&'a str>,
    /// The stamped facts of the wipe, with `Terminated`.
    pub wipe_certificate: Option<serde_json::Value>,
}

impl<'a> Transition<'a> {
    /// A plain move.
    pub fn to(to: Status) -> Self {
        Self { to, reason: None, suspend_reason: None, resource_ref: None, web_url: None, wipe_certificate: None }
    }

    /// With a word on why.
    #[must_use]
    pub fn because(mut self, reason: &'a str) -> Self {
        self.reason = Some(reason);
        self
    }
}

/// Moves `resource` to another status and writes the audit event, in the caller's transaction, fenced by the version that
/// `resource` was read at. On success `resource` holds what was written. Its follow-up jobs belong in the same transaction.
///
/// # Errors
/// [`TransitionError`]; the caller's transaction is to be rolled back.
pub async fn transition_in(
    connection: &mut PgConnection,
    resource: &mut Resource,
    at: Time,
    cause: &Cause,
    transition: Transition<'_>,
) -> Result<(), TransitionError> {
    let from = resource.status;
    let to = transition.to;
    if !from.can_become(to) {
        return Err(TransitionError::NotAllowed { from, to });
    }
    let suspended = to == Status::Suspended;
    let suspend_reason = if suspended { transition.suspend_reason.or(Some(SuspendReason::Operator)) } else { None };
    let version = sqlx::query_scalar!(
        r#"update seedbox_resources set
               status = $3, status_since = $4::timestamptz, status_reason = $5, suspend_reason = $6, version = version + 1,
               resource_ref = coalesce($7, resource_ref), web_url = coalesce($8, web_url),
               suspended_at = case when $3 = 'suspended' then $4::timestamptz end,
               activated_at = case when $3 = 'active' then coalesce(activated_at, $4::timestamptz) else activated_at end,
               terminated_at = case when $3 = 'terminated' then $4::timestamptz end,
               wipe_certificate = coalesce($9, wipe_certificate)
           where id = $1 and version = $2
           returning version"#,
        resource.id.0,
        resource.version,
        to.as_str(),
        at,
        transition.reason,
        suspend_reason.map(SuspendReason::as_str),
        transition.resource_ref,
        transition.web_url,
        transition.wipe_certificate,
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or(TransitionError::Stale)?;

    resource.status = to;
    resource.status_since = at;
    resource.status_reason = transition.reason.map(str::to_owned);
    resource.suspend_reason = suspend_reason;
    resource.version = version;
    resource.suspended_at = suspended.then_some(at);
    if to == Status::Active {
        resource.activated_at.get_or_insert(at);
    }
    if let Some(resource_ref) = transition.resource_ref {
        resource.resource_ref = Some(resource_ref.to_owned());
    }
    if let Some(web_url) = transition.web_url {
        resource.web_url = Some(web_url.to_owned());
    }

    let action = format!("resource.{to}");
    let mut after = json!({ "status": to, "version": version });
    for (key, value) in [
        ("reason", transition.reason.map(Into::into)),
        ("suspend_reason", suspend_reason.map(|reason| reason.as_str().into())),
        ("resource_ref", transition.resource_ref.map(Into::into)),
        ("wipe_certificate", transition.wipe_certificate),
    ] {
        if let Some(value) = value {
            after[key] = value;
        }
    }
    let event = Event {
        subject: Subject::Resource(resource.id),
        action: &action,
        before: Some(json!({ "status": from })),
        after: Some(after),
    };
    events::record_in(connection, at, cause, event).await?;
    Ok(())
}

/// Changes why a suspended resource is suspended, such as from `billing` to `abuse`, with its audit event.
///
/// # Errors
/// [`TransitionError::Stale`] if it is not suspended any more or somebody else wrote first.
pub async fn change_suspend_reason_in(
    connection: &mut PgConnection,
    resource: &mut Resource,
    reason: SuspendReason,
    at: Time,
    cause: &Cause,
) -> Result<(), TransitionError> {
    let version = sqlx::query_scalar!(
        // What the upstream does not serve counts from when that is seen.
        "update seedbox_resources set
             suspend_reason = $3, suspended_at = case when $3 = 'upstream' then $4::timestamptz else suspended_at end,
             version = version + 1
         where id = $1 and version = $2 and status = 'suspended' returning version",
        resource.id.0,
        resource.version,
        reason.as_str(),
        at,
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or(TransitionError::Stale)?;
    let event = Event {
        subject: Subject::Resource(resource.id),
        action: "resource.suspend_reason_changed",
        before: Some(json!({ "suspend_reason": resource.suspend_reason })),
        after: Some(json!({ "suspend_reason": reason, "version": version })),
    };
    events::record_in(connection, at, cause, event).await?;
    resource.version = version;
    resource.suspend_reason = Some(reason);
    Ok(())
}
