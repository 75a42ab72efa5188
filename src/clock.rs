//! The only source of "now": the system's clock in production, one that can be moved forward in the trial and in tests.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::{SignedDuration, Timestamp};

/// Where time comes from. Cheap to clone; clones share their offset.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    offset_microseconds: Arc<AtomicI64>,
}

impl Clock {
    /// A clock that agrees with the system's until it is moved.
    pub fn system() -> Self {
        Self::default()
    }

    /// The time now, in whole microseconds: what Postgres can hold, so that a time read back equals the one written.
    pub fn now(&self) -> Timestamp {
        let micros = Timestamp::now().as_microsecond() + self.offset_microseconds.load(Ordering::Acquire);
        Timestamp::from_microsecond(micros).expect("the clock stays within the years jiff can hold")
    }

    /// How far this clock is ahead of the system's.
    pub fn offset(&self) -> SignedDuration {
        SignedDuration::from_micros(self.offset_microseconds.load(Ordering::Acquire))
    }

    /// Sets how far this clock is ahead of the system's. Only the trial and tests do this.
    pub fn set_offset(&self, offset: SignedDuration) {
        let micros = i64::try_from(offset.as_micros()).unwrap_or(i64::MAX);
        self.offset_microseconds.store(micros, Ordering::Release);
    }
}
