//! What operators sell: plans, checked against what the provider offers and costs.

use std::collections::BTreeSet;

use axum::{extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::approvals::{self, Answer, Asked, Request};
use crate::{
    api::{
        error::{Body, Problem},
        idempotency::NewId,
    },
    app::App,
    approvals::{Affected, Approval, Effects, boxes},
    audit::events::{self, Cause, Event, Subject},
    auth::Operator,
    clock::Time,
    ids::{PlanId, ResourceId},
    mailer::{self, templates},
    money::Usd,
    seedbox::{
        Plan, Resource,
        catalogues::{self, Catalogue},
        permissions::{self, Permission},
        plans::{self, NewPlan},
    },
};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(add_plan))
}

/// More a month, or more on one disk, is a slip of the finger.
const MAX_PRICE: Usd = Usd::from_cents(1_000_000);
const MAX_DISK_GB: i32 = 1_000_000;

/// A plan, or a new version of one.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanBody {
    /// Lower-case letters, digits and dashes; an existing code gets a new version.
    pub(crate) code: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: String,
    pub(crate) price_cents: Usd,
    pub(crate) provider: String,
    pub(crate) size: String,
    /// The provider's name of the place; left out where it has one place only.
    #[serde(default)]
    pub(crate) region: Option<String>,
    pub(crate) disk_gb: i32,
    /// Said where a month is sold for less than it costs upstream.
    #[serde(default)]
    pub(crate) below_cost: bool,
    /// Whether boxes bought by earlier versions get this price too: at the first renewal at least 30 days after their
    /// owners were told by mail. They keep theirs if left out.
    #[serde(default)]
    pub(crate) applies_to_existing: bool,
    /// Why.
    pub(crate) reason: String,
}

/// A plan that was added, with what it costs us.
#[derive(Serialize, ToSchema)]
pub(crate) struct AddedPlan {
    #[serde(flatten)]
    plan: Plan,
    /// What a month of it costs upstream, in US cents; `null` if the provider does not say any more.
    upstream_cost_cents: Option<Usd>,
    /// The price less that, in US cents: negative where it is sold under cost.
    margin_cents: Option<Usd>,
}

impl AddedPlan {
    fn new(plan: Plan, catalogue: Option<&Catalogue>) -> Self {
        let size = catalogue.and_then(|catalogue| catalogue.size(&plan.size));
        let upstream_cost_cents = size.map(|size| Usd::from_cents(size.monthly_cost_cents));
        let margin_cents = upstream_cost_cents.map(|cost| plan.price_cents - cost);
        Self { plan, upstream_cost_cents, margin_cents }
    }
}

/// Whether the words and numbers of a plan can be sold at all.
fn check_words(body: &PlanBody) -> Result<(), Problem> {
    let code_is_plain = (1..=40).contains(&body.code.len())
        && !body.code.starts_with('-')
        && body.code.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !code_is_plain {
        return Err(Problem::bad_input("`code` has 1 to 40 lower-case letters, digits and dashes"));
    }
    if body.name.trim().is_empty()
        || body.name.chars().count() > 80
        || !body.price_cents.is_positive()
        || body.disk_gb < 1
    {
        return Err(Problem::bad_input("`name` has 1 to 80 characters; `price_cents` and `disk_gb` are more than 0"));
    }
    // They stand in mails and on labels.
    if [&body.name, &body.description].iter().any(|text| text.chars().any(char::is_control)) {
        return Err(Problem::bad_input("`name` and `description` are one line each; nothing was added"));
    }
    if body.price_cents > MAX_PRICE || body.disk_gb > MAX_DISK_GB || body.description.chars().count() > 1000 {
        return Err(Problem::bad_input(format!(
            "a plan costs at most {MAX_PRICE}, has at most {MAX_DISK_GB} GB, and its `description` at most 1000 characters; \
             nothing was added"
        )));
    }
    Ok(())
}

