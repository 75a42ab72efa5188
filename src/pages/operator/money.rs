//! Payments that the rules could not book, customers, credit and payouts.

use askama::Template;
use axum::{
    extract::{Query, State},
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use uuid::Uuid;

use super::{PAGE, Tabs, shell};
use crate::{
    accounts,
    api::{
        error::{Body, Id, Problem},
        idempotency::NewId,
        operator::{self as api, money as api_money},
    },
    app::App,
    billing::{
        adjustments::{self, Payout, Resolution, UnresolvedTopup},
        ledger::{self, Balances},
    },
    ids::UserId,
    money::Usd,
    pages::{
        Fields, Said, Shell, page, page_with,
        show::{self, Badge, When},
        status_of,
        visitor::{Acting, Person, Reading},
    },
    seedbox::fleet,
};

struct Unresolved {
    topup: UnresolvedTopup,
    email: String,
    why: &'static str,
    at: When,
}

/// A payout that is decided and not sent.
struct PayoutCard {
    payout: Payout,
    email: String,
    at: When,
    /// What is taken from which payment.
    lots: Vec<(Usd, String)>,
}

#[derive(Template)]
#[template(path = "operator/payments.html")]
struct PaymentsPage {
    shell: Shell,
    tabs: Tabs,
    said: Option<Said>,
    may_act: bool,
    unresolved: Vec<Unresolved>,
    payouts: Vec<PayoutCard>,
}

async fn payments_page(app: &App, person: &Person, said: Option<Said>) -> Result<PaymentsPage, Problem> {
    let email = async |user: UserId| accounts::email_of(&app.pool, user).await.map(Option::unwrap_or_default);
    let mut unresolved = Vec::new();
    for topup in adjustments::unresolved(&app.pool).await? {
        unresolved.push(Unresolved {
            email: email(topup.user_id).await?,
            why: show::unresolved_words(&topup.reason),
            at: When(topup.created_at),
            topup,
        });
    }
    let mut payouts = Vec::new();
    for payout in adjustments::open_payouts(&app.pool).await? {
        let at = When(payout.created_at);
        let lot = |lot: &serde_json::Value| {
            let amount = Usd::from_cents(lot["amount_cents"].as_i64().unwrap_or_default());
            (amount, lot["payment"].as_str().unwrap_or_default().to_owned())
        };
        let lots = payout.lots.as_array().into_iter().flatten().map(lot).collect();
        payouts.push(PayoutCard { email: email(payout.user_id).await?, at, lots, payout });
    }
    Ok(PaymentsPage {
        shell: shell(app, person, "Payments"),
        tabs: Tabs { current: "/operator/payments" },
        said,
        may_act: person.is_operator(),
        unresolved,
        payouts,
    })
}

/// `GET /operator/payments`
pub(in crate::pages) async fn payments(State(app): State<App>, Reading(person): Reading) -> Result<Response, Problem> {
    page(&payments_page(&app, &person, None).await?)
}

async fn back_to_payments<T>(app: &App, person: &Person, result: Result<T, Problem>) -> Result<Response, Problem> {
    match result {
        Ok(_) => Ok(Redirect::to("/operator/payments").into_response()),
        Err(problem) if problem.status == 404 => Err(problem),
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &payments_page(app, person, said).await?)
        }
    }
}

/// What to do with a payment: `credit`, `release_held`, `return_held` or `dismiss`.
#[derive(Deserialize)]
pub(in crate::pages) struct Resolve {
    action: String,
    #[serde(default)]
    amount: String,
    #[serde(default)]
    transaction_id: String,
    reason: String,
}

/// `POST /operator/payments/{id}/resolve`
pub(in crate::pages) async fn resolve(
    State(app): State<App>,
    acting: Acting,
    Id(id): Id<Uuid>,
    Fields(form): Fields<Resolve>,
) -> Result<Response, Problem> {
    let resolution = match form.action.as_str() {
        "credit" => match form.amount.trim().parse::<Usd>() {
            Ok(amount_cents) => Ok(Resolution::Credit { amount_cents }),
            Err(error) => Err(Problem::bad_input(error.to_string())),
        },
        "release_held" => Ok(Resolution::ReleaseHeld {}),
        "return_held" => Ok(Resolution::ReturnHeld { transaction_id: form.transaction_id.trim().to_owned() }),
        "dismiss" => Ok(Resolution::Dismiss {}),
        _ => Err(Problem::bad_input("a payment is credited, released, returned or dismissed; nothing was booked")),
    };
    let result = match resolution {
        Ok(resolution) => {
            let body = Body(api_money::Resolve { resolution, reason: form.reason });
            api_money::resolve_topup(State(app.clone()), acting.operator, Id(id), body).await
        }
        Err(problem) => Err(problem),
    };
    back_to_payments(&app, &acting.person, result).await
}

/// How a payout ended: sent with a transaction, or called off.
#[derive(Deserialize)]
pub(in crate::pages) struct ClosePayout {
    action: String,
    #[serde(default)]
    transaction_id: String,
    reason: String,
}

