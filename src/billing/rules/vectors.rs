//! The vectors of the rules on charging, warning, suspending, bringing back and ending, as tables.

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{
    Account, Action, BoxState, BoxStatus, Decision, Interlocks, NoticeState, PaymentInFlight, Period, Policy,
    PriceChange, apply, decide, forecast, within_blast_limit,
};
use crate::{ids::ResourceId, money::Usd};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn cents(cents: i64) -> Usd {
    Usd::from_cents(cents)
}

fn days(days: i32) -> SignedDuration {
    super::DAY * days
}

fn id(n: u128) -> ResourceId {
    ResourceId(Uuid::from_u128(n))
}

/// A box that was made at `anchor` and is paid up to its next date.
pub(super) fn active(n: u128, price: i64, priority: i32, anchor: Timestamp) -> BoxState {
    BoxState {
        id: id(n),
        status: BoxStatus::Active,
        suspend_asked: false,
        resume_asked: false,
        end_asked: false,
        price: cents(price),
        price_change: None,
        next_plan_price: None,
        anchor,
        periods_charged: 1,
        priority,
        activated_at: anchor,
        past_due_since: None,
        final_warning: NoticeState::NotSaid,
        arrears: Usd::ZERO,
        wipe_notices: [NoticeState::NotSaid; 3],
        hold_until: None,
        ends_at_period_end: false,
    }
}

pub(super) fn account(paid: i64, boxes: Vec<BoxState>) -> Account {
    Account { paid: cents(paid), promotional: Usd::ZERO, boxes, payment_in_flight: None, runway_said: None }
}

fn run(account: &mut Account, now: Timestamp) -> Decision {
    run_with(account, now, &Interlocks::default())
}

/// Decides and applies, and sees that nothing is left to do at the same instant.
fn run_with(account: &mut Account, now: Timestamp, interlocks: &Interlocks) -> Decision {
    let policy = Policy::default();
    let decision = decide(account, now, &policy, interlocks);
    for action in &decision.actions {
        apply(account, action, &policy);
    }
    let again = decide(account, now, &policy, interlocks);
    if !interlocks.clock_went_back {
        assert_eq!(again.actions, [], "asked again at {now}");
    }
    assert!(decision.next_at.is_none_or(|next| next > now), "{:?} is not after {now}", decision.next_at);
    decision
}

fn hand_over(account: &mut Account, now: Timestamp) {
    for one in &mut account.boxes {
        for notice in std::iter::once(&mut one.final_warning).chain(&mut one.wipe_notices) {
            if *notice == NoticeState::Said {
                *notice = NoticeState::Handed(now);
            }
        }
    }
}

fn suspended(n: u128, price: i64, arrears: i64, since: Timestamp) -> BoxState {
    BoxState {
        status: BoxStatus::SuspendedForBilling { since },
        past_due_since: Some(since - days(3)),
        arrears: cents(arrears),
        ..active(n, price, 1, since - days(33))
    }
}

fn kinds(decision: &Decision) -> Vec<&'static str> {
    decision
        .actions
        .iter()
        .map(|action| match action {
            Action::Charge { .. } => "charge",
            Action::PastDue { .. } => "past_due",
            Action::FinalWarning { .. } => "final_warning",
            Action::Suspend { .. } => "suspend",
            Action::Resume { .. } => "resume",
            Action::WipeNotice { .. } => "wipe_notice",
            Action::End { .. } => "end",
            Action::Runway { .. } => "runway",
            Action::RunwayRestored => "runway_restored",
            Action::ClockAlarm => "clock_alarm",
        })
        .collect()
}

fn charged(decision: &Decision) -> Vec<(ResourceId, u32)> {
    decision
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::Charge { id, n, .. } => Some((*id, *n)),
            _ => None,
        })
        .collect()
}

const ANCHOR: &str = "2027-04-01T10:00:00Z";
/// When the second period of a box of [`ANCHOR`] begins; the period has 31 days, the first 30.
const DUE: &str = "2027-05-01T10:00:00Z";

