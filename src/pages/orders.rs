//! Ordering a box: what it costs, the terms, and where the order stands.

use askama::Template;
use axum::{
    extract::{Query, State},
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Fields, Said, Shell, live, page, page_with, rendered,
    show::{self, Badge, When},
    status_of,
    topups::{Coin, coins, id_of},
    visitor::{Person, SignedIn},
};
use crate::{
    api::{
        error::{Id, Problem},
        seedbox::orders::{self as api, OrderView},
    },
    app::App,
    billing::{
        ledger,
        topups::{self, TopupView},
    },
    ids::{OrderId, PlanId},
    money::Usd,
    orders::{self, OrderStatus},
    seedbox::{Plan, plans},
    terms,
};

/// Which plan.
#[derive(Deserialize)]
pub(super) struct Wanted {
    plan: PlanId,
}

#[derive(Template)]
#[template(path = "order_new.html")]
struct NewOrderPage {
    shell: Shell,
    plan: Plan,
    unavailable: Option<&'static str>,
    available: Usd,
    missing: Usd,
    accepted: bool,
    terms_version: String,
    said: Option<Said>,
    form_id: Uuid,
}

async fn new_page(app: &App, person: &Person, plan: PlanId, said: Option<Said>) -> Result<NewOrderPage, Problem> {
    let user = person.customer.principal.user_id;
    let plan = plans::find(&app.pool, plan).await?.filter(|plan| plan.on_sale);
    let plan = plan.ok_or_else(|| Problem::not_found("plan on sale"))?;
    let available = ledger::balances(&app.pool, user).await?.available();
    Ok(NewOrderPage {
        shell: Shell::new(app, Some(person), format!("Order {}", plan.name), "plans"),
        unavailable: plan.unavailable.map(|why| why.words()),
        available,
        missing: if plan.price_cents > available { plan.price_cents - available } else { Usd::ZERO },
        terms_version: app.brand.terms_version(),
        accepted: terms::accepted(&app.pool, user, &app.brand).await?,
        plan,
        said,
        form_id: Uuid::now_v7(),
    })
}

/// `GET /seedbox/order?plan=...`
pub(super) async fn ask(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    page(&new_page(&app, &person, wanted.plan, None).await?)
}

/// An order to place.
#[derive(Deserialize)]
pub(super) struct NewOrder {
    form_id: Uuid,
    plan_id: PlanId,
    /// Which terms were ticked.
    terms: Option<String>,
}

/// `POST /seedbox/orders`
pub(super) async fn place(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Fields(form): Fields<NewOrder>,
) -> Result<Response, Problem> {
    let user = person.customer.principal.user_id;
    let (now, cause) = (app.now(), person.customer.cause());
    let ticked = form.terms.as_deref() == Some(&app.brand.terms_version());
    if !ticked && !terms::accepted(&app.pool, user, &app.brand).await? {
        let problem = Problem::bad_input(
            "tick that you accept the terms to order; nothing was ordered. If you had ticked it, the terms have changed \
             since you opened the page",
        );
        let said = Some(Said::refused(&problem));
        return page_with(status_of(&problem), &new_page(&app, &person, form.plan_id, said).await?);
    }
    let mut tx = app.pool.begin().await?;
    terms::accept_in(&mut tx, user, &app.brand, now, &cause).await?;
    tx.commit().await?;
    match orders::place(&app.pool, OrderId(form.form_id), user, form.plan_id, now, &cause).await {
        Ok(order) => Ok(Redirect::to(&format!("/seedbox/orders/{}", order.id)).into_response()),
        Err(error) => {
            let problem = Problem::from(error);
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &new_page(&app, &person, form.plan_id, said).await?)
        }
    }
}

#[derive(Template)]
#[template(path = "order.html")]
struct OrderPage {
    shell: Shell,
    id: OrderId,
    said: Option<Said>,
    part: String,
}

#[derive(Template)]
#[template(path = "order_part.html")]
struct OrderPart {
    view: OrderView,
    plan: Option<Plan>,
    badge: Badge,
    unavailable: Option<&'static str>,
    placed: When,
    expires: When,
    topups: Vec<(TopupView, Badge)>,
    coins: Vec<Coin>,
    /// What to pay in: what is missing, or the least that can be.
    suggested: Usd,
    minimum: Usd,
    form_id: Uuid,
}

async fn own(app: &App, person: &Person, id: Uuid) -> Result<orders::Order, Problem> {
    orders::order_of(&app.pool, person.customer.principal.user_id, OrderId(id))
        .await?
        .ok_or_else(|| Problem::not_found("order"))
}

async fn order_part(app: &App, person: &Person, id: Uuid) -> Result<String, Problem> {
    let view = api::view(app, own(app, person, id).await?).await?;
    let topups = topups::list_of_user(app, person.customer.principal.user_id).await?;
    let topups: Vec<TopupView> = topups.into_iter().filter(|topup| topup.order_id == Some(view.order.id)).collect();
    rendered(&OrderPart {
        plan: plans::find(&app.pool, view.order.plan_id).await?,
        badge: show::order_badge(view.order.status),
        unavailable: view.unavailable.map(|why| why.words()),
        placed: When(view.order.created_at),
        expires: When(view.order.expires_at),
        form_id: id_of(&format!("order:{}:{}", view.order.id, topups.len())),
        topups: topups.into_iter().map(|topup| (topup.clone(), show::topup_badge(&topup))).collect(),
        coins: coins(app),
        suggested: view.missing_cents.max(app.policy.topup_min),
        minimum: app.policy.topup_min,
        view,
    })
}

async fn order_page(app: &App, person: &Person, id: Uuid, said: Option<Said>) -> Result<OrderPage, Problem> {
    let part = order_part(app, person, id).await?;
    Ok(OrderPage { shell: Shell::new(app, Some(person), "Your order", "boxes"), id: OrderId(id), said, part })
}

/// `GET /seedbox/orders/{id}`
pub(super) async fn show(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    let order = own(&app, &person, id).await?;
    // Paid at once from the balance: the box's page tells the rest.
    if let (OrderStatus::Paid | OrderStatus::Fulfilled, Some(resource)) = (order.status, order.resource_id) {
        return Ok(Redirect::to(&format!("/seedbox/boxes/{resource}")).into_response());
    }
    page(&order_page(&app, &person, id, None).await?)
}

/// `GET /seedbox/orders/{id}/live`
pub(super) async fn show_live(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    own(&app, &person, id).await?;
    live::stream(&app.clone(), &person.clone(), move || {
        let (app, person) = (app.clone(), person.clone());
        async move { order_part(&app, &person, id).await }
    })
}

/// `POST /seedbox/orders/{id}/cancel`
pub(super) async fn cancel(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    match api::cancel_order(State(app.clone()), person.customer.clone(), Id(id)).await {
        Ok(_) => Ok(Redirect::to(&format!("/seedbox/orders/{id}")).into_response()),
        Err(problem) if problem.status == 409 => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &order_page(&app, &person, id, said).await?)
        }
        Err(problem) => Err(problem),
    }
}
