//! Identifiers. One word for one thing; the text form is the one that people see in the CLI and in logs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Text that is not an identifier of the wanted kind.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a {kind}: {expected}")]
pub struct IdParseError {
    pub text: String,
    pub kind: &'static str,
    pub expected: &'static str,
}

fn err(text: &str, kind: &'static str, expected: &'static str) -> IdParseError {
    IdParseError { text: text.to_owned(), kind, expected }
}

/// Serialises a type through its text form.
macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A name made of lower-case letters, digits, `-`, `.` and `_`, 1 to 63 characters, starting with a letter or digit.
fn is_name(text: &str) -> bool {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_');
    (1..=63).contains(&text.len())
        && text.bytes().all(ok)
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && !text.contains("..")
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// # Errors
            /// Refuses text that is not 1 to 63 of `a-z 0-9 - . _` starting with a letter or digit.
            pub fn new(text: impl Into<String>) -> Result<Self, IdParseError> {
                let text = text.into();
                if is_name(&text) {
                    Ok(Self(text))
                } else {
                    Err(err(&text, $kind, "use 1 to 63 of a-z, 0-9, '-', '.', '_', starting with a letter or digit"))
                }
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = IdParseError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }
        serde_as_text!($name);
    };
}

name_id!(
    /// The name of a node: chosen by its operator, the host name by default.
    NodeId, "node name");
name_id!(
    /// One boot of a machine; from the kernel's boot id.
    BootId, "boot id");
name_id!(
    /// The identity of one data disk (folder): made when the folder is first used, gone when it is.
    DiskId, "disk id");
name_id!(
    /// The identity of a cluster: made once, checked in every call between its members.
    ClusterId, "cluster id");
name_id!(
    /// Made by the client for each change that it asks for; a retry with the same one changes nothing more.
    RequestId, "request id");

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&format!(concat!($prefix, "{}"), self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
        impl FromStr for $name {
            type Err = IdParseError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.strip_prefix($prefix)
                    .and_then(|digits| digits.parse().ok())
                    .map(Self)
                    .ok_or_else(|| err(text, $kind, $expected))
            }
        }
        serde_as_text!($name);
    };
}

number_id!(
    /// A job; counted by the cluster, never reused.
    JobId, "j", "job id", "it looks like j12");
number_id!(
    /// A coordinator. Allocated from the log, never reused.
    CoordinatorId, "c", "coordinator id", "it looks like c3");
number_id!(
    /// One registration of an agent's run (a random number made at its start); a restart makes a new one.
    RegistrationId, "r", "registration id", "it looks like r77");
number_id!(
    /// A checkpoint of a job; given at `OpenCheckpoint`, never reused.
    CheckpointSeq, "ck", "checkpoint number", "it looks like ck7");

/// The workers of a job that start, stop and fail together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId {
    pub job: JobId,
    pub index: u32,
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.job, self.index)
    }
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for GroupId {
    type Err = IdParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (job, index) = text.split_once('/')?;
            Some(Self { job: job.parse().ok()?, index: index.parse().ok()? })
        };
        parse().ok_or_else(|| err(text, "group id", "it looks like j12/0"))
    }
}
serde_as_text!(GroupId);

/// One run of a group. (generation, number) is the fencing token: the number only grows, the generation grows with
/// each disaster recovery of the cluster (invariant 21).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    pub group: GroupId,
    pub generation: u64,
    pub number: u64,
}

impl AttemptId {
    /// The order of attempts of one group; `None` between groups.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        self.group == other.group && (self.generation, self.number) > (other.generation, other.number)
    }
    /// The text with only characters that fit a file name.
    pub fn file_name(&self) -> String {
        format!("{}.{}.{}.{}", self.group.job, self.group.index, self.generation, self.number)
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}.{}", self.group, self.generation, self.number)
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for AttemptId {
    type Err = IdParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (group, token) = text.split_once('@')?;
            let (generation, number) = token.split_once('.')?;
            Some(Self {
                group: group.parse().ok()?,
                generation: generation.parse().ok()?,
                number: number.parse().ok()?,
            })
        };
        parse().ok_or_else(|| err(text, "attempt", "it looks like j12/0@1.3"))
    }
}
serde_as_text!(AttemptId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_go_there_and_back() {
        let attempt: AttemptId = "j12/0@1.3".parse().expect("valid");
        assert_eq!(attempt.to_string(), "j12/0@1.3");
        assert_eq!(attempt.file_name(), "j12.0.1.3");
        assert_eq!("ck7".parse::<CheckpointSeq>().expect("valid"), CheckpointSeq(7));
        for bad in ["", "12", "j", "j1/0", "j1@1", "j1/0@1", "j1/0@1."] {
            assert!(bad.parse::<AttemptId>().is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn names_refuse_what_a_path_or_a_label_could_not_hold() {
        assert!(NodeId::new("gpu-7.rack_2").is_ok());
        for bad in ["", "-a", "A", "a/b", "..", "a..b", "a b", &"x".repeat(64)] {
            assert!(NodeId::new(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn a_newer_generation_beats_any_number() {
        let old: AttemptId = "j1/0@1.900".parse().expect("valid");
        let new: AttemptId = "j1/0@2.1".parse().expect("valid");
        assert!(new.is_newer_than(&old) && !old.is_newer_than(&new) && !old.is_newer_than(&old));
    }
}
