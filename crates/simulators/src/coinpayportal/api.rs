//! The REST calls, their checks in the real service's order.

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use jiff::{SignedDuration, Timestamp};
use rust_decimal::{Decimal, RoundingStrategy};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    CHECKS_PER_MINUTE, Coin, CoinPayPortal, Fault, Payment, QUOTE_LIFETIME, Status,
    json::{number, row_time},
    monitor, state,
    webhooks::log_unwritten,
};

pub(super) fn router() -> Router<CoinPayPortal> {
    Router::new()
        .route("/api/payments/create", post(create))
        .route("/api/payments", get(list).post(create))
        .route("/api/payments/{id}", get(read))
        .route("/api/payments/{id}/check-balance", post(check_balance))
        .route("/api/supported-coins", get(supported_coins))
}

fn answer(status: u16, body: &Value) -> Response {
    let status = StatusCode::from_u16(status).expect("the statuses in this file are valid");
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

fn refuse(status: u16, error: &str) -> Response {
    answer(status, &json!({"success": false, "error": error}))
}

fn lost() -> Response {
    let page = "<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>";
    (StatusCode::BAD_GATEWAY, [(header::CONTENT_TYPE, "text/html")], page).into_response()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

impl CoinPayPortal {
    /// Scripted answers that come before anything is looked at.
    fn struck(&self) -> Option<Response> {
        let faults = &self.inner.faults;
        if faults.strikes(Fault::BadGateway) {
            Some(lost())
        } else if faults.strikes(Fault::EmptyAnswer) {
            Some(StatusCode::METHOD_NOT_ALLOWED.into_response())
        } else if faults.strikes(Fault::RefuseWith200) {
            Some(refuse(200, "Service temporarily unavailable"))
        } else {
            None
        }
    }

    fn authorize(&self, key: Option<&str>) -> Result<(), Box<Response>> {
        match key {
            None => Err(Box::new(refuse(401, "Missing authorization header"))),
            Some(key) if key == self.inner.config.api_key => Ok(()),
            Some(_) => Err(Box::new(refuse(401, "Invalid API key"))),
        }
    }

    fn usage(&self) -> Value {
        let current = self.look(|state| state.payments.len() as u64);
        let limit = self.inner.config.payment_limit;
        json!({"current": current, "limit": limit, "remaining": limit.map(|limit| limit.saturating_sub(current))})
    }
}

/// What a create asks for, once it passed the checks.
struct Asked<'a> {
    amount_usd: Decimal,
    coin: &'a Coin,
    metadata: Map<String, Value>,
    key: Option<String>,
}

async fn create(State(portal): State<CoinPayPortal>, headers: HeaderMap, body: Bytes) -> Response {
    if let Some(answer) = portal.struck() {
        return answer;
    }
    if let Err(refusal) = portal.authorize(bearer(&headers)) {
        return *refusal;
    }
    let limit = portal.inner.config.payment_limit;
    let full = limit.is_some_and(|limit| portal.look(|state| state.payments.len() as u64) >= limit);
    if full || portal.inner.faults.strikes(Fault::QuotaExceeded) {
        // No `success` here: errors of the plan have another shape than all others.
        return answer(
            429,
            &json!({
                "error": "Monthly transaction limit exceeded",
                "code": "TRANSACTION_LIMIT_EXCEEDED",
                "details": portal.usage(),
            }),
        );
    }
    let Ok(Value::Object(request)) = serde_json::from_slice::<Value>(&body) else {
        return refuse(500, "Internal server error");
    };
    let text = |name: &str| request.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).or_else(|| text("idempotency_key"));
    if key.is_some_and(|key| key.len() > 255) {
        return refuse(400, "Idempotency key must be at most 255 characters");
    }
    if text("business_id").is_some_and(|id| id != portal.inner.config.business_id.to_string()) {
        return refuse(403, "business_id does not match API key scope");
    }
    if let Some(key) = key
        && let Some(payment) = portal.look(|state| state.by_key.get(key).and_then(|id| state.payments.get(id)).cloned())
    {
        // The body is not compared, and the row is as it is now, address or not.
        let business_id = portal.inner.config.business_id;
        return answer(
            200,
            &json!({"success": true, "idempotent_replay": true, "payment": row(&payment, business_id)}),
        );
    }
    let asked = match asked(&portal, &request, key) {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    insert(&portal, asked)
}

fn asked<'a>(
    portal: &'a CoinPayPortal,
    request: &Map<String, Value>,
    key: Option<&str>,
) -> Result<Asked<'a>, Box<Response>> {
    let refuse = |status, error: &str| Err(Box::new(refuse(status, error)));
    let given = request.get("amount_usd").filter(|value| !value.is_null()).or_else(|| request.get("amount"));
    let amount = match given {
        Some(Value::Number(amount)) => parse_amount(&amount.to_string()),
        _ => None,
    };
    let Some(amount_usd) = amount.filter(|amount| *amount > Decimal::ZERO) else {
        return refuse(400, "Invalid or missing payment amount");
    };
    if amount_usd > dec!(1000000) {
        let error = "Payment amount exceeds the maximum of 1,000,000 USD";
        return Err(Box::new(answer(400, &json!({"success": false, "error": error, "code": "AMOUNT_TOO_LARGE"}))));
    }
    let text = |name: &str| request.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let Some(code) = text("blockchain").or_else(|| text("currency")).map(str::to_uppercase) else {
        return refuse(400, "Invalid or missing cryptocurrency type");
    };
    let Some(coin) = portal.coin(&code) else {
        let error = format!(
            "No {code} wallet configured for this business. Please add a business wallet or merchant global wallet."
        );
        return refuse(400, &error);
    };
    if portal.inner.faults.strikes(Fault::RatesDown) {
        return refuse(400, &format!("Failed to fetch exchange rate for {code}"));
    }
    let mut metadata = match request.get("metadata") {
        Some(Value::Object(metadata)) => metadata.clone(),
        _ => Map::new(),
    };
    for name in ["description", "redirect_url"] {
        if let Some(text) = text(name) {
            metadata.insert(name.to_owned(), text.into());
        }
    }
    if let Some(key) = key {
        metadata.insert("idempotency_key".to_owned(), key.into());
    }
    Ok(Asked { amount_usd, coin, metadata, key: key.map(str::to_owned) })
}

