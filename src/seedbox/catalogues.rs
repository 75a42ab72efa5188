//! What is known of each provider: what it offers, as workers read it last, and whether it accepts our access. Handlers read
//! this and never ask a provider, so that an outage there breaks no page, and a wrong token is known before an order is taken.

use jiff::SignedDuration;
use seedplane_provisioning::{Capabilities, Error as ProviderError, Size};
use sqlx::{PgConnection, PgExecutor, PgPool};

use super::{repository, words};
use crate::{alerts, clock::Time};

words! {
    /// What was wrong at the newest look at a provider.
    FailureKind {
        /// It does not accept our access: nothing is sold there.
        Access = "access",
        /// It lets us look and not make machines: nothing is sold there.
        CreateAccess = "create_access",
        /// It does not answer, or not so that we understand it. What was read before still counts.
        Failing = "failing",
    }
}

/// The alert of a provider that does not accept our access.
pub const ACCESS: &str = "provider_access";

/// The alert of a provider that cannot be looked at.
pub const UNREACHABLE: &str = "provider_unreachable";

/// A provider that has failed for so long is reported.
const UNREACHABLE_AFTER: SignedDuration = SignedDuration::from_mins(30);

/// What is known of one provider.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// Its name.
    pub provider: String,
    /// What it offered when that was read last.
    pub capabilities: Option<Capabilities>,
    /// When that was.
    pub read_at: Option<Time>,
    /// When it was looked at last, whatever came of it.
    pub looked_at: Time,
    /// Since when it has failed; `None` if the newest look succeeded.
    pub failing_since: Option<Time>,
    /// What is wrong.
    pub failure: Option<FailureKind>,
    /// In its own words.
    pub error: Option<String>,
    /// When everything there was compared with our boxes last.
    pub compared_at: Option<Time>,
    /// Why what is billed could not be read at the newest look.
    pub billing_error: Option<String>,
}

impl Catalogue {
    /// Whether our access is refused.
    pub fn access_refused(&self) -> bool {
        matches!(self.failure, Some(FailureKind::Access | FailureKind::CreateAccess))
    }

    /// The size of this name, with what it costs and where it can be had.
    pub fn size(&self, name: &str) -> Option<&Size> {
        self.capabilities.as_ref()?.sizes.iter().find(|size| size.name == name)
    }
}

struct Row {
    provider: String,
    capabilities: Option<serde_json::Value>,
    read_at: Option<Time>,
    looked_at: Time,
    failing_since: Option<Time>,
    failure: Option<FailureKind>,
    error: Option<String>,
    compared_at: Option<Time>,
    billing_error: Option<String>,
}

impl From<Row> for Catalogue {
    fn from(row: Row) -> Self {
        Self {
            provider: row.provider,
            // What another version wrote and this one cannot read counts as not read: the next look writes it anew.
            capabilities: row.capabilities.and_then(|capabilities| serde_json::from_value(capabilities).ok()),
            read_at: row.read_at,
            looked_at: row.looked_at,
            failing_since: row.failing_since,
            failure: row.failure,
            error: row.error,
            compared_at: row.compared_at,
            billing_error: row.billing_error,
        }
    }
}

/// What is known of a provider.
///
/// # Errors
/// Those of the database.
pub async fn find(executor: impl PgExecutor<'_>, provider: &str) -> sqlx::Result<Option<Catalogue>> {
    let row = sqlx::query_as!(
        Row,
        r#"select provider, capabilities, read_at, looked_at, failing_since, error_kind as "failure: FailureKind", error,
               compared_at, billing_error
           from provider_catalogues where provider = $1"#,
        provider
    )
    .fetch_optional(executor)
    .await?;
    Ok(row.map(Into::into))
}

/// What a provider offered when that was read last.
///
/// # Errors
/// Those of the database.
pub async fn offered(executor: impl PgExecutor<'_>, provider: &str) -> sqlx::Result<Option<Capabilities>> {
    Ok(find(executor, provider).await?.and_then(|known| known.capabilities))
}

/// What is known of every provider that was ever looked at, by name.
///
/// # Errors
/// Those of the database.
pub async fn all(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<Catalogue>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select provider, capabilities, read_at, looked_at, failing_since, error_kind as "failure: FailureKind", error,
               compared_at, billing_error
           from provider_catalogues order by provider limit 100"#
    )
    .fetch_all(executor)
    .await?;
    Ok(rows.into_iter().map(Into::into).collect())
}

