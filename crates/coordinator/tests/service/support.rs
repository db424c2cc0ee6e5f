//! A coordinator in this process, an agent that only speaks, and HTTP without a library.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast_coordinator::{Coordinator, CoordinatorConfig, RunningCoordinator};
use outlast_proto::control::v1 as control;
use outlast_proto::control::v1::control_service_client::ControlServiceClient;
use outlast_proto::node::v1 as pb;
use outlast_proto::node::v1::agent_message::Message as Up;
use outlast_proto::node::v1::coordinator_message::Message as Down;
use outlast_proto::node::v1::node_service_client::NodeServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

/// Generous: the machine may be busy with builds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn config(folder: &Path) -> CoordinatorConfig {
    CoordinatorConfig {
        data_dir: folder.to_owned(),
        listen: "127.0.0.1:0".parse().expect("an address"),
        disk_load_test: false,
        ..CoordinatorConfig::default()
    }
}

pub(crate) async fn start(config: CoordinatorConfig) -> RunningCoordinator {
    Coordinator::start(config, CancellationToken::new()).await.expect("the coordinator starts")
}

pub(crate) async fn control(address: &str) -> ControlServiceClient<Channel> {
    ControlServiceClient::connect(format!("http://{address}")).await.expect("it listens")
}

pub(crate) async fn submit(client: &mut ControlServiceClient<Channel>, name: &str) -> String {
    let request = control::SubmitJobRequest {
        request_id: format!("submit-{name}"),
        spec_json: format!(r#"{{"name": "{name}", "command": ["true"]}}"#),
        actor: "tester".to_owned(),
        ..control::SubmitJobRequest::default()
    };
    client.submit_job(request).await.expect("submitted").into_inner().job_id
}

/// Asks until the answer is as wanted.
pub(crate) async fn job_when(
    client: &mut ControlServiceClient<Channel>,
    job: &str,
    wanted: impl Fn(&control::Job) -> bool,
) -> control::Job {
    let mut last = None;
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            let request = control::GetJobRequest { job: job.to_owned() };
            if let Ok(answer) = client.get_job(request).await {
                let answer = answer.into_inner();
                if wanted(&answer) {
                    return answer;
                }
                last = Some(answer);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    match found.await {
        Ok(job) => job,
        Err(_) => panic!("the job never came to the wanted state: {last:#?}"),
    }
}

pub(crate) struct FakeAgent {
    up: mpsc::Sender<pb::AgentMessage>,
    down: Streaming<pb::CoordinatorMessage>,
    beats: Arc<AtomicBool>,
    health: Arc<Mutex<Option<pb::Health>>>,
}

pub(crate) fn registration(node: &str, number: u64) -> pb::Registration {
    let resources =
        pb::NodeResources { cpu_millis: 4_000, memory_bytes: 8 << 30, ..pb::NodeResources::default() };
    pb::Registration {
        node: node.to_owned(),
        registration: number,
        boot_id: "boot-1".to_owned(),
        disk_id: format!("disk-{node}"),
        address: "127.0.0.1:9".to_owned(),
        resources: Some(resources),
        feature_level: 1,
        ..pb::Registration::default()
    }
}

impl FakeAgent {
    /// Says Hello and heartbeats until told to be silent.
    pub(crate) async fn connect(address: &str, registration: pb::Registration) -> Self {
        let mut client = NodeServiceClient::connect(format!("http://{address}")).await.expect("it listens");
        let (up, messages) = mpsc::channel(16);
        let hello = pb::Hello { registration: Some(registration), ..pb::Hello::default() };
        let hello = pb::AgentMessage { message: Some(Up::Hello(hello)) };
        up.send(hello).await.expect("a fresh channel");
        let down = client.session(ReceiverStream::new(messages)).await.expect("a session").into_inner();
        let beats = Arc::new(AtomicBool::new(true));
        let health = Arc::<Mutex<Option<pb::Health>>>::default();
        tokio::spawn(beat(up.clone(), beats.clone(), health.clone()));
        Self { up, down, beats, health }
    }

    pub(crate) fn be_silent(&self) {
        self.beats.store(false, Ordering::Relaxed);
    }

    /// Said with every heartbeat from now on.
    pub(crate) fn set_health(&self, health: pb::Health) {
        *self.health.lock().expect("nobody panics with it") = Some(health);
    }

    pub(crate) async fn observe(&self, first: u64, observations: Vec<pb::Observation>) {
        let message = Up::Observations(pb::Observations { first, observations });
        self.up.send(pb::AgentMessage { message: Some(message) }).await.expect("the session lives");
    }

    /// One more heartbeat, with a receipt.
    pub(crate) async fn receipt(&self, seq: u64, receipt: pb::Receipt) {
        let heartbeat = pb::Heartbeat { seq, receipts: vec![receipt], ..pb::Heartbeat::default() };
        let message = pb::AgentMessage { message: Some(Up::Heartbeat(heartbeat)) };
        self.up.send(message).await.expect("the session lives");
    }

    /// The first message that the function takes; others are passed over.
    pub(crate) async fn wait_for<T>(&mut self, what: &str, take: impl Fn(Down) -> Option<T>) -> T {
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let message =
                    self.down.message().await.expect("the session lives").expect("the session goes on");
                if let Some(found) = message.message.and_then(&take) {
                    return found;
                }
            }
        });
        found.await.unwrap_or_else(|_| panic!("{what} never came"))
    }

    pub(crate) async fn refusal(&mut self) -> pb::Refused {
        self.wait_for("a refusal", |message| match message {
            Down::Refused(refused) => Some(refused),
            _ => None,
        })
        .await
    }

    pub(crate) async fn grant(&mut self) -> pb::LeaseGrant {
        self.wait_for("a grant", |message| match message {
            Down::Lease(grant) => Some(grant),
            _ => None,
        })
        .await
    }

    pub(crate) async fn worker(
        &mut self,
        wanted: impl Fn(&pb::DesiredWorker) -> bool,
    ) -> (u64, pb::DesiredWorker) {
        self.wait_for("the wanted worker", |message| match message {
            Down::Desired(desired) => {
                let index = desired.index;
                desired.workers.into_iter().find(&wanted).map(|worker| (index, worker))
            }
            _ => None,
        })
        .await
    }
}

async fn beat(
    up: mpsc::Sender<pb::AgentMessage>,
    beats: Arc<AtomicBool>,
    health: Arc<Mutex<Option<pb::Health>>>,
) {
    for seq in 1.. {
        if !beats.load(Ordering::Relaxed) {
            return;
        }
        let health = health.lock().expect("nobody panics with it").clone();
        let heartbeat = pb::Heartbeat { seq, health, ..pb::Heartbeat::default() };
        if up.send(pb::AgentMessage { message: Some(Up::Heartbeat(heartbeat)) }).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

pub(crate) fn observation(attempt: &str, what: pb::observation::What) -> pb::Observation {
    pb::Observation { attempt: attempt.to_owned(), rank: 0, what: Some(what) }
}

/// Status and body of one HTTP/1.1 request.
pub(crate) async fn http(address: &str, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let (head, body) = request.split_once("\n\n").unwrap_or((request, ""));
    let mut lines = head.lines();
    let mut text = format!("{} HTTP/1.1\r\n", lines.next().expect("a request line"));
    for header in lines {
        text.push_str(&format!("{header}\r\n"));
    }
    if !head.contains("host:") {
        text.push_str(&format!("host: {address}\r\n"));
    }
    text.push_str(&format!("connection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(text.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("in time")
        .expect("an answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, body.to_owned())
}