fn insert(portal: &CoinPayPortal, asked: Asked<'_>) -> Response {
    let business_id = portal.inner.config.business_id;
    let burnt = portal.inner.faults.strikes(Fault::BurnKey);
    let payment = quote(asked, burnt, portal.now());
    let written = portal.change(|state| {
        // Two at once with one key: the later one fails on the unique index, it does not get the row.
        if let Some(key) = &payment.idempotency_key {
            if state.by_key.contains_key(key) {
                return false;
            }
            state.by_key.insert(key.clone(), payment.id);
        }
        state.payments.insert(payment.id, payment.clone());
        true
    });
    match log_unwritten(written) {
        None => refuse(500, "Internal server error"),
        Some(false) => race_lost(),
        Some(true) if portal.inner.faults.strikes(Fault::IdempotencyRace) => race_lost(),
        Some(true) if burnt => refuse(400, "Failed to generate payment address"),
        Some(true) if portal.inner.faults.strikes(Fault::LoseAnswer) => lost(),
        Some(true) => {
            answer(201, &json!({"success": true, "payment": row(&payment, business_id), "usage": portal.usage()}))
        }
    }
}

fn race_lost() -> Response {
    refuse(400, "duplicate key value violates unique constraint \"payments_business_idempotency_key\"")
}

