//! The object store's part, with a folder as the store: what goes there, what does not, and what is taken away again.

use outlast_blobs::ShardKey;
use outlast_blobs::manifest::{Manifest, ManifestShard};
use outlast_control::state::{Checkpoint, CheckpointState, ShardRecord};
use outlast_types::{Digest, JobId, WallTime};

use super::*;

struct Stage {
    fake: Fake,
    tmp: tempfile::TempDir,
    agent: RunningAgent,
    worker: WorkerServiceClient<Channel>,
    /// In the order of their steps.
    saved: Vec<Saved>,
}

struct Saved {
    key: ShardKey,
    step: u64,
    root: Digest,
    size_bytes: u64,
}

/// One rank has saved two checkpoints; both are sealed, and nothing is in the store.
async fn two_sealed() -> Stage {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    let bucket = tmp.path().join("bucket");
    std::fs::create_dir(&bucket).expect("made");
    let store = Some(format!("file://{}", bucket.display()));
    let dir = tmp.path().join("n1");
    fake.desire("n1", 5, vec![shell(A1, LONG)]);
    let config = AgentConfig { store, ..config("n1", &dir, &[&fake], keeper_exe()) };
    let agent = Agent::start(config).await.expect("starts");
    eventually("started", || has(&fake, "n1", started(A1))).await;
    let mut worker = socket(&dir, A1).await;
    let mut saved = Vec::new();
    for step in [7, 8] {
        let file = tmp.path().join("weights");
        std::fs::write(&file, format!("weights of step {step}")).expect("written");
        let directory = file.to_string_lossy().into_owned();
        let request = worker_pb::SaveCheckpointRequest { step, directory, in_turn: false };
        let answer = worker.save_checkpoint(request).await.expect("saved").into_inner();
        let (attempt, seq) = (A1.parse().expect("valid"), answer.checkpoint.parse().expect("a name"));
        let key = ShardKey { job: JobId(1), attempt, seq, rank: 0 };
        let (root, size_bytes) = (answer.root.parse().expect("a digest"), answer.size_bytes);
        saved.push(Saved { key, step, root, size_bytes });
    }
    let stage = Stage { fake, tmp, agent, worker, saved };
    stage.tell(["sealed", "sealed"]);
    for saved in &stage.saved {
        let seal = stage.file(saved).with_extension("seal");
        eventually("its seal is beside it", || seal.exists()).await;
    }
    stage
}

/// As a log writes it that sealed this one shard.
fn seal(saved: &Saved) -> String {
    let Saved { key, step, root, size_bytes } = *saved;
    let manifest = Manifest {
        job: key.job,
        attempt: key.attempt,
        seq: key.seq,
        step,
        world_size: 1,
        shards: vec![ManifestShard { rank: 0, root, size_bytes }],
    };
    let (holders, orders, failed_copies) = (Vec::new(), Vec::new(), Vec::new());
    let checkpoint = Checkpoint {
        seq: key.seq,
        step,
        attempt: key.attempt,
        world_size: 1,
        state: CheckpointState::Sealed,
        opened_at: WallTime(1),
        sealed_at: Some(WallTime(2)),
        shards: vec![ShardRecord {
            rank: 0,
            root,
            size_bytes,
            holders,
            orders,
            failed_copies,
            copies_failed: 0,
        }],
        manifest_root: Some(manifest.root()),
        durability: None,
        degraded: false,
        proven: false,
        pinned: false,
        stale: false,
        stored_at: None,
        reason: None,
    };
    serde_json::json!({"cluster_id": CLUSTER, "job_name": "kept", "checkpoint": checkpoint}).to_string()
}

impl Stage {
    /// The shard on the node's disk.
    fn file(&self, saved: &Saved) -> PathBuf {
        let below = self.tmp.path().join("n1/shards/blobs").join(saved.key.attempt.file_name());
        below.join(saved.key.seq.to_string()).join(format!("0-{}", saved.root))
    }

    /// Whether the bucket has the shard, and whether its checkpoint is committed there.
    fn in_bucket(&self, saved: &Saved) -> (bool, bool) {
        let files = walk(&self.tmp.path().join("bucket"));
        let folder =
            |path: &&PathBuf| path.parent().is_some_and(|dir| dir.ends_with(saved.key.seq.to_string()));
        let has = |name: &str| files.iter().filter(folder).any(|path| path.ends_with(name));
        (has(&format!("0-{}", saved.root)), has("COMMIT"))
    }

    /// What the log says of the two.
    fn tell(&self, states: [&str; 2]) {
        let update = |(saved, state): (&Saved, &str)| pb::CheckpointUpdate {
            job: saved.key.job.to_string(),
            checkpoint: saved.key.seq.to_string(),
            state: state.to_owned(),
            index: 9,
            seal: if state == "sealed" { seal(saved) } else { String::new() },
        };
        let updates: Vec<_> = self.saved.iter().zip(states).map(update).collect();
        self.fake.change(|book| book.nodes.get_mut("n1").expect("known").updates = updates);
    }

    /// Orders both to be put into the store.
    fn order(&self, index: u64) {
        let order = |saved: &Saved| pb::ShardOrder {
            task: "store".to_owned(),
            attempt: saved.key.attempt.to_string(),
            checkpoint: saved.key.seq.to_string(),
            rank: 0,
            root: saved.root.0.to_vec(),
            size_bytes: saved.size_bytes,
            ..Default::default()
        };
        let (workers, orders) = (vec![shell(A1, LONG)], self.saved.iter().map(order).collect());
        self.fake.change(|book| {
            let node = book.nodes.get_mut("n1").expect("known");
            node.desired = pb::DesiredState { index, workers, orders };
            node.assignments_index = index;
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_gave_up_does_not_go_into_the_store_though_an_order_says_so() {
    let mut stage = two_sealed().await;
    stage.tell(["quarantined", "sealed"]);
    let checkpoint = stage.saved[0].key.seq.to_string();
    let over = async |worker: &mut WorkerServiceClient<Channel>| {
        let request = worker_pb::WaitCheckpointRequest { checkpoint: checkpoint.clone() };
        !worker.wait_checkpoint(request).await.expect("answers").into_inner().sealed
    };
    let began = std::time::Instant::now();
    while !over(&mut stage.worker).await {
        assert!(began.elapsed() < PATIENCE, "the agent does not hear of it");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // Given before that was decided, and on its way since.
    stage.order(6);
    let [first, second] = &stage.saved[..] else { panic!("two were saved") };
    eventually("the other one is in the store", || stage.in_bucket(second) == (true, true)).await;
    beats(&stage.fake, "n1").await;
    assert_eq!(stage.in_bucket(first), (false, false));
    assert!(stage.file(first).exists(), "what is quarantined is kept");
    stage.agent.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_retired_leaves_the_store_unless_its_seal_is_gone() {
    let stage = two_sealed().await;
    stage.order(6);
    let [first, second] = &stage.saved[..] else { panic!("two were saved") };
    let all_stored = || [first, second].iter().all(|saved| stage.in_bucket(saved) == (true, true));
    eventually("both are in the store", all_stored).await;
    std::fs::remove_file(stage.file(first).with_extension("seal")).expect("removed");
    stage.tell(["retired", "retired"]);
    let gone = || [first, second].iter().all(|saved| !stage.file(saved).exists());
    eventually("neither is on the disk", gone).await;
    assert_eq!(stage.in_bucket(second), (false, false));
    // Nothing here says any more what it consists of: whoever has its seal may take it away.
    assert_eq!(stage.in_bucket(first), (true, true));
    stage.agent.shutdown(StopWorkers::Yes).await;
}
