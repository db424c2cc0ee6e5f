//! What a coordinator is told at its start, and the checks that need no disk and no network.

use std::net::SocketAddr;
use std::path::PathBuf;

use outlast_types::Profile;
use serde::{Deserialize, Serialize};

use crate::StartError;

/// Settings of one coordinator. Unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoordinatorConfig {
    /// Everything that the coordinator keeps. Default `outlast-data/coordinator`.
    pub data_dir: PathBuf,
    /// Default `127.0.0.1:7400`; port 0 takes a free one.
    pub listen: SocketAddr,
    /// `host:port` that others reach this coordinator at; default: the address that it listens on.
    pub advertise: Option<String>,
    /// Timers of a cluster that is made here; a joining coordinator takes those of its cluster. Default `lan`.
    pub profile: Profile,
    /// Make a new cluster when the folder is empty.
    pub init: bool,
    /// Join a cluster through these coordinators when the folder is empty.
    pub join: Vec<String>,
    /// Allow an address that is not loopback although there is no TLS yet.
    pub insecure: bool,
    /// Measure the disk beside checkpoint-like writes (up to 128 MiB, for about two seconds) at each start. Default true.
    pub disk_load_test: bool,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("outlast-data/coordinator"),
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            advertise: None,
            profile: Profile::default(),
            init: false,
            join: Vec::new(),
            insecure: false,
            disk_load_test: true,
        }
    }
}

impl CoordinatorConfig {
    pub(crate) fn check(&self) -> Result<(), StartError> {
        if !self.insecure && !self.listen.ip().is_loopback() {
            return Err(StartError::NotLoopback { address: self.listen });
        }
        if self.init && !self.join.is_empty() {
            return Err(StartError::InitAndJoin);
        }
        if self.listen.ip().is_unspecified() && self.advertise.is_none() {
            return Err(StartError::NoAdvertise { address: self.listen });
        }
        Ok(())
    }

    /// What others are told, once the port is known.
    pub(crate) fn advertised(&self, bound: SocketAddr) -> String {
        self.advertise.clone().unwrap_or_else(|| bound.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_address_is_refused_unless_it_is_asked_for_by_name() {
        let open =
            CoordinatorConfig { listen: SocketAddr::from(([10, 0, 0, 1], 7400)), ..Default::default() };
        let error = open.check().expect_err("not loopback");
        assert!(matches!(error, StartError::NotLoopback { .. }));
        assert!(error.to_string().contains("--insecure"), "{error}");
        CoordinatorConfig { insecure: true, ..open }.check().expect("asked for");
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 7400));
        let nameless = CoordinatorConfig { listen: everywhere, insecure: true, ..Default::default() };
        assert!(matches!(nameless.check(), Err(StartError::NoAdvertise { .. })));
    }

    #[test]
    fn unknown_keys_are_errors() {
        let error = serde_json::from_str::<CoordinatorConfig>(r#"{"data_dri": "x"}"#).expect_err("a typo");
        assert!(error.to_string().contains("data_dri"), "{error}");
    }
}