/// `POST /operator/payouts/{id}/close`
pub(in crate::pages) async fn close_payout(
    State(app): State<App>,
    acting: Acting,
    Id(id): Id<Uuid>,
    Fields(form): Fields<ClosePayout>,
) -> Result<Response, Problem> {
    let result = if form.action == "sent" {
        let body = Body(api_money::Sent { transaction_id: form.transaction_id.trim().to_owned(), reason: form.reason });
        api_money::payout_sent(State(app.clone()), acting.operator, Id(id), body).await
    } else {
        let body = Body(api::Why { reason: form.reason });
        api_money::payout_void(State(app.clone()), acting.operator, Id(id), body).await
    };
    back_to_payments(&app, &acting.person, result).await
}

/// Whom to look for.
#[derive(Deserialize)]
pub(in crate::pages) struct Wanted {
    #[serde(default)]
    text: String,
}

#[derive(Template)]
#[template(path = "operator/customers.html")]
struct CustomersPage {
    shell: Shell,
    tabs: Tabs,
    text: String,
    customers: Vec<(fleet::Customer, String)>,
}

/// `GET /operator/customers`
pub(in crate::pages) async fn customers(
    State(app): State<App>,
    Reading(person): Reading,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    let customers = fleet::customers(&app.pool, &wanted.text, PAGE).await?;
    page(&CustomersPage {
        shell: shell(&app, &person, "Customers"),
        tabs: Tabs { current: "/operator/customers" },
        text: wanted.text,
        customers: customers.into_iter().map(|one| (one.clone(), show::day(one.created_at))).collect(),
    })
}

struct Line {
    at: When,
    what: String,
    cause: String,
    change: Usd,
    after: Usd,
}

#[derive(Template)]
#[template(path = "operator/customer.html")]
struct CustomerPage {
    shell: Shell,
    tabs: Tabs,
    said: Option<Said>,
    may_act: bool,
    customer: fleet::Customer,
    since: String,
    balances: Balances,
    boxes: Vec<(fleet::Listed, Badge)>,
    lines: Vec<Line>,
    /// Whether a payout waits for a second person.
    two_person_rule: bool,
    form_id: Uuid,
}

async fn customer_page(app: &App, person: &Person, id: Uuid, said: Option<Said>) -> Result<CustomerPage, Problem> {
    let found = fleet::customers(&app.pool, &id.to_string(), 1).await?;
    let customer = found.into_iter().next().ok_or_else(|| Problem::not_found("customer"))?;
    let filter = fleet::Filter { owner: Some(customer.id), text: id.to_string(), ..fleet::Filter::default() };
    let statement = ledger::statement(&app.pool, customer.id, None, None).await?;
    Ok(CustomerPage {
        shell: shell(app, person, customer.email.clone()),
        tabs: Tabs { current: "/operator/customers" },
        said,
        may_act: person.is_operator(),
        since: show::day(customer.created_at),
        balances: ledger::balances(&app.pool, customer.id).await?,
        boxes: fleet::find(&app.pool, &filter, PAGE)
            .await?
            .into_iter()
            .map(|one| {
                let badge = show::listed_badge(one.status, one.suspend_reason, one.past_due_since.is_some());
                (one, badge)
            })
            .collect(),
        lines: statement
            .iter()
            .rev()
            .take(50)
            .map(|line| Line {
                at: When(line.at),
                what: show::transfer_words(line),
                cause: line.cause.clone(),
                change: line.change_cents,
                after: line.available_cents,
            })
            .collect(),
        customer,
        two_person_rule: app.two_person_rule,
        form_id: Uuid::now_v7(),
    })
}

/// `GET /operator/customers/{id}`
pub(in crate::pages) async fn customer(
    State(app): State<App>,
    Reading(person): Reading,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    page(&customer_page(&app, &person, id, None).await?)
}

/// What to do with a balance: `promotion`, `payout` or `release`.
#[derive(Deserialize)]
pub(in crate::pages) struct Adjust {
    form_id: Uuid,
    action: String,
    #[serde(default)]
    amount: String,
    reason: String,
}

/// `POST /operator/customers/{id}/adjust`
pub(in crate::pages) async fn adjust(
    State(app): State<App>,
    acting: Acting,
    Id(id): Id<Uuid>,
    Fields(form): Fields<Adjust>,
) -> Result<Response, Problem> {
    let (state, operator, new) = (State(app.clone()), acting.operator, NewId(form.form_id));
    let amount = form.amount.trim().parse::<Usd>().map_err(|error| Problem::bad_input(error.to_string()));
    let result = match (form.action.as_str(), amount) {
        ("release", _) => {
            let body = Body(api::Why { reason: form.reason });
            api_money::release_balance(state, operator, Id(id), body).await.map(|_| None)
        }
        (_, Err(problem)) => Err(problem),
        ("promotion", Ok(amount_cents)) => {
            let body = Body(api_money::Sum { amount_cents, reason: form.reason });
            api_money::grant_promotion(state, operator, new, Id(id), body).await.map(|_| None)
        }
        ("payout", Ok(amount_cents)) => {
            let body = Body(api_money::Sum { amount_cents, reason: form.reason });
            api_money::reserve_payout(state, operator, new, Id(id), body).await.map(|answer| answer.waits_at())
        }
        _ => Err(Problem::bad_input("a balance is given credit, paid out or released; nothing was booked")),
    };
    match result {
        Ok(waits_at) => {
            let here = || format!("/operator/customers/{id}");
            Ok(Redirect::to(&waits_at.unwrap_or_else(here)).into_response())
        }
        Err(problem) if problem.status == 404 => Err(problem),
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &customer_page(&app, &acting.person, id, said).await?)
        }
    }
}
