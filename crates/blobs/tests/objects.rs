//! The object-store tier against a folder, memory, and a real S3 server behind a proxy that cuts, refuses and delays.

#[path = "objects/proxy.rs"]
mod proxy;
#[path = "objects/s3.rs"]
mod s3;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use outlast_blobs::objects::{
    CommitRecord, FoundState, GetError, ObjectLimits, ObjectTier, PublishError, Published, PutError,
    PutReport, RemoveError, RequestError, StoreOptions, StoreUrl,
};
use outlast_blobs::{
    BundleStore, Manifest, ManifestShard, OpenError, ReadError, ShardKey, ShardMeta, ShardStore,
};
use outlast_types::{CheckpointSeq, ClusterId, JobId};
use proxy::Fault;
use s3::S3;

const EXTENT: u64 = 4096;
const PART: u64 = 2 * EXTENT;

fn limits() -> ObjectLimits {
    ObjectLimits {
        part_bytes_min: PART,
        parts_at_once: 3,
        bytes_at_once: 4 * PART,
        tries_max: 4,
        pause_first: Duration::from_millis(5),
        pause_max: Duration::from_millis(50),
        ..ObjectLimits::default()
    }
}

fn tier(url: &str, vars: Vec<(String, String)>, limits: ObjectLimits) -> ObjectTier {
    let url: StoreUrl = url.parse().expect("a URL");
    ObjectTier::open_with_limits(&url, &StoreOptions::from_vars(vars), limits).expect("opens")
}

fn memory() -> ObjectTier {
    tier("memory:///", Vec::new(), limits())
}

/// A bucket that is a folder, and the folder's path.
fn folder() -> (ObjectTier, tempfile::TempDir) {
    // Without the leading dot of its own default: object names have rules.
    let dir = tempfile::Builder::new().prefix("bucket").tempdir().expect("a folder");
    (tier(&format!("file://{}/ck", dir.path().display()), Vec::new(), limits()), dir)
}

fn on_s3(s3: &S3) -> ObjectTier {
    tier("s3://bucket/team/run", s3.vars(), limits())
}

struct Disk {
    dir: tempfile::TempDir,
    store: ShardStore,
}

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ShardStore::open_with_extents(dir.path(), EXTENT).expect("a store");
        Self { dir, store }
    }

    fn shard(&self, seq: u64, rank: u32, len: usize) -> ShardMeta {
        let mut writer = self.store.begin(Some(len as u64)).expect("begun");
        writer.write_all(&content(len, rank)).expect("written");
        writer.finish(&key(seq, rank)).expect("finished")
    }

    fn note(&self, shard: &ShardMeta) -> PathBuf {
        let folder = self.dir.path().join("blobs").join(shard.key.attempt.file_name());
        folder.join(shard.key.seq.to_string()).join(format!("{}-{}.upload", shard.key.rank, shard.root))
    }

    /// Numbers (from zero) of the parts that the note says the store has.
    fn noted_parts(&self, shard: &ShardMeta) -> Vec<u64> {
        let Ok(bytes) = fs::read(self.note(shard)) else { return Vec::new() };
        let note: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        let parts = note["parts"].as_object().expect("parts");
        parts.keys().map(|part| part.parse().expect("a number")).collect()
    }

    /// As after a restart of the process.
    async fn reopen(self) -> Self {
        let Self { dir, store } = self;
        drop(store);
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match ShardStore::open_with_extents(dir.path(), EXTENT) {
                Ok(store) => return Self { dir, store },
                // Blocking work that was under way still holds it.
                Err(OpenError::InUse { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(err) => panic!("{err}"),
            }
        }
    }
}

fn key(seq: u64, rank: u32) -> ShardKey {
    let attempt = "j7/0@1.3".parse().expect("valid");
    ShardKey { job: JobId(7), attempt, seq: CheckpointSeq(seq), rank }
}

fn content(len: usize, rank: u32) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(2_654_435_761 + u64::from(rank)) >> 7) as u8).collect()
}

fn manifest(shards: &[&ShardMeta]) -> Manifest {
    let ShardKey { job, attempt, seq, .. } = shards[0].key;
    let world_size = shards.len() as u32;
    let shards = shards.iter().map(|meta| ManifestShard {
        rank: meta.key.rank,
        root: meta.root,
        size_bytes: meta.size_bytes,
    });
    Manifest { job, attempt, seq, step: 40, world_size, shards: shards.collect() }
}

fn record(manifest: &Manifest) -> CommitRecord {
    CommitRecord {
        cluster: ClusterId::new("home").expect("valid"),
        job: manifest.job,
        job_name: "digits".to_owned(),
        manifest_root: manifest.root(),
        record: serde_json::json!({"checkpoint": {"step": manifest.step}}),
    }
}