/// Whether the provider has what the plan names, and what that leaves of its price.
fn check_offer(body: &PlanBody, catalogue: Option<&Catalogue>, standing: &[Permission]) -> Result<(), Problem> {
    let provider = &body.provider;
    if let Some(refused) = catalogue.filter(|catalogue| catalogue.access_refused()) {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "provider-access",
            format!(
                "'{provider}' does not accept our access ({}), so no box of this plan could be made; nothing was added. Put the \
                 right token into the settings of every copy and start them again",
                refused.error.as_deref().unwrap_or_default()
            ),
        ));
    }
    let Some(capabilities) = catalogue.and_then(|catalogue| catalogue.capabilities.as_ref()) else {
        let said = catalogue.and_then(|catalogue| catalogue.error.as_deref()).unwrap_or("nobody has asked it yet");
        return Err(Problem::conflict(format!(
            "what '{provider}' offers could not be read yet: {said}; nothing was added. Workers try every few minutes"
        )));
    };
    let Some(size) = capabilities.sizes.iter().find(|size| size.name == body.size) else {
        let sizes: Vec<&str> = capabilities.sizes.iter().map(|size| size.name.as_str()).collect();
        return Err(Problem::bad_input(format!(
            "'{provider}' has no size '{}'; it has {}. Nothing was added",
            body.size,
            sizes.join(", ")
        )));
    };
    let can_be_had = match &body.region {
        Some(region) => size.regions.contains(region),
        None => size.regions.is_empty(),
    };
    if !can_be_had {
        let one_place = capabilities.sizes.iter().all(|size| size.regions.is_empty());
        let asked = body.region.as_ref().map_or_else(|| "no region".to_owned(), |region| format!("region '{region}'"));
        let where_it_is = match size.regions.join(", ") {
            _ if one_place => format!("'{provider}' has one place only: leave `region` out"),
            none if none.is_empty() => {
                let elsewhere = capabilities.sizes.iter().filter(|size| !size.regions.is_empty());
                let names: Vec<&str> = elsewhere.map(|size| size.name.as_str()).collect();
                format!("it can be had nowhere at the moment; sizes that can be had are {}", names.join(", "))
            }
            regions => format!("it can be had in {regions}"),
        };
        return Err(Problem::bad_input(format!(
            "the plan names {asked} for size '{}' of '{provider}'; {where_it_is}. Nothing was added",
            size.name
        )));
    }
    if let Some(warning) = permissions::warning(provider, capabilities.torrent_stance)
        && !permissions::covers(standing, provider, body.region.as_deref())
    {
        let place = body.region.as_ref().map(|region| format!(" --region {region}")).unwrap_or_default();
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "provider-not-permitted",
            format!(
                "torrents are not marked as permitted at '{provider}': {warning}. Nothing was added. Get its written consent, then \
                 record it: PUT /api/operator/providers/{provider}/permission, or `seedplane provider permit {provider}{place} \
                 --reason \"written consent of ..., ticket ...\" --operator you@...`"
            ),
        ));
    }
    let cost = Usd::from_cents(size.monthly_cost_cents);
    if body.price_cents < cost && !body.below_cost {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "below-cost",
            format!(
                "a month of size '{}' costs us {cost} at '{provider}' and would be sold for {}; nothing was added. Raise \
                 `price_cents`, or say `\"below_cost\": true`",
                size.name, body.price_cents
            ),
        ));
    }
    Ok(())
}

/// A new price that waits for a second person.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NewPrice {
    /// The version that it makes.
    id: PlanId,
    body: PlanBody,
    /// The version that was on sale when it was asked for.
    version_before: Option<i32>,
}

/// Whether a plan can be sold as things are.
async fn check(connection: &mut PgConnection, app: &App, body: &PlanBody) -> Result<Option<Catalogue>, Problem> {
    check_words(body)?;
    if app.provider(&body.provider).is_none() {
        let known: Vec<&str> = app.providers.keys().copied().collect();
        return Err(Problem::bad_input(format!(
            "there is no provider '{}'; there is {}. Nothing was added",
            body.provider,
            known.join(", ")
        )));
    }
    let catalogue = catalogues::find(&mut *connection, &body.provider).await?;
    check_offer(body, catalogue.as_ref(), &permissions::standing(connection).await?)?;
    Ok(catalogue)
}

