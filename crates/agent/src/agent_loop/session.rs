//! What coordinators say.

use std::sync::Arc;

use outlast_control::state::{AdoptedWorker, FORMAT_VERSION, Observation, Registration};
use outlast_process::boot_now;
use outlast_proto::node::v1 as pb;
use outlast_proto::node::v1::coordinator_message::Message as Down;
use outlast_types::{ClusterId, Profile, RegistrationId};

use super::{AgentError, AgentLoop};
use crate::assigned::{Desired, Peer, WorkerKey};
use crate::context::blocking;
use crate::heart::Heart;
use crate::peer::test_network;
use crate::reconcile::Life;
use crate::session::{Link, SessionEvent};

impl AgentLoop {
    pub(super) async fn handle_session(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::HelloWanted(reply) => {
                let _ = reply.send(self.hello());
            }
            SessionEvent::Welcomed(link, welcome) => self.handle_welcome(link, welcome).await,
            SessionEvent::Message(number, message) => {
                if self.link.as_ref().is_some_and(|link| link.number == number) {
                    self.handle_message(message);
                }
            }
            SessionEvent::Succeeded(succeeded) => self.handle_succeeded(succeeded).await,
            SessionEvent::Refused(registration, refused) => self.handle_refused(registration, &refused),
            SessionEvent::Closed { number, reason } => {
                if self.link.as_ref().is_some_and(|link| link.number == number) {
                    tracing::warn!(node = %self.context.node, reason, "session with the coordinator closed");
                    self.link = None;
                }
                if self.link.is_none() {
                    self.context.metrics.connected.set(0.0);
                }
            }
        }
    }

    /// `None`: not now. A failed fence has to be over first, and under a new registration it must be known of every
    /// worker whether it runs: who is not named counts as gone (invariant 30).
    fn hello(&mut self) -> Option<pb::Hello> {
        if self.heart.is_closed() {
            return None;
        }
        if self.message.is_none() {
            if self.workers.values().any(super::Tracked::is_unsettled) {
                return None;
            }
            self.message = Some(self.registration_message());
        }
        let registration = self.message.as_ref().map(|(registration, _)| registration.clone());
        let shards = &self.context.shards;
        let mut held: Vec<_> = shards.list().iter().map(|meta| (meta.key.job, meta.key.seq)).collect();
        // What went bad is no shard, and goes when its checkpoint does.
        held.extend(shards.aside().iter().map(|(key, _)| (key.job, key.seq)));
        held.sort_unstable();
        held.dedup();
        let held = held
            .into_iter()
            .map(|(job, seq)| pb::CheckpointRef { job: job.to_string(), checkpoint: seq.to_string() });
        Some(pb::Hello {
            registration: registration.map(Into::into),
            cluster_id: self.context.cluster_text(),
            desired_index: self.context.folder.acted_index(),
            held: held.collect(),
        })
    }

    /// Later changes are told by observations of this registration.
    fn registration_message(&self) -> (Registration, Vec<WorkerKey>) {
        let context = &self.context;
        let alive = self.workers.iter().filter(|(_, tracked)| tracked.has_processes());
        let adopted = alive.map(|(key, _)| AdoptedWorker { attempt: key.attempt, rank: key.rank }).collect();
        let over: Vec<_> = self
            .workers
            .iter()
            .filter(|(_, tracked)| tracked.life == Life::Over && !tracked.is_applied)
            .collect();
        let exited = over
            .iter()
            .filter_map(|(key, tracked)| Some((key.attempt, key.rank, tracked.exit.clone()?)))
            .collect();
        let registration = Registration {
            node: context.node.clone(),
            registration: self.registration,
            serial: self.serial,
            boot: context.boot.clone(),
            disk: context.disk.clone(),
            address: context.address.clone(),
            data_address: context.data_address.clone(),
            resources: context.resources.clone(),
            labels: self.introduction.labels.clone(),
            features: self.introduction.features,
            feature_level: FORMAT_VERSION,
            adopted,
            exited,
        };
        (registration, over.into_iter().map(|(key, _)| *key).collect())
    }

    async fn handle_welcome(&mut self, link: Link, welcome: pb::Welcome) {
        let pb::Welcome { cluster_id, index, coordinators, profile, predecessors, peers } = welcome;
        if link.registration != self.registration || self.context.folder.has_left(&cluster_id) {
            link.leave();
            return;
        }
        if let Err(end) = self.meet_cluster(&cluster_id, &predecessors).await {
            self.end = Some(Err(end));
            return;
        }
        tracing::info!(node = %self.context.node, coordinator = %link.coordinator, registration = %self.registration, index, "registered");
        self.context.coordinators.learn(coordinators);
        self.context.metrics.sessions_opened.inc();
        self.context.metrics.connected.set(1.0);
        if self.registered_at.is_none() {
            self.begin_registration(index, &profile);
            let peers = peers.into_iter().map(|pb::Peer { node, address }| Peer { node, address }).collect();
            self.context.tasks.spawn(test_network(Arc::clone(&self.context), peers));
        }
        self.link = Some(link);
        self.link_granted_at = boot_now();
        self.observations_sent_at = None;
        self.has_news = true;
    }

    fn begin_registration(&mut self, index: u64, profile: &str) {
        self.registered_at = Some(index);
        self.awaits_first_state = true;
        match profile.parse::<Profile>() {
            Ok(profile) => self.profile = profile,
            Err(err) => tracing::warn!(error = %err, "the coordinator's profile is not known here"),
        }
        self.heart = Heart::new(self.profile);
        // The registration accounted for them in its own entry; what never ran is released by not being named.
        let over = self.message.as_ref().map(|(_, over)| over.clone());
        for key in over.unwrap_or_default() {
            self.applied(key);
        }
    }

    async fn meet_cluster(&self, cluster_id: &str, predecessors: &[String]) -> Result<(), AgentError> {
        let named = |err| AgentError::Refused(format!("the coordinator named no cluster: {err}"));
        let met: ClusterId = cluster_id.parse().map_err(named)?;
        let older = predecessors.iter().map(|name| name.parse::<ClusterId>());
        let older = older.collect::<Result<Vec<_>, _>>().map_err(named)?;
        let context = Arc::clone(&self.context);
        blocking(move || context.folder.meet_cluster(&met, &older)).await.map_err(AgentError::Folder)
    }

    /// Our cluster was restored or recovered, and is a new one now. What runs is declared to it with a new registration:
    /// nothing that was said or promised under the old ones counts there.
    async fn handle_succeeded(&mut self, succeeded: pb::Succeeded) {
        let pb::Succeeded { cluster_id, predecessors } = succeeded;
        let older = predecessors.iter().map(|name| name.parse::<ClusterId>()).collect::<Result<Vec<_>, _>>();
        let (Ok(to), Ok(older)) = (cluster_id.parse::<ClusterId>(), older) else {
            return tracing::warn!(cluster_id, "a coordinator named clusters that are not understood");
        };
        let context = Arc::clone(&self.context);
        match blocking(move || context.folder.follow_cluster(&to, &older)).await {
            Ok(true) => self.register_anew(&format!("the cluster goes on as {cluster_id}")),
            Ok(false) => {}
            Err(err) => {
                tracing::error!(cluster_id, error = %err, "the agent does not follow into another cluster");
            }
        }
    }

    fn handle_message(&mut self, message: Down) {
        match message {
            Down::Lease(grant) => {
                self.link_granted_at = boot_now();
                self.handle_grant(&grant);
            }
            Down::Desired(state) => self.handle_desired(state),
            Down::Observed(pb::Observed { number }) => self.handle_observed(number),
            Down::Checkpoints(updates) => self.handle_checkpoints(updates),
            Down::Welcome(_) | Down::Refused(_) | Down::Succeeded(_) => {
                tracing::debug!("a message that is out of place was ignored")
            }
        }
    }

    /// An agent never goes back.
    fn handle_desired(&mut self, state: pb::DesiredState) {
        let newest = self.desired.as_ref().map_or(0, |desired| desired.index);
        let at_least =
            newest.max(self.context.folder.acted_index()).max(self.registered_at.unwrap_or(u64::MAX));
        if state.index < at_least || self.stopping.is_some() {
            tracing::debug!(index = state.index, at_least, "an old desired state was ignored");
            return;
        }
        let (desired, refused) = Desired::from_wire(state);
        for err in refused {
            tracing::error!(node = %self.context.node, error = %err, "a wanted worker is not understood: are agent and coordinator of one version?");
        }
        let mut seen = self.context.newest.lock();
        desired.workers.iter().for_each(|worker| seen.saw(worker.key.attempt));
        drop(seen);
        self.desired = Some(desired);
    }

    fn handle_observed(&mut self, number: u64) {
        for observation in self.observations.applied(number) {
            if let Observation::Released { attempt, rank } = observation {
                self.applied(WorkerKey { attempt, rank });
            }
        }
        // What came meanwhile follows at once.
        self.observations_sent_at = None;
    }

    fn handle_refused(&mut self, registration: RegistrationId, refused: &pb::Refused) {
        if registration != self.registration {
            return;
        }
        let reason = &refused.reason;
        if self.context.folder.has_left(&refused.cluster_id) {
            tracing::warn!(
                cluster = refused.cluster_id,
                reason,
                "a coordinator of a cluster that is over was met"
            );
        } else if refused.register_anew {
            self.register_anew(reason);
        } else if refused.r#final {
            self.end = Some(Err(AgentError::Refused(reason.clone())));
        } else {
            tracing::warn!(node = %self.context.node, reason, "refused by a coordinator");
        }
    }
}
