//! Paying in: the live page of one payment.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use qrcode::{EcLevel, QrCode, render::svg};
use rust_decimal::Decimal;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    Fields, Said, Shell, live, money, page, page_with, rendered,
    show::{self, Badge, Until, When},
    status_of,
    visitor::{Person, SignedIn},
};
use crate::{
    api::{
        billing::{self as api, NewTopupBody},
        error::{Body, Id, Problem},
        idempotency::NewId,
    },
    app::App,
    billing::topups::{self, TopupStatus, TopupView},
    clock::Time,
    ids::{OrderId, ResourceId, TopupId},
    money::Usd,
    orders,
};

/// A way to pay, as a form offers it.
pub(super) struct Coin {
    pub(super) code: String,
    pub(super) name: String,
}

/// The coins, stablecoins first.
pub(super) fn coins(app: &App) -> Vec<Coin> {
    app.gateway
        .coins()
        .iter()
        .map(|coin| Coin { code: coin.code.to_string(), name: format!("{} on {}", coin.symbol, coin.network) })
        .collect()
}

/// An id that is always the same for the same text.
pub(super) fn id_of(text: &str) -> Uuid {
    let hash = Sha256::digest(format!("seedplane form:{text}"));
    Uuid::new_v8(hash[..16].try_into().expect("16 of 32 bytes"))
}

/// A top-up to open.
#[derive(Deserialize)]
pub(super) struct NewTopup {
    form_id: Uuid,
    /// In dollars, as people write it.
    amount: String,
    coin: Option<String>,
    order_id: Option<OrderId>,
}

/// `POST /seedbox/topups`
pub(super) async fn open(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Fields(form): Fields<NewTopup>,
) -> Result<Response, Problem> {
    let amount = form.amount.trim().parse::<Usd>().map_err(|error| Problem::bad_input(error.to_string()));
    let made = match amount {
        Ok(amount_cents) => {
            let body = Body(NewTopupBody { amount_cents, coin: form.coin.clone(), order_id: form.order_id });
            // The same form with another sum is another payment.
            let id = id_of(&format!("{}:{amount_cents}:{}", form.form_id, form.coin.as_deref().unwrap_or_default()));
            api::create_topup(State(app.clone()), person.customer.clone(), NewId(id), body).await
        }
        Err(problem) => Err(problem),
    };
    match made {
        Ok((_, topup)) => Ok(Redirect::to(&format!("/seedbox/topups/{}", topup.id)).into_response()),
        Err(problem) if problem.status == 404 => Err(problem),
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &money::money_page(&app, &person, said).await?)
        }
    }
}

#[derive(Template)]
#[template(path = "topup.html")]
struct TopupPage {
    shell: Shell,
    id: TopupId,
    part: String,
}

#[derive(Template)]
#[template(path = "topup_part.html")]
struct TopupPart {
    topup: TopupView,
    badge: Badge,
    stage: Stage,
    symbol: String,
    network: String,
    to_pay: String,
    received: String,
    missing: String,
    /// How much of it came, in percent.
    percent: u32,
    quoted_total: Option<Usd>,
    fee: Option<Usd>,
    qr: String,
    expires: Option<Until>,
    expired_at: Option<When>,
    trial: bool,
    order: Option<OrderId>,
    resource: Option<ResourceId>,
}

/// What the page of a payment is about at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The gateway has not quoted yet.
    Quoting,
    /// Nothing came yet.
    Waiting,
    /// Some came.
    Partly,
    /// All came and is being confirmed.
    Confirming,
    /// The quote ended before enough came.
    Ended,
    /// The gateway says that it failed.
    Failed,
    /// It is in the balance.
    Credited,
}

fn stage(topup: &TopupView) -> Stage {
    match topup.status {
        TopupStatus::Created => Stage::Quoting,
        TopupStatus::Pending => Stage::Waiting,
        TopupStatus::Detected if topup.missing.is_some_and(|missing| !missing.is_zero()) => {
            if topup.received.is_none_or(|received| received.is_zero()) { Stage::Confirming } else { Stage::Partly }
        }
        TopupStatus::Detected => Stage::Confirming,
        TopupStatus::Expired => Stage::Ended,
        TopupStatus::Failed => Stage::Failed,
        TopupStatus::Confirmed | TopupStatus::Forwarded => Stage::Credited,
    }
}

