//! The client itself: a pool of coordinators, a patience, and the name of who asks.

use std::sync::Arc;
use std::time::Duration;

use outlast_proto::control::v1::ClusterStatusRequest;
use tonic::Request;

use crate::ClientError;
use crate::budget::Budget;
use crate::pool::{Endpoint, Pool};
use crate::race::{Answer, Race, Send};

pub const DEFAULT_COORDINATOR: &str = "http://127.0.0.1:7400";
/// Longer than an election in the slowest profile, short enough to wait for.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const LEARN_TIMEOUT: Duration = Duration::from_secs(2);

/// Cheap to clone; all clones share the pool.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) pool: Arc<Pool>,
    pub(crate) timeout: Duration,
    pub(crate) actor: Arc<str>,
}

impl Client {
    /// Opens no connection yet.
    ///
    /// # Errors
    /// No endpoint, or one that is no address.
    pub fn new(endpoints: Vec<String>) -> Result<Self, ClientError> {
        Ok(Self { pool: Arc::new(Pool::new(&endpoints)?), timeout: DEFAULT_TIMEOUT, actor: "unnamed".into() })
    }

    /// How long a call may take over all its tries.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Who asks, for the audit trail.
    #[must_use]
    pub fn with_actor(mut self, actor: &str) -> Self {
        self.actor = actor.into();
        self
    }

    /// The coordinators known now: those given, and those learned from them.
    pub fn endpoints(&self) -> Vec<String> {
        self.pool.urls()
    }

    pub(crate) async fn call<M, T>(
        &self,
        budget: Budget,
        message: M,
        send: Send<M, T>,
    ) -> Result<T, ClientError>
    where
        M: Clone + std::marker::Send + 'static,
        T: std::marker::Send + 'static,
    {
        Ok(self.ask(budget, message, send).await?.value)
    }

    pub(crate) async fn ask<M, T>(
        &self,
        budget: Budget,
        message: M,
        send: Send<M, T>,
    ) -> Result<Answer<T>, ClientError>
    where
        M: Clone + std::marker::Send + 'static,
        T: std::marker::Send + 'static,
    {
        let answer = Race::new(&self.pool, budget, message, send).run().await?;
        self.learn(&answer.endpoint);
        Ok(answer)
    }

    /// Asks, beside everything else, which other coordinators there are, so that a client that was given one outlives it.
    fn learn(&self, endpoint: &Endpoint) {
        if !self.pool.learning_is_due() {
            return;
        }
        let pool = Arc::clone(&self.pool);
        let mut client = endpoint.client();
        tokio::spawn(async move {
            let mut request = Request::new(ClusterStatusRequest {});
            request.set_timeout(LEARN_TIMEOUT);
            let Ok(Ok(status)) = tokio::time::timeout(LEARN_TIMEOUT, client.cluster_status(request)).await
            else {
                return;
            };
            // At the address of a removed one there may be a coordinator of a cluster that is over.
            let members = status.into_inner().coordinators.into_iter().filter(|one| one.role != "removed");
            for coordinator in members {
                if let Err(error) = pool.add(&coordinator.address) {
                    tracing::debug!(%error, "a coordinator's address is of no use here");
                }
            }
        });
    }
}
