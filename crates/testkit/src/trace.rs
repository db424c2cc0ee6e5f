//! What happened, line by line, where somebody wants to read it.

/// Lines that are kept of a run whose end alone is of interest.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    on: bool,
    lines: Vec<String>,
}

impl Trace {
    pub(crate) fn off() -> Self {
        Self::default()
    }

    pub(crate) fn on() -> Self {
        Self { on: true, lines: Vec::new() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    pub(crate) fn line(&mut self, now_us: u64, line: impl FnOnce() -> String) {
        if self.on {
            self.lines.push(format!("{:>11.6} {}", now_us as f64 / 1e6, line()));
        }
    }

    pub(crate) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }
}
