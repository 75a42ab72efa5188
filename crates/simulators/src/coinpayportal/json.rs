//! JSON as the real service writes it: keys in the order of its source, numbers as JavaScript prints them.

use std::fmt::Write as _;

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde_json::{Number, Value};

/// JSON whose keys stay in the order they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Json {
    /// Anything that has no keys, already written.
    Raw(String),
    /// An object.
    Object(Vec<(String, Json)>),
}

impl Json {
    pub(super) fn text(text: &str) -> Self {
        Self::Raw(Value::from(text).to_string())
    }

    pub(super) fn number(number: Decimal) -> Self {
        Self::Raw(number_text(number))
    }

    /// The number as a string, as `String(number)` gives it.
    pub(super) fn number_as_text(number: Decimal) -> Self {
        Self::text(&number_text(number))
    }

    pub(super) fn object<const N: usize>(pairs: [(&str, Self); N]) -> Self {
        Self::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    pub(super) fn write(&self) -> String {
        match self {
            Self::Raw(text) => text.clone(),
            Self::Object(pairs) => {
                let mut out = String::from("{");
                for (index, (key, value)) in pairs.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(out, "{comma}{}:{}", Value::from(key.as_str()), value.write()).expect("a string grows");
                }
                out.push('}');
                out
            }
        }
    }

    /// The order that Postgres gives the keys of a `jsonb`: shortest first, then by bytes.
    pub(super) fn in_jsonb_order(self) -> Self {
        match self {
            Self::Raw(text) => Self::Raw(text),
            Self::Object(pairs) => {
                let mut pairs: Vec<_> = pairs.into_iter().map(|(key, value)| (key, value.in_jsonb_order())).collect();
                pairs.sort_by(|(a, _), (b, _)| (a.len(), a.as_bytes()).cmp(&(b.len(), b.as_bytes())));
                Self::Object(pairs)
            }
        }
    }
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        match value {
            Value::Object(map) => Self::Object(map.iter().map(|(key, value)| (key.clone(), value.into())).collect()),
            other => Self::Raw(other.to_string()),
        }
    }
}

/// The number as JavaScript prints it: no trailing zeros, an exponent below a millionth.
pub(super) fn number_text(number: Decimal) -> String {
    let number = number.normalize();
    let plain = number.to_string();
    let (sign, digits) = plain.strip_prefix('-').map_or(("", plain.as_str()), |digits| ("-", digits));
    let Some(fraction) = digits.strip_prefix("0.") else { return plain };
    let zeros = fraction.len() - fraction.trim_start_matches('0').len();
    if zeros < 6 {
        return plain;
    }
    let significant = &fraction[zeros..];
    let (first, rest) = significant.split_at(1);
    let point = if rest.is_empty() { "" } else { "." };
    format!("{sign}{first}{point}{rest}e-{}", zeros + 1)
}

/// The number as a JSON number, digits kept.
pub(super) fn number(amount: Decimal) -> Value {
    Value::Number(number_text(amount).parse::<Number>().expect("a decimal is a JSON number"))
}

/// A time as JavaScript's `toISOString` writes it.
pub(super) fn iso_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// A time as the database's REST layer writes it.
pub(super) fn row_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_numbers_and_times_as_javascript_does() {
        for (number, text) in [
            (dec!(25.00), "25"),
            (dec!(25.01250125), "25.01250125"),
            (dec!(0.000001), "0.000001"),
            (dec!(0.0000005), "5e-7"),
            (dec!(0.00000012), "1.2e-7"),
            (-dec!(0.00000012), "-1.2e-7"),
            (dec!(0), "0"),
        ] {
            assert_eq!(number_text(number), text);
        }
        let time: Timestamp = "2026-06-06T12:15:00.1234567Z".parse().unwrap();
        assert_eq!(iso_time(time), "2026-06-06T12:15:00.123Z");
        assert_eq!(row_time(time), "2026-06-06T12:15:00.123456+00:00");
        assert_eq!(iso_time("2026-06-06T12:15:00Z".parse().unwrap()), "2026-06-06T12:15:00.000Z");
    }

    #[test]
    fn jsonb_puts_short_keys_first() {
        let json = Json::object([
            ("id", Json::text("x\"y")),
            ("data", Json::object([("status", Json::Raw("1".into())), ("amount", Json::Raw("2".into()))])),
            ("a", Json::Raw("null".into())),
        ]);
        assert_eq!(json.write(), r#"{"id":"x\"y","data":{"status":1,"amount":2},"a":null}"#);
        assert_eq!(json.in_jsonb_order().write(), r#"{"a":null,"id":"x\"y","data":{"amount":2,"status":1}}"#);
    }
}