async fn put_all(tier: &ObjectTier, disk: &Disk, shards: &[&ShardMeta]) {
    for shard in shards {
        tier.put_shard(&disk.store, shard).await.expect("put");
    }
}

/// Put, published, listed, fetched by another node, verified, removed: the life of a checkpoint.
async fn live(tier: &ObjectTier) {
    let disk = Disk::new();
    let sizes = [0, 1, EXTENT as usize, PART as usize, PART as usize + 1, 9 * PART as usize + 77];
    let shards: Vec<ShardMeta> =
        sizes.iter().enumerate().map(|(rank, len)| disk.shard(1, rank as u32, *len)).collect();
    for shard in &shards {
        let parts = shard.size_bytes.div_ceil(PART).max(1);
        let report = tier.put_shard(&disk.store, shard).await.expect("put");
        assert_eq!(report, PutReport { parts, parts_sent: parts }, "{} bytes", shard.size_bytes);
        assert!(!disk.note(shard).exists(), "nothing is left to go on with");
        let again = tier.put_shard(&disk.store, shard).await.expect("put");
        assert_eq!(again.parts_sent, 0, "what is there is not sent again");
    }
    let all: Vec<&ShardMeta> = shards.iter().collect();
    let (manifest, stranger) = (manifest(&all), manifest(&all[..1]));
    assert!(matches!(tier.publish(&manifest, &record(&stranger)).await, Err(PublishError::Record)));
    for _ in 0..2 {
        assert_eq!(
            tier.publish(&manifest, &record(&manifest)).await.expect("published"),
            Published::Committed
        );
    }

    let found = tier.list_committed().await.expect("listed");
    let [found] = found.as_slice() else { panic!("{found:?}") };
    let FoundState::Committed(committed) = &found.state else { panic!("{found:?}") };
    assert_eq!((&committed.record, &committed.manifest.root()), (&record(&manifest), &manifest.root()));

    let other = Disk::new();
    for shard in &shards {
        tier.verify_shard(&shard.key, shard.root, shard.size_bytes).await.expect("sound");
        let got = tier
            .get_shard(&other.store, &shard.key, shard.root, shard.size_bytes, |_| None)
            .await
            .expect("got");
        assert_eq!(&got, shard);
        other.store.verify(&shard.key, shard.root).expect("sound");
        tier.look(&shard.key, shard.root, shard.size_bytes).await.expect("there");
        let passed_on = passed_on(tier, shard).await.expect("sound");
        assert_eq!(blake3::hash(&passed_on).as_bytes(), &shard.root.0);
    }
    let none = tier.look(&key(1, 77), shards[0].root, 0).await;
    assert!(matches!(none, Err(GetError::Missing)), "{none:?}");
    let none = tier.verify_shard(&key(1, 77), shards[0].root, 0).await;
    assert!(matches!(none, Err(GetError::Missing)), "{none:?}");

    for _ in 0..2 {
        tier.remove(&manifest, &record(&manifest)).await.expect("removed");
        assert_eq!(tier.list_committed().await.expect("listed"), []);
    }
    let gone = tier.verify_shard(&shards[5].key, shards[5].root, shards[5].size_bytes).await;
    assert!(matches!(gone, Err(GetError::Missing)), "{gone:?}");
}

/// What a receiver gets that takes one range after the other.
async fn passed_on(tier: &ObjectTier, shard: &ShardMeta) -> Result<Vec<u8>, GetError> {
    let (sender, mut ranges) = tokio::sync::mpsc::channel(1);
    let read = async move { tier.read_shard(&shard.key, shard.root, shard.size_bytes, &sender).await };
    let take = async {
        let mut bytes = Vec::new();
        while let Some(range) = ranges.recv().await {
            bytes.extend_from_slice(&range.expect("errors are told at the end"));
        }
        bytes
    };
    let (read, bytes) = tokio::join!(read, take);
    read.map(|()| bytes)
}

#[tokio::test]
async fn a_checkpoint_lives_and_goes_in_memory() {
    live(&memory()).await;
}

