//! Sizes as people write them: `512MiB`, `2GB`, `4096`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes. Serialised as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{text:?} is not a size: write a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, for example 512MiB"
)]
pub struct ByteSizeParseError {
    pub text: String,
}

const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl FromStr for ByteSize {
    type Err = ByteSizeParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let err = || ByteSizeParseError { text: text.to_owned() };
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_end);
        let scale = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(err)?.1;
        let bytes = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(scale).ok_or_else(err)?,
            Err(_) => (number.parse::<f64>().map_err(|_| err())? * scale as f64).round() as u64,
        };
        // 2^60: beyond any machine, and far from overflow when such sizes are added up.
        if bytes > 1 << 60 { Err(err()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, scale) =
            UNITS[6..].iter().rev().find(|(_, scale)| self.0 >= *scale).copied().unwrap_or(("B", 1));
        if self.0.is_multiple_of(scale) {
            write!(f, "{}{name}", self.0 / scale)
        } else {
            write!(f, "{:.1}{name}", self.0 as f64 / scale as f64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_and_print() {
        for (text, bytes) in [("512MiB", 512 << 20), ("2GB", 2_000_000_000), ("4096", 4096), ("1.5KiB", 1536)]
        {
            assert_eq!(text.parse::<ByteSize>().expect(text).0, bytes);
        }
        assert_eq!(ByteSize(512 << 20).to_string(), "512MiB");
        assert_eq!(ByteSize(1536).to_string(), "1.5KiB");
        for bad in ["-1", "512 mb", "12Mb", "many", "1e3", "99999999999TiB", "."] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad:?} must be refused");
        }
    }
}