#[test]
fn each_box_whole_or_not_at_all_by_priority_and_the_next_is_tried() {
    let boxes = vec![active(1, 1500, 2, at(ANCHOR)), active(2, 1000, 1, at(ANCHOR)), active(3, 800, 3, at(ANCHOR))];
    let mut account = account(2000, boxes);
    let decision = run(&mut account, at(DUE));
    assert_eq!(charged(&decision), [(id(2), 1), (id(3), 1)]);
    assert_eq!(account.paid, cents(200));
    let past_due: Vec<_> = account.boxes.iter().filter(|one| one.past_due_since.is_some()).map(|one| one.id).collect();
    assert_eq!(past_due, [id(1)]);
    assert!(decision.actions.iter().any(
        |action| matches!(action, Action::PastDue { id: which, short_by, .. } if *which == id(1) && *short_by == cents(500))
    ));
}

#[test]
fn what_decides_between_boxes_of_one_priority() {
    let base = || active(2, 1000, 1, at(ANCHOR));
    let earlier_due = || active(9, 1000, 1, at("2027-03-30T10:00:00Z"));
    let older = || BoxState { id: id(9), activated_at: at("2027-03-01T10:00:00Z"), ..base() };
    for (what, other, first) in [
        ("earliest due", earlier_due(), id(9)),
        ("oldest activation", older(), id(9)),
        ("id", BoxState { id: id(1), ..base() }, id(1)),
        ("id", BoxState { id: id(3), ..base() }, id(2)),
        ("priority before all", BoxState { priority: 2, ..earlier_due() }, id(2)),
    ] {
        let decision = run(&mut account(1000, vec![base(), other]), at(DUE));
        assert_eq!(charged(&decision).first().map(|charge| charge.0), Some(first), "{what}");
        assert_eq!(charged(&decision).len(), 1, "{what}");
    }
}

#[test]
fn promotional_credit_is_spent_first() {
    let mut account = Account { promotional: cents(600), ..account(1000, vec![active(1, 1500, 1, at(ANCHOR))]) };
    let decision = run(&mut account, at(DUE));
    assert_eq!(charged(&decision).len(), 1);
    assert_eq!((account.promotional, account.paid), (Usd::ZERO, cents(100)));
}

#[test]
fn money_that_comes_in_goes_to_past_due_boxes_before_suspended_ones() {
    let late = BoxState { past_due_since: Some(at(DUE)), priority: 9, ..active(1, 1500, 9, at(ANCHOR)) };
    let boxes = vec![suspended(2, 1000, 100, at("2027-05-01T00:00:00Z")), late];
    let now = at("2027-05-02T00:00:00Z");
    let mut short = account(1600, boxes.clone());
    assert_eq!(charged(&run(&mut short, now)), [(id(1), 1)]);
    assert!(matches!(short.boxes[0].status, BoxStatus::SuspendedForBilling { .. }) && !short.boxes[0].resume_asked);
    let mut enough = account(2600, boxes);
    let decision = run(&mut enough, now);
    assert_eq!(&kinds(&decision)[..2], ["charge", "resume"]);
    assert_eq!(enough.paid, Usd::ZERO);
}

#[test]
fn a_worker_that_was_off_charges_one_period_at_a_time_each_at_its_own_date() {
    // Off from before the first date to 70 days later: three dates passed, two months are covered.
    let mut account = account(3100, vec![active(1, 1500, 1, at("2027-01-31T00:00:00Z"))]);
    let decision = run(&mut account, at("2027-05-02T00:00:00Z"));
    let periods: Vec<(Timestamp, Timestamp)> = decision
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::Charge { period, .. } => Some((period.start, period.end)),
            _ => None,
        })
        .collect();
    let dates = ["2027-02-28T00:00:00Z", "2027-03-31T00:00:00Z", "2027-04-30T00:00:00Z"].map(at);
    assert_eq!(periods, [(dates[0], dates[1]), (dates[1], dates[2])]);
    assert_eq!(account.boxes[0].past_due_since, Some(dates[2]), "the first that cannot be paid stops it");
    assert_eq!(account.paid, cents(100));
}

