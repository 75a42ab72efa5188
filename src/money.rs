//! US dollars as whole cents. Nothing in Seedplane holds money in a float.

use std::{fmt, iter::Sum, ops, str::FromStr};

use serde::{Deserialize, Serialize};

/// An amount of US dollars in whole cents, `bigint` in Postgres (columns ending `_cents`), an integer in JSON.
///
/// Arithmetic panics on overflow in every build: at 92 quadrillion dollars something is wrong that must not be booked.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    sqlx::Type,
    utoipa::ToSchema,
)]
#[serde(transparent)]
#[sqlx(transparent)]
pub struct Usd(i64);

impl Usd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// From whole cents.
    pub const fn from_cents(cents: i64) -> Self {
        Self(cents)
    }

    /// In whole cents.
    pub const fn cents(self) -> i64 {
        self.0
    }

    /// Whether it is more than nothing.
    pub const fn is_positive(self) -> bool {
        self.0 > 0
    }

    /// `floor(self * numerator / denominator)`, exact: the only rounding of money there is.
    ///
    /// # Panics
    /// If `denominator` is not positive, or the result does not fit.
    pub fn prorate(self, numerator: i64, denominator: i64) -> Self {
        assert!(denominator > 0, "prorate over {denominator}");
        let product = i128::from(self.0) * i128::from(numerator);
        let cents = product.div_euclid(i128::from(denominator));
        Self(i64::try_from(cents).expect("an amount of money fits 64 bits"))
    }
}

impl ops::Add for Usd {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.checked_add(other.0).expect("an amount of money fits 64 bits"))
    }
}

impl ops::Sub for Usd {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.checked_sub(other.0).expect("an amount of money fits 64 bits"))
    }
}

impl ops::AddAssign for Usd {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl ops::SubAssign for Usd {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Sum for Usd {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, ops::Add::add)
    }
}

/// `$15.00`, `-$0.50`.
impl Usd {
    /// `15.00`: as a field of a form holds it.
    pub fn plain(self) -> String {
        format!("{self}").replace('$', "")
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let cents = self.0.unsigned_abs();
        write!(f, "{sign}${}.{:02}", cents / 100, cents % 100)
    }
}

/// Why a text is no amount of dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an amount is written as dollars with at most two decimals, such as 15 or 15.00")]
pub struct ParseUsdError;

/// Reads `15`, `15.5`, `15.00` and `$15.00`.
impl FromStr for Usd {
    type Err = ParseUsdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let text = text.strip_prefix('$').unwrap_or(text);
        let (dollars, cents) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if dollars.is_empty() || cents.len() > 2 || !digits(dollars) || !digits(cents) {
            return Err(ParseUsdError);
        }
        let dollars: i64 = dollars.parse().map_err(|_| ParseUsdError)?;
        let cents: i64 = format!("{cents:0<2}").parse().map_err(|_| ParseUsdError)?;
        let total = dollars.checked_mul(100).and_then(|sum| sum.checked_add(cents)).ok_or(ParseUsdError)?;
        Ok(Self(if negative { -total } else { total }))
    }
}

#[cfg(test)]
mod tests {
    use super::Usd;

    #[test]
    fn reads_and_writes_dollars() {
        for (text, cents, shown) in
            [("15", 1500, "$15.00"), ("15.5", 1550, "$15.50"), ("$0.05", 5, "$0.05"), ("-0.50", -50, "-$0.50")]
        {
            let amount: Usd = text.parse().unwrap();
            assert_eq!(amount.cents(), cents, "{text}");
            assert_eq!(amount.to_string(), shown);
        }
        for text in ["", ".5", "1.234", "1e3", "١٥", "1,50", "99999999999999999999"] {
            assert!(text.parse::<Usd>().is_err(), "{text}");
        }
    }

    #[test]
    fn prorates_down() {
        assert_eq!(Usd::from_cents(1500).prorate(18, 28), Usd::from_cents(964));
        assert_eq!(Usd::from_cents(1500).prorate(3, 30), Usd::from_cents(150));
        assert_eq!(Usd::from_cents(i64::MAX).prorate(31, 31), Usd::from_cents(i64::MAX));
    }
}
