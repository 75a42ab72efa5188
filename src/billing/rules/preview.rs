//! What will happen if nothing is paid in: the same decisions on a clock that is imagined.

use jiff::Timestamp;

use super::{Account, Action, BoxStatus, Interlocks, NoticeState, Period, Policy, apply, arrears, decide, due};
use crate::{ids::ResourceId, money::Usd};

/// What lies ahead of one box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForecastBox {
    /// Which.
    pub id: ResourceId,
    /// When it is suspended if nothing is paid in; `None` if it lasts beyond what was asked about.
    pub stops_at: Option<Timestamp>,
    /// When it is wiped if nothing is paid in.
    pub wiped_at: Option<Timestamp>,
    /// What keeping it until then costs in all.
    pub needs: Usd,
}

/// What lies ahead of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// Every charge to come: when, which box, which period, how much.
    pub charges: Vec<(Timestamp, ResourceId, Period, Usd)>,
    /// Each box.
    pub boxes: Vec<ForecastBox>,
    /// The exact sum to pay in now that keeps every box until then.
    pub pay_in: Usd,
}

/// Imagines the time until `until` with nothing paid in, mails handed over at once and providers doing what they are asked.
pub fn forecast(account: &Account, now: Timestamp, until: Timestamp, policy: &Policy) -> Forecast {
    let mut model = account.clone();
    let mut charges = Vec::new();
    let mut boxes: Vec<ForecastBox> = account
        .boxes
        .iter()
        .map(|one| ForecastBox {
            id: one.id,
            stops_at: None,
            wiped_at: None,
            needs: needed(account, one.id, now, until, policy),
        })
        .collect();
    let mut at = now;
    // Every step is at a later time; the bound is for rules that would not let time pass.
    for _ in 0..100_000 {
        let decision = decide(&model, at, policy, &Interlocks::default());
        for action in &decision.actions {
            apply(&mut model, action, policy);
            let ahead = |id: ResourceId| boxes.iter().position(|one| one.id == id);
            match *action {
                Action::Charge { id, period, price, .. } => charges.push((at, id, period, price)),
                Action::Suspend { id } => {
                    suspend(&mut model, id, at, policy);
                    if let Some(index) = ahead(id) {
                        boxes[index].stops_at = Some(at);
                    }
                }
                Action::Resume { id, price, .. } => {
                    let period = Period::nth(at, 0);
                    charges.push((at, id, period, price));
                    resume(&mut model, id, at);
                }
                Action::End { id, unpaid } => {
                    if let Some(index) = ahead(id) {
                        boxes[index].stops_at.get_or_insert(at);
                        if unpaid {
                            boxes[index].wiped_at = Some(at);
                        }
                    }
                    model.boxes.retain(|one| one.id != id);
                }
                _ => {}
            }
        }
        hand_over(&mut model, at);
        let acted = !decision.actions.is_empty();
        match decision.next_at {
            // What was said is handed over at once, and may make more fall due at the same instant.
            _ if acted => {}
            Some(next) if next < until => at = next,
            _ => break,
        }
    }
    let total: Usd = boxes.iter().map(|one| one.needs).sum();
    let pay_in = if total > account.available() { total - account.available() } else { Usd::ZERO };
    Forecast { charges, boxes, pay_in }
}

/// What keeping a box until a time costs: what it owes, and every month that begins before then.
fn needed(account: &Account, id: ResourceId, now: Timestamp, until: Timestamp, policy: &Policy) -> Usd {
    let Some(one) = account.boxes.iter().find(|one| one.id == id) else { return Usd::ZERO };
    let (anchor, from) = match one.status {
        _ if one.ends_at_period_end || one.end_asked || one.resume_asked => return Usd::ZERO,
        BoxStatus::Apart => return Usd::ZERO,
        BoxStatus::Active => (one.anchor, one.periods_charged),
        BoxStatus::SuspendedForBilling { .. } => (now, 0),
    };
    let months = (from..).map(|n| due(anchor, n)).take_while(|at| *at < until);
    one.arrears + months.map(|at| one.price_at(at, policy)).sum()
}

fn suspend(account: &mut Account, id: ResourceId, at: Timestamp, policy: &Policy) {
    let Some(one) = account.boxes.iter_mut().find(|one| one.id == id) else { return };
    let since = one.past_due_since.unwrap_or(at);
    let period = Period::nth(one.anchor, one.periods_charged);
    one.arrears = arrears(&period, one.price_at(since, policy), since, at, policy);
    one.status = BoxStatus::SuspendedForBilling { since: at };
    one.suspend_asked = false;
}

fn resume(account: &mut Account, id: ResourceId, at: Timestamp) {
    let Some(one) = account.boxes.iter_mut().find(|one| one.id == id) else { return };
    one.status = BoxStatus::Active;
    one.resume_asked = false;
    one.next_plan_price = None;
    one.anchor = at;
    one.periods_charged = 1;
    one.past_due_since = None;
    one.arrears = Usd::ZERO;
    one.final_warning = NoticeState::NotSaid;
    one.wipe_notices = [NoticeState::NotSaid; 3];
}

fn hand_over(account: &mut Account, at: Timestamp) {
    for one in &mut account.boxes {
        for notice in std::iter::once(&mut one.final_warning).chain(&mut one.wipe_notices) {
            if *notice == NoticeState::Said {
                *notice = NoticeState::Handed(at);
            }
        }
    }
}
