//! CoinPayPortal: stablecoins and other coins, paid to the merchant's own wallets.
//!
//! What the service's documents and its behaviour disagree on, this follows the behaviour. The points that cost money elsewhere:
//! a repeated create answers with the row as it is now, usable or not; quotes are finer than tokens can be divided; an error can
//! come with status 200; and the API key cannot list payments, so that every open one is asked for by its id.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use reqwest::{Method, RequestBuilder, StatusCode, header::HeaderValue};
use rust_decimal::Decimal;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::{
    Coin, CreatePayment, Error, Observation, PaymentGateway, Quote, WebhookError, WebhookEvent,
    http::{self, Answer, Failure},
    round_up_to_token, wire,
};

/// Where the real service is.
pub const API_URL: &str = "https://coinpayportal.com/api";
/// How far a webhook's signature may be from now, in seconds, either way.
const SIGNATURE_TOLERANCE_SECONDS: u64 = 300;
/// The most of a gateway's own words that goes into an error.
const LONGEST_REASON: usize = 200;
/// A check pays out on chain before it answers.
const CHECK_TIMEOUT: Duration = Duration::from_secs(120);

const fn coin(code: &'static str, symbol: &'static str, network: &'static str, decimals: u32, stable: bool) -> Coin {
    Coin { code, symbol, network, decimals, stable }
}

/// The coins whose network is clear from their code, stablecoins first, cheap networks first.
static COINS: [Coin; 16] = [
    coin("USDC_POL", "USDC", "Polygon", 6, true),
    coin("USDC_BASE", "USDC", "Base", 6, true),
    coin("USDC_SOL", "USDC", "Solana", 6, true),
    coin("USDT_POL", "USDT", "Polygon", 6, true),
    coin("USDT_SOL", "USDT", "Solana", 6, true),
    coin("USDC_ETH", "USDC", "Ethereum", 6, true),
    coin("USDT_ETH", "USDT", "Ethereum", 6, true),
    coin("POL", "POL", "Polygon", 18, false),
    coin("SOL", "SOL", "Solana", 9, false),
    coin("BTC", "BTC", "Bitcoin", 8, false),
    coin("ETH", "ETH", "Ethereum", 18, false),
    coin("BCH", "BCH", "Bitcoin Cash", 8, false),
    coin("DOGE", "DOGE", "Dogecoin", 8, false),
    coin("XRP", "XRP", "XRP Ledger", 6, false),
    coin("ADA", "ADA", "Cardano", 6, false),
    coin("BNB", "BNB", "BNB Smart Chain", 18, false),
];

/// Every coin this client knows, stablecoins first. Which of them can be used depends on the merchant's wallets.
pub fn known_coins() -> &'static [Coin] {
    &COINS
}

/// How to reach the service.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Ends in `/api`. https, or http to this machine.
    pub api_url: String,
    /// The business's key.
    pub api_key: SecretString,
    /// The business.
    pub business_id: Uuid,
    /// The business's webhook secret, whole, prefix and all.
    pub webhook_secret: SecretString,
    /// What the payer's page is under, `/pay/{id}` following; `None`: the API's URL without `/api`.
    pub pay_page_base: Option<String>,
    /// The coins to offer, by code and in this order, which is kept among stablecoins and among the others. Empty: all known.
    pub coins: Vec<String>,
    /// How long a call may take; checks may take two minutes whatever this says.
    pub timeout: Duration,
}

