//! What a setting's text may look like, whether it comes from a flag, a variable or a file.

use outlast_types::ByteSize;
use serde_json::{Map, Value};

/// One setting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// As in the file: `resources.cpus` is `cpus` in the table `resources`.
    pub(crate) path: &'static str,
    pub(crate) variable: &'static str,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Flag,
    Number,
    /// Bytes, or text such as 512MiB.
    Size,
    /// In a variable: `a,b`.
    Texts,
    /// In a variable: `k=v,l=w`.
    Pairs,
    /// In a variable: `tpu=4,slot=2`.
    Counts,
}

impl Kind {
    fn expected(self) -> &'static str {
        match self {
            Kind::Text => "it takes text",
            Kind::Flag => "it takes true or false",
            Kind::Number => "it takes a number that is not negative",
            Kind::Size => "it takes a number and a unit, for example 512MiB",
            Kind::Texts => "it takes a list of texts",
            Kind::Pairs => "it takes names with texts",
            Kind::Counts => "it takes names with whole numbers",
        }
    }

    /// From the text of a variable.
    ///
    /// # Errors
    /// What would have been right.
    pub(crate) fn read(self, text: &str) -> Result<Value, String> {
        let items = || text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let value = match self {
            Kind::Text => Some(Value::from(text)),
            Kind::Flag => match text {
                "1" | "true" | "yes" => Some(true.into()),
                "0" | "false" | "no" => Some(false.into()),
                _ => None,
            },
            Kind::Number => {
                text.parse::<u64>().map(Value::from).or_else(|_| text.parse::<f64>().map(Value::from)).ok()
            }
            Kind::Size => Some(Value::from(text)),
            Kind::Texts => Some(items().map(Value::from).collect()),
            Kind::Pairs | Kind::Counts => {
                let pair =
                    |item: &str| item.split_once('=').map(|(key, value)| (key.to_owned(), self.item(value)));
                items().map(pair).collect::<Option<Map<_, _>>>().map(Value::Object)
            }
        };
        self.accept(value.ok_or_else(|| self.expected().to_owned())?)
    }

    fn item(self, text: &str) -> Value {
        match (self, text.parse::<u64>()) {
            (Kind::Counts, Ok(count)) => count.into(),
            _ => text.into(),
        }
    }

    /// Checks a value of the file, and brings it into the form that the configuration takes.
    ///
    /// # Errors
    /// What would have been right.
    pub(crate) fn accept(self, value: Value) -> Result<Value, String> {
        let fits = match (self, &value) {
            (Kind::Text, Value::String(_)) | (Kind::Flag, Value::Bool(_)) => true,
            (Kind::Number, Value::Number(number)) => number.as_f64().is_some_and(|number| number >= 0.0),
            (Kind::Size, Value::Number(number)) => number.is_u64(),
            (Kind::Size, Value::String(text)) => {
                return text.parse::<ByteSize>().map(|size| size.0.into()).map_err(|error| error.to_string());
            }
            (Kind::Texts, Value::Array(items)) => items.iter().all(Value::is_string),
            (Kind::Pairs, Value::Object(map)) => map.values().all(Value::is_string),
            (Kind::Counts, Value::Object(map)) => map.values().all(Value::is_u64),
            _ => false,
        };
        if fits { Ok(value) } else { Err(self.expected().to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn variables_are_read_by_kind() {
        for (kind, text, value) in [
            (Kind::Text, "127.0.0.1:1", json!("127.0.0.1:1")),
            (Kind::Flag, "yes", json!(true)),
            (Kind::Number, "1.5", json!(1.5)),
            (Kind::Number, "2", json!(2)),
            (Kind::Size, "1GiB", json!(1_u64 << 30)),
            (Kind::Texts, "a:1, b:2", json!(["a:1", "b:2"])),
            (Kind::Pairs, "zone=a,disk=7", json!({"zone": "a", "disk": "7"})),
            (Kind::Counts, "tpu=4", json!({"tpu": 4})),
        ] {
            assert_eq!(kind.read(text), Ok(value), "{kind:?} {text}");
        }
        let bad = [
            (Kind::Flag, "maybe"),
            (Kind::Number, "-1"),
            (Kind::Size, "lots"),
            (Kind::Pairs, "zone"),
            (Kind::Counts, "tpu=four"),
        ];
        for (kind, text) in bad {
            assert!(kind.read(text).is_err(), "{kind:?} {text}");
        }
    }
}
