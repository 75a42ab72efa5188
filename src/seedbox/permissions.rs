//! Where the operator may sell torrent boxes although the provider's terms do not allow them by themselves.

use seedplane_provisioning::TorrentStance;
use serde::Serialize;
use serde_json::json;
use sqlx::{PgConnection, PgExecutor};
use utoipa::ToSchema;
use uuid::Uuid;

use super::repository;
use crate::{
    audit::events::{self, Cause, Event, Subject},
    clock::Time,
};

/// A permission that was recorded.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Permission {
    /// Its id: the subject of its audit events.
    pub id: Uuid,
    /// The provider.
    pub provider: String,
    /// The provider's name of the place; `null`: everywhere.
    pub region: Option<String>,
    /// On what ground: "written consent of 2026-11-02, ticket 123".
    pub reason: String,
    /// When it was recorded.
    pub permitted_at: Time,
    /// By whom.
    pub permitted_by: String,
}

/// The permissions that stand, by provider and region.
///
/// # Errors
/// Those of the database.
pub async fn standing(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<Permission>> {
    sqlx::query_as!(
        Permission,
        "select id, provider, region, reason, permitted_at, permitted_by from provider_permissions
         where revoked_at is null order by provider, region nulls first limit 1000"
    )
    .fetch_all(executor)
    .await
}

/// Whether one of the permissions that stand covers a region of a provider.
pub fn covers(standing: &[Permission], provider: &str, region: Option<&str>) -> bool {
    standing.iter().any(|permission| {
        permission.provider == provider && (permission.region.is_none() || permission.region.as_deref() == region)
    })
}

/// Records a permission; one for the same place with another ground takes the place of the one before. Orders that waited for it
/// go on. False if it stood already, in which case nothing is written.
///
/// # Errors
/// Those of the database.
pub async fn permit_in(
    connection: &mut PgConnection,
    provider: &str,
    region: Option<&str>,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<bool> {
    let place = region.unwrap_or_default();
    let same = sqlx::query_scalar!(
        r#"select reason = $3 as "same!" from provider_permissions
           where provider = $1 and coalesce(region, '') = $2 and revoked_at is null for update"#,
        provider,
        place,
        cause.reason
    )
    .fetch_optional(&mut *connection)
    .await?;
    match same {
        Some(true) => return Ok(false),
        Some(false) => {
            let replaced = Cause { reason: format!("replaced: {}", cause.reason), ..cause.clone() };
            forbid_in(&mut *connection, provider, region, at, &replaced).await?;
        }
        None => {}
    }
    let id = Uuid::now_v7();
    sqlx::query!(
        "insert into provider_permissions (id, provider, region, reason, permitted_at, permitted_by)
         values ($1, $2, $3, $4, $5, $6)",
        id,
        provider,
        region,
        cause.reason,
        at,
        cause.actor.to_string(),
    )
    .execute(&mut *connection)
    .await?;
    let after = Some(json!({ "provider": provider, "region": region }));
    let event =
        Event { subject: Subject::Other("provider_permission", id), action: "provider.permitted", before: None, after };
    events::record_in(&mut *connection, at, cause, event).await?;
    repository::wake_waiting_orders_in(connection, provider).await?;
    Ok(true)
}

/// Revokes a permission. False if there is none for exactly this place.
///
/// # Errors
/// Those of the database.
pub async fn forbid_in(
    connection: &mut PgConnection,
    provider: &str,
    region: Option<&str>,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<bool> {
    let revoked = sqlx::query_scalar!(
        "update provider_permissions set revoked_at = $3, revoked_by = $4, revoke_reason = left($5, 1000)
         where provider = $1 and coalesce(region, '') = $2 and revoked_at is null returning id",
        provider,
        region.unwrap_or_default(),
        at,
        cause.actor.to_string(),
        cause.reason,
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(id) = revoked else { return Ok(false) };
    let place = json!({ "provider": provider, "region": region });
    let event = Event {
        subject: Subject::Other("provider_permission", id),
        action: "provider.forbidden",
        before: Some(place),
        after: None,
    };
    events::record_in(connection, at, cause, event).await?;
    Ok(true)
}

/// What is at stake at a provider, as the end of a sentence; nothing where its terms allow torrents.
pub fn warning(provider: &str, stance: TorrentStance) -> Option<String> {
    let terms = match stance {
        TorrentStance::Allowed => return None,
        TorrentStance::Unclear => "its terms neither allow nor forbid torrents",
        TorrentStance::Forbidden if provider == "digitalocean" => {
            "DigitalOcean's documents call torrents prohibited traffic (Droplet policies, docs.digitalocean.com)"
        }
        TorrentStance::Forbidden => "its terms forbid torrents",
    };
    Some(format!("{terms}, and for one customer's traffic the whole account can be suspended, with everybody's boxes"))
}
