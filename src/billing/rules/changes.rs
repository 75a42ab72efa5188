//! Changes in the middle of a period: upgrades, refunds, payouts.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use super::{DAY, Period, Policy, whole_days};
use crate::money::Usd;

/// Whole days of a period that are left from the next midnight UTC after `now`.
pub fn days_left(period: &Period, now: Timestamp) -> i64 {
    let date = |at: Timestamp| at.to_zoned(TimeZone::UTC).date();
    let tomorrow = date(now + SignedDuration::from_hours(24));
    let days = tomorrow.until(date(period.end)).map_or(0, |span| i64::from(span.get_days()));
    days.clamp(0, period.days())
}

/// What an upgrade costs now, the anchor kept: the difference of what both plans cost for the days that are left.
pub fn upgrade_price(old: Usd, new: Usd, period: &Period, now: Timestamp) -> Usd {
    let (left, days) = (days_left(period, now), period.days());
    new.prorate(left, days) - old.prorate(left, days)
}

/// Who or what ended a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Its owner, now.
    Owner,
    /// Our fault or the upstream's.
    Fault,
    /// An operator, for a reason that is nobody's fault.
    Operator,
    /// Abuse.
    Abuse,
    /// Non-payment.
    Billing,
}

impl EndReason {
    /// From the first word of an operation's reason. `None` for an end that never had a charge.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "user" => Some(Self::Owner),
            "fault" | "upstream" => Some(Self::Fault),
            "operator" => Some(Self::Operator),
            "abuse" => Some(Self::Abuse),
            "billing" => Some(Self::Billing),
            _ => None,
        }
    }
}

/// What the end of a box gives back of the running period: pro rata in the first days when its owner ends it, always when
/// we or the upstream are at fault or an operator decides it, nothing after abuse or for non-payment.
///
/// `price` is what the whole period costs at the box's present plan, less what was refunded of it before: after an upgrade
/// both what was paid at first and what the upgrade cost are in it.
pub fn refund_on_end(
    price: Usd,
    period: &Period,
    activated_at: Timestamp,
    now: Timestamp,
    reason: EndReason,
    policy: &Policy,
) -> Usd {
    let gives_back = match reason {
        EndReason::Owner => now.duration_since(activated_at) < policy.refund_window,
        EndReason::Fault | EndReason::Operator => true,
        EndReason::Abuse | EndReason::Billing => false,
    };
    if !gives_back || now >= period.end || !price.is_positive() {
        return Usd::ZERO;
    }
    price.prorate(days_left(period, now.max(period.start - DAY)), period.days())
}

/// What a machine that is stopped goes on costing from one time to another at a price a month: whole months, and whole days of
/// the last one.
pub fn idle_cost(monthly: Usd, from: Timestamp, until: Timestamp) -> Usd {
    let mut cost = Usd::ZERO;
    for n in 0.. {
        let month = Period::nth(from, n);
        if month.end > until {
            cost += monthly.prorate(whole_days(month.start, until), month.days());
            break;
        }
        cost += monthly;
    }
    cost
}

/// How much of a charge can still be refunded: the sum of its refunds never passes it.
pub fn refundable(charged: Usd, refunded: Usd) -> Usd {
    if charged > refunded { charged - refunded } else { Usd::ZERO }
}

/// How much can be paid out: paid credit only, never promotional, and none while the account is held.
pub fn payout_limit(paid: Usd, held: bool) -> Usd {
    if held { Usd::ZERO } else { paid }
}

