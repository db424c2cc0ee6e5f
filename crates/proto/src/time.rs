//! `google.protobuf.Timestamp` with the JSON form that people read: RFC 3339.

use outlast_types::WallTime;
use serde::{Serialize, Serializer};

/// The same message as `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Timestamp {
    /// Seconds since 1970 UTC.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl From<WallTime> for Timestamp {
    fn from(time: WallTime) -> Self {
        Self { seconds: (time.0 / 1_000) as i64, nanos: (time.0 % 1_000) as i32 * 1_000_000 }
    }
}

impl From<Timestamp> for WallTime {
    /// Times before 1970 become 1970.
    fn from(time: Timestamp) -> Self {
        let seconds = u64::try_from(time.seconds).unwrap_or(0);
        let millis = u64::try_from(time.nanos).unwrap_or(0) / 1_000_000;
        Self(seconds.saturating_mul(1_000).saturating_add(millis))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&WallTime::from(*self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_keep_their_milliseconds_and_print_as_rfc_3339() {
        let stamp = Timestamp::from(WallTime(1_234));
        assert_eq!(WallTime::from(stamp), WallTime(1_234));
        assert_eq!(serde_json::to_string(&stamp).expect("serialises"), "\"1970-01-01T00:00:01.234Z\"");
        assert_eq!(WallTime::from(Timestamp { seconds: -5, nanos: -1 }), WallTime(0));
    }
}