/// An amount of a coin as people copy it: no zeros at the end.
fn coin_amount(amount: Option<Decimal>) -> String {
    amount.unwrap_or_default().normalize().to_string()
}

/// A text as a picture to scan.
pub(super) fn qr(text: &str) -> String {
    let Ok(code) = QrCode::with_error_correction_level(text, EcLevel::M) else { return String::new() };
    let image = code.render::<svg::Color<'_>>().min_dimensions(200, 200).quiet_zone(true).build();
    // The XML declaration has no place inside a page.
    image.split_once("?>").map_or(image.clone(), |(_, svg)| svg.to_owned())
}

async fn own(app: &App, person: &Person, id: Uuid) -> Result<TopupView, Problem> {
    topups::of_user(app, person.customer.principal.user_id, TopupId(id))
        .await?
        .ok_or_else(|| Problem::not_found("top-up"))
}

async fn topup_part(app: &App, person: &Person, id: Uuid) -> Result<String, Problem> {
    let topup = own(app, person, id).await?;
    // Somebody looks: the gateway is asked again, as often as that is polite.
    topups::look_soon(app, &topup).await?;
    let now: Time = app.now();
    let coin = app.gateway.coins().iter().find(|coin| *coin.code == *topup.coin);
    let order = match topup.order_id {
        Some(order) => orders::order_of(&app.pool, person.customer.principal.user_id, order).await?,
        None => None,
    };
    let percent = match (topup.received, topup.amount_to_pay) {
        (Some(received), Some(due)) if !due.is_zero() => {
            let share = (received * Decimal::ONE_HUNDRED / due).min(Decimal::ONE_HUNDRED);
            share.trunc().try_into().unwrap_or(0)
        }
        _ => 0,
    };
    let quoted_total = topup.quoted_total_cents.map(Usd::from_cents);
    rendered(&TopupPart {
        badge: show::topup_badge(&topup),
        stage: stage(&topup),
        symbol: coin.map(|coin| coin.symbol.to_string()).unwrap_or_default(),
        network: coin.map(|coin| coin.network.to_string()).unwrap_or_default(),
        to_pay: coin_amount(topup.amount_to_pay),
        received: coin_amount(topup.received),
        missing: coin_amount(topup.missing),
        percent,
        fee: quoted_total.filter(|total| *total > topup.amount_cents).map(|total| total - topup.amount_cents),
        quoted_total,
        qr: topup.address.as_deref().map(qr).unwrap_or_default(),
        expires: topup.expires_at.filter(|end| *end > now).map(|end| Until { end, now }),
        expired_at: topup.expires_at.filter(|end| *end <= now).map(When),
        trial: app.trial,
        order: order.as_ref().map(|order| order.id),
        resource: order.and_then(|order| order.resource_id),
        topup,
    })
}

/// `GET /seedbox/topups/{id}`
pub(super) async fn show(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    let topup = own(&app, &person, id).await?;
    let title = format!("Pay in {}", topup.amount_cents);
    let part = topup_part(&app, &person, id).await?;
    page(&TopupPage { shell: Shell::new(&app, Some(&person), title, "money"), id: topup.id, part })
}

/// `GET /seedbox/topups/{id}/live`
pub(super) async fn show_live(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    own(&app, &person, id).await?;
    live::stream(&app.clone(), &person.clone(), move || {
        let (app, person) = (app.clone(), person.clone());
        async move { topup_part(&app, &person, id).await }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_becomes_a_picture_without_styles_or_scripts() {
        let svg = qr("0x52908400098527886E0F7030069857D2E4169EE7");
        assert!(svg.trim_start().starts_with("<svg"), "{}", &svg[..60]);
        assert!(!svg.contains("style=") && !svg.contains("<script"));
    }

    #[test]
    fn amounts_of_coins_have_no_zeros_at_the_end() {
        let amount = |text: &str| coin_amount(Some(text.parse().unwrap()));
        assert_eq!(amount("15.500000"), "15.5");
        assert_eq!(amount("100"), "100");
        assert_eq!(coin_amount(None), "0");
    }
}
