//! A stand-in for CoinPayPortal: the same REST calls, the same webhooks, and the same bad habits as the real gateway.
//!
//! The habits that cost real merchants money are on by default: quotes with more decimals than the token has, a lower-case
//! `currency`, two shapes of `payment.confirmed`, one event id for two events of one second, expiry that is not the end. What the
//! real service does only on a bad day is scripted through [`Faults`].
//!
//! Time comes from the clock given to [`CoinPayPortal::new`]; only pauses between the immediate tries of a webhook are real time.
//! What it leaves out: cards, escrow, invoices, payouts, the merchant's dashboard, and following redirects of the webhook URL.

/// A decimal written as a literal.
macro_rules! dec {
    ($number:literal) => {
        stringify!($number).parse::<rust_decimal::Decimal>().expect("the literal is a decimal")
    };
}

mod api;
mod faults;
mod json;
mod monitor;
mod page;
mod state;
mod webhooks;

use std::{fmt, io, path::PathBuf, sync::Arc, sync::Mutex, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rust_decimal::{Decimal, RoundingStrategy};
use uuid::Uuid;

pub use faults::{Fault, Faults};
pub use state::{Deposit, Payment, Status};
pub use webhooks::{Delivery, Outcome, sign};

use state::State;

/// How long a quote holds. The real service fixes it, too.
pub const QUOTE_LIFETIME: SignedDuration = SignedDuration::from_mins(15);
/// How long after its expiry a payment is still looked at for a late deposit.
pub const LATE_DEPOSITS: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Checks of one payment's balance allowed in a minute.
pub const CHECKS_PER_MINUTE: usize = 30;
/// How many attempts to deliver a webhook are remembered for [`CoinPayPortal::deliveries`].
const REMEMBERED_DELIVERIES: usize = 1000;

/// A coin that the sandbox's merchant has a wallet for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coin {
    /// The code in requests, such as `USDC_POL`.
    pub code: String,
    /// What people call it, such as `USDC`.
    pub symbol: String,
    /// The chain it moves on, in words.
    pub network: String,
    /// The decimals the token has on its chain. Quotes have 8 whatever this says.
    pub decimals: u32,
    /// US dollars a coin.
    pub rate_usd: Decimal,
    /// What the payer pays on top for the network, in US dollars.
    pub network_fee_usd: Decimal,
}

impl Coin {
    fn new(code: &str, network: &str, decimals: u32, rate_usd: Decimal, network_fee_usd: Decimal) -> Self {
        let symbol = code.split('_').next().unwrap_or(code).to_owned();
        Self { code: code.to_owned(), symbol, network: network.to_owned(), decimals, rate_usd, network_fee_usd }
    }
}

/// The coins of the sandbox, at rates that make the awkward amounts which real rates make.
pub fn default_coins() -> Vec<Coin> {
    vec![
        Coin::new("USDC_POL", "Polygon", 6, dec!(0.9999), dec!(0.01)),
        Coin::new("USDC_SOL", "Solana", 6, dec!(0.9999), dec!(0.01)),
        Coin::new("USDC_BASE", "Base", 6, dec!(0.9999), dec!(0.01)),
        Coin::new("USDC_ETH", "Ethereum", 6, dec!(0.9999), dec!(2.4)),
        Coin::new("USDT_POL", "Polygon", 6, dec!(1.0002), dec!(0.01)),
        Coin::new("USDT_SOL", "Solana", 6, dec!(1.0002), dec!(0.01)),
        Coin::new("USDT_ETH", "Ethereum", 6, dec!(1.0002), dec!(2.4)),
        Coin::new("POL", "Polygon", 18, dec!(0.2371), dec!(0.01)),
        Coin::new("SOL", "Solana", 9, dec!(171.42), dec!(0.01)),
        Coin::new("ETH", "Ethereum", 18, dec!(3817.55), dec!(1.2)),
        Coin::new("BTC", "Bitcoin", 8, dec!(100000), dec!(1.75)),
    ]
}

