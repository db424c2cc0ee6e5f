//! The SDK against an agent that answers, refuses, hangs, and goes away for a while.

mod fake_agent;

use std::time::{Duration, Instant};

use fake_agent::{FakeAgent, eventually};
use outlast_proto::status::Failure;
use outlast_proto::worker::v1::signal::Kind;
use outlast_proto::worker::v1::{BeginSaveResponse, SaveCheckpointResponse, Slot, WaitCheckpointResponse};
use outlast_worker::{CallError, METRICS_MAX, ReportError, SaveError, SealOutcome, WaitError, Worker};

const LONG: Duration = Duration::from_secs(25);

fn connected() -> (FakeAgent, Worker) {
    let agent = FakeAgent::start();
    let worker = Worker::connect_to(&agent.socket).expect("the agent is there");
    (agent, worker)
}

#[test]
fn a_worker_learns_who_it_is() {
    let (agent, worker) = connected();
    assert_eq!((worker.rank(), worker.world_size()), (1, 2));
    assert_eq!(
        (worker.job(), worker.job_name(), worker.attempt().to_string()),
        ("j1", "digits", "j1/0@1.3".into())
    );
    assert_eq!((worker.restore_dir(), worker.restore_step()), (None, 0));
    assert_eq!(worker.checkpoint_dir(), agent.root().join("checkpoints"));
    worker.ready().expect("taken");
}

#[test]
fn a_report_never_waits_and_the_newest_wins() {
    let (agent, worker) = connected();
    *agent.script.hold.lock().expect("no panic") = true;
    worker.report(1, &[("loss", 0.5)]).expect("taken");
    eventually("the first report is under way", || agent.script.steps() == [1]);
    let began = Instant::now();
    for step in 2..=1000 {
        worker.report(step, &[]).expect("taken");
    }
    assert!(began.elapsed() < LONG, "the loop waited for the agent");
    assert!(!worker.flush(Duration::from_millis(10)), "two reports are still to be answered");
    *agent.script.hold.lock().expect("no panic") = false;
    agent.script.release.notify_waiters();
    assert!(worker.flush(LONG));
    assert_eq!(agent.script.steps(), [1, 1000]);
    assert_eq!(worker.wanted().expect("not fenced").delivered_step, Some(1000));
    assert_eq!(agent.script.reports.lock().expect("no panic")[0].metrics["loss"], 0.5);
}

#[test]
fn too_many_metrics_are_refused() {
    let (_agent, worker) = connected();
    let err = worker.report(1, &[("m", 1.0); METRICS_MAX + 1]).expect_err("refused");
    assert_eq!(err, ReportError::TooManyMetrics { count: METRICS_MAX + 1, max: METRICS_MAX });
}

#[test]
fn a_due_checkpoint_is_due_until_it_is_saved() {
    let (agent, worker) = connected();
    *agent.script.due.lock().expect("no panic") = true;
    assert!(!worker.report(1, &[]).expect("taken").checkpoint_due);
    assert!(worker.flush(LONG));
    assert!(worker.report(2, &[]).expect("taken").checkpoint_due);
    let err = worker.save(2, &agent.root().join("missing")).expect_err("refused");
    assert!(
        matches!(&err, SaveError::Call(CallError::Refused { hint, .. }) if hint == "write it first"),
        "{err}"
    );
    assert!(worker.report(3, &[]).expect("taken").checkpoint_due);
    let saved = worker.save(3, agent.root()).expect("saved");
    assert_eq!(
        (saved.checkpoint.as_str(), saved.size_bytes, saved.root.to_string()),
        ("ck7", 5, "ab".repeat(32))
    );
    assert!(worker.flush(LONG));
    assert!(!worker.report(4, &[]).expect("taken").checkpoint_due);
}

