//! A whole agent with real keepers and workers, against a coordinator that the test plays.

mod fake;
mod staging;
mod stored;
mod transfers;

use std::path::{Path, PathBuf};

use fake::{CLUSTER, Fake, eventually, shell};
use outlast_agent::{Agent, AgentConfig, ResourceOverrides, RunningAgent, StopWorkers};
use outlast_blobs::{SealNote, ShardStore};
use outlast_control::state::Observation;
use outlast_process::{Adopted, Keeper};
use outlast_proto::node::v1 as pb;
use outlast_proto::peer::v1 as peer_pb;
use outlast_proto::peer::v1::peer_service_client::PeerServiceClient;
use outlast_proto::worker::v1 as worker_pb;
use outlast_proto::worker::v1::worker_service_client::WorkerServiceClient;
use outlast_types::{ExitStatus, NodeId};
use tonic::transport::{Channel, Endpoint};

const A1: &str = "j1/0@1.1";
const A2: &str = "j1/0@1.2";
/// For one answer of an agent, on a busy machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
const LONG: &str = "exec sleep 1000";

fn keeper_exe() -> PathBuf {
    let test = std::env::current_exe().expect("a test program");
    let keeper = test.ancestors().nth(2).expect("target/debug/deps").join("examples/agent_keeper");
    assert!(keeper.exists(), "the keeper is not built: cargo build -p outlast-agent --examples");
    keeper
}

async fn start(name: &str, dir: &Path, coordinators: &[&Fake]) -> RunningAgent {
    start_with(name, dir, coordinators, keeper_exe()).await
}

async fn start_with(name: &str, dir: &Path, coordinators: &[&Fake], keeper_exe: PathBuf) -> RunningAgent {
    Agent::start(config(name, dir, coordinators, keeper_exe)).await.expect("starts")
}

fn config(name: &str, dir: &Path, coordinators: &[&Fake], keeper_exe: PathBuf) -> AgentConfig {
    AgentConfig {
        data_dir: dir.to_owned(),
        name: Some(NodeId::new(name).expect("a name")),
        coordinators: coordinators.iter().map(|fake| fake.address.clone()).collect(),
        listen: "127.0.0.1:0".parse().expect("an address"),
        resources: ResourceOverrides { gpus: Some(0), ..ResourceOverrides::default() },
        keeper_exe: Some(keeper_exe),
        ..AgentConfig::default()
    }
}

fn has(fake: &Fake, node: &str, wanted: impl Fn(&Observation) -> bool) -> bool {
    fake.observations(node).iter().any(wanted)
}

fn started(attempt: &'static str) -> impl Fn(&Observation) -> bool {
    move |seen| matches!(seen, Observation::Started { attempt: of, .. } if of.to_string() == attempt)
}

fn exited(attempt: &'static str) -> impl Fn(&Observation) -> bool {
    move |seen| matches!(seen, Observation::Exited { attempt: of, .. } if of.to_string() == attempt)
}

fn released(attempt: &'static str) -> impl Fn(&Observation) -> bool {
    move |seen| matches!(seen, Observation::Released { attempt: of, .. } if of.to_string() == attempt)
}

fn ready(attempt: &'static str) -> impl Fn(&Observation) -> bool {
    move |seen| matches!(seen, Observation::Ready { attempt: of, .. } if of.to_string() == attempt)
}

fn stopped(worker: pb::DesiredWorker) -> pb::DesiredWorker {
    pb::DesiredWorker { stop: true, may_start: false, ..worker }
}

/// Some more heartbeats: whatever the agent was going to do, it has done.
async fn beats(fake: &Fake, node: &str) {
    let before = fake.node(node).heartbeats;
    eventually("more heartbeats", || fake.node(node).heartbeats > before + 3).await;
}

async fn socket(dir: &Path, attempt: &str) -> WorkerServiceClient<Channel> {
    socket_of(dir, attempt, 0).await
}