#[test]
fn a_lapse_goes_through_grace_warning_and_suspension() {
    let mut account = account(0, vec![active(1, 1500, 1, at(ANCHOR))]);
    for (now, expected) in [
        ("2027-04-16T00:00:00Z", &[][..]),
        ("2027-04-17T10:00:00Z", &["runway"]),
        ("2027-04-24T09:00:00Z", &[]),
        ("2027-04-24T10:00:00Z", &["runway"]),
        ("2027-04-28T10:00:00Z", &["runway"]),
        ("2027-04-30T10:00:00Z", &["runway"]),
        ("2027-05-01T09:59:59Z", &[]),
        (DUE, &["past_due"]),
        ("2027-05-03T09:59:59Z", &[]),
        ("2027-05-03T10:00:00Z", &["final_warning"]),
        ("2027-05-04T09:59:59Z", &[]),
        ("2027-05-04T10:00:00Z", &["suspend"]),
        ("2027-05-04T10:00:01Z", &[]),
    ] {
        let decision = run(&mut account, at(now));
        assert_eq!(kinds(&decision), expected, "{now}");
        hand_over(&mut account, at(now));
    }
}

#[test]
fn a_warning_that_was_handed_over_late_or_never_moves_the_suspension() {
    let lapsed = || BoxState { past_due_since: Some(at(DUE)), ..active(1, 1500, 1, at(ANCHOR)) };
    for (warning, now, expected) in [
        (NoticeState::Said, "2027-06-01T00:00:00Z", &[][..]),
        (NoticeState::Handed(at("2027-05-06T00:00:00Z")), "2027-05-06T23:59:59Z", &[]),
        (NoticeState::Handed(at("2027-05-06T00:00:00Z")), "2027-05-07T00:00:00Z", &["suspend"]),
        // Handed over early: the grace is kept.
        (NoticeState::Handed(at("2027-05-01T11:00:00Z")), "2027-05-03T11:00:00Z", &[]),
        (NoticeState::Handed(at("2027-05-01T11:00:00Z")), "2027-05-04T10:00:00Z", &["suspend"]),
    ] {
        let mut account = account(0, vec![BoxState { final_warning: warning, ..lapsed() }]);
        assert_eq!(kinds(&run(&mut account, at(now))), expected, "{warning:?} {now}");
    }
}

#[test]
fn a_worker_off_for_ten_days_warns_then_suspends_a_day_later_and_does_not_wipe() {
    let mut account = account(0, vec![active(1, 1500, 1, at(ANCHOR))]);
    let on = at(DUE) + days(10);
    assert_eq!(kinds(&run(&mut account, on)), ["past_due", "final_warning"]);
    hand_over(&mut account, on);
    let decision = run(&mut account, on + days(1) - SignedDuration::from_secs(1));
    assert_eq!(kinds(&decision), [""; 0]);
    assert_eq!(decision.next_at, Some(on + days(1)));
    assert_eq!(kinds(&run(&mut account, on + days(1))), ["suspend"]);
    // Suspended that day: 14 more days, whatever the dates before were.
    account.boxes[0] = suspended(1, 1500, 150, on + days(1));
    assert_eq!(kinds(&run(&mut account, on + days(2))), [""; 0]);
    assert_eq!(account.boxes.len(), 1);
}

#[test]
fn within_grace_the_full_period_from_the_original_date_is_charged() {
    let mut account = account(0, vec![active(1, 1500, 1, at(ANCHOR))]);
    run(&mut account, at(DUE));
    account.paid = cents(1500);
    let decision = run(&mut account, at("2027-05-03T12:00:00Z"));
    let Some(Action::Charge { period, price, .. }) = decision.actions.first() else { panic!("{decision:?}") };
    assert_eq!((period.start, period.end, *price), (at(DUE), at("2027-06-01T10:00:00Z"), cents(1500)));
    let one = &account.boxes[0];
    assert_eq!((one.anchor, one.past_due_since, one.final_warning), (at(ANCHOR), None, NoticeState::NotSaid));
}

