//! Which terms somebody accepted, and what those terms said.

use serde_json::json;
use sqlx::{PgConnection, PgExecutor};

use crate::{
    audit::events::{self, Cause, Event, Subject},
    brand::Brand,
    clock::Time,
    ids::UserId,
};

/// Whether somebody has accepted the terms in force.
///
/// # Errors
/// Those of the database.
pub async fn accepted(executor: impl PgExecutor<'_>, user: UserId, brand: &Brand) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from terms_acceptances where user_id = $1 and version = $2) as "accepted!""#,
        user.0,
        brand.terms_version(),
    )
    .fetch_one(executor)
    .await
}

/// Writes down that somebody accepted the terms in force, once, with their text and an audit event.
///
/// # Errors
/// Those of the database.
pub async fn accept_in(
    connection: &mut PgConnection,
    user: UserId,
    brand: &Brand,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<()> {
    let version = brand.terms_version();
    sqlx::query!(
        "insert into terms_versions (version, body, first_accepted_at) values ($1, $2, $3) on conflict (version) do nothing",
        version,
        brand.terms(),
        at,
    )
    .execute(&mut *connection)
    .await?;
    let new = sqlx::query!(
        "insert into terms_acceptances (user_id, version, accepted_at) values ($1, $2, $3) on conflict do nothing",
        user.0,
        version,
        at,
    )
    .execute(&mut *connection)
    .await?;
    if new.rows_affected() > 0 {
        let after = Some(json!({ "version": version }));
        let event = Event { subject: Subject::User(user), action: "user.terms_accepted", before: None, after };
        events::record_in(connection, at, cause, event).await?;
    }
    Ok(())
}