/// How the stand-in is set up. [`Config::new`] gives what the real service does; change what a test or the trial needs.
#[derive(Clone)]
pub struct Config {
    /// `cp_live_` or `cp_test_` and 32 hex digits: the only key that is let in.
    pub api_key: String,
    /// The one business there is.
    pub business_id: Uuid,
    /// Signs webhooks, whole, prefix and all. Empty: what the real service does to a business without a secret.
    pub webhook_secret: String,
    /// Where webhooks go. `None`: nowhere.
    pub webhook_url: Option<String>,
    /// Where the state is kept, so that it survives a restart. `None`: in memory.
    pub state_file: Option<PathBuf>,
    /// What can be paid with, at which rates and fees.
    pub coins: Vec<Coin>,
    /// How long after its expiry a payment is looked at again for a late deposit.
    pub rescan_after: SignedDuration,
    /// How old a deposit is before the monitor sees it, as the real service looks about once a minute only; a check of the
    /// balance sees it at once. Zero: in the next pass.
    pub seen_after: SignedDuration,
    /// How long after its confirmation a payment is forwarded to the merchant. Zero: in the same pass of the monitor.
    pub forward_after: SignedDuration,
    /// Real time before the second immediate try of a webhook; twice as long before the third.
    pub retry_pause: Duration,
    /// Payments that the plan includes. `None`: no limit.
    pub payment_limit: Option<u64>,
}

impl Config {
    /// The real service's manners, for this merchant.
    pub fn new(api_key: impl Into<String>, business_id: Uuid, webhook_secret: impl Into<String>) -> Self {
        Self {
            api_key: api_key.into(),
            business_id,
            webhook_secret: webhook_secret.into(),
            webhook_url: None,
            state_file: None,
            coins: default_coins(),
            rescan_after: SignedDuration::from_mins(30),
            seen_after: SignedDuration::ZERO,
            forward_after: SignedDuration::ZERO,
            retry_pause: Duration::from_secs(1),
            payment_limit: None,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("business_id", &self.business_id)
            .field("webhook_url", &self.webhook_url)
            .field("state_file", &self.state_file)
            .finish_non_exhaustive()
    }
}

/// How much arrives on chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayAmount {
    /// What is missing, rounded up to the token's decimals; the whole sum again if nothing is.
    Exact,
    /// Two fifths of what is missing.
    Short,
    /// What is missing and half of the quote on top.
    Over,
    /// This many coins. What is finer than the token's decimals cannot exist on chain and is cut off.
    Decimal(Decimal),
}

/// Why a deposit or a command could not be carried out.
#[derive(Debug)]
pub enum Error {
    /// There is no such payment.
    NoSuchPayment(Uuid),
    /// The payment has no address to pay to, or the amount is not positive.
    CannotPay(&'static str),
    /// The state could not be read or written; the path and the operating system's reason are in it.
    StateFile(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchPayment(id) => write!(f, "there is no payment {id} in the sandbox"),
            Self::CannotPay(why) => write!(f, "the deposit was not made: {why}"),
            Self::StateFile(error) => write!(f, "the sandbox gateway's state could not be read or written: {error}"),
        }
    }
}

impl std::error::Error for Error {}

type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The stand-in. Clones share everything.
#[derive(Clone)]
pub struct CoinPayPortal {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    clock: Clock,
    state: Mutex<State>,
    faults: Faults,
    /// One pass of the monitor at a time.
    pass: tokio::sync::Mutex<()>,
    http: reqwest::Client,
    deliveries: Mutex<Vec<Delivery>>,
}

