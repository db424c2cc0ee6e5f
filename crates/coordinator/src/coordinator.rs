//! The service as a whole: from its settings to one that answers, and its end.
//!
//! ```text
//!  check ─► bind ─► disk ─► open folder ─┬─ holds a member ─────────────────────► seated
//!                                        ├─ empty, init ─► found ───────────────► seated
//!                                        ├─ empty, join ─► ask, join, promote ──► seated
//!                                        └─ empty ─► answers only what makes it a member
//! ```

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use outlast_host::Threads;
use outlast_host::net::TcpListener;
use outlast_types::ClusterId;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::disk::DiskWatch;
use crate::founder::Founder;
use crate::seat::Seat;
use crate::{CoordinatorConfig, StartError, join, server};

/// Leases, the planner and relayed heartbeats; apart from the API, so that load there costs no lease.
const ENGINE_THREADS: usize = 2;
/// Consensus that has not stopped by then is left to the end of the process.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Starts coordinators.
pub struct Coordinator;

/// A coordinator that answers on its port. Dropping it stops it; [`RunningCoordinator::wait`] stops it in order.
pub struct RunningCoordinator {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// What others reach it at.
    pub advertised: String,
    pub(crate) seat: Arc<Seat>,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
    /// Those of the leader's tasks.
    engine: Threads,
}

impl Coordinator {
    /// Returns when the coordinator is a member and answers, or when it waits for a cluster (neither `init` nor `join`).
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        config: CoordinatorConfig,
        shutdown: CancellationToken,
    ) -> Result<RunningCoordinator, StartError> {
        config.check()?;
        let listener = bind(config.listen).await?;
        let listen_error = |source| StartError::Listen { address: config.listen, source };
        let address = listener.local_addr().map_err(listen_error)?;
        let advertised = config.advertised(address);
        let (uploads_dir, disk) = prepare_folder(&config.data_dir)?;
        let engine = Threads::start("outlast-leader", ENGINE_THREADS).map_err(StartError::Threads)?;
        // Ends with the process's token, and by itself where the start fails half way.
        let shutdown = shutdown.child_token();
        let guard = shutdown.clone().drop_guard();
        let founder = Founder {
            data_dir: config.data_dir.clone(),
            address: advertised.clone(),
            profile: config.profile,
            disk_load_test: config.disk_load_test,
            engine: engine.handle(),
            disk,
            shutdown: shutdown.clone(),
        };
        let seat = Arc::new(Seat::new(founder, advertised.clone(), uploads_dir));
        // Before the seat is taken: the other members must reach this one while it comes back.
        let server = tokio::spawn(server::serve(seat.clone(), listener, shutdown.clone()));
        let running = RunningCoordinator { address, advertised, seat, shutdown, server, engine };
        running.take_seat(&config).await?;
        guard.disarm();
        Ok(running)
    }
}

impl RunningCoordinator {
    async fn take_seat(&self, config: &CoordinatorConfig) -> Result<(), StartError> {
        let seat = &self.seat;
        let opened = seat.founder.open(seat.metrics.clone()).await;
        let folder = config.data_dir.display().to_string();
        if let Some(seated) = opened.map_err(|source| StartError::Open { folder, source })? {
            seat.take(seated);
            join::settle_later(seat, &config.join);
        } else if config.init {
            seat.found(config.profile).await.map_err(StartError::Init)?;
        } else if !config.join.is_empty() {
            join::join(seat, &config.join).await?;
        } else {
            tracing::info!("belongs to no cluster yet: run `outlast cluster init` or start it with --join");
        }
        Ok(())
    }

    /// The cluster that it belongs to, if it does.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.seat.member().ok().map(|member| member.cluster_id.clone())
    }

    /// Whether this coordinator leads now.
    pub fn is_leader(&self) -> bool {
        self.seat.member().is_ok_and(|member| member.leads())
    }

    /// Its part in the log, for a simulation's observers. A clone keeps it alive.
    #[cfg(feature = "simulated")]
    pub fn consensus(&self) -> Option<outlast_consensus::Consensus> {
        self.seat.member().ok().map(|member| member.consensus.clone())
    }

    /// Asks it to stop; [`RunningCoordinator::wait`] waits for that.
    pub fn stop(&self) {
        self.shutdown.cancel();
    }

    /// Waits for the shutdown, then stops in order: no new calls, sessions told to go elsewhere, the log closed.
    pub async fn wait(mut self) {
        self.shutdown.cancelled().await;
        if let Err(error) = (&mut self.server).await {
            tracing::error!(%error, "the server did not end well");
        }
        if let Ok(member) = self.seat.member() {
            self.seat.leave();
            if tokio::time::timeout(STOP_DEADLINE, member.consensus.shutdown()).await.is_err() {
                tracing::warn!("the log was not closed in time");
            }
        }
        tracing::info!("stopped");
    }
}

impl Drop for RunningCoordinator {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.seat.leave();
        let _ = &self.engine;
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => StartError::AddressInUse { address },
        _ => StartError::Listen { address, source },
    })
}

/// A folder that only its user can read, with an empty place for uploads.
fn prepare_folder(folder: &Path) -> Result<(PathBuf, Arc<DiskWatch>), StartError> {
    let disk_error = |source| StartError::Disk { folder: folder.display().to_string(), source };
    let uploads = folder.join("uploads");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(disk_error)?;
    match fs::remove_dir_all(&uploads) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk_error(error)),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).create(&uploads).map_err(disk_error)?;
    let disk = DiskWatch::start(folder).map_err(disk_error)?;
    Ok((uploads, disk))
}