async fn socket_of(dir: &Path, attempt: &str, rank: u32) -> WorkerServiceClient<Channel> {
    let attempt: outlast_types::AttemptId = attempt.parse().expect("valid");
    let record = dir.join("workers").join(format!("{}-{rank}/worker.json", attempt.file_name()));
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(record).expect("a record")).expect("json");
    let path = PathBuf::from(record["socket"].as_str().expect("a path"));
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(
                tokio::net::UnixStream::connect(path).await?,
            ))
        }
    });
    let channel =
        Endpoint::from_static("http://worker").connect_with_connector(connector).await.expect("connects");
    WorkerServiceClient::new(channel)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_runs_its_end_is_told_until_it_is_applied_and_its_files_go_then() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    fake.change(|book| book.acknowledges = false);
    fake.desire(
        "n1",
        5,
        vec![shell(A1, "echo rank $RANK of $WORLD_SIZE; echo $OUTLAST_ATTEMPT >&2; exit 3")],
    );
    let agent = start("n1", tmp.path(), &[&fake]).await;
    eventually("released", || has(&fake, "n1", released(A1))).await;
    let seen = fake.observations("n1");
    let order: Vec<_> = seen
        .iter()
        .map(|seen| match seen {
            Observation::Rendezvous { .. } => "rendezvous",
            Observation::Started { .. } => "started",
            Observation::Exited { .. } => "exited",
            Observation::Released { .. } => "released",
            _ => "other",
        })
        .collect();
    assert_eq!(order, ["rendezvous", "started", "exited", "released"]);
    let Observation::Exited { exit, .. } = &seen[2] else { panic!("seen above") };
    assert_eq!(exit.status, ExitStatus::Code(3));
    assert!(exit.last_lines.iter().any(|line| line == "rank 0 of 1"), "{:?}", exit.last_lines);
    assert!(exit.last_lines.iter().any(|line| line == A1), "{:?}", exit.last_lines);
    let told = fake.node("n1").batches.len();
    eventually("told again from the first", || fake.node("n1").batches[told..].contains(&1)).await;
    let dir = tmp.path().join("workers/j1.0.1.1-0");
    assert!(
        dir.join("work").exists() && !dir.join("over").exists(),
        "files stay until the release is in the log"
    );
    fake.change(|book| book.acknowledges = true);
    eventually("cleaned", || dir.join("over").exists() && !dir.join("work").exists()).await;
    assert!(dir.join("keeper/log").exists(), "the log stays");
    agent.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why_and_is_released() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    let worker = pb::DesiredWorker { command: vec!["no-such-program".into()], ..shell(A1, "") };
    fake.desire("n1", 5, vec![worker]);
    let agent = start("n1", tmp.path(), &[&fake]).await;
    eventually("released", || has(&fake, "n1", released(A1))).await;
    let named = |seen: &Observation| matches!(seen, Observation::StartFailed { reason, .. } if reason.contains("no-such-program"));
    assert!(has(&fake, "n1", named), "{:?}", fake.observations("n1"));
    agent.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_state_is_ignored_absence_stops_nothing_and_a_stop_stops() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    fake.desire("n1", 10, vec![shell(A1, LONG)]);
    let agent = start("n1", tmp.path(), &[&fake]).await;
    eventually("started", || has(&fake, "n1", started(A1))).await;
    let running = pb::DesiredWorker { may_start: false, ..shell(A1, LONG) };
    fake.change(|book| {
        let node = book.nodes.get_mut("n1").expect("known");
        node.desired =
            pb::DesiredState { index: 9, workers: vec![stopped(running.clone())], orders: Vec::new() };
    });
    beats(&fake, "n1").await;
    fake.desire("n1", 11, Vec::new());
    beats(&fake, "n1").await;
    assert!(!has(&fake, "n1", exited(A1)), "neither an old stop nor absence ends a worker");
    fake.desire("n1", 12, vec![stopped(running)]);
    eventually("released", || has(&fake, "n1", released(A1))).await;
    assert!(has(&fake, "n1", exited(A1)));
    agent.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_lags_behind_the_grant_starts_nothing_and_is_left() {
    let (old, new, tmp) = (Fake::start().await, Fake::start().await, tempfile::tempdir().expect("a folder"));
    old.desire("n1", 50, vec![shell(A1, LONG)]);
    old.change(|book| {
        book.coordinators = vec![old.address.clone(), new.address.clone()];
        book.nodes.get_mut("n1").expect("known").assignments_index = 100;
    });
    new.desire("n1", 100, vec![shell(A2, LONG)]);
    new.change(|book| book.coordinators = vec![old.address.clone(), new.address.clone()]);
    let agent = start("n1", tmp.path(), &[&old]).await;
    eventually("started by the newer one", || has(&new, "n1", started(A2))).await;
    assert!(!has(&old, "n1", started(A1)) && !has(&new, "n1", started(A1)));
    agent.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_adopts_what_runs_and_serves_its_socket_again() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    fake.desire("n1", 10, vec![shell(A1, LONG)]);
    let first = start("n1", tmp.path(), &[&fake]).await;
    eventually("started", || has(&fake, "n1", started(A1))).await;
    first.shutdown(StopWorkers::No).await;
    let running = pb::DesiredWorker { may_start: false, ..shell(A1, LONG) };
    fake.change(|book| book.welcome_index = 20);
    fake.desire("n1", 20, vec![running.clone()]);
    let second = start("n1", tmp.path(), &[&fake]).await;
    eventually("a second hello", || fake.node("n1").hellos.len() >= 2).await;
    let hello = fake.node("n1").hellos.last().cloned().expect("there");
    assert_eq!(hello.cluster_id, CLUSTER, "the cluster is remembered");
    let registration = hello.registration.expect("there");
    let before = fake.node("n1").hellos[0].registration.as_ref().map(|first| first.serial);
    assert!(Some(registration.serial) > before, "a late one of before is told from this one: {before:?}");
    let adopted: Vec<_> = registration.adopted.iter().map(|worker| worker.attempt.as_str()).collect();
    assert_eq!(adopted, [A1]);
    let registered = socket(tmp.path(), A1).await.register(worker_pb::RegisterRequest::default()).await;
    assert_eq!(registered.expect("served").into_inner().attempt, A1);
    beats(&fake, "n1").await;
    assert!(!has(&fake, "n1", exited(A1)), "it goes on");
    fake.desire("n1", 21, vec![stopped(running)]);
    eventually("released", || has(&fake, "n1", released(A1))).await;
    second.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_declared_lost_registers_anew_and_stops_what_the_log_does_not_hold() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    fake.desire("n1", 10, vec![shell(A1, LONG)]);
    let agent = start("n1", tmp.path(), &[&fake]).await;
    eventually("started", || has(&fake, "n1", started(A1))).await;
    fake.change(|book| {
        book.welcome_index = 30;
        let node = book.nodes.get_mut("n1").expect("known");
        node.desired = pb::DesiredState { index: 30, workers: Vec::new(), orders: Vec::new() };
        let reason = "its lease ran out".to_owned();
        node.refuse = Some(pb::Refused { reason, register_anew: true, ..Default::default() });
    });
    eventually("released", || has(&fake, "n1", released(A1))).await;
    let hellos = fake.node("n1").hellos;
    let ids: Vec<_> =
        hellos.iter().filter_map(|hello| Some(hello.registration.as_ref()?.registration)).collect();
    assert!(ids.len() >= 2 && ids[0] != ids[ids.len() - 1], "{ids:?}");
    agent.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_follows_its_recovered_cluster_with_what_runs_and_heeds_the_old_one_no_more() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    fake.desire("n1", 50, vec![shell(A1, LONG)]);
    let agent = start("n1", tmp.path(), &[&fake]).await;
    eventually("started", || has(&fake, "n1", started(A1))).await;
    let before = fake.node("n1").hellos.len();
    // The same address, another cluster with a shorter log, and nothing of the old attempt in it.
    fake.change(|book| {
        book.cluster = "second".to_owned();
        book.predecessors = vec![CLUSTER.to_owned()];
        book.welcome_index = 3;
        book.grants = false;
        let node = book.nodes.get_mut("n1").expect("known");
        node.desired = pb::DesiredState { index: 3, workers: Vec::new(), orders: Vec::new() };
        node.assignments_index = 3;
        let reason = "come again".to_owned();
        node.refuse = Some(pb::Refused { reason, ..Default::default() });
    });
    let follows = |hello: &&pb::Hello| hello.cluster_id == "second";
    eventually("the new cluster's Hello", || fake.node("n1").hellos.iter().any(|hello| follows(&hello)))
        .await;
    let hellos = fake.node("n1").hellos;
    let number = |hello: &pb::Hello| hello.registration.as_ref().expect("registered").registration;
    let hello = hellos.iter().find(follows).expect("just seen");
    assert_eq!(hello.desired_index, 0, "what was acted on under the old log does not count");
    assert!(hellos[..before].iter().all(|old| number(old) != number(hello)), "a new registration");
    let adopted = &hello.registration.as_ref().expect("registered").adopted;
    assert_eq!(adopted.len(), 1, "what runs is declared: {adopted:?}");
    fake.change(|book| book.grants = true);
    eventually("released", || has(&fake, "n1", released(A1))).await;
    // A coordinator of the old cluster comes back and wants the agent gone.
    fake.change(|book| {
        let reason = "you are of another cluster".to_owned();
        let cluster_id = CLUSTER.to_owned();
        let refused = pb::Refused { reason, r#final: true, cluster_id, ..Default::default() };
        book.nodes.get_mut("n1").expect("known").refuse = Some(refused);
    });
    fake.change(|book| book.nodes.get_mut("n1").expect("known").hellos.clear());
    eventually("it goes on", || !fake.node("n1").hellos.is_empty()).await;
    assert!(fake.node("n1").hellos.iter().all(|hello| hello.cluster_id == "second"));
    agent.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lease_an_exclusive_worker_is_stopped_and_another_goes_on() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    let other = "j2/0@1.1";
    let exclusive = pb::DesiredWorker { exclusive: true, ..shell(A1, LONG) };
    fake.desire("n1", 10, vec![exclusive, shell(other, LONG)]);
    let agent = start("n1", tmp.path(), &[&fake]).await;
    eventually("both started", || has(&fake, "n1", started(A1)) && has(&fake, "n1", started(other))).await;
    fake.change(|book| book.grants = false);
    eventually("stopped", || has(&fake, "n1", exited(A1))).await;
    let fenced = |seen: &Observation| matches!(seen, Observation::Exited { exit, .. } if exit.status == ExitStatus::Fenced);
    assert!(has(&fake, "n1", fenced), "{:?}", fake.observations("n1"));
    assert!(!has(&fake, "n1", exited(other)), "losing the control plane stops no other job");
    agent.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_health_and_metrics_are_served_to_the_own_cluster() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    fake.desire("n1", 10, vec![shell(A1, "echo one; sleep 0.2; echo two; exit 1")]);
    let agent = start("n1", tmp.path(), &[&fake]).await;
    eventually("started", || has(&fake, "n1", started(A1))).await;
    let mut client = PeerServiceClient::connect(format!("http://{}", agent.address)).await.expect("connects");
    let request = peer_pb::ReadLogRequest {
        cluster_id: CLUSTER.into(),
        attempt: A1.into(),
        follow: true,
        ..Default::default()
    };
    let stranger = peer_pb::ReadLogRequest { cluster_id: "another".into(), ..request.clone() };
    // Not now: the stranger may be of a cluster that goes on from ours.
    assert_eq!(client.read_log(stranger).await.expect_err("refused").code(), tonic::Code::Unavailable);
    let mut stream = client.read_log(request).await.expect("serves").into_inner();
    let (mut lines, mut ended) = (Vec::new(), false);
    while let Some(message) = stream.message().await.expect("goes on") {
        lines.extend(
            message.records.into_iter().map(|record| String::from_utf8_lossy(&record.text).into_owned()),
        );
        ended = message.end;
    }
    assert_eq!((lines, ended), (vec!["one".to_owned(), "two".to_owned()], true));
    for (path, wanted) in [("/healthz", "ok"), ("/metrics", "outlast_agent_workers_started_total 1")] {
        let text = get(agent.address, path).await;
        assert!(text.contains(wanted), "{wanted} is missing in {text}");
    }
    agent.shutdown(StopWorkers::Yes).await;
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("asks");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("answers");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_the_cluster_does_not_want_ends_and_says_why() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    fake.change(|book| {
        let reason = "another agent is registered as n1".to_owned();
        let refused = pb::Refused { reason, r#final: true, ..Default::default() };
        book.nodes.entry("n1".to_owned()).or_default().refuse = Some(refused);
    });
    let mut agent = start("n1", tmp.path(), &[&fake]).await;
    let err = agent.wait().await.expect_err("it ends");
    assert!(err.to_string().contains("another agent is registered as n1"), "{err}");
    let taken = AgentConfig {
        listen: fake.address.parse().expect("an address"),
        data_dir: tmp.path().join("x"),
        ..AgentConfig::default()
    };
    let err = Agent::start(taken).await.err().expect("the port is taken");
    assert!(err.to_string().contains("cannot listen on"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_copied_sealed_and_restored_also_from_a_peer_when_the_own_copy_is_damaged() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    let (dir1, dir2) = (tmp.path().join("n1"), tmp.path().join("n2"));
    let (agent1, agent2) = (start("n1", &dir1, &[&fake]).await, start("n2", &dir2, &[&fake]).await);
    let peer =
        |agent: &RunningAgent| pb::Peer { node: agent.node.to_string(), address: agent.address.to_string() };
    let peers = [peer(&agent1), peer(&agent2)];
    let worker = pb::DesiredWorker { replicas: 2, replica_peers: vec![peers[1].clone()], ..shell(A1, LONG) };
    fake.desire("n1", 10, vec![worker]);
    eventually("started", || has(&fake, "n1", started(A1))).await;

    let weights = tmp.path().join("weights");
    std::fs::create_dir(&weights).expect("makes");
    std::fs::write(weights.join("w"), b"forty-two").expect("writes");
    let mut client = socket(&dir1, A1).await;
    let report = worker_pb::ReportRequest { step: 7, metrics: [("loss".to_owned(), 0.5)].into() };
    assert!(!client.report(report).await.expect("reports").into_inner().checkpoint_due);
    let request = worker_pb::SaveCheckpointRequest {
        step: 7,
        directory: weights.to_string_lossy().into_owned(),
        in_turn: false,
    };
    let saved = client.save_checkpoint(request).await.expect("saves").into_inner();
    assert_eq!(saved.checkpoint, "ck1");
    eventually("two holders", || fake.node("n1").receipts.iter().any(|receipt| receipt.holders.len() == 2))
        .await;
    let receipt = fake.node("n1").receipts[0].clone();
    eventually("progress", || fake.node("n1").progress.iter().any(|progress| progress.step == 7)).await;

    let update = pb::CheckpointUpdate {
        job: "j1".into(),
        checkpoint: "ck1".into(),
        state: "sealed".into(),
        index: 11,
        seal: "{}".into(),
    };
    fake.change(|book| book.nodes.values_mut().for_each(|node| node.updates = vec![update.clone()]));
    let wait = worker_pb::WaitCheckpointRequest { checkpoint: "ck1".into() };
    assert!(client.wait_checkpoint(wait).await.expect("answers").into_inner().sealed);
    eventually("no more receipts", || fake.node("n1").receipts.is_empty()).await;

    let shard =
        walk(&dir2.join("shards")).into_iter().find(|path| path.ends_with(format!("0-{}", saved.root)));
    let shard = shard.expect("the copy is on the peer's disk");
    let mut bytes = std::fs::read(&shard).expect("reads");
    bytes[600] ^= 1;
    std::fs::write(&shard, bytes).expect("writes");
    let restore = pb::Restore {
        checkpoint: "ck1".into(),
        step: 7,
        attempt: A1.into(),
        root: receipt.root.clone(),
        size_bytes: receipt.size_bytes,
        holders: peers.to_vec(),
        stored: false,
    };
    let script = "test \"$(cat $OUTLAST_RESTORE_DIR/w)\" = forty-two && exit 5";
    fake.desire("n2", 20, vec![pb::DesiredWorker { restore: Some(restore), ..shell(A2, script) }]);
    eventually("released", || has(&fake, "n2", released(A2))).await;
    let good = |seen: &Observation| matches!(seen, Observation::Exited { exit, .. } if exit.status == ExitStatus::Code(5));
    assert!(has(&fake, "n2", good), "{:?}", fake.observations("n2"));
    assert!(has(&fake, "n2", |seen| matches!(seen, Observation::Restored { .. })));
    agent1.shutdown(StopWorkers::Yes).await;
    agent2.shutdown(StopWorkers::Yes).await;
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_whose_record_is_gone_ends_and_the_bytes_stay() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    fake.desire("n1", 5, vec![shell(A1, LONG)]);
    let agent = start("n1", tmp.path(), &[&fake]).await;
    eventually("started", || has(&fake, "n1", started(A1))).await;
    let weights = tmp.path().join("weights");
    std::fs::create_dir(&weights).expect("makes");
    std::fs::write(weights.join("w"), b"forty-two").expect("writes");
    let directory = weights.to_string_lossy().into_owned();
    let request = worker_pb::SaveCheckpointRequest { step: 7, directory, in_turn: false };
    let saved = socket(tmp.path(), A1).await.save_checkpoint(request).await.expect("saves").into_inner();
    eventually("a receipt", || fake.node("n1").receipts.iter().any(|receipt| !receipt.holders.is_empty()))
        .await;
    let (job, checkpoint) = ("j1".to_owned(), saved.checkpoint.clone());
    let gone = pb::CheckpointUpdate { job, checkpoint, state: "gone".into(), index: 9, seal: String::new() };
    fake.change(|book| book.nodes.values_mut().for_each(|node| node.updates = vec![gone.clone()]));
    eventually("no more receipts", || fake.node("n1").receipts.is_empty()).await;
    beats(&fake, "n1").await;
    assert!(fake.node("n1").receipts.is_empty(), "it does not come back");
    let name = format!("0-{}", saved.root);
    assert!(walk(&tmp.path().join("shards")).iter().any(|path| path.ends_with(&name)), "the bytes stay");
    agent.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_that_is_not_as_the_log_says_is_made_anew_though_no_session_tells_of_it() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    fake.desire("n1", 5, vec![shell(A1, LONG)]);
    let agent = start("n1", tmp.path(), &[&fake]).await;
    eventually("started", || has(&fake, "n1", started(A1))).await;
    std::fs::write(tmp.path().join("w"), b"forty-two").expect("writes");
    let directory = tmp.path().join("w").to_string_lossy().into_owned();
    let request = worker_pb::SaveCheckpointRequest { step: 7, directory, in_turn: false };
    let saved = socket(tmp.path(), A1).await.save_checkpoint(request).await.expect("saves").into_inner();
    agent.shutdown(StopWorkers::Yes).await;
    let text = |cluster: &str, mark: u32| format!(r#"{{"cluster_id": "{cluster}", "mark": {mark}}}"#);
    fake.change(|book| {
        book.fates.insert(saved.checkpoint.clone(), "sealed");
        book.seal = text(CLUSTER, 1);
    });
    let store = || ShardStore::open(&tmp.path().join("shards")).expect("nobody uses it");
    let (key, root) = store().list().first().map(|meta| (meta.key, meta.root)).expect("saved");
    let seal = store().seal_path(&key, root);
    assert!(!seal.exists(), "nobody has told of it yet");
    // The log is not asked about what was written just now.
    let bytes = std::fs::File::options().append(true).open(seal.with_extension("")).expect("the shard");
    bytes.set_modified(std::time::SystemTime::now() - 10 * PATIENCE).expect("made older");
    let renewed = async || {
        let agent = start("n1", tmp.path(), &[&fake]).await;
        let is_good = || std::fs::read_to_string(&seal).is_ok_and(|text| text.contains(r#""mark":1"#));
        eventually("a good seal", is_good).await;
        agent.shutdown(StopWorkers::Yes).await;
    };
    renewed().await;
    std::fs::write(&seal, b"{").expect("damaged");
    renewed().await;
    let note = SealNote::new(root, &text("before", 0)).expect("JSON");
    store().mark_sealed(&key, &note).expect("a predecessor's");
    renewed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusive_worker_has_its_whole_grace_as_long_as_the_lease_is_renewed() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    let agent = start("n1", tmp.path(), &[&fake]).await;
    // Longer than the lease that holds when the stop comes.
    let script = "trap 'sleep 6; exit 7' TERM; echo up > up; while :; do sleep 0.1; done";
    let worker = pb::DesiredWorker { exclusive: true, ..shell("j1/0@1.1", script) };
    fake.desire("n1", 5, vec![worker.clone()]);
    let up = tmp.path().join("workers/j1.0.1.1-0/work/up");
    eventually("the trap is set", || up.exists()).await;
    fake.desire("n1", 6, vec![pb::DesiredWorker { stop_grace_ms: 60_000, ..stopped(worker) }]);
    eventually("it ends", || has(&fake, "n1", exited("j1/0@1.1"))).await;
    let ended_by_itself = |observation: &Observation| matches!(observation, Observation::Exited { exit, .. } if exit.status == ExitStatus::Code(7));
    assert!(has(&fake, "n1", ended_by_itself), "{:?}", fake.observations("n1"));
    agent.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_takes_nothing_more_starts_nothing_but_stops() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    let agent = start("n1", tmp.path(), &[&fake]).await;
    let worker = shell("j1/0@1.1", "sleep 60");
    fake.desire("n1", 5, vec![worker.clone()]);
    eventually("it runs", || has(&fake, "n1", started("j1/0@1.1"))).await;
    // As a full disk does: the agent's index cannot be written any more.
    std::fs::create_dir(tmp.path().join("agent.tmp")).expect("in the way");
    fake.desire("n1", 6, vec![stopped(worker), shell("j2/0@1.1", "sleep 60")]);
    eventually("it is stopped", || has(&fake, "n1", released("j1/0@1.1"))).await;
    assert!(!has(&fake, "n1", started("j2/0@1.1")));
    std::fs::remove_dir(tmp.path().join("agent.tmp")).expect("out of the way");
    eventually("there is room again", || has(&fake, "n1", started("j2/0@1.1"))).await;
    agent.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_is_repeated_is_answered_with_what_the_first_one_saved() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    let agent = start("n1", tmp.path(), &[&fake]).await;
    fake.desire("n1", 5, vec![shell(A1, LONG)]);
    eventually("started", || has(&fake, "n1", started(A1))).await;
    let mut worker = socket(tmp.path(), A1).await;
    let part = tmp.path().join("part");
    std::fs::create_dir(&part).expect("made");
    std::fs::write(part.join("weights"), b"1234").expect("written");
    let save = |step| worker_pb::SaveCheckpointRequest {
        step,
        directory: part.display().to_string(),
        in_turn: false,
    };
    let first = worker.save_checkpoint(save(3)).await.expect("saved").into_inner();
    let again = worker.save_checkpoint(save(3)).await.expect("answered").into_inner();
    assert_eq!(first, again);
    let next = worker.save_checkpoint(save(4)).await.expect("saved").into_inner();
    assert_ne!(first.checkpoint, next.checkpoint);
    agent.shutdown(StopWorkers::Yes).await;
}

/// What the node said under its newest registration.
fn newest_observations(fake: &Fake, node: &str) -> Vec<Observation> {
    let book = fake.node(node);
    let hello = book.hellos.last().and_then(|hello| hello.registration.as_ref()).expect("registered");
    let of_newest = book.observations.into_iter().filter(|((of, _), _)| *of == hello.registration);
    of_newest.map(|(_, observation)| observation).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_was_seen_to_do_is_told_again_when_it_is_adopted() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("bound").port().into();
    let check = pb::ReadyCheck { kind: "tcp".into(), port, path: String::new() };
    let checked = pb::DesiredWorker { ready: Some(check), ..shell("j2/0@1.1", LONG) };
    // The log gets nothing of what the first agent says.
    fake.change(|book| book.acknowledges = false);
    fake.desire("n1", 10, vec![shell(A1, LONG), checked.clone(), shell("j3/0@1.1", LONG)]);
    let first = start("n1", tmp.path(), &[&fake]).await;
    eventually("all started", || {
        [A1, "j2/0@1.1", "j3/0@1.1"].into_iter().all(|attempt| has(&fake, "n1", started(attempt)))
    })
    .await;
    socket(tmp.path(), A1).await.ready(worker_pb::ReadyRequest {}).await.expect("taken");
    let mark = tmp.path().join("workers/j2.0.1.1-0/ready");
    eventually("the port was seen", || mark.exists()).await;
    first.shutdown(StopWorkers::No).await;
    // It was ready once: that its port answers no more is for other eyes.
    drop(listener);

    fake.change(|book| book.welcome_index = 20);
    let running = [shell(A1, LONG), checked, shell("j3/0@1.1", LONG)];
    let running = running.map(|worker| pb::DesiredWorker { may_start: false, ..worker });
    fake.desire("n1", 20, running.to_vec());
    let second = start("n1", tmp.path(), &[&fake]).await;
    eventually("a second hello", || fake.node("n1").hellos.len() >= 2).await;
    eventually("both told again", || {
        let seen = newest_observations(&fake, "n1");
        let met = |one: &Observation| {
            matches!(one, Observation::Rendezvous { attempt, .. } if attempt.to_string() == "j3/0@1.1")
        };
        seen.iter().any(ready(A1)) && seen.iter().any(ready("j2/0@1.1")) && seen.iter().any(met)
    })
    .await;
    beats(&fake, "n1").await;
    assert!(!has(&fake, "n1", ready("j3/0@1.1")), "the third never said so");
    second.shutdown(StopWorkers::Yes).await;
}

/// A program that runs the real keeper, and passes on what it says only when `open` exists.
fn slow_keeper(dir: &Path) -> (PathBuf, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let (exe, open) = (dir.join("slow-keeper"), dir.join("open"));
    let script = format!(
        "#!/bin/sh\n'{}' \"$@\" | {{ while [ ! -e '{}' ]; do sleep 0.05; done; cat; }}\n",
        keeper_exe().display(),
        open.display()
    );
    std::fs::write(&exe, script).expect("written");
    std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o700)).expect("set");
    (exe, open)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_ready_before_its_start_was_seen_is_told_after_it() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    let (exe, open) = slow_keeper(tmp.path());
    let data = tmp.path().join("data");
    let agent = start_with("n1", &data, &[&fake], exe).await;
    fake.desire("n1", 5, vec![shell(A1, "echo up > up; exec sleep 1000")]);
    let up = data.join("workers/j1.0.1.1-0/work/up");
    eventually("it runs", || up.exists()).await;
    socket(&data, A1).await.ready(worker_pb::ReadyRequest {}).await.expect("taken");
    std::fs::write(&open, b"").expect("written");
    eventually("both", || has(&fake, "n1", started(A1)) && has(&fake, "n1", ready(A1))).await;
    let seen = fake.observations("n1");
    let at = |wanted: &dyn Fn(&Observation) -> bool| seen.iter().position(wanted);
    assert!(at(&started(A1)) < at(&ready(A1)), "the log takes it only of a started worker: {seen:?}");
    agent.shutdown(StopWorkers::Yes).await;
}

/// Says of an ended worker that one of its processes is left, and makes one.
fn leave_one_behind(worker: &Path) -> std::process::Child {
    let read = |name: &str| -> serde_json::Value {
        let bytes = std::fs::read(worker.join("keeper").join(name)).expect("readable");
        serde_json::from_slice(&bytes).expect("json")
    };
    let (mut exit, spec) = (read("exit.json"), read("spec.json"));
    let left = std::process::Command::new("sleep")
        .arg("1000")
        .env("OUTLAST_KEEPER", spec["mark"].as_str().expect("a mark"))
        .spawn()
        .expect("sleeps");
    exit["leftovers"] = 1.into();
    std::fs::write(worker.join("keeper/exit.json"), exit.to_string()).expect("written");
    left
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_processes_that_could_not_be_killed_is_released_once_they_are_gone() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    let script = "while [ ! -e end ]; do sleep 0.1; done; exit 4";
    fake.desire("n1", 10, vec![shell(A1, script)]);
    let first = start("n1", tmp.path(), &[&fake]).await;
    eventually("started", || has(&fake, "n1", started(A1))).await;
    first.shutdown(StopWorkers::No).await;
    let worker = tmp.path().join("workers/j1.0.1.1-0");
    std::fs::write(worker.join("work/end"), b"").expect("written");
    eventually("it has ended", || worker.join("keeper/exit.json").exists()).await;
    let mut left = leave_one_behind(&worker);

    fake.change(|book| book.welcome_index = 20);
    fake.desire("n1", 20, vec![pb::DesiredWorker { may_start: false, ..shell(A1, script) }]);
    let second = start("n1", tmp.path(), &[&fake]).await;
    eventually("released", || has(&fake, "n1", released(A1))).await;
    let hello = fake.node("n1").hellos.last().cloned().expect("there");
    let adopted = hello.registration.expect("there").adopted;
    assert_eq!(adopted.len(), 1, "its resources were taken when the agent registered");
    assert!(has(&fake, "n1", exited(A1)));
    assert!(left.try_wait().expect("ours").is_some(), "released although a process of it lives");
    second.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_learns_what_was_decided_while_its_agent_was_away() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    fake.desire("n1", 10, vec![shell(A1, LONG)]);
    let first = start("n1", tmp.path(), &[&fake]).await;
    eventually("started", || has(&fake, "n1", started(A1))).await;
    first.shutdown(StopWorkers::No).await;
    // Nothing of them is held here, so no session will ever say a word about them.
    fake.change(|book| {
        book.welcome_index = 20;
        book.fates =
            [("ck1", "retired"), ("ck2", "sealed"), ("ck4", "open")].map(|(k, v)| (k.to_owned(), v)).into();
    });
    fake.desire("n1", 20, vec![pb::DesiredWorker { may_start: false, ..shell(A1, LONG) }]);
    let second = start("n1", tmp.path(), &[&fake]).await;
    let worker = socket(tmp.path(), A1).await;
    let wait = async |checkpoint: &str| {
        let request = worker_pb::WaitCheckpointRequest { checkpoint: checkpoint.to_owned() };
        let answer = tokio::time::timeout(PATIENCE, worker.clone().wait_checkpoint(request)).await;
        answer.expect("in time").expect("answers").into_inner()
    };
    assert_eq!(wait("ck1").await.reason, "it was retired");
    assert!(wait("ck2").await.sealed);
    let unknown = wait("ck3").await;
    assert!(!unknown.sealed && unknown.reason.contains("knows no such checkpoint"), "{unknown:?}");
    let decide = async {
        beats(&fake, "n1").await;
        fake.change(|book| book.fates = [("ck4".to_owned(), "sealed")].into());
    };
    let (answer, ()) = tokio::join!(wait("ck4"), decide);
    assert!(answer.sealed, "it is asked again");
    second.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_carry_the_nodes_health() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    let agent = start("n1", tmp.path(), &[&fake]).await;
    let health = || fake.node("n1").health.expect("said with every heartbeat");
    eventually("a heartbeat", || fake.node("n1").heartbeats > 0).await;
    eventually("the disk is seen", || health().disk_size_bytes > 0 && health().disk_free_bytes > 0).await;
    let canary = tmp.path().join("canary");
    eventually("the canary", || canary.exists()).await;
    // Nothing can be written there any more.
    std::fs::remove_file(&canary).expect("removed");
    std::fs::create_dir(&canary).expect("in the way");
    let young = health().disk_canary_age_ms;
    eventually("it ages, and the heart goes on", || health().disk_canary_age_ms > young + 3_000).await;
    std::fs::remove_dir(&canary).expect("out of the way");
    eventually("it is young again", || health().disk_canary_age_ms < 3_000).await;
    agent.shutdown(StopWorkers::Yes).await;
}

/// One that has ended and waits to be collected is not.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusive_worker_that_outlives_the_lease_ends_its_registration_for_good() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    fake.desire("n1", 10, vec![pb::DesiredWorker { exclusive: true, ..shell(A1, LONG) }]);
    let agent = start("n1", tmp.path(), &[&fake]).await;
    eventually("started", || has(&fake, "n1", started(A1))).await;
    let Ok(Adopted::Running(keeper)) = Keeper::adopt(&tmp.path().join("workers/j1.0.1.1-0/keeper")) else {
        panic!("its keeper lives")
    };
    // Neither by its own timer nor on the agent's word can it kill now.
    let pid = rustix::process::Pid::from_raw(keeper.pid().cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stopped");
    fake.change(|book| book.grants = false);
    eventually("the agent leaves", || fake.sessions_open() == 0).await;
    assert!(is_alive(keeper.worker_pid()), "the worker has outlived the lease");

    let registration = |hello: &pb::Hello| hello.registration.clone().expect("there");
    let old = registration(&fake.node("n1").hellos[0]).registration;
    let renewals = || fake.node("n1").heartbeats_of.get(&old).copied().unwrap_or(0);
    let before = renewals();
    // The leader would renew it: it must not be asked to.
    fake.change(|book| {
        book.grants = true;
        book.welcome_index = 30;
    });
    fake.desire("n1", 30, Vec::new());
    let anew = || fake.node("n1").hellos.iter().map(registration).find(|anew| anew.registration != old);
    eventually("it registers anew", || anew().is_some()).await;
    assert!(renewals() <= before + 1, "one hedge may have been under way; {} were sent", renewals() - before);
    assert_eq!(anew().expect("just seen").adopted, [], "what outlived the lease is gone by then");
    assert!(!is_alive(keeper.worker_pid()));
    agent.shutdown(StopWorkers::Yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_network_is_tried_when_an_agent_registers() {
    let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
    let one = start("n1", &tmp.path().join("one"), &[&fake]).await;
    let network = |node: &str| {
        let health = fake.node(node).health.unwrap_or_default();
        (health.network_bytes_per_s, health.network_error)
    };
    let peer = pb::Peer { node: "n1".into(), address: one.address.to_string() };
    fake.change(|book| book.peers = vec![peer.clone()]);
    let with = |name: &str| config(name, &tmp.path().join(name), &[&fake], keeper_exe());
    let data_listen = Some("127.0.0.1:0".parse().expect("an address"));
    let two = Agent::start(AgentConfig { data_listen, ..with("n2") }).await.expect("starts");
    eventually("a rate", || network("n2").0 > 0).await;
    assert_eq!(network("n2").1.filter(|error| !error.contains("only")), None, "a busy machine may be slow");
    let hello = fake.node("n2").hellos[0].registration.clone().expect("a registration");
    assert!(!hello.data_address.is_empty() && hello.data_address != hello.address, "{hello:?}");

    let wrong = Some(one.address.to_string());
    let three = Agent::start(AgentConfig { data_address: wrong, ..with("n3") }).await.expect("starts");
    eventually("what is wrong", || network("n3").1.is_some()).await;
    let error = network("n3").1.expect("seen above");
    assert!(error.contains("this is node n1, not n3"), "{error}");
    for agent in [one, two, three] {
        agent.shutdown(StopWorkers::Yes).await;
    }
}
