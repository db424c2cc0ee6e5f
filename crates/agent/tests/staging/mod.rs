//! Saving from memory, with the test in the worker's place: its process only sleeps, so that it can die at any moment.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outlast_agent::{RunningAgent, StopWorkers};
use outlast_proto::node::v1 as pb;
use outlast_proto::status::Failure;
use outlast_proto::worker::v1 as worker_pb;
use outlast_proto::worker::v1::worker_service_client::WorkerServiceClient;
use outlast_staging::{DATA_AT, Parts, SlotHeader, SlotState};
use tonic::Code;
use tonic::transport::Channel;

use super::fake::{Fake, OpenRule, eventually, shell};
use super::{A1, has, released, socket, start, started, walk};

const UNTIL_TOLD: &str = "while [ ! -e end ]; do sleep 0.05; done; exit 1";
const WEIGHTS: &[u8] = &[7; 10_000];

struct Stage {
    fake: Fake,
    tmp: tempfile::TempDir,
    agent: RunningAgent,
    worker: WorkerServiceClient<Channel>,
}

async fn stage_with(worker: pb::DesiredWorker) -> Stage {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    fake.desire("n1", 5, vec![worker]);
    let agent = start("n1", tmp.path(), &[&fake]).await;
    eventually("started", || has(&fake, "n1", started(A1))).await;
    let worker = socket(tmp.path(), A1).await;
    Stage { fake, tmp, agent, worker }
}

async fn stage() -> Stage {
    stage_with(shell(A1, UNTIL_TOLD)).await
}

impl Stage {
    async fn begin(&mut self, step: u64, in_turn: bool) -> worker_pb::BeginSaveResponse {
        let size_bytes = parts().packed_bytes();
        let request = worker_pb::BeginSaveRequest { step, size_bytes, in_turn };
        self.worker.begin_save(request).await.expect("answers").into_inner()
    }

    async fn slot(&mut self, step: u64) -> worker_pb::Slot {
        self.begin(step, false).await.slot.expect("a slot")
    }

    async fn tell(&mut self, step: u64, slot: &worker_pb::Slot) -> Result<(), tonic::Status> {
        let (slot, failed) = (slot.index, String::new());
        let request = worker_pb::SaveStagedRequest { step, slot, stall_us: 1_500, failed };
        self.worker.save_staged(request).await.map(|_| ())
    }

    async fn saved(&mut self, step: u64) -> Result<worker_pb::SaveCheckpointResponse, tonic::Status> {
        let asked = self.worker.wait_saved(worker_pb::WaitSavedRequest { step });
        tokio::time::timeout(Duration::from_secs(60), asked)
            .await
            .expect("in time")
            .map(|saved| saved.into_inner())
    }

    fn end_worker(&self) {
        std::fs::write(self.tmp.path().join("workers/j1.0.1.1-0/work/end"), b"").expect("written");
    }

    fn receipts(&self) -> Vec<pb::Receipt> {
        self.fake.node("n1").receipts
    }

    fn open_tries(&self) -> Vec<u64> {
        let mut tries = Vec::new();
        self.fake.change(|book| tries.clone_from(&book.open_tries));
        tries
    }

    fn shards(&self) -> Vec<PathBuf> {
        walk(&self.tmp.path().join("shards/blobs"))
    }

    async fn held(&self, checkpoint: &str) {
        let is_held = |receipt: &pb::Receipt| receipt.checkpoint == checkpoint && !receipt.holders.is_empty();
        eventually("a receipt with a holder", || self.receipts().iter().any(is_held)).await;
    }

    async fn given_up(&self, checkpoint: &str, why: &str) {
        let is_it = |receipt: &pb::Receipt| receipt.checkpoint == checkpoint && receipt.failed.contains(why);
        eventually("a receipt that gives it up", || self.receipts().iter().any(is_it)).await;
    }

    async fn end(self) {
        self.agent.shutdown(StopWorkers::Yes).await;
    }
}

fn parts() -> Parts<'static> {
    Parts::new(&[("weights", WEIGHTS), ("optimizer", b"momentum")]).expect("good names")
}

fn open(slot: &worker_pb::Slot) -> File {
    File::options().read(true).write(true).open(&slot.path).expect("the slot is there")
}

fn header(step: u64, slot: &worker_pb::Slot) -> SlotHeader {
    let (length, attempt) = (parts().packed_bytes(), A1.parse().expect("valid"));
    SlotHeader { state: SlotState::Staged, step, sequence: slot.sequence, length, attempt }
}

