//! The pay page: what a payer sees, with buttons instead of a wallet.
//!
//! Plain HTML from the server, one style sheet beside it, no script: it works under the strictest content security policy.
//! All links are relative, so that the router can be nested under any prefix.

use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use jiff::Timestamp;
use qrcode::{QrCode, render::svg};
use rust_decimal::Decimal;
use uuid::Uuid;

use super::{CoinPayPortal, Error, PayAmount, Payment, Status};

const POLICY: &str =
    "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(super) fn router() -> Router<CoinPayPortal> {
    Router::new()
        .route("/pay/style.css", get(style))
        .route("/pay/{id}", get(show))
        .route("/pay/{id}/{action}", post(act))
}

async fn style() -> Response {
    let headers = [(header::CONTENT_TYPE, "text/css"), (header::CACHE_CONTROL, "no-cache")];
    (headers, include_str!("style.css")).into_response()
}

async fn show(State(portal): State<CoinPayPortal>, Path(id): Path<String>) -> Response {
    let payment = Uuid::parse_str(&id).ok().and_then(|id| portal.payment(id));
    match payment {
        Some(payment) => html(StatusCode::OK, &page(&payment, portal.now())),
        None => html(StatusCode::NOT_FOUND, &message("There is no such payment in the sandbox.")),
    }
}

async fn act(State(portal): State<CoinPayPortal>, Path((id, action)): Path<(String, String)>) -> Response {
    let Ok(payment_id) = Uuid::parse_str(&id) else {
        return html(StatusCode::NOT_FOUND, &message("There is no such payment in the sandbox."));
    };
    let done = match action.as_str() {
        "exact" => portal.pay(payment_id, PayAmount::Exact).await.map(drop),
        "short" => portal.pay(payment_id, PayAmount::Short).await.map(drop),
        "over" => portal.pay(payment_id, PayAmount::Over).await.map(drop),
        "twice" => pay_twice(&portal, payment_id).await,
        "late" => pay_late(&portal, payment_id).await,
        "never" => portal.expire(payment_id).await,
        _ => return html(StatusCode::NOT_FOUND, &message("There is no such button.")),
    };
    match done {
        Ok(()) => (StatusCode::SEE_OTHER, [(header::LOCATION, format!("../{payment_id}"))]).into_response(),
        Err(error @ Error::NoSuchPayment(_)) => html(StatusCode::NOT_FOUND, &message(&error.to_string())),
        Err(error @ Error::CannotPay(_)) => html(StatusCode::CONFLICT, &message(&error.to_string())),
        Err(error @ Error::StateFile(_)) => html(StatusCode::INTERNAL_SERVER_ERROR, &message(&error.to_string())),
    }
}

async fn pay_twice(portal: &CoinPayPortal, payment_id: Uuid) -> Result<(), Error> {
    portal.pay(payment_id, PayAmount::Exact).await?;
    portal.pay(payment_id, PayAmount::Exact).await.map(drop)
}

/// The quote ends, the gateway says so, and only then does the money come.
async fn pay_late(portal: &CoinPayPortal, payment_id: Uuid) -> Result<(), Error> {
    portal.expire(payment_id).await?;
    portal.tick().await;
    portal.pay(payment_id, PayAmount::Exact).await.map(drop)
}

fn html(status: StatusCode, body: &str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (status, headers, body.to_owned()).into_response()
}

fn document(title: &str, refresh: bool, body: &str) -> String {
    let refresh = if refresh { "<meta http-equiv=\"refresh\" content=\"3\">" } else { "" };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">{refresh}\
         <title>{title}</title><link rel=\"stylesheet\" href=\"style.css\"></head><body>\
         <div class=\"sandbox\" role=\"note\"><strong>SANDBOX: no real money.</strong> \
         This page stands in for CoinPayPortal. Its buttons play the payer's wallet.</div>\
         <main>{body}</main></body></html>\n"
    )
}

fn message(text: &str) -> String {
    document("Sandbox payment", false, &format!("<section><p>{}</p></section>", escape(text)))
}

fn page(payment: &Payment, now: Timestamp) -> String {
    let coins = |amount: Decimal| format!("{} {}", amount.normalize(), escape(&payment.symbol));
    let (word, class) = word(payment);
    let moving = payment.received() > Decimal::ZERO && payment.settles(payment.received());
    let refresh = moving && payment.status != Status::Forwarded;
    let sum = format!("{} on {}", coins(payment.amount_to_pay()), escape(&payment.network));
    let mut body = format!(
        "<section><p class=\"state{class}\" role=\"status\">{word}</p><h1>{sum}</h1>\
         <p class=\"quiet\">{description} — ${amount:.2} and ${fee:.2} network fee, at ${rate} a coin</p>{details}</section>",
        description = escape(payment.metadata.get("description").and_then(|text| text.as_str()).unwrap_or("Payment")),
        amount = payment.amount_usd,
        fee = payment.network_fee_usd,
        rate = payment.rate_usd.normalize(),
        details = details(payment, now, &coins),
    );
    if payment.address.is_some() && matches!(payment.status, Status::Pending | Status::Expired) && !moving {
        body.push_str(&buttons(payment, &coins));
    }
    if let Some(url) = payment.metadata.get("redirect_url").and_then(|url| url.as_str()).filter(|url| is_link(url)) {
        body.push_str(&format!("<p><a href=\"{}\">Back to where you came from</a></p>", escape(url)));
    }
    document(&format!("Pay {sum}"), refresh, &body)
}

