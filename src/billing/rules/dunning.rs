//! What happens to one account at one instant: who is charged, warned, suspended, brought back and ended.

use jiff::{SignedDuration, Timestamp};

use super::{DAY, Period, Policy, due, split, whole_days};
use crate::{ids::ResourceId, money::Usd};

/// What has been said of a notice that is given once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeState {
    /// Nothing.
    NotSaid,
    /// Written, and not handed to the mailer yet: nothing may rely on it.
    Said,
    /// Handed to the mailer at this time.
    Handed(Timestamp),
}

/// Whether and how a box takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoxStatus {
    /// Runs, and is charged when its date comes.
    Active,
    /// Suspended for non-payment: comes back when it is paid for, is wiped when it is not.
    SuspendedForBilling {
        /// Since when.
        since: Timestamp,
    },
    /// Made, ended, or suspended for another reason: nothing is charged and nothing lapses.
    Apart,
}

/// A change of the catalogue's price that this box was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PriceChange {
    /// The price from then on.
    pub price: Usd,
    /// When its owner was told.
    pub notified_at: Timestamp,
}

/// One box, as far as money is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxState {
    /// Which.
    pub id: ResourceId,
    /// Whether it runs.
    pub status: BoxStatus,
    /// Whether it is being suspended, brought back or ended right now: that is not asked for twice.
    pub suspend_asked: bool,
    /// See `suspend_asked`.
    pub resume_asked: bool,
    /// See `suspend_asked`.
    pub end_asked: bool,
    /// The price of a month, frozen.
    pub price: Usd,
    /// A change of it to come.
    pub price_change: Option<PriceChange>,
    /// The price of the plan that its owner chose from the next month on.
    pub next_plan_price: Option<Usd>,
    /// The first date.
    pub anchor: Timestamp,
    /// Periods `0..n` are charged; the next to charge is `n`, at `due(anchor, n)`.
    pub periods_charged: u32,
    /// 1 is kept alive longest.
    pub priority: i32,
    /// When it first became active.
    pub activated_at: Timestamp,
    /// Since when a period is unpaid.
    pub past_due_since: Option<Timestamp>,
    /// The final warning of this lapse.
    pub final_warning: NoticeState,
    /// What a suspended box owes for its days of grace.
    pub arrears: Usd,
    /// The three notices of a wipe, 7, 3 and 1 days before.
    pub wipe_notices: [NoticeState; 3],
    /// Until when an operator stops suspension and wipe.
    pub hold_until: Option<Timestamp>,
    /// Whether its owner lets it end with its paid period.
    pub ends_at_period_end: bool,
}

impl BoxState {
    /// When the next period to charge begins.
    pub fn next_due(&self) -> Timestamp {
        due(self.anchor, self.periods_charged)
    }

    /// What the period that begins at `at` costs: a change of price reaches the first renewal long enough after its notice.
    pub fn price_at(&self, at: Timestamp, policy: &Policy) -> Usd {
        price_at(self.price, self.next_plan_price, self.price_change, at, policy)
    }

    /// The order in which boxes are charged in one run.
    fn rank(&self) -> (i32, Timestamp, Timestamp, ResourceId) {
        (self.priority, self.next_due(), self.activated_at, self.id)
    }

    fn is_held(&self, now: Timestamp) -> bool {
        self.hold_until.is_some_and(|until| until > now)
    }
}

/// A payment that was seen and is not confirmed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaymentInFlight {
    /// What it will add.
    pub amount: Usd,
    /// When it was first seen.
    pub detected_at: Timestamp,
}

/// One customer's money and boxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Paid in and not spent.
    pub paid: Usd,
    /// Promotional credit, spent first.
    pub promotional: Usd,
    /// Every box that is not gone.
    pub boxes: Vec<BoxState>,
    /// A payment that was seen and is not confirmed.
    pub payment_in_flight: Option<PaymentInFlight>,
    /// The lowest threshold of runway that was said in this dip.
    pub runway_said: Option<i64>,
}

impl Account {
    /// What can be spent.
    pub fn available(&self) -> Usd {
        self.paid + self.promotional
    }

