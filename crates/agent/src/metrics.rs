//! The agent's metrics, by the names of the catalogue.

use outlast_telemetry::{CappedFamily, Exposition, FloatGauge, MetricRegistry, checkpoint_histogram};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

/// Seconds from a heartbeat to its grant: a quorum round away, so tens of milliseconds.
const RTT_BUCKETS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0];

#[derive(Debug)]
pub(crate) struct AgentMetrics {
    registry: MetricRegistry,
    pub(crate) heartbeats_sent: Counter,
    pub(crate) heartbeats_hedged: Counter,
    pub(crate) sessions_opened: Counter,
    pub(crate) workers_started: Counter,
    pub(crate) workers_running: FloatGauge,
    pub(crate) connected: FloatGauge,
    pub(crate) shard_bytes: FloatGauge,
    pub(crate) checkpoint_bytes: Counter,
    pub(crate) peer_bytes_received: Counter,
    pub(crate) shards_repaired: Counter,
    pub(crate) verify_failures: Counter,
    pub(crate) shards_scrubbed: Counter,
    heartbeat_rtt: CappedFamily<Histogram>,
    checkpoint_duration: CappedFamily<Histogram>,
}

/// What a rank's part of a checkpoint goes through on a node.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phase {
    /// From the worker's folder to durable bytes with their hashes.
    Write,
    /// From durable here to durable at as many nodes as are wanted.
    Replicate,
    /// Until the worker has its folder again, every byte verified.
    Restore,
    /// Reading a copy back from the disk, at the log's order.
    Prove,
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Phase::Write => "write",
            Phase::Replicate => "replicate",
            Phase::Restore => "restore",
            Phase::Prove => "prove",
        }
    }
}

impl AgentMetrics {
    pub(crate) fn new() -> Self {
        let mut registry = MetricRegistry::default();
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        registry.info("build", "The build that answers", version);
        let rtt = || Histogram::new(RTT_BUCKETS);
        Self {
            heartbeats_sent: registry.counter("agent_heartbeats_sent", "Heartbeats sent over the session"),
            heartbeats_hedged: registry
                .counter("agent_heartbeats_hedged", "Heartbeats sent to a second coordinator"),
            sessions_opened: registry.counter("agent_sessions", "Sessions that a coordinator has welcomed"),
            workers_started: registry.counter("agent_workers_started", "Workers that this agent has started"),
            workers_running: registry.gauge("agent_workers_running", "Workers that run on this node"),
            connected: registry.gauge("agent_connected", "1 while a coordinator's session is open"),
            shard_bytes: registry
                .gauge("agent_shard_bytes", "Bytes of checkpoint shards on this node's disk"),
            checkpoint_bytes: registry
                .counter("checkpoint_bytes", "Bytes of shards that workers of this node have saved"),
            peer_bytes_received: registry
                .counter("agent_peer_bytes_received", "Bytes of shards that peers have put here"),
            shards_repaired: registry
                .counter("agent_shards_copied", "Shards fetched because too few places had them"),
            verify_failures: registry.counter(
                "checkpoint_verify_failures",
                "Shards found damaged or gone on this node's disk, by whoever read them",
            ),
            shards_scrubbed: registry
                .counter("agent_shards_scrubbed", "Shards read back from this node's disk by the scrubber"),
            heartbeat_rtt: registry.histograms(
                "heartbeat_rtt_seconds",
                "From a heartbeat to its lease grant",
                rtt,
            ),
            checkpoint_duration: registry.histograms(
                "checkpoint_duration_seconds",
                "How long a rank's part took, by phase: write, replicate, restore, prove",
                checkpoint_histogram,
            ),
            registry,
        }
    }

    pub(crate) fn heartbeat_answered(&self, rtt_ms: u64) {
        self.heartbeat_rtt.with(Vec::new(), |histogram| histogram.observe(rtt_ms as f64 / 1_000.0));
    }

    pub(crate) fn checkpoint_took(&self, phase: Phase, millis: u64) {
        let labels = vec![("phase", phase.as_str().to_owned())];
        self.checkpoint_duration.with(labels, |histogram| histogram.observe(millis as f64 / 1_000.0));
    }

    pub(crate) fn render(&self, accept: &str) -> (&'static str, String) {
        let format = Exposition::negotiate(accept);
        (format.content_type(), self.registry.render(format))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_set_is_written_under_its_names() {
        let metrics = AgentMetrics::new();
        metrics.heartbeats_sent.inc();
        metrics.heartbeat_answered(40);
        metrics.checkpoint_bytes.inc_by(7);
        metrics.verify_failures.inc();
        metrics.checkpoint_took(Phase::Replicate, 400);
        let (_, text) = metrics.render("");
        for wanted in [
            "outlast_agent_heartbeats_sent_total 1",
            "outlast_heartbeat_rtt_seconds_bucket{le=\"0.05\"} 1",
            "outlast_checkpoint_bytes_total 7",
            "outlast_checkpoint_verify_failures_total 1",
            "outlast_checkpoint_duration_seconds_bucket{le=\"0.5\",phase=\"replicate\"} 1",
        ] {
            assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
        }
    }
}
