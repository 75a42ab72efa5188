//! Any sequence of top-ups, charges, refunds, changes of price, late workers and moves of the clock, and what must hold
//! after each. `PROPTEST_CASES=10000 cargo test simulation` runs more of them.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::{
    Account, Action, BoxState, BoxStatus, DAY, EndReason, Interlocks, NoticeState, PaymentInFlight, Period, Policy,
    PriceChange, apply, arrears, decide, due, forecast, refund_on_end, split, upgrade_price,
    vectors::{account, active},
};
use crate::{ids::ResourceId, money::Usd};

const START: &str = "2027-01-31T08:30:00Z";

/// Something that happens.
#[derive(Debug, Clone)]
enum Event {
    TopUp(i64),
    Promotion(i64),
    /// Time passes and the worker looks: late, if it is long.
    Pass {
        minutes: i64,
    },
    /// Time passes with the worker looking whenever it wants to.
    Work {
        hours: i64,
    },
    /// The mailer takes what waits.
    HandOver,
    /// The provider has done what it was asked, or failed to bring a box back.
    Provider {
        succeeds: bool,
    },
    Order {
        cents: i64,
        priority: i32,
    },
    PriceChange {
        which: usize,
        cents: i64,
    },
    /// A dearer plan at once, or a cheaper one from the next month on.
    OtherPlan {
        which: usize,
        cents: i64,
    },
    Hold {
        which: usize,
        days: i32,
    },
    LetEnd {
        which: usize,
        ends: bool,
    },
    EndNow {
        which: usize,
        reason: EndReason,
    },
    UserSuspends {
        which: usize,
    },
    UserResumes {
        which: usize,
    },
    /// An operator brings a box back that is unpaid: its months start anew.
    OperatorResumes {
        which: usize,
    },
    PaymentSeen {
        cents: i64,
    },
    Interlock {
        gateway: bool,
        mailer: bool,
        jumped: bool,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let which = 0..4_usize;
    prop_oneof![
        4 => (1..6000_i64).prop_map(Event::TopUp),
        1 => (1..2000_i64).prop_map(Event::Promotion),
        4 => (1..60 * 24 * 45_i64).prop_map(|minutes| Event::Pass { minutes }),
        4 => (1..24 * 40_i64).prop_map(|hours| Event::Work { hours }),
        4 => Just(Event::HandOver),
        4 => prop::bool::weighted(0.8).prop_map(|succeeds| Event::Provider { succeeds }),
        2 => (100..3000_i64, 1..4_i32).prop_map(|(cents, priority)| Event::Order { cents, priority }),
        1 => (which.clone(), 100..4000_i64).prop_map(|(which, cents)| Event::PriceChange { which, cents }),
        2 => (which.clone(), 100..4000_i64).prop_map(|(which, cents)| Event::OtherPlan { which, cents }),
        1 => (which.clone(), 0..20_i32).prop_map(|(which, days)| Event::Hold { which, days }),
        1 => (which.clone(), any::<bool>()).prop_map(|(which, ends)| Event::LetEnd { which, ends }),
        1 => (which.clone(), prop::sample::select(vec![EndReason::Owner, EndReason::Fault, EndReason::Abuse]))
            .prop_map(|(which, reason)| Event::EndNow { which, reason }),
        1 => which.clone().prop_map(|which| Event::UserSuspends { which }),
        1 => which.clone().prop_map(|which| Event::UserResumes { which }),
        2 => which.prop_map(|which| Event::OperatorResumes { which }),
        1 => (1..4000_i64).prop_map(|cents| Event::PaymentSeen { cents }),
        1 => (any::<bool>(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(gateway, mailer, jumped)| Event::Interlock { gateway, mailer, jumped }),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum LedgerAccount {
    Paid,
    Promotional,
    Reserved,
    Receivable(ResourceId),
    Gateway,
    Revenue,
    PromotionCost,
    WrittenOff,
}

/// A box's life as it was really lived, to hold charges against.
#[derive(Debug, Default)]
struct Lived {
    /// When it ran: from, and until if that is over.
    ran: Vec<(Timestamp, Option<Timestamp>)>,
    /// Periods that were charged.
    charged: Vec<Period>,
    /// What the last of them cost, upgrades in it included.
    last_paid: Usd,
    refunded: Usd,
    suspended_for_billing_at: Option<Timestamp>,
}

/// One account with a ledger beside it, and a provider and a mailer that do what they are told when they are told.
struct World {
    now: Timestamp,
    policy: Policy,
    interlocks: Interlocks,
    account: Account,
    transfers: Vec<(LedgerAccount, LedgerAccount, Usd)>,
    lived: BTreeMap<ResourceId, Lived>,
    /// What a return set aside: arrears, promotional, paid.
    returning: BTreeMap<ResourceId, (Usd, Usd, Usd)>,
    boxes_made: u128,
}

impl World {
    fn new() -> Self {
        Self {
            now: START.parse().unwrap(),
            // Looked at again less often than every ten minutes, or a locked month would be thousands of looks.
            policy: Policy { interlock_retry: SignedDuration::from_hours(7), ..Policy::default() },
            interlocks: Interlocks::default(),
            account: account(0, Vec::new()),
            transfers: Vec::new(),
            lived: BTreeMap::new(),
            returning: BTreeMap::new(),
            boxes_made: 0,
        }
    }

    fn book(&mut self, debit: LedgerAccount, credit: LedgerAccount, amount: Usd) {
        assert!(amount >= Usd::ZERO, "{debit:?} -> {credit:?}: {amount}");
        if amount.is_positive() {
            self.transfers.push((debit, credit, amount));
        }
    }

    fn recomputed(&self, of: LedgerAccount) -> i64 {
        let moved = |(debit, credit, amount): &(LedgerAccount, LedgerAccount, Usd)| {
            (if *credit == of { amount.cents() } else { 0 }) - (if *debit == of { amount.cents() } else { 0 })
        };
        self.transfers.iter().map(moved).sum()
    }

    fn at_index(&self, which: usize) -> Option<ResourceId> {
        self.account.boxes.get(which).map(|one| one.id)
    }

    fn one(&mut self, id: ResourceId) -> &mut BoxState {
        self.account.boxes.iter_mut().find(|one| one.id == id).unwrap()
    }

    fn stop(&mut self, id: ResourceId) {
        let now = self.now;
        if let Some((_, until @ None)) = self.lived.get_mut(&id).unwrap().ran.last_mut() {
            *until = Some(now);
        }
    }

    /// A period is charged: it must be new, and served from its first moment until now.
    fn charge(&mut self, id: ResourceId, period: Period, price: Usd) {
        let now = self.now;
        let lived = self.lived.get_mut(&id).unwrap();
        assert!(period.start <= now, "charged before its date");
        for other in &lived.charged {
            let apart = period.start >= other.end || period.end <= other.start;
            assert!(apart, "{period:?} was charged already, in {other:?}");
        }
        let served = lived.ran.iter().any(|(from, until)| *from <= period.start && until.is_none());
        assert!(served, "{period:?} is charged and was not served: {:?}", lived.ran);
        lived.charged.push(period);
        lived.last_paid = price;
        lived.refunded = Usd::ZERO;
    }

    fn decide(&mut self) -> Option<Timestamp> {
        let decision = decide(&self.account, self.now, &self.policy, &self.interlocks);
        for action in &decision.actions {
            self.check(action);
            apply(&mut self.account, action, &self.policy);
        }
        let again = decide(&self.account, self.now, &self.policy, &self.interlocks);
        assert_eq!(again.actions, [], "asked again at the same instant");
        assert!(decision.next_at.is_none_or(|next| next > self.now));
        decision.next_at
    }

    fn check(&mut self, action: &Action) {
        use LedgerAccount::*;
        let locked = self.interlocks.gateway_failing || self.interlocks.mailer_failing || self.interlocks.clock_jumped;
        match *action {
            Action::Charge { id, period, price, from_promotional, from_paid, .. } => {
                assert_eq!(from_promotional + from_paid, price);
                self.charge(id, period, price);
                self.book(Promotional, Revenue, from_promotional);
                self.book(Paid, Revenue, from_paid);
            }
            Action::Suspend { id } => {
                assert!(!locked);
                let now = self.now;
                let one = self.one(id).clone();
                assert!(one.hold_until.is_none_or(|until| until <= now), "held");
                assert!(now >= one.past_due_since.unwrap() + self.policy.grace, "in grace");
                let NoticeState::Handed(at) = one.final_warning else { panic!("suspended without a warning") };
                assert!(now >= at + self.policy.final_warning_lead, "warned too late");
                assert!(at >= one.past_due_since.unwrap(), "warned of an earlier lapse");
                assert!(one.price_at(one.next_due(), &self.policy) > self.account.available(), "it can be paid");
            }
            Action::Resume { id, arrears, from_promotional, from_paid, .. } => {
                self.book(Promotional, Reserved, from_promotional);
                self.book(Paid, Reserved, from_paid);
                self.returning.insert(id, (arrears, from_promotional, from_paid));
            }
            Action::End { id, unpaid: true } => {
                assert!(!locked);
                let now = self.now;
                let one = self.one(id).clone();
                assert!(one.hold_until.is_none_or(|until| until <= now), "held");
                let since = self.lived[&id].suspended_for_billing_at.unwrap();
                assert!(now >= since + self.policy.retention, "wiped before its time");
                for (notice, days) in one.wipe_notices.iter().zip(self.policy.wipe_notice_days) {
                    let NoticeState::Handed(at) = notice else { panic!("wiped without the notice of {days} days") };
                    assert!(now >= *at + DAY * i32::try_from(days).unwrap(), "the notice of {days} days was cut short");
                    assert!(*at >= since, "the notice of {days} days is of an earlier lapse");
                }
            }
            Action::End { id, unpaid: false } => {
                let now = self.now;
                assert!(self.one(id).next_due() <= now, "ended before what is paid for is over");
            }
            _ => {}
        }
    }

    fn provider(&mut self, succeeds: bool) {
        use LedgerAccount::*;
        let now = self.now;
        for one in self.account.boxes.clone() {
            let id = one.id;
            if one.end_asked {
                self.end(id, None);
            } else if one.suspend_asked && succeeds {
                let Some(since) = one.past_due_since else { continue };
                if one.hold_until.is_some_and(|until| until > now) {
                    self.one(id).suspend_asked = false;
                    continue;
                }
                let period = Period::nth(one.anchor, one.periods_charged);
                let owed = arrears(&period, one.price_at(since, &self.policy), since, now, &self.policy);
                self.book(Receivable(id), Revenue, owed);
                let one = self.one(id);
                (one.arrears, one.suspend_asked) = (owed, false);
                one.status = BoxStatus::SuspendedForBilling { since: now };
                self.stop(id);
                self.lived.get_mut(&id).unwrap().suspended_for_billing_at = Some(now);
            } else if one.resume_asked {
                let (owed, promotional, paid) = self.returning.remove(&id).unwrap();
                if !succeeds {
                    self.book(Reserved, Promotional, promotional);
                    self.book(Reserved, Paid, paid);
                    self.account.promotional += promotional;
                    self.account.paid += paid;
                    self.one(id).resume_asked = false;
                    continue;
                }
                self.book(Reserved, Receivable(id), owed);
                self.book(Reserved, Revenue, promotional + paid - owed);
                self.lived.get_mut(&id).unwrap().ran.push((now, None));
                self.charge(id, Period::nth(now, 0), promotional + paid - owed);
                let one = self.one(id);
                one.price = promotional + paid - owed;
                one.next_plan_price = None;
                if one.price_change.is_some_and(|change| change.price == one.price) {
                    one.price_change = None;
                }
                one.status = BoxStatus::Active;
                one.resume_asked = false;
                (one.anchor, one.periods_charged, one.past_due_since) = (now, 1, None);
                (one.arrears, one.final_warning) = (Usd::ZERO, NoticeState::NotSaid);
                one.wipe_notices = [NoticeState::NotSaid; 3];
            }
        }
    }

    fn end(&mut self, id: ResourceId, reason: Option<EndReason>) {
        use LedgerAccount::*;
        let one = self.one(id).clone();
        if let Some((_, promotional, paid)) = self.returning.remove(&id) {
            self.book(Reserved, Promotional, promotional);
            self.book(Reserved, Paid, paid);
            self.account.promotional += promotional;
            self.account.paid += paid;
        }
        self.book(WrittenOff, Receivable(id), one.arrears);
        let lived = &self.lived[&id];
        if let (Some(reason), Some(period)) = (reason, lived.charged.last()) {
            let refund = refund_on_end(one.price, period, one.activated_at, self.now, reason, &self.policy);
            assert!(refund >= Usd::ZERO);
            assert!(refund + lived.refunded <= lived.last_paid, "more is given back than was charged");
            assert!(reason != EndReason::Abuse || refund == Usd::ZERO);
            self.book(Revenue, Paid, refund);
            self.account.paid += refund;
        }
        self.stop(id);
        self.account.boxes.retain(|other| other.id != id);
        assert_eq!(self.recomputed(Receivable(id)), 0, "a box that is gone owes nothing");
    }

    fn happen(&mut self, event: &Event) {
        use LedgerAccount::*;
        match *event {
            Event::TopUp(cents) => {
                let amount = Usd::from_cents(cents);
                self.book(Gateway, Paid, amount);
                self.account.paid += amount;
                self.account.payment_in_flight = None;
            }
            Event::Promotion(cents) => {
                let amount = Usd::from_cents(cents);
                self.book(PromotionCost, Promotional, amount);
                self.account.promotional += amount;
            }
            Event::Pass { minutes } => self.now += SignedDuration::from_mins(minutes),
            Event::Work { hours } => {
                let until = self.now + SignedDuration::from_hours(hours);
                while let Some(next) = self.decide().filter(|next| *next < until) {
                    self.now = next;
                    self.hand_over();
                }
                self.now = until;
            }
            Event::HandOver => self.hand_over(),
            Event::Provider { succeeds } => self.provider(succeeds),
            Event::Order { cents, priority } => {
                let price = Usd::from_cents(cents);
                let Some((promotional, paid)) = split(price, self.account.promotional, self.account.paid) else {
                    return;
                };
                if self.account.boxes.len() == 4 {
                    return;
                }
                self.account.promotional -= promotional;
                self.account.paid -= paid;
                self.book(Promotional, Reserved, promotional);
                self.book(Paid, Reserved, paid);
                self.book(Reserved, Revenue, price);
                self.boxes_made += 1;
                let one = active(self.boxes_made, cents, priority, self.now);
                self.lived.insert(one.id, Lived { ran: vec![(self.now, None)], ..Lived::default() });
                self.charge(one.id, Period::nth(self.now, 0), price);
                self.account.boxes.push(one);
            }
            Event::PriceChange { which, cents } => {
                let now = self.now;
                let Some(id) = self.at_index(which) else { return };
                self.one(id).price_change = Some(PriceChange { price: Usd::from_cents(cents), notified_at: now });
            }
            Event::OtherPlan { which, cents } => {
                let (now, price) = (self.now, Usd::from_cents(cents));
                let Some(id) = self.at_index(which) else { return };
                let one = self.one(id).clone();
                let running = one.status == BoxStatus::Active && !one.end_asked && one.past_due_since.is_none();
                if !running || one.periods_charged == 0 || one.next_due() <= now {
                    return;
                }
                if price < one.price {
                    self.one(id).next_plan_price = Some(price);
                    self.decide();
                    return;
                }
                let cost = upgrade_price(one.price, price, &Period::nth(one.anchor, one.periods_charged - 1), now);
                let Some((promotional, paid)) = split(cost, self.account.promotional, self.account.paid) else {
                    return;
                };
                self.account.promotional -= promotional;
                self.account.paid -= paid;
                self.book(Promotional, Reserved, promotional);
                self.book(Paid, Reserved, paid);
                self.book(Reserved, Revenue, cost);
                let one = self.one(id);
                (one.price, one.price_change, one.next_plan_price) = (price, None, None);
                self.lived.get_mut(&id).unwrap().last_paid += cost;
            }
            Event::Hold { which, days } => {
                let until = self.now + DAY * days;
                let Some(id) = self.at_index(which) else { return };
                self.one(id).hold_until = (days > 0).then_some(until);
            }
            Event::LetEnd { which, ends } => {
                let Some(id) = self.at_index(which) else { return };
                self.one(id).ends_at_period_end = ends;
            }
            Event::EndNow { which, reason } => {
                let Some(id) = self.at_index(which) else { return };
                self.end(id, Some(reason));
            }
            Event::UserSuspends { which } => {
                let Some(id) = self.at_index(which) else { return };
                let one = self.one(id);
                if one.status == BoxStatus::Active && one.past_due_since.is_none() && !one.end_asked {
                    one.status = BoxStatus::Apart;
                    self.stop(id);
                }
            }
            Event::UserResumes { which } => {
                let now = self.now;
                let Some(id) = self.at_index(which) else { return };
                let one = self.one(id);
                if one.status == BoxStatus::Apart {
                    one.status = BoxStatus::Active;
                    if one.next_due() <= now {
                        // What it was suspended through was not served: periods start anew.
                        (one.anchor, one.periods_charged) = (now, 0);
                    }
                    self.lived.get_mut(&id).unwrap().ran.push((now, None));
                }
            }
            Event::OperatorResumes { which } => {
                let now = self.now;
                let Some(id) = self.at_index(which) else { return };
                let one = self.one(id).clone();
                if !matches!(one.status, BoxStatus::SuspendedForBilling { .. }) || one.end_asked {
                    return;
                }
                // The return that money asked for is called off.
                if let Some((_, promotional, paid)) = self.returning.remove(&id) {
                    self.book(Reserved, Promotional, promotional);
                    self.book(Reserved, Paid, paid);
                    self.account.promotional += promotional;
                    self.account.paid += paid;
                }
                match split(one.arrears, self.account.promotional, self.account.paid) {
                    Some((promotional, paid)) => {
                        self.book(Promotional, Receivable(id), promotional);
                        self.book(Paid, Receivable(id), paid);
                        self.account.promotional -= promotional;
                        self.account.paid -= paid;
                    }
                    None => self.book(WrittenOff, Receivable(id), one.arrears),
                }
                let one = self.one(id);
                (one.status, one.resume_asked, one.arrears) = (BoxStatus::Active, false, Usd::ZERO);
                (one.anchor, one.periods_charged, one.past_due_since) = (now, 0, None);
                one.final_warning = NoticeState::NotSaid;
                one.wipe_notices = [NoticeState::NotSaid; 3];
                self.lived.get_mut(&id).unwrap().ran.push((now, None));
            }
            Event::PaymentSeen { cents } => {
                self.account.payment_in_flight =
                    Some(PaymentInFlight { amount: Usd::from_cents(cents), detected_at: self.now });
            }
            Event::Interlock { gateway, mailer, jumped } => {
                self.interlocks = Interlocks {
                    gateway_failing: gateway,
                    mailer_failing: mailer,
                    clock_jumped: jumped,
                    clock_went_back: false,
                };
            }
        }
        self.decide();
        self.assert_sound();
    }

    fn hand_over(&mut self) {
        let now = self.now;
        for one in &mut self.account.boxes {
            for notice in std::iter::once(&mut one.final_warning).chain(&mut one.wipe_notices) {
                if *notice == NoticeState::Said {
                    *notice = NoticeState::Handed(now);
                }
            }
        }
    }

    fn assert_sound(&self) {
        use LedgerAccount::*;
        assert_eq!(self.account.paid.cents(), self.recomputed(Paid), "cached = recomputed");
        assert_eq!(self.account.promotional.cents(), self.recomputed(Promotional), "cached = recomputed");
        assert!(self.account.paid >= Usd::ZERO && self.account.promotional >= Usd::ZERO, "a balance below zero");
        let reserved: Usd = self.returning.values().map(|(_, promotional, paid)| *promotional + *paid).sum();
        assert_eq!(self.recomputed(Reserved), reserved.cents(), "what is set aside is for a return that is under way");
        for one in &self.account.boxes {
            assert_eq!(-self.recomputed(Receivable(one.id)), one.arrears.cents(), "owed = recomputed");
        }
        let accounts: std::collections::BTreeSet<LedgerAccount> =
            self.transfers.iter().flat_map(|(debit, credit, _)| [*debit, *credit]).collect();
        assert_eq!(accounts.into_iter().map(|account| self.recomputed(account)).sum::<i64>(), 0, "sum to zero");
    }
}

proptest! {
    #[test]
    fn money_stays_right_whatever_happens(events in prop::collection::vec(event(), 1..60)) {
        let mut world = World::new();
        // Something to lose from the start.
        world.happen(&Event::TopUp(2500));
        world.happen(&Event::Order { cents: 1500, priority: 1 });
        for event in &events {
            world.happen(event);
        }
    }

    #[test]
    fn what_the_forecast_asks_for_is_exactly_what_keeps_every_box(
        prices in prop::collection::vec((100..4000_i64, 1..4_i32, 0..720_i64, prop::option::of(50..100_i64)), 1..5),
        paid in 0..10_000_i64,
        days in 1..120_i32,
    ) {
        let start: Timestamp = START.parse().unwrap();
        let boxes: Vec<BoxState> = prices.iter().enumerate().map(|(n, (price, priority, hours, next_plan))| {
            let one = active(n as u128 + 1, *price, *priority, start - SignedDuration::from_hours(*hours));
            BoxState { next_plan_price: next_plan.map(Usd::from_cents), ..one }
        }).collect();
        let (policy, until) = (Policy::default(), start + DAY * days);
        let mut funded = account(paid, boxes);
        let wanted: usize = funded.boxes.iter().map(|one| {
            (one.periods_charged..).take_while(|n| due(one.anchor, *n) < until).count()
        }).sum();
        let ahead = forecast(&funded, start, until, &policy);
        prop_assert_eq!(ahead.pay_in.is_positive(), ahead.charges.len() < wanted);
        funded.paid += ahead.pay_in;
        let kept = forecast(&funded, start, until, &policy);
        prop_assert_eq!(kept.charges.len(), wanted);
        prop_assert!(kept.boxes.iter().all(|one| one.stops_at.is_none()));
        prop_assert_eq!(kept.pay_in, Usd::ZERO);
        if ahead.pay_in.is_positive() {
            funded.paid -= Usd::from_cents(1);
            let one_short = forecast(&funded, start, until, &policy);
            prop_assert!(one_short.charges.len() < wanted, "a cent less is not enough");
            prop_assert_eq!(one_short.pay_in, Usd::from_cents(1));
        }
    }

    #[test]
    fn periods_follow_each_other_without_a_gap(seconds in 1_700_000_000..2_500_000_000_i64, n in 0..400_u32) {
        let anchor = Timestamp::from_second(seconds).unwrap();
        let (this, next) = (Period::nth(anchor, n), Period::nth(anchor, n + 1));
        prop_assert_eq!(this.end, next.start);
        prop_assert!(this.end > this.start && (28..=31).contains(&this.days()));
    }

    #[test]
    fn proration_never_makes_money(price in 1..1_000_000_i64, days in 1..32_i64, left in 0..32_i64) {
        let left = left.min(days);
        let (price, part) = (Usd::from_cents(price), Usd::from_cents(price).prorate(left, days));
        prop_assert!(part >= Usd::ZERO && part <= price);
        prop_assert!(part + price.prorate(days - left, days) <= price);
    }
}