    fn spend(&mut self, from_promotional: Usd, from_paid: Usd) {
        self.promotional -= from_promotional;
        self.paid -= from_paid;
    }

    fn find(&mut self, id: ResourceId) -> Option<&mut BoxState> {
        self.boxes.iter_mut().find(|one| one.id == id)
    }
}

/// What stops suspensions and wipes, and charges too where the clock is wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interlocks {
    /// The gateway fails: money may be on its way that we cannot see.
    pub gateway_failing: bool,
    /// The mailer fails: warnings may not have arrived.
    pub mailer_failing: bool,
    /// The clock jumped, and no operator has looked yet: whether notices had their time cannot be said.
    pub clock_jumped: bool,
    /// The clock went backwards: nothing can be said about dates.
    pub clock_went_back: bool,
}

/// Something to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Charge a period whole.
    Charge {
        /// Which box.
        id: ResourceId,
        /// Which period, from 0.
        n: u32,
        /// The period.
        period: Period,
        /// Its price: the sum of the two parts.
        price: Usd,
        /// Out of promotional credit.
        from_promotional: Usd,
        /// Out of paid credit.
        from_paid: Usd,
    },
    /// A period began that cannot be paid.
    PastDue {
        /// Which box.
        id: ResourceId,
        /// Since when.
        since: Timestamp,
        /// What is missing.
        short_by: Usd,
        /// The earliest time of a suspension.
        suspends_at: Timestamp,
    },
    /// Say the final warning.
    FinalWarning {
        /// Which box.
        id: ResourceId,
        /// What is missing.
        short_by: Usd,
        /// The earliest time of the suspension.
        suspends_at: Timestamp,
    },
    /// Ask for a suspension.
    Suspend {
        /// Which box.
        id: ResourceId,
    },
    /// Reserve what it owes and a new month, and ask for it to be brought back.
    Resume {
        /// Which box.
        id: ResourceId,
        /// For days of grace.
        arrears: Usd,
        /// For the month from the day it is active again.
        price: Usd,
        /// Out of promotional credit.
        from_promotional: Usd,
        /// Out of paid credit.
        from_paid: Usd,
    },
    /// Say that a wipe comes nearer.
    WipeNotice {
        /// Which box.
        id: ResourceId,
        /// Which of the three.
        index: usize,
        /// How many days before.
        days: i64,
        /// The earliest time of the wipe, once this is handed over.
        not_before: Timestamp,
        /// What has to be in the balance to keep it.
        pay: Usd,
    },
    /// Ask for the end of a box: unpaid for too long, or as its owner wished.
    End {
        /// Which box.
        id: ResourceId,
        /// `true` if for non-payment, `false` if its owner let it end with its period.
        unpaid: bool,
    },
    /// Say that the balance will not last.
    Runway {
        /// The threshold that was passed, in days.
        days: i64,
        /// When the first month falls due that is not covered.
        stops_at: Timestamp,
        /// What is missing then.
        short_by: Usd,
    },
    /// The balance lasts again: the thresholds count anew.
    RunwayRestored,
    /// The clock went backwards: nothing was charged.
    ClockAlarm,
}

/// What to do now and when to ask again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// In the order they are to be done.
    pub actions: Vec<Action>,
    /// When to ask again, after now; `None` if nothing will come by itself.
    pub next_at: Option<Timestamp>,
}

/// What the period that begins at `at` costs a box of this price: what its owner chose for it, or else a change of the
/// catalogue that was told in time.
pub fn price_at(
    price: Usd,
    next_plan_price: Option<Usd>,
    change: Option<PriceChange>,
    at: Timestamp,
    policy: &Policy,
) -> Usd {
    match (next_plan_price, change) {
        (Some(chosen), _) => chosen,
        (None, Some(change)) if change.notified_at + policy.price_change_notice <= at => change.price,
        _ => price,
    }
}

/// What a box owes for the days of grace it ran unpaid: whole days, at most the grace, pro rata of the unpaid period.
pub fn arrears(
    period: &Period,
    price: Usd,
    past_due_since: Timestamp,
    suspended_at: Timestamp,
    policy: &Policy,
) -> Usd {
    let grace_days = policy.grace.as_secs() / DAY.as_secs();
    price.prorate(whole_days(past_due_since, suspended_at).min(grace_days), period.days())
}

