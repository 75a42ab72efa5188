//! What goes wrong next, scripted by tests and by the trial.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

/// Something the real service does on a bad day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A webhook is never sent.
    LoseWebhook,
    /// `payment.confirmed` comes again in the next pass, under a new event id.
    DuplicateConfirmed,
    /// No `payment.confirmed` is sent: `payment.forwarded` is the only event that comes.
    ForwardedOnly,
    /// A webhook has an empty signature header.
    EmptySignature,
    /// A webhook is signed with something else than the secret.
    WrongSignature,
    /// A webhook is signed for a time ten minutes ago.
    StaleSignature,
    /// A webhook goes to the retry queue at once: it comes a minute later, keys in another order, freshly signed.
    QueueWebhook,
    /// Reading a payment answers 404.
    NotFound,
    /// A check of a balance answers 429 with `Retry-After`.
    LimitChecks,
    /// A create answers 429: the plan's payments are used up.
    QuotaExceeded,
    /// A create makes a row without an address and answers 400: replays of its key have no address.
    BurnKey,
    /// A create is carried out and answers 400 as if another with its key had been faster.
    IdempotencyRace,
    /// The provider of exchange rates is down: a create answers 400 and does nothing.
    RatesDown,
    /// A create or a check is carried out, and its answer is lost: 502 from the edge, as HTML.
    LoseAnswer,
    /// A call answers 502 from the edge, as HTML, and does nothing.
    BadGateway,
    /// A call answers 405 with an empty body and does nothing.
    EmptyAnswer,
    /// A call answers 200 with `success: false` and does nothing.
    RefuseWith200,
    /// A pass of the monitor reads a balance of zero for a payment: a paid one may expire.
    HideBalance,
    /// Forwarding fails in a pass of the monitor: the payment stays confirmed and is announced again in the next pass.
    StickForwarding,
}

/// A handle on the script. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    scripted: Arc<Mutex<HashMap<Fault, u32>>>,
}

impl Faults {
    /// The next `times` occasions for this fault have it, on top of those already scripted.
    pub fn next(&self, fault: Fault, times: u32) {
        let mut scripted = self.scripted.lock().expect(super::UNPOISONED);
        let count = scripted.entry(fault).or_default();
        *count = count.saturating_add(times);
    }

    /// Nothing scripted goes wrong any more.
    pub fn clear(&self) {
        self.scripted.lock().expect(super::UNPOISONED).clear();
    }

    /// How many occasions are still to come.
    pub fn left(&self, fault: Fault) -> u32 {
        self.scripted.lock().expect(super::UNPOISONED).get(&fault).copied().unwrap_or_default()
    }

    /// Whether this occasion has the fault.
    pub(super) fn strikes(&self, fault: Fault) -> bool {
        let mut scripted = self.scripted.lock().expect(super::UNPOISONED);
        match scripted.get_mut(&fault) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }
}