#[tokio::test]
async fn a_checkpoint_lives_and_goes_in_a_folder() {
    let (tier, dir) = folder();
    live(&tier).await;
    let left: Vec<PathBuf> = files(dir.path());
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_checkpoint_lives_and_goes_on_a_real_s3_server() {
    let Some(s3) = S3::start().await else { return };
    live(&on_s3(&s3)).await;
    bundle_there_and_back(&on_s3(&s3)).await;
    let lines = s3.proxy.forwarded();
    let at = |word: &str| lines.iter().position(|line| line.starts_with("PUT") && line.ends_with(word));
    assert!(at("/MANIFEST") < at("/COMMIT") && at("/MANIFEST").is_some(), "{lines:?}");
    let gone = |word: &str| lines.iter().position(|line| line.starts_with("DELETE") && line.contains(word));
    assert!(gone("/COMMIT") < gone("/MANIFEST") && gone("/MANIFEST") < gone("/0-"), "{lines:?}");
}

fn files(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return vec![root.to_owned()] };
    entries.flat_map(|entry| files(&entry.expect("an entry").path())).collect()
}

#[tokio::test]
async fn nothing_is_published_over_incomplete_data() {
    let (tier, dir) = folder();
    let disk = Disk::new();
    let shards = [disk.shard(1, 0, 100), disk.shard(1, 1, 30_000), disk.shard(1, 2, 100)];
    let manifest = manifest(&shards.iter().collect::<Vec<_>>());
    put_all(&tier, &disk, &[&shards[1]]).await;
    let publish = || async { tier.publish(&manifest, &record(&manifest)).await.expect("an answer") };
    assert_eq!(publish().await, Published::Incomplete { ranks: vec![0, 2] });
    put_all(&tier, &disk, &[&shards[0], &shards[2]]).await;
    // There, but not whole.
    let data = dir.path().join("ck").join(tier.key_of(&shards[1].key, shards[1].root));
    fs::write(&data, &content(30_000, 1)[..29_999]).expect("cut");
    assert_eq!(publish().await, Published::Incomplete { ranks: vec![1] });
    assert!(!data.with_file_name("MANIFEST").exists() && !data.with_file_name("COMMIT").exists());
    let found = tier.list_committed().await.expect("listed");
    assert!(matches!(&found[0].state, FoundState::Incomplete { reason } if reason.contains("COMMIT")));
    let report = tier.put_shard(&disk.store, &shards[1]).await.expect("put");
    assert!(report.parts_sent > 0, "an object of another size is not taken for done");
    assert_eq!(publish().await, Published::Committed);
}

#[tokio::test]
async fn a_commit_is_never_replaced() {
    let (tier, dir) = folder();
    let disk = Disk::new();
    let (first, second) = (disk.shard(1, 0, 100), disk.shard(1, 0, 200));
    put_all(&tier, &disk, &[&first, &second]).await;
    let (ours, theirs) = (manifest(&[&first]), manifest(&[&second]));
    tier.publish(&ours, &record(&ours)).await.expect("published");
    let other_words = CommitRecord { record: serde_json::json!({"holders": 2}), ..record(&ours) };
    assert_eq!(tier.publish(&ours, &other_words).await.expect("the same content"), Published::Committed);
    let bytes = || files(dir.path()).iter().map(|path| fs::read(path).expect("read")).collect::<Vec<_>>();
    let before = bytes();
    let other = tier.publish(&theirs, &record(&theirs)).await;
    assert!(
        matches!(&other, Err(PublishError::Conflict { path, .. }) if path.ends_with("MANIFEST")),
        "{other:?}"
    );
    let stranger = CommitRecord { cluster: ClusterId::new("away").expect("valid"), ..record(&ours) };
    let stranger = tier.publish(&ours, &stranger).await;
    assert!(
        matches!(&stranger, Err(PublishError::Conflict { reason, .. }) if reason.contains("home")),
        "{stranger:?}"
    );
    assert_eq!(bytes(), before);
}

#[tokio::test]
async fn nothing_of_another_cluster_or_checkpoint_is_removed() {
    let (tier, dir) = folder();
    let disk = Disk::new();
    let (first, second) = (disk.shard(1, 0, 100), disk.shard(1, 0, 200));
    put_all(&tier, &disk, &[&first, &second]).await;
    let (ours, theirs) = (manifest(&[&first]), manifest(&[&second]));
    let home = record(&ours);
    let away = CommitRecord { cluster: ClusterId::new("away").expect("valid"), ..home.clone() };
    tier.publish(&ours, &home).await.expect("published");
    let (commit, before) = (dir.path().join("ck/blobs/j7.0.1.3/ck1/COMMIT"), files(dir.path()).len());
    let refused = |removed: Result<(), RemoveError>, name: &str| {
        let told = matches!(&removed, Err(RemoveError::Conflict { path }) if path.ends_with(name));
        assert!(told && files(dir.path()).len() == before, "{removed:?}");
    };
    refused(tier.remove(&ours, &away).await, "COMMIT");
    refused(tier.remove(&theirs, &home).await, "COMMIT");
    let sound = fs::read(&commit).expect("bytes");
    fs::write(&commit, &sound[1..]).expect("damaged");
    refused(tier.remove(&ours, &home).await, "COMMIT");
    fs::write(&commit, &sound).expect("mended");
    let index = commit.with_file_name("MANIFEST");
    fs::write(&index, theirs.encode()).expect("another's");
    refused(tier.remove(&ours, &home).await, "MANIFEST");
    fs::write(&index, ours.encode()).expect("mended");
    tier.remove(&ours, &home).await.expect("removed");
    assert_eq!(files(dir.path()), [dir.path().join("ck").join(tier.key_of(&second.key, second.root))]);
}

