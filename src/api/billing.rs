//! Balance, top-ups, statement and what comes next.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    error::{Body, Id, Parameters, Problem},
    idempotency::NewId,
};
use crate::{
    app::App,
    auth::Customer,
    billing::{
        ledger::{self, Balances, StatementLine},
        sweep::{self, Preview},
        topups::{self, NewTopup, TopupView},
    },
    clock::Time,
    ids::{OrderId, TopupId},
    money::Usd,
};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(account))
        .routes(routes!(list_topups, create_topup))
        .routes(routes!(show_topup))
        .routes(routes!(statement))
        .routes(routes!(preview))
}

/// A balance and how it can be paid into.
#[derive(Serialize, ToSchema)]
struct AccountView {
    #[serde(flatten)]
    balances: Balances,
    /// What can be spent, in US cents.
    available_cents: Usd,
    /// The smallest top-up, in US cents.
    topup_min_cents: Usd,
    /// The largest top-up, in US cents.
    topup_max_cents: Usd,
    /// The coins a top-up can be paid in, stablecoins first.
    coins: Vec<CoinView>,
}

/// A way to pay.
#[derive(Serialize, ToSchema)]
struct CoinView {
    /// What a top-up names: `USDC_POL`.
    code: String,
    /// `USDC`.
    symbol: String,
    /// `Polygon`.
    network: String,
    /// Whether it is worth a dollar.
    stable: bool,
}

/// The balance.
#[utoipa::path(get, path = "/api/billing/account", tag = "billing", responses((status = 200, body = AccountView)))]
async fn account(State(app): State<App>, customer: Customer) -> Result<Json<AccountView>, Problem> {
    let balances = ledger::balances(&app.pool, customer.principal.user_id).await?;
    let coins = app
        .gateway
        .coins()
        .iter()
        .map(|coin| CoinView {
            code: coin.code.to_string(),
            symbol: coin.symbol.to_string(),
            network: coin.network.to_string(),
            stable: coin.stable,
        })
        .collect();
    Ok(Json(AccountView {
        balances,
        available_cents: balances.available(),
        topup_min_cents: app.policy.topup_min,
        topup_max_cents: app.policy.topup_max,
        coins,
    }))
}

/// A top-up to open.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTopupBody {
    /// How much to add to the balance, in US cents.
    pub(crate) amount_cents: Usd,
    /// One of the coins of `GET /api/billing/account`; the first if left out.
    pub(crate) coin: Option<String>,
    /// The order this is for, if any.
    pub(crate) order_id: Option<OrderId>,
}

/// Open a top-up. Answered with 201 and where to pay once the gateway has quoted, usually at once; with 202 if it takes
/// longer, in which case look again.
#[utoipa::path(post, path = "/api/billing/topups", tag = "billing", request_body = NewTopupBody,
    params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = TopupView), (status = 202, body = TopupView), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn create_topup(
    State(app): State<App>,
    customer: Customer,
    NewId(id): NewId,
    Body(body): Body<NewTopupBody>,
) -> Result<(StatusCode, Json<TopupView>), Problem> {
    let user = customer.principal.user_id;
    let new = NewTopup {
        id: TopupId(id),
        user_id: user,
        order_id: body.order_id,
        amount: body.amount_cents,
        coin: body.coin,
    };
    topups::request(&app, new, &customer.cause()).await?;
    // A worker asks the gateway; most quotes are there before the caller would have asked again.
    for _ in 0..60 {
        let topup = topups::of_user(&app, user, TopupId(id)).await?.ok_or_else(|| Problem::not_found("top-up"))?;
        if topup.address.is_some() {
            return Ok((StatusCode::CREATED, Json(topup)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let topup = topups::of_user(&app, user, TopupId(id)).await?.ok_or_else(|| Problem::not_found("top-up"))?;
    Ok((StatusCode::ACCEPTED, Json(topup)))
}

/// Top-ups, newest first.
#[utoipa::path(get, path = "/api/billing/topups", tag = "billing", responses((status = 200, body = Vec<TopupView>)))]
async fn list_topups(State(app): State<App>, customer: Customer) -> Result<Json<Vec<TopupView>>, Problem> {
    Ok(Json(topups::list_of_user(&app, customer.principal.user_id).await?))
}

/// A top-up: what came, what is missing, what happened. Looking makes us ask the gateway again.
#[utoipa::path(get, path = "/api/billing/topups/{id}", tag = "billing", params(("id" = TopupId, Path)),
    responses((status = 200, body = TopupView), (status = 404, body = Problem)))]
async fn show_topup(State(app): State<App>, customer: Customer, Id(id): Id<Uuid>) -> Result<Json<TopupView>, Problem> {
    let topup = topups::of_user(&app, customer.principal.user_id, TopupId(id))
        .await?
        .ok_or_else(|| Problem::not_found("top-up"))?;
    topups::look_soon(&app, &topup).await?;
    Ok(Json(topup))
}

/// Which part of a statement, in which form.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct StatementParameters {
    /// From this time on.
    from: Option<Time>,
    /// Before this time.
    until: Option<Time>,
    /// `json` or `csv`.
    format: Option<String>,
}

/// Every cent that came and went, oldest first, with the balance after each.
#[utoipa::path(get, path = "/api/billing/statement", tag = "billing", params(StatementParameters),
    responses((status = 200, body = Vec<StatementLine>), (status = 422, body = Problem)))]
