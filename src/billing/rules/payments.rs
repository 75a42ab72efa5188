//! What a payment's state means: what is credited, held, or left for an operator, and when to ask again.

use jiff::{SignedDuration, Timestamp};
use rust_decimal::{Decimal, prelude::ToPrimitive};

use super::Policy;
use crate::{billing::topups::TopupStatus, money::Usd};

/// The order of the gateway's states; only upward moves take effect.
pub fn rank(status: TopupStatus) -> u8 {
    match status {
        TopupStatus::Created => 0,
        TopupStatus::Pending => 1,
        TopupStatus::Detected => 2,
        TopupStatus::Expired | TopupStatus::Failed => 3,
        TopupStatus::Confirmed => 4,
        TopupStatus::Forwarded => 5,
    }
}

/// What is known of a payment.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Where it stood.
    pub status: TopupStatus,
    /// Whether it was credited.
    pub credited: bool,
    /// What the quote credits.
    pub amount: Usd,
    /// What the quote asked for in all, with the network fee.
    pub quoted_total: Usd,
    /// How much of the coin that is.
    pub expected: Decimal,
    /// How much of it is known to have come.
    pub received: Option<Decimal>,
    /// When the quote ended.
    pub expires_at: Timestamp,
    /// Whether the coin is worth a dollar.
    pub stable: bool,
    /// Whether it came too late and waits for an operator: no later word of the gateway credits it.
    pub paid_late: bool,
}

/// What is to be booked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Where it stands now.
    pub status: TopupStatus,
    /// The quoted amount, if it is credited now.
    pub credit: Usd,
    /// What came above it, credited too.
    pub excess: Usd,
    /// What came above it, held for review.
    pub held: Usd,
    /// Why an operator has to look.
    pub unresolved: Option<&'static str>,
}

/// What was paid above the quote, in whole cents rounded down, and whether it is credited or held for review.
pub fn excess(expected: Decimal, received: Decimal, quoted_total: Usd, policy: &Policy) -> (Usd, Usd) {
    if received <= expected || expected <= Decimal::ZERO {
        return (Usd::ZERO, Usd::ZERO);
    }
    // Multiplied before divided, so that the one rounding is the floor at the end; a sum too large for that is held.
    let cents = (received - expected)
        .checked_mul(Decimal::from(quoted_total.cents()))
        .and_then(|product| product.checked_div(expected))
        .and_then(|cents| cents.floor().to_i64());
    let Some(cents) = cents else { return (Usd::ZERO, policy.topup_max) };
    let above = Usd::from_cents(cents);
    if above > policy.excess_limit || above > quoted_total { (Usd::ZERO, above) } else { (above, Usd::ZERO) }
}

/// What follows from the gateway saying that a payment is in `seen`.
pub fn advance(
    known: &Known,
    seen: TopupStatus,
    received: Option<Decimal>,
    now: Timestamp,
    policy: &Policy,
) -> Outcome {
    let received = received.or(known.received);
    let partial = received.is_some_and(|received| received > Decimal::ZERO);
    let seen = if seen == TopupStatus::Pending && partial { TopupStatus::Detected } else { seen };
    let mut outcome =
        Outcome { status: known.status, credit: Usd::ZERO, excess: Usd::ZERO, held: Usd::ZERO, unresolved: None };
    if rank(seen) < rank(known.status) {
        if seen == TopupStatus::Failed && known.credited {
            outcome.unresolved = Some("failed_after_confirmed");
        }
        return outcome;
    }
    outcome.status = seen;
    match seen {
        TopupStatus::Confirmed | TopupStatus::Forwarded if !known.credited && !known.paid_late => {
            let late = known.status == TopupStatus::Expired && now > known.expires_at;
            let honoured = known.stable || now.duration_since(known.expires_at) <= policy.late_window;
            if late && !honoured {
                outcome.unresolved = Some("paid_late");
                return outcome;
            }
            outcome.credit = known.amount;
            if let Some(received) = received {
                (outcome.excess, outcome.held) = excess(known.expected, received, known.quoted_total, policy);
            }
            if outcome.held.is_positive() {
                outcome.unresolved = Some("excess_held");
            }
        }
        TopupStatus::Expired if partial => outcome.unresolved = Some("underpaid"),
        _ => {}
    }
    outcome
}

