//! The cluster: started as an operator would start it, from the command line.

use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use outlast_client::Client;
use outlast_proto::control::v1 as pb;
use outlast_staging::{find_outside, remove_outside};
use tempfile::TempDir;

use crate::process::Daemon;
use crate::tree::{Found, find_processes};

/// Where a daemon runs that does not run on loopback: an address of its own, and the words that lead there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub ip: IpAddr,
    /// A command that runs the words after it there, in the process that was started (`nsenter --net=…`).
    pub enter: Vec<String>,
}

/// The ports at places, where nobody else listens.
const COORDINATOR_PORT: u16 = 7400;
const AGENT_PORT: u16 = 7401;

/// What kind of cluster is wanted.
pub struct Builder {
    exe: PathBuf,
    coordinators: usize,
    agents: usize,
    agent_args: Vec<String>,
    folder: Option<PathBuf>,
    /// Of the coordinators, then of the agents; none: all on loopback.
    places: Vec<Place>,
}

impl Builder {
    /// `exe`: the `outlast` binary.
    pub fn new(exe: impl Into<PathBuf>) -> Self {
        Self {
            exe: exe.into(),
            coordinators: 3,
            agents: 4,
            agent_args: Vec::new(),
            folder: None,
            places: Vec::new(),
        }
    }
    pub fn coordinators(mut self, n: usize) -> Self {
        self.coordinators = n;
        self
    }
    pub fn agents(mut self, n: usize) -> Self {
        self.agents = n;
        self
    }
    /// More arguments for every agent.
    pub fn agent_args(mut self, args: &[&str]) -> Self {
        self.agent_args = args.iter().map(ToString::to_string).collect();
        self
    }
    /// Where everything lies; by default a temporary folder that goes with the cluster.
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Where each coordinator and each agent runs, instead of on loopback; as many of each as there are places.
    pub fn places(mut self, coordinators: Vec<Place>, agents: Vec<Place>) -> Self {
        (self.coordinators, self.agents) = (coordinators.len(), agents.len());
        self.places = coordinators;
        self.places.extend(agents);
        self
    }

    /// Starts everything and waits until it is whole: all coordinators vote, all agents are ready.
    ///
    /// # Errors
    /// When something does not come up within a minute; the message holds the end of its log.
    pub async fn start(self) -> Result<LocalCluster> {
        let temp = tempfile::Builder::new()
            .prefix("outlast-")
            .tempdir()
            .context("could not make a temporary folder")?;
        let root = self.folder.clone().unwrap_or_else(|| temp.path().to_path_buf());
        let addresses = self.addresses()?;
        let address = |i: usize| addresses[i].clone();
        let coordinators: Vec<Daemon> =
            (0..self.coordinators).map(|i| self.coordinator(&root, i, address(i), &address(0))).collect();
        let endpoints: Vec<String> = coordinators.iter().map(|c| c.address.clone()).collect();
        let agents = (0..self.agents)
            .map(|i| self.agent(&root, i, address(self.coordinators + i), &endpoints))
            .collect();
        let urls = endpoints.iter().map(|address| format!("http://{address}")).collect();
        let client = Client::new(urls).context("the endpoints are no addresses")?;
        let mut cluster = LocalCluster { coordinators, agents, client, root, _temp: temp };
        cluster.bring_up().await?;
        Ok(cluster)
    }

    fn addresses(&self) -> Result<Vec<String>> {
        if self.places.is_empty() {
            let ports = free_ports(self.coordinators + self.agents)?;
            return Ok(ports.iter().map(|port| format!("127.0.0.1:{port}")).collect());
        }
        let port = |i| if i < self.coordinators { COORDINATOR_PORT } else { AGENT_PORT };
        Ok(self.places.iter().enumerate().map(|(i, place)| format!("{}:{}", place.ip, port(i))).collect())
    }

    /// The daemon at the `i`th place.
    fn daemon(&self, i: usize, name: &str, address: String, root: &Path, mut args: Vec<String>) -> Daemon {
        let place = self.places.get(i);
        if place.is_some_and(|place| !place.ip.is_loopback()) {
            args.push("--insecure".to_owned());
        }
        let enter = place.map(|place| place.enter.clone()).unwrap_or_default();
        Daemon::new(name, address, root, &self.exe, args).with_prefix(enter)
    }

    fn coordinator(&self, root: &Path, i: usize, address: String, first: &str) -> Daemon {
        let name = format!("c{}", i + 1);
        let folder = root.join(&name).to_string_lossy().into_owned();
        // Several coordinators on one disk would measure each other.
        let mut args: Vec<String> =
            ["coordinator", "--no-disk-load-test", "--data-dir", &folder, "--listen", &address]
                .iter()
                .map(ToString::to_string)
                .collect();
        if i == 0 {
            args.push("--init".to_owned());
        } else {
            args.extend(["--join".to_owned(), first.to_owned()]);
        }
        self.daemon(i, &name, address, root, args)
    }

