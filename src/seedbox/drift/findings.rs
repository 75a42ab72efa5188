//! What the newest look at each provider found, and what earlier ones did that is over.

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{DriftKind, Finding, Ours};
use crate::{
    clock::Time,
    ids::ResourceId,
    seedbox::{Status, SuspendReason},
};

/// A finding, as it is kept.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Kept {
    /// Its id.
    pub id: Uuid,
    /// At which provider.
    pub provider: String,
    /// What does not agree.
    pub kind: DriftKind,
    /// The provider's name of it; `null` where nothing is there.
    pub resource_ref: Option<String>,
    /// Our id, in its tag or of the box.
    pub resource_id: Option<Uuid>,
    /// What a month of it costs, in US cents; `null` if the provider does not say.
    pub monthly_cost_cents: Option<i64>,
    /// Since when; where that is not known, when it was seen first.
    pub since: Time,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub proposal: String,
    /// When it was seen first.
    pub first_seen_at: Time,
    /// When it was seen last.
    pub last_seen_at: Time,
    /// The look that did not find it any more; `null`: it is there still.
    pub resolved_at: Option<Time>,
}

/// Which findings are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter<'a> {
    /// At this provider alone.
    pub provider: Option<&'a str>,
    /// Of this kind alone.
    pub kind: Option<DriftKind>,
    /// Those that are over.
    pub resolved: bool,
}

/// Boxes at a provider that have not ended, after `after` by id, at most 500.
///
/// # Errors
/// Those of the database.
pub async fn living(executor: impl PgExecutor<'_>, provider: &str, after: Uuid) -> sqlx::Result<Vec<Ours>> {
    sqlx::query_as!(
        Ours,
        r#"select id, label, status as "status: Status", suspend_reason as "suspend_reason: SuspendReason", resource_ref, status_since
           from seedbox_resources where id > $1 and provider = $2 and status <> 'terminated' order by id limit 500"#,
        after,
        provider
    )
    .fetch_all(executor)
    .await
}

/// Boxes at a provider that have ended, of these.
///
/// # Errors
/// Those of the database.
pub async fn ended(executor: impl PgExecutor<'_>, provider: &str, ids: &[Uuid]) -> sqlx::Result<Vec<Ours>> {
    sqlx::query_as!(
        Ours,
        r#"select id as "id: ResourceId", label, status as "status: Status", suspend_reason as "suspend_reason: SuspendReason",
               resource_ref, status_since
           from seedbox_resources where id = any($1) and provider = $2 and status = 'terminated'"#,
        ids,
        provider
    )
    .fetch_all(executor)
    .await
}

/// What is over: its kind, subject and name upstream.
#[derive(Debug, Clone)]
pub struct Over {
    /// What did not agree.
    pub kind: DriftKind,
    /// What it was about.
    pub subject: String,
    /// The provider's name of it.
    pub resource_ref: Option<String>,
}

/// What became of the findings.
#[derive(Debug, Clone)]
pub struct Looked {
    /// What was not found again.
    pub over: Vec<Over>,
    /// For each finding, whether no look before found it.
    pub is_new: Vec<bool>,
}

/// Puts what a look found in the place of what the one before did; what was not found again is over, and answered.
/// `billing_error` says that the look had no list of what is billed: nothing is known of costs then.
///
/// # Errors
/// Those of the database.
pub async fn replace_in(
    connection: &mut PgConnection,
    provider: &str,
    found: &[Finding],
    billing_error: Option<&str>,
    at: Time,
) -> sqlx::Result<Looked> {
    let (mut seen, mut is_new) = (Vec::with_capacity(found.len()), Vec::with_capacity(found.len()));
    for finding in found {
        let new = Uuid::now_v7();
        let id = sqlx::query_scalar!(
            "insert into drift_findings as known (id, provider, kind, subject, resource_ref, resource_id, monthly_cost_cents, since,
                 detail, proposal, first_seen_at, last_seen_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, left($9, 2000), left($10, 2000), $11, $11)
             on conflict (provider, kind, subject) where resolved_at is null do update set
                 monthly_cost_cents = coalesce($7, known.monthly_cost_cents), since = coalesce($8, known.since),
                 detail = left($9, 2000), proposal = left($10, 2000), last_seen_at = $11
             returning id",
            new,
            provider,
            finding.kind.as_str(),
            finding.subject,
            finding.resource_ref,
            finding.resource_id,
            finding.monthly_cost_cents,
            finding.since as _,
            finding.detail,
            finding.proposal,
            at,
        )
        .fetch_one(&mut *connection)
        .await?;
        is_new.push(id == new);
        seen.push(id);
    }
    let over = sqlx::query_as!(
        Over,
        r#"update drift_findings set resolved_at = $3
           where provider = $1 and resolved_at is null and id <> all($2) and ($4 or kind <> 'costing_while_free')
           returning kind as "kind: DriftKind", subject, resource_ref"#,
        provider,
        &seen,
        at,
        billing_error.is_none(),
    )
    .fetch_all(&mut *connection)
    .await?;
    sqlx::query!(
        "update provider_catalogues set billing_error = left($2, 2000),
             compared_at = case when $2::text is null then $3 else compared_at end
         where provider = $1",
        provider,
        billing_error,
        at,
    )
    .execute(connection)
    .await?;
    Ok(Looked { over, is_new })
}

/// Findings, the dearest first, or those that are over, the newest first; at most 1000.
///
/// # Errors
/// Those of the database.
pub async fn list(executor: impl PgExecutor<'_>, filter: Filter<'_>) -> sqlx::Result<Vec<Kept>> {
    sqlx::query_as!(
        Kept,
        r#"select id, provider, kind as "kind: DriftKind", resource_ref, resource_id, monthly_cost_cents,
               coalesce(since, first_seen_at) as "since!: Time", detail, proposal, first_seen_at, last_seen_at, resolved_at
           from drift_findings
           where (resolved_at is not null) = $1 and provider = coalesce($2, provider) and kind = coalesce($3, kind)
           order by resolved_at desc nulls first, monthly_cost_cents desc nulls first, provider, kind, subject limit 1000"#,
        filter.resolved,
        filter.provider,
        filter.kind.map(DriftKind::as_str),
    )
    .fetch_all(executor)
    .await
}

/// What findings cost together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Total {
    /// How many there are.
    pub count: i64,
    /// What they cost a month, in US cents, as far as their providers say.
    pub monthly_cost_cents: i64,
    /// How many of them have no cost on record.
    pub without_cost: i64,
}

/// What the findings that stand cost together.
///
/// # Errors
/// Those of the database.
pub async fn total(executor: impl PgExecutor<'_>, filter: Filter<'_>) -> sqlx::Result<Total> {
    sqlx::query_as!(
        Total,
        r#"select count(*) as "count!", coalesce(sum(monthly_cost_cents), 0)::bigint as "monthly_cost_cents!",
               count(*) filter (where monthly_cost_cents is null) as "without_cost!"
           from drift_findings
           where resolved_at is null and provider = coalesce($1, provider) and kind = coalesce($2, kind)"#,
        filter.provider,
        filter.kind.map(DriftKind::as_str),
    )
    .fetch_one(executor)
    .await
}
