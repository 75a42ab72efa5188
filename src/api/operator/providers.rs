//! The providers as operators see them: whether they answer, what they offer and cost, and where torrents may be sold.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use seedplane_provisioning::{Capabilities, Size};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::error::{Body, Problem},
    app::App,
    audit::events::Cause,
    auth::{Operator, Reader},
    clock::Time,
    money::Usd,
    seedbox::{
        catalogues::{self, Catalogue, FailureKind},
        permissions::{self, Permission},
        repository::{self, BoxCounts},
    },
};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(permit, forbid))
}

/// A size, with its price and where it can be had.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SizeView {
    /// The provider's name of it.
    pub name: String,
    /// Disk for the customer's data, in GB (10^9 bytes).
    pub disk_gb: u32,
    /// What a month costs upstream, in US cents.
    pub monthly_cost_cents: Usd,
    /// Where it can be had; empty where the provider has one place only.
    pub regions: Vec<String>,
}

impl From<Size> for SizeView {
    fn from(size: Size) -> Self {
        let monthly_cost_cents = Usd::from_cents(size.monthly_cost_cents);
        Self { name: size.name, disk_gb: size.disk_gb, monthly_cost_cents, regions: size.regions }
    }
}

/// A provider.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProviderView {
    /// Its name in plans.
    pub provider: String,
    /// What was wrong at the newest look; `null` if it succeeded.
    pub failure: Option<FailureKind>,
    /// In its own words.
    pub error: Option<String>,
    /// Since when it has failed.
    pub failing_since: Option<Time>,
    /// When it was looked at last.
    pub looked_at: Time,
    /// When its sizes and prices were read last; `null`: never.
    pub read_at: Option<Time>,
    /// What its terms say about torrents: `allowed`, `unclear` or `forbidden`; `null` where nothing was read yet.
    #[schema(value_type = Option<String>)]
    pub torrent_stance: Option<seedplane_provisioning::TorrentStance>,
    /// What is at stake there, where its terms do not allow torrents by themselves.
    pub warning: Option<String>,
    /// Where they may be sold all the same, by the operator's word.
    pub permissions: Vec<Permission>,
    /// Whether a stopped box goes on costing its full price upstream.
    pub stopped_costs: Option<bool>,
    /// After how many seconds a box that does not answer counts as failed to be made.
    pub ready_within_seconds: Option<u32>,
    /// What it offers, cheapest first.
    pub sizes: Vec<SizeView>,
    /// The boxes there.
    pub boxes: BoxCounts,
}

impl ProviderView {
    fn new(catalogue: Catalogue, standing: &[Permission], boxes: BoxCounts) -> Self {
        let capabilities: Option<Capabilities> = catalogue.capabilities;
        let stance = capabilities.as_ref().map(|capabilities| capabilities.torrent_stance);
        let (stopped_costs, ready_within_seconds) = capabilities
            .as_ref()
            .map(|capabilities| (capabilities.stopped_costs, capabilities.ready_within_seconds))
            .unzip();
        let mut sizes: Vec<SizeView> =
            capabilities.into_iter().flat_map(|capabilities| capabilities.sizes).map(Into::into).collect();
        sizes.sort_by(|one, other| (one.monthly_cost_cents, &one.name).cmp(&(other.monthly_cost_cents, &other.name)));
        Self {
            failure: catalogue.failure,
            error: catalogue.error,
            failing_since: catalogue.failing_since,
            looked_at: catalogue.looked_at,
            read_at: catalogue.read_at,
            torrent_stance: stance,
            warning: stance.and_then(|stance| permissions::warning(&catalogue.provider, stance)),
            permissions: standing.iter().filter(|one| one.provider == catalogue.provider).cloned().collect(),
            stopped_costs,
            ready_within_seconds,
            sizes,
            boxes,
            provider: catalogue.provider,
        }
    }
}

/// Every provider that was ever looked at, by name: also for the command line.
///
/// # Errors
/// Those of the database.
pub async fn providers(pool: &PgPool) -> Result<Vec<ProviderView>, Problem> {
    let standing = permissions::standing(pool).await?;
    let mut counts = repository::count_by_provider(pool).await?;
    let known = catalogues::all(pool).await?;
    Ok(known
        .into_iter()
        .map(|catalogue| {
            let boxes = counts.remove(&catalogue.provider).unwrap_or_default();
            ProviderView::new(catalogue, &standing, boxes)
        })
        .collect())
}

/// Providers: whether they answer, what they offer and cost, where torrents may be sold, and how many boxes they have.
#[utoipa::path(get, path = "/api/operator/providers", tag = "operator", responses((status = 200, body = Vec<ProviderView>)))]
async fn list(State(app): State<App>, _reader: Reader) -> Result<Json<Vec<ProviderView>>, Problem> {
    Ok(Json(providers(&app.pool).await?))
}

