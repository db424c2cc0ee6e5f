//! Repeated measurements of one thing, and the table of all of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Name → values, in the order in which the names came.
#[derive(Default)]
pub(super) struct Figures {
    order: Vec<String>,
    values: BTreeMap<String, Vec<f64>>,
}

/// The value below which the share `q` (0 to 1) of the sorted values lies: the nearest rank.
pub(super) fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((q * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
}

impl Figures {
    /// The unit belongs to the name: `node killed: lost after, s`.
    pub(super) fn add(&mut self, name: &str, value: f64) {
        if !self.values.contains_key(name) {
            self.order.push(name.to_owned());
        }
        self.values.entry(name.to_owned()).or_default().push(value);
    }

    /// Empty where there are none.
    pub(super) fn values(&self, name: &str) -> &[f64] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!("{:<58} {:>4} {:>10} {:>10} {:>10}\n", "what", "n", "min", "median", "max");
        for name in &self.order {
            let values = &self.values[name];
            let at = |q| quantile(values, q);
            let _ = writeln!(
                text,
                "{name:<58} {:>4} {:>10.3} {:>10.3} {:>10.3}",
                values.len(),
                at(0.0),
                at(0.5),
                at(1.0)
            );
        }
        text
    }

    /// Name → all values.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!(self.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values = [3.0, 1.0, 2.0];
        assert_eq!((quantile(&values, 0.0), quantile(&values, 0.5), quantile(&values, 1.0)), (1.0, 2.0, 3.0));
        assert!(quantile(&[], 0.5).is_nan());
    }
}
