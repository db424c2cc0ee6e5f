//! What an agent is told at its start.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use outlast_blobs::objects::StoreOptions;
use outlast_types::{ByteSize, NodeId};
use serde::{Deserialize, Serialize};

use crate::peer::CONNECTIONS_MAX;

/// The agent's port for peers and metrics.
pub const DEFAULT_PORT: u16 = 7401;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// Private to its user; one agent at a time. Default `outlast-agent`.
    pub data_dir: PathBuf,
    /// Default: the host name.
    pub name: Option<NodeId>,
    /// `host:port` of one coordinator or more; the others are learnt from it. Default `127.0.0.1:7400`.
    pub coordinators: Vec<String>,
    /// For peers, coordinators (logs) and metrics; port 0 takes a free one. Default `127.0.0.1:7401`.
    pub listen: SocketAddr,
    /// `host:port` that others reach it at. Default: the bound address.
    pub advertise: Option<String>,
    /// A second address to listen on, of a network that is for bytes between nodes. Default: none.
    pub data_listen: Option<SocketAddr>,
    /// `host:port` that other nodes fetch bytes at. Default: `data_listen`, else as `advertise`.
    pub data_address: Option<String>,
    /// Connections of one transfer of many bytes between nodes.
    pub data_connections: u32,
    /// For placement and failure domains (`zone`, `rack`).
    pub labels: BTreeMap<String, String>,
    pub resources: ResourceOverrides,
    /// Where checkpoints go whose policy is `stored`: `s3://bucket/prefix`, `gs://`, `az://` or `file:///folder`. The same
    /// for all agents of a cluster, and for no other cluster. Default: none.
    pub store: Option<String>,
    /// Endpoint and credentials of the object store, under the names of its usual variables; never written anywhere.
    #[serde(skip)]
    pub store_options: StoreOptions,
    /// The program that is run as `PROGRAM keeper DIR`. Default: this one.
    pub keeper_exe: Option<PathBuf>,
    /// Allow another address than loopback although nothing is encrypted or authenticated yet.
    pub insecure: bool,
}

/// What to say of the machine instead of what is found.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceOverrides {
    pub cpus: Option<f64>,
    pub memory: Option<ByteSize>,
    pub gpus: Option<u32>,
    /// Counted resources with names of the operator's own.
    pub custom: BTreeMap<String, u64>,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("outlast-agent"),
            name: None,
            coordinators: vec!["127.0.0.1:7400".to_owned()],
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)),
            advertise: None,
            data_listen: None,
            data_address: None,
            data_connections: 4,
            labels: BTreeMap::new(),
            resources: ResourceOverrides::default(),
            store: None,
            store_options: StoreOptions::default(),
            keeper_exe: None,
            insecure: false,
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    #[error("a transfer has 1 to {CONNECTIONS_MAX} connections, not {0}")]
    Connections(u32),
    #[error("no coordinator is named: give at least one host:port")]
    NoCoordinator,
    #[error(
        "{0} can be reached from other machines, and nothing is encrypted or authenticated yet: listen on 127.0.0.1, or \
         say --insecure if the network is yours alone"
    )]
    Exposed(SocketAddr),
    #[error(
        "the agent listens on all addresses ({0}), so others cannot guess its own: say --advertise HOST:PORT"
    )]
    NoAdvertise(SocketAddr),
    #[error(
        "the agent's data network listens on all addresses ({0}), so others cannot guess its own: say --data-address \
         HOST:PORT"
    )]
    NoDataAddress(SocketAddr),
    #[error("{0} cpus are not a number of cpus: it must be above 0 and at most 1048576")]
    Cpus(f64),
    #[error("the host name {host:?} cannot be the node's name: say --name NAME")]
    HostName {
        host: String,
        #[source]
        source: outlast_types::IdParseError,
    },
}

impl AgentConfig {
    /// # Errors
    /// Refuses what could only go wrong later, or be open by accident.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.coordinators.iter().all(|address| address.trim().is_empty()) {
            return Err(ConfigError::NoCoordinator);
        }
        let all = [Some(self.listen), self.data_listen];
        if let Some(open) = all.into_iter().flatten().find(|listen| !listen.ip().is_loopback())
            && !self.insecure
        {
            return Err(ConfigError::Exposed(open));
        }
        if self.listen.ip().is_unspecified() && self.advertise.is_none() {
            return Err(ConfigError::NoAdvertise(self.listen));
        }
        if let Some(listen) = self.data_listen.filter(|listen| listen.ip().is_unspecified())
            && self.data_address.is_none()
        {
            return Err(ConfigError::NoDataAddress(listen));
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.data_connections) {
            return Err(ConfigError::Connections(self.data_connections));
        }
        match self.resources.cpus {
            Some(cpus) if !(cpus > 0.0 && cpus <= 1_048_576.0) => Err(ConfigError::Cpus(cpus)),
            _ => Ok(()),
        }
    }

    /// The node's name: as given, or made of the host name.
    ///
    /// # Errors
    /// When the host name has nothing that a node name could be made of.
    pub fn node(&self) -> Result<NodeId, ConfigError> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        NodeId::new(host.to_ascii_lowercase()).map_err(|source| ConfigError::HostName { host, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_open_to_the_network_by_accident() {
        let on = |listen: &str, insecure| AgentConfig {
            listen: listen.parse().expect("an address"),
            insecure,
            advertise: Some("a:1".into()),
            ..AgentConfig::default()
        };
        assert_eq!(on("127.0.0.1:0", false).check(), Ok(()));
        assert!(matches!(on("192.0.2.1:7401", false).check(), Err(ConfigError::Exposed(_))));
        assert_eq!(on("192.0.2.1:7401", true).check(), Ok(()));
        let silent = AgentConfig { advertise: None, ..on("0.0.0.0:7401", true) };
        assert!(matches!(silent.check(), Err(ConfigError::NoAdvertise(_))));
        let data = |listen: &str, insecure| AgentConfig {
            data_listen: Some(listen.parse().expect("an address")),
            ..on("127.0.0.1:0", insecure)
        };
        assert!(matches!(data("192.0.2.1:7401", false).check(), Err(ConfigError::Exposed(_))));
        assert!(matches!(data("0.0.0.0:7401", true).check(), Err(ConfigError::NoDataAddress(_))));
    }

    #[test]
    fn a_transfer_has_a_connection_and_not_too_many() {
        for (data_connections, is_good) in [(0, false), (1, true), (16, true), (17, false)] {
            let config = AgentConfig { data_connections, ..AgentConfig::default() };
            assert_eq!(config.check().is_ok(), is_good, "{data_connections}");
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let err = serde_json::from_str::<AgentConfig>(r#"{"colour": 1}"#).expect_err("unknown");
        assert!(err.to_string().contains("colour"), "{err}");
    }
}
