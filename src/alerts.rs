//! What a person has to look at: one open alert for each kind and subject.

use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use crate::clock::Time;

/// Raises an alert for the operator, once while it is open.
///
/// # Errors
/// Those of the database.
pub async fn raise(
    executor: impl PgExecutor<'_>,
    kind: &str,
    subject: &str,
    detail: &str,
    at: Time,
) -> sqlx::Result<()> {
    tracing::warn!(kind, subject, detail, "operator alert");
    sqlx::query!(
        "insert into operator_alerts (id, kind, subject, detail, created_at) values ($1, $2, $3, left($4, 2000), $5)
         on conflict (kind, subject) where resolved_at is null do nothing",
        Uuid::now_v7(),
        kind,
        subject,
        detail,
        at,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// An open operator alert.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct Alert {
    /// What sort of thing needs a look.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// What happened.
    pub detail: String,
    /// Since when.
    pub created_at: Time,
}

/// Open alerts, newest first, at most 200.
///
/// # Errors
/// Those of the database.
pub async fn open(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<Alert>> {
    sqlx::query_as!(
        Alert,
        "select kind, subject, detail, created_at from operator_alerts where resolved_at is null
         order by created_at desc limit 200"
    )
    .fetch_all(executor)
    .await
}

/// Whether there is such an open alert.
///
/// # Errors
/// Those of the database.
pub async fn is_open(executor: impl PgExecutor<'_>, kind: &str, subject: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from operator_alerts where kind = $1 and subject = $2 and resolved_at is null) as "open!""#,
        kind,
        subject
    )
    .fetch_one(executor)
    .await
}

/// Marks an alert as dealt with. False if there is no such open alert.
///
/// # Errors
/// Those of the database.
pub async fn resolve_in(connection: &mut PgConnection, kind: &str, subject: &str, at: Time) -> sqlx::Result<bool> {
    let resolved = sqlx::query!(
        "update operator_alerts set resolved_at = $3 where kind = $1 and subject = $2 and resolved_at is null",
        kind,
        subject,
        at
    )
    .execute(connection)
    .await?;
    Ok(resolved.rows_affected() > 0)
}