#[tokio::test]
async fn a_cluster_publishes_and_removes_what_the_one_before_it_committed() {
    let (tier, _dir) = folder();
    let disk = Disk::new();
    let shard = disk.shard(1, 0, 100);
    put_all(&tier, &disk, &[&shard]).await;
    let manifest = manifest(&[&shard]);
    let home = record(&manifest);
    let next = CommitRecord {
        cluster: ClusterId::new("next").expect("valid"),
        record: serde_json::json!({"predecessors": ["before", "home"]}),
        ..home.clone()
    };
    assert_eq!(tier.publish(&manifest, &home).await.expect("published"), Published::Committed);
    assert_eq!(tier.publish(&manifest, &next).await.expect("the same"), Published::Committed);
    tier.remove(&manifest, &next).await.expect("removed");
    // An agent that has the old name beside its bytes meets what its neighbour wrote under the new one.
    put_all(&tier, &disk, &[&shard]).await;
    assert_eq!(tier.publish(&manifest, &next).await.expect("published"), Published::Committed);
    assert_eq!(tier.publish(&manifest, &home).await.expect("the same"), Published::Committed);
    tier.remove(&manifest, &home).await.expect("removed");
    assert_eq!(tier.list_committed().await.expect("listed"), []);
}

/// Bundles of no, one and several parts go there and back; what the store has is not what is believed of it.
async fn bundle_there_and_back(tier: &ObjectTier) {
    let dir = tempfile::tempdir().expect("a folder");
    let (here, there) = (dir.path().join("here"), dir.path().join("there"));
    let (here, there) =
        (BundleStore::open(&here).expect("a store"), BundleStore::open(&there).expect("a store"));
    for len in [0, 100, PART as usize, 3 * PART as usize + 5] {
        let (digest, size) = here.put(content(len, 3).as_slice(), None, u64::MAX).expect("kept");
        assert!(!tier.has_bundle(digest, size).await.expect("asked"));
        let missing = tier.get_bundle(&there, digest, size).await;
        assert!(matches!(missing, Err(GetError::Missing)), "{missing:?}");
        for _ in 0..2 {
            tier.put_bundle(&here, digest).await.expect("put");
        }
        assert!(tier.has_bundle(digest, size).await.expect("asked"));
        assert!(!tier.has_bundle(digest, size + 1).await.expect("asked"));
        tier.get_bundle(&there, digest, size).await.expect("got");
        assert_eq!(there.open_bundle(&digest).expect("whole").size_bytes(), size);
    }
}

#[tokio::test]
async fn a_bundle_goes_into_a_folder_and_back_and_a_damaged_one_is_not_kept() {
    bundle_there_and_back(&memory()).await;
    let (tier, dir) = folder();
    bundle_there_and_back(&tier).await;
    let other = tempfile::tempdir().expect("a folder");
    let store = BundleStore::open(other.path()).expect("a store");
    for path in files(dir.path()) {
        let digest = path.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a digest");
        let sound = fs::read(&path).expect("bytes");
        let Some(middle) = sound.len().checked_sub(1).map(|last| last / 2) else { continue };
        let mut flipped = sound.clone();
        flipped[middle] ^= 1;
        fs::write(&path, &flipped).expect("damaged");
        let got = tier.get_bundle(&store, digest, sound.len() as u64).await;
        assert!(matches!(got, Err(GetError::Corrupt { .. })), "{got:?}");
        assert!(!store.has(&digest), "nothing unverified gets a name");
    }
}