#[test]
fn after_a_suspension_the_grace_days_are_owed_and_a_full_period_is_bought() {
    let policy = Policy::default();
    let period = Period { start: at("2027-06-01T00:00:00Z"), end: at("2027-07-01T00:00:00Z") };
    for (suspended_at, owed) in [
        ("2027-06-04T00:00:00Z", 150),
        ("2027-06-04T23:00:00Z", 150),
        ("2027-06-14T00:00:00Z", 150),
        ("2027-06-03T12:00:00Z", 100),
        ("2027-06-01T10:00:00Z", 0),
    ] {
        let arrears = super::arrears(&period, cents(1500), period.start, at(suspended_at), &policy);
        assert_eq!(arrears, cents(owed), "{suspended_at}");
    }
    let since = at("2027-06-04T00:00:00Z");
    let mut account = account(1600, vec![suspended(1, 1500, 150, since)]);
    assert_eq!(kinds(&run(&mut account, since + days(1))), [""; 0], "50 cents short");
    account.paid = cents(1650);
    let decision = run(&mut account, since + days(2));
    assert!(
        matches!(decision.actions[0], Action::Resume { arrears, price, .. } if arrears == cents(150) && price == cents(1500)),
        "{decision:?}"
    );
    assert_eq!(account.paid, Usd::ZERO);
}

#[test]
fn nothing_is_charged_while_suspended_or_apart() {
    for status in [BoxStatus::SuspendedForBilling { since: at(DUE) }, BoxStatus::Apart] {
        let mut account = account(1400, vec![BoxState { status, ..active(1, 1500, 1, at(ANCHOR)) }]);
        let decision = run(&mut account, at("2027-05-06T00:00:00Z"));
        assert_eq!(charged(&decision), [], "{status:?}");
        assert_eq!(account.paid, cents(1400));
    }
}

#[test]
fn a_suspended_box_is_wiped_after_fourteen_days_and_three_notices() {
    let since = at("2027-06-04T00:00:00Z");
    let mut account = account(0, vec![suspended(1, 1500, 150, since)]);
    for (now, expected) in [
        ("2027-06-10T23:59:59Z", &[][..]),
        ("2027-06-11T00:00:00Z", &["wipe_notice"]),
        ("2027-06-14T23:59:59Z", &[]),
        ("2027-06-15T00:00:00Z", &["wipe_notice"]),
        ("2027-06-17T00:00:00Z", &["wipe_notice"]),
        ("2027-06-17T23:59:59Z", &[]),
        ("2027-06-18T00:00:00Z", &["end"]),
    ] {
        let decision = run(&mut account, at(now));
        assert_eq!(kinds(&decision), expected, "{now}");
        if let Some(Action::WipeNotice { not_before, pay, .. }) = decision.actions.first() {
            assert_eq!((*not_before, *pay), (at("2027-06-18T00:00:00Z"), cents(1650)));
        }
        hand_over(&mut account, at(now));
    }
}

#[test]
fn a_late_notice_of_a_wipe_gives_its_full_time() {
    let since = at("2027-06-04T00:00:00Z");
    let mut account = account(0, vec![suspended(1, 1500, 150, since)]);
    // The worker comes back when the box would be gone already.
    let mut now = since + days(20);
    let mut waited = Vec::new();
    for _ in 0..4 {
        let decision = run(&mut account, now);
        hand_over(&mut account, now);
        let next = run(&mut account, now).next_at.unwrap_or(now + days(100));
        waited.push((kinds(&decision), next.duration_since(now).as_secs() / 86_400));
        now = next;
    }
    assert_eq!(
        waited,
        [(vec!["wipe_notice"], 4), (vec!["wipe_notice"], 2), (vec!["wipe_notice"], 1), (vec!["end"], 100)],
        "7 days in all from the first notice"
    );
}

