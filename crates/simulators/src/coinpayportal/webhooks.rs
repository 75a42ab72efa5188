//! The webhooks: their bodies, signatures, tries and the retry queue.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::Sha256;
use uuid::Uuid;

use super::{
    CoinPayPortal, Fault, Payment,
    json::{Json, iso_time},
};

/// Minutes between the tries of the retry queue, each counted from the one before.
const QUEUE_MINUTES: [i64; 8] = [1, 5, 15, 60, 180, 360, 720, 720];

/// What became of one attempt to deliver a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver answered with this HTTP status.
    Answered(u16),
    /// The receiver could not be reached, or did not answer in time.
    Unreachable,
    /// It was never sent: scripted, or there is nowhere to send it.
    Lost,
    /// It went to the retry queue without a try: scripted.
    Queued,
}

impl Outcome {
    /// Whether the real service would count it as delivered: any 2xx.
    pub const fn is_delivered(self) -> bool {
        matches!(self, Self::Answered(200..=299))
    }
}

/// One attempt to deliver a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The payment it is about.
    pub payment_id: Uuid,
    /// The `id` in its body. Not unique.
    pub event_id: String,
    /// The `type` in its body.
    pub kind: String,
    /// The body as sent.
    pub body: String,
    /// The signature header as sent.
    pub signature: String,
    /// When it was sent.
    pub at: Timestamp,
    /// What became of it.
    pub outcome: Outcome,
}

/// A webhook that waits for its next try.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Queued {
    payment_id: Uuid,
    event_id: String,
    kind: String,
    body: String,
    tries: usize,
    next_at: Timestamp,
}

/// A webhook to be sent.
pub(super) struct Message {
    pub(super) payment_id: Uuid,
    event_id: String,
    kind: &'static str,
    body: Json,
    /// Tried once and forgotten, as the monitor does; else three times and then queued.
    once: bool,
}

/// The signature header for a body: `t=<unix seconds>,v1=<hex of HMAC-SHA256 over "t.body">`.
pub fn sign(secret: &str, unix_seconds: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(format!("{unix_seconds}.").as_bytes());
    mac.update(body);
    format!("t={unix_seconds},v1={}", hex::encode(mac.finalize().into_bytes()))
}

fn message(
    payment: &Payment,
    kind: &'static str,
    (second, now): (i64, Timestamp),
    business_id: Uuid,
    data: Json,
    once: bool,
) -> Message {
    let event_id = format!("evt_{}_{second}", payment.id);
    let body = Json::object([
        ("id", Json::text(&event_id)),
        ("type", Json::text(kind)),
        ("data", data),
        ("created_at", Json::text(&iso_time(now))),
        ("business_id", Json::text(&business_id.to_string())),
    ]);
    Message { payment_id: payment.id, event_id, kind, body, once }
}

fn address(payment: &Payment) -> Json {
    payment.address.as_deref().map_or_else(|| Json::Raw("null".to_owned()), Json::text)
}

/// `payment.confirmed` as the monitor writes it: no sum in dollars, no currency, no metadata.
pub(super) fn confirmed_by_monitor(payment: &Payment, second: i64, now: Timestamp, business_id: Uuid) -> Message {
    let data = Json::object([
        ("payment_id", Json::text(&payment.id.to_string())),
        ("status", Json::text("confirmed")),
        ("blockchain", Json::text(&payment.coin)),
        ("amount_crypto", Json::number_as_text(payment.crypto_amount)),
        ("payment_address", address(payment)),
        ("received_amount", Json::number(payment.received())),
        ("confirmed_at", Json::text(&iso_time(now))),
    ]);
    message(payment, "payment.confirmed", (second, now), business_id, data, true)
}

/// `payment.confirmed` as a check of the balance writes it: every amount a string.
pub(super) fn confirmed_by_check(payment: &Payment, second: i64, now: Timestamp, business_id: Uuid) -> Message {
    let data = Json::object([
        ("payment_id", Json::text(&payment.id.to_string())),
        ("status", Json::text("confirmed")),
        ("amount", Json::number_as_text(payment.amount_usd)),
        ("amount_crypto", Json::number_as_text(payment.crypto_amount)),
        ("amount_usd", Json::number_as_text(payment.amount_usd)),
        ("currency", Json::text(&payment.coin)),
        ("payment_address", address(payment)),
        ("received_amount", Json::number_as_text(payment.received())),
        ("confirmed_at", Json::text(&iso_time(now))),
        ("metadata", (&Value::Object(payment.metadata.clone())).into()),
    ]);
    message(payment, "payment.confirmed", (second, now), business_id, data, false)
}