/// The price of a payment: 8 decimals for every coin, the network fee on top.
fn quote(asked: Asked<'_>, burnt: bool, now: Timestamp) -> Payment {
    let Asked { amount_usd, coin, mut metadata, key } = asked;
    let total_usd = amount_usd + coin.network_fee_usd;
    let round8 = |usd: Decimal| {
        (usd / coin.rate_usd).round_dp_with_strategy(8, RoundingStrategy::MidpointAwayFromZero).normalize()
    };
    let crypto_amount = round8(total_usd);
    for (name, value) in [
        ("wallet_source", Value::from("business")),
        ("network_fee_usd", number(coin.network_fee_usd)),
        ("network_fee_amount", number(round8(coin.network_fee_usd))),
        ("total_amount", number(crypto_amount)),
        ("total_amount_currency", coin.code.as_str().into()),
        ("total_amount_usd", number(total_usd)),
    ] {
        metadata.insert(name.to_owned(), value);
    }
    Payment {
        id: Uuid::new_v4(),
        coin: coin.code.clone(),
        symbol: coin.symbol.clone(),
        network: coin.network.clone(),
        decimals: coin.decimals,
        amount_usd,
        network_fee_usd: coin.network_fee_usd,
        rate_usd: coin.rate_usd,
        crypto_amount,
        address: (!burnt).then(|| state::sandbox_address(&coin.code)),
        status: if burnt { Status::Expired } else { Status::Pending },
        created_at: now,
        expires_at: now + QUOTE_LIFETIME,
        confirmed_at: None,
        deposits: Vec::new(),
        forward_transaction: None,
        metadata,
        idempotency_key: key,
        rescan_at_once: false,
        stuck: false,
        announce_again: false,
        announced_second: 0,
    }
}

/// The whole row and its aliases, as a create answers it.
fn row(payment: &Payment, business_id: Uuid) -> Value {
    json!({
        "id": payment.id,
        "business_id": business_id,
        "amount": number(payment.amount_usd),
        "amount_usd": number(payment.amount_usd),
        "crypto_amount": number(payment.crypto_amount),
        "amount_crypto": number(payment.crypto_amount),
        "blockchain": payment.coin,
        "currency": payment.coin.to_lowercase(),
        "crypto_currency": payment.symbol,
        "payment_address": payment.address,
        "status": payment.status.as_str(),
        "confirmations": 0,
        "merchant_wallet_address": "0xSANDBOXmerchant",
        "tx_hash": null,
        "forward_tx_hash": payment.forward_transaction,
        "created_at": row_time(payment.created_at),
        "updated_at": row_time(payment.confirmed_at.unwrap_or(payment.created_at)),
        "expires_at": row_time(payment.expires_at),
        "metadata": payment.metadata,
    })
}

async fn read(State(portal): State<CoinPayPortal>, Path(id): Path<String>) -> Response {
    if let Some(answer) = portal.struck() {
        return answer;
    }
    if portal.inner.faults.strikes(Fault::NotFound) {
        return refuse(404, "canceling statement due to statement timeout");
    }
    let Ok(id) = Uuid::parse_str(&id) else {
        return refuse(404, &format!("invalid input syntax for type uuid: \"{id}\""));
    };
    let Some(payment) = portal.payment(id) else { return refuse(404, "Payment not found") };
    answer(
        200,
        &json!({"success": true, "payment": {
            "id": payment.id,
            "amount": number(payment.amount_usd),
            "currency": "USD",
            "blockchain": payment.coin,
            "status": payment.status.as_str(),
            "crypto_amount": number(payment.crypto_amount),
            "crypto_currency": payment.symbol,
            "payment_address": payment.address,
            "confirmations": 0,
            "created_at": row_time(payment.created_at),
            "expires_at": row_time(payment.expires_at),
            "tx_hash": null,
            "forward_tx_hash": payment.forward_transaction,
        }}),
    )
}

/// What a look at the chain found.
enum Checked {
    Missing,
    Limited(i64),
    NotPending(Status),
    NoAddress,
    Short { status: Status, balance: Decimal, expected: Decimal },
    Enough(Box<Payment>),
}

