//! `outlast agent`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use outlast_agent::{Agent, AgentConfig, AgentError, FolderError, StartError, StopWorkers, StoreOptions};
use outlast_types::{ByteSize, NodeId};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::daemon::{self, DaemonArgs};
use super::keys::{Key, Kind};
use super::layers::Layers;
use crate::problem::{Exit, Problem};

pub(super) const KEYS: &[Key] = &[
    Key { path: "name", variable: "OUTLAST_NAME", kind: Kind::Text },
    Key { path: "data_dir", variable: "OUTLAST_DATA_DIR", kind: Kind::Text },
    Key { path: "coordinators", variable: "OUTLAST_COORDINATOR", kind: Kind::Texts },
    Key { path: "listen", variable: "OUTLAST_LISTEN", kind: Kind::Text },
    Key { path: "advertise", variable: "OUTLAST_ADVERTISE", kind: Kind::Text },
    Key { path: "data_listen", variable: "OUTLAST_DATA_LISTEN", kind: Kind::Text },
    Key { path: "data_address", variable: "OUTLAST_DATA_ADDRESS", kind: Kind::Text },
    Key { path: "data_connections", variable: "OUTLAST_DATA_CONNECTIONS", kind: Kind::Number },
    Key { path: "labels", variable: "OUTLAST_LABELS", kind: Kind::Pairs },
    Key { path: "resources.cpus", variable: "OUTLAST_CPUS", kind: Kind::Number },
    Key { path: "resources.memory", variable: "OUTLAST_MEMORY", kind: Kind::Size },
    Key { path: "resources.gpus", variable: "OUTLAST_GPUS", kind: Kind::Number },
    Key { path: "resources.custom", variable: "OUTLAST_RESOURCES", kind: Kind::Counts },
    Key { path: "store", variable: "OUTLAST_STORE", kind: Kind::Text },
    Key { path: "keeper_exe", variable: "OUTLAST_KEEPER_EXE", kind: Kind::Text },
    Key { path: "insecure", variable: "OUTLAST_INSECURE", kind: Kind::Flag },
];