fn is_link(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

fn word(payment: &Payment) -> (&'static str, &'static str) {
    let enough = payment.settles(payment.received());
    match payment.status {
        Status::Pending if enough => ("… Received, waiting for confirmation", ""),
        Status::Pending if payment.received() > Decimal::ZERO => ("◐ Partly paid", ""),
        Status::Pending => ("○ Waiting for payment", ""),
        Status::Expired if enough => ("… Received late, waiting for confirmation", ""),
        Status::Expired => ("× Expired", ""),
        Status::Confirmed | Status::Forwarding | Status::ForwardingFailed => ("✓ Confirmed", " good"),
        Status::Forwarded => ("✓ Paid and forwarded to the merchant", " good"),
    }
}

fn details(payment: &Payment, now: Timestamp, coins: &dyn Fn(Decimal) -> String) -> String {
    let Some(address) = &payment.address else {
        return "<p>The gateway failed to make an address for this payment. It cannot be paid.</p>".to_owned();
    };
    let minutes = payment.expires_at.duration_since(now).as_mins();
    let expiry = payment.expires_at.strftime("%Y-%m-%d %H:%M:%S UTC");
    let left = match payment.status {
        Status::Pending if minutes >= 1 => format!(", {minutes} min left"),
        Status::Pending if payment.expires_at > now => ", less than a minute left".to_owned(),
        _ => String::new(),
    };
    let missing = if payment.missing().is_zero() || payment.received().is_zero() {
        String::new()
    } else {
        format!(", {} missing", coins(payment.missing()))
    };
    format!(
        "<div class=\"code\">{qr}<dl><dt>Amount, exactly</dt><dd><code>{due}</code></dd>\
         <dt>Address (no wallet accepts it)</dt><dd><code>{address}</code></dd>\
         <dt>Received so far</dt><dd>{received}{missing}</dd><dt>Quote holds until</dt><dd>{expiry}{left}</dd></dl></div>",
        qr = qr_code(address),
        due = payment.amount_to_pay().normalize(),
        address = escape(address),
        received = coins(payment.received()),
    )
}

fn qr_code(address: &str) -> String {
    let code = QrCode::new(address).expect("an address fits a QR code");
    let image = code.render::<svg::Color<'_>>().min_dimensions(160, 160).quiet_zone(true).build();
    // Inside HTML an XML declaration does not belong; the label is what a screen reader says.
    let start = image.find("<svg").unwrap_or_default();
    image[start..].replacen("<svg", "<svg role=\"img\" aria-label=\"QR code of the address\"", 1)
}

fn buttons(payment: &Payment, coins: &dyn Fn(Decimal) -> String) -> String {
    let sum = |amount| coins(payment.coins_for(amount));
    let missing = sum(PayAmount::Exact);
    let begun = payment.received() > Decimal::ZERO;
    let offers: Vec<(&str, &str, String)> = if payment.status == Status::Expired {
        vec![("exact", if begun { "Pay the rest, late" } else { "Pay late" }, missing)]
    } else {
        vec![
            ("exact", if begun { "Pay the rest" } else { "Pay exactly" }, missing.clone()),
            ("short", "Pay too little", format!("{} now, the rest or nothing later", sum(PayAmount::Short))),
            ("over", "Pay too much", sum(PayAmount::Over)),
            ("twice", "Pay twice", format!("{missing}, and {} again", coins(payment.amount_to_pay()))),
            ("late", "Pay late", format!("the quote expires now, then {missing} arrives")),
            ("never", "Never pay", "the quote expires now".to_owned()),
        ]
    };
    let mut form = String::from(
        "<section><h2>Play the payer</h2><p class=\"quiet\">Nothing is charged.</p><form method=\"post\">",
    );
    for (index, (action, title, what)) in offers.iter().enumerate() {
        let class = if index == 0 { " class=\"first\"" } else { "" };
        form.push_str(&format!(
            "<button{class} formaction=\"{}/{action}\"><strong>{title}</strong><span>{what}</span></button>",
            payment.id
        ));
    }
    form.push_str("</form></section>");
    form
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}
