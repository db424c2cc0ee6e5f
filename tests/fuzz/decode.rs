//! Decoders of whole values: commands, states, responses, manifests, commits, job files.

use outlast_blobs::Manifest;
use outlast_blobs::objects::CommitRecord;
use outlast_control::state::{decode_batch, decode_response, decode_state, encode_batch, encode_state};
use outlast_types::spec;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::edit::{edited, edits};

pub(crate) const BATCH: &[u8] = include_bytes!("../../crates/control/golden/batch-v1.bin");
pub(crate) const STATE: &[u8] = include_bytes!("../../crates/control/golden/state-v1.bin");

fn manifest() -> Vec<u8> {
    let root = outlast_types::Digest([7; 32]);
    let shards = (0..3).map(|rank| outlast_blobs::ManifestShard { rank, root, size_bytes: 10 }).collect();
    let attempt: outlast_types::AttemptId = "j12/0@1.3".parse().expect("valid");
    let (job, seq) = (attempt.group.job, "ck7".parse().expect("valid"));
    Manifest { job, attempt, seq, step: 400, world_size: 3, shards }.encode()
}

fn commit() -> CommitRecord {
    CommitRecord {
        cluster: "test".parse().expect("valid"),
        job: "j12".parse().expect("valid"),
        job_name: "digits".to_owned(),
        manifest_root: outlast_types::Digest([7; 32]),
        record: json!({"spec": {"name": "digits"}, "step": 7}),
    }
}

fn job_file() -> String {
    json!({
        "name": "digits", "kind": "training", "command": ["python3", "train.py"],
        "workers": {"min": 2, "max": 8},
        "resources": {"cpus": 1.5, "memory": "512MiB", "gpus": 1, "custom": {"fpga": 2}},
        "env": {"EPOCHS": "20"}, "checkpoint": {"every": "100 steps", "keep": 3, "durability": "replicated"},
        "recovery": {"max_user_failures": 3, "hang_after": "auto"},
        "placement": {"spread": "zone", "require": {"disk": "nvme"}}, "exclusive": true,
        "ready": {"http": {"port": 80, "path": "/ok"}},
    })
    .to_string()
}

proptest! {
    #[test]
    fn commands_and_states(edits in edits()) {
        let _ = decode_response(&edited(BATCH, &edits));
        if let Ok(batch) = decode_batch(&edited(BATCH, &edits)) {
            let again = decode_batch(&encode_batch(&batch)).expect("what decodes can be written and read");
            prop_assert_eq!(again, batch);
        }
        if let Ok(state) = decode_state(&edited(STATE, &edits)) {
            let bytes = encode_state(&state);
            prop_assert_eq!(encode_state(&decode_state(&bytes).expect("what decodes can be read again")), bytes);
        }
    }

    #[test]
    fn manifests(edits in edits()) {
        let bytes = edited(&manifest(), &edits);
        if let Ok(manifest) = Manifest::decode(&bytes) {
            prop_assert_eq!(manifest.encode(), bytes, "only canonical bytes are a manifest");
        }
    }

    #[test]
    fn commits(edits in edits()) {
        let good = commit().encode();
        let _ = CommitRecord::decode(&edited(&good, &edits));
        // Its sum is the last field: made to fit, so that what is behind it is read too.
        let end = r#","blake3":""#.len() + 64 + 2;
        let mut bytes = edited(&good[..good.len() - end], &edits);
        let sum = blake3::hash(&bytes).to_hex();
        bytes.extend_from_slice(format!(r#","blake3":"{sum}"}}"#).as_bytes());
        if let Ok(commit) = CommitRecord::decode(&bytes) {
            prop_assert_eq!(CommitRecord::decode(&commit.encode()), Ok(commit));
        }
    }

    #[test]
    fn job_files(edits in edits()) {
        let bytes = edited(job_file().as_bytes(), &edits);
        if let Ok(value) = serde_json::from_slice::<Value>(&bytes) {
            let _ = spec::parse(&value).map_err(|err| err.to_string());
        }
    }

    #[test]
    fn numbers_in_a_job_file(pointer in prop::sample::select(vec![
        "/workers/min", "/workers/max", "/resources/cpus", "/resources/memory", "/resources/gpus",
        "/resources/custom/fpga", "/checkpoint/every", "/checkpoint/keep", "/recovery/max_user_failures",
        "/recovery/hang_after", "/ready/http/port",
    ]), number in prop_oneof![
        any::<u64>().prop_map(Value::from), any::<i64>().prop_map(Value::from), any::<f64>().prop_map(Value::from),
        any::<u64>().prop_map(|n| format!("{n}s").into()), any::<u64>().prop_map(|n| format!("{n}TiB").into()),
        any::<u64>().prop_map(|n| format!("{n} steps").into()), "\\PC{0,20}".prop_map(Value::from),
    ]) {
        let mut value: Value = serde_json::from_str(&job_file()).expect("JSON");
        *value.pointer_mut(pointer).expect("it is in the file") = number;
        let _ = spec::parse(&value).map_err(|err| err.to_string());
    }
}