impl fmt::Debug for CoinPayPortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoinPayPortal").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl CoinPayPortal {
    /// Starts from the state file if there is one.
    ///
    /// # Errors
    /// If there is a state file and it cannot be read, or is not one of ours. It is left as it is.
    pub fn new(config: Config, clock: Clock) -> Result<Self, Error> {
        let state = match &config.state_file {
            Some(path) => State::load(path).map_err(Error::StateFile)?,
            None => State::default(),
        };
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent("CoinPay-Webhook/1.0")
            .build()
            .expect("an HTTP client without special settings can be built");
        let inner = Inner {
            config,
            clock,
            state: Mutex::new(state),
            faults: Faults::default(),
            pass: tokio::sync::Mutex::new(()),
            http,
            deliveries: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The REST calls under `/api/...` and the pay page at `/pay/{id}`. Can be nested under any prefix: it links relatively.
    pub fn router(&self) -> axum::Router {
        api::router().merge(page::router()).with_state(self.clone())
    }

    /// The handle that scripts what goes wrong next.
    pub fn faults(&self) -> &Faults {
        &self.inner.faults
    }

    /// A deposit arrives at the payment's address. The monitor's next pass, or a check of the balance, sees it.
    ///
    /// # Errors
    /// [`Error::NoSuchPayment`], [`Error::CannotPay`], or the state could not be written (the deposit then counts only until a
    /// restart).
    pub async fn pay(&self, payment_id: Uuid, amount: PayAmount) -> Result<Deposit, Error> {
        let now = self.now();
        self.change(|state| {
            let payment = state.payments.get_mut(&payment_id).ok_or(Error::NoSuchPayment(payment_id))?;
            if payment.address.is_none() {
                return Err(Error::CannotPay("the payment has no address"));
            }
            let amount = payment.coins_for(amount);
            if amount <= Decimal::ZERO {
                return Err(Error::CannotPay("the amount is less than the token's smallest unit"));
            }
            let deposit = Deposit { transaction: state::transaction_hash(), amount, at: now };
            payment.deposits.push(deposit.clone());
            Ok(deposit)
        })?
    }

    /// Ends a pending quote now. A deposit that comes later is looked for at once, not after half an hour as in reality.
    ///
    /// # Errors
    /// [`Error::NoSuchPayment`], or the state could not be written.
    pub async fn expire(&self, payment_id: Uuid) -> Result<(), Error> {
        let now = self.now();
        self.change(|state| {
            let payment = state.payments.get_mut(&payment_id).ok_or(Error::NoSuchPayment(payment_id))?;
            if payment.status == Status::Pending {
                payment.expires_at = payment.expires_at.min(now);
                payment.rescan_at_once = true;
            }
            Ok(())
        })?
    }

    /// Passes of the monitor until the end of the process, one each `every`.
    pub async fn run(&self, every: Duration) {
        let mut interval = tokio::time::interval(every);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.tick().await;
        }
    }

    /// All payments, oldest first.
    pub fn payments(&self) -> Vec<Payment> {
        let mut payments: Vec<Payment> = self.look(|state| state.payments.values().cloned().collect());
        payments.sort_by_key(|payment| (payment.created_at, payment.id));
        payments
    }

    /// One payment, as it is now.
    pub fn payment(&self, payment_id: Uuid) -> Option<Payment> {
        self.look(|state| state.payments.get(&payment_id).cloned())
    }

    /// The latest attempts to deliver a webhook, oldest first.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.inner.deliveries.lock().expect(UNPOISONED).clone()
    }

    fn now(&self) -> Timestamp {
        (self.inner.clock)()
    }

    fn coin(&self, code: &str) -> Option<&Coin> {
        self.inner.config.coins.iter().find(|coin| coin.code == code)
    }

    fn look<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.inner.state.lock().expect(UNPOISONED))
    }

    /// Changes the state and writes it out before anybody can see the outcome.
    fn change<T>(&self, write: impl FnOnce(&mut State) -> T) -> Result<T, Error> {
        let mut state = self.inner.state.lock().expect(UNPOISONED);
        let outcome = write(&mut state);
        if let Some(path) = &self.inner.config.state_file {
            state.save(path).map_err(Error::StateFile)?;
        }
        Ok(outcome)
    }

    fn remember(&self, delivery: Delivery) {
        let mut deliveries = self.inner.deliveries.lock().expect(UNPOISONED);
        if deliveries.len() >= REMEMBERED_DELIVERIES {
            deliveries.remove(0);
        }
        deliveries.push(delivery);
    }
}

const UNPOISONED: &str = "nothing panics while it holds this lock";

/// Rounded up to the decimals that the token has: what a payer must send so that nothing is missing.
fn round_up(amount: Decimal, decimals: u32) -> Decimal {
    amount.round_dp_with_strategy(decimals, RoundingStrategy::ToPositiveInfinity)
}