impl Settings {
    /// Everything else as it should be in production.
    pub fn new(
        api_url: impl Into<String>,
        api_key: SecretString,
        business_id: Uuid,
        webhook_secret: SecretString,
    ) -> Self {
        let (api_url, timeout) = (api_url.into(), Duration::from_secs(20));
        Self { api_url, api_key, business_id, webhook_secret, pay_page_base: None, coins: Vec::new(), timeout }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The URL.
    #[error("the gateway's API URL must be an https URL (http only for this machine), without a password or a query")]
    ApiUrl,
    /// The key.
    #[error("the gateway's API key is empty or has characters that no header can carry")]
    ApiKey,
    /// The secret. With an empty one anybody could sign.
    #[error("the gateway's webhook secret is empty")]
    WebhookSecret,
    /// A coin.
    #[error("{0} is not a coin that CoinPayPortal takes")]
    Coin(String),
    /// The HTTP client.
    #[error("the HTTP client cannot be set up: {0}")]
    Http(String),
}

/// The client.
#[derive(Clone)]
pub struct CoinPayPortal {
    http: reqwest::Client,
    api_url: String,
    pay_page_base: String,
    authorization: HeaderValue,
    webhook_secret: SecretString,
    business_id: Uuid,
    coins: Vec<Coin>,
    timeout: Duration,
}

impl fmt::Debug for CoinPayPortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoinPayPortal")
            .field("api_url", &self.api_url)
            .field("business_id", &self.business_id)
            .finish_non_exhaustive()
    }
}

impl CoinPayPortal {
    /// Checks the settings. Calls nobody.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let api_url = checked_url(&settings.api_url)?;
        let pay_page_base = match &settings.pay_page_base {
            Some(base) => base.trim_end_matches('/').to_owned(),
            None => api_url.strip_suffix("/api").unwrap_or(&api_url).to_owned(),
        };
        let key = settings.api_key.expose_secret();
        let mut authorization = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| SettingsError::ApiKey)?;
        if key.trim().is_empty() {
            return Err(SettingsError::ApiKey);
        }
        authorization.set_sensitive(true);
        if settings.webhook_secret.expose_secret().trim().is_empty() {
            return Err(SettingsError::WebhookSecret);
        }
        Ok(Self {
            http: http::client().map_err(|error| SettingsError::Http(error.to_string()))?,
            api_url,
            pay_page_base,
            authorization,
            webhook_secret: settings.webhook_secret,
            business_id: settings.business_id,
            coins: offered(&settings.coins)?,
            timeout: settings.timeout,
        })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.api_url))
    }

    fn authorized(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path).header(reqwest::header::AUTHORIZATION, self.authorization.clone())
    }

    fn quote(&self, request: &CreatePayment, coin: &Coin, answer: &Map<String, Value>) -> Result<Quote, Error> {
        let replay = answer.get("idempotent_replay").and_then(Value::as_bool) == Some(true);
        let unreadable = |field: &str| unknown(format!("the new payment has no usable {field}"));
        let row = answer.get("payment").and_then(Value::as_object).ok_or_else(|| unreadable("row"))?;
        let text = |name: &str| row.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let payment_id = text("id").filter(|id| is_id(id)).ok_or_else(|| unreadable("id"))?;
        // The key stands for one payment for ever, whatever the body says now.
        let amount_cents = row.get("amount").or_else(|| row.get("amount_usd")).and_then(exact_cents);
        let other = if text("blockchain").is_none_or(|code| !code.eq_ignore_ascii_case(coin.code)) {
            Some("it is in another coin")
        } else if amount_cents != Some(request.amount_cents) {
            Some("it is over another sum")
        } else if text("business_id").is_none_or(|id| id != self.business_id.to_string()) {
            Some("it is another business's")
        } else {
            None
        };
        if let Some(why) = other {
            return Err(if replay {
                Error::BurnedKey { why }
            } else {
                unknown(format!("the new payment is wrong: {why}"))
            });
        }
        let Some(address) = text("payment_address") else {
            return Err(Error::BurnedKey { why: "it has no address" });
        };
        let expected = row.get("crypto_amount").or_else(|| row.get("amount_crypto")).and_then(wire::amount);
        let expected = expected.filter(|coins| *coins > Decimal::ZERO).ok_or_else(|| unreadable("amount of coins"))?;
        Ok(Quote {
            payment_id: payment_id.to_owned(),
            address: address.to_owned(),
            expected,
            amount_to_pay: round_up_to_token(expected, coin.decimals),
            quoted_total_cents: quoted_total_cents(row).unwrap_or(request.amount_cents).max(request.amount_cents),
            amount_cents: request.amount_cents,
            expires_at: row.get("expires_at").and_then(wire::time).ok_or_else(|| unreadable("expiry"))?,
            created_at: row.get("created_at").and_then(wire::time).ok_or_else(|| unreadable("time"))?,
            pay_page_url: Some(format!("{}/pay/{payment_id}", self.pay_page_base)),
            status: text("status").ok_or_else(|| unreadable("status"))?.into(),
        })
    }
}

