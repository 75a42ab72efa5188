//! The rules of the business, pure: time is an argument, nothing is read and nothing is written. The sweep, the quote, the
//! preview and the simulation all ask the same functions.

use jiff::{SignedDuration, Timestamp};

use crate::money::Usd;

pub mod changes;
pub mod dunning;
pub mod payments;
pub mod periods;
pub mod preview;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod vectors;

pub use changes::{EndReason, idle_cost, payout_limit, payout_lots, refund_on_end, refundable, upgrade_price};
pub use dunning::{
    Account, Action, BoxState, BoxStatus, Decision, Interlocks, NoticeState, PaymentInFlight, PriceChange, apply,
    arrears, decide, price_at,
};
pub use periods::{Period, due};
pub use preview::{Forecast, ForecastBox, forecast};

/// One day.
pub const DAY: SignedDuration = SignedDuration::from_hours(24);

/// The numbers of the rules. The defaults are the ones that customers are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How long an unpaid box runs on.
    pub grace: SignedDuration,
    /// How long before a suspension the final warning must have been handed to the mailer.
    pub final_warning_lead: SignedDuration,
    /// How long the data of a suspended box is kept.
    pub retention: SignedDuration,
    /// At how many days left a balance that will not last is warned about, largest first.
    pub runway_days: Vec<i64>,
    /// How many days before a wipe its three notices are given, largest first.
    pub wipe_notice_days: [i64; 3],
    /// How long before it takes effect a change of price must be told.
    pub price_change_notice: SignedDuration,
    /// How long after its activation the rest of a period is given back when its owner ends a box.
    pub refund_window: SignedDuration,
    /// How long a payment that was seen and not confirmed keeps a box from being suspended or wiped.
    pub payment_in_flight_hold: SignedDuration,
    /// More suspensions and wipes than this in an hour, and than `blast_percent` of the fleet, wait for an operator.
    pub blast_boxes: u32,
    /// See `blast_boxes`.
    pub blast_percent: u32,
    /// The smallest top-up.
    pub topup_min: Usd,
    /// The largest top-up.
    pub topup_max: Usd,
    /// An over-payment above this waits for an operator.
    pub excess_limit: Usd,
    /// For how long after its end a quote in a volatile coin is honoured.
    pub late_window: SignedDuration,
    /// Money that is credited and not forwarded for so long is reported.
    pub not_forwarded_after: SignedDuration,
    /// How soon to look again when an interlock stopped something.
    pub interlock_retry: SignedDuration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            grace: SignedDuration::from_hours(3 * 24),
            final_warning_lead: SignedDuration::from_hours(24),
            retention: SignedDuration::from_hours(14 * 24),
            runway_days: vec![14, 7, 3, 1],
            wipe_notice_days: [7, 3, 1],
            price_change_notice: SignedDuration::from_hours(30 * 24),
            refund_window: SignedDuration::from_hours(7 * 24),
            payment_in_flight_hold: SignedDuration::from_hours(48),
            blast_boxes: 5,
            blast_percent: 10,
            topup_min: Usd::from_cents(500),
            topup_max: Usd::from_cents(100_000),
            excess_limit: Usd::from_cents(10_000),
            late_window: SignedDuration::from_mins(60),
            not_forwarded_after: SignedDuration::from_hours(6),
            interlock_retry: SignedDuration::from_mins(10),
        }
    }
}

/// Whether a run that has hit `already` boxes in the last hour may hit one more, of a fleet of `fleet`: it may not once it
/// would be more than the policy's number of boxes and more than its share of the fleet.
pub fn within_blast_limit(already: u32, fleet: u32, policy: &Policy) -> bool {
    let hit = already + 1;
    hit <= policy.blast_boxes || u64::from(hit) * 100 <= u64::from(fleet) * u64::from(policy.blast_percent)
}

/// Splits a price over what can be spent: promotional credit first. `None` if both together do not cover it.
pub fn split(price: Usd, promotional: Usd, paid: Usd) -> Option<(Usd, Usd)> {
    let from_promotional = price.min(promotional);
    let from_paid = price - from_promotional;
    (from_paid <= paid).then_some((from_promotional, from_paid))
}

/// Whole days from `start` to `end`, rounded down; none if it is the other way round.
pub(crate) fn whole_days(start: Timestamp, end: Timestamp) -> i64 {
    end.duration_since(start).as_secs().max(0) / DAY.as_secs()
}
