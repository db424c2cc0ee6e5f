//! `outlast dev`: a coordinator and agents in one process, the embedded default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use outlast_agent::{Agent, AgentConfig, RunningAgent, StopWorkers};
use outlast_client::Client;
use outlast_coordinator::{Coordinator, CoordinatorConfig};
use outlast_telemetry::LogFormat;
use outlast_types::{ByteSize, NodeId};
use tokio_util::sync::CancellationToken;

use super::check::check_folder;
use super::{agent, coordinator, daemon};
use crate::problem::{Exit, Problem};
use crate::term::talk;

/// An election and a registration take two seconds; a busy machine takes more.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

const AFTER_HELP: &str = "\
Data lies in $XDG_STATE_HOME/outlast/dev (~/.local/state/outlast/dev) unless --data-dir says
otherwise. Starting again with the same folder goes on with the jobs that are in it, from their
newest checkpoint. Ctrl-C stops the workers and ends; with --keep they run on, and the next start
takes them over.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct DevArgs {
    /// How many nodes; they share this machine's resources
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    nodes: u32,
    /// Everything that is kept
    #[arg(long, env = "OUTLAST_DATA_DIR", hide_env_values = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address of the coordinator; port 0 takes a free one
    #[arg(
        long,
        default_value = "127.0.0.1:7400",
        env = "OUTLAST_LISTEN",
        hide_env_values = true,
        value_name = "IP:PORT"
    )]
    listen: SocketAddr,
    /// Leave the workers running at the end
    #[arg(long)]
    keep: bool,
    /// Show log lines too
    #[arg(short, long)]
    verbose: bool,
}

impl DevArgs {
    pub(crate) fn run(self) -> Result<ExitCode, Problem> {
        let folder = self.data_dir.clone().map_or_else(default_folder, Ok)?;
        // Warnings only, unless asked for: this terminal belongs to somebody who tries things out.
        let filter =
            if self.verbose || std::env::var_os("OUTLAST_LOG").is_some() { None } else { Some("warn") };
        outlast_telemetry::logging::init(LogFormat::Human, filter)
            .map_err(|error| Problem::new(Exit::Usage, "log lines cannot be set up").because_of(&error))?;
        check_folder(&folder.join("coordinator"), true)?;
        daemon::run(|shutdown| self.serve(folder, shutdown))
    }

    async fn serve(self, folder: PathBuf, shutdown: CancellationToken) -> Result<Exit, Problem> {
        let last = CancellationToken::new();
        let config = CoordinatorConfig {
            data_dir: folder.join("coordinator"),
            listen: self.listen,
            init: true,
            // One coordinator has no followers whose patience a slow disk could try.
            disk_load_test: false,
            ..CoordinatorConfig::default()
        };
        let started = Coordinator::start(config, last.clone()).await;
        let running = started.map_err(|error| coordinator::not_started(&error))?;
        let url = format!("http://{}", running.address);
        let mut agents = Vec::new();
        for number in 1..=self.nodes {
            let config = self.agent(number, &folder, &url)?;
            agents.push(Agent::start(config).await.map_err(|error| agent::not_started(&error))?);
        }
        let worked = tokio::select! {
            worked = self.work(&url, &folder) => worked,
            () = shutdown.cancelled() => Ok(()),
        };
        talk("ending…");
        // The coordinator first: it must not place anew what the agents are about to stop.
        last.cancel();
        running.wait().await;
        self.end(agents).await;
        worked.map(|()| Exit::Done)
    }

    /// Ends only when the nodes do not become ready.
    async fn work(&self, url: &str, folder: &Path) -> Result<(), Problem> {
        wait_until_ready(url, self.nodes).await?;
        self.welcome(url, folder)?;
        std::future::pending().await
    }

    fn agent(&self, number: u32, folder: &Path, url: &str) -> Result<AgentConfig, Problem> {
        let name = NodeId::new(format!("node-{number}"))
            .map_err(|error| Problem::new(Exit::Usage, "no name for a node").because_of(&error))?;
        let mut config = AgentConfig {
            data_dir: folder.join(name.as_str()),
            name: Some(name),
            coordinators: vec![url.to_owned()],
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            ..AgentConfig::default()
        };
        if self.nodes > 1 {
            // One machine, told apart into nodes. Memory is not given out twice; cores may be, because a node that
            // cannot take a worker of one core (the default) is of no use to anybody.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            config.resources.cpus = Some((cores as f64 / f64::from(self.nodes)).max(1.0));
            config.resources.memory = memory().map(|memory| ByteSize(memory / u64::from(self.nodes)));
            // GPUs cannot be shared out by halves: the first node has them.
            config.resources.gpus = (number > 1).then_some(0);
        }
        Ok(config)
    }

    fn welcome(&self, url: &str, folder: &Path) -> Result<(), Problem> {
        daemon::ready(&format!("coordinator {url}, {} node(s), data in {}", self.nodes, folder.display()))?;
        let other = if url.ends_with(":7400") {
            String::new()
        } else {
            format!(" --coordinator {}", &url["http://".len()..])
        };
        talk(&format!(
            "try, in another terminal:\n  outlast job run{other} -- python3 -c 'print(6 * 7)'\n  \
             outlast job run{other} --workers 2 -- outlast example digits\n  outlast job list{other}\n  \
             outlast node list{other}\nCtrl-C ends it{}",
            if self.keep {
                "; the workers run on"
            } else {
                " and stops the workers; the jobs go on at the next start"
            }
        ));
        Ok(())
    }

    async fn end(&self, agents: Vec<RunningAgent>) {
        let workers = if self.keep { StopWorkers::No } else { StopWorkers::Yes };
        let mut ends = tokio::task::JoinSet::new();
        agents.into_iter().for_each(|agent| drop(ends.spawn(agent.shutdown(workers))));
        ends.join_all().await;
    }
}

async fn wait_until_ready(url: &str, nodes: u32) -> Result<(), Problem> {
    let client = Client::new(vec![url.to_owned()])?.with_timeout(READY_TIMEOUT);
    let ready = async {
        loop {
            let status = client.cluster_status().await?;
            if !status.leader.is_empty() && status.nodes_ready >= nodes {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(READY_TIMEOUT, ready).await.unwrap_or_else(|_| {
        Err(Problem::new(Exit::Unreachable, "the nodes did not become ready in time")
            .next("start again with --verbose, and look at what it says"))
    })
}

/// Not in the current folder: that one may be a job's workdir, or a repository.
fn default_folder() -> Result<PathBuf, Problem> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    state.map(|state| state.join("outlast/dev")).ok_or_else(|| {
        Problem::new(Exit::Usage, "there is no place for the data")
            .because("neither XDG_STATE_HOME nor HOME is set")
            .next("give --data-dir DIR")
    })
}

/// Bytes of this machine.
fn memory() -> Option<u64> {
    let info = rustix::system::sysinfo();
    Some(u64::from(info.mem_unit) * info.totalram)
}