/// Decides everything for one account at one instant. Asked again at the same instant after its actions were applied, it
/// has nothing more to do.
pub fn decide(account: &Account, now: Timestamp, policy: &Policy, interlocks: &Interlocks) -> Decision {
    let mut run = Run { account: account.clone(), now, policy, interlocks, decision: Decision::default() };
    if interlocks.clock_went_back {
        run.decision.actions.push(Action::ClockAlarm);
        run.again_at(now + policy.interlock_retry);
        return run.decision;
    }
    run.end_as_wished();
    run.charge();
    run.bring_back();
    run.lapse();
    run.wipe();
    run.warn_of_runway();
    run.decision
}

struct Run<'a> {
    account: Account,
    now: Timestamp,
    policy: &'a Policy,
    interlocks: &'a Interlocks,
    decision: Decision,
}

impl Run<'_> {
    fn act(&mut self, action: Action) {
        apply(&mut self.account, &action, self.policy);
        self.decision.actions.push(action);
    }

    fn again_at(&mut self, at: Timestamp) {
        let at = at.max(self.now + SignedDuration::from_secs(1));
        self.decision.next_at = Some(self.decision.next_at.map_or(at, |next| next.min(at)));
    }

    /// Whether nothing may be cut off or destroyed now, and if so, that it is looked at again.
    fn is_locked(&mut self, id: ResourceId, needed: Usd) -> bool {
        let on_its_way = self.account.payment_in_flight.is_some_and(|payment| {
            self.account.available() + payment.amount >= needed
                && self.now.duration_since(payment.detected_at) < self.policy.payment_in_flight_hold
        });
        let hold = self.account.find(id).and_then(|one| one.hold_until).filter(|until| *until > self.now);
        if let Some(until) = hold {
            self.again_at(until);
        }
        let Interlocks { gateway_failing, mailer_failing, clock_jumped, .. } = *self.interlocks;
        if gateway_failing || mailer_failing || clock_jumped || on_its_way {
            self.again_at(self.now + self.policy.interlock_retry);
            return true;
        }
        hold.is_some()
    }

    fn end_as_wished(&mut self) {
        for one in self.account.boxes.clone() {
            if one.ends_at_period_end && one.status == BoxStatus::Active && !one.end_asked {
                if one.next_due() > self.now {
                    self.again_at(one.next_due());
                } else if one.is_held(self.now) {
                    self.again_at(one.hold_until.unwrap_or(self.now));
                } else if self.interlocks.clock_jumped {
                    // Whether its month is really over cannot be told.
                    self.again_at(self.now + self.policy.interlock_retry);
                } else {
                    self.act(Action::End { id: one.id, unpaid: false });
                }
            }
        }
    }

    /// Each box whole or not at all, one period at a time, until the first that cannot be paid.
    fn charge(&mut self) {
        let mut unpaid = Vec::new();
        loop {
            let next = self
                .account
                .boxes
                .iter()
                .filter(|one| one.status == BoxStatus::Active && !one.end_asked && !one.ends_at_period_end)
                .filter(|one| one.next_due() <= self.now && !unpaid.contains(&one.id))
                .min_by_key(|one| one.rank())
                .cloned();
            let Some(one) = next else { break };
            let (n, since) = (one.periods_charged, one.next_due());
            let price = one.price_at(since, self.policy);
            if let Some((from_promotional, from_paid)) = split(price, self.account.promotional, self.account.paid) {
                let period = Period::nth(one.anchor, n);
                self.act(Action::Charge { id: one.id, n, period, price, from_promotional, from_paid });
            } else {
                unpaid.push(one.id);
                if one.past_due_since.is_none() {
                    let short_by = price - self.account.available();
                    let suspends_at = (since + self.policy.grace).max(self.now + self.policy.final_warning_lead);
                    self.act(Action::PastDue { id: one.id, since, short_by, suspends_at });
                }
            }
        }
        for one in self.account.boxes.clone() {
            if one.status == BoxStatus::Active && !one.end_asked && one.next_due() > self.now {
                self.again_at(one.next_due());
            }
        }
    }

    /// Boxes suspended for non-payment, after everything that is past due: what they owe and a new month, whole or not.
    fn bring_back(&mut self) {
        let mut suspended: Vec<BoxState> = self
            .account
            .boxes
            .iter()
            .filter(|one| {
                matches!(one.status, BoxStatus::SuspendedForBilling { .. }) && !one.resume_asked && !one.end_asked
            })
            .cloned()
            .collect();
        suspended.sort_by_key(BoxState::rank);
        for one in suspended {
            let price = one.price_at(self.now, self.policy);
            if let Some((from_promotional, from_paid)) =
                split(one.arrears + price, self.account.promotional, self.account.paid)
            {
                self.act(Action::Resume { id: one.id, arrears: one.arrears, price, from_promotional, from_paid });
            }
        }
    }

    /// Past due: a final warning, and a suspension once it has been handed over long enough.
    fn lapse(&mut self) {
        for one in self.account.boxes.clone() {
            let Some(since) = one.past_due_since else { continue };
            if one.status != BoxStatus::Active || one.suspend_asked || one.end_asked {
                continue;
            }
            let price = one.price_at(since, self.policy);
            let short_by = if price > self.account.available() { price - self.account.available() } else { Usd::ZERO };
            let grace_ends = since + self.policy.grace;
            match one.final_warning {
                NoticeState::NotSaid if self.now >= grace_ends - self.policy.final_warning_lead => {
                    let suspends_at = grace_ends.max(self.now + self.policy.final_warning_lead);
                    self.act(Action::FinalWarning { id: one.id, short_by, suspends_at });
                }
                NoticeState::NotSaid => self.again_at(grace_ends - self.policy.final_warning_lead),
                // Handing it over makes the sweep look again.
                NoticeState::Said => {}
                NoticeState::Handed(at) => {
                    let suspends_at = grace_ends.max(at + self.policy.final_warning_lead);
                    if self.now < suspends_at {
                        self.again_at(suspends_at);
                    } else if !self.is_locked(one.id, price) {
                        self.act(Action::Suspend { id: one.id });
                    }
                }
            }
        }
    }

    /// Suspended for too long: three notices, each handed over in full time before the wipe, then the end.
    fn wipe(&mut self) {
        for one in self.account.boxes.clone() {
            let BoxStatus::SuspendedForBilling { since } = one.status else { continue };
            if one.resume_asked || one.end_asked {
                continue;
            }
            let days = self.policy.wipe_notice_days;
            // A notice that was handed over late moves the wipe: nobody gets less time than the notice says.
            let mut wipe_at = since + self.policy.retention;
            for (notice, days) in one.wipe_notices.iter().zip(days) {
                if let NoticeState::Handed(at) = notice {
                    wipe_at = wipe_at.max(*at + DAY * i32::try_from(days).unwrap_or(i32::MAX));
                }
            }
            let pay = one.arrears + one.price_at(self.now, self.policy);
            let next = one.wipe_notices.iter().position(|notice| !matches!(notice, NoticeState::Handed(_)));
            match next {
                Some(index) if one.wipe_notices[index] == NoticeState::NotSaid => {
                    let lead = DAY * i32::try_from(days[index]).unwrap_or(i32::MAX);
                    if self.now >= wipe_at - lead {
                        let not_before = wipe_at.max(self.now + lead);
                        self.act(Action::WipeNotice { id: one.id, index, days: days[index], not_before, pay });
                    } else {
                        self.again_at(wipe_at - lead);
                    }
                }
                // Said and not handed over: handing it over makes the sweep look again.
                Some(_) => {}
                None if self.now < wipe_at => self.again_at(wipe_at),
                None => {
                    if !self.is_locked(one.id, pay) {
                        self.act(Action::End { id: one.id, unpaid: true });
                    }
                }
            }
        }
    }

    /// Warns when the first month that is not covered is so many days away, once a threshold for each dip.
    fn warn_of_runway(&mut self) {
        let Some(longest) = self.policy.runway_days.iter().max().copied() else { return };
        let horizon = self.now + DAY * i32::try_from(longest).unwrap_or(i32::MAX);
        let first = first_uncovered(&self.account, self.now, horizon + DAY, self.policy);
        let Some((stops_at, short_by)) = first.filter(|(at, _)| *at <= horizon) else {
            if self.account.runway_said.is_some() && self.account.boxes.iter().all(|one| one.past_due_since.is_none()) {
                self.act(Action::RunwayRestored);
            }
            if let Some((at, _)) = first {
                self.again_at(at - DAY * i32::try_from(longest).unwrap_or(i32::MAX));
            } else if self.account.boxes.iter().any(|one| one.status == BoxStatus::Active) {
                self.again_at(self.now + DAY);
            }
            return;
        };
        let left = stops_at.duration_since(self.now);
        let passed = |days: &i64| left <= DAY * i32::try_from(*days).unwrap_or(i32::MAX);
        let threshold = self.policy.runway_days.iter().copied().filter(passed).min().unwrap_or(longest);
        if self.account.runway_said.is_none_or(|said| threshold < said) {
            self.act(Action::Runway { days: threshold, stops_at, short_by });
        }
        if let Some(next) = self.policy.runway_days.iter().copied().filter(|days| *days < threshold).max() {
            self.again_at(stops_at - DAY * i32::try_from(next).unwrap_or(i32::MAX));
        }
    }
}

