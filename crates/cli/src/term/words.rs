//! Times and sizes as people say them.

use std::time::{SystemTime, UNIX_EPOCH};

use outlast_proto::time::Timestamp;
use outlast_types::{ByteSize, WallTime};

fn now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(since.as_millis() as u64)
}

/// A moment, to the millisecond; empty where there is none.
pub(crate) fn time(at: Option<Timestamp>) -> String {
    at.map(|at| WallTime::from(at).to_string()).unwrap_or_default()
}

/// How long ago; `-` where there is no time.
pub(crate) fn age(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| coarse(now().since(at.into())))
}

/// From one moment to another, or until now.
pub(crate) fn duration(from: Option<Timestamp>, to: Option<Timestamp>) -> String {
    let Some(from) = from else { return "-".to_owned() };
    coarse(to.map_or_else(now, WallTime::from).since(from.into()))
}

fn coarse(millis: u64) -> String {
    let secs = millis / 1_000;
    match secs {
        0..120 => format!("{secs}s"),
        120..7_200 => format!("{}m", secs / 60),
        7_200..172_800 => format!("{}h", secs / 3_600),
        _ => format!("{}d", secs / 86_400),
    }
}

pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        for (millis, text) in
            [(999, "0s"), (119_000, "119s"), (120_000, "2m"), (7_200_000, "2h"), (172_800_000, "2d")]
        {
            assert_eq!(coarse(millis), text);
        }
    }
}
