//! A coordinator that does what a test tells it: grants leases, sends desired states, keeps what agents say.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use outlast_control::state::Observation;
use outlast_proto::node::v1::agent_message::Message as Up;
use outlast_proto::node::v1::coordinator_message::Message as Down;
use outlast_proto::node::v1::node_service_server::{NodeService, NodeServiceServer};
use outlast_proto::node::v1::{self as pb};
use outlast_proto::status::Failure;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

pub(crate) const CLUSTER: &str = "test-cluster";

/// What the test decides, and what one node said.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeBook {
    pub desired: pb::DesiredState,
    pub updates: Vec<pb::CheckpointUpdate>,
    pub refuse: Option<pb::Refused>,
    pub assignments_index: u64,
    pub hellos: Vec<pb::Hello>,
    pub heartbeats: u64,
    /// Of each registration, hedged ones too.
    pub heartbeats_of: BTreeMap<u64, u64>,
    pub receipts: Vec<pb::Receipt>,
    pub progress: Vec<pb::Progress>,
    pub health: Option<pb::Health>,
    /// The number of the first observation of each message, as it came.
    pub batches: Vec<u64>,
    pub observations: BTreeMap<(u64, u64), Observation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenRule {
    /// It has to wait for those before it.
    Busy,
    Skip,
    /// There is no leader, say.
    Away,
    /// The attempt is over.
    Fence,
    /// It does not know this registration, or not yet.
    NotRegistered(u64),
}

#[derive(Default)]
pub(crate) struct Book {
    pub acknowledges: bool,
    pub grants: bool,
    pub coordinators: Vec<String>,
    pub welcome_index: u64,
    pub cluster: String,
    pub predecessors: Vec<String>,
    pub peers: Vec<pb::Peer>,
    pub nodes: BTreeMap<String, NodeBook>,
    pub opened: u64,
    pub opened_at: BTreeMap<(String, u64), u64>,
    /// The registrations with which opening was asked for.
    pub open_tries: Vec<u64>,
    /// What is said to a step, where it is not simply opened.
    pub opens: BTreeMap<u64, OpenRule>,
    pub sessions_open: u64,
    /// What became of checkpoints, for who asks; of others, `unknown`.
    pub fates: BTreeMap<String, &'static str>,
    /// The text of what is sealed.
    pub seal: String,
}

