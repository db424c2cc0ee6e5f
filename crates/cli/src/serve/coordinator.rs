//! `outlast coordinator`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use outlast_consensus::{FolderError, OpenError};
use outlast_coordinator::{Coordinator, CoordinatorConfig, StartError};
use outlast_types::Profile;
use tokio_util::sync::CancellationToken;

use super::check::check_folder;
use super::daemon::{self, DaemonArgs};
use super::keys::{Key, Kind};
use super::layers::Layers;
use crate::problem::{Exit, Problem};

pub(super) const KEYS: &[Key] = &[
    Key { path: "data_dir", variable: "OUTLAST_DATA_DIR", kind: Kind::Text },
    Key { path: "listen", variable: "OUTLAST_LISTEN", kind: Kind::Text },
    Key { path: "advertise", variable: "OUTLAST_ADVERTISE", kind: Kind::Text },
    Key { path: "profile", variable: "OUTLAST_PROFILE", kind: Kind::Text },
    Key { path: "init", variable: "OUTLAST_INIT", kind: Kind::Flag },
    Key { path: "join", variable: "OUTLAST_JOIN", kind: Kind::Texts },
    Key { path: "insecure", variable: "OUTLAST_INSECURE", kind: Kind::Flag },
    Key { path: "disk_load_test", variable: "OUTLAST_DISK_LOAD_TEST", kind: Kind::Flag },
];

const AFTER_HELP: &str = "\
Every setting also comes from a variable (--data-dir is OUTLAST_DATA_DIR) or from the TOML file of
--config (data_dir = \"…\"); a flag beats a variable, a variable beats the file. --print-config shows
what is in force.

A first coordinator:  outlast coordinator --data-dir c1 --init
The others:           outlast coordinator --data-dir c2 --listen 127.0.0.1:7410 --join 127.0.0.1:7400

Exit code 78: the data folder is damaged or belongs to another coordinator; starting again does not help.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct CoordinatorArgs {
    /// Everything that the coordinator keeps
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address for gRPC and HTTP; port 0 takes a free one [default: 127.0.0.1:7400]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Address that others reach this coordinator at [default: the one it listens on]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Timers of a new cluster: lan, or wan for several sites and slow disks
    #[arg(long, value_name = "PROFILE")]
    profile: Option<Profile>,
    /// Make a new cluster when the folder is empty
    #[arg(long)]
    init: bool,
    /// Join a cluster through this coordinator when the folder is empty; may be repeated
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    join: Vec<String>,
    /// Listen on an address that is not loopback although there is no TLS yet
    #[arg(long)]
    insecure: bool,
    /// Do not measure the disk beside checkpoint-like writes at start (OUTLAST_DISK_LOAD_TEST=false)
    #[arg(long)]
    no_disk_load_test: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
}

impl CoordinatorArgs {
    pub(crate) fn run(self) -> Result<ExitCode, Problem> {
        let layers = self.layers()?;
        if self.daemon.print_config {
            return self.daemon.print(&layers);
        }
        let config: CoordinatorConfig = layers.resolve()?;
        self.daemon.start_logging()?;
        check_folder(&config.data_dir, config.init)?;
        daemon::run(|shutdown| serve(config, shutdown))
    }

    fn layers(&self) -> Result<Layers, Problem> {
        let layers = self.daemon.layers(Layers::new(KEYS, &CoordinatorConfig::default())?)?;
        let profile = self.profile.map(|profile| serde_json::json!(profile));
        Ok(layers
            .flag(
                "data_dir",
                "data-dir",
                self.data_dir.as_ref().map(|dir| dir.to_string_lossy().into_owned().into()),
            )
            .flag("listen", "listen", self.listen.map(|listen| listen.to_string().into()))
            .flag("advertise", "advertise", self.advertise.clone().map(Into::into))
            .flag("profile", "profile", profile)
            .flag("init", "init", self.init.then_some(true.into()))
            .flag("join", "join", (!self.join.is_empty()).then(|| self.join.clone().into()))
            .flag("insecure", "insecure", self.insecure.then_some(true.into()))
            .flag("disk_load_test", "no-disk-load-test", self.no_disk_load_test.then_some(false.into())))
    }
}

async fn serve(config: CoordinatorConfig, shutdown: CancellationToken) -> Result<Exit, Problem> {
    let folder = config.data_dir.display().to_string();
    let running = Coordinator::start(config, shutdown).await.map_err(|error| not_started(&error))?;
    daemon::ready(&format!("coordinator http://{}, data in {folder}", running.address))?;
    running.wait().await;
    Ok(Exit::Done)
}

/// What a start that failed means to who started it.
pub(super) fn not_started(error: &StartError) -> Problem {
    let exit = match error {
        StartError::NotLoopback { .. } | StartError::NoAdvertise { .. } | StartError::InitAndJoin => {
            Exit::Usage
        }
        StartError::AddressInUse { .. } => Exit::Conflict,
        StartError::Join { .. } => Exit::Unreachable,
        StartError::Open { source, .. } => folder_exit(source),
        _ => Exit::Failed,
    };
    let problem = Problem::new(exit, "the coordinator did not start").because_of(error);
    match error {
        StartError::Open { source: OpenError::Quarantined { coordinator, .. }, .. } => {
            way_back(problem, &coordinator.to_string())
        }
        _ => problem,
    }
}

/// What to do about a coordinator whose log was set aside.
pub(super) fn way_back(problem: Problem, coordinator: &str) -> Problem {
    problem
        .next(format!("outlast cluster remove {coordinator} --coordinator ANOTHER"))
        .next("start this one with --join ANOTHER, and without --init: it joins under a new id")
        .next("it was the only coordinator: its jobs are lost to the cluster; begin anew with another --data-dir")
}

/// Whether another start could help.
pub(super) fn folder_exit(error: &OpenError) -> Exit {
    match error {
        OpenError::Folder(FolderError::Locked { .. }) => Exit::Conflict,
        OpenError::Folder(FolderError::Identity { .. } | FolderError::Format { .. })
        | OpenError::Quarantined { .. }
        | OpenError::OtherOwner { .. }
        | OpenError::AlreadyMember { .. }
        | OpenError::WasMember { .. } => Exit::Folder,
        _ => Exit::Failed,
    }
}