/// Which payments a payout is taken from: money is spent oldest first, and what is left is paid out oldest first.
///
/// `paid_in` is what came in, oldest first, each with its name; `balance` is what is left of it all.
pub fn payout_lots(paid_in: &[(String, Usd)], balance: Usd, payout: Usd) -> Vec<(String, Usd)> {
    let total: Usd = paid_in.iter().map(|(_, amount)| *amount).sum();
    let mut spent = if total > balance { total - balance } else { Usd::ZERO };
    let mut wanted = payout;
    let mut lots = Vec::new();
    for (name, amount) in paid_in {
        let gone = spent.min(*amount);
        spent -= gone;
        let taken = wanted.min(*amount - gone);
        wanted -= taken;
        if taken.is_positive() {
            lots.push((name.clone(), taken));
        }
    }
    lots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn cents(cents: i64) -> Usd {
        Usd::from_cents(cents)
    }

    #[test]
    fn an_upgrade_costs_the_difference_for_the_days_left() {
        let period = Period { start: at("2027-01-31T00:00:00Z"), end: at("2027-02-28T00:00:00Z") };
        let now = at("2027-02-09T15:30:00Z");
        assert_eq!(days_left(&period, now), 18);
        assert_eq!(upgrade_price(cents(1500), cents(3000), &period, now), cents(964));
        assert_eq!(upgrade_price(cents(1500), cents(1500), &period, now), Usd::ZERO);
        assert_eq!(upgrade_price(cents(1500), cents(3000), &period, at("2027-02-27T23:00:00Z")), Usd::ZERO);
    }

    #[test]
    fn an_end_gives_back_what_the_rules_say() {
        let policy = Policy::default();
        let start = at("2027-04-01T10:00:00Z");
        let period = Period { start, end: at("2027-05-01T10:00:00Z") };
        for (now, reason, expected) in [
            ("2027-04-01T11:00:00Z", EndReason::Owner, 1450),
            ("2027-04-06T10:00:00Z", EndReason::Owner, 1200),
            ("2027-04-08T09:59:59Z", EndReason::Owner, 1100),
            ("2027-04-08T10:00:00Z", EndReason::Owner, 0),
            ("2027-04-20T10:00:00Z", EndReason::Fault, 500),
            ("2027-04-20T10:00:00Z", EndReason::Operator, 500),
            ("2027-04-02T10:00:00Z", EndReason::Abuse, 0),
            ("2027-04-02T10:00:00Z", EndReason::Billing, 0),
            ("2027-05-01T10:00:00Z", EndReason::Fault, 0),
        ] {
            assert_eq!(
                refund_on_end(cents(1500), &period, start, at(now), reason, &policy),
                cents(expected),
                "{now} {reason:?}"
            );
        }
    }

    #[test]
    fn a_payout_is_taken_from_the_oldest_money_that_is_left() {
        let paid_in = [("a", 1000), ("b", 500), ("c", 2000)].map(|(name, amount)| (name.to_owned(), cents(amount)));
        for (balance, payout, expected) in [
            (3500, 3500, &[("a", 1000), ("b", 500), ("c", 2000)][..]),
            (3500, 1200, &[("a", 1000), ("b", 200)]),
            (2100, 600, &[("b", 100), ("c", 500)]),
            (2000, 2000, &[("c", 2000)]),
            (0, 0, &[]),
        ] {
            let lots = payout_lots(&paid_in, cents(balance), cents(payout));
            let lots: Vec<_> = lots.iter().map(|(name, amount)| (name.as_str(), amount.cents())).collect();
            assert_eq!(lots, expected, "{payout} of {balance}");
        }
    }

    #[test]
    fn a_stopped_machine_costs_by_months_and_days() {
        let from = at("2027-01-31T12:00:00Z");
        for (until, expected) in [
            ("2027-01-31T12:00:00Z", 0),
            ("2027-01-30T12:00:00Z", 0),
            ("2027-02-01T11:59:59Z", 0),
            ("2027-02-10T12:00:00Z", 142),
            ("2027-02-28T12:00:00Z", 400),
            ("2027-03-10T12:00:00Z", 529),
            ("2028-01-31T12:00:00Z", 4800),
        ] {
            assert_eq!(idle_cost(cents(400), from, at(until)), cents(expected), "{until}");
        }
        assert_eq!(idle_cost(Usd::ZERO, from, at("2028-01-31T12:00:00Z")), Usd::ZERO);
    }

    #[test]
    fn refunds_and_payouts_have_limits() {
        assert_eq!(refundable(cents(1500), cents(500)), cents(1000));
        assert_eq!(refundable(cents(1500), cents(1600)), Usd::ZERO);
        assert_eq!(payout_limit(cents(700), false), cents(700));
        assert_eq!(payout_limit(cents(700), true), Usd::ZERO);
    }
}