#[test]
fn what_stops_suspensions_and_wipes() {
    let now = at("2027-06-20T00:00:00Z");
    let handed = NoticeState::Handed(at("2027-06-01T00:00:00Z"));
    let lapsed = || BoxState { past_due_since: Some(at(DUE)), final_warning: handed, ..active(1, 1500, 1, at(ANCHOR)) };
    let to_wipe = || BoxState { wipe_notices: [handed; 3], ..suspended(1, 1500, 150, at("2027-06-01T00:00:00Z")) };
    let payment = |amount, hours| {
        Some(PaymentInFlight { amount: cents(amount), detected_at: now - SignedDuration::from_hours(hours) })
    };
    let free = Interlocks::default();
    for (what, interlocks, hold_until, payment_in_flight, goes_on) in [
        ("nothing", free, None, None, true),
        ("the gateway", Interlocks { gateway_failing: true, ..free }, None, None, false),
        ("the mailer", Interlocks { mailer_failing: true, ..free }, None, None, false),
        ("the clock", Interlocks { clock_jumped: true, ..free }, None, None, false),
        ("a hold", free, Some(now + days(1)), None, false),
        ("a hold that is over", free, Some(now), None, true),
        ("a payment that is enough", free, None, payment(1650, 47), false),
        ("a payment that is not", free, None, payment(1499, 1), true),
        ("a payment seen too long ago", free, None, payment(1650, 48), true),
    ] {
        for (one, action) in [(lapsed(), "suspend"), (to_wipe(), "end")] {
            let mut account = Account { payment_in_flight, ..account(0, vec![BoxState { hold_until, ..one }]) };
            let decision = run_with(&mut account, now, &interlocks);
            assert_eq!(kinds(&decision).contains(&action), goes_on, "{what}: {action}: {decision:?}");
            assert!(goes_on || decision.next_at.is_some(), "{what}: looked at again");
        }
    }
    // A hold does not stop charges.
    let mut held =
        account(1500, vec![BoxState { hold_until: Some(at(DUE) + days(9)), ..active(1, 1500, 1, at(ANCHOR)) }]);
    assert_eq!(charged(&run(&mut held, at(DUE))).len(), 1);
}

#[test]
fn an_end_that_its_owner_chose_waits_while_the_clock_cannot_be_trusted() {
    let wished = BoxState { ends_at_period_end: true, ..active(1, 1500, 1, at(ANCHOR)) };
    let jumped = Interlocks { clock_jumped: true, ..Interlocks::default() };
    let mut one = account(0, vec![wished]);
    let decision = run_with(&mut one, at(DUE), &jumped);
    assert!(!kinds(&decision).contains(&"end") && decision.next_at.is_some(), "{decision:?}");
    assert!(kinds(&run(&mut one, at(DUE))).contains(&"end"));
}

#[test]
fn a_clock_that_went_back_charges_nothing_and_says_so() {
    let back = Interlocks { clock_went_back: true, ..Interlocks::default() };
    let mut account = account(9000, vec![active(1, 1500, 1, at(ANCHOR))]);
    assert_eq!(kinds(&run_with(&mut account, at(DUE), &back)), ["clock_alarm"]);
    assert_eq!(account.paid, cents(9000));
}

#[test]
fn a_run_stops_before_it_hits_too_many() {
    let policy = Policy::default();
    for (already, fleet, may) in [
        (0, 1, true),
        (4, 5, true),
        (5, 5, false),
        (5, 59, false),
        (5, 60, true),
        (9, 100, true),
        (10, 100, false),
        (99, 1000, true),
        (100, 1000, false),
    ] {
        assert_eq!(within_blast_limit(already, fleet, &policy), may, "{already} of {fleet}");
    }
}

