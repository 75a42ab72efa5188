//! What is sold: the plans with what they cost upstream, new plans, and new prices, which are told before they reach anybody.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use uuid::Uuid;

use super::{Tabs, shell};
use crate::{
    api::{
        error::{Body, Problem},
        idempotency::NewId,
        operator::plans::{self as api, PlanBody},
    },
    app::App,
    money::Usd,
    pages::{
        Fields, Said, Shell, page, page_with, status_of,
        visitor::{Acting, Person, Reading},
    },
    seedbox::{Plan, catalogues, plans},
};

struct Sold {
    plan: Plan,
    /// What a month costs upstream, where its provider says.
    cost: Option<Usd>,
    margin: Option<Usd>,
    form_id: Uuid,
}

/// What a provider offers, for whoever adds a plan.
struct Offer {
    provider: String,
    sizes: Vec<(String, Usd, i64)>,
}

#[derive(Template)]
#[template(path = "operator/plans.html")]
struct PlansPage {
    shell: Shell,
    tabs: Tabs,
    said: Option<Said>,
    may_act: bool,
    sold: Vec<Sold>,
    offers: Vec<Offer>,
    /// Whether a price for boxes bought before waits for a second person.
    two_person_rule: bool,
    form_id: Uuid,
}

async fn plans_page(app: &App, person: &Person, said: Option<Said>) -> Result<PlansPage, Problem> {
    let known = catalogues::all(&app.pool).await?;
    let sold = plans::on_sale(&app.pool).await?.into_iter().map(|plan| {
        let catalogue = known.iter().find(|known| known.provider == plan.provider);
        let size = catalogue.and_then(|known| known.size(&plan.size));
        let cost = size.map(|size| Usd::from_cents(size.monthly_cost_cents));
        let margin = cost.map(|cost| plan.price_cents - cost);
        Sold { plan, cost, margin, form_id: Uuid::now_v7() }
    });
    Ok(PlansPage {
        shell: shell(app, person, "Plans"),
        tabs: Tabs { current: "/operator/plans" },
        said,
        may_act: person.is_operator(),
        sold: sold.collect(),
        offers: known
            .iter()
            .filter_map(|known| {
                let sizes = known.capabilities.as_ref()?.sizes.iter();
                let sizes = sizes
                    .take(200)
                    .map(|size| (size.name.clone(), Usd::from_cents(size.monthly_cost_cents), i64::from(size.disk_gb)));
                Some(Offer { provider: known.provider.clone(), sizes: sizes.collect() })
            })
            .collect(),
        two_person_rule: app.two_person_rule,
        form_id: Uuid::now_v7(),
    })
}

/// `GET /operator/plans`
pub(in crate::pages) async fn show(State(app): State<App>, Reading(person): Reading) -> Result<Response, Problem> {
    page(&plans_page(&app, &person, None).await?)
}

/// A plan, or a new version of one.
#[derive(Deserialize)]
pub(in crate::pages) struct NewPlan {
    form_id: Uuid,
    code: String,
    name: String,
    #[serde(default)]
    description: String,
    /// In dollars, as people write it.
    price: String,
    provider: String,
    size: String,
    #[serde(default)]
    region: String,
    disk_gb: String,
    #[serde(default)]
    below_cost: bool,
    #[serde(default)]
    applies_to_existing: bool,
    reason: String,
}

impl NewPlan {
    fn body(self) -> Result<PlanBody, Problem> {
        Ok(PlanBody {
            price_cents: self.price.trim().parse().map_err(|error| Problem::bad_input(format!("{error}")))?,
            disk_gb: self
                .disk_gb
                .trim()
                .parse()
                .map_err(|_| Problem::bad_input("the disk is a whole number of GB; nothing was added"))?,
            code: self.code.trim().to_owned(),
            name: self.name.trim().to_owned(),
            description: self.description.trim().to_owned(),
            provider: self.provider,
            size: self.size.trim().to_owned(),
            region: Some(self.region.trim().to_owned()).filter(|region| !region.is_empty()),
            below_cost: self.below_cost,
            applies_to_existing: self.applies_to_existing,
            reason: self.reason,
        })
    }
}

/// `POST /operator/plans`
pub(in crate::pages) async fn add(
    State(app): State<App>,
    acting: Acting,
    Fields(form): Fields<NewPlan>,
) -> Result<Response, Problem> {
    let new = NewId(form.form_id);
    let result = match form.body() {
        Ok(body) => api::add_plan(State(app.clone()), acting.operator, new, Body(body)).await,
        Err(problem) => Err(problem),
    };
    match result {
        Ok(answer) => Ok(Redirect::to(answer.waits_at().as_deref().unwrap_or("/operator/plans")).into_response()),
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &plans_page(&app, &acting.person, said).await?)
        }
    }
}