/// Where torrents may be sold, or no longer.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PermissionBody {
    /// The provider's name of the place; left out: everywhere at the provider.
    #[serde(default)]
    region: Option<String>,
    /// On what ground, 10 characters or more: "written consent of 2026-11-02, ticket 123".
    reason: String,
}

async fn known(pool: &PgPool, provider: &str) -> Result<Catalogue, Problem> {
    if let Some(known) = catalogues::find(pool, provider).await? {
        return Ok(known);
    }
    let names: Vec<String> = catalogues::all(pool).await?.into_iter().map(|known| known.provider).collect();
    Err(Problem::new(
        StatusCode::NOT_FOUND,
        "not-found",
        format!("there is no provider '{provider}'; there is {}. Nothing was changed", names.join(", ")),
    ))
}

fn check_ground(cause: &Cause) -> Result<(), Problem> {
    if cause.reason.chars().count() < 10 {
        return Err(Problem::bad_input(
            "the reason says on what ground, in 10 characters or more: \"written consent of 2026-11-02, ticket 123\". Nothing was \
             changed",
        ));
    }
    Ok(())
}

/// Records that torrents may be sold at a provider, or in one of its regions: also for the command line. Safe to repeat.
///
/// # Errors
/// A problem that says why not.
pub async fn permit_torrents(
    pool: &PgPool,
    now: Time,
    provider: &str,
    region: Option<&str>,
    cause: &Cause,
) -> Result<ProviderView, Problem> {
    check_ground(cause)?;
    let catalogue = known(pool, provider).await?;
    let sizes = catalogue.capabilities.iter().flat_map(|capabilities| &capabilities.sizes);
    let mut regions: Vec<&str> = sizes.flat_map(|size| &size.regions).map(String::as_str).collect();
    regions.sort_unstable();
    regions.dedup();
    if let Some(region) = region.filter(|region| !regions.contains(region)) {
        let there = if regions.is_empty() { "none by name".to_owned() } else { regions.join(", ") };
        return Err(Problem::bad_input(format!(
            "'{provider}' has no region '{region}'; it has {there}. Nothing was changed"
        )));
    }
    let mut tx = pool.begin().await?;
    permissions::permit_in(&mut tx, provider, region, now, cause).await?;
    tx.commit().await?;
    one(pool, provider).await
}

/// Takes that back: also for the command line. New sales stop; boxes stay as they are.
///
/// # Errors
/// A problem that says why not.
pub async fn forbid_torrents(
    pool: &PgPool,
    now: Time,
    provider: &str,
    region: Option<&str>,
    cause: &Cause,
) -> Result<ProviderView, Problem> {
    check_ground(cause)?;
    known(pool, provider).await?;
    let mut tx = pool.begin().await?;
    if !permissions::forbid_in(&mut tx, provider, region, now, cause).await? {
        let place = region.map_or_else(|| "as a whole".to_owned(), |region| format!("in '{region}'"));
        return Err(Problem::conflict(format!(
            "torrents are not marked as permitted at '{provider}' {place}; nothing was changed. `seedplane provider list` shows \
             where they are"
        )));
    }
    tx.commit().await?;
    one(pool, provider).await
}

async fn one(pool: &PgPool, provider: &str) -> Result<ProviderView, Problem> {
    let found = providers(pool).await?.into_iter().find(|found| found.provider == provider);
    found.ok_or_else(|| Problem::not_found("provider"))
}

/// Record that torrents may be sold at a provider whose terms do not allow them by themselves.
#[utoipa::path(put, path = "/api/operator/providers/{provider}/permission", tag = "operator",
    params(("provider" = String, Path)), request_body = PermissionBody,
    responses((status = 200, body = ProviderView), (status = 404, body = Problem), (status = 422, body = Problem)))]
async fn permit(
    State(app): State<App>,
    operator: Operator,
    Path(provider): Path<String>,
    Body(body): Body<PermissionBody>,
) -> Result<Json<ProviderView>, Problem> {
    let cause = operator.cause(&body.reason)?;
    Ok(Json(permit_torrents(&app.pool, app.now(), &provider, body.region.as_deref(), &cause).await?))
}

/// Take that back. New sales stop; boxes stay as they are.
#[utoipa::path(delete, path = "/api/operator/providers/{provider}/permission", tag = "operator",
    params(("provider" = String, Path)), request_body = PermissionBody,
    responses((status = 200, body = ProviderView), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
async fn forbid(
    State(app): State<App>,
    operator: Operator,
    Path(provider): Path<String>,
    Body(body): Body<PermissionBody>,
) -> Result<Json<ProviderView>, Problem> {
    let cause = operator.cause(&body.reason)?;
    Ok(Json(forbid_torrents(&app.pool, app.now(), &provider, body.region.as_deref(), &cause).await?))
}