#[tokio::test]
async fn every_flipped_bit_in_the_bucket_is_seen() {
    let (tier, dir) = folder();
    let disk = Disk::new();
    let shards = [disk.shard(1, 0, 30_000), disk.shard(1, 1, 100)];
    put_all(&tier, &disk, &[&shards[0], &shards[1]]).await;
    let manifest = manifest(&[&shards[0], &shards[1]]);
    tier.publish(&manifest, &record(&manifest)).await.expect("published");
    let other = Disk::new();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let paths = files(dir.path());
    assert_eq!(paths.len(), 5);
    for round in 0..200 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let path = &paths[round % paths.len()];
        let sound = fs::read(path).expect("bytes");
        let bit = (random >> 20) as usize % (sound.len() * 8);
        let mut flipped = sound.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(path, &flipped).expect("damaged");
        let name = path.file_name().and_then(|name| name.to_str()).expect("text");
        let (listed, of_rank) =
            (tier.list_committed().await.expect("listed"), usize::from(name.starts_with('1')));
        let shard = &shards[of_rank];
        let got = tier.get_shard(&other.store, &shard.key, shard.root, shard.size_bytes, |_| None).await;
        if name == "MANIFEST" || name == "COMMIT" {
            other.store.remove(&shard.key, shard.root).expect("removed");
            assert!(matches!(&listed[0].state, FoundState::Damaged { reason } if reason.contains(name)));
        } else if name.ends_with(".ext") {
            // Lost hashes cost nothing but the chance to find the bad extent: the root still proves the whole.
            assert_eq!(&got.expect("sound"), shard);
            other.store.remove(&shard.key, shard.root).expect("removed");
        } else {
            let extent = Some((bit / 8) as u64 / EXTENT);
            assert!(matches!(&got, Err(GetError::Corrupt { extent: found }) if *found == extent), "{got:?}");
            let verified = tier.verify_shard(&shard.key, shard.root, shard.size_bytes).await;
            assert!(matches!(verified, Err(GetError::Corrupt { .. })), "{verified:?}");
            let passed_on = passed_on(&tier, shard).await;
            assert!(matches!(passed_on, Err(GetError::Corrupt { .. })), "{passed_on:?}");
            assert_eq!(other.store.list(), [], "nothing unverified gets a name");
        }
        fs::write(path, &sound).expect("mended");
    }
    // Without its hashes, a shard of many ranges is verified as a whole, and still gets no name.
    let named = |name: &str| {
        let is_it = |path: &&PathBuf| path.to_str().is_some_and(|path| path.ends_with(name));
        paths.iter().find(is_it).expect("there")
    };
    fs::remove_file(named(".ext")).expect("gone");
    let data = named(&shards[0].root.to_string());
    let mut bytes = fs::read(data).expect("bytes");
    bytes[20_000] ^= 1;
    fs::write(data, bytes).expect("damaged");
    let got =
        tier.get_shard(&other.store, &shards[0].key, shards[0].root, shards[0].size_bytes, |_| None).await;
    assert!(matches!(got, Err(GetError::Corrupt { extent: None })), "{got:?}");
    assert_eq!(other.store.list(), []);
    let verified = tier.verify_shard(&shards[0].key, shards[0].root, shards[0].size_bytes).await;
    assert!(matches!(verified, Err(GetError::Corrupt { extent: None })), "{verified:?}");

    fs::remove_file(named("MANIFEST")).expect("gone");
    let found = tier.list_committed().await.expect("listed");
    assert!(matches!(&found[0].state, FoundState::Damaged { reason } if reason.contains("MANIFEST")));
}

#[tokio::test]
async fn lost_data_and_copies_at_a_wrong_place_do_not_count() {
    let (tier, dir) = folder();
    let disk = Disk::new();
    let (first, second) = (disk.shard(1, 0, 100), disk.shard(2, 0, 100));
    for shard in [&first, &second] {
        put_all(&tier, &disk, &[shard]).await;
        let manifest = manifest(&[shard]);
        tier.publish(&manifest, &record(&manifest)).await.expect("published");
    }
    let blobs = dir.path().join("ck/blobs");
    fs::create_dir_all(blobs.join("not-ours/ck1")).expect("a stranger");
    fs::rename(blobs.join("j7.0.1.3/ck2"), blobs.join("j7.0.1.3/ck9")).expect("moved");
    let data = dir.path().join("ck").join(tier.key_of(&first.key, first.root));
    fs::remove_file(data).expect("lost");
    let found = tier.list_committed().await.expect("listed");
    let seqs: Vec<u64> = found.iter().map(|found| found.seq.0).collect();
    assert_eq!(seqs, [1, 9]);
    assert!(matches!(&found[0].state, FoundState::Incomplete { reason } if reason.contains("rank 0")));
    assert!(matches!(&found[1].state, FoundState::Damaged { reason } if reason.contains("copied")));
}