#[async_trait]
impl PaymentGateway for CoinPayPortal {
    fn name(&self) -> &'static str {
        "coinpayportal"
    }

    fn coins(&self) -> &[Coin] {
        &self.coins
    }

    async fn create(&self, request: &CreatePayment) -> Result<Quote, Error> {
        let refused = |why: &str| Err(Error::Refused { why: why.to_owned() });
        let Some(coin) = self.coins.iter().find(|coin| coin.code == request.coin) else {
            return refused("this coin is not offered");
        };
        if request.amount_cents <= 0 {
            return refused("the amount must be more than nothing");
        }
        let key = &request.idempotency_key;
        if key.is_empty() || key.len() > 255 || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refused("the idempotency key must be 1 to 255 printable characters");
        }
        let mut body = json!({
            "business_id": self.business_id,
            "amount_usd": wire::dollars(request.amount_cents),
            "blockchain": coin.code,
            "description": request.description,
            "metadata": {"reference": request.reference},
        });
        if let Some(url) = &request.return_url {
            body["redirect_url"] = url.as_str().into();
        }
        let call = self
            .authorized("/payments/create")
            .header("Idempotency-Key", key)
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(body.to_string());
        let answer = http::call(call, self.timeout).await.map_err(Error::from)?;
        self.quote(request, coin, &understood(&answer, After::Write)?)
    }

    async fn fetch(&self, payment_id: &str) -> Result<Observation, Error> {
        let path = format!("/payments/{}", checked_id(payment_id)?);
        let answer = http::call(self.request(Method::GET, &path), self.timeout).await.map_err(Error::from)?;
        let answer = understood(&answer, After::Read)?;
        let row = answer.get("payment").and_then(Value::as_object).ok_or_else(|| unknown("there is no row"))?;
        let text = |name: &str| row.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        if text("id") != Some(payment_id) {
            return Err(unknown("the answer is about another payment"));
        }
        Ok(Observation {
            payment_id: payment_id.to_owned(),
            status: text("status").ok_or_else(|| unknown("there is no status"))?.into(),
            received: None,
            expected: row.get("crypto_amount").and_then(wire::amount),
            amount_cents: row.get("amount").and_then(exact_cents),
            coin: text("blockchain").map(str::to_owned),
            forward_transaction: text("forward_tx_hash").map(str::to_owned),
        })
    }

    async fn check(&self, payment_id: &str) -> Result<Observation, Error> {
        let path = format!("/payments/{}/check-balance", checked_id(payment_id)?);
        let call = self.authorized(&path);
        let answer = http::call(call, self.timeout.max(CHECK_TIMEOUT)).await.map_err(Error::from)?;
        let answer = understood(&answer, After::Write)?;
        let status = answer.get("status").and_then(Value::as_str).ok_or_else(|| unknown("there is no status"))?;
        Ok(Observation {
            payment_id: payment_id.to_owned(),
            status: status.into(),
            received: answer.get("balance").and_then(wire::amount),
            expected: answer.get("expected").and_then(wire::amount),
            amount_cents: None,
            coin: None,
            forward_transaction: None,
        })
    }

    fn verify_webhook(
        &self,
        signature_header: Option<&str>,
        raw: &[u8],
        now: Timestamp,
    ) -> Result<WebhookEvent, WebhookError> {
        let header = signature_header.map(str::trim).filter(|header| !header.is_empty());
        let (signed_at, signature) = parts(header.ok_or(WebhookError::Missing)?).ok_or(WebhookError::Malformed)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(self.webhook_secret.expose_secret().as_bytes())
            .expect("HMAC takes keys of any length");
        mac.update(signed_at.as_bytes());
        mac.update(b".");
        mac.update(raw);
        let expected = mac.finalize().into_bytes();
        if !bool::from(expected.as_slice().ct_eq(&signature)) {
            return Err(WebhookError::WrongSignature);
        }
        let seconds: i64 = signed_at.parse().map_err(|_| WebhookError::Malformed)?;
        if now.as_second().abs_diff(seconds) > SIGNATURE_TOLERANCE_SECONDS {
            return Err(WebhookError::Stale);
        }
        let event = event(raw).ok_or(WebhookError::Unreadable)?;
        if event.business_id == self.business_id { Ok(event) } else { Err(WebhookError::OtherBusiness) }
    }
}

