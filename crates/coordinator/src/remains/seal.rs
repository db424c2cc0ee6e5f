//! The text of a `COMMIT` as a checked type, wherever it was found.

use outlast_blobs::Manifest;
use outlast_blobs::objects::CommitRecord;
use outlast_control::state::{FoundSeal, SealSource};
use outlast_types::{JobSpec, Profile};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The manifest of a record that was found without one.
pub(super) fn manifest(record: &CommitRecord) -> Result<Manifest, String> {
    let manifest: Manifest = field(&record.record, "checkpoint")?;
    manifest.check().map_err(|err| err.to_string())?;
    let proves = (manifest.root(), manifest.job) == (record.manifest_root, record.job);
    if proves { Ok(manifest) } else { Err("its shards do not make its manifest root".to_owned()) }
}

/// # Errors
/// A sentence: what of it is not understood.
pub(super) fn found_seal(
    record: &CommitRecord,
    manifest: &Manifest,
    source: SealSource,
) -> Result<FoundSeal, String> {
    let spec: JobSpec = field(&record.record, "spec")?;
    let profile: Option<Profile> = field(&record.record, "profile")?;
    let mut shards = manifest.shards.clone();
    shards.sort_unstable();
    Ok(FoundSeal {
        cluster: record.cluster.clone(),
        predecessors: record.predecessors(),
        profile,
        spec,
        bundle: field(&record.record, "bundle")?,
        attempt: manifest.attempt,
        seq: manifest.seq,
        step: manifest.step,
        manifest_root: record.manifest_root,
        shards: shards.iter().map(|shard| (shard.root, shard.size_bytes)).collect(),
        opened_at: field(&record.record, "opened_at")?,
        sealed_at: field(&record.record, "sealed_at")?,
        source,
    })
}

/// A field that is not there is null: seals of older versions have fewer.
fn field<T: DeserializeOwned>(record: &Value, name: &str) -> Result<T, String> {
    T::deserialize(record[name].clone()).map_err(|err| format!("its {name} is not understood: {err}"))
}

#[cfg(test)]
mod tests {
    use outlast_blobs::ManifestShard;
    use outlast_types::{CheckpointSeq, ClusterId, Digest, JobId, WallTime, spec};
    use serde_json::json;

    use super::*;

    fn record(change: &Value) -> CommitRecord {
        let shard = |rank| ManifestShard { rank, root: Digest([rank as u8; 32]), size_bytes: 7 };
        let manifest = Manifest {
            job: JobId(1),
            attempt: "j1/0@1.2".parse().expect("valid"),
            seq: CheckpointSeq(3),
            step: 40,
            world_size: 2,
            shards: vec![shard(1), shard(0)],
        };
        let file = json!({"name": "a", "command": ["true"], "resources": {"cpus": 0.3}});
        let mut content = json!({
            "checkpoint": manifest,
            "spec": spec::parse(&file).expect("valid"),
            "bundle": [Digest([9; 32]), 5],
            "predecessors": ["before"],
            "profile": "wan",
            "sealed_at": 77,
        });
        content.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
        CommitRecord {
            cluster: ClusterId::new("home").expect("valid"),
            job: JobId(1),
            job_name: "a".to_owned(),
            manifest_root: manifest.root(),
            record: content,
        }
    }

    fn read(record: &CommitRecord) -> Result<FoundSeal, String> {
        // As it travels.
        let record = CommitRecord::decode(&record.encode()).expect("a commit");
        found_seal(&record, &manifest(&record)?, SealSource::Store)
    }

    #[test]
    fn a_commit_tells_all_that_a_job_goes_on_from() {
        let seal = read(&record(&json!({}))).expect("understood");
        assert_eq!((seal.spec.name.as_str(), seal.step, seal.seq), ("a", 40, CheckpointSeq(3)));
        assert_eq!(seal.shards, [(Digest([0; 32]), 7), (Digest([1; 32]), 7)], "by rank");
        assert_eq!((seal.bundle, seal.profile), (Some((Digest([9; 32]), 5)), Some(Profile::Wan)));
        assert_eq!((seal.opened_at, seal.sealed_at), (None, Some(WallTime(77))));
        assert_eq!(seal.predecessors, [ClusterId::new("before").expect("valid")]);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (change, name) in [
            (json!({"spec": null}), "its spec"),
            (json!({"spec": {"name": "a"}}), "its spec"),
            (json!({"checkpoint": {}}), "its checkpoint"),
            (json!({"bundle": [1]}), "its bundle"),
        ] {
            let told = read(&record(&change)).expect_err("refused");
            assert!(told.contains(name), "{told}");
        }
        let older = json!({"bundle": null, "predecessors": null, "profile": null, "sealed_at": null});
        let seal = read(&record(&older)).expect("of an older version");
        assert_eq!((seal.bundle, seal.profile, seal.sealed_at), (None, None, None));
        let mut forged = record(&json!({}));
        forged.record["checkpoint"]["step"] = json!(41);
        assert!(read(&forged).expect_err("refused").contains("manifest root"));
    }
}
