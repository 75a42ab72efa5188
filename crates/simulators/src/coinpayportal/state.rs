//! What the stand-in knows, and how it survives a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::Write as _,
    path::Path,
};

use jiff::Timestamp;
use rust_decimal::{Decimal, RoundingStrategy};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{PayAmount, round_up, webhooks::Queued};

/// The states a payment can be in: those the real database lets in, and no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waiting for enough money.
    Pending,
    /// Enough money was seen.
    Confirmed,
    /// On its way to the merchant.
    Forwarding,
    /// At the merchant's.
    Forwarded,
    /// The way to the merchant failed.
    ForwardingFailed,
    /// The quote ended. Not final: a late deposit confirms it.
    Expired,
}

impl Status {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Confirmed => "confirmed",
            Self::Forwarding => "forwarding",
            Self::Forwarded => "forwarded",
            Self::ForwardingFailed => "forwarding_failed",
            Self::Expired => "expired",
        }
    }
}

/// Money that arrived at a payment's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deposit {
    /// The hash of the transaction.
    pub transaction: String,
    /// How many coins.
    pub amount: Decimal,
    /// When.
    pub at: Timestamp,
}

/// A payment, as the real service's row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Payment {
    /// Its id, a bare UUID.
    pub id: Uuid,
    /// The coin's code, such as `USDC_POL`.
    pub coin: String,
    /// The coin's symbol, such as `USDC`.
    pub symbol: String,
    /// The coin's network, in words.
    pub network: String,
    /// The decimals of the token on its chain.
    pub decimals: u32,
    /// The invoiced US dollars, network fee not included.
    pub amount_usd: Decimal,
    /// The network fee in US dollars, which the payer pays.
    pub network_fee_usd: Decimal,
    /// The rate it was quoted at, US dollars a coin.
    pub rate_usd: Decimal,
    /// The quoted coins, with 8 decimals, whatever the token has.
    pub crypto_amount: Decimal,
    /// Where to pay. `None`: making one failed.
    pub address: Option<String>,
    /// Its state.
    pub status: Status,
    /// When it was made.
    pub created_at: Timestamp,
    /// When the quote ends.
    pub expires_at: Timestamp,
    /// When enough money was first seen.
    pub confirmed_at: Option<Timestamp>,
    /// What arrived.
    pub deposits: Vec<Deposit>,
    /// The payout to the merchant.
    pub forward_transaction: Option<String>,
    /// The caller's metadata and what the service adds to it.
    pub metadata: Map<String, Value>,
    /// The key that a repeated create is recognized by.
    pub idempotency_key: Option<String>,
    /// A late deposit is looked for in the next pass.
    pub(super) rescan_at_once: bool,
    /// Forwarding failed in the last pass.
    pub(super) stuck: bool,
    /// `payment.confirmed` is to come once more.
    pub(super) announce_again: bool,
    /// The second in the id of the last `payment.confirmed`.
    pub(super) announced_second: i64,
}

impl Payment {
    /// All that arrived.
    pub fn received(&self) -> Decimal {
        self.deposits.iter().map(|deposit| deposit.amount).sum()
    }

    /// All that had arrived by then.
    pub(super) fn received_by(&self, then: Timestamp) -> Decimal {
        self.deposits.iter().filter(|deposit| deposit.at <= then).map(|deposit| deposit.amount).sum()
    }

    /// What the payer is to be shown: the quote, rounded up to the token's decimals.
    pub fn amount_to_pay(&self) -> Decimal {
        round_up(self.crypto_amount, self.decimals)
    }

    /// What is still missing, rounded up to the token's decimals; zero if nothing is.
    pub fn missing(&self) -> Decimal {
        round_up((self.crypto_amount - self.received()).max(Decimal::ZERO), self.decimals)
    }

    /// Whether this balance settles the payment: a billionth may be missing, no more.
    pub(super) fn settles(&self, balance: Decimal) -> bool {
        balance > Decimal::ZERO && balance >= self.crypto_amount * dec!(0.999999999)
    }

    pub(super) fn coins_for(&self, amount: PayAmount) -> Decimal {
        let due = if self.missing().is_zero() { self.amount_to_pay() } else { self.missing() };
        let coins = match amount {
            PayAmount::Exact => due,
            PayAmount::Short => due * dec!(0.4),
            PayAmount::Over => round_up(due + self.amount_to_pay() * dec!(0.5), self.decimals),
            PayAmount::Decimal(coins) => coins,
        };
        coins.round_dp_with_strategy(self.decimals, RoundingStrategy::ToZero).normalize()
    }
}

/// Everything that has to survive a restart.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) payments: BTreeMap<Uuid, Payment>,
    pub(super) by_key: BTreeMap<String, Uuid>,
    pub(super) queue: Vec<Queued>,
    /// Payments whose webhooks are being sent: nobody else touches them meanwhile, so that they go out in order.
    #[serde(skip)]
    pub(super) in_hand: BTreeSet<Uuid>,
    /// When balances were checked.
    #[serde(skip)]
    pub(super) checks: BTreeMap<Uuid, Vec<Timestamp>>,
}

impl State {
    /// An absent file is an empty state.
    pub(super) fn load(path: &Path) -> io::Result<Self> {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| at(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(at(error)),
        }
    }

    /// Whole or not at all: written beside, flushed, and moved over.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let beside = path.with_extension("new");
        let bytes = serde_json::to_vec(self)?;
        let mut file = fs::File::create(&beside).map_err(at)?;
        file.write_all(&bytes).map_err(at)?;
        file.sync_all().map_err(at)?;
        fs::rename(&beside, path).map_err(at)?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(at)?;
        }
        Ok(())
    }
}

pub(super) fn transaction_hash() -> String {
    format!("0x{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// An address that looks like one of its network and that no wallet accepts: nobody can send real money to the sandbox.
pub(super) fn sandbox_address(coin: &str) -> String {
    let random = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    match coin {
        "BTC" => format!("bc1qsandbox{}", &random[..31]),
        _ if coin == "SOL" || coin.ends_with("_SOL") => format!("SANDBOX0{}", &random[..36]),
        _ => format!("0xSANDBOX{}", &random[..33]),
    }
}
