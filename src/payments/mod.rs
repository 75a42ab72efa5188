//! Payment gateways: make a payment, ask about it, verify what the gateway says. Nothing here knows accounts or the ledger.
//!
//! A webhook is a hint. What is credited follows from our own stored quote and from what the gateway answers server to server.

pub mod coinpayportal;
mod http;
mod wire;

use std::{fmt, str::FromStr, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use rust_decimal::{Decimal, RoundingStrategy};
use serde::Serialize;
use uuid::Uuid;

/// What Seedplane needs of a payment gateway.
///
/// Implementations promise: no call is repeated inside them, so that the caller's plan of tries is the only one; answers are
/// bounded in time and size; and no error, log line or `Debug` shows a secret.
#[async_trait]
pub trait PaymentGateway: Send + Sync + fmt::Debug {
    /// The gateway's name as stored beside its payments.
    fn name(&self) -> &'static str;

    /// The coins offered, stablecoins first.
    fn coins(&self) -> &[Coin];

    /// Makes a payment, or finds the one made before under the same idempotency key.
    ///
    /// # Errors
    /// After [`Error::Unknown`] and [`Error::Transient`] the same request may be repeated under the same key; after
    /// [`Error::BurnedKey`] only under a new one.
    async fn create(&self, request: &CreatePayment) -> Result<Quote, Error>;

    /// What the gateway has on record about a payment. Never shows how much arrived at CoinPayPortal.
    ///
    /// # Errors
    /// [`Error::NotFoundYet`] is not final: a gateway in trouble says so, too.
    async fn fetch(&self, payment_id: &str) -> Result<Observation, Error>;

    /// Makes the gateway look for the money now. While it is open, the gateway may send its webhook and pay out: the caller must
    /// hold no lock or transaction that the webhook's handler needs.
    ///
    /// # Errors
    /// After [`Error::Unknown`] the payment may have been confirmed: [`Self::fetch`] tells.
    async fn check(&self, payment_id: &str) -> Result<Observation, Error>;

    /// Verifies a webhook on its raw bytes, with nothing parsed before the signature is proved.
    ///
    /// # Errors
    /// See [`WebhookError::is_authentic`] for which of them are to be answered 401.
    fn verify_webhook(
        &self,
        signature_header: Option<&str>,
        raw: &[u8],
        now: Timestamp,
    ) -> Result<WebhookEvent, WebhookError>;
}

/// A coin on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Coin {
    /// The gateway's code, such as `USDC_POL`.
    pub code: &'static str,
    /// What people call it, such as `USDC`.
    pub symbol: &'static str,
    /// The network it is to be sent on, in words.
    pub network: &'static str,
    /// The decimals it has on that network.
    pub decimals: u32,
    /// Whether it follows the US dollar.
    pub stable: bool,
}

/// A payment to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatePayment {
    /// One a try to pay, not one an order: a key is used up by its first payment, expired or not. At most 255 characters.
    pub idempotency_key: String,
    /// US cents, more than 0.
    pub amount_cents: i64,
    /// A code of [`PaymentGateway::coins`].
    pub coin: String,
    /// What the payer reads.
    pub description: String,
    /// Our own id for it, which the gateway keeps with the payment.
    pub reference: Uuid,
    /// Where the gateway's own page sends the payer back to. Payers do not always come back.
    pub return_url: Option<String>,
}

/// A payment made, and its price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// The gateway's id.
    pub payment_id: String,
    /// Where to pay.
    pub address: String,
    /// The coins the gateway waits for, as it says them: often finer than the token can be divided.
    pub expected: Decimal,
    /// [`Self::expected`] rounded up to the token's decimals: what the payer is shown.
    pub amount_to_pay: Decimal,
    /// What `expected` is worth, network fee included, in whole US cents, rounded down.
    pub quoted_total_cents: i64,
    /// The US cents asked for.
    pub amount_cents: i64,
    /// When the price ends. Money may come later.
    pub expires_at: Timestamp,
    /// When the gateway made it.
    pub created_at: Timestamp,
    /// The gateway's own page for the payer.
    pub pay_page_url: Option<String>,
    /// Its state now; after a repeated create it can be any.
    pub status: PaymentStatus,
}

