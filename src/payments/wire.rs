//! Amounts and times as they stand in JSON: numbers or strings, exponents allowed, never through a float.

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde_json::{Number, Value};

/// Longer than any amount of money; what is longer is not parsed.
const LONGEST_AMOUNT: usize = 64;

/// An amount from a JSON number or string. `None` for anything else and for what a decimal cannot hold exactly.
pub(super) fn amount(value: &Value) -> Option<Decimal> {
    match value {
        Value::Number(number) => parse_amount(&number.to_string()),
        Value::String(text) => parse_amount(text),
        _ => None,
    }
}

/// Whole cents of an amount of dollars, rounded down. `None` if it is negative or does not fit.
pub(super) fn cents(value: &Value) -> Option<i64> {
    let dollars = amount(value).filter(|dollars| !dollars.is_sign_negative())?;
    let cents = dollars.checked_mul(Decimal::ONE_HUNDRED)?.floor();
    i64::try_from(cents).ok()
}

/// Cents as a JSON number of dollars, exact.
pub(super) fn dollars(cents: i64) -> Number {
    Decimal::new(cents, 2).to_string().parse().expect("a decimal is a JSON number")
}

/// A time, with `Z` or an offset.
pub(super) fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

fn parse_amount(text: &str) -> Option<Decimal> {
    if text.len() > LONGEST_AMOUNT {
        return None;
    }
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let digits = mantissa.strip_prefix('-').unwrap_or(mantissa);
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if !plain || !digits.starts_with(|first: char| first.is_ascii_digit()) || digits.ends_with('.') {
        return None;
    }
    let mut number = Decimal::from_str_exact(mantissa).ok()?;
    if exponent < 0 {
        let scale = number.scale().checked_add(exponent.unsigned_abs())?;
        number.set_scale(scale).ok()?;
    } else if exponent > 0 {
        let factor = 10_i128.checked_pow(exponent.unsigned_abs())?;
        number = number.checked_mul(Decimal::try_from_i128_with_scale(factor, 0).ok()?)?;
    }
    Some(number.normalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<String> {
        amount(&serde_json::from_str(json).unwrap()).map(|amount| amount.to_string())
    }

    #[test]
    fn reads_amounts_however_they_are_written() {
        for (json, expected) in [
            ("25.01250125", "25.01250125"),
            ("\"25.01250125\"", "25.01250125"),
            ("5e-7", "0.0000005"),
            ("\"5e-7\"", "0.0000005"),
            ("\"1.5E+3\"", "1500"),
            ("1.50e1", "15"),
            ("0", "0"),
            ("-3.10", "-3.1"),
            ("0.30000000000000004", "0.30000000000000004"),
            ("1e-28", "0.0000000000000000000000000001"),
        ] {
            assert_eq!(read(json).as_deref(), Some(expected), "{json}");
        }
        for json in [
            "\"\"",
            "\"abc\"",
            "\"1_000\"",
            "\" 1\"",
            "\"+1\"",
            "\".5\"",
            "\"5.\"",
            "\"1e\"",
            "\"0x10\"",
            "\"NaN\"",
            "\"1,5\"",
            "null",
            "true",
            "[1]",
            "1e-29",
            "1e40",
            "1e999999999999",
            "\"1e-2147483648\"",
            "\"1.2.3\"",
        ] {
            assert_eq!(read(json), None, "{json}");
        }
        assert_eq!(amount(&Value::from("1".repeat(65))), None);
    }

    #[test]
    fn dollars_and_cents_are_exact() {
        for (cents_in, json) in [(2501, "25.01"), (500, "5.00"), (7, "0.07"), (100_000, "1000.00"), (1_990, "19.90")] {
            assert_eq!(dollars(cents_in).to_string(), json);
            assert_eq!(cents(&Value::Number(dollars(cents_in))), Some(cents_in));
        }
        assert_eq!(cents(&Value::from("25.019")), Some(2501), "parts of a cent are cut off");
        assert_eq!(cents(&Value::from("-1")), None);
        assert_eq!(cents(&Value::from("79228162514264337593543950335")), None);
    }

    #[test]
    fn reads_times_of_both_writers() {
        let expected: Timestamp = "2026-06-06T12:15:00.123456Z".parse().unwrap();
        assert_eq!(time(&Value::from("2026-06-06T12:15:00.123456+00:00")), Some(expected));
        assert_eq!(time(&Value::from("2026-06-06T12:15:00.123456Z")), Some(expected));
        assert_eq!(time(&Value::from("2026-06-06T12:15:00.123456")), None, "a time without a zone is no time");
    }
}
