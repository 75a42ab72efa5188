//! The only source of "now": the system's clock in production, one that can be moved forward in the trial and in tests.

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sqlx::{
    Decode, Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef},
};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat, schema},
};

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

/// Notices when the system's clock jumps: when it moves by another amount than the time that really passed.
#[derive(Debug, Clone, Copy)]
pub struct JumpWatch {
    steady: Instant,
    wall: Timestamp,
}

impl JumpWatch {
    /// A difference up to this is what a correction of the clock or a busy machine makes.
    pub const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

    /// Watches from now on.
    pub fn start() -> Self {
        Self { steady: Instant::now(), wall: Timestamp::now() }
    }

    /// By how much the clock jumped since the last look, forward or back; `None` if it did not.
    pub fn look(&mut self) -> Option<SignedDuration> {
        self.compare(Self::start())
    }

    fn compare(&mut self, now: Self) -> Option<SignedDuration> {
        let passed = SignedDuration::try_from(now.steady.duration_since(self.steady)).unwrap_or(SignedDuration::MAX);
        let jump = now.wall.duration_since(self.wall) - passed;
        *self = now;
        (jump.abs() > Self::TOLERANCE).then_some(jump)
    }
}

/// An instant as Postgres holds it: `timestamptz`, whole microseconds, UTC. In JSON, RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Time(pub Timestamp);

impl<'de> Deserialize<'de> for Time {
    /// Times that somebody writes are refused where Postgres could not hold them, or a period after them would not fit.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let time = Timestamp::deserialize(deserializer)?;
        let (first, last) = (-62_135_596_800, 253_370_764_800);
        if !(first..last).contains(&time.as_second()) {
            return Err(serde::de::Error::custom("a time is in the years 1 to 9998"));
        }
        Ok(Self(time))
    }
}

/// Microseconds from 1970 to 2000, where Postgres starts to count.
const POSTGRES_EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

impl Deref for Time {
    type Target = Timestamp;
    fn deref(&self) -> &Timestamp {
        &self.0
    }
}

impl From<Timestamp> for Time {
    fn from(timestamp: Timestamp) -> Self {
        Self(timestamp)
    }
}

impl From<Time> for Timestamp {
    fn from(time: Time) -> Self {
        time.0
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Type<Postgres> for Time {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz")
    }
}

impl PgHasArrayType for Time {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("_timestamptz")
    }
}

impl Encode<'_, Postgres> for Time {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Postgres>::encode(self.0.as_microsecond() - POSTGRES_EPOCH_MICROSECONDS, buffer)
    }
}

impl<'r> Decode<'r, Postgres> for Time {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        let micros = match value.format() {
            PgValueFormat::Binary => <i64 as Decode<Postgres>>::decode(value)?,
            PgValueFormat::Text => return Ok(Self(value.as_str()?.replace(' ', "T").parse()?)),
        };
        Ok(Self(Timestamp::from_microsecond(micros.saturating_add(POSTGRES_EPOCH_MICROSECONDS))?))
    }
}

impl PartialSchema for Time {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(schema::Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .build()
            .into()
    }
}

impl ToSchema for Time {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_jump_is_told_from_time_that_passed() {
        let start = JumpWatch::start();
        let later = |steady_seconds: u64, wall_seconds: i64| JumpWatch {
            steady: start.steady + Duration::from_secs(steady_seconds),
            wall: start.wall + SignedDuration::from_secs(wall_seconds),
        };
        for (steady, wall, jump) in [
            (5, 5, None),
            (5, 300, None),
            (86_400, 86_400, None),
            (5, 400, Some(395)),
            (5, 864_000, Some(863_995)),
            (5, -3600, Some(-3605)),
        ] {
            let mut watch = start;
            assert_eq!(watch.compare(later(steady, wall)), jump.map(SignedDuration::from_secs), "{steady} {wall}");
            assert_eq!(watch.compare(later(steady, wall)), None, "told once");
        }
    }
}
