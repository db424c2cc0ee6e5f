//! A registry of metrics under the prefix `outlast_`, with a cap on the label sets of every family: what is over the
//! cap is counted in `outlast_metrics_series_dropped_total` instead of filling the scraper's memory.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::exposition::{self, Exposition};

pub type Labels = Vec<(&'static str, String)>;
pub type FloatGauge = Gauge<f64, AtomicU64>;

/// Label sets that a family has unless told otherwise.
pub const SERIES_MAX: usize = 2_000;

/// A family of metrics that cannot grow without bound.
#[derive(Clone, Debug)]
pub struct CappedFamily<M> {
    name: &'static str,
    family: Family<Labels, M, fn() -> M>,
    series_max: usize,
    /// Shared by the clones. Two threads may pass the cap by one together, which harms nobody.
    series: Arc<AtomicUsize>,
    dropped: Family<Labels, Counter>,
}

impl<M: Clone> CappedFamily<M> {
    /// Acts on the metric with these labels, unless that would be one too many.
    pub fn with(&self, labels: Labels, act: impl FnOnce(&M)) {
        if let Some(metric) = self.family.get(&labels) {
            act(&metric);
        } else if self.series.load(Ordering::Relaxed) < self.series_max {
            self.series.fetch_add(1, Ordering::Relaxed);
            act(&self.family.get_or_create(&labels));
        } else {
            self.dropped.get_or_create(&vec![("metric", format!("outlast_{}", self.name))]).inc();
        }
    }

    /// Forgets all label sets; for gauges that are computed anew at each scrape.
    pub fn clear(&self) {
        self.series.store(0, Ordering::Relaxed);
        self.family.clear();
    }
}

/// Registers metrics and writes them out.
#[derive(Debug)]
pub struct MetricRegistry {
    registry: Registry,
    dropped: Family<Labels, Counter>,
}

impl Default for MetricRegistry {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("outlast");
        let dropped = Family::<Labels, Counter>::default();
        registry.register(
            "metrics_series_dropped",
            "Updates that were left out because a metric had too many label sets",
            dropped.clone(),
        );
        Self { registry, dropped }
    }
}

impl MetricRegistry {
    /// `name` without `outlast_` and without `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Counter {
        let counter = Counter::default();
        self.registry.register(name, help, counter.clone());
        counter
    }

    pub fn gauge(&mut self, name: &'static str, help: &str) -> FloatGauge {
        let gauge = FloatGauge::default();
        self.registry.register(name, help, gauge.clone());
        gauge
    }

    pub fn counters(&mut self, name: &'static str, help: &str) -> CappedFamily<Counter> {
        self.family(name, help, Counter::default)
    }

    pub fn gauges(&mut self, name: &'static str, help: &str) -> CappedFamily<FloatGauge> {
        self.family(name, help, FloatGauge::default)
    }

    pub fn histograms(
        &mut self,
        name: &'static str,
        help: &str,
        new: fn() -> Histogram,
    ) -> CappedFamily<Histogram> {
        self.family(name, help, new)
    }

    /// `name` without `outlast_` and without `_info`.
    pub fn info(&mut self, name: &'static str, help: &str, labels: Labels) {
        self.registry.register(name, help, Info::new(labels));
    }

    fn family<M>(&mut self, name: &'static str, help: &str, new: fn() -> M) -> CappedFamily<M>
    where
        M: EncodeMetric + TypedMetric + Clone + Debug + Send + Sync + 'static,
    {
        let family = Family::<Labels, M, fn() -> M>::new_with_constructor(new);
        self.registry.register(name, help, family.clone());
        CappedFamily {
            name,
            family,
            series_max: SERIES_MAX,
            series: Arc::default(),
            dropped: self.dropped.clone(),
        }
    }

    /// Everything as text in the wanted format.
    pub fn render(&self, format: Exposition) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing into memory cannot fail");
        match format {
            Exposition::OpenMetrics => text,
            Exposition::Prometheus => exposition::to_prometheus(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_stops_growing_at_its_cap_and_counts_what_it_left_out() {
        let mut registry = MetricRegistry::default();
        let mut family = registry.counters("things", "Things");
        family.series_max = 2;
        for i in 0..5 {
            family.with(vec![("n", i.to_string())], |counter| {
                counter.inc();
            });
        }
        family.with(vec![("n", "0".to_owned())], |counter| {
            counter.inc();
        });
        let text = registry.render(Exposition::Prometheus);
        assert!(text.contains("outlast_things_total{n=\"0\"} 2"), "{text}");
        assert!(!text.contains("n=\"3\""), "{text}");
        assert!(text.contains("outlast_metrics_series_dropped_total{metric=\"outlast_things\"} 3"), "{text}");
    }
}
