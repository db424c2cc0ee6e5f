//! The two text formats that scrapers ask for, chosen by their `Accept` header.

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    OpenMetrics,
    /// Text format 0.0.4.
    Prometheus,
}

impl Exposition {
    /// OpenMetrics for whoever says that it is understood, the old format for everybody else.
    pub fn negotiate(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Exposition::OpenMetrics
        } else {
            Exposition::Prometheus
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Exposition::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// OpenMetrics names a family without its suffix (`x` for `x_total`), the old format names the samples themselves.
pub(crate) fn to_prometheus(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut help: Option<(&str, &str)> = None;
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, words)) = help.take().filter(|(of, _)| *of == name) {
                text.push_str(&format!("# HELP {name}{suffix} {words}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_format_names_the_samples() {
        let open = "# HELP a_b Things.\n# TYPE a_b counter\n# UNIT a_b x\na_b_total 1\n# HELP v V.\n# TYPE v info\nv_info{x=\"1\"} 1\n# EOF\n";
        let old = "# HELP a_b_total Things.\n# TYPE a_b_total counter\na_b_total 1\n# HELP v_info V.\n# TYPE v_info gauge\nv_info{x=\"1\"} 1\n";
        assert_eq!(to_prometheus(open), old);
    }

    #[test]
    fn whoever_does_not_ask_for_open_metrics_gets_the_old_format() {
        assert_eq!(
            Exposition::negotiate("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"),
            Exposition::OpenMetrics
        );
        assert_eq!(Exposition::negotiate("*/*"), Exposition::Prometheus);
    }
}