/// Writes that a look succeeded, and what was read if it was. Alerts about the provider are over, and orders that waited for it
/// go on. A provider that let us look but not make machines counts as mended once a process starts with new settings
/// (`restarted`) or a machine was made.
///
/// # Errors
/// Those of the database.
pub async fn note_success(
    pool: &PgPool,
    provider: &str,
    capabilities: Option<&Capabilities>,
    restarted: bool,
    at: Time,
) -> sqlx::Result<()> {
    let mut tx = pool.begin().await?;
    let before = sqlx::query_scalar!(
        r#"select error_kind as "failure: FailureKind" from provider_catalogues where provider = $1 for update"#,
        provider
    )
    .fetch_optional(&mut *tx)
    .await?
    .flatten();
    let read = capabilities.map(|capabilities| serde_json::json!(capabilities));
    sqlx::query!(
        "insert into provider_catalogues as known (provider, capabilities, read_at, looked_at)
         values ($1, $2, case when $2::jsonb is null then null else $3::timestamptz end, $3)
         on conflict (provider) do update set
             capabilities = coalesce($2, known.capabilities),
             read_at = case when $2::jsonb is null then known.read_at else $3 end,
             looked_at = $3",
        provider,
        read,
        at,
    )
    .execute(&mut *tx)
    .await?;
    if before != Some(FailureKind::CreateAccess) || restarted {
        clear_failure_in(&mut tx, provider, before, at).await?;
    }
    tx.commit().await
}

/// Writes that a machine could be made, where the provider had not let us make any.
///
/// # Errors
/// Those of the database.
pub async fn note_made(pool: &PgPool, provider: &str, at: Time) -> sqlx::Result<()> {
    let Some(Catalogue { failure: before @ Some(FailureKind::CreateAccess), .. }) = find(pool, provider).await? else {
        return Ok(());
    };
    let mut tx = pool.begin().await?;
    clear_failure_in(&mut tx, provider, before, at).await?;
    tx.commit().await
}

async fn clear_failure_in(
    connection: &mut PgConnection,
    provider: &str,
    before: Option<FailureKind>,
    at: Time,
) -> sqlx::Result<()> {
    let Some(before) = before else { return Ok(()) };
    sqlx::query!(
        "update provider_catalogues set failing_since = null, error_kind = null, error = null where provider = $1",
        provider
    )
    .execute(&mut *connection)
    .await?;
    alerts::resolve_in(connection, ACCESS, provider, at).await?;
    alerts::resolve_in(connection, UNREACHABLE, provider, at).await?;
    if before != FailureKind::Failing {
        repository::wake_waiting_orders_in(connection, provider).await?;
    }
    Ok(())
}

/// Writes that a look, or the making of a machine (`creating`), failed, and tells an operator: at once if our access is refused,
/// after a while if the provider does not answer. That it does not answer says nothing new of our access.
///
/// # Errors
/// Those of the database.
pub async fn note_failure(
    pool: &PgPool,
    provider: &str,
    error: &ProviderError,
    creating: bool,
    at: Time,
) -> sqlx::Result<()> {
    let kind = match error {
        ProviderError::Auth(_) if creating => FailureKind::CreateAccess,
        ProviderError::Auth(_) => FailureKind::Access,
        _ => FailureKind::Failing,
    };
    let mut tx = pool.begin().await?;
    let since = sqlx::query_scalar!(
        r#"insert into provider_catalogues as known (provider, looked_at, failing_since, error_kind, error)
           values ($1, $2, $2, $3, left($4, 2000))
           on conflict (provider) do update set
               looked_at = $2,
               failing_since = coalesce(known.failing_since, $2),
               error_kind = case when $3 = 'failing' then coalesce(known.error_kind, $3) else $3 end,
               error = case when $3 = 'failing' and known.error_kind <> 'failing' then known.error else left($4, 2000) end
           returning failing_since as "since!: Time""#,
        provider,
        at,
        kind.as_str(),
        error.to_string(),
    )
    .fetch_one(&mut *tx)
    .await?;
    if kind != FailureKind::Failing {
        let tried = if creating { "make a machine" } else { "look at it" };
        let detail = format!(
            "'{provider}' did not let us {tried}: {error}. No orders are taken for its plans until it does, and nobody is \
             charged; its boxes run on, and can be neither suspended nor ended meanwhile. Put the right token into the settings \
             of every copy and start them again"
        );
        alerts::raise(&mut *tx, ACCESS, provider, &detail, at).await?;
    } else if at.duration_since(since.0) >= UNREACHABLE_AFTER {
        let detail = format!(
            "'{provider}' could not be looked at since {since}: {error}. Its plans are still sold, and what is said of drift there \
             is as old as that. Look at its status page and at the way there"
        );
        alerts::raise(&mut *tx, UNREACHABLE, provider, &detail, at).await?;
    }
    tx.commit().await
}
