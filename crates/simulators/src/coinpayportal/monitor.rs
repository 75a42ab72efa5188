//! The monitor: what the real service's cron does each minute. It confirms, expires, looks for late deposits, and forwards.

use jiff::Timestamp;
use rust_decimal::Decimal;
use uuid::Uuid;

use super::{
    CoinPayPortal, Fault, LATE_DEPOSITS, Payment, Status, state,
    webhooks::{self, log_unwritten},
};

/// What a pass does about one payment.
enum Step {
    Announce(Box<Payment>),
    Expire(Box<Payment>),
    Forward,
}

/// Keeps a payment from being touched by two at once; lets go when dropped, cancelled requests included.
pub(super) struct InHand {
    portal: CoinPayPortal,
    payment_id: Uuid,
}

impl Drop for InHand {
    fn drop(&mut self) {
        let mut state = self.portal.inner.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.in_hand.remove(&self.payment_id);
    }
}

impl CoinPayPortal {
    /// One pass of the monitor over the retry queue and all open payments. Returns when every webhook of the pass was tried.
    pub async fn tick(&self) {
        let _pass = self.inner.pass.lock().await;
        self.send_queued().await;
        let open: Vec<Uuid> = self.look(|state| {
            let open = |payment: &&Payment| payment.status != Status::Forwarded || payment.announce_again;
            state.payments.values().filter(open).map(|payment| payment.id).collect()
        });
        for payment_id in open {
            self.watch(payment_id).await;
        }
    }

    async fn watch(&self, payment_id: Uuid) {
        let now = self.now();
        // Decided on a look first, so that the many payments with nothing to do cost no write of the state.
        if !self.look(|state| state.payments.get(&payment_id).is_some_and(|payment| self.has_step(payment, now))) {
            return;
        }
        let hidden = self.inner.faults.strikes(Fault::HideBalance);
        let decided = self.change(|state| {
            if state.in_hand.contains(&payment_id) {
                return None;
            }
            let payment = state.payments.get_mut(&payment_id)?;
            let step = self.step(payment, hidden, now)?;
            state.in_hand.insert(payment_id);
            Some(step)
        });
        let Some(Some(step)) = log_unwritten(decided) else { return };
        let _in_hand = InHand { portal: self.clone(), payment_id };
        let business_id = self.inner.config.business_id;
        match step {
            Step::Announce(payment) => {
                if self.inner.faults.strikes(Fault::ForwardedOnly) {
                    tracing::debug!(%payment_id, "confirmed without a webhook");
                } else {
                    if self.inner.faults.strikes(Fault::DuplicateConfirmed) {
                        log_unwritten(self.change(|state| {
                            if let Some(payment) = state.payments.get_mut(&payment_id) {
                                payment.announce_again = true;
                            }
                        }));
                    }
                    let second = payment.announced_second;
                    self.send(webhooks::confirmed_by_monitor(&payment, second, now, business_id)).await;
                }
                if payment.status == Status::Confirmed && self.may_forward(&payment, now) {
                    self.forward(payment_id, now).await;
                }
            }
            Step::Expire(payment) => self.send(webhooks::expired(&payment, now, business_id)).await,
            Step::Forward => self.forward(payment_id, now).await,
        }
    }

    /// What the monitor knows to have come.
    fn seen(&self, payment: &Payment, now: Timestamp) -> Decimal {
        payment.received_by(now - self.inner.config.seen_after)
    }

    fn may_forward(&self, payment: &Payment, now: Timestamp) -> bool {
        payment.confirmed_at.is_some_and(|at| now >= at + self.inner.config.forward_after)
    }

    fn looks_for_late_deposits(&self, payment: &Payment, now: Timestamp) -> bool {
        let begins = payment.expires_at + self.inner.config.rescan_after;
        (payment.rescan_at_once || now >= begins) && now <= payment.expires_at + LATE_DEPOSITS
    }

    /// Whether [`Self::step`] would change anything, balances taken as they are.
    fn has_step(&self, payment: &Payment, now: Timestamp) -> bool {
        let funded = payment.settles(self.seen(payment, now));
        payment.announce_again
            || match payment.status {
                Status::Pending => funded || now >= payment.expires_at,
                Status::Expired => funded && self.looks_for_late_deposits(payment, now),
                // One that was interrupted on its way is taken up again.
                Status::Forwarding | Status::ForwardingFailed => true,
                Status::Confirmed => payment.stuck || self.may_forward(payment, now),
                Status::Forwarded => false,
            }
    }

    /// Moves the payment on and says what is to be sent.
    fn step(&self, payment: &mut Payment, hidden: bool, now: Timestamp) -> Option<Step> {
        let balance = if hidden { Decimal::ZERO } else { self.seen(payment, now) };
        let funded = payment.settles(balance);
        match payment.status {
            Status::Pending if funded => confirm(payment, now),
            Status::Expired if funded && self.looks_for_late_deposits(payment, now) => confirm(payment, now),
            Status::Pending if now >= payment.expires_at => {
                payment.status = Status::Expired;
                return Some(Step::Expire(Box::new(payment.clone())));
            }
            Status::Confirmed if payment.stuck => confirm(payment, now),
            _ if payment.announce_again => {
                payment.announce_again = false;
                payment.announced_second = now.as_second().max(payment.announced_second + 1);
            }
            Status::Confirmed if self.may_forward(payment, now) => return Some(Step::Forward),
            Status::Forwarding | Status::ForwardingFailed => {
                payment.status = Status::Confirmed;
                return Some(Step::Forward);
            }
            _ => return None,
        }
        Some(Step::Announce(Box::new(payment.clone())))
    }

    /// Pays out to the merchant and says so; a scripted failure leaves the payment confirmed.
    pub(super) async fn forward(&self, payment_id: Uuid, now: Timestamp) {
        let stuck = self.inner.faults.strikes(Fault::StickForwarding);
        let forwarded = self.change(|state| {
            let payment = state.payments.get_mut(&payment_id)?;
            if payment.status != Status::Confirmed {
                return None;
            }
            payment.stuck = stuck;
            if stuck {
                return None;
            }
            payment.status = Status::Forwarded;
            payment.forward_transaction = Some(state::transaction_hash());
            Some(payment.clone())
        });
        if let Some(Some(payment)) = log_unwritten(forwarded) {
            self.send(webhooks::forwarded(&payment, now, self.inner.config.business_id)).await;
        }
    }

    /// What a check of the balance does once it saw enough: announces richly and forwards, before the check is answered.
    pub(super) async fn settle_checked(&self, payment: Payment, now: Timestamp) {
        let _in_hand = InHand { portal: self.clone(), payment_id: payment.id };
        if !self.inner.faults.strikes(Fault::ForwardedOnly) {
            let business_id = self.inner.config.business_id;
            self.send(webhooks::confirmed_by_check(&payment, payment.announced_second, now, business_id)).await;
        }
        if self.may_forward(&payment, now) {
            self.forward(payment.id, now).await;
        }
    }
}

/// Confirmed, whatever it was before.
pub(super) fn confirm(payment: &mut Payment, now: Timestamp) {
    payment.status = Status::Confirmed;
    payment.confirmed_at.get_or_insert(now);
    payment.announced_second = now.as_second();
    payment.rescan_at_once = false;
}