fn fill(step: u64, slot: &worker_pb::Slot) {
    let file = open(slot);
    parts().write_at(&file, DATA_AT).expect("room");
    header(step, slot).write(&file).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_staged_is_written_in_the_background_and_restores_as_a_folder() {
    let mut stage = stage().await;
    let slot = stage.slot(7).await;
    assert!(slot.size_bytes >= parts().packed_bytes());
    let mode = std::os::unix::fs::MetadataExt::mode(&open(&slot).metadata().expect("there"));
    assert_eq!(mode & 0o777, 0o600);
    fill(7, &slot);
    stage.tell(7, &slot).await.expect("taken");
    let saved = stage.saved(7).await.expect("saved");
    assert_eq!(saved.size_bytes, parts().packed_bytes());
    // Repeated, because an answer was lost.
    stage.tell(7, &slot).await.expect("taken already");
    assert!(stage.begin(7, false).await.kept);
    stage.held(&saved.checkpoint).await;
    let name = format!("0-{}", saved.root);
    let shard = stage.shards().into_iter().find(|path| path.ends_with(&name)).expect("on the disk");
    let dest = stage.tmp.path().join("restored");
    outlast_blobs::unpack(File::open(shard).expect("there"), &dest, outlast_blobs::PackLimits::CHECKPOINT)
        .expect("an archive");
    assert_eq!(std::fs::read(dest.join("weights")).expect("there"), WEIGHTS);
    stage.worker.report(worker_pb::ReportRequest { step: 7, ..Default::default() }).await.expect("taken");
    let costs = || stage.fake.node("n1").progress.iter().any(|progress| progress.save_stall_ms == 2);
    eventually("its cost is told", costs).await;
    let header = SlotHeader::read(&open(&slot)).expect("good");
    assert_eq!(header.state, SlotState::Free);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_right_after_staging_loses_nothing_and_its_slots_go() {
    let mut stage = stage().await;
    stage.fake.change(|book| book.acknowledges = false);
    let slot = stage.slot(7).await;
    // It dies before it can say a word.
    fill(7, &slot);
    stage.end_worker();
    stage.held("ck1").await;
    assert!(Path::new(&slot.path).exists(), "the log does not have its end yet");
    stage.fake.change(|book| book.acknowledges = true);
    let dir = Path::new(&slot.path).parent().expect("a folder").to_owned();
    eventually("its slots are gone", || !dir.exists()).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_it_copies_leaves_nothing() {
    let mut stage = stage().await;
    let slot = stage.slot(7).await;
    parts().write_at(&open(&slot), DATA_AT).expect("room");
    stage.end_worker();
    stage.given_up("ck1", "ended before").await;
    eventually("released", || has(&stage.fake, "n1", released(A1))).await;
    assert!(stage.receipts().iter().all(|receipt| receipt.holders.is_empty()));
    assert_eq!(stage.shards(), Vec::<PathBuf>::new());
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_goes_on_with_what_is_staged_and_with_what_is_still_copied() {
    let mut stage = stage().await;
    let one = stage.slot(7).await;
    // Staged, but the agent is not told: its successor has to look.
    fill(7, &one);
    let noted = || outlast_staging::Note::read(&open(&one)).is_some();
    eventually("the checkpoint is noted in the slot", noted).await;
    let Stage { fake, tmp, agent, .. } = stage;
    agent.shutdown(StopWorkers::No).await;
    // Too late to ask the log: the attempt is being stopped.
    fake.change(|book| {
        book.opens.insert(7, OpenRule::Fence);
        book.welcome_index = 20;
    });
    fake.desire("n1", 20, vec![pb::DesiredWorker { may_start: false, ..shell(A1, UNTIL_TOLD) }]);
    let agent = start("n1", tmp.path(), &[&fake]).await;
    let worker = socket(tmp.path(), A1).await;
    let mut stage = Stage { fake, tmp, agent, worker };
    stage.held("ck1").await;
    assert_eq!(stage.saved(7).await.expect("saved").checkpoint, "ck1");

    let two = stage.slot(8).await;
    let Stage { fake, tmp, agent, .. } = stage;
    agent.shutdown(StopWorkers::No).await;
    fake.change(|book| book.welcome_index = 30);
    fake.desire("n1", 30, vec![pb::DesiredWorker { may_start: false, ..shell(A1, UNTIL_TOLD) }]);
    let agent = start("n1", tmp.path(), &[&fake]).await;
    let worker = socket(tmp.path(), A1).await;
    let mut stage = Stage { fake, tmp, agent, worker };
    fill(8, &two);
    stage.tell(8, &two).await.expect("the slot is still this worker's");
    let saved = stage.saved(8).await.expect("saved");
    stage.held(&saved.checkpoint).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_over_is_fenced_by_the_first_answer() {
    let mut stage = stage().await;
    stage.fake.change(|book| book.opens = [(7, OpenRule::Fence)].into());
    let slot = stage.slot(7).await;
    fill(7, &slot);
    stage.tell(7, &slot).await.expect("taken");
    let refused = stage.saved(7).await.expect_err("over");
    assert!(matches!(Failure::from_status(&refused), Failure::Fenced { .. }), "{refused}");
    assert_eq!(stage.open_tries().len(), 1, "what is over stays over");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_waits_for_the_registration_of_its_agent_and_goes_on_with_the_new_one() {
    let mut stage = stage().await;
    let first = stage.fake.node("n1").hellos[0].registration.as_ref().expect("registered").registration;
    stage.fake.change(|book| book.opens = [(7, OpenRule::NotRegistered(first))].into());
    let slot = stage.slot(7).await;
    fill(7, &slot);
    stage.tell(7, &slot).await.expect("taken");
    eventually("it asks and is not known", || stage.open_tries().contains(&first)).await;
    stage.fake.change(|book| {
        let reason = "its lease ran out".to_owned();
        book.nodes.get_mut("n1").expect("known").refuse =
            Some(pb::Refused { reason, register_anew: true, ..Default::default() });
    });
    let saved = stage.saved(7).await.expect("saved");
    stage.held(&saved.checkpoint).await;
    assert_ne!(stage.open_tries().last(), Some(&first));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_both_slots_busy_the_log_skips_the_step_or_it_waits_for_its_turn() {
    let mut stage = stage().await;
    stage.fake.change(|book| {
        book.opens = [(1, OpenRule::Busy), (2, OpenRule::Busy), (3, OpenRule::Skip)].into();
    });
    for step in [1, 2] {
        let slot = stage.slot(step).await;
        fill(step, &slot);
        stage.tell(step, &slot).await.expect("taken");
    }
    assert!(stage.begin(3, false).await.skipped);
    let mut waiter = stage.worker.clone();
    let request = worker_pb::BeginSaveRequest { step: 4, size_bytes: parts().packed_bytes(), in_turn: true };
    let waiting = tokio::spawn(async move { waiter.begin_save(request).await });
    let opened = || {
        let mut opened = 0;
        stage.fake.change(|book| opened = book.opened);
        opened
    };
    eventually("the log has opened it, for all ranks", || opened() == 1).await;
    assert!(!waiting.is_finished(), "no slot is free");
    stage.fake.change(|book| {
        book.opens.remove(&1);
    });
    let begun = waiting.await.expect("no panic").expect("answers").into_inner();
    let slot = begun.slot.expect("the slot that became free");
    fill(4, &slot);
    stage.tell(4, &slot).await.expect("taken");
    assert_eq!(stage.saved(4).await.expect("saved").checkpoint, "ck1");
    stage.end().await;
}

/// Longer than a call that somebody waits for would be tried.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_staged_waits_for_a_log_that_is_away_for_long() {
    let mut stage = stage().await;
    stage.fake.change(|book| book.opens = [(1, OpenRule::Away), (2, OpenRule::Away)].into());
    for step in [1, 2] {
        let slot = stage.slot(step).await;
        fill(step, &slot);
        stage.tell(step, &slot).await.expect("taken");
    }
    tokio::time::sleep(std::time::Duration::from_secs(25)).await;
    stage.fake.change(|book| book.opens.clear());
    for step in [1, 2] {
        let saved = stage.saved(step).await.expect("saved");
        stage.held(&saved.checkpoint).await;
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_the_log_skips_after_the_copy_leaves_its_slot_free() {
    let mut stage = stage().await;
    stage.fake.change(|book| book.opens = [(1, OpenRule::Skip), (2, OpenRule::Skip)].into());
    for step in [1, 2, 1, 2] {
        let slot = stage.slot(step).await;
        fill(step, &slot);
        stage.tell(step, &slot).await.expect("taken");
        assert!(stage.saved(step).await.expect("settled").skipped);
    }
    assert_eq!((stage.receipts(), stage.shards()), (Vec::new(), Vec::new()));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_says_nothing_is_refused_and_the_checkpoint_given_up() {
    let mut stage = stage().await;
    type Spoil = fn(&File, SlotHeader);
    let spoilt: [Spoil; 5] = [
        |file, _| file.write_all_at(&[0xa5; 128], 0).expect("written"),
        |file, header| SlotHeader { length: 1 << 50, ..header }.write(file).expect("written"),
        |file, header| SlotHeader { step: 99, ..header }.write(file).expect("written"),
        |file, header| SlotHeader { sequence: 0, ..header }.write(file).expect("written"),
        |file, header| SlotHeader { state: SlotState::Writing, ..header }.write(file).expect("written"),
    ];
    for (spoil, step) in spoilt.into_iter().zip(1..) {
        let slot = stage.slot(step).await;
        fill(step, &slot);
        spoil(&open(&slot), header(step, &slot));
        let refused = stage.tell(step, &slot).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        stage.given_up(&format!("ck{step}"), "header").await;
    }
    assert_eq!(stage.shards(), Vec::<PathBuf>::new());
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_the_memory_saves_nothing_and_no_rank_waits_for_it() {
    let mut stage = stage_with(pb::DesiredWorker { memory_bytes: 64 << 20, ..shell(A1, UNTIL_TOLD) }).await;
    let request = worker_pb::BeginSaveRequest { step: 1, size_bytes: 65 << 20, in_turn: false };
    let refused = stage.worker.begin_save(request).await.expect_err("refused");
    assert!(refused.message().contains("limit"), "{refused}");
    stage.given_up("ck1", "limit").await;
    let slots = stage.worker.open_slots(worker_pb::OpenSlotsRequest { size_bytes: 1 << 20 }).await;
    assert_eq!(slots.expect("room").into_inner().slots.len(), 2);
    let slot = stage.slot(2).await;
    fill(2, &slot);
    stage.tell(2, &slot).await.expect("taken");
    stage.saved(2).await.expect("training goes on, and so does saving");
    stage.end().await;
}