/// `payment.expired`. Its reason always says 15 minutes.
pub(super) fn expired(payment: &Payment, now: Timestamp, business_id: Uuid) -> Message {
    let data = Json::object([
        ("payment_id", Json::text(&payment.id.to_string())),
        ("status", Json::text("expired")),
        ("blockchain", Json::text(&payment.coin)),
        ("amount_crypto", Json::number_as_text(payment.crypto_amount)),
        ("payment_address", address(payment)),
        ("reason", Json::text("Payment window expired (15 minutes)")),
        ("expired_at", Json::text(&iso_time(now))),
    ]);
    message(payment, "payment.expired", (now.as_second(), now), business_id, data, true)
}

/// `payment.forwarded`. Its `tx_hash` is the payout to the merchant, not the deposit.
pub(super) fn forwarded(payment: &Payment, now: Timestamp, business_id: Uuid) -> Message {
    let payout = payment.forward_transaction.as_deref().unwrap_or_default();
    let fee = (payment.received() * dec!(0.01)).round_dp(8);
    let data = Json::object([
        ("payment_id", Json::text(&payment.id.to_string())),
        ("status", Json::text("forwarded")),
        ("amount", Json::number_as_text(payment.amount_usd)),
        ("amount_crypto", Json::number_as_text(payment.crypto_amount)),
        ("amount_usd", Json::number_as_text(payment.amount_usd)),
        ("currency", Json::text(&payment.coin)),
        ("tx_hash", Json::text(payout)),
        ("merchant_tx_hash", Json::text(payout)),
        ("platform_tx_hash", Json::text(&super::state::transaction_hash())),
        ("merchant_amount", Json::number(payment.received() - fee)),
        ("platform_fee", Json::number(fee.max(Decimal::ZERO))),
        ("metadata", (&Value::Object(payment.metadata.clone())).into()),
    ]);
    message(payment, "payment.forwarded", (now.as_second(), now), business_id, data, false)
}

impl CoinPayPortal {
    /// Sends a webhook with as many tries as its kind gets.
    pub(super) async fn send(&self, message: Message) {
        let now = self.now();
        let Message { payment_id, event_id, kind, body, once } = message;
        let text = body.write();
        let mut delivery = Delivery {
            payment_id,
            event_id,
            kind: kind.to_owned(),
            body: text,
            signature: String::new(),
            at: now,
            outcome: Outcome::Lost,
        };
        let secret = &self.inner.config.webhook_secret;
        let silent = secret.is_empty() && !once;
        if self.inner.config.webhook_url.is_none() || silent || self.inner.faults.strikes(Fault::LoseWebhook) {
            self.remember(delivery);
            return;
        }
        if self.inner.faults.strikes(Fault::QueueWebhook) {
            delivery.outcome = Outcome::Queued;
            self.remember(delivery.clone());
            self.enqueue(delivery, body);
            return;
        }
        delivery.signature = self.signature(now, &delivery.body);
        if once {
            self.attempt(&mut delivery, Duration::from_secs(15)).await;
            return;
        }
        // The same bytes and signature each time; a receiver that cannot be reached at all ends the tries at once.
        for attempt in 0..3_u32 {
            if attempt > 0 {
                tokio::time::sleep(self.inner.config.retry_pause * attempt).await;
            }
            match self.attempt(&mut delivery, Duration::from_secs(30)).await {
                outcome if outcome.is_delivered() => return,
                Outcome::Unreachable => break,
                _ => {}
            }
        }
        self.enqueue(delivery, body);
    }