/// What the gateway answered about a payment, server to server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The gateway's id.
    pub payment_id: String,
    /// Its state.
    pub status: PaymentStatus,
    /// The coins that arrived so far, when the answer tells.
    pub received: Option<Decimal>,
    /// The coins that the gateway waits for, when the answer tells.
    pub expected: Option<Decimal>,
    /// The invoiced US cents, when the answer tells: to be compared with ours.
    pub amount_cents: Option<i64>,
    /// The coin's code, when the answer tells: to be compared with ours.
    pub coin: Option<String>,
    /// The payout to us, once there is one.
    pub forward_transaction: Option<String>,
}

/// The state of a payment at its gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PaymentStatus {
    /// Nothing, or not enough, has come.
    Pending,
    /// Something was seen that is not final.
    Detected,
    /// The quote ended. Money may still come.
    Expired,
    /// It failed.
    Failed,
    /// Enough came.
    Confirmed,
    /// The money is ours.
    Forwarded,
    /// A word we do not know. It changes nothing.
    Unknown(String),
}

impl PaymentStatus {
    /// Where it stands: only a move to a higher rank takes effect, whatever the order events come in. Unknown is lowest.
    pub const fn rank(&self) -> u8 {
        match self {
            Self::Unknown(_) => 0,
            Self::Pending => 1,
            Self::Detected => 2,
            Self::Expired | Self::Failed => 3,
            Self::Confirmed => 4,
            Self::Forwarded => 5,
        }
    }

    /// Whether the gateway says that enough money came.
    pub const fn is_paid(&self) -> bool {
        matches!(self, Self::Confirmed | Self::Forwarded)
    }

    /// The word we store.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pending => "pending",
            Self::Detected => "detected",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Confirmed => "confirmed",
            Self::Forwarded => "forwarded",
            Self::Unknown(word) => word,
        }
    }
}

impl From<&str> for PaymentStatus {
    fn from(word: &str) -> Self {
        match word {
            "pending" => Self::Pending,
            "detected" => Self::Detected,
            "expired" => Self::Expired,
            "failed" => Self::Failed,
            // The payer is done in all three; only the gateway's payout to us is not.
            "confirmed" | "forwarding" | "forwarding_failed" => Self::Confirmed,
            "forwarded" => Self::Forwarded,
            other => Self::Unknown(other.chars().take(64).collect()),
        }
    }
}

impl FromStr for PaymentStatus {
    type Err = std::convert::Infallible;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Ok(word.into())
    }
}

/// Why a gateway did not do what it was asked, by what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was done. Try again, not before `retry_after` if given.
    #[error("the payment gateway cannot be used right now ({why}); nothing was done, try again")]
    Transient {
        /// How long the gateway asks us to wait.
        retry_after: Option<Duration>,
        /// What happened.
        why: String,
    },
    /// Too many calls, or the plan's payments are used up.
    #[error("the payment gateway refuses more calls for now ({why}); nothing was done, try again later")]
    RateLimited {
        /// How long the gateway asks us to wait. None with a used-up plan: an operator has to look.
        retry_after: Option<Duration>,
        /// What the gateway said.
        why: String,
    },
    /// The request as it is will never be accepted.
    #[error("the payment gateway refused the request: {why}")]
    Refused {
        /// What the gateway said.
        why: String,
    },
    /// Our key is wrong or may not do this: an operator has to look.
    #[error("the payment gateway refused our API key ({why}); nothing was done, check COINPAYPORTAL_API_KEY")]
    Auth {
        /// What the gateway said.
        why: String,
    },
    /// The idempotency key belongs to a payment that cannot be used. Create again under a new key.
    #[error("the idempotency key belongs to a payment that cannot be paid ({why}); create the payment under a new key")]
    BurnedKey {
        /// What is wrong with that payment.
        why: &'static str,
    },
    /// The gateway does not find the payment, which it also says in trouble. Not final.
    #[error("the payment gateway does not find the payment at the moment; ask again later")]
    NotFoundYet,
    /// The answer was lost or made no sense: it may or may not have been done. Repeat a create under the same key; after a check,
    /// fetch.
    #[error("the payment gateway's answer was lost ({why}); it may have acted, look before acting again")]
    Unknown {
        /// What happened.
        why: String,
    },
}

