//! The only source of "now": the system's clock in production, one that can be moved forward in the trial and in tests.

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
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

/// An instant as Postgres holds it: `timestamptz`, whole microseconds, UTC. In JSON, RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub Timestamp);

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