    /// Sends what waits in the retry queue and is due.
    pub(super) async fn send_queued(&self) {
        let now = self.now();
        let due: Vec<Queued> =
            self.look(|state| state.queue.iter().filter(|queued| queued.next_at <= now).cloned().collect());
        for queued in due {
            let mut delivery = Delivery {
                payment_id: queued.payment_id,
                event_id: queued.event_id.clone(),
                kind: queued.kind.clone(),
                body: queued.body.clone(),
                signature: self.signature(now, &queued.body),
                at: now,
                outcome: Outcome::Lost,
            };
            let outcome = self.attempt(&mut delivery, Duration::from_secs(30)).await;
            let written = self.change(|state| {
                let same = |other: &Queued| other.event_id == queued.event_id && other.kind == queued.kind;
                let Some(position) = state.queue.iter().position(same) else { return };
                let tries = state.queue[position].tries + 1;
                match QUEUE_MINUTES.get(tries) {
                    Some(minutes) if !outcome.is_delivered() => {
                        state.queue[position].tries = tries;
                        state.queue[position].next_at = now + SignedDuration::from_mins(*minutes);
                    }
                    _ => drop(state.queue.remove(position)),
                }
            });
            log_unwritten(written);
        }
    }

    fn enqueue(&self, delivery: Delivery, body: Json) {
        let queued = Queued {
            payment_id: delivery.payment_id,
            event_id: delivery.event_id,
            kind: delivery.kind,
            body: body.in_jsonb_order().write(),
            tries: 0,
            next_at: self.now() + SignedDuration::from_mins(QUEUE_MINUTES[0]),
        };
        log_unwritten(self.change(|state| state.queue.push(queued)));
    }

    fn signature(&self, now: Timestamp, body: &str) -> String {
        let secret = &self.inner.config.webhook_secret;
        let faults = &self.inner.faults;
        if secret.is_empty() || faults.strikes(Fault::EmptySignature) {
            String::new()
        } else if faults.strikes(Fault::WrongSignature) {
            sign(&format!("encrypted:{secret}"), now.as_second(), body.as_bytes())
        } else if faults.strikes(Fault::StaleSignature) {
            sign(secret, now.as_second() - 600, body.as_bytes())
        } else {
            sign(secret, now.as_second(), body.as_bytes())
        }
    }

    async fn attempt(&self, delivery: &mut Delivery, timeout: Duration) -> Outcome {
        let url = self.inner.config.webhook_url.as_deref().unwrap_or_default();
        let request = self
            .inner
            .http
            .post(url)
            .timeout(timeout)
            .header("Content-Type", "application/json")
            .header("X-CoinPay-Signature", &delivery.signature)
            .body(delivery.body.clone());
        delivery.outcome = match request.send().await {
            Ok(response) => Outcome::Answered(response.status().as_u16()),
            Err(error) => {
                tracing::debug!(error = %error.without_url(), "the sandbox gateway's webhook was not delivered");
                Outcome::Unreachable
            }
        };
        self.remember(delivery.clone());
        delivery.outcome
    }
}

/// The state in memory goes on; what could not be written is lost at a restart.
pub(super) fn log_unwritten<T>(written: Result<T, super::Error>) -> Option<T> {
    written.inspect_err(|error| tracing::error!(%error, "the sandbox gateway goes on in memory")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by the official SDK's own signer.
    #[test]
    fn signs_as_the_official_sdk_does() {
        let body = r#"{"id":"evt_d084f959-c33c-4540-82b8-221181347639_1775551263","type":"payment.confirmed","data":{"payment_id":"d084f959-c33c-4540-82b8-221181347639","status":"confirmed","blockchain":"USDC_POL","amount_crypto":"25.01","payment_address":"0x2222222222222222222222222222222222222222","received_amount":25.01,"confirmed_at":"2026-04-07T08:41:03.000Z"},"created_at":"2026-04-07T08:41:03.001Z","business_id":"b198c6dc-4c3b-4a54-994c-a750c1a580cd"}"#;
        assert_eq!(body.len(), 439);
        assert_eq!(
            sign(
                "whsecret_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
                1_775_551_263,
                body.as_bytes()
            ),
            "t=1775551263,v1=c646cc399c47a1796f903010c8bdd6ca67a53e01b6366f277dca4e5b129adbf6"
        );
    }
}
