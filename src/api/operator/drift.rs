//! What costs money for nothing and what is lost, as the newest look at each provider found it.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::error::{Parameters, Problem},
    app::App,
    auth::Reader,
    clock::Time,
    money::Usd,
    seedbox::{
        catalogues,
        drift::{
            DriftKind,
            findings::{self, Filter, Kept},
        },
    },
};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(drift))
}

/// How old what is said of a provider is.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProviderLook {
    /// The provider.
    pub provider: String,
    /// When everything there was compared with our boxes last; `null`: never.
    pub compared_at: Option<Time>,
    /// How long ago that was, in seconds.
    pub age_seconds: Option<i64>,
    /// When it was looked at last, whatever came of it.
    pub looked_at: Time,
    /// Why the newest look could not compare everything; `null` if it could.
    pub error: Option<String>,
}

/// What does not agree.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DriftReport {
    /// How many findings stand.
    pub count: i64,
    /// What they cost a month together, in US cents, as far as their providers say.
    pub total_monthly_cost_cents: Usd,
    /// How many of them have no cost on record.
    pub without_cost: i64,
    /// The findings, the dearest first, at most 1000.
    pub findings: Vec<Kept>,
    /// How old this is, by provider.
    pub looks: Vec<ProviderLook>,
}

/// What does not agree at the newest look at each provider: also for the command line.
///
/// # Errors
/// Those of the database.
pub async fn drift_report(pool: &PgPool, now: Time, filter: Filter<'_>) -> sqlx::Result<DriftReport> {
    let total = findings::total(pool, filter).await?;
    let known = catalogues::all(pool).await?.into_iter();
    let looks = known.filter(|known| filter.provider.is_none_or(|provider| provider == known.provider));
    Ok(DriftReport {
        count: total.count,
        total_monthly_cost_cents: Usd::from_cents(total.monthly_cost_cents),
        without_cost: total.without_cost,
        findings: findings::list(pool, filter).await?,
        looks: looks
            .map(|known| ProviderLook {
                age_seconds: known.compared_at.map(|at| now.duration_since(at.0).as_secs().max(0)),
                compared_at: known.compared_at,
                looked_at: known.looked_at,
                error: known.error.or(known.billing_error),
                provider: known.provider,
            })
            .collect(),
    })
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// At this provider alone.
    provider: Option<String>,
    /// Of this kind alone.
    kind: Option<DriftKind>,
    /// Those that are over, the newest first; the sums go on being of those that stand.
    #[serde(default)]
    resolved: bool,
}

/// Drift: machines of nobody, twins, lost machines, machines of boxes that ended, and what costs while it brings nothing, each with
/// its monthly cost and what to do. Nothing is deleted by itself.
#[utoipa::path(get, path = "/api/operator/drift", tag = "operator", params(Asked),
    responses((status = 200, body = DriftReport), (status = 422, body = Problem)))]
async fn drift(
    State(app): State<App>,
    _reader: Reader,
    Parameters(asked): Parameters<Asked>,
) -> Result<Json<DriftReport>, Problem> {
    let filter = Filter { provider: asked.provider.as_deref(), kind: asked.kind, resolved: asked.resolved };
    Ok(Json(drift_report(&app.pool, app.now(), filter).await?))
}
