//! Money that an operator moves: every change with a reason.

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Why, any,
    approvals::{self, Answer, Asked, Request},
};
use crate::{
    accounts,
    api::{
        error::{Body, Id, Parameters, Problem},
        idempotency::NewId,
        seedbox::resources::ResourceView,
    },
    app::App,
    approvals::{Affected, Approval, Effects},
    auth::{Operator, Reader},
    billing::{
        adjustments::{self, Payout, Resolution, UnresolvedTopup},
        ledger::{self, Balances},
        refunds,
    },
    ids::{TopupId, UserId},
    money::Usd,
    seedbox::repository,
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(find_customer))
        .routes(routes!(grant_promotion))
        .routes(routes!(release_balance))
        .routes(routes!(unresolved_topups))
        .routes(routes!(resolve_topup))
        .routes(routes!(refund))
        .routes(routes!(open_payouts))
        .routes(routes!(reserve_payout))
        .routes(routes!(payout_sent))
        .routes(routes!(payout_void))
}

/// Whom to look for.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct FindParameters {
    /// Their address, whole.
    email: String,
}

/// A customer as an operator sees them.
#[derive(Serialize, ToSchema)]
struct CustomerView {
    id: UserId,
    email: String,
    #[serde(flatten)]
    balances: Balances,
    /// Why the balance cannot be paid out, if it cannot.
    payout_hold_reason: Option<String>,
}

/// Find a customer by their address.
#[utoipa::path(get, path = "/api/operator/customers", tag = "operator", params(FindParameters),
    responses((status = 200, body = CustomerView), (status = 404, body = Problem)))]
async fn find_customer(
    State(app): State<App>,
    _reader: Reader,
    Parameters(find): Parameters<FindParameters>,
) -> Result<Json<CustomerView>, Problem> {
    let found = accounts::customer_by_email(&app.pool, &find.email).await?;
    let (id, email, payout_hold_reason) = found.ok_or_else(|| Problem::not_found("customer"))?;
    let balances = ledger::balances(&app.pool, id).await?;
    Ok(Json(CustomerView { id, email, balances, payout_hold_reason }))
}

/// A sum, and why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sum {
    /// In US cents.
    pub(crate) amount_cents: Usd,
    /// Why.
    pub(crate) reason: String,
}

async fn balances(app: &App, user: Uuid) -> Result<Json<Balances>, Problem> {
    Ok(Json(ledger::balances(&app.pool, UserId(user)).await?))
}

async fn must_exist(app: &App, user: Uuid) -> Result<UserId, Problem> {
    match accounts::exists(&app.pool, UserId(user)).await? {
        true => Ok(UserId(user)),
        false => Err(Problem::not_found("customer")),
    }
}

/// Give promotional credit: spent first, never paid out.
#[utoipa::path(post, path = "/api/operator/customers/{id}/promotion", tag = "operator", params(("id" = UserId, Path)),
    request_body = Sum, responses((status = 200, body = Balances), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn grant_promotion(
    State(app): State<App>,
    operator: Operator,
    NewId(grant): NewId,
    Id(id): Id<Uuid>,
    Body(body): Body<Sum>,
) -> Result<Json<Balances>, Problem> {
    let cause = operator.cause(&body.reason)?;
    let user = must_exist(&app, id).await?;
    let mut tx = app.pool.begin().await?;
    adjustments::grant_promotion_in(&mut tx, grant, user, body.amount_cents, app.now(), &cause, &app.policy).await?;
    tx.commit().await?;
    balances(&app, id).await
}

/// Let go of a balance that is held after abuse, so that it can be paid out.
#[utoipa::path(post, path = "/api/operator/customers/{id}/release-balance", tag = "operator", params(("id" = UserId, Path)),
    request_body = Why, responses((status = 200, body = Balances), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn release_balance(
    State(app): State<App>,
    operator: Operator,
    Id(id): Id<Uuid>,
    Body(body): Body<Why>,
) -> Result<Json<Balances>, Problem> {
    let cause = operator.cause(&body.reason)?;
    let mut tx = app.pool.begin().await?;
    adjustments::release_balance_in(&mut tx, UserId(id), app.now(), &cause).await?;
    tx.commit().await?;
    balances(&app, id).await
}

/// Payments that the rules could not book, oldest first.
#[utoipa::path(get, path = "/api/operator/topups/unresolved", tag = "operator",
    responses((status = 200, body = Vec<UnresolvedTopup>)))]