async fn check_balance(State(portal): State<CoinPayPortal>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    if let Some(answer) = portal.struck() {
        return answer;
    }
    let key = bearer(&headers).or_else(|| headers.get("x-api-key")?.to_str().ok());
    if let Err(refusal) = portal.authorize(key) {
        return *refusal;
    }
    let Ok(id) = Uuid::parse_str(&id) else { return refuse(404, "Payment not found") };
    if portal.inner.faults.strikes(Fault::LimitChecks) {
        return limited(20);
    }
    let now = portal.now();
    let Some(checked) = log_unwritten(portal.change(|state| check(state, id, now))) else {
        return refuse(500, "Internal server error");
    };
    let outcome = match checked {
        Checked::Missing => refuse(404, "Payment not found"),
        Checked::Limited(seconds) => limited(seconds),
        Checked::NoAddress => refuse(200, "Payment has no address"),
        Checked::NotPending(status) => {
            let message = format!("Payment is {}", status.as_str());
            answer(200, &json!({"success": true, "status": status.as_str(), "message": message}))
        }
        Checked::Short { status, balance, expected } => {
            let message = if status == Status::Expired { "Payment has expired" } else { "Waiting for payment" };
            answer(200, &checked_body(status.as_str(), balance, expected, message))
        }
        Checked::Enough(payment) => {
            let (balance, expected) = (payment.received(), payment.crypto_amount);
            // It goes on even if the caller hangs up, as it does in reality.
            let settling = portal.clone();
            let _ = tokio::spawn(async move { settling.settle_checked(*payment, now).await }).await;
            answer(200, &checked_body("confirmed", balance, expected, "Payment confirmed"))
        }
    };
    if portal.inner.faults.strikes(Fault::LoseAnswer) { lost() } else { outcome }
}

fn check(state: &mut state::State, id: Uuid, now: Timestamp) -> Checked {
    let Some(payment) = state.payments.get_mut(&id) else { return Checked::Missing };
    let checks = state.checks.entry(id).or_default();
    checks.retain(|at| *at > now - SignedDuration::from_mins(1));
    if checks.len() >= CHECKS_PER_MINUTE {
        return Checked::Limited(60);
    }
    checks.push(now);
    if payment.status != Status::Pending || state.in_hand.contains(&id) {
        return Checked::NotPending(payment.status);
    }
    if payment.address.is_none() {
        return Checked::NoAddress;
    }
    let (balance, expected) = (payment.received(), payment.crypto_amount);
    if payment.settles(balance) {
        monitor::confirm(payment, now);
        state.in_hand.insert(id);
        return Checked::Enough(Box::new(payment.clone()));
    }
    if now >= payment.expires_at {
        payment.status = Status::Expired;
    }
    Checked::Short { status: payment.status, balance, expected }
}

fn checked_body(status: &str, balance: Decimal, expected: Decimal, message: &str) -> Value {
    json!({
        "success": true,
        "status": status,
        "balance": number(balance),
        "expected": number(expected),
        "message": message,
    })
}

fn limited(seconds: i64) -> Response {
    let mut answer = refuse(429, "Too many requests");
    answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    answer
}

/// API keys cannot list payments; only a merchant's own session can, and the sandbox has none.
async fn list() -> Response {
    refuse(401, "Invalid or expired token")
}

async fn supported_coins(State(portal): State<CoinPayPortal>, headers: HeaderMap) -> Response {
    if let Err(refusal) = portal.authorize(bearer(&headers)) {
        return *refusal;
    }
    let coins: Vec<Value> = portal
        .inner
        .config
        .coins
        .iter()
        .map(|coin| {
            let name = format!("{} on {}", coin.symbol, coin.network);
            json!({"symbol": coin.code, "name": name, "is_active": true, "has_wallet": true, "wallet_source": "business"})
        })
        .collect();
    let total = coins.len();
    answer(
        200,
        &json!({"success": true, "coins": coins, "business_id": portal.inner.config.business_id, "total": total}),
    )
}

fn parse_amount(text: &str) -> Option<Decimal> {
    if text.contains(['e', 'E']) { Decimal::from_scientific(text).ok() } else { text.parse().ok() }
}
