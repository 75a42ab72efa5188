//! Plans and orders.

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    api::{
        error::{Body, Id, Problem},
        idempotency::NewId,
        terms,
    },
    app::App,
    auth::Customer,
    billing::ledger,
    ids::{OrderId, PlanId},
    money::Usd,
    orders::{self, Order, OrderStatus},
    seedbox::{Plan, Unavailable, plans},
};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_plans))
        .routes(routes!(list_orders, place_order))
        .routes(routes!(show_order))
        .routes(routes!(cancel_order))
}

/// The plans on sale, cheapest first.
#[utoipa::path(get, path = "/api/seedbox/plans", tag = "seedboxes", security(()), responses((status = 200, body = Vec<Plan>)))]
async fn list_plans(State(app): State<App>) -> Result<Json<Vec<Plan>>, Problem> {
    Ok(Json(plans::on_sale(&app.pool).await?))
}

/// An order to place.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewOrder {
    /// A plan from `GET /api/seedbox/plans`.
    plan_id: PlanId,
    /// The terms that are accepted with it: `version` of `GET /api/terms`. Whoever has accepted those may leave it out.
    #[serde(default)]
    terms_version: Option<String>,
}

/// An order, and what is missing to pay it.
#[derive(Serialize, ToSchema)]
pub(crate) struct OrderView {
    #[serde(flatten)]
    pub(crate) order: Order,
    /// What has to be paid in before it is paid for, in US cents; 0 once it is.
    pub(crate) missing_cents: Usd,
    /// Why it waits although the balance covers it, or would wait if it did: no box can be made of its plan now. It is paid
    /// by itself once one can.
    pub(crate) unavailable: Option<Unavailable>,
}

pub(crate) async fn view(app: &App, order: Order) -> Result<OrderView, Problem> {
    let available = ledger::balances(&app.pool, order.user_id).await?.available();
    let awaiting = order.status == OrderStatus::AwaitingPayment;
    let missing_cents =
        if awaiting && order.price_cents > available { order.price_cents - available } else { Usd::ZERO };
    let unavailable = match awaiting {
        true => plans::find(&app.pool, order.plan_id).await?.and_then(|plan| plan.unavailable),
        false => None,
    };
    Ok(OrderView { order, missing_cents, unavailable })
}

/// Place an order, and accept the terms with it. It is paid from the balance at once if that covers it; otherwise it waits for
/// a top-up.
#[utoipa::path(post, path = "/api/seedbox/orders", tag = "seedboxes", request_body = NewOrder,
    params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = OrderView), (status = 409, body = Problem), (status = 422, body = Problem)))]
async fn place_order(
    State(app): State<App>,
    customer: Customer,
    NewId(id): NewId,
    Body(body): Body<NewOrder>,
) -> Result<(StatusCode, Json<OrderView>), Problem> {
    let user = customer.principal.user_id;
    if let Err(problem) = terms::agree(&app, &customer, body.terms_version.as_deref()).await {
        // What was ordered before is found again, whatever the terms are by now.
        if orders::order_of(&app.pool, user, OrderId(id)).await?.is_none() {
            return Err(problem);
        }
    }
    let order = orders::place(&app.pool, OrderId(id), user, body.plan_id, app.now(), &customer.cause()).await?;
    Ok((StatusCode::CREATED, Json(view(&app, order).await?)))
}

/// Orders, newest first.
#[utoipa::path(get, path = "/api/seedbox/orders", tag = "seedboxes", responses((status = 200, body = Vec<Order>)))]
async fn list_orders(State(app): State<App>, customer: Customer) -> Result<Json<Vec<Order>>, Problem> {
    Ok(Json(orders::orders_of(&app.pool, customer.principal.user_id).await?))
}

async fn own_order(app: &App, customer: &Customer, id: Uuid) -> Result<Order, Problem> {
    orders::order_of(&app.pool, customer.principal.user_id, OrderId(id))
        .await?
        .ok_or_else(|| Problem::not_found("order"))
}

/// An order.
#[utoipa::path(get, path = "/api/seedbox/orders/{id}", tag = "seedboxes", params(("id" = OrderId, Path)),
    responses((status = 200, body = OrderView), (status = 404, body = Problem)))]
async fn show_order(State(app): State<App>, customer: Customer, Id(id): Id<Uuid>) -> Result<Json<OrderView>, Problem> {
    let order = own_order(&app, &customer, id).await?;
    Ok(Json(view(&app, order).await?))
}

/// Call off an order that is not paid.
#[utoipa::path(post, path = "/api/seedbox/orders/{id}/cancel", tag = "seedboxes", params(("id" = OrderId, Path)),
    responses((status = 200, body = OrderView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn cancel_order(
    State(app): State<App>,
    customer: Customer,
    Id(id): Id<Uuid>,
) -> Result<Json<OrderView>, Problem> {
    let order = own_order(&app, &customer, id).await?;
    orders::cancel(&app.pool, &order, app.now(), &customer.cause()).await?;
    Ok(Json(view(&app, own_order(&app, &customer, id).await?).await?))
}
