//! What the demo says while it runs: lines with the time since the start, and on a terminal one live line below them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Talk goes to stderr; the table at the end to stdout.
#[derive(Clone)]
pub(super) struct Screen {
    started: Instant,
    live: Arc<ProgressBar>,
}

impl Screen {
    pub(super) fn new() -> Self {
        let live = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
        let style = ProgressStyle::with_template("  {spinner} {msg}").expect("the template is well formed");
        live.set_style(style);
        live.enable_steady_tick(Duration::from_millis(200));
        Self { started: Instant::now(), live: Arc::new(live) }
    }

    pub(super) fn say(&self, text: &str) {
        let line = format!("{:6.1} s  {text}", self.started.elapsed().as_secs_f64());
        self.live.suspend(|| eprintln!("{line}"));
    }

    /// The live line; shown on terminals only.
    pub(super) fn progress(&self, text: String) {
        self.live.set_message(text);
    }

    pub(super) fn finish(&self) {
        self.live.finish_and_clear();
    }
}