fn checked_url(url: &str) -> Result<String, SettingsError> {
    let parsed = reqwest::Url::parse(url.trim()).map_err(|_| SettingsError::ApiUrl)?;
    let here = matches!(parsed.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
    let plain = parsed.username().is_empty()
        && parsed.password().is_none()
        && parsed.query().is_none()
        && parsed.fragment().is_none();
    let safe = parsed.scheme() == "https" || (parsed.scheme() == "http" && here);
    if plain && safe { Ok(parsed.as_str().trim_end_matches('/').to_owned()) } else { Err(SettingsError::ApiUrl) }
}

fn offered(codes: &[String]) -> Result<Vec<Coin>, SettingsError> {
    if codes.is_empty() {
        return Ok(COINS.to_vec());
    }
    let find = |code: &String| {
        let found = COINS.iter().find(|coin| coin.code == code).cloned();
        found.ok_or_else(|| SettingsError::Coin(code.clone()))
    };
    let mut coins = codes.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    coins.sort_by_key(|coin| !coin.stable);
    coins.dedup();
    Ok(coins)
}

fn is_id(id: &str) -> bool {
    (1..=100).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// An id goes into a path: it must not be able to lead elsewhere.
fn checked_id(id: &str) -> Result<&str, Error> {
    if is_id(id) { Ok(id) } else { Err(Error::Refused { why: "this is not a payment's id".to_owned() }) }
}

/// Cents, if the amount has no parts of a cent.
fn exact_cents(value: &Value) -> Option<i64> {
    let cents = wire::cents(value)?;
    (wire::amount(value)? == Decimal::new(cents, 2)).then_some(cents)
}

/// What the coins of the quote are worth, network fee included.
fn quoted_total_cents(row: &Map<String, Value>) -> Option<i64> {
    let metadata = row.get("metadata")?.as_object()?;
    if let Some(total) = metadata.get("total_amount_usd").and_then(wire::cents) {
        return Some(total);
    }
    let fee = metadata.get("network_fee_usd").and_then(wire::cents)?;
    row.get("amount").and_then(wire::cents)?.checked_add(fee)
}

fn unknown(why: impl Into<String>) -> Error {
    Error::Unknown { why: why.into() }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotSent(why) => Self::Transient { retry_after: None, why },
            Failure::Lost(why) => Self::Unknown { why },
        }
    }
}

/// Whether the call could have changed something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Read,
    Write,
}

/// The answer's object if it says success; else what to do next. Only explicit success is success.
fn understood(answer: &Answer, after: After) -> Result<Map<String, Value>, Error> {
    let status = answer.status;
    let body = match serde_json::from_slice::<Value>(&answer.body) {
        Ok(Value::Object(body)) => Some(body),
        _ => None,
    };
    let success = body.as_ref().and_then(|body| body.get("success")).and_then(Value::as_bool);
    match body {
        Some(body) if status.is_success() && success == Some(true) => return Ok(body),
        None if status.is_success() => return Err(unknown("the answer is not a JSON object")),
        Some(_) if status.is_success() && success.is_none() => {
            return Err(unknown("the answer does not say whether it was done"));
        }
        _ => {}
    }
    let why = reason(status, body.as_ref());
    let retry_after = answer.retry_after;
    Err(match status {
        // The service says so when two creates with one key meet: the other one has made the row.
        StatusCode::BAD_REQUEST if why.contains("duplicate key") => {
            Error::Transient { retry_after: Some(Duration::from_secs(1)), why }
        }
        StatusCode::BAD_REQUEST if is_passing(&why) => Error::Transient { retry_after, why },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Auth { why },
        // The path of a create cannot be absent; a payment can seem so for a while.
        StatusCode::NOT_FOUND if why.contains("SUBSCRIPTION") || why.contains("Business") => Error::Refused { why },
        StatusCode::NOT_FOUND => Error::NotFoundYet,
        StatusCode::TOO_MANY_REQUESTS => Error::RateLimited { retry_after, why },
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::METHOD_NOT_ALLOWED => {
            Error::Transient { retry_after, why }
        }
        status if status.is_server_error() && after == After::Write => Error::Unknown { why },
        status if status.is_server_error() => Error::Transient { retry_after, why },
        _ => Error::Refused { why },
    })
}