const AFTER_HELP: &str = "\
Every setting also comes from a variable (--data-dir is OUTLAST_DATA_DIR) or from the TOML file of
--config (data_dir = \"…\", [labels] zone = \"a\", [resources] cpus = 4); a flag beats a variable, a
variable beats the file. --print-config shows what is in force.

Stopping the agent does not stop its workers: the next start takes them over.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct AgentArgs {
    /// The node's name [default: the host's]
    #[arg(long, value_name = "NAME")]
    name: Option<NodeId>,
    /// Everything that the agent keeps; one agent at a time
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A coordinator; may be repeated, the others are learned [default: 127.0.0.1:7400]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    coordinator: Vec<String>,
    /// Address for peers and metrics; port 0 takes a free one [default: 127.0.0.1:7401]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Address that others reach this agent at [default: the one it listens on]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// A second address to listen on, of a network for checkpoints and bundles between nodes
    #[arg(long, value_name = "IP:PORT")]
    data_listen: Option<SocketAddr>,
    /// Address that other nodes fetch bytes at, and where ranks of a gang meet; tried when the agent starts [default:
    /// that of --data-listen, else of --advertise]
    #[arg(long, value_name = "HOST:PORT")]
    data_address: Option<String>,
    /// Connections of one transfer of many bytes between nodes, 1 to 16 [default: 4]
    #[arg(long, value_name = "N")]
    data_connections: Option<u32>,
    /// A label, for placement and failure domains (zone, rack); may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Cores to give out [default: what the machine has; so are memory and gpus]
    #[arg(long, value_name = "N")]
    cpus: Option<f64>,
    /// Memory to give out, for example 16GiB
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// GPUs to give out
    #[arg(long, value_name = "N")]
    gpus: Option<u32>,
    /// A counted resource of your own; may be repeated
    #[arg(long, value_name = "NAME=N", value_parser = count)]
    resource: Vec<(String, u64)>,
    /// Object store for checkpoints whose policy is `stored`: s3://bucket/prefix, gs://, az://, file:///folder
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Listen on an address that is not loopback although there is no TLS yet
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn count(text: &str) -> Result<(String, u64), String> {
    let (name, count) = text.split_once('=').ok_or("write NAME=N")?;
    let count = count.parse().map_err(|_| "write NAME=N with a whole number")?;
    Ok((name.to_owned(), count))
}

impl AgentArgs {
    pub(crate) fn run(self) -> Result<ExitCode, Problem> {
        let layers = self.layers()?;
        if self.daemon.print_config {
            return self.daemon.print(&layers);
        }
        let mut config: AgentConfig = layers.resolve()?;
        config.store_options = StoreOptions::from_vars(std::env::vars());
        self.daemon.start_logging()?;
        daemon::run(|shutdown| serve(config, shutdown))
    }

    fn layers(&self) -> Result<Layers, Problem> {
        let layers = self.daemon.layers(Layers::new(KEYS, &AgentConfig::default())?)?;
        let labels: BTreeMap<_, _> = self.label.iter().cloned().collect();
        let custom: BTreeMap<_, _> = self.resource.iter().cloned().collect();
        Ok(layers
            .flag("name", "name", self.name.as_ref().map(|name| json!(name)))
            .flag(
                "data_dir",
                "data-dir",
                self.data_dir.as_ref().map(|dir| dir.to_string_lossy().into_owned().into()),
            )
            .flag(
                "coordinators",
                "coordinator",
                (!self.coordinator.is_empty()).then(|| json!(self.coordinator)),
            )
            .flag("listen", "listen", self.listen.map(|listen| listen.to_string().into()))
            .flag("advertise", "advertise", self.advertise.clone().map(Into::into))
            .flag("data_listen", "data-listen", self.data_listen.map(|listen| listen.to_string().into()))
            .flag("data_address", "data-address", self.data_address.clone().map(Into::into))
            .flag("data_connections", "data-connections", self.data_connections.map(Into::into))
            .flag("labels", "label", (!labels.is_empty()).then(|| json!(labels)))
            .flag("resources.cpus", "cpus", self.cpus.map(Into::into))
            .flag("resources.memory", "memory", self.memory.map(|memory| memory.0.into()))
            .flag("resources.gpus", "gpus", self.gpus.map(Into::into))
            .flag("resources.custom", "resource", (!custom.is_empty()).then(|| json!(custom)))
            .flag("store", "store", self.store.clone().map(Into::into))
            .flag("insecure", "insecure", self.insecure.then_some(true.into())))
    }
}

async fn serve(config: AgentConfig, shutdown: CancellationToken) -> Result<Exit, Problem> {
    let folder = config.data_dir.display().to_string();
    let mut running = Agent::start(config).await.map_err(|error| not_started(&error))?;
    daemon::ready(&format!("agent {} on {}, data in {folder}", running.node, running.address))?;
    tokio::select! {
        ended = running.wait() => ended.map(|()| Exit::Done).map_err(|error| ended_itself(&error)),
        () = shutdown.cancelled() => {
            running.shutdown(StopWorkers::No).await;
            Ok(Exit::Done)
        }
    }
}

/// What a start that failed means to who started it.
pub(super) fn not_started(error: &StartError) -> Problem {
    let exit = match error {
        StartError::Config(_) => Exit::Usage,
        StartError::Folder(source) => folder_exit(source),
        StartError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => Exit::Conflict,
        StartError::Listen { .. }
        | StartError::Blobs(_)
        | StartError::Store(_)
        | StartError::Machine { .. } => Exit::Failed,
    };
    Problem::new(exit, "the agent did not start").because_of(error)
}

fn ended_itself(error: &AgentError) -> Problem {
    let exit = match error {
        AgentError::Refused(_) => Exit::Denied,
        AgentError::Folder(source) => folder_exit(source),
        AgentError::Lost => Exit::Failed,
    };
    Problem::new(exit, "the agent ended").because_of(error)
}

/// Whether another start could help.
fn folder_exit(error: &FolderError) -> Exit {
    match error {
        FolderError::InUse(_) => Exit::Conflict,
        FolderError::Io { .. } => Exit::Failed,
        FolderError::OtherNode { .. }
        | FolderError::OtherCluster { .. }
        | FolderError::Damaged { .. }
        | FolderError::NotPrivate(_) => Exit::Folder,
    }
}
