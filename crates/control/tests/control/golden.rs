//! Bytes of format version 1: a log of today must be readable for ever. `OUTLAST_GOLDEN=write` writes the files anew,
//! which is right only for a version that was never released.

use std::fs;
use std::path::{Path, PathBuf};

use outlast_control::state::{
    Bundle, ChosenInterval, Command, DecodeError, Envelope, Incarnation, Observation, Placed,
    RestoreDecision, Rung, ShardTask, decode_batch, decode_state, encode_batch, encode_state,
};
use outlast_types::{
    Actor, Cause, ClusterId, CoordinatorId, ExitStatus, JobId, Profile, RegistrationId, RequestId, WallTime,
};
use serde_json::json;

use crate::world::{World, adopted, attempt, ck, exit, group, holder, job_spec, node, registration, root};

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

pub(crate) fn compare(name: &str, actual: &[u8]) {
    let path = golden(name);
    #[expect(clippy::disallowed_methods, reason = "the switch that writes golden files, in a test")]
    let write = std::env::var("OUTLAST_GOLDEN").is_ok_and(|value| value == "write");
    if write {
        fs::create_dir_all(path.parent().expect("a folder")).expect("the golden folder can be made");
        return fs::write(&path, actual).expect("the golden file can be written");
    }
    let expected = fs::read(&path).unwrap_or_default();
    if expected != actual {
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (expected, actual) = (lossy(&expected), lossy(actual));
        let line = expected.lines().zip(actual.lines()).position(|(old, new)| old != new);
        panic!("{name} differs from line {line:?} (OUTLAST_GOLDEN=write writes it anew):\n{actual}");
    }
}

fn observations() -> Vec<Observation> {
    let attempt = attempt(1, 1);
    let reason = "why".to_owned();
    vec![
        Observation::Rendezvous { attempt, address: "127.0.0.1:9".to_owned() },
        Observation::Started { attempt, rank: 0 },
        Observation::Ready { attempt, rank: 0 },
        Observation::Restored { attempt, rank: 0, seq: ck(1) },
        Observation::RestoreFailed { attempt, rank: 0, seq: ck(1), corrupt: true, reason: reason.clone() },
        Observation::StartFailed { attempt, rank: 0, reason },
        Observation::Exited { attempt, rank: 0, exit: exit(ExitStatus::Signal(9)) },
        Observation::Released { attempt, rank: 0 },
        Observation::BundleHeld { digest: root(5) },
        Observation::ShardHeld { attempt, seq: ck(1), rank: 0, root: root(1) },
        Observation::ShardLost { attempt, seq: ck(1), rank: 0, root: root(1), reason: "why".to_owned() },
        Observation::CopyFailed { attempt, seq: ck(1), rank: 0, reason: "why".to_owned() },
    ]
}

