//! Serialisation of single fields where the plain form would not be what people expect.

use serde::ser::Error as _;
use serde::{Serialize, Serializer};

/// A field that holds JSON text: embedded as the value that it is.
pub(crate) fn embedded<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    if text.is_empty() {
        return serializer.serialize_none();
    }
    serde_json::from_str::<serde_json::Value>(text).map_err(S::Error::custom)?.serialize(serializer)
}

/// Bytes that are text most of the time (a log line): invalid UTF-8 is replaced.
pub(crate) fn lossy_text<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(bytes))
}