async fn statement(
    State(app): State<App>,
    customer: Customer,
    Parameters(parameters): Parameters<StatementParameters>,
) -> Result<Response, Problem> {
    let lines = ledger::statement(&app.pool, customer.principal.user_id, parameters.from, parameters.until).await?;
    match parameters.format.as_deref() {
        None | Some("json") => Ok(Json(lines).into_response()),
        Some("csv") => Ok(statement_csv(lines)),
        Some(other) => Err(Problem::bad_input(format!("`format` is json or csv, not '{other}'"))),
    }
}

/// A statement as a file for a spreadsheet.
pub(crate) fn statement_csv(lines: Vec<StatementLine>) -> Response {
    let mut csv = String::from("at,kind,cause,change_cents,available_cents,resource_id,period_start,period_end,id\r\n");
    for line in lines {
        let text = |value: Option<String>| value.unwrap_or_default();
        let fields = [
            line.at.to_string(),
            line.kind.to_string(),
            line.cause,
            line.change_cents.cents().to_string(),
            line.available_cents.cents().to_string(),
            text(line.resource_id.map(|id| id.to_string())),
            text(line.period_start.map(|at| at.to_string())),
            text(line.period_end.map(|at| at.to_string())),
            line.id.to_string(),
        ];
        csv.push_str(&fields.map(|field| csv_field(&field)).join(","));
        csv.push_str("\r\n");
    }
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"statement.csv\""),
    ];
    (headers, csv).into_response()
}

/// Quotes a field where needed, and keeps a spreadsheet from taking text for a formula.
fn csv_field(field: &str) -> String {
    let numeric = field.parse::<i64>().is_ok();
    let field =
        if !numeric && field.starts_with(['=', '+', '-', '@', '\t']) { format!("'{field}") } else { field.to_owned() };
    if field.contains([',', '"', '\r', '\n']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
}

/// How far to look ahead.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct PreviewParameters {
    /// Until when; 60 days ahead if left out, 400 at most.
    until: Option<Time>,
}

/// What will be charged when, until when each box lasts, and the exact sum that keeps it. The same rules as the real thing.
#[utoipa::path(get, path = "/api/billing/preview", tag = "billing", params(PreviewParameters),
    responses((status = 200, body = Preview), (status = 422, body = Problem)))]
async fn preview(
    State(app): State<App>,
    customer: Customer,
    Parameters(parameters): Parameters<PreviewParameters>,
) -> Result<Json<Preview>, Problem> {
    let now = app.now();
    let until = parameters.until.unwrap_or(Time(now.0 + jiff::SignedDuration::from_hours(24 * 60)));
    if until <= now || until.0 > now.0 + jiff::SignedDuration::from_hours(24 * 400) {
        return Err(Problem::bad_input("`until` is a time within the next 400 days"));
    }
    Ok(Json(sweep::preview(&app, customer.principal.user_id, now, until).await?))
}
