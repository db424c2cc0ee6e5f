//! The loop's side of the lease: beating, hedging, fencing (A1 to A9 of the lease protocol).

use std::time::Duration;

use outlast_control::plan::NodeHealth;
use outlast_process::boot_now;
use outlast_proto::convert::ReportedProgress;
use outlast_proto::node::v1 as pb;
use outlast_proto::node::v1::agent_message::Message as Up;
use outlast_proto::status::Failure;
use outlast_types::RegistrationId;

use super::{AgentLoop, RESEND_AFTER_MS};
use crate::assigned::WorkerKey;
use crate::context::blocking;
use crate::coordinators::random;
use crate::event::Event;
use crate::heart::Heart;
use crate::reconcile::Life;

/// A hedged heartbeat is of no use after the next few.
const HEDGE_WITHIN: Duration = Duration::from_millis(1_600);
/// A coordinator whose stream lags behind a grant for this long is left (A8).
const LAG_MAX_MS: u64 = 1_000;

impl AgentLoop {
    pub(super) fn is_registered(&self) -> bool {
        self.registered_at.is_some() && !self.heart.is_closed()
    }

    /// A2, and rule three of the desired state: the lease holds, and the state is as new as the newest grant.
    pub(super) fn may_start(&self, desired_index: u64) -> bool {
        self.is_registered()
            && self.stopping.is_none()
            && self.heart.may_start(boot_now())
            && desired_index >= self.heart.assignments_index()
            && self.observations.has_room_for_starts()
    }

    /// A3, A5. The keepers do the same by themselves; this is the second pair of eyes, and the one that tells.
    pub(super) fn keep_lease(&mut self) {
        let now = boot_now();
        if self.heart.fence_due(now) {
            for key in self.exclusive(Life::may_be_killed) {
                tracing::warn!(attempt = %key.attempt, rank = key.rank, "the node's lease runs out: exclusive worker stopped");
                self.stop(key, 0, None);
                if let Some(tracked) = self.workers.get_mut(&key) {
                    tracked.is_fenced = true;
                }
            }
        }
        if self.heart.expired(now) && !self.heart.is_closed() {
            let alive = self.exclusive(|life| life != Life::Over);
            if !alive.is_empty() {
                tracing::error!(
                    node = %self.context.node, workers = ?alive,
                    "FENCE FAILED: exclusive workers outlived the node's lease; this registration is never renewed again"
                );
                self.heart.close();
                self.leave("the fence failed");
            }
        }
        if self.heart.is_closed() && self.exclusive(|life| life != Life::Over).is_empty() {
            self.register_anew("the exclusive workers that outlived the lease are gone");
        }
    }

    fn exclusive(&self, wanted: impl Fn(Life) -> bool) -> Vec<WorkerKey> {
        let is = |tracked: &super::Tracked| tracked.is_exclusive && wanted(tracked.life);
        self.workers.iter().filter(|(_, tracked)| is(tracked)).map(|(key, _)| *key).collect()
    }

    /// Everything that is due: heartbeat, hedge, observations.
    pub(super) fn send(&mut self) {
        if !self.is_registered() {
            return;
        }
        self.leave_laggard();
        self.beat();
        self.send_observations();
    }

    fn beat(&mut self) {
        let now = boot_now();
        let is_due = self.heart.is_due(now);
        let news_may_go = self.has_news && self.heart.may_send_extra(now);
        if !is_due && !news_may_go {
            return;
        }
        self.has_news = false;
        // Before the send of this one: an older one has to be unanswered.
        let is_unanswered = self.heart.is_unanswered(now);
        let seq = self.heart.send(now);
        let heartbeat = self.heartbeat(seq);
        if let Some(link) = &self.link {
            link.send(Up::Heartbeat(heartbeat.clone()));
            self.context.metrics.heartbeats_sent.inc();
        }
        if (is_unanswered || self.link.is_none()) && !self.is_hedging {
            self.hedge(heartbeat);
        }
    }

    fn heartbeat(&mut self, seq: u64) -> pb::Heartbeat {
        let alive = self.workers.iter().filter(|(_, tracked)| tracked.is_alive());
        let progress = alive.filter_map(|(key, tracked)| {
            let (step, metrics) = tracked.handle.as_ref()?.progress.lock().clone()?;
            let save_cost = tracked.handle.as_ref().and_then(|handle| *handle.save_cost.lock());
            let (attempt, rank) = (key.attempt, key.rank);
            Some(ReportedProgress { attempt, rank, step, metrics, save_cost }.into())
        });
        let receipts = self.context.checkpoints.receipts().into_iter().map(Into::into).collect();
        let progress = progress.collect();
        let done = self.upkeep.done().into_iter().map(Into::into).collect();
        pb::Heartbeat { seq, progress, receipts, health: Some(self.health().into()), done }
    }

