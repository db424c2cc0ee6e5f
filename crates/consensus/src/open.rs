//! From a folder to a running coordinator.
//!
//! ```text
//! found ─┐                                                        ┌─ damage ──► quarantine, OpenError::Quarantined (exit 78)
//! join  ─┼─► lock ─► identity ─► log ─► check ─► high water ─► snapshot ─► measure ─► Raft core ─► (founder: InitCluster)
//! open  ─┘             └ none: Ok(None)
//! ```
//! The identity is written last when a folder is made: where one is, the id has been used, and its log has to be there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use outlast_types::{ClusterId, CoordinatorId, Profile};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::batcher::{Batcher, Rounds};
use crate::config::{ConsensusConfig, DiskChoice};
use crate::consensus::{Consensus, Inner};
use crate::disk::check::{CheckError, check_log};
use crate::disk::probe::{probe_alone, probe_beside_checkpoints};
use crate::disk::sled::SledDisk;
use crate::disk::{Damage, RaftDisk, Recovered, SyncTimes};
use crate::error::OpenError;
use crate::folder::{DiskRoom, Folder, FormerMember, Identity};
use crate::founding::finish_founding;
use crate::hwm::HighWater;
use crate::leadership::{Fitness, Leadership, QuorumClock, follow};
use crate::log::{LogStore, LogWriter};
use crate::machine::Machine;
use crate::net::{Network, Peers};
use crate::snapshot::SnapshotStore;
use crate::tick::Ticker;
use crate::types::Raft;
use crate::verify::{is_too_full_to_open, too_full};
use crate::watchdog::Watchdog;

/// The founder of a cluster; later ids come from the log.
const FOUNDER: CoordinatorId = CoordinatorId(1);
/// openraft's core, its replication tasks and the batcher; the API runs elsewhere.
const RUNTIME_THREADS: usize = 2;
/// A founder elects itself at once; what takes time is its disk.
const FOUNDING_MS_MAX: u64 = 15_000;

impl Consensus {
    /// Starts the coordinator that the folder holds; `Ok(None)`: it holds none yet.
    ///
    /// # Errors
    /// See [`OpenError`]; on [`OpenError::Quarantined`] the process should exit with 78.
    pub async fn open(config: ConsensusConfig) -> Result<Option<Self>, OpenError> {
        config.timers.check()?;
        let Some(folder) = Folder::open(&config.data_dir)? else { return Ok(None) };
        let Some(identity) = folder.identity()? else { return Ok(None) };
        start(config, folder, identity).await.map(Some)
    }

    /// Makes a new cluster with this coordinator as its only member, c1. Returns when the first entry is applied.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn found(
        config: ConsensusConfig,
        cluster_id: ClusterId,
        profile: Profile,
    ) -> Result<Self, OpenError> {
        config.timers.check()?;
        let folder = Folder::create(&config.data_dir)?;
        if let Some(Identity { cluster_id, coordinator, .. }) = folder.identity()? {
            return Err(OpenError::AlreadyMember { path: config.data_dir, cluster_id, coordinator });
        }
        if let Some(FormerMember { cluster_id, coordinator, lies_in }) = folder.former_member() {
            return Err(OpenError::WasMember { path: config.data_dir, cluster_id, coordinator, lies_in });
        }
        let mut identity = Identity::new(cluster_id, FOUNDER, config.advertise.clone());
        identity.founder = Some(profile);
        create(&config, &folder, &identity).await?;
        let consensus = start(config, folder, identity).await?;
        let mut applied = consensus.applied();
        let founded = applied.wait_for(|_| consensus.read(|state| state.config.is_some()));
        match tokio::time::timeout(Duration::from_millis(FOUNDING_MS_MAX), founded).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Err(OpenError::NotFounded { waited_ms: FOUNDING_MS_MAX }),
        }
        drop(applied);
        Ok(consensus)
    }

    /// Makes an empty member under an id that the cluster's log gave it. It gets its data when the leader adds it.
    /// Asked again with the same id (after a crash) it goes on with what is there.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn join(
        config: ConsensusConfig,
        cluster_id: ClusterId,
        coordinator: CoordinatorId,
    ) -> Result<Self, OpenError> {
        config.timers.check()?;
        let folder = Folder::create(&config.data_dir)?;
        if let Some(identity) = folder.identity()? {
            if identity.cluster_id != cluster_id || identity.coordinator != coordinator {
                return Err(OpenError::OtherOwner {
                    path: config.data_dir,
                    found: owner(&identity.cluster_id, identity.coordinator),
                    asked: owner(&cluster_id, coordinator),
                });
            }
            return start(config, folder, identity).await;
        }
        let identity = Identity::new(cluster_id, coordinator, config.advertise.clone());
        create(&config, &folder, &identity).await?;
        start(config, folder, identity).await
    }
}