/// 400s of the service that are its own trouble, not the request's.
fn is_passing(why: &str) -> bool {
    let why = why.to_ascii_lowercase();
    ["rate", "failed to", "timeout", "timed out", "connection", "address generation"]
        .iter()
        .any(|word| why.contains(word))
}

fn reason(status: StatusCode, body: Option<&Map<String, Value>>) -> String {
    let text = |name: &str| body.and_then(|body| body.get(name)).and_then(Value::as_str).unwrap_or_default();
    let said: String = text("error").chars().filter(|character| !character.is_control()).take(LONGEST_REASON).collect();
    let code: String = text("code").chars().filter(char::is_ascii_graphic).take(64).collect();
    match (said.is_empty(), code.is_empty()) {
        (true, true) => format!("HTTP {}", status.as_u16()),
        (_, true) => format!("HTTP {}: {said}", status.as_u16()),
        _ => format!("HTTP {}: {said} ({code})", status.as_u16()),
    }
}

/// `t` and the bytes of `v1` of a signature header, in any order, each once. Other parts are left for later schemes.
fn parts(header: &str) -> Option<(&str, [u8; 32])> {
    let (mut signed_at, mut signature) = (None, None);
    for part in header.split(',') {
        let (name, value) = part.trim().split_once('=')?;
        let slot = match name {
            "t" => &mut signed_at,
            "v1" => &mut signature,
            _ => continue,
        };
        if slot.replace(value).is_some() {
            return None;
        }
    }
    let (signed_at, signature) = (signed_at?, signature?);
    let digits = (1..=12).contains(&signed_at.len()) && signed_at.bytes().all(|byte| byte.is_ascii_digit());
    let hex = signature.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let mut bytes = [0; 32];
    if !digits || !hex || hex::decode_to_slice(signature, &mut bytes).is_err() {
        return None;
    }
    Some((signed_at, bytes))
}

/// The event in a body, nested as payments are or flat as collections are.
fn event(raw: &[u8]) -> Option<WebhookEvent> {
    let Value::Object(body) = serde_json::from_slice(raw).ok()? else { return None };
    let data = body.get("data").and_then(Value::as_object).unwrap_or(&body);
    let text = |map: &Map<String, Value>, name: &str| {
        map.get(name).and_then(Value::as_str).filter(|text| !text.is_empty() && text.len() <= 255).map(str::to_owned)
    };
    let kind = text(&body, "event").or_else(|| text(&body, "type"))?;
    let status = match kind.strip_prefix("payment.") {
        Some(word) => text(data, "status").or_else(|| Some(word.to_owned())).map(|word| word.as_str().into()),
        None => None,
    };
    Some(WebhookEvent {
        event_id: text(&body, "id").unwrap_or_else(|| format!("sha256:{}", hex::encode(Sha256::digest(raw)))),
        payment_id: text(data, "payment_id"),
        kind,
        status,
        business_id: text(&body, "business_id")?.parse().ok()?,
        claimed_received: data.get("received_amount").and_then(wire::amount).filter(|coins| *coins > Decimal::ZERO),
    })
}

#[cfg(test)]
#[path = "coinpayportal_tests.rs"]
mod tests;