    /// A7. Told by the loop that also sends the heartbeats: what hangs it ends them.
    fn health(&mut self) -> NodeHealth {
        let disk = &self.context.disk_watch;
        let network = self.context.network.lock().clone();
        NodeHealth {
            disk_canary_age_ms: disk.canary_age_ms(),
            loop_lag_ms: std::mem::take(&mut self.lag_ms),
            disk_free_bytes: disk.free_bytes(),
            disk_size_bytes: disk.size_bytes(),
            // Nobody watches them yet.
            gpu_error: None,
            network_bytes_per_s: network.bytes_per_s,
            network_error: network.error,
        }
    }

    fn hedge(&mut self, heartbeat: pb::Heartbeat) {
        self.is_hedging = true;
        self.context.metrics.heartbeats_hedged.inc();
        let request = pb::HeartbeatRequest {
            cluster_id: self.context.cluster_text(),
            node: self.context.node.to_string(),
            registration: self.registration.0,
            heartbeat: Some(heartbeat),
        };
        let (coordinators, events) = (self.context.coordinators.clone(), self.context.events.clone());
        self.context.tasks.spawn(async move {
            let answer = coordinators.hedge(request, HEDGE_WITHIN).await;
            let _ = events.send(Event::Hedged(answer)).await;
        });
    }

    pub(super) fn handle_hedged(&mut self, answer: Result<pb::LeaseGrant, Failure>) {
        self.is_hedging = false;
        match answer {
            Ok(grant) => self.handle_grant(&grant),
            Err(failure) => tracing::debug!(%failure, "a hedged heartbeat was not answered"),
        }
    }

    pub(super) fn handle_grant(&mut self, grant: &pb::LeaseGrant) {
        let pb::LeaseGrant { ack_seq, lease_ms, incarnation, assignments_index, registration } = *grant;
        if RegistrationId(registration) != self.registration {
            return;
        }
        let now = boot_now();
        if let Some(rtt_ms) = self.heart.granted(ack_seq, lease_ms, incarnation, assignments_index, now) {
            self.context.metrics.heartbeat_answered(rtt_ms);
        }
        self.pass_deadline_on();
    }

    /// A4: the keepers of exclusive workers hold the deadline themselves.
    fn pass_deadline_on(&self) {
        let Some(deadline) = self.heart.deadline().filter(|_| !self.heart.is_closed()) else { return };
        // Also of one that is on its way out: its grace is its own, and must not end with an old deadline.
        let running =
            self.workers.values().filter(|tracked| tracked.is_exclusive && tracked.life != Life::Over);
        let keepers: Vec<_> = running.filter_map(|tracked| tracked.keeper.clone()).collect();
        if keepers.is_empty() {
            return;
        }
        self.context.tasks.spawn(blocking(move || {
            for keeper in keepers {
                // One that does not answer keeps its old deadline, which is earlier: that is safe.
                if let Err(err) = keeper.set_deadline(deadline) {
                    tracing::warn!(keeper = keeper.pid(), error = %err, "a keeper did not take the new deadline");
                }
            }
        }));
    }

    fn leave_laggard(&mut self) {
        let now = boot_now();
        let seen = self.desired.as_ref().map_or(0, |desired| desired.index);
        if seen >= self.heart.assignments_index() || self.link.is_none() {
            self.lags_since = None;
        } else if now.since(*self.lags_since.get_or_insert(now)) > LAG_MAX_MS {
            self.lags_since = None;
            self.leave("its stream lags behind the leader");
        }
        // Hedged heartbeats keep the lease meanwhile; but a coordinator that answers none is of no use.
        if self.link.is_some() && now.since(self.link_granted_at) > self.heart.timers().lease_ms {
            self.link_granted_at = now;
            self.leave("it answers no heartbeat");
        }
    }

    pub(super) fn leave(&mut self, why: &str) {
        if let Some(link) = self.link.take() {
            tracing::info!(node = %self.context.node, coordinator = %link.coordinator, why, "coordinator left");
            link.leave();
        }
    }

    fn send_observations(&mut self) {
        let now = boot_now();
        let is_under_way = self.observations_sent_at.is_some_and(|at| now.since(at) < RESEND_AFTER_MS);
        if self.observations.is_empty() || is_under_way {
            return;
        }
        let (Some(link), Some(batch)) = (&self.link, self.observations.batch()) else { return };
        if link.send(Up::Observations(batch)) {
            self.observations_sent_at = Some(now);
        }
    }

    /// A new registration: the old one was declared lost, or may never be renewed. What runs is declared for adoption;
    /// what was being started is given up. The first desired state then says which of the adopted ones the log still
    /// holds, and the others are stopped.
    pub(super) fn register_anew(&mut self, why: &str) {
        let old = self.registration;
        self.registration = RegistrationId(random());
        self.serial = self.context.folder.next_serial();
        tracing::warn!(node = %self.context.node, %old, new = %self.registration, why, "the agent registers anew");
        self.context.set_registration(self.registration);
        self.registered_at = None;
        self.message = None;
        self.heart = Heart::new(self.profile);
        self.desired = None;
        self.lags_since = None;
        self.observations.renumber();
        self.leave("a new registration begins");
        let unsettled: Vec<_> =
            self.workers.iter().filter(|(_, t)| t.is_unsettled()).map(|(key, _)| *key).collect();
        for key in unsettled {
            self.stop(key, 0, None);
        }
    }
}