#[tokio::test]
async fn damaged_bytes_on_the_own_disk_never_reach_the_store() {
    for tier in [memory(), folder().0] {
        let disk = Disk::new();
        for len in [100, 30_000] {
            let shard = disk.shard(1, 0, len);
            let path = disk.note(&shard).with_extension("");
            let mut bytes = fs::read(&path).expect("bytes");
            bytes[len - 1] ^= 1;
            fs::write(&path, bytes).expect("damaged");
            let put = tier.put_shard(&disk.store, &shard).await;
            let corrupt = matches!(put, Err(PutError::Read { source: ReadError::Corrupt { .. } }));
            assert!(corrupt, "{put:?}");
            let there = tier.verify_shard(&shard.key, shard.root, shard.size_bytes).await;
            assert!(matches!(there, Err(GetError::Missing)), "{there:?}");
        }
    }
}

#[tokio::test]
async fn an_upload_outlives_refusals_cut_connections_and_slow_answers() {
    let Some(s3) = S3::start().await else { return };
    let short = ObjectLimits { request_timeout: Duration::from_secs(2), ..limits() };
    let tier = tier("s3://bucket/team/run", s3.vars(), short);
    let disk = Disk::new();
    let shard = disk.shard(1, 0, 6 * PART as usize + 5);
    let late = Fault::Slow(Duration::from_secs(3600));
    s3.proxy.add(&["POST", "uploads"], Fault::Status(503), 2);
    s3.proxy.add(&["partNumber=1&"], Fault::Status(503), 3);
    s3.proxy.add(&["partNumber=2&"], Fault::CutRequest(PART as usize / 2), 2);
    s3.proxy.add(&["partNumber=3&"], late, 1);
    s3.proxy.add(&["partNumber=4&"], Fault::CutAnswer(20), 2);
    // The store completes it, and nobody hears of that: the next try finds no such upload.
    s3.proxy.add(&["POST", "uploadId"], Fault::CutAnswer(0), 1);
    s3.proxy.add(&["PUT", "MANIFEST"], Fault::CutAnswer(0), 1);
    s3.proxy.add(&["PUT", "COMMIT"], Fault::CutAnswer(0), 1);
    s3.proxy.add(&["GET", ".ext"], Fault::Status(503), 1);
    s3.proxy.add(&["GET", ".ext"], Fault::Slow(Duration::ZERO), 1);
    // Fewer than the tries of one request, should all of them meet the same range.
    s3.proxy.add(&["GET", "/0-"], Fault::CutAnswer(300), 2);
    s3.proxy.add(&["GET", "/0-"], Fault::Status(503), 1);
    tier.put_shard(&disk.store, &shard).await.expect("put");
    let manifest = manifest(&[&shard]);
    let published = tier.publish(&manifest, &record(&manifest)).await.expect("published");
    assert_eq!(published, Published::Committed);
    let other = Disk::new();
    let got =
        tier.get_shard(&other.store, &shard.key, shard.root, shard.size_bytes, |_| None).await.expect("got");
    assert_eq!((got, s3.proxy.unused()), (shard, Vec::new()), "every fault happened");
}

#[tokio::test]
async fn a_range_that_was_damaged_on_the_way_is_asked_for_again() {
    let Some(s3) = S3::start().await else { return };
    let (tier, disk, other) = (on_s3(&s3), Disk::new(), Disk::new());
    let shard = disk.shard(1, 0, 5 * PART as usize);
    tier.put_shard(&disk.store, &shard).await.expect("put");
    let data = tier.key_of(&shard.key, shard.root);
    let get = format!("GET /bucket/{data}");
    // The first answer to this is the hashes': their name begins alike.
    s3.proxy.add(&[&format!("{get}.ext")], Fault::Slow(Duration::ZERO), 1);
    s3.proxy.add(&[&get], Fault::FlipAnswer, 1);
    let got =
        tier.get_shard(&other.store, &shard.key, shard.root, shard.size_bytes, |_| None).await.expect("got");
    assert_eq!((got, s3.proxy.hits()), (shard.clone(), 2));
    other.store.remove(&shard.key, shard.root).expect("removed");

    s3.proxy.heal();
    s3.proxy.add(&[&format!("{get}.ext")], Fault::Slow(Duration::ZERO), 1);
    s3.proxy.add(&[&get], Fault::FlipAnswer, 1000);
    let got = tier.get_shard(&other.store, &shard.key, shard.root, shard.size_bytes, |_| None).await;
    assert!(matches!(got, Err(GetError::Corrupt { extent: Some(1) })), "{got:?}");
    assert_eq!(other.store.list(), []);
}

