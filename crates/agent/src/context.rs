//! What the parts of one agent share. One per agent, never global: several agents may live in one process.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outlast_blobs::objects::ObjectTier;
use outlast_blobs::{BundleStore, ShardKey, ShardStore};
use outlast_control::state::{Holder, Tier};
use outlast_process::Cgroups;
use outlast_types::{AttemptId, BootId, Digest, DiskId, NodeId, NodeResources, RegistrationId};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::checkpoints::Checkpoints;
use crate::coordinators::Coordinators;
use crate::event::Event;
use crate::folder::Folder;
use crate::health::DiskWatch;
use crate::metrics::AgentMetrics;
use crate::peer::NetworkTest;
use crate::reconcile::NewestAttempts;
use crate::worker::Fetches;

pub(crate) struct Context {
    pub(crate) node: NodeId,
    pub(crate) boot: BootId,
    pub(crate) disk: DiskId,
    pub(crate) resources: NodeResources,
    /// `host:port` of the peer service as others reach it.
    pub(crate) address: String,
    /// The same on the data network, where there is one.
    pub(crate) data_address: Option<String>,
    /// Connections of one transfer of many bytes.
    pub(crate) data_connections: u32,
    /// What its test found.
    pub(crate) network: Mutex<NetworkTest>,
    pub(crate) keeper_exe: PathBuf,
    pub(crate) cgroups: Cgroups,
    pub(crate) disk_watch: Arc<DiskWatch>,
    pub(crate) folder: Folder,
    pub(crate) shards: ShardStore,
    pub(crate) bundles: BundleStore,
    /// Where sealed checkpoints go whose policy says so.
    pub(crate) store: Option<ObjectTier>,
    /// Shards that are being taken out of there.
    pub(crate) removing: Mutex<BTreeSet<(ShardKey, Digest)>>,
    /// Shards whose upload is under way, or being ended.
    pub(crate) storing: Mutex<BTreeSet<(ShardKey, Digest)>>,
    /// Of what ranks start from.
    pub(crate) fetches: Fetches,
    pub(crate) coordinators: Arc<Coordinators>,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) newest: Mutex<NewestAttempts>,
    pub(crate) metrics: AgentMetrics,
    /// The registration in force.
    registration: AtomicU64,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

/// All that a new context cannot make itself.
pub(crate) struct Parts {
    pub(crate) node: NodeId,
    pub(crate) boot: BootId,
    pub(crate) disk: DiskId,
    pub(crate) resources: NodeResources,
    pub(crate) address: String,
    pub(crate) data_address: Option<String>,
    pub(crate) data_connections: u32,
    pub(crate) keeper_exe: PathBuf,
    pub(crate) cgroups: Cgroups,
    pub(crate) folder: Folder,
    pub(crate) shards: ShardStore,
    pub(crate) bundles: BundleStore,
    pub(crate) store: Option<ObjectTier>,
    pub(crate) coordinators: Vec<String>,
    pub(crate) events: mpsc::Sender<Event>,
}

impl Context {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            node,
            boot,
            disk,
            resources,
            address,
            data_address,
            data_connections,
            keeper_exe,
            cgroups,
            folder,
            shards,
            bundles,
            store,
            ..
        } = parts;
        Self {
            node,
            boot,
            disk,
            resources,
            address,
            data_address,
            data_connections,
            network: Mutex::default(),
            keeper_exe,
            cgroups,
            disk_watch: DiskWatch::start(folder.root()),
            folder,
            shards,
            bundles,
            store,
            removing: Mutex::default(),
            storing: Mutex::default(),
            fetches: Fetches::default(),
            coordinators: Arc::new(Coordinators::new(parts.coordinators)),
            checkpoints: Checkpoints::new(),
            newest: Mutex::default(),
            metrics: AgentMetrics::new(),
            registration: AtomicU64::new(0),
            events: parts.events,
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        }
    }

    /// This node as a place that has bytes.
    pub(crate) fn holder(&self) -> Holder {
        Holder { node: self.node.clone(), boot: self.boot.clone(), disk: self.disk.clone(), tier: Tier::Disk }
    }

    /// The cluster's id for calls between its members; empty before the first welcome.
    pub(crate) fn cluster_text(&self) -> String {
        self.folder.cluster().map(|id| id.to_string()).unwrap_or_default()
    }

    pub(crate) fn registration(&self) -> RegistrationId {
        RegistrationId(self.registration.load(Ordering::Relaxed))
    }

    pub(crate) fn set_registration(&self, registration: RegistrationId) {
        self.registration.store(registration.0, Ordering::Relaxed);
    }

    pub(crate) fn is_superseded(&self, attempt: &AttemptId) -> bool {
        self.newest.lock().supersedes(attempt)
    }

    /// The name of this agent's cgroup: several agents of one machine (in `dev`) may not share one.
    pub(crate) fn cgroup_name(&self) -> String {
        let hash = blake3::hash(self.folder.workers().as_os_str().as_encoded_bytes()).to_hex();
        format!("{}-{}", self.node, &hash[..8])
    }

    /// Where other nodes reach this one.
    pub(crate) fn peer_address(&self) -> &str {
        self.data_address.as_deref().unwrap_or(&self.address)
    }

    /// The host that other nodes reach this one at.
    pub(crate) fn host(&self) -> &str {
        let address = self.peer_address();
        address.rsplit_once(':').map_or(address, |(host, _)| host)
    }
}

/// Runs blocking work beside the loop. A panic in it is ours, and ends here as one.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("blocking work does not panic, and is not cancelled once it runs")
}
