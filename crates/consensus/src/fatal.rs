//! The one way out: what cannot be repaired while running ends the process at once.
//!
//! A coordinator that cannot trust its disk, or whose Raft core stopped, must not go on half alive: the others replace it.

use std::fmt;
use std::sync::Arc;

/// Called with the reason. The default logs and aborts; tests put their own here.
#[derive(Clone)]
pub struct FatalHook(Arc<dyn Fn(&str) + Send + Sync>);

impl FatalHook {
    pub fn new(hook: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    /// Returns only where a test replaced the default.
    pub(crate) fn die(&self, reason: &str) {
        tracing::error!(reason, "this coordinator cannot go on");
        (self.0)(reason);
    }
}

impl Default for FatalHook {
    fn default() -> Self {
        Self::new(|_| std::process::abort())
    }
}

impl fmt::Debug for FatalHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FatalHook")
    }
}

/// An error with all its sources, in one line.
pub(crate) fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text.push_str(": ");
        text.push_str(&err.to_string());
        source = err.source();
    }
    text
}