/// A webhook whose signature was proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookEvent {
    /// The gateway's id for it. No key: two kinds can share one, and one event comes again under another.
    pub event_id: String,
    /// The payment it is about; none for events about something else.
    pub payment_id: Option<String>,
    /// The kind, such as `payment.confirmed`.
    pub kind: String,
    /// The payment's state, for kinds that tell one.
    pub status: Option<PaymentStatus>,
    /// Whose event it is.
    pub business_id: Uuid,
    /// The coins that the event says arrived. A hint only.
    pub claimed_received: Option<Decimal>,
}

/// Why a webhook was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// There is no signature, or an empty one.
    #[error("the webhook has no signature")]
    Missing,
    /// The signature header is not of the gateway's form.
    #[error("the webhook's signature header is malformed")]
    Malformed,
    /// It was not signed with our secret, or its body was changed.
    #[error("the webhook's signature does not match")]
    WrongSignature,
    /// It was signed too long ago, or in the future.
    #[error("the webhook's signature is not of the last five minutes")]
    Stale,
    /// It is signed, but its body makes no sense to us.
    #[error("the webhook is signed and its body cannot be read")]
    Unreadable,
    /// It is signed, but for another business.
    #[error("the webhook is signed and for another business")]
    OtherBusiness,
}

impl WebhookError {
    /// Whether the gateway sent it: answer 200 and keep it for an operator. Else: 401, and nothing is stored.
    pub const fn is_authentic(self) -> bool {
        matches!(self, Self::Unreadable | Self::OtherBusiness)
    }
}

/// Rounds up to the decimals that a token has. What a payer is shown must never be less than what the gateway waits for.
pub fn round_up_to_token(amount: Decimal, decimals: u32) -> Decimal {
    amount.round_dp_with_strategy(decimals, RoundingStrategy::ToPositiveInfinity).normalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_amount_to_pay_is_never_short() {
        for (expected, decimals, shown) in [
            ("25.01250125", 6, "25.012502"), // 25.01 / 0.9999
            ("25.012501", 6, "25.012501"),
            ("25.0125010", 6, "25.012501"),
            ("25.00000001", 6, "25.000001"),
            ("0.00000001", 6, "0.000001"),
            ("0.00000050", 8, "0.0000005"),
            ("0.00000001", 18, "0.00000001"),
            ("10.50", 6, "10.5"),
            ("25.1", 0, "26"),
        ] {
            let expected: Decimal = expected.parse().unwrap();
            let due = round_up_to_token(expected, decimals);
            assert_eq!(due.to_string(), shown);
            assert!(due >= expected && due.scale() <= decimals);
        }
    }

    #[test]
    fn states_rank_as_the_rules_say() {
        let rank = |word: &str| PaymentStatus::from(word).rank();
        assert!(rank("anything new") < rank("pending"));
        assert!(rank("pending") < rank("detected"));
        assert!(rank("detected") < rank("expired"));
        assert_eq!(rank("expired"), rank("failed"));
        assert!(rank("failed") < rank("confirmed"));
        assert!(rank("confirmed") < rank("forwarded"));
        for word in ["forwarding", "forwarding_failed"] {
            assert_eq!(PaymentStatus::from(word), PaymentStatus::Confirmed);
        }
        for word in ["pending", "detected", "expired", "failed", "confirmed", "forwarded", "new"] {
            assert_eq!(PaymentStatus::from(word).as_str(), word);
        }
        assert!(!PaymentStatus::from("paid").is_paid());
    }
}
