//! When periods start and end.

use jiff::{Timestamp, civil::Date, tz::TimeZone};

/// A period, half-open: `start` is in it, `end` is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// The first instant.
    pub start: Timestamp,
    /// The first instant after it.
    pub end: Timestamp,
}

impl Period {
    /// The `n`th period of a box, from 0.
    pub fn nth(anchor: Timestamp, n: u32) -> Self {
        Self { start: due(anchor, n), end: due(anchor, n + 1) }
    }

    /// Its length in calendar days, at least 1.
    pub fn days(&self) -> i64 {
        let date = |at: Timestamp| at.to_zoned(TimeZone::UTC).date();
        i64::from(date(self.start).until(date(self.end)).map_or(1, |span| span.get_days())).max(1)
    }
}

/// The date in the month `months` after `first`'s, on its day, or on the last day of a month that is too short.
pub fn due_date(first: Date, months: u32) -> Date {
    let month0 = i64::from(first.year()) * 12 + i64::from(first.month()) - 1 + i64::from(months);
    let year = i16::try_from(month0.div_euclid(12)).expect("dates stay within the years jiff can hold");
    let month = i8::try_from(month0.rem_euclid(12) + 1).expect("a month is 1 to 12");
    let start = Date::new(year, month, 1).expect("the first of a month exists");
    Date::new(year, month, first.day().min(start.days_in_month())).expect("a day is clamped to its month")
}

/// When the `n`th period of a box begins: always computed from the first date, so that it never drifts.
pub fn due(anchor: Timestamp, n: u32) -> Timestamp {
    let first = anchor.to_zoned(TimeZone::UTC);
    let at = due_date(first.date(), n).to_datetime(first.time());
    at.to_zoned(TimeZone::UTC).expect("UTC has every date and time").timestamp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dates(first: &str, months: std::ops::RangeInclusive<u32>) -> Vec<String> {
        months.map(|n| due_date(first.parse().unwrap(), n).to_string()).collect()
    }

    #[test]
    fn anchors_are_clamped_and_never_drift() {
        assert_eq!(dates("2027-01-31", 1..=4), ["2027-02-28", "2027-03-31", "2027-04-30", "2027-05-31"]);
        assert_eq!(dates("2028-01-31", 1..=2), ["2028-02-29", "2028-03-31"]);
        assert_eq!(dates("2027-01-30", 1..=2), ["2027-02-28", "2027-03-30"]);
        assert_eq!(dates("2027-11-15", 1..=3), ["2027-12-15", "2028-01-15", "2028-02-15"]);
    }

    #[test]
    fn the_time_of_day_is_kept() {
        let anchor: Timestamp = "2027-01-31T23:59:59.5Z".parse().unwrap();
        assert_eq!(due(anchor, 1).to_string(), "2027-02-28T23:59:59.5Z");
        assert_eq!(Period::nth(anchor, 0).days(), 28);
        assert_eq!(Period::nth(anchor, 1).days(), 31);
    }
}
