//! From a data folder to a seated member: open what is there, make a new cluster, or become an empty member that the
//! leader fills.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outlast_consensus::{AppliedEntry, Consensus, ConsensusConfig, OpenError};
use outlast_control::state::{ClusterState, Event};
use outlast_proto::status::Failure;
use outlast_types::{ClusterId, CoordinatorId, Profile, Timers};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::announce;
use crate::disk::DiskWatch;
use crate::events::{self, EventRing};
use crate::leader;
use crate::member::Member;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::read::{self, ReadGate};
use crate::relay::{HeartbeatRelay, serve_heartbeats};
use crate::seat::Seated;
use crate::server::RaftRoutes;

/// Beside the folder's identity: the timers of the cluster, which a member needs before it has any state.
pub(crate) const PROFILE_FILE: &str = "profile";

pub(crate) struct Founder {
    pub(crate) data_dir: PathBuf,
    pub(crate) address: String,
    /// Of a cluster that is made here without another word.
    pub(crate) profile: Profile,
    /// Measure the disk at work too.
    pub(crate) disk_load_test: bool,
    /// The threads of the leader's tasks.
    pub(crate) engine: Handle,
    pub(crate) disk: Arc<DiskWatch>,
    pub(crate) shutdown: CancellationToken,
}

impl Founder {
    /// The member that the folder holds, if it holds one.
    pub(crate) async fn open(&self, metrics: Arc<Metrics>) -> Result<Option<Seated>, OpenError> {
        let profile = read_profile(&self.data_dir).unwrap_or(self.profile);
        let opened = Consensus::open(self.consensus_config(profile)).await?;
        Ok(opened.map(|consensus| {
            let ring = EventRing::new(consensus.read(|state| state.applied));
            self.seat(consensus, ring, profile, metrics)
        }))
    }

    /// A new cluster with this coordinator as its only member.
    pub(crate) async fn found(&self, profile: Profile, metrics: Arc<Metrics>) -> Result<Seated, Failure> {
        let id = format!("c-{}", crate::control_api::random_hex()?);
        let cluster_id = ClusterId::new(id).expect("letters and digits only");
        write_profile(&self.data_dir, profile).map_err(|error| fatal(&error))?;
        let consensus = Consensus::found(self.consensus_config(profile), cluster_id, profile).await;
        let consensus = consensus.map_err(|error| fatal(&error))?;
        tracing::info!(cluster = %consensus.cluster_id(), %profile, "made a new cluster");
        let ring = EventRing::of_new_cluster(consensus.read(first_entry));
        Ok(self.seat(consensus, ring, profile, metrics))
    }

    /// An empty member under an id that the cluster gave it.
    pub(crate) async fn join(
        &self,
        cluster_id: ClusterId,
        id: CoordinatorId,
        profile: Profile,
        metrics: Arc<Metrics>,
    ) -> Result<Seated, Failure> {
        write_profile(&self.data_dir, profile).map_err(|error| fatal(&error))?;
        let consensus = Consensus::join(self.consensus_config(profile), cluster_id, id).await;
        Ok(self.seat(consensus.map_err(|error| fatal(&error))?, EventRing::new(0), profile, metrics))
    }

    fn consensus_config(&self, profile: Profile) -> ConsensusConfig {
        let mut config = ConsensusConfig::new(&self.data_dir, &self.address, Timers::of(profile));
        config.probe_load = self.disk_load_test;
        config
    }

    fn seat(&self, consensus: Consensus, ring: EventRing, profile: Profile, metrics: Arc<Metrics>) -> Seated {
        let (reads, read_inbox) = ReadGate::new();
        let (heartbeats, heartbeat_inbox) = HeartbeatRelay::new();
        let events = consensus.events();
        let raft = RaftRoutes(Routes::new(consensus.raft_service()).into_axum_router());
        let member = Arc::new(Member {
            id: consensus.id(),
            cluster_id: consensus.cluster_id().clone(),
            profile,
            timers: *consensus.timers(),
            peers: Peers::default(),
            reads,
            heartbeats,
            events: ring,
            office: watch::Sender::new(None),
            notes_cache: Mutex::default(),
            metrics,
            disk: self.disk.clone(),
            shutdown: self.shutdown.clone(),
            consensus,
        });
        let weak = Arc::downgrade(&member);
        tokio::spawn(events::collect(weak.clone(), events));
        self.engine.spawn(read::serve(weak.clone(), read_inbox));
        self.engine.spawn(serve_heartbeats(weak.clone(), heartbeat_inbox));
        tokio::spawn(announce::run(weak.clone()));
        self.engine.spawn(leader::lead_when_elected(weak));
        tokio::spawn(crate::disk::warn_when_measured(member.consensus.clone(), profile));
        Seated { member, raft }
    }
}

/// What the entry that made the cluster told.
fn first_entry(state: &ClusterState) -> AppliedEntry {
    let added = state.coordinators.keys().map(|id| Event::CoordinatorAdded { coordinator: *id });
    AppliedEntry {
        index: state.applied,
        events: std::iter::once(Event::ClusterInitialized).chain(added).collect(),
        at: state.coordinators.values().map(|record| record.added_at).min().unwrap_or_default(),
        replaced: false,
    }
}

/// With all its sources: what happens here is rare, and the person who reads it has one line.
fn fatal(error: &dyn std::error::Error) -> Failure {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason.push_str(": ");
        reason.push_str(&cause.to_string());
        source = cause.source();
    }
    Failure::Fatal { reason }
}

fn read_profile(folder: &Path) -> Option<Profile> {
    std::fs::read_to_string(folder.join(PROFILE_FILE)).ok()?.trim().parse().ok()
}

fn write_profile(folder: &Path, profile: Profile) -> std::io::Result<()> {
    let path = folder.join(PROFILE_FILE);
    std::fs::write(&path, profile.to_string())?;
    std::fs::File::open(path)?.sync_all()
}