/// The first month falling due after `now` and before `until` that the balance does not cover, and what is missing then.
pub fn first_uncovered(
    account: &Account,
    now: Timestamp,
    until: Timestamp,
    policy: &Policy,
) -> Option<(Timestamp, Usd)> {
    let mut dues = Vec::new();
    for one in &account.boxes {
        if one.status != BoxStatus::Active || one.end_asked || one.ends_at_period_end || one.past_due_since.is_some() {
            continue;
        }
        for n in one.periods_charged.. {
            let at = due(one.anchor, n);
            if at >= until {
                break;
            }
            if at > now {
                dues.push((at, one.priority, one.activated_at, one.id, one.price_at(at, policy)));
            }
        }
    }
    dues.sort();
    let mut left = account.available();
    for (at, _, _, _, price) in dues {
        if price > left {
            return Some((at, price - left));
        }
        left -= price;
    }
    None
}

/// What an action does to an account: the model that the preview and the property tests run on, and that a decision uses to
/// see the consequences of its own actions. Requests to providers count as asked for, not as done.
pub fn apply(account: &mut Account, action: &Action, policy: &Policy) {
    match *action {
        Action::Charge { id, n, from_promotional, from_paid, period, .. } => {
            account.spend(from_promotional, from_paid);
            if let Some(one) = account.find(id) {
                one.price = one.price_at(period.start, policy);
                one.next_plan_price = None;
                if one.price_change.is_some_and(|change| change.price == one.price) {
                    one.price_change = None;
                }
                one.periods_charged = n + 1;
                one.past_due_since = None;
                one.final_warning = NoticeState::NotSaid;
                one.suspend_asked = false;
            }
        }
        Action::PastDue { id, since, .. } => {
            if let Some(one) = account.find(id) {
                one.past_due_since = Some(since);
            }
        }
        Action::FinalWarning { id, .. } => {
            if let Some(one) = account.find(id) {
                one.final_warning = NoticeState::Said;
            }
        }
        Action::Suspend { id } => {
            if let Some(one) = account.find(id) {
                one.suspend_asked = true;
            }
        }
        Action::Resume { id, from_promotional, from_paid, .. } => {
            account.spend(from_promotional, from_paid);
            if let Some(one) = account.find(id) {
                one.resume_asked = true;
            }
        }
        Action::WipeNotice { id, index, .. } => {
            if let Some(one) = account.find(id) {
                one.wipe_notices[index] = NoticeState::Said;
            }
        }
        Action::End { id, .. } => {
            if let Some(one) = account.find(id) {
                one.end_asked = true;
            }
        }
        Action::Runway { days, .. } => account.runway_said = Some(days),
        Action::RunwayRestored => account.runway_said = None,
        Action::ClockAlarm => {}
    }
}
