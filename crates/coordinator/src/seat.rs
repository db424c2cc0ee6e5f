//! The place of a coordinator in a cluster, empty until it has one. All services look here first, so that a coordinator
//! without a cluster answers clearly instead of not at all.

use std::path::PathBuf;
use std::sync::Arc;

use outlast_proto::status::Failure;
use outlast_types::Profile;
use tokio::sync::watch;

use crate::founder::Founder;
use crate::member::Member;
use crate::metrics::Metrics;
use crate::server::RaftRoutes;

/// What a coordinator has once it belongs to a cluster.
#[derive(Clone)]
pub(crate) struct Seated {
    pub(crate) member: Arc<Member>,
    pub(crate) raft: RaftRoutes,
}

pub(crate) struct Seat {
    seated: watch::Sender<Option<Seated>>,
    pub(crate) metrics: Arc<Metrics>,
    /// `host:port` that others reach this coordinator at.
    pub(crate) address: String,
    /// Bundles on their way from a client to the nodes.
    pub(crate) uploads_dir: PathBuf,
    pub(crate) founder: Founder,
    founding: tokio::sync::Mutex<()>,
}

impl Seat {
    pub(crate) fn new(founder: Founder, address: String, uploads_dir: PathBuf) -> Self {
        Self {
            seated: watch::Sender::new(None),
            metrics: Arc::default(),
            address,
            uploads_dir,
            founder,
            founding: tokio::sync::Mutex::default(),
        }
    }

    /// Makes a cluster with this coordinator as its first member.
    pub(crate) async fn found(&self, profile: Profile) -> Result<(), Failure> {
        let _one_at_a_time = self.founding.lock().await;
        if let Ok(member) = self.member() {
            return Err(Failure::Conflict {
                reason: format!("this coordinator is {} of cluster {} already", member.id, member.cluster_id),
                hint: "look at `outlast cluster status`".to_owned(),
            });
        }
        let seated = self.founder.found(profile, self.metrics.clone()).await?;
        self.take(seated);
        Ok(())
    }

    pub(crate) fn take(&self, seated: Seated) {
        self.seated.send_replace(Some(seated));
    }

    pub(crate) fn leave(&self) {
        self.seated.send_replace(None);
    }

    pub(crate) fn seated(&self) -> Option<Seated> {
        self.seated.borrow().clone()
    }

    pub(crate) fn member(&self) -> Result<Arc<Member>, Failure> {
        self.seated.borrow().as_ref().map(|seated| seated.member.clone()).ok_or_else(no_cluster)
    }
}

pub(crate) fn no_cluster() -> Failure {
    Failure::Unavailable {
        reason: "this coordinator belongs to no cluster yet".to_owned(),
        hint: "run `outlast cluster init` or start it with --join".to_owned(),
        retry_after_ms: 1_000,
    }
}
