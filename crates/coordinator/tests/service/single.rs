//! One coordinator in this process, on its real port, with an agent that only speaks.

use std::time::Duration;

use crate::support::{
    FakeAgent, PATIENCE, config, control, http, job_when, observation, registration, start, submit,
};
use outlast_coordinator::{Coordinator, CoordinatorConfig, StartError};
use outlast_proto::control::v1 as control;
use outlast_proto::control::v1::control_service_client::ControlServiceClient;
use outlast_proto::node::v1 as pb;
use outlast_proto::node::v1::coordinator_message::Message as Down;
use outlast_proto::node::v1::node_service_client::NodeServiceClient;
use outlast_proto::node::v1::observation::What;
use outlast_proto::status::Failure;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

fn exited(code: i32) -> What {
    let status = pb::ExitStatus { status: Some(pb::exit_status::Status::Code(code)) };
    What::Exited(pb::ExitRecord {
        status: Some(status),
        at_ms: 1,
        detail: String::new(),
        last_lines: vec!["bye".into()],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_from_submission_to_success_through_one_agent() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(CoordinatorConfig { init: true, ..config(folder.path()) }).await;
    let address = running.address.to_string();
    let mut agent = FakeAgent::connect(&address, registration("n1", 7)).await;
    let grant = agent.grant().await;
    assert_eq!((grant.lease_ms, grant.registration), (4_000, 7));
    assert!(grant.ack_seq >= 1 && grant.incarnation > 0);

    let mut client = control(&address).await;
    let job = submit(&mut client, "hello").await;
    assert_eq!(submit(&mut client, "hello").await, job, "a retry with the same request id is the same job");
    let (index, worker) = agent.worker(|worker| worker.may_start && !worker.stop).await;
    assert_eq!((worker.world_size, worker.command.as_slice()), (1, &["true".to_owned()][..]));
    assert!(agent.grant().await.assignments_index <= index);

    let attempt = worker.attempt;
    let whats =
        [What::Rendezvous("127.0.0.1:1".into()), What::Started(true), exited(0), What::Released(true)];
    agent.observe(1, whats.into_iter().map(|what| observation(&attempt, what)).collect()).await;
    let number = agent
        .wait_for("the acknowledgement", |message| match message {
            Down::Observed(observed) => Some(observed.number),
            _ => None,
        })
        .await;
    assert_eq!(number, 4);
    let done = job_when(&mut client, "hello", |job| job.state == "succeeded").await;
    assert_eq!(done.groups[0].attempts.len(), 1);

    check_http(&address, &job).await;
    let explained =
        client.explain_job(control::ExplainJobRequest { job: job.clone() }).await.expect("explained");
    let lines = explained.into_inner().lines;
    assert!(lines[0].text.contains("operator tester submitted hello"), "{lines:?}");
    running.stop();
    running.wait().await;
}

async fn check_http(address: &str, job: &str) {
    let (status, body) = http(address, "GET /v1/jobs/hello").await;
    assert!(
        status == 200 && body.contains(job) && body.contains("\"state\":\"succeeded\""),
        "{status} {body}"
    );
    let (status, body) = http(address, "GET /v1/jobs/nothing").await;
    assert!(status == 404 && body.contains("\"error\":\"not_found\""), "{status} {body}");
    let json = "POST /v1/jobs\ncontent-type: application/json\n\n{\"name\": \"x\", \"comand\": [\"true\"]}";
    let (status, body) = http(address, json).await;
    assert!(status == 400 && body.contains("comand") && body.contains("command"), "{status} {body}");
    let (status, _) = http(address, "POST /v1/jobs\ncontent-type: text/plain\n\n{}").await;
    assert_eq!(status, 403, "a page of somebody else must not be able to submit");
    let (status, _) = http(address, "GET /v1/jobs\nhost: evil.example").await;
    assert_eq!(status, 403, "a name that somebody else chose must not lead here");
    assert_eq!(http(address, "GET /readyz").await.0, 200);
    let (_, page) = http(address, "GET /").await;
    assert!(page.contains("hello") && page.contains("n1"), "{page}");
    let (_, text) = http(address, "GET /metrics").await;
    for wanted in [
        "outlast_coordinator_leader 1",
        "outlast_node_up{node=\"n1\"} 1",
        "outlast_attempts_started_total{kind=\"training\"} 1",
        "outlast_jobs{state=\"succeeded\",kind=\"training\"} 1",
        "outlast_build_info",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in {text}");
    }
    let (_, targets) = http(address, "GET /sd/prometheus").await;
    assert!(targets.contains("__meta_outlast_node"), "{targets}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_registration_is_refused_for_good() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(CoordinatorConfig { init: true, ..config(folder.path()) }).await;
    let address = running.address.to_string();
    let mut first = FakeAgent::connect(&address, registration("n1", 1)).await;
    first.grant().await;
    let mut second = FakeAgent::connect(&address, registration("n1", 2)).await;
    second.grant().await;
    assert!(first.refusal().await.r#final);
    let mut late = FakeAgent::connect(&address, registration("n1", 1)).await;
    let refused = late.refusal().await;
    assert!(refused.r#final && !refused.register_anew, "{refused:?}");
    let mut stranger = FakeAgent::connect(&address, registration("n2", 1)).await;
    stranger.grant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_adopted_and_no_record_holds_is_stopped() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(CoordinatorConfig { init: true, ..config(folder.path()) }).await;
    let adopted = pb::WorkerRef { attempt: "j99/0@1.1".to_owned(), rank: 2 };
    let returning = pb::Registration { adopted: vec![adopted], ..registration("n1", 1) };
    let mut agent = FakeAgent::connect(&running.address.to_string(), returning).await;
    let (_, worker) = agent.worker(|worker| worker.stop).await;
    assert_eq!((worker.attempt.as_str(), worker.rank, worker.stop_grace_ms), ("j99/0@1.1", 2, 0));
    assert!(!worker.may_start);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_a_checkpoint_can_be_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(CoordinatorConfig { init: true, ..config(folder.path()) }).await;
    let address = running.address.to_string();
    let mut agent = FakeAgent::connect(&address, registration("n1", 7)).await;
    agent.grant().await;
    let mut client = control(&address).await;
    let job = submit(&mut client, "saver").await;
    let status = client.cluster_status(control::ClusterStatusRequest {}).await.expect("answers").into_inner();
    let (_, worker) = agent.worker(|worker| worker.may_start).await;
    agent.observe(1, vec![observation(&worker.attempt, What::Started(true))]).await;
    job_when(&mut client, "saver", |job| job.groups[0].attempts[0].phase == "running").await;

    let mut node = NodeServiceClient::connect(format!("http://{address}")).await.expect("it listens");
    let (node_name, attempt) = ("n1".to_owned(), worker.attempt);
    let (cluster_id, in_turn) = (String::new(), false);
    let open =
        pb::OpenCheckpointRequest { node: node_name, registration: 7, attempt, step: 3, cluster_id, in_turn };
    let opened = node.open_checkpoint(open.clone()).await.expect("opened").into_inner().checkpoint;
    // It may be known in a moment; what is over stays over.
    let unknown = pb::OpenCheckpointRequest { registration: 8, ..open.clone() };
    let refused = node.open_checkpoint(unknown).await.expect_err("not registered");
    assert!(Failure::from_status(&refused).is_retryable(), "{refused}");
    let over = pb::OpenCheckpointRequest { attempt: open.attempt.replace("@1.1", "@1.9"), ..open };
    let refused = node.open_checkpoint(over).await.expect_err("not the current attempt");
    assert!(matches!(Failure::from_status(&refused), Failure::Fenced { .. }), "{refused}");
    let ask = |cluster_id: &str, checkpoint: &str| pb::GetCheckpointFateRequest {
        cluster_id: cluster_id.to_owned(),
        checkpoint: Some(pb::CheckpointRef { job: job.clone(), checkpoint: checkpoint.to_owned() }),
    };
    let fate = node.get_checkpoint_fate(ask(&status.cluster_id, &opened)).await.expect("answered");
    assert_eq!(fate.into_inner().state, "open");
    let fate = node.get_checkpoint_fate(ask(&status.cluster_id, "ck999")).await.expect("answered");
    assert_eq!(fate.into_inner().state, "unknown");
    node.get_checkpoint_fate(ask("another", &opened)).await.expect_err("another cluster's");
    running.stop();
    running.wait().await;
}

async fn node_when(
    client: &mut ControlServiceClient<Channel>,
    wanted: impl Fn(&control::Node) -> bool,
) -> control::Node {
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            let request = control::GetNodeRequest { node: "n1".into() };
            // Unknown at first: its registration is a commit.
            if let Ok(answer) = client.get_node(request).await
                && wanted(answer.get_ref())
            {
                return answer.into_inner();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    found.await.expect("the node comes to the wanted state")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_full_or_hung_disk_gets_nothing_new_and_is_not_lost_for_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(CoordinatorConfig { init: true, ..config(folder.path()) }).await;
    let address = running.address.to_string();
    let mut agent = FakeAgent::connect(&address, registration("n1", 7)).await;
    let well = pb::Health { disk_free_bytes: 50 << 30, disk_size_bytes: 100 << 30, ..pb::Health::default() };
    agent.set_health(pb::Health { disk_free_bytes: 1 << 20, ..well.clone() });
    let mut client = control(&address).await;
    let node = node_when(&mut client, |node| node.condition == "suspect").await;
    assert!(node.suspect_reason.contains("its disk is full"), "{node:?}");
    assert_eq!(node.health.expect("said").disk_free_bytes, 1 << 20);

    agent.set_health(pb::Health { disk_canary_age_ms: 60_000, ..well.clone() });
    node_when(&mut client, |node| node.suspect_reason.contains("no small write for 60 s")).await;
    let job = submit(&mut client, "patient").await;
    job_when(&mut client, "patient", |job| job.groups[0].waiting.contains("no small write")).await;
    let explained = client.explain_job(control::ExplainJobRequest { job }).await.expect("explained");
    let now = explained.into_inner().now;
    assert!(now.contains("n1: its disk has finished no small write"), "{now}");
    agent.grant().await;

    agent.set_health(well);
    let (_, worker) = agent.worker(|worker| worker.may_start).await;
    assert_eq!(node_when(&mut client, |node| node.condition == "ready").await.suspect_reason, "");
    // What runs there goes on when the disk fills up.
    agent.observe(1, vec![observation(&worker.attempt, What::Started(true))]).await;
    job_when(&mut client, "patient", |job| job.groups[0].attempts[0].phase == "running").await;
    agent.set_health(pb::Health { disk_size_bytes: 100 << 30, ..pb::Health::default() });
    let node = node_when(&mut client, |node| node.condition == "suspect").await;
    assert_eq!((node.workers.len(), node.registration), (1, "r7".to_owned()));
    let job = job_when(&mut client, "patient", |_| true).await;
    assert_eq!(job.groups[0].attempts[0].phase, "running");
    running.stop();
    running.wait().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_is_lost_and_its_attempt_stopped() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(CoordinatorConfig { init: true, ..config(folder.path()) }).await;
    let address = running.address.to_string();
    let mut agent = FakeAgent::connect(&address, registration("n1", 1)).await;
    agent.grant().await;
    let mut client = control(&address).await;
    submit(&mut client, "lonely").await;
    let (_, worker) = agent.worker(|worker| worker.may_start).await;
    agent.observe(1, vec![observation(&worker.attempt, What::Started(true))]).await;
    job_when(&mut client, "lonely", |job| job.groups[0].attempts[0].phase == "running").await;
    agent.be_silent();
    let job = job_when(&mut client, "lonely", |job| job.groups[0].attempts[0].cause == "node_lost").await;
    assert!(matches!(job.groups[0].attempts[0].phase.as_str(), "stopping" | "ended"), "{job:?}");
    let node =
        client.get_node(control::GetNodeRequest { node: "n1".into() }).await.expect("known").into_inner();
    assert_eq!(node.condition, "lost");
    let refused = agent.refusal().await;
    assert!(refused.register_anew && !refused.r#final, "the node may come back: {refused:?}");
    let mut late = FakeAgent::connect(&address, registration("n1", 1)).await;
    assert!(late.refusal().await.register_anew, "its registration never comes back");
    let explained =
        client.explain_job(control::ExplainJobRequest { job: "lonely".into() }).await.expect("explained");
    let explained = explained.into_inner();
    assert!(explained.lines.iter().any(|line| line.text.contains("its lease ran out")), "{explained:?}");
    let logs = control::JobLogsRequest { job: "lonely".into(), ..control::JobLogsRequest::default() };
    let mut lines = client.job_logs(logs).await.expect("a stream").into_inner();
    let page = lines.message().await.expect("a page").expect("one line at least");
    assert_eq!(page.lines[0].stream, "gap", "what cannot be had is said: {page:?}");
    assert!(String::from_utf8_lossy(&page.lines[0].text).contains("node n1 is lost"), "{page:?}");
    assert!(lines.message().await.expect("an end").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_without_a_cluster_says_so_and_can_be_given_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(config(folder.path())).await;
    let address = running.address.to_string();
    let mut client = control(&address).await;
    let status = client.list_jobs(control::ListJobsRequest::default()).await.expect_err("no cluster");
    let failure = Failure::from_status(&status);
    assert!(failure.hint().contains("outlast cluster init"), "{failure:?}");
    let (code, body) = http(&address, "GET /readyz").await;
    assert!(code == 503 && body.contains("no cluster"), "{code} {body}");
    let init = control::InitClusterRequest { profile: "lan".into() };
    let status = client.init_cluster(init.clone()).await.expect("made").into_inner();
    assert!(!status.cluster_id.is_empty() && status.coordinators.len() == 1, "{status:?}");
    let again = client.init_cluster(init).await.expect_err("it has one");
    assert!(matches!(Failure::from_status(&again), Failure::Conflict { .. }));
    client.list_jobs(control::ListJobsRequest::default()).await.expect("answers");
    let chunk = control::UploadBundleRequest { chunk: vec![1], ..control::UploadBundleRequest::default() };
    let status = client.upload_bundle(tokio_stream::iter([chunk])).await.expect_err("nobody could keep it");
    let failure = Failure::from_status(&status);
    assert!(failure.to_string().contains("no node is registered"), "{failure:?}");
    assert!(failure.hint().contains("start an agent"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(CoordinatorConfig { init: true, ..config(folder.path()) }).await;
    let other = tempfile::tempdir().expect("a folder");
    let taken = CoordinatorConfig { listen: running.address, ..config(other.path()) };
    let error = Coordinator::start(taken, CancellationToken::new()).await.err().expect("the port is taken");
    assert!(
        matches!(error, StartError::AddressInUse { .. }) && error.to_string().contains("--listen"),
        "{error}"
    );
    let error =
        Coordinator::start(config(folder.path()), CancellationToken::new()).await.err().expect("locked");
    assert!(matches!(error, StartError::Open { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_coordinator_still_knows_its_jobs() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(CoordinatorConfig { init: true, ..config(folder.path()) }).await;
    let mut client = control(&running.address.to_string()).await;
    let job = submit(&mut client, "durable").await;
    running.stop();
    running.wait().await;
    let running = start(config(folder.path())).await;
    let mut client = control(&running.address.to_string()).await;
    assert_eq!(job_when(&mut client, "durable", |_| true).await.id, job);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feature_level_waits_for_the_oldest_member_and_names_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(CoordinatorConfig { init: true, ..config(folder.path()) }).await;
    let address = running.address.to_string();
    let mut client = control(&address).await;
    let upgrade = |id: &str| control::UpgradeClusterRequest { request_id: id.into(), actor: "tester".into() };
    let status = client.upgrade_cluster(upgrade("u-1")).await.expect("nothing to do").into_inner();
    assert_eq!(status.feature_level, 1);
    let newer = pb::Registration { feature_level: 2, ..registration("n1", 1) };
    let mut agent = FakeAgent::connect(&address, newer).await;
    agent.grant().await;
    let refused = client.upgrade_cluster(upgrade("u-2")).await.expect_err("the coordinator is older");
    let failure = Failure::from_status(&refused);
    assert!(matches!(failure, Failure::Conflict { .. }), "{failure:?}");
    assert!(failure.to_string().contains("c1 knows feature level 1 only"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_of_a_job_that_left_the_state_is_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(CoordinatorConfig { init: true, ..config(folder.path()) }).await;
    let address = running.address.to_string();
    let mut client = control(&address).await;
    let request = control::SubmitJobRequest {
        request_id: "short".to_owned(),
        spec_json: r#"{"name": "short", "command": ["true"], "retention": "1s"}"#.to_owned(),
        ..control::SubmitJobRequest::default()
    };
    let job = client.submit_job(request).await.expect("submitted").into_inner().job_id;
    let cancel = control::CancelJobRequest { job: job.clone(), ..control::CancelJobRequest::default() };
    client.cancel_job(cancel).await.expect("cancelled");
    let expired = tokio::time::timeout(PATIENCE, async {
        while client.get_job(control::GetJobRequest { job: job.clone() }).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    expired.await.expect("its retention is a second");
    let mut agent = FakeAgent::connect(&address, registration("n1", 1)).await;
    agent.grant().await;
    let receipt = pb::Receipt {
        attempt: format!("{job}/0@1.1"),
        checkpoint: "ck1".to_owned(),
        staged: true,
        ..pb::Receipt::default()
    };
    agent.receipt(1_000_000, receipt).await;
    let update = agent
        .wait_for("what became of it", |message| match message {
            Down::Checkpoints(updates) => updates.updates.into_iter().find(|update| update.job == job),
            _ => None,
        })
        .await;
    assert_eq!((update.checkpoint.as_str(), update.state.as_str()), ("ck1", "gone"));
}