#[derive(Clone)]
pub(crate) struct Fake {
    pub address: String,
    book: Arc<Mutex<Book>>,
    changes: watch::Sender<u64>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound").to_string();
        let book = Book {
            acknowledges: true,
            grants: true,
            coordinators: vec![address.clone()],
            welcome_index: 1,
            cluster: CLUSTER.to_owned(),
            ..Book::default()
        };
        let fake = Self { address, book: Arc::new(Mutex::new(book)), changes: watch::Sender::new(0) };
        let server = tonic::transport::Server::builder().add_service(NodeServiceServer::new(fake.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        fake
    }

    /// Changes what is decided, and tells every session.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Book)) {
        change(&mut self.book.lock());
        self.changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn desire(&self, node: &str, index: u64, workers: Vec<pb::DesiredWorker>) {
        self.change(|book| {
            let node = book.nodes.entry(node.to_owned()).or_default();
            node.desired = pb::DesiredState { index, workers, orders: Vec::new() };
            node.assignments_index = index;
        });
    }

    pub(crate) fn node(&self, node: &str) -> NodeBook {
        self.book.lock().nodes.get(node).cloned().unwrap_or_default()
    }

    pub(crate) fn sessions_open(&self) -> u64 {
        self.book.lock().sessions_open
    }

    pub(crate) fn observations(&self, node: &str) -> Vec<Observation> {
        self.node(node).observations.into_values().collect()
    }

    async fn serve(
        self,
        mut up: Streaming<pb::AgentMessage>,
        down: mpsc::Sender<Result<pb::CoordinatorMessage, Status>>,
    ) {
        let Ok(Some(pb::AgentMessage { message: Some(Up::Hello(hello)) })) = up.message().await else {
            return;
        };
        let registration = hello.registration.clone().expect("a registration");
        let (node, number) = (registration.node.clone(), registration.registration);
        let (first, is_followed) = {
            let mut book = self.book.lock();
            let (cluster_id, coordinators) = (book.cluster.clone(), book.coordinators.clone());
            let (index, predecessors) = (book.welcome_index, book.predecessors.clone());
            let is_followed = predecessors.contains(&hello.cluster_id);
            book.nodes.entry(node.clone()).or_default().hellos.push(hello);
            let profile = "lan".to_owned();
            let peers = book.peers.clone();
            let welcome = pb::Welcome { cluster_id, index, coordinators, profile, predecessors, peers };
            let pb::Welcome { cluster_id, predecessors, .. } = welcome.clone();
            let succeeded = pb::Succeeded { cluster_id, predecessors };
            (if is_followed { Down::Succeeded(succeeded) } else { Down::Welcome(welcome) }, is_followed)
        };
        let send = async |message: Down| {
            down.send(Ok(pb::CoordinatorMessage { message: Some(message) })).await.is_ok()
        };
        let mut changes = self.changes.subscribe();
        changes.mark_changed();
        if !send(first).await || is_followed {
            return;
        }
        loop {
            let answer = tokio::select! {
                message = up.message() => match message {
                    Ok(Some(message)) => self.hear(&node, number, message),
                    _ => return,
                },
                _ = changes.changed() => self.tell(&node, number),
            };
            for message in answer {
                let is_last = matches!(message, Down::Refused(_));
                if !send(message).await || is_last {
                    return;
                }
            }
        }
    }

    fn tell(&self, node: &str, registration: u64) -> Vec<Down> {
        let mut book = self.book.lock();
        let node = book.nodes.entry(node.to_owned()).or_default();
        let is_of_first =
            node.hellos[0].registration.as_ref().is_some_and(|first| first.registration == registration);
        if let Some(refused) = node.refuse.clone().filter(|_| is_of_first) {
            return vec![Down::Refused(refused)];
        }
        let updates = pb::CheckpointUpdates { updates: node.updates.clone() };
        vec![Down::Desired(node.desired.clone()), Down::Checkpoints(updates)]
    }

    fn hear(&self, node: &str, registration: u64, message: pb::AgentMessage) -> Vec<Down> {
        let mut book = self.book.lock();
        let (acknowledges, grants) = (book.acknowledges, book.grants);
        let node = book.nodes.entry(node.to_owned()).or_default();
        match message.message.expect("a message") {
            Up::Hello(_) => panic!("a second hello"),
            Up::Heartbeat(heartbeat) => {
                node.heartbeats += 1;
                *node.heartbeats_of.entry(registration).or_default() += 1;
                node.receipts = heartbeat.receipts;
                node.progress = heartbeat.progress;
                node.health = heartbeat.health;
                let assignments_index = node.assignments_index;
                let grant = pb::LeaseGrant {
                    ack_seq: heartbeat.seq,
                    lease_ms: 4_000,
                    incarnation: 1,
                    assignments_index,
                    registration,
                };
                if grants { vec![Down::Lease(grant)] } else { Vec::new() }
            }
            Up::Observations(batch) => {
                node.batches.push(batch.first);
                for (number, observation) in (batch.first..).zip(batch.observations) {
                    let observation = observation.try_into().expect("a valid observation");
                    node.observations.insert((registration, number), observation);
                }
                let newest =
                    node.observations.range((registration, 0)..=(registration, u64::MAX)).next_back();
                let number = newest.map_or(0, |((_, number), _)| *number);
                if acknowledges { vec![Down::Observed(pb::Observed { number })] } else { Vec::new() }
            }
        }
    }
}

#[tonic::async_trait]
impl NodeService for Fake {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<pb::CoordinatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (down, messages) = mpsc::channel(64);
        let fake = self.clone();
        tokio::spawn(async move {
            fake.book.lock().sessions_open += 1;
            fake.clone().serve(request.into_inner(), down).await;
            fake.book.lock().sessions_open -= 1;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::LeaseGrant>, Status> {
        let request = request.into_inner();
        let mut book = self.book.lock();
        let node = book.nodes.entry(request.node.clone()).or_default();
        *node.heartbeats_of.entry(request.registration).or_default() += 1;
        drop(book);
        if !self.book.lock().grants {
            return Err(Status::unavailable("no leader"));
        }
        let assignments_index = self.node(&request.node).assignments_index;
        let ack_seq = request.heartbeat.map_or(0, |heartbeat| heartbeat.seq);
        let (lease_ms, registration) = (4_000, request.registration);
        Ok(Response::new(pb::LeaseGrant {
            ack_seq,
            lease_ms,
            incarnation: 1,
            assignments_index,
            registration,
        }))
    }

    async fn open_checkpoint(
        &self,
        request: Request<pb::OpenCheckpointRequest>,
    ) -> Result<Response<pb::OpenCheckpointResponse>, Status> {
        let request = request.into_inner();
        assert!(!request.attempt.is_empty());
        let mut book = self.book.lock();
        book.open_tries.push(request.registration);
        match book.opens.get(&request.step) {
            Some(OpenRule::Busy) => {
                let (reason, hint) = ("busy".to_owned(), String::new());
                return Err(Failure::Exhausted { reason, hint, retry_after_ms: 100 }.into());
            }
            Some(OpenRule::Skip) => {
                let (checkpoint, skipped) = (String::new(), true);
                return Ok(Response::new(pb::OpenCheckpointResponse { checkpoint, skipped }));
            }
            Some(OpenRule::Away) => {
                let (reason, hint) = ("no leader".to_owned(), String::new());
                return Err(Failure::Unavailable { reason, hint, retry_after_ms: 0 }.into());
            }
            Some(OpenRule::Fence) => return Err(Failure::Fenced { reason: "over".to_owned() }.into()),
            Some(OpenRule::NotRegistered(number)) if *number == request.registration => {
                let (reason, hint) = ("not registered here".to_owned(), String::new());
                return Err(Failure::Unavailable { reason, hint, retry_after_ms: 0 }.into());
            }
            Some(OpenRule::NotRegistered(_)) | None => {}
        }
        // The same one for all ranks.
        let step = (request.attempt, request.step);
        let number = *book.opened_at.get(&step).unwrap_or(&(book.opened + 1));
        book.opened = book.opened.max(number);
        book.opened_at.insert(step, number);
        Ok(Response::new(pb::OpenCheckpointResponse { checkpoint: format!("ck{number}"), skipped: false }))
    }

    async fn get_checkpoint_fate(
        &self,
        request: Request<pb::GetCheckpointFateRequest>,
    ) -> Result<Response<pb::CheckpointUpdate>, Status> {
        let pb::GetCheckpointFateRequest { cluster_id, checkpoint } = request.into_inner();
        let pb::CheckpointRef { job, checkpoint } = checkpoint.expect("named");
        assert_eq!((cluster_id.as_str(), job.as_str()), (CLUSTER, "j1"));
        let book = self.book.lock();
        let state = book.fates.get(&checkpoint).copied().unwrap_or("unknown").to_owned();
        let seal = if state == "sealed" { book.seal.clone() } else { String::new() };
        Ok(Response::new(pb::CheckpointUpdate { job, checkpoint, state, seal, ..Default::default() }))
    }
}

/// Waits for a condition; how long it takes is no test's business.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_200 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never: {what}");
}

pub(crate) fn shell(attempt: &str, script: &str) -> pb::DesiredWorker {
    pb::DesiredWorker {
        attempt: attempt.to_owned(),
        world_size: 1,
        local_world_size: 1,
        job_name: "test".to_owned(),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        replicas: 1,
        may_start: true,
        ..pb::DesiredWorker::default()
    }
}