#[test]
fn parts_are_in_the_agents_memory_when_the_call_returns() {
    let (agent, worker) = connected();
    assert!(worker.reserve(1 << 20).expect("room"));
    *agent.script.due.lock().expect("no panic") = true;
    worker.report(1, &[]).expect("taken");
    assert!(worker.flush(LONG));
    let (mut weights, optimizer) = (vec![7; 5_000], b"momentum");
    let staged = worker.save_parts(2, &[("weights", &weights), ("optimizer", optimizer)]).expect("staged");
    // They are copied: what becomes of the program's own bytes now changes nothing.
    weights.fill(0);
    let kept = agent.script.kept(2);
    assert_eq!(std::fs::read(kept.join("weights")).expect("kept"), [7; 5_000]);
    assert_eq!(std::fs::read(kept.join("optimizer")).expect("kept"), optimizer);
    let told = agent.script.staged.lock().expect("no panic")[0].clone();
    assert_eq!((told.step, told.slot, told.failed.as_str()), (2, 1, ""));
    assert!(told.stall_us > 0 && Duration::from_micros(told.stall_us) <= staged.stall);
    assert!(!worker.wanted().expect("not fenced").checkpoint_due, "the wish is fulfilled");
    assert_eq!(worker.wait_saved(&staged, LONG).expect("saved").checkpoint, "ck7");
}

/// The worker keeps slots mapped; what it has mapped may not be what the agent means any more.
#[test]
fn a_slot_that_is_another_file_or_has_grown_is_mapped_anew() {
    let (agent, worker) = connected();
    let mut step = 0;
    let mut save = |size: usize| {
        step += 1;
        let weights = vec![step as u8; size];
        worker.save_parts(step, &[("weights", &weights)]).expect("staged");
        assert!(
            std::fs::read(agent.script.kept(step).join("weights")).expect("kept") == weights,
            "step {step}"
        );
    };
    save(5_000);
    save(5_000);
    std::fs::remove_file(agent.script.slot_path()).expect("gone");
    save(5_000);
    save(3 << 20);
    save(5_000);
}

/// Mapped memory of a file that is gone is not free.
#[test]
fn where_there_is_no_slot_nothing_stays_mapped() {
    let (agent, worker) = connected();
    worker.save_parts(1, &[("w", b"1")]).expect("staged");
    let path = agent.script.slot_path().display().to_string();
    let is_mapped = || std::fs::read_to_string("/proc/self/maps").expect("readable").contains(&path);
    assert!(is_mapped());
    let full = Failure::Exhausted { reason: "no memory".into(), hint: String::new(), retry_after_ms: 0 };
    agent.script.begins.lock().expect("no panic").push_back(Err(full.into()));
    worker.save_parts(2, &[("w", b"1")]).expect_err("refused");
    assert!(!is_mapped());
    worker.save_parts(3, &[("w", b"1")]).expect("staged");
}

#[test]
fn parts_that_are_skipped_or_cannot_be_staged_say_so() {
    let (agent, worker) = connected();
    let begins = |answer| agent.script.begins.lock().expect("no panic").push_back(answer);
    begins(Ok(BeginSaveResponse { skipped: true, ..Default::default() }));
    assert!(worker.save_parts(1, &[("w", b"1")]).expect_err("skipped").is_skipped());
    // Known after the copy only.
    let staged = worker.save_parts(2, &[("w", b"1")]).expect("staged");
    let skipped = SaveCheckpointResponse { skipped: true, ..Default::default() };
    agent.script.saved.lock().expect("no panic").push_back(Ok(skipped));
    assert!(worker.wait_saved(&staged, LONG).expect_err("skipped").is_skipped());
    // A lack of memory is told at once, not asked for again.
    let full = Failure::Exhausted { reason: "no memory".into(), hint: "buy some".into(), retry_after_ms: 0 };
    begins(Err(full.into()));
    let err = worker.save_parts(3, &[("w", b"1")]).expect_err("refused");
    assert!(matches!(&err, SaveError::Call(CallError::Refused { hint, .. }) if hint == "buy some"), "{err}");
    // The slot is gone: the agent is told, so that nobody waits for it.
    let gone = Slot { path: "/nowhere/slot".into(), size_bytes: 1 << 20, ..Default::default() };
    begins(Ok(BeginSaveResponse { slot: Some(gone), ..Default::default() }));
    let err = worker.save_parts(4, &[("w", b"1")]).expect_err("no slot");
    assert!(matches!(err, SaveError::Slot { .. }), "{err}");
    let told = agent.script.staged.lock().expect("no panic").last().cloned().expect("told");
    assert!(told.step == 4 && !told.failed.is_empty(), "{told:?}");
    // A repeated call: the agent has the bytes.
    begins(Ok(BeginSaveResponse { kept: true, ..Default::default() }));
    worker.save_parts(4, &[("w", b"1")]).expect("kept");
    assert!(matches!(worker.save_parts(5, &[("a/b", b"1")]), Err(SaveError::Parts(_))));
}