/// When to ask about an open payment for the `polls_done + 1`th time: after 2, 5, 10, 15 and 20 minutes, hourly for a day,
/// daily to day 35. `None` when there is no more to ask.
pub fn next_poll(opened_at: Timestamp, polls_done: u32) -> Option<Timestamp> {
    let minutes = match polls_done {
        0 => 2,
        early @ 1..=4 => i64::from(early) * 5,
        hourly @ 5..=28 => i64::from(hourly - 4) * 60,
        daily => i64::from(daily - 27) * 24 * 60,
    };
    (minutes <= 35 * 24 * 60).then(|| opened_at + SignedDuration::from_mins(minutes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    fn known(status: TopupStatus) -> Known {
        Known {
            status,
            credited: matches!(status, TopupStatus::Confirmed | TopupStatus::Forwarded),
            amount: Usd::from_cents(1000),
            quoted_total: Usd::from_cents(1050),
            expected: decimal("10.50"),
            received: None,
            expires_at: "2027-01-01T00:15:00Z".parse().unwrap(),
            stable: true,
            paid_late: false,
        }
    }

    #[test]
    fn over_payments_are_credited_or_held_to_the_cent() {
        let policy = Policy::default();
        for (received, credited, held) in [
            ("10.50", 0, 0),
            ("10.509", 0, 0),
            ("10.51", 1, 0),
            ("15.75", 525, 0),
            ("21.00", 1050, 0),
            ("21.01", 0, 1051),
            ("25.00", 0, 1450),
            ("9.00", 0, 0),
        ] {
            let (credit, hold) = excess(decimal("10.50"), decimal(received), Usd::from_cents(1050), &policy);
            assert_eq!((credit.cents(), hold.cents()), (credited, held), "{received}");
        }
        let (credit, hold) = excess(decimal("500"), decimal("600.01"), Usd::from_cents(50_000), &policy);
        assert_eq!((credit.cents(), hold.cents()), (0, 10_001));
        let (credit, hold) = excess(Decimal::MAX / decimal("2"), Decimal::MAX, Usd::from_cents(1050), &policy);
        assert!(credit == Usd::ZERO && hold.is_positive(), "what cannot be computed is not credited");
    }

    #[test]
    fn only_upward_moves_take_effect() {
        use TopupStatus::*;
        let now = "2027-01-01T00:10:00Z".parse().unwrap();
        let policy = Policy::default();
        for (from, seen, status, credit) in [
            (Pending, Detected, Detected, 0),
            (Detected, Pending, Detected, 0),
            (Pending, Confirmed, Confirmed, 1000),
            (Pending, Forwarded, Forwarded, 1000),
            (Confirmed, Forwarded, Forwarded, 0),
            (Forwarded, Confirmed, Forwarded, 0),
            (Confirmed, Expired, Confirmed, 0),
            (Expired, Confirmed, Confirmed, 1000),
            (Failed, Confirmed, Confirmed, 1000),
        ] {
            let outcome = advance(&known(from), seen, None, now, &policy);
            assert_eq!((outcome.status, outcome.credit.cents()), (status, credit), "{from} then {seen}");
        }
        assert_eq!(advance(&known(Confirmed), Failed, None, now, &policy).unresolved, Some("failed_after_confirmed"));
    }

    #[test]
    fn short_payments_credit_nothing() {
        use TopupStatus::*;
        let policy = Policy::default();
        let now = "2027-01-01T00:10:00Z".parse().unwrap();
        let short = advance(&known(Pending), Pending, Some(decimal("10.00")), now, &policy);
        assert_eq!((short.status, short.credit, short.unresolved), (Detected, Usd::ZERO, None));
        let over = advance(&known(Detected), Expired, Some(decimal("10.00")), now, &policy);
        assert_eq!((over.status, over.credit, over.unresolved), (Expired, Usd::ZERO, Some("underpaid")));
        let nothing = advance(&known(Pending), Expired, Some(Decimal::ZERO), now, &policy);
        assert_eq!(nothing.unresolved, None);
    }

    #[test]
    fn late_payments_are_honoured_in_a_stable_coin_or_soon() {
        use TopupStatus::*;
        let policy = Policy::default();
        let volatile = Known { stable: false, ..known(Expired) };
        for (known, now, credit, unresolved) in [
            (known(Expired), "2027-01-20T00:00:00Z", 1000, None),
            (volatile, "2027-01-01T01:15:00Z", 1000, None),
            (volatile, "2027-01-01T01:15:01Z", 0, Some("paid_late")),
        ] {
            let outcome = advance(&known, Confirmed, None, now.parse().unwrap(), &policy);
            assert_eq!((outcome.credit.cents(), outcome.unresolved), (credit, unresolved), "{now}");
        }
        let waiting = Known { paid_late: true, status: Confirmed, credited: false, ..volatile };
        let forwarded = advance(&waiting, Forwarded, None, "2027-01-01T03:00:00Z".parse().unwrap(), &policy);
        assert_eq!((forwarded.status, forwarded.credit), (Forwarded, Usd::ZERO), "it waits for an operator");
    }

    #[test]
    fn polls_are_dense_at_first_and_end_on_day_35() {
        let opened: Timestamp = "2027-01-01T00:00:00Z".parse().unwrap();
        let minutes: Vec<i64> =
            (0..).map_while(|done| next_poll(opened, done)).map(|at| at.duration_since(opened).as_mins()).collect();
        assert_eq!(minutes[..7], [2, 5, 10, 15, 20, 60, 120]);
        assert_eq!(minutes[28], 24 * 60);
        assert_eq!(minutes[29], 2 * 24 * 60);
        assert_eq!(*minutes.last().unwrap(), 35 * 24 * 60);
        assert!(minutes.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
