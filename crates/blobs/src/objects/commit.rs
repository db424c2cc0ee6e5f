//! The `COMMIT` object: the sentence that makes a checkpoint be in the bucket.

use outlast_types::{ClusterId, Digest, JobId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Bumped when an old reader could not make sense of a new one; the reader then says so and keeps its hands off.
const FORMAT: u32 = 1;
/// Always the last field.
const SUM_FIELD: &str = r#","blake3":""#;

/// What `COMMIT` says of a checkpoint whose bytes are all there.
#[derive(Clone, Debug, PartialEq)]
pub struct CommitRecord {
    pub cluster: ClusterId,
    pub job: JobId,
    pub job_name: String,
    pub manifest_root: Digest,
    /// The seal as the coordinators gave it; the same as in the seal beside a shard.
    pub record: Value,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommitError {
    #[error("its bytes are not the ones that were written")]
    Damaged,
    #[error("it has format {found} and this build reads up to {FORMAT}: upgrade it first")]
    Format { found: u32 },
    #[error("it is not understood: {reason}")]
    Content { reason: String },
}

#[derive(Serialize, Deserialize)]
struct CommitFile {
    format: u32,
    cluster: ClusterId,
    job: JobId,
    job_name: String,
    manifest_root: Digest,
    record: Value,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl CommitRecord {
    /// The clusters that its cluster goes on from, as far as the seal names them.
    pub fn predecessors(&self) -> Vec<ClusterId> {
        let named = self.record["predecessors"].as_array().map_or(&[][..], Vec::as_slice);
        named.iter().filter_map(|name| name.as_str()?.parse().ok()).collect()
    }

    /// Whether two records are of one cluster, under its name of today or an earlier one.
    pub fn is_kin(&self, other: &Self) -> bool {
        self.cluster == other.cluster
            || self.predecessors().contains(&other.cluster)
            || other.predecessors().contains(&self.cluster)
    }

    /// JSON whose last field is the BLAKE3 of all that is before it.
    pub fn encode(&self) -> Vec<u8> {
        let Self { cluster, job, job_name, manifest_root, record } = self.clone();
        let file = CommitFile { format: FORMAT, cluster, job, job_name, manifest_root, record };
        let mut text = serde_json::to_string(&file).expect("text keys and plain values are JSON");
        text.pop();
        let sum = blake3::hash(text.as_bytes()).to_hex();
        text.push_str(&format!("{SUM_FIELD}{sum}\"}}"));
        text.into_bytes()
    }

    /// # Errors
    /// Anything but what `encode` of this or an older build wrote. Never panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommitError> {
        let body_len = bytes.len().checked_sub(SUM_FIELD.len() + 64 + 2).ok_or(CommitError::Damaged)?;
        let (body, end) = bytes.split_at(body_len);
        let sum = blake3::hash(body).to_hex();
        if end != format!("{SUM_FIELD}{sum}\"}}").as_bytes() {
            return Err(CommitError::Damaged);
        }
        let content = |err: serde_json::Error| CommitError::Content { reason: err.to_string() };
        let Format { format } = serde_json::from_slice(bytes).map_err(content)?;
        if format > FORMAT {
            return Err(CommitError::Format { found: format });
        }
        let file: CommitFile = serde_json::from_slice(bytes).map_err(content)?;
        let CommitFile { format: _, cluster, job, job_name, manifest_root, record } = file;
        Ok(Self { cluster, job, job_name, manifest_root, record })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> CommitRecord {
        CommitRecord {
            cluster: ClusterId::new("home").expect("valid"),
            job: JobId(7),
            job_name: "digits".to_owned(),
            manifest_root: Digest([5; 32]),
            record: serde_json::json!({"checkpoint": {"step": 40, "loss": 0.1}}),
        }
    }

    #[test]
    fn the_bytes_of_format_1_never_change() {
        let text = String::from_utf8(record().encode()).expect("text");
        let root = "05".repeat(32);
        assert_eq!(
            text,
            format!(
                r#"{{"format":1,"cluster":"home","job":"j7","job_name":"digits","manifest_root":"{root}","record":{{"checkpoint":{{"loss":0.1,"step":40}}}},"blake3":"a1c124454741724bc6368ecda2cca5a69fab6e3f1e47bd7bc5d9944b933d74b5"}}"#
            )
        );
        assert_eq!(CommitRecord::decode(text.as_bytes()), Ok(record()));
    }

    #[test]
    fn any_other_bytes_are_refused() {
        let bytes = record().encode();
        for cut in 0..bytes.len() {
            assert_eq!(CommitRecord::decode(&bytes[..cut]), Err(CommitError::Damaged));
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(CommitRecord::decode(&flipped), Err(CommitError::Damaged), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_format_says_so() {
        let body = r#"{"format":2,"what":"else""#;
        let sum = blake3::hash(body.as_bytes()).to_hex();
        let text = format!("{body}{SUM_FIELD}{sum}\"}}");
        assert_eq!(CommitRecord::decode(text.as_bytes()), Err(CommitError::Format { found: 2 }));
    }
}
