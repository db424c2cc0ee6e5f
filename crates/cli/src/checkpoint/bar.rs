//! Progress over bytes, drawn only where somebody sees it.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// `what`: `exporting ck7`.
pub(super) fn bar(what: &str, size_bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(size_bytes), ProgressDrawTarget::hidden());
    }
    let template = "{msg} {bytes}/{total_bytes} {wide_bar} {bytes_per_sec}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(size_bytes).with_style(style).with_message(what.to_owned())
}