#[test]
fn a_change_of_price_reaches_the_first_renewal_thirty_days_after_its_notice() {
    for (notified, due, price) in [
        ("2027-04-01T10:00:00Z", DUE, 2000),
        ("2027-04-01T10:00:01Z", DUE, 1500),
        ("2027-04-20T00:00:00Z", "2027-06-01T10:00:00Z", 2000),
    ] {
        let change = PriceChange { price: cents(2000), notified_at: at(notified) };
        let mut account =
            account(10_000, vec![BoxState { price_change: Some(change), ..active(1, 1500, 1, at(ANCHOR)) }]);
        let decision = run(&mut account, at(due));
        let Some(Action::Charge { price: last, .. }) =
            decision.actions.iter().rfind(|action| matches!(action, Action::Charge { .. }))
        else {
            panic!("{decision:?}")
        };
        assert_eq!(*last, cents(price), "told at {notified}");
        assert_eq!(account.boxes[0].price_change.is_none(), price == 2000);
    }
}

#[test]
fn runway_is_said_once_a_threshold_and_again_in_the_next_dip() {
    let mut account = account(0, vec![active(1, 1500, 1, at(ANCHOR))]);
    let said = |account: &mut Account, now: &str| {
        run(account, at(now)).actions.into_iter().find_map(|action| match action {
            Action::Runway { days, short_by, .. } => Some((days, short_by)),
            _ => None,
        })
    };
    assert_eq!(said(&mut account, "2027-04-25T00:00:00Z"), Some((7, cents(1500))), "the nearest threshold, once");
    assert_eq!(said(&mut account, "2027-04-26T00:00:00Z"), None);
    account.paid = cents(1500);
    assert_eq!(said(&mut account, "2027-04-26T01:00:00Z"), None);
    assert_eq!(account.runway_said, None, "restored");
    account.paid = Usd::ZERO;
    assert_eq!(said(&mut account, "2027-04-26T02:00:00Z"), Some((7, cents(1500))), "a new dip");
    assert_eq!(said(&mut account, "2027-04-29T00:00:00Z"), Some((3, cents(1500))));
}

#[test]
fn what_its_owner_lets_end_is_not_renewed() {
    let mut account = account(9000, vec![BoxState { ends_at_period_end: true, ..active(1, 1500, 1, at(ANCHOR)) }]);
    let before = run(&mut account, at("2027-04-30T00:00:00Z"));
    assert_eq!(kinds(&before), [""; 0]);
    assert!(before.next_at.is_some_and(|next| next <= at(DUE)), "looked at again in time");
    let decision = run(&mut account, at(DUE));
    assert_eq!(decision.actions, [Action::End { id: id(1), unpaid: false }]);
    assert_eq!(account.paid, cents(9000));
}

#[test]
fn the_forecast_says_when_a_box_stops_and_what_keeps_it() {
    let policy = Policy::default();
    let boxes = vec![active(1, 1500, 1, at(ANCHOR)), active(2, 1000, 2, at("2027-04-11T00:00:00Z"))];
    let account = account(2600, boxes);
    let until = at("2027-07-02T00:00:00Z");
    let ahead = forecast(&account, at("2027-04-20T00:00:00Z"), until, &policy);
    let charges: Vec<_> = ahead.charges.iter().map(|(at, id, _, price)| (at.to_string(), *id, *price)).collect();
    assert_eq!(
        charges,
        [(DUE.to_owned(), id(1), cents(1500)), ("2027-05-11T00:00:00Z".to_owned(), id(2), cents(1000)),]
    );
    let stops: Vec<_> = ahead.boxes.iter().map(|one| one.stops_at.map(|at| at.to_string())).collect();
    assert_eq!(stops, [Some("2027-06-04T10:00:00Z".to_owned()), Some("2027-06-14T00:00:00Z".to_owned())]);
    // Box 1: May, June, July; box 2: May and June.
    assert_eq!(ahead.boxes.iter().map(|one| one.needs.cents()).collect::<Vec<_>>(), [4500, 2000]);
    assert_eq!(ahead.pay_in, cents(6500 - 2600));
}
