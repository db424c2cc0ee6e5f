//! Lengths of time as people write them: `10s`, `500ms`, `2m`, `1h`, `7d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A length of time, in whole milliseconds. Serialised as seconds (a number).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(u64);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a length of time: write a number and one of ms, s, m, h, d, for example 10s")]
pub struct SpanParseError {
    pub text: String,
}

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl Span {
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * 1_000)
    }
    pub const fn millis(self) -> u64 {
        self.0
    }
    pub fn secs_f64(self) -> f64 {
        self.0 as f64 / 1_000.0
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        Duration::from_millis(span.0)
    }
}

impl FromStr for Span {
    type Err = SpanParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let err = || SpanParseError { text: text.to_owned() };
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(err)?;
        let (number, unit) = text.split_at(digits_end);
        let scale = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(err)?.1;
        let value: f64 = number.parse().map_err(|_| err())?;
        let millis = value * scale as f64;
        // A hundred years: what is longer is a slip of the pen.
        if !(0.0..=3.2e12).contains(&millis) {
            return Err(err());
        }
        Ok(Self(millis.round() as u64))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, scale) = UNITS
            .iter()
            .rev()
            .find(|(_, scale)| self.0 >= *scale && self.0.is_multiple_of(*scale))
            .unwrap_or(&("ms", 1));
        write!(f, "{}{name}", self.0 / scale)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.secs_f64())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secs = f64::deserialize(deserializer)?;
        if (0.0..=3.2e9).contains(&secs) {
            Ok(Self((secs * 1_000.0).round() as u64))
        } else {
            Err(serde::de::Error::custom(format!("{secs} seconds is not a length of time")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_parse_and_print() {
        for (text, millis) in
            [("10s", 10_000), ("500ms", 500), ("1.5s", 1_500), ("2m", 120_000), ("7d", 604_800_000)]
        {
            assert_eq!(text.parse::<Span>().expect(text).millis(), millis);
        }
        assert_eq!(Span::from_secs(90).to_string(), "90s");
        assert_eq!(Span::from_secs(7_200).to_string(), "2h");
        for bad in ["", "10", "s", "-1s", "10 parsecs", "1e9d", "99999999d", "..s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?} must be refused");
        }
    }
}