/// Add a plan or a new version of one. Its size and region are checked against what the provider offers, its price against what
/// the provider takes. Boxes that exist keep the price they were bought at, unless it is said to apply to them: their owners
/// are told, and have 30 days. Where it reaches such boxes and the two-person rule is on, it waits for a second person.
#[utoipa::path(post, path = "/api/operator/plans", tag = "operator", request_body = PlanBody,
    responses((status = 201, body = AddedPlan), (status = 202, body = Approval, description = "It waits for a second person"),
    (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn add_plan(
    State(app): State<App>,
    operator: Operator,
    NewId(request): NewId,
    Body(body): Body<PlanBody>,
) -> Result<Answer<AddedPlan>, Problem> {
    let cause = operator.cause(&body.reason)?;
    let (id, now) = (PlanId(request), app.now());
    // A request repeated because its answer was lost finds what it made.
    if let Some(made) = plans::find(&app.pool, id).await? {
        return added(&app, made).await;
    }
    if let Some(answer) = approvals::asked_before(&app, request).await? {
        return Ok(answer);
    }
    let mut tx = app.pool.begin().await?;
    check(&mut tx, &app, &body).await?;
    if app.two_person_rule && body.applies_to_existing {
        let reached = plans::reached_by_price(&mut *tx, &body.code, body.price_cents).await?;
        if !reached.is_empty() {
            let version_before = plans::version_on_sale(&mut *tx, &body.code).await?;
            drop(tx);
            let asked = price_asked(id, body, version_before, reached);
            return approvals::ask(&app, request, asked, operator.principal.user_id, &cause).await;
        }
    }
    add_in(&mut tx, &app, id, &body, None, now, &cause).await?;
    tx.commit().await?;
    let plan = plans::find(&app.pool, id).await?.ok_or_else(|| Problem::not_found("plan"))?;
    added(&app, plan).await
}

async fn added(app: &App, plan: Plan) -> Result<Answer<AddedPlan>, Problem> {
    let catalogue = catalogues::find(&app.pool, &plan.provider).await?;
    Ok(Answer::Done(StatusCode::CREATED, AddedPlan::new(plan, catalogue.as_ref())))
}

/// What a new price comes to for those who bought before.
fn price_asked(id: PlanId, body: PlanBody, version_before: Option<i32>, reached: Vec<Resource>) -> Asked {
    let (price, bought) = (body.price_cents, boxes(reached.len()));
    let now: Usd = reached.iter().map(|one| one.next_price_cents.unwrap_or(one.price_cents)).sum();
    let then: Usd = reached.iter().map(|_| price).sum();
    let difference = match then >= now {
        true => format!("{} a month more", then - now),
        false => format!("{} a month less", now - then),
    };
    let owners: BTreeSet<_> = reached.iter().map(|one| one.user_id).collect();
    Asked {
        subject: body.code.clone(),
        summary: format!("Sell {} for {price} a month, also to {bought} bought before", body.name.trim()),
        effects: Effects {
            will_happen: vec![
                format!("{} ({}) is sold for {price} a month from now on.", body.name.trim(), body.code),
                format!(
                    "The owners of {bought}, {} in all, are told by mail; the price reaches each box at its first renewal at least 30 days \
                     after that. Boxes bought since it was asked for keep theirs.",
                    owners.len()
                ),
            ],
            costs: format!("Those who are reached pay {now} a month now and {then} then: {difference}."),
            reaches: reached
                .into_iter()
                .map(|one| Affected {
                    user_id: one.user_id,
                    resource_id: Some(one.id),
                    change: format!("{price} a month instead of {}", one.next_price_cents.unwrap_or(one.price_cents)),
                    label: one.label,
                    amount_cents: price,
                })
                .collect(),
        },
        request: Request::PlanPrice(NewPrice { id, body, version_before }),
    }
}

/// Carries out a price that was approved, for the boxes that were asked about.
///
/// # Errors
/// A problem if the plan cannot be sold so any more, or another version came in between.
pub(super) async fn carry_out_in(
    connection: &mut PgConnection,
    app: &App,
    price: &NewPrice,
    reached: &[ResourceId],
    now: Time,
    cause: &Cause,
) -> Result<(), Problem> {
    check(connection, app, &price.body).await?;
    if plans::version_on_sale(&mut *connection, &price.body.code).await? != price.version_before {
        return Err(approvals::outdated("another version of the plan was put on sale since"));
    }
    add_in(connection, app, price.id, &price.body, Some(reached), now, cause).await
}

async fn add_in(
    connection: &mut PgConnection,
    app: &App,
    id: PlanId,
    body: &PlanBody,
    only: Option<&[ResourceId]>,
    now: Time,
    cause: &Cause,
) -> Result<(), Problem> {
    let plan = NewPlan {
        code: &body.code,
        name: body.name.trim(),
        description: &body.description,
        price: body.price_cents,
        provider: &body.provider,
        size: &body.size,
        region: body.region.as_deref(),
        disk_gb: body.disk_gb,
    };
    plans::add_version_in(connection, id, now, &plan).await?;
    let mut told = 0;
    if body.applies_to_existing {
        let earliest = Time(now.0 + app.policy.price_change_notice);
        for resource in plans::announce_price_in(connection, &body.code, body.price_cents, only).await? {
            let key = format!("price_change:{}:{id}", resource.id);
            mailer::notify_in(connection, templates::price_change(&resource, key, body.price_cents, earliest), now)
                .await?;
            told += 1;
        }
    }
    let after = Some(json!({
        "code": body.code, "price_cents": body.price_cents, "provider": body.provider, "size": body.size,
        "region": body.region, "below_cost": body.below_cost, "boxes_told": told,
    }));
    let event = Event { subject: Subject::Other("plan", id.0), action: "plan.version_added", before: None, after };
    events::record_in(connection, now, cause, event).await?;
    Ok(())
}