async fn unresolved_topups(State(app): State<App>, _reader: Reader) -> Result<Json<Vec<UnresolvedTopup>>, Problem> {
    Ok(Json(adjustments::unresolved(&app.pool).await?))
}

/// What to do with a payment.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resolve {
    pub(crate) resolution: Resolution,
    /// Why.
    pub(crate) reason: String,
}

/// Resolve a payment that waits for an operator: credit a sum, release or return what is held, or dismiss it.
#[utoipa::path(post, path = "/api/operator/topups/{id}/resolve", tag = "operator", params(("id" = TopupId, Path)),
    request_body = Resolve,
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn resolve_topup(
    State(app): State<App>,
    operator: Operator,
    Id(id): Id<Uuid>,
    Body(body): Body<Resolve>,
) -> Result<StatusCode, Problem> {
    let cause = operator.cause(&body.reason)?;
    let mut tx = app.pool.begin().await?;
    adjustments::resolve_topup_in(&mut tx, TopupId(id), &body.resolution, app.now(), &cause, &app.policy).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What to give back of a charge.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refund {
    /// In US cents; the refunds of a charge never add up to more than it.
    pub(crate) amount_cents: Usd,
    /// Which charge of the box, from 0; its last if left out.
    pub(crate) charge: Option<i32>,
    /// Why.
    pub(crate) reason: String,
}

/// Give back a charge to the balance, wholly or partly.
#[utoipa::path(post, path = "/api/operator/resources/{id}/refund", tag = "operator", params(("id" = crate::ids::ResourceId, Path)),
    request_body = Refund, responses((status = 200, body = ResourceView), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn refund(
    State(app): State<App>,
    operator: Operator,
    NewId(refund): NewId,
    Id(id): Id<Uuid>,
    Body(body): Body<Refund>,
) -> Result<Json<ResourceView>, Problem> {
    let cause = operator.cause(&body.reason)?;
    let resource = any(&app, id).await?;
    let mut tx = app.pool.begin().await?;
    refunds::refund_in(&mut tx, refund, &resource, body.charge, body.amount_cents, app.now(), &cause).await?;
    tx.commit().await?;
    Ok(Json(ResourceView::load(&app, any(&app, id).await?).await?))
}

/// Payouts that are decided and not sent yet, oldest first.
#[utoipa::path(get, path = "/api/operator/payouts", tag = "operator", responses((status = 200, body = Vec<Payout>)))]
async fn open_payouts(State(app): State<App>, _reader: Reader) -> Result<Json<Vec<Payout>>, Problem> {
    Ok(Json(adjustments::open_payouts(&app.pool).await?))
}

async fn show_payout(app: &App, id: Uuid) -> Result<Json<Payout>, Problem> {
    adjustments::payout(&app.pool, id).await?.map(Json).ok_or_else(|| Problem::not_found("payout"))
}

/// Set paid credit aside to be sent by hand: at once, so that it cannot be spent. Where the two-person rule is on it is sent once
/// somebody else has approved it.
#[utoipa::path(post, path = "/api/operator/customers/{id}/payouts", tag = "operator", params(("id" = UserId, Path)),
    request_body = Sum, responses((status = 201, body = Payout), (status = 202, body = Approval, description = "It waits for a second person"),
    (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn reserve_payout(
    State(app): State<App>,
    operator: Operator,
    NewId(payout): NewId,
    Id(id): Id<Uuid>,
    Body(body): Body<Sum>,
) -> Result<Answer<Payout>, Problem> {
    let cause = operator.cause(&body.reason)?;
    let user = must_exist(&app, id).await?;
    if let Some(answer) = approvals::asked_before(&app, payout).await? {
        return Ok(answer);
    }
    let mut tx = app.pool.begin().await?;
    let approval = match app.two_person_rule && adjustments::payout(&mut *tx, payout).await?.is_none() {
        true => {
            // The account's row first, as everywhere.
            repository::lock_account_in(&mut tx, user).await?;
            let asked = payout_asked(payout, user, body.amount_cents);
            Some(approvals::ask_in(&mut tx, &app, payout, asked, operator.principal.user_id, &cause).await?)
        }
        false => None,
    };
    adjustments::reserve_payout_in(&mut tx, payout, user, body.amount_cents, approval, app.now(), &cause).await?;
    tx.commit().await?;
    match approval {
        Some(approval) => Ok(Answer::Waits(Box::new(approvals::one(&app, approval).await?))),
        None => Ok(Answer::Done(StatusCode::CREATED, show_payout(&app, payout).await?.0)),
    }
}

fn payout_asked(payout: Uuid, user: UserId, amount: Usd) -> Asked {
    Asked {
        request: Request::Payout { payout_id: payout },
        subject: payout.to_string(),
        summary: format!("Pay out {amount}"),
        effects: Effects {
            will_happen: vec![
                format!(
                    "{amount} of paid credit may be sent by hand, and the payout be closed with the transaction that sent it."
                ),
                "The sum is set aside already. Refused, withdrawn or not decided in time, it goes back to the balance."
                    .to_owned(),
            ],
            costs: format!("{amount} leave the customer's balance, and us."),
            reaches: vec![Affected {
                user_id: user,
                resource_id: None,
                label: "their balance".to_owned(),
                change: format!("{amount} less"),
                amount_cents: amount,
            }],
        },
    }
}

/// Whether a payout can be sent once it is approved.
///
/// # Errors
/// A problem if it is closed, or its customer's balance is held by now.
pub(super) async fn may_be_sent_in(connection: &mut PgConnection, id: Uuid) -> Result<(), Problem> {
    let payout = adjustments::payout(&mut *connection, id).await?.ok_or_else(|| Problem::not_found("payout"))?;
    repository::lock_account_in(connection, payout.user_id).await?;
    if payout.status != "reserved" {
        return Err(Problem::conflict(format!("the payout was {} already; nothing was done", payout.status)));
    }
    if let Some(Some(reason)) = adjustments::held_reason(&mut *connection, payout.user_id).await? {
        return Err(Problem::conflict(format!(
            "the balance is held by now ({reason}), and nothing is paid out of it; nothing was done. Release the balance first, or \
             refuse the payout"
        )));
    }
    Ok(())
}

/// A payout that was sent.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sent {
    /// The transaction that sent it.
    pub(crate) transaction_id: String,
    /// Why, or how.
    pub(crate) reason: String,
}

/// Close a payout with the transaction that sent it.
#[utoipa::path(post, path = "/api/operator/payouts/{id}/sent", tag = "operator", params(("id" = Uuid, Path)),
    request_body = Sent, responses((status = 200, body = Payout), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn payout_sent(
    State(app): State<App>,
    operator: Operator,
    Id(id): Id<Uuid>,
    Body(body): Body<Sent>,
) -> Result<Json<Payout>, Problem> {
    let cause = operator.cause(&body.reason)?;
    let mut tx = app.pool.begin().await?;
    adjustments::close_payout_in(&mut tx, id, Some(&body.transaction_id), app.now(), &cause).await?;
    tx.commit().await?;
    show_payout(&app, id).await
}

/// Call a payout off: the money goes back to the balance.
#[utoipa::path(post, path = "/api/operator/payouts/{id}/void", tag = "operator", params(("id" = Uuid, Path)),
    request_body = Why, responses((status = 200, body = Payout), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn payout_void(
    State(app): State<App>,
    operator: Operator,
    Id(id): Id<Uuid>,
    Body(body): Body<Why>,
) -> Result<Json<Payout>, Problem> {
    let cause = operator.cause(&body.reason)?;
    let (by, now) = (operator.principal.user_id, app.now());
    let mut tx = app.pool.begin().await?;
    let approval = adjustments::payout(&mut *tx, id).await?.and_then(|payout| payout.approval_id);
    // What waits for a second person ends with its approval.
    let ended = match approval {
        Some(approval) => approvals::end_in(&mut tx, approval, by, now, &cause).await?,
        None => false,
    };
    if !ended {
        adjustments::close_payout_in(&mut tx, id, None, now, &cause).await?;
    }
    tx.commit().await?;
    show_payout(&app, id).await
}
