//! The coordinator's metrics, by the names of the catalogue. Labels are enums, node names and job names; never ids,
//! paths or texts. `job` and `instance` belong to the scraper.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use crate::metrics::{CappedFamily, FloatGauge, MetricRegistry};

/// Bounds for calls of the API, in seconds.
const API_BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

fn api_histogram() -> Histogram {
    Histogram::new(API_BUCKETS)
}

/// Bounds for what a checkpoint goes through, in seconds: from a small one on a fast disk to hundreds of GiB.
const CHECKPOINT_BUCKETS: [f64; 14] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 150.0, 300.0, 600.0, 1_800.0];

/// Of `checkpoint_duration_seconds{phase}`, which coordinators and agents share.
pub fn checkpoint_histogram() -> Histogram {
    Histogram::new(CHECKPOINT_BUCKETS)
}

/// All of them; the gauges are set when somebody scrapes.
#[derive(Debug)]
pub struct CoordinatorMetrics {
    pub leader: FloatGauge,
    pub raft_term: FloatGauge,
    pub raft_applied_index: FloatGauge,
    pub raft_commit_index: FloatGauge,
    pub elections: Counter,
    pub nodes: CappedFamily<FloatGauge>,
    pub node_up: CappedFamily<FloatGauge>,
    pub jobs: CappedFamily<FloatGauge>,
    pub attempts_started: CappedFamily<Counter>,
    pub attempts_ended: CappedFamily<Counter>,
    pub failures_detected: CappedFamily<Counter>,
    pub api_requests: CappedFamily<Counter>,
    pub api_request_duration: CappedFamily<Histogram>,
    pub checkpoint_last_durable_step: CappedFamily<FloatGauge>,
    pub checkpoint_last_durable_timestamp: CappedFamily<FloatGauge>,
    pub checkpoint_last_stored_timestamp: CappedFamily<FloatGauge>,
    pub checkpoint_duration: CappedFamily<Histogram>,
    pub checkpoint_replicas: CappedFamily<FloatGauge>,
    pub sessions: FloatGauge,
    pub disk_sync_seconds: FloatGauge,
    pub disk_sync_loaded_seconds: FloatGauge,
}

impl CoordinatorMetrics {
    pub fn register(registry: &mut MetricRegistry, version: &str) -> Self {
        registry.info("build", "The build that answers", vec![("version", version.to_owned())]);
        Self {
            leader: registry.gauge("coordinator_leader", "1 where this coordinator leads"),
            raft_term: registry.gauge("raft_term", "The newest Raft term seen"),
            raft_applied_index: registry.gauge("raft_applied_index", "Index of the last entry applied"),
            raft_commit_index: registry
                .gauge("raft_commit_index", "Index of the last entry known to be committed"),
            elections: registry.counter("elections", "Changes of leader that this coordinator saw"),
            nodes: registry.gauges("nodes", "Nodes by condition"),
            node_up: registry.gauges("node_up", "1 where the node is registered and not lost"),
            jobs: registry.gauges("jobs", "Jobs by state and kind"),
            attempts_started: registry.counters("attempts_started", "Attempts started, by kind of job"),
            attempts_ended: registry.counters("attempts_ended", "Attempts ended, by kind of job and reason"),
            failures_detected: registry
                .counters("failures_detected", "Failures that ended an attempt, by cause"),
            api_requests: registry.counters("api_requests", "Calls of the API by route and code"),
            api_request_duration: registry.histograms(
                "api_request_duration_seconds",
                "Time until the head of the answer",
                api_histogram,
            ),
            checkpoint_last_durable_step: registry
                .gauges("checkpoint_last_durable_step", "Step of the newest sealed checkpoint that can be read"),
            checkpoint_last_durable_timestamp: registry.gauges(
                "checkpoint_last_durable_timestamp_seconds",
                "Time at which the newest checkpoint that can be read was sealed",
            ),
            checkpoint_last_stored_timestamp: registry.gauges(
                "checkpoint_last_stored_timestamp_seconds",
                "Time at which the newest checkpoint in the object store was sealed; of jobs whose policy is stored",
            ),
            checkpoint_duration: registry.histograms(
                "checkpoint_duration_seconds",
                "How long checkpoints took, by phase: at coordinators `seal`, from opened to sealed",
                checkpoint_histogram,
            ),
            checkpoint_replicas: registry.gauges(
                "checkpoint_replicas",
                "Copies of shards of sealed checkpoints, by state: live, away (its node is lost or has another disk), copying, missing (wanted, and nobody was told to make it)",
            ),
            sessions: registry.gauge("sessions", "Agents connected to this coordinator"),
            disk_sync_seconds: registry
                .gauge("disk_sync_seconds", "99th percentile of recent fdatasync probes"),
            disk_sync_loaded_seconds: registry.gauge(
                "disk_sync_loaded_seconds",
                "99.9th percentile of fdatasync beside checkpoint-like writes, measured at start; 0: not measured",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exposition;

    #[test]
    fn the_catalogue_is_written_under_its_names() {
        let mut registry = MetricRegistry::default();
        let metrics = CoordinatorMetrics::register(&mut registry, "1.2.3");
        metrics.elections.inc();
        metrics.leader.set(1.0);
        metrics.nodes.with(vec![("condition", "ready".to_owned())], |gauge| {
            gauge.set(4.0);
        });
        metrics.api_request_duration.with(vec![("route", "/x".to_owned())], |h| h.observe(0.002));
        metrics.checkpoint_duration.with(vec![("phase", "seal".to_owned())], |h| h.observe(2.0));
        metrics.checkpoint_replicas.with(vec![("state", "live".to_owned())], |gauge| {
            gauge.set(6.0);
        });
        let text = registry.render(Exposition::Prometheus);
        for wanted in [
            "outlast_build_info{version=\"1.2.3\"} 1",
            "outlast_elections_total 1",
            "outlast_coordinator_leader 1",
            "outlast_nodes{condition=\"ready\"} 4",
            "outlast_api_request_duration_seconds_bucket{le=\"0.0025\",route=\"/x\"} 1",
            "# TYPE outlast_elections_total counter",
            "outlast_checkpoint_duration_seconds_bucket{le=\"2.5\",phase=\"seal\"} 1",
            "outlast_checkpoint_replicas{state=\"live\"} 6",
        ] {
            assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
        }
    }
}
