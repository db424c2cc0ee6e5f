//! Clusters in one process, on loopback sockets, for tests of this crate and of others.
//!
//! Each node's server runs on a runtime of its own, so that a kill also ends its connections.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outlast_control::state::{Command, Envelope};
use outlast_types::{Actor, ClusterId, CoordinatorId, Profile, RequestId, Timers, WallTime};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;

use crate::config::{ConsensusConfig, DiskChoice, Limits};
use crate::consensus::Consensus;
use crate::disk::sim::SimContents;
use crate::error::OpenError;
use crate::fatal::FatalHook;

/// For conditions that are certain to come: machines that run tests are busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One coordinator with its server.
pub struct TestNode {
    pub consensus: Consensus,
    pub address: SocketAddr,
    server: Option<Runtime>,
}

/// How a node is started.
#[derive(Clone)]
pub struct TestConfig {
    pub root: PathBuf,
    pub cluster_id: ClusterId,
    pub limits: Limits,
    pub timers: Timers,
    pub fatal: FatalHook,
}

impl TestConfig {
    /// `lan` timers, patient deadlines, and a fatal hook that only logs: a killed node must not take the test along.
    pub fn new(root: &Path) -> Self {
        let limits =
            Limits { propose_deadline: PATIENCE, membership_deadline: PATIENCE, ..Limits::default() };
        Self {
            root: root.to_owned(),
            cluster_id: ClusterId::new("test").expect("a valid name"),
            limits,
            timers: Timers::of(Profile::Lan),
            fatal: FatalHook::new(|_| {}),
        }
    }

    pub fn dir(&self, id: u64) -> PathBuf {
        self.root.join(format!("c{id}"))
    }

    /// The configuration of one node; with `sim` its log is on that disk.
    pub fn node(&self, id: u64, address: SocketAddr, sim: Option<&SimContents>) -> ConsensusConfig {
        let mut config = ConsensusConfig::new(self.dir(id), address.to_string(), self.timers);
        config.limits = self.limits;
        config.fatal = self.fatal.clone();
        config.disk = sim.map_or(DiskChoice::Sled, |contents| DiskChoice::Sim(contents.clone()));
        config
    }

    /// Founds a cluster with c1 in it.
    ///
    /// # Errors
    /// As [`Consensus::found`].
    pub async fn found(&self, sim: Option<&SimContents>) -> Result<TestNode, OpenError> {
        let (listener, address) = listen(None);
        let config = self.node(1, address, sim);
        let consensus = Consensus::found(config, self.cluster_id.clone(), Profile::Lan).await?;
        Ok(TestNode::serve(consensus, listener, address))
    }

    /// Makes an empty member that waits to be added.
    ///
    /// # Errors
    /// As [`Consensus::join`].
    pub async fn join(&self, id: u64, sim: Option<&SimContents>) -> Result<TestNode, OpenError> {
        let (listener, address) = listen(None);
        let config = self.node(id, address, sim);
        let consensus = Consensus::join(config, self.cluster_id.clone(), CoordinatorId(id)).await?;
        Ok(TestNode::serve(consensus, listener, address))
    }

    /// Starts a node again at its old address.
    ///
    /// # Errors
    /// As [`Consensus::open`].
    pub async fn reopen(
        &self,
        id: u64,
        address: SocketAddr,
        sim: Option<&SimContents>,
    ) -> Result<Option<TestNode>, OpenError> {
        let (listener, address) = listen(Some(address));
        let opened = Consensus::open(self.node(id, address, sim)).await?;
        Ok(opened.map(|consensus| TestNode::serve(consensus, listener, address)))
    }

    /// A cluster of voters c1..=cN on sled.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn cluster(&self, voters: u64) -> Vec<TestNode> {
        let sims = vec![None; voters as usize];
        self.cluster_on(&sims).await
    }

    /// A cluster with one voter for each disk; `None` is sled.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn cluster_on(&self, disks: &[Option<SimContents>]) -> Vec<TestNode> {
        let mut nodes = vec![self.found(disks[0].as_ref()).await.expect("founding")];
        for (id, disk) in (2..).zip(&disks[1..]) {
            let node = self.join(id, disk.as_ref()).await.expect("joining");
            let leader = &nodes[0].consensus;
            leader.add_learner(CoordinatorId(id), &node.address.to_string()).await.expect("adding a learner");
            leader.promote(CoordinatorId(id)).await.expect("promoting");
            nodes.push(node);
        }
        nodes
    }
}

fn listen(address: Option<SocketAddr>) -> (std::net::TcpListener, SocketAddr) {
    let wanted = address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
    // A killed node's connections may hold the port for a moment.
    let listener = (0..100).find_map(|_| {
        std::net::TcpListener::bind(wanted)
            .inspect_err(|_| std::thread::sleep(Duration::from_millis(50)))
            .ok()
    });
    let listener = listener.expect("a loopback port");
    listener.set_nonblocking(true).expect("a socket can be non-blocking");
    let address = listener.local_addr().expect("a bound socket has an address");
    (listener, address)
}

impl TestNode {
    fn serve(consensus: Consensus, listener: std::net::TcpListener, address: SocketAddr) -> Self {
        let server = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let service = consensus.raft_service();
        server.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
            let incoming = TcpListenerStream::new(listener);
            let _ =
                tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await;
        });
        Self { consensus, address, server: Some(server) }
    }

    /// Ends its server: nobody reaches it, while it reaches others.
    pub fn cut_off(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }

    /// As a `kill -9` would: no goodbye, nothing synced.
    pub fn kill(mut self) {
        self.cut_off();
        self.consensus.inner.close(false);
    }

    /// As a clean stop.
    pub async fn stop(mut self) {
        self.cut_off();
        self.consensus.shutdown().await;
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.cut_off();
    }
}

/// An envelope with a request id, for finding it again in a log.
///
/// # Panics
/// When `request` is no valid id.
pub fn envelope(request: &str, command: Command) -> Envelope {
    Envelope {
        request: Some(RequestId::new(request).expect("a valid request id")),
        actor: Actor::System,
        source: None,
        cause: None,
        at: WallTime(1),
        command,
    }
}

/// A command that every state takes.
pub fn barrier(request: &str) -> Envelope {
    envelope(request, Command::Barrier { coordinator: CoordinatorId(1) })
}

/// Waits until the condition holds.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = tokio::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The node that leads, once one does.
///
/// # Panics
/// When none does within [`PATIENCE`].
pub async fn leader_of(nodes: &[TestNode]) -> &TestNode {
    let leads = |node: &&TestNode| node.consensus.leadership().borrow().is_self;
    eventually("a leader", || nodes.iter().any(|node| leads(&node))).await;
    nodes.iter().find(leads).expect("just seen")
}
