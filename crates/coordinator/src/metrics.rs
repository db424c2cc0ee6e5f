//! The coordinator's numbers: counters move with applied entries and calls, gauges are read off the state when somebody
//! scrapes.

mod checkpoints;

use std::collections::BTreeMap;
use std::time::Duration;

use outlast_consensus::AppliedEntry;
use outlast_control::state::{ClusterState, Event, NodeCondition};
use outlast_proto::view::outcome_word;
use outlast_telemetry::{CoordinatorMetrics, Exposition, MetricRegistry};
use outlast_types::{CauseClass, JobId};

use crate::member::Member;

pub(crate) struct Metrics {
    registry: MetricRegistry,
    pub(crate) catalogue: CoordinatorMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = MetricRegistry::default();
        let catalogue = CoordinatorMetrics::register(&mut registry, env!("CARGO_PKG_VERSION"));
        Self { registry, catalogue }
    }
}

impl Metrics {
    pub(crate) fn count_call(&self, route: &str, code: &str, took: Duration) {
        let route = ("route", route.to_owned());
        self.catalogue.api_requests.with(vec![route.clone(), ("code", code.to_owned())], |counter| {
            counter.inc();
        });
        self.catalogue
            .api_request_duration
            .with(vec![route], |histogram| histogram.observe(took.as_secs_f64()));
    }

    /// Counts what an applied entry says.
    pub(crate) fn count(&self, member: &Member, entry: &AppliedEntry) {
        for event in &entry.events {
            match event {
                Event::LeaderChanged { .. } => {
                    self.catalogue.elections.inc();
                }
                Event::AttemptStarted { attempt, .. } => {
                    let kind = member.state(|state| kind_of(state, attempt.group.job));
                    self.catalogue.attempts_started.with(vec![("kind", kind)], |counter| {
                        counter.inc();
                    });
                }
                Event::AttemptStopping { cause, .. } if cause.class() != CauseClass::Wanted => {
                    self.catalogue.failures_detected.with(
                        vec![("cause", cause.code().to_owned())],
                        |counter| {
                            counter.inc();
                        },
                    );
                }
                Event::AttemptEnded { attempt, outcome } => {
                    let (kind, cause) = member.state(|state| {
                        let cause = state.attempt(attempt).and_then(|attempt| attempt.cause.as_ref());
                        (kind_of(state, attempt.group.job), cause.map(|cause| cause.code()))
                    });
                    let reason = cause.unwrap_or(outcome_word(outcome)).to_owned();
                    self.catalogue.attempts_ended.with(vec![("kind", kind), ("reason", reason)], |counter| {
                        counter.inc();
                    });
                }
                Event::CheckpointSealed { job, seq, .. } => {
                    let took = member.state(|state| checkpoints::seal_seconds(state, *job, *seq));
                    checkpoints::count_seal(&self.catalogue, took);
                }
                _ => {}
            }
        }
    }

    /// The text of a scrape; without a member only what every process has.
    pub(crate) async fn render(&self, member: Option<&Member>, format: Exposition) -> String {
        if let Some(member) = member {
            let notes = member.notes().await;
            self.set_gauges(member);
            let suspects = notes.conditions.values().filter(|word| *word == "suspect").count();
            member.state(|state| self.set_state(state, suspects));
        }
        self.registry.render(format)
    }

    fn set_gauges(&self, member: &Member) {
        let status = member.consensus.status();
        self.catalogue.leader.set(f64::from(u8::from(status.is_leader)));
        self.catalogue.raft_term.set(status.term as f64);
        self.catalogue.raft_commit_index.set(status.applied.unwrap_or(0) as f64);
        self.catalogue.disk_sync_seconds.set(crate::disk::p99_ms(&status) / 1_000.0);
        if let Some(times) = status.probe_loaded {
            self.catalogue.disk_sync_loaded_seconds.set(times.p999_us as f64 / 1_000_000.0);
        }
    }

    fn set_state(&self, state: &ClusterState, suspects: usize) {
        self.catalogue.raft_applied_index.set(state.applied as f64);
        self.set_nodes(state, suspects);
        self.set_jobs(state);
        checkpoints::set(&self.catalogue, state);
    }

    fn set_nodes(&self, state: &ClusterState, suspects: usize) {
        self.catalogue.node_up.clear();
        let mut lost = 0;
        for node in state.nodes.values() {
            let up = node.condition == NodeCondition::Registered;
            lost += usize::from(!up);
            self.catalogue.node_up.with(vec![("node", node.id.to_string())], |gauge| {
                gauge.set(f64::from(u8::from(up)));
            });
        }
        let ready = state.nodes.len().saturating_sub(lost + suspects);
        for (condition, count) in [("ready", ready), ("suspect", suspects), ("lost", lost)] {
            self.catalogue.nodes.with(vec![("condition", condition.to_owned())], |gauge| {
                gauge.set(count as f64);
            });
        }
    }

    fn set_jobs(&self, state: &ClusterState) {
        let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for job in state.jobs.values() {
            *counts.entry((job.state.as_str(), job.spec.kind.as_str())).or_default() += 1;
        }
        self.catalogue.jobs.clear();
        for ((job_state, kind), count) in counts {
            let labels = vec![("state", job_state.to_owned()), ("kind", kind.to_owned())];
            self.catalogue.jobs.with(labels, |gauge| {
                gauge.set(count as f64);
            });
        }
    }
}

fn kind_of(state: &ClusterState, job: JobId) -> String {
    state.jobs.get(&job).map_or("unknown", |job| job.spec.kind.as_str()).to_owned()
}