/// One of each variant. A new one is added here too; the compiler does not say so, a reviewer has to.
fn every_command() -> Vec<Command> {
    let incarnation = Incarnation { index: 2, coordinator: CoordinatorId(1) };
    let (attempt, reason) = (attempt(1, 1), "why".to_owned());
    let mut restarted = registration(1, 2);
    restarted.adopted = vec![adopted(attempt, 0)];
    restarted.exited = vec![(attempt, 1, exit(ExitStatus::OutOfMemory))];
    let bundle = Bundle { digest: root(5), size_bytes: 5, holders: vec![node(1)] };
    let placed = vec![Placed { rank: 0, node: node(1), registration: RegistrationId(101), gpus: vec![1] }];
    let restore = RestoreDecision { from: Some(ck(1)), passed_over: vec![(ck(2), reason.clone())] };
    let shards = vec![outlast_control::state::SealedShard {
        rank: 0,
        root: root(1),
        size_bytes: 3,
        holders: vec![holder(1)],
    }];
    vec![
        Command::InitCluster {
            cluster_id: ClusterId::new("test").expect("valid"),
            profile: Profile::Wan,
            address: "a:1".to_owned(),
        },
        Command::OpenGeneration {
            cluster_id: ClusterId::new("test-2").expect("valid"),
            address: "c:1".to_owned(),
            feature_level: 1,
            reason: reason.clone(),
        },
        Command::Barrier { coordinator: CoordinatorId(1) },
        Command::AddCoordinator { address: "b:1".to_owned(), feature_level: 1 },
        Command::RemoveCoordinator { coordinator: CoordinatorId(7) },
        Command::AnnounceCoordinator { coordinator: CoordinatorId(1), feature_level: 2 },
        Command::RaiseFeatureLevel { level: 1 },
        Command::RegisterNode(Box::new(restarted)),
        Command::NodeLost { node: node(1), registration: RegistrationId(101), incarnation },
        Command::CordonNode { node: node(1) },
        Command::UncordonNode { node: node(1) },
        Command::DrainNode { node: node(1) },
        Command::LabelNode {
            node: node(1),
            set: [("zone".to_owned(), "a".to_owned())].into(),
            remove: vec!["rack".to_owned()],
        },
        Command::QuarantineNode { node: node(1), reason: reason.clone(), incarnation: None },
        Command::Observe {
            node: node(1),
            registration: RegistrationId(101),
            first: 1,
            observations: observations(),
        },
        Command::SubmitJob {
            spec: Box::new(job_spec("a", &json!({"env": {"A": "1"}}))),
            bundle: Some(bundle),
        },
        Command::CancelJob { job: JobId(1), reason: Some(reason.clone()) },
        Command::ExpireJob { job: JobId(1), incarnation },
        Command::StartAttempt {
            group: group(1),
            previous: 0,
            rung: Rung::First,
            placed,
            restore,
            incarnation,
        },
        Command::StopAttempt {
            attempt,
            cause: Cause::Hang { rank: 0, silent_ms: 5 },
            graceful: true,
            incarnation,
        },
        Command::StopAttempt { attempt, cause: Cause::ClusterRecovered, graceful: false, incarnation },
        Command::StopAttempt {
            attempt,
            cause: Cause::StartTimeout { ranks: vec![(0, node(1))], others: 1, waited_ms: 5 },
            graceful: false,
            incarnation,
        },
        Command::EndAttempt { attempt, incarnation },
        Command::RequestCheckpoint { attempt, incarnation },
        Command::GiveUp { group: group(1), reason: reason.clone(), incarnation },
        Command::OpenCheckpoint { attempt, step: 5, in_turn: false },
        Command::SealCheckpoint {
            job: JobId(1),
            seq: ck(1),
            attempt,
            manifest_root: root(2),
            shards,
            durability: outlast_types::Durability::Replicated,
            degraded: true,
        },
        Command::AbortCheckpoint { job: JobId(1), seq: ck(1), reason: reason.clone(), incarnation: None },
        Command::RetireCheckpoint { job: JobId(1), seq: ck(1), incarnation: None },
        Command::QuarantineCheckpoint { job: JobId(1), seq: ck(1), reason, incarnation: None },
        Command::PinCheckpoint { job: JobId(1), seq: ck(1), pinned: true },
        Command::OrderShards {
            job: JobId(1),
            seq: ck(1),
            task: ShardTask::Copy,
            orders: vec![(0, node(1))],
            incarnation,
        },
        Command::SetInterval {
            group: group(1),
            interval: ChosenInterval { every_ms: 60_000, cost_ms: 100, mtbf_ms: 86_400_000, failures: 1 },
            incarnation,
        },
        Command::ProveCheckpoint { job: JobId(1), seq: ck(1), incarnation },
        Command::StoreCheckpoint { job: JobId(1), seq: ck(1), incarnation },
    ]
}

fn batch() -> Vec<Envelope> {
    let envelope = |(n, command)| Envelope {
        request: Some(RequestId::new(format!("q{n}")).expect("valid")),
        actor: Actor::Operator("me".to_owned()),
        source: Some("127.0.0.1:5".to_owned()),
        cause: Some("because".to_owned()),
        at: WallTime(1_000),
        command,
    };
    every_command().into_iter().enumerate().map(envelope).collect()
}

/// A state that holds one of most things.
fn state() -> World {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({}));
    world.sealed(a, 1, &[1, 2]);
    world.open(a, 2);
    world.exited(a, 0, ExitStatus::Code(1));
    world.submit("b", &json!({"kind": "service", "workers": 2}));
    world.lose(3);
    world.pass();
    world.does(Command::DrainNode { node: node(2) });
    world
}

/// Bytes as the first builds of this version wrote them: fields that came later have defaults.
#[test]
fn older_bytes_of_the_version_still_decode() {
    let first = |name| std::fs::read(golden(name)).expect("the golden file is in the repository");
    assert_eq!(decode_batch(&first("batch-v1-first.bin")).expect("decodes").len(), 27);
    let state = decode_state(&first("state-v1-first.bin")).expect("decodes");
    assert!(state.check_invariants().is_ok());
}

#[test]
fn a_batch_of_every_command_keeps_its_bytes() {
    let bytes = encode_batch(&batch());
    compare("batch-v1.bin", &bytes);
    let golden = std::fs::read(golden("batch-v1.bin")).expect("the golden file is in the repository");
    assert_eq!(decode_batch(&golden).expect("decodes"), batch());
}

#[test]
fn a_state_keeps_its_bytes() {
    let world = state();
    compare("state-v1.bin", &encode_state(&world.state));
    let golden = std::fs::read(golden("state-v1.bin")).expect("the golden file is in the repository");
    assert!(decode_state(&golden).expect("decodes") == world.state);
}

#[test]
fn other_bytes_are_refused_and_never_panic() {
    assert!(matches!(decode_batch(&[]), Err(DecodeError::Empty)));
    assert!(matches!(decode_state(&[9, 1, 2]), Err(DecodeError::Version { found: 9 })));
    let good = encode_state(&state().state);
    for length in (1..good.len()).step_by(97) {
        assert!(decode_state(&good[..length]).is_err());
    }
}

#[test]
fn every_command_is_answered_by_an_empty_state_without_a_panic() {
    let mut empty = outlast_control::state::ClusterState::new();
    for (index, envelope) in (1..).zip(batch().into_iter().rev()) {
        empty.apply(index, &envelope);
        empty.check_invariants().expect("holds");
    }
}