    fn agent(&self, root: &Path, i: usize, address: String, endpoints: &[String]) -> Daemon {
        let name = format!("n{}", i + 1);
        let folder = root.join(&name).to_string_lossy().into_owned();
        let mut args: Vec<String> = ["agent", "--name", &name, "--data-dir", &folder, "--listen", &address]
            .iter()
            .map(ToString::to_string)
            .collect();
        for endpoint in endpoints {
            args.extend(["--coordinator".to_owned(), endpoint.clone()]);
        }
        args.extend(self.agent_args.iter().cloned());
        self.daemon(self.coordinators + i, &name, address, root, args)
    }
}

/// Ports that were free a moment ago, all different.
fn free_ports(n: usize) -> Result<Vec<u16>> {
    let listeners: Vec<TcpListener> =
        (0..n).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>().context("no free port")?;
    listeners.iter().map(|listener| Ok(listener.local_addr().context("no address")?.port())).collect()
}

/// A running cluster.
pub struct LocalCluster {
    pub coordinators: Vec<Daemon>,
    pub agents: Vec<Daemon>,
    client: Client,
    root: PathBuf,
    // Last: removed when all processes have been ended.
    _temp: TempDir,
}

/// How long a part may take to come up; generous, for a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(60);

impl LocalCluster {
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// `http://host:port` of every coordinator, joined by commas: what `--coordinator` takes.
    pub fn endpoints(&self) -> String {
        self.coordinators.iter().map(|c| format!("http://{}", c.address)).collect::<Vec<_>>().join(",")
    }

    pub fn folder(&self) -> &Path {
        &self.root
    }

    async fn bring_up(&mut self) -> Result<()> {
        // The first makes the cluster; the others join all at once, as machines do that boot together.
        for wanted in [1, self.coordinators.len()] {
            for coordinator in &mut self.coordinators[..wanted] {
                if coordinator.pid().is_none() {
                    coordinator.start()?;
                }
            }
            let whole = |status: &pb::ClusterStatusResponse| {
                count_voters(status) >= wanted && !status.leader.is_empty()
            };
            self.wait_status(&format!("{wanted} coordinators to vote"), whole).await?;
        }
        for agent in &mut self.agents {
            agent.start()?;
        }
        let wanted = self.agents.len() as u32;
        self.wait_status("all agents to be ready", |status| status.nodes_ready >= wanted).await
    }

    /// Waits until the cluster's status fits.
    ///
    /// # Errors
    /// After a minute, with the last status and the logs' ends.
    pub async fn wait_status(
        &self,
        what: &str,
        fits: impl Fn(&pb::ClusterStatusResponse) -> bool,
    ) -> Result<()> {
        let started = Instant::now();
        let mut last = String::from("no answer");
        while started.elapsed() < START_DEADLINE {
            match self.client.cluster_status().await {
                Ok(status) if fits(&status) => return Ok(()),
                Ok(status) => last = format!("{status:?}"),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let logs = self
            .coordinators
            .iter()
            .chain(&self.agents)
            .map(|d| format!("--- {}\n{}", d.name, d.log_tail(12)));
        bail!("waited in vain for {what}; last status: {last}\n{}", logs.collect::<Vec<_>>().join("\n"))
    }

    /// The position of the leader in `coordinators`.
    ///
    /// # Errors
    /// When nobody leads, or nobody answers.
    pub async fn leader(&self) -> Result<usize> {
        let status = self.client.cluster_status().await.context("no coordinator answered")?;
        let leader = status.coordinators.iter().find(|c| c.role == "leader").context("there is no leader")?;
        let position = self.coordinators.iter().position(|c| c.address == leader.address);
        position.context("the leader is not one of this cluster's coordinators")
    }

    /// The agent of the node with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn agent_mut(&mut self, node: &str) -> Result<&mut Daemon> {
        self.agents
            .iter_mut()
            .find(|agent| agent.name == node)
            .with_context(|| format!("no agent is named {node}"))
    }

    /// The coordinator with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn coordinator_mut(&mut self, name: &str) -> Result<&mut Daemon> {
        self.coordinators
            .iter_mut()
            .find(|coordinator| coordinator.name == name)
            .with_context(|| format!("no coordinator is named {name}"))
    }

    /// Everything of this cluster that is alive, whoever started it.
    pub fn processes(&self) -> Vec<Found> {
        find_processes(&self.root)
    }

    /// What its agents have outside its folder: slots in shared memory, and sockets where the path is long.
    pub fn outside(&self) -> Vec<PathBuf> {
        let root = self.root.canonicalize().unwrap_or_else(|_| self.root.clone());
        find_outside(|owner| owner.starts_with(&root))
    }

    /// Ends everything, and says what was left over when all had been told to go.
    pub fn stop(&mut self) -> Vec<Found> {
        for daemon in self.agents.iter_mut().chain(&mut self.coordinators) {
            daemon.kill_tree();
        }
        for dir in self.outside() {
            // What cannot be removed is found by whoever looks, or by the next agent.
            let _ = remove_outside(&dir);
        }
        self.processes()
    }
}

fn count_voters(status: &pb::ClusterStatusResponse) -> usize {
    status.coordinators.iter().filter(|c| c.role == "leader" || c.role == "follower").count()
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        self.stop();
    }
}