#[test]
fn one_file_is_handed_over_by_its_absolute_path() {
    let (agent, worker) = connected();
    let file = agent.root().join("state");
    std::fs::write(&file, b"state").expect("written");
    worker.save(3, &file).expect("saved");
    assert_eq!(agent.script.saves.lock().expect("no panic")[0].directory, file.display().to_string());
}

#[test]
fn signals_reach_the_loop() {
    let (agent, worker) = connected();
    eventually("the worker listens", || agent.script.signal(Kind::CheckpointNow));
    eventually("the signal arrived", || worker.wanted().expect("not fenced").checkpoint_due);
    assert!(agent.script.signal(Kind::Stop));
    eventually("the signal arrived", || worker.wanted().expect("not fenced").stop);
}

#[test]
fn a_restart_of_the_agent_goes_unnoticed() {
    let (mut agent, worker) = connected();
    worker.report(1, &[]).expect("taken");
    assert!(worker.flush(LONG));
    agent.go_away();
    for step in 2..=5 {
        worker.report(step, &[]).expect("an agent that is away is no error");
    }
    std::thread::scope(|scope| {
        let saving = scope.spawn(|| worker.save(5, agent_root(&worker)));
        // The save is under way without an agent; whether it has begun when the agent returns does not matter.
        std::thread::sleep(Duration::from_millis(200));
        agent.come_back();
        saving.join().expect("no panic").expect("saved once the agent is back");
    });
    assert!(worker.flush(LONG));
    assert_eq!(agent.script.steps().last(), Some(&5));
    assert_eq!(agent.script.saves.lock().expect("no panic")[0].step, 5);
    eventually("it says again who it is", || *agent.script.registrations.lock().expect("no panic") >= 2);
    eventually("it listens again", || agent.script.signal(Kind::Stop));
    eventually("the signal arrived", || worker.wanted().expect("not fenced").stop);
}

/// The folder above the one for checkpoints; it exists.
fn agent_root(worker: &Worker) -> &std::path::Path {
    worker.checkpoint_dir().parent().expect("it has one")
}

#[test]
fn a_fenced_worker_is_told_so_by_every_call() {
    let (agent, worker) = connected();
    *agent.script.fenced.lock().expect("no panic") = Some("attempt j1/0@1.4 is current".into());
    let err = worker.save(1, agent.root()).expect_err("fenced");
    assert!(err.is_fenced(), "{err}");
    let err = worker.report(2, &[]).expect_err("fenced");
    assert_eq!(err, ReportError::Fenced { reason: "attempt j1/0@1.4 is current".into() });
    assert!(worker.ready().expect_err("fenced").is_fenced());
    assert!(Worker::connect_to(&agent.socket).expect_err("fenced").is_fenced());
}

#[test]
fn fencing_is_learnt_from_a_report() {
    let (agent, worker) = connected();
    *agent.script.fenced.lock().expect("no panic") = Some("stopped".into());
    worker.report(1, &[]).expect("not known yet");
    eventually("the answer came", || worker.wanted().is_err());
    assert!(worker.report(2, &[]).expect_err("fenced").is_fenced());
}

#[test]
fn waiting_for_a_seal_ends_in_each_way() {
    let (agent, worker) = connected();
    let say = |answer| agent.script.seals.lock().expect("no panic").push_back(answer);
    say(Err(
        Failure::Unavailable { reason: "no leader".into(), hint: String::new(), retry_after_ms: 1 }.into()
    ));
    say(Ok(WaitCheckpointResponse { sealed: true, reason: String::new() }));
    assert_eq!(worker.wait_sealed("ck7", LONG).expect("known"), SealOutcome::Sealed);
    say(Ok(WaitCheckpointResponse { sealed: false, reason: "rank 0 was lost".into() }));
    let given_up = SealOutcome::GivenUp { reason: "rank 0 was lost".into() };
    assert_eq!(worker.wait_sealed("ck8", LONG).expect("known"), given_up);
    let err = worker.wait_sealed("ck9", Duration::from_millis(100)).expect_err("never answered");
    assert!(matches!(err, WaitError::TimedOut { .. }), "{err}");
}