fn owner(cluster_id: &ClusterId, coordinator: CoordinatorId) -> String {
    format!("{coordinator} of cluster {cluster_id}")
}

pub(crate) fn disk_error(source: io::Error) -> OpenError {
    OpenError::Disk(source)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, OpenError> {
    outlast_host::blocking(work).await.map_err(|err| disk_error(io::Error::other(err)))
}

/// Makes the log and the high-water file, then the identity: from then on the id counts as used.
async fn create(config: &ConsensusConfig, folder: &Folder, identity: &Identity) -> Result<(), OpenError> {
    if folder.has_leftovers() {
        // A creation that did not finish; it was never a member.
        folder.quarantine()?;
    }
    let (log, high_water) = (folder.log(), folder.high_water());
    let (disk, owner) = (config.disk.clone(), identity.clone());
    let made = blocking(move || -> Result<(), CheckError> {
        match disk {
            DiskChoice::Sled => {
                drop(SledDisk::create(&log, owner.cluster_id.as_str(), owner.coordinator.0)?);
            }
            #[cfg(any(test, feature = "testing"))]
            DiskChoice::Sim(contents) => contents.format(owner.cluster_id.as_str(), owner.coordinator.0),
        }
        HighWater::create(&high_water).map(drop).map_err(CheckError::Io)
    });
    match made.await? {
        Ok(()) => {}
        Err(CheckError::Io(source)) => return Err(disk_error(source)),
        Err(CheckError::Damage(damage)) => return Err(disk_error(io::Error::other(damage))),
    }
    Ok(folder.write_identity(identity)?)
}

/// What the disk gave back, checked.
pub(crate) struct Opened {
    pub(crate) disk: Box<dyn RaftDisk>,
    pub(crate) recovered: Recovered,
    high: HighWater,
    pub(crate) snapshots: SnapshotStore,
    probe: SyncTimes,
}

pub(crate) fn open_disk(
    disk: &DiskChoice,
    log: &Path,
    identity: &Identity,
) -> Result<Box<dyn RaftDisk>, CheckError> {
    match disk {
        DiskChoice::Sled if !log.join("db").exists() => {
            let owner = owner(&identity.cluster_id, identity.coordinator);
            Err(Damage::Missing { owner }.into())
        }
        DiskChoice::Sled => Ok(Box::new(SledDisk::open(log)?)),
        #[cfg(any(test, feature = "testing"))]
        DiskChoice::Sim(contents) => Ok(Box::new(contents.open())),
    }
}

pub(crate) fn open_checked(
    disk: &DiskChoice,
    paths: &Paths,
    identity: &Identity,
) -> Result<Opened, CheckError> {
    let disk = open_disk(disk, &paths.log, identity)?;
    let recovered = check_log(&*disk.reader(), false)?;
    if recovered.cluster_id != identity.cluster_id.as_str() || recovered.coordinator != identity.coordinator.0
    {
        let found = format!("c{} of cluster {}", recovered.coordinator, recovered.cluster_id);
        let reason = format!(
            "the log is of {found}, the identity file of {}",
            owner(&identity.cluster_id, identity.coordinator)
        );
        return Err(Damage::Marks { reason }.into());
    }
    let high = HighWater::open(&paths.high_water, &recovered)?;
    let snapshots =
        SnapshotStore::open(paths.snapshots.clone(), identity.cluster_id.clone(), recovered.purged);
    let snapshots = snapshots.map_err(CheckError::Io)??;
    let probe = probe_alone(&paths.root).map_err(CheckError::Io)?;
    Ok(Opened { disk, recovered, high, snapshots, probe })
}

pub(crate) struct Paths {
    root: PathBuf,
    log: PathBuf,
    high_water: PathBuf,
    snapshots: PathBuf,
}

impl Paths {
    pub(crate) fn of(folder: &Folder) -> Self {
        let root = folder.root().to_owned();
        Self { root, log: folder.log(), high_water: folder.high_water(), snapshots: folder.snapshots() }
    }
}

async fn start(config: ConsensusConfig, folder: Folder, identity: Identity) -> Result<Consensus, OpenError> {
    if identity.advertise != config.advertise {
        let (was, now) = (&identity.advertise, &config.advertise);
        tracing::warn!(%was, %now, "the others know this coordinator under its old address: remove it and let it join again to change it");
    }
    let (disk, paths, owner) = (config.disk.clone(), Paths::of(&folder), identity.clone());
    let opened = match blocking(move || open_checked(&disk, &paths, &owner)).await? {
        Ok(opened) => opened,
        Err(CheckError::Io(source)) => return Err(disk_error(source)),
        Err(CheckError::Damage(damage @ Damage::Unopenable { .. })) if is_too_full_to_open(folder.root()) => {
            return Err(disk_error(io::Error::new(io::ErrorKind::StorageFull, too_full(&damage))));
        }
        Err(CheckError::Damage(damage)) => {
            let moved_to = folder.quarantine()?;
            return Err(OpenError::Quarantined { coordinator: identity.coordinator, moved_to, damage });
        }
    };
    let threads = outlast_host::Threads::start("raft", RUNTIME_THREADS).map_err(disk_error)?;
    let running = threads.handle().spawn(run(config, folder, identity, opened)).await;
    let inner = running.map_err(|err| OpenError::Raft { reason: err.to_string() })??;
    *inner.threads.lock() = Some(threads);
    Ok(Consensus { inner })
}

/// On a thread of its own: no start waits for it. A coordinator that has just started seldom leads, so that the load
/// costs no leadership.
fn measure_load(root: &Path, measured: &watch::Sender<Option<SyncTimes>>) {
    match probe_beside_checkpoints(root) {
        Ok(Some(times)) => {
            let SyncTimes { samples, p50_us, p999_us, .. } = times;
            tracing::info!(
                samples,
                p50_us,
                p999_us,
                "measured the disk's syncs beside checkpoint-like writes"
            );
            // Nobody has to be listening.
            measured.send_replace(Some(times));
        }
        Ok(None) => tracing::warn!("too little room to measure the disk beside checkpoint-like writes"),
        Err(err) => tracing::warn!(%err, "the disk could not be measured beside checkpoint-like writes"),
    }
}

/// Runs on the coordinator's own runtime, so that all tasks that are spawned live there.
async fn run(
    config: ConsensusConfig,
    folder: Folder,
    identity: Identity,
    opened: Opened,
) -> Result<Arc<Inner>, OpenError> {
    let Opened { disk, recovered, high, snapshots, probe } = opened;
    let reader = disk.reader();
    let room = DiskRoom::of(folder.root()).map_err(disk_error)?;
    let writer = Arc::new(LogWriter::spawn(disk, high, config.fatal.clone()).map_err(disk_error)?);
    let log = LogStore::new(&recovered, reader, Arc::clone(&writer), snapshots.snapshots.covered());
    let machine = Machine::new(snapshots.snapshots, snapshots.newest);
    let peers = Peers::new(identity.cluster_id.clone(), identity.coordinator.0);
    let network = Network::new(peers.clone());
    let settings = config.raft(identity.cluster_id.to_string());
    let settings = settings.validate().map_err(|err| OpenError::Raft { reason: err.to_string() })?;
    let raft = Raft::new(identity.coordinator.0, Arc::new(settings), network, log, machine.clone()).await;
    let raft = raft.map_err(|err| OpenError::Raft { reason: crate::fatal::chain(&err) })?;

    let (leading, leadership) = watch::channel(Leadership::default());
    let quorum = Arc::new(QuorumClock::default());
    let stopped = Arc::new(AtomicBool::new(false));
    let (told, fitness) = watch::channel(Fitness::Fit);
    let room = Arc::new(RwLock::new(room));
    let (pulse, seen) = (Arc::clone(&writer.pulse), Arc::clone(&room));
    tokio::spawn(Watchdog::new(pulse, seen, peers, raft.clone(), &config.timers, told).run());
    tokio::spawn(follow(
        raft.metrics(),
        fitness.clone(),
        leading,
        Arc::clone(&quorum),
        config.fatal.clone(),
        Arc::clone(&stopped),
    ));
    let rounds = Arc::new(Rounds::default());
    let batcher = Batcher::spawn(raft.clone(), &config.limits, leadership.clone(), Arc::clone(&rounds));
    let log_bytes = Arc::default();
    let ticker = Ticker {
        root: folder.root().to_owned(),
        room: Arc::clone(&room),
        log_dir: folder.log(),
        log_bytes: Arc::clone(&log_bytes),
        machine: machine.clone(),
        raft: raft.clone(),
        limits: config.limits,
    };
    tokio::spawn(ticker.run());
    if let Some(profile) = identity.founder {
        tokio::spawn(finish_founding(
            raft.clone(),
            machine.clone(),
            batcher.clone(),
            leadership.clone(),
            identity.clone(),
            profile,
        ));
    }
    let (measured, probe_loaded) = watch::channel(None);
    if config.probe_load {
        let root = folder.root().to_owned();
        let probe = std::thread::Builder::new().name("disk-probe".to_owned());
        probe.spawn(move || measure_load(&root, &measured)).map_err(disk_error)?;
    }
    Ok(Arc::new(Inner {
        id: identity.coordinator,
        cluster_id: identity.cluster_id,
        timers: config.timers,
        limits: config.limits,
        raft,
        machine,
        batcher,
        rounds,
        leadership,
        quorum,
        room,
        probe,
        probe_loaded,
        fitness,
        writer,
        log_bytes,
        stopped,
        threads: Mutex::new(None),
        folder: Mutex::new(Some(folder)),
    }))
}