/// Part numbers (from zero) that the store was given.
fn parts_sent(s3: &S3) -> Vec<u64> {
    let number = |line: &String| {
        let (_, rest) = line.split_once("partNumber=")?;
        Some(rest.split('&').next()?.parse::<u64>().ok()? - 1)
    };
    let mut parts: Vec<u64> = s3.proxy.forwarded().iter().filter_map(number).collect();
    parts.sort_unstable();
    parts
}

#[tokio::test]
async fn a_restart_in_the_middle_goes_on_and_sends_no_finished_part_again() {
    let Some(s3) = S3::start().await else { return };
    let disk = Disk::new();
    let shard = disk.shard(1, 0, 9 * PART as usize + 5);
    // Part 5 (from zero) never gets an answer: the process "dies" while it waits.
    s3.proxy.add(&["partNumber=6&"], Fault::Slow(Duration::from_secs(3600)), 1000);
    let (tier, store, meta) = (on_s3(&s3), disk.store.clone(), shard.clone());
    let upload = tokio::spawn(async move { tier.put_shard(&store, &meta).await });
    let deadline = Instant::now() + Duration::from_secs(60);
    while disk.noted_parts(&shard).len() < 4 {
        assert!(Instant::now() < deadline, "no progress: {:?}", disk.noted_parts(&shard));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    upload.abort();
    assert!(upload.await.expect_err("ended").is_cancelled());
    let disk = disk.reopen().await;
    let done = disk.noted_parts(&shard);

    s3.proxy.heal();
    let report = on_s3(&s3).put_shard(&disk.store, &shard).await.expect("put");
    let sent = parts_sent(&s3);
    let wanted: Vec<u64> = (0..10).filter(|part| !done.contains(part)).collect();
    assert_eq!((report.parts, report.parts_sent, &sent), (10, wanted.len() as u64, &wanted), "had {done:?}");
    on_s3(&s3).verify_shard(&shard.key, shard.root, shard.size_bytes).await.expect("sound");
    assert!(!disk.note(&shard).exists());
}

#[tokio::test]
async fn an_unreachable_store_is_told_after_bounded_tries_and_loses_nothing() {
    let Some(s3) = S3::start().await else { return };
    let (tier, disk) = (on_s3(&s3), Disk::new());
    let shard = disk.shard(1, 0, 6 * PART as usize);
    s3.proxy.add(&["partNumber=4&"], Fault::Status(503), 1000);
    let put = tier.put_shard(&disk.store, &shard).await;
    let transient = matches!(put, Err(PutError::Request(RequestError::Transient { tries: 4, .. })));
    assert!(transient && s3.proxy.hits() == 4, "{put:?}");
    let manifest = manifest(&[&shard]);
    let published = tier.publish(&manifest, &record(&manifest)).await.expect("an answer");
    assert_eq!(published, Published::Incomplete { ranks: vec![0] });

    s3.proxy.add(&["bucket"], Fault::Status(503), 1000);
    assert!(matches!(
        tier.publish(&manifest, &record(&manifest)).await,
        Err(PublishError::Request(RequestError::Transient { .. }))
    ));
    let listed = tier.list_committed().await;
    assert!(matches!(listed, Err(RequestError::Transient { .. })), "unread is not empty: {listed:?}");
    let got = tier.get_shard(&disk.store, &shard.key, shard.root, shard.size_bytes, |_| None).await;
    assert!(matches!(got, Err(GetError::Transient { .. })), "unread is not missing: {got:?}");
    assert!(!s3.proxy.forwarded().iter().any(|line| line.contains("COMMIT") && line.starts_with("PUT")));

    s3.proxy.heal();
    let report = tier.put_shard(&disk.store, &shard).await.expect("put");
    assert!(report.parts_sent < report.parts, "{report:?}");
    assert_eq!(tier.publish(&manifest, &record(&manifest)).await.expect("published"), Published::Committed);
}

#[tokio::test]
async fn an_upload_that_is_of_no_use_any_more_is_ended_in_the_store() {
    let Some(s3) = S3::start().await else { return };
    let (tier, disk) = (on_s3(&s3), Disk::new());
    let shard = disk.shard(1, 0, 6 * PART as usize);
    s3.proxy.add(&["partNumber=4&"], Fault::Status(503), 1000);
    tier.put_shard(&disk.store, &shard).await.expect_err("unreachable");
    s3.proxy.heal();
    // Other parts than the noted ones: begun anew, and the old upload is ended.
    let larger = ObjectLimits { part_bytes_min: 2 * PART, ..limits() };
    let report = self::tier("s3://bucket/team/run", s3.vars(), larger).put_shard(&disk.store, &shard).await;
    assert_eq!(report.expect("put"), PutReport { parts: 3, parts_sent: 3 });
    let ended = || s3.proxy.forwarded().iter().filter(|line| line.starts_with("DELETE")).count();
    assert_eq!(ended(), 1);

    // Abandoned: the store forgets the parts, and so does this node.
    let shard = disk.shard(2, 0, 6 * PART as usize);
    s3.proxy.heal();
    s3.proxy.add(&["partNumber=4&"], Fault::Status(503), 1000);
    tier.put_shard(&disk.store, &shard).await.expect_err("unreachable");
    tier.abandon(&disk.store, &shard.key, shard.root).await;
    assert_eq!((ended(), disk.note(&shard).exists()), (1, false));

    // The store has forgotten the upload: it is begun anew without a word …
    tier.put_shard(&disk.store, &shard).await.expect_err("unreachable");
    s3.proxy.heal();
    let note: serde_json::Value =
        serde_json::from_slice(&fs::read(disk.note(&shard)).expect("a note")).expect("JSON");
    let id = note["upload_id"].as_str().expect("an id");
    s3.proxy.add(&["PUT", id], Fault::Status(404), 1000);
    assert_eq!(tier.put_shard(&disk.store, &shard).await.expect("put").parts, 6);
    tier.verify_shard(&shard.key, shard.root, shard.size_bytes).await.expect("sound");
}

#[tokio::test]
async fn an_upload_without_any_progress_is_begun_anew_after_a_while() {
    let Some(s3) = S3::start().await else { return };
    let (tier, disk) = (on_s3(&s3), Disk::new());
    let shard = disk.shard(1, 0, 6 * PART as usize);
    s3.proxy.add(&["partNumber=4&"], Fault::Status(503), 1000);
    tier.put_shard(&disk.store, &shard).await.expect_err("unreachable");
    s3.proxy.heal();
    let note: serde_json::Value =
        serde_json::from_slice(&fs::read(disk.note(&shard)).expect("a note")).expect("JSON");
    // Some servers answer so for an upload that they have forgotten.
    s3.proxy.add(&[note["upload_id"].as_str().expect("an id")], Fault::Status(500), 1000);
    for _ in 0..3 {
        tier.put_shard(&disk.store, &shard).await.expect_err("no such upload");
    }
    let report = tier.put_shard(&disk.store, &shard).await.expect("put");
    assert_eq!(report, PutReport { parts: 6, parts_sent: 6 });
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_an_error_and_never_an_empty_one() {
    let Some(s3) = S3::start().await else { return };
    let (tier, disk) = (tier("s3://nobody/x", s3.vars(), limits()), Disk::new());
    for len in [10, 30_000] {
        let put = tier.put_shard(&disk.store, &disk.shard(1, 0, len)).await;
        assert!(matches!(put, Err(PutError::Request(RequestError::Refused { .. }))), "{put:?}");
    }
    let listed = tier.list_committed().await;
    assert!(matches!(listed, Err(RequestError::Missing { .. })), "{listed:?}");
    let shard = disk.shard(1, 0, 10);
    let got = tier.get_shard(&disk.store, &shard.key, shard.root, shard.size_bytes, |_| None).await;
    assert!(matches!(got, Err(GetError::Refused { .. })), "no reason to give the checkpoint up: {got:?}");
}

#[tokio::test]
async fn no_error_tells_a_secret() {
    let Some(s3) = S3::start().await else { return };
    s3.proxy.add(&["bucket"], Fault::Status(403), 1);
    s3.proxy.add(&["bucket"], Fault::Status(503), 1000);
    let tier = on_s3(&s3);
    for wanted in ["refuses", "4 tries"] {
        let error = tier.list_committed().await.expect_err("told");
        let text = format!("{error} {error:?}");
        assert!(text.contains(wanted) && !text.contains("secret-of-the-test"), "{text}");
    }
}

#[test]
fn options_that_make_no_sense_are_refused_and_an_unusable_folder_too() {
    let vars = vec![("AWS_ALLOW_HTTP".to_owned(), "perhaps".to_owned())];
    let url: StoreUrl = "s3://bucket/x".parse().expect("a URL");
    let err = ObjectTier::open(&url, &StoreOptions::from_vars(vars)).err().expect("refused");
    assert!(err.to_string().contains("AWS_"), "{err}");
    let url: StoreUrl = "file:///proc/nothing/here".parse().expect("a URL");
    let err: io::Result<()> =
        ObjectTier::open(&url, &StoreOptions::default()).map(drop).map_err(io::Error::other);
    assert!(err.is_err());
}
