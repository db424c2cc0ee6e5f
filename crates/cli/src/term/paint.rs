//! Colours, where somebody sees them.

use std::io::IsTerminal as _;

/// Whether one of the two outputs is coloured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { on: false }
    }
    pub(crate) fn stdout() -> Self {
        Self { on: std::io::stdout().is_terminal() && wanted() }
    }
    pub(crate) fn stderr() -> Self {
        Self { on: std::io::stderr().is_terminal() && wanted() }
    }
    fn wrap(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
    pub(crate) fn red(self, text: &str) -> String {
        self.wrap("31", text)
    }
    pub(crate) fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }
    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }
    /// One of six colours, the same for the same number.
    pub(crate) fn hue(self, number: u32, text: &str) -> String {
        self.wrap(&(31 + (number + 5) % 6).to_string(), text)
    }
    /// A state in the colour of its news: green is well, yellow is unusual, red is bad.
    pub(crate) fn state(self, word: &str) -> String {
        let first = word.split([',', ' ']).next().unwrap_or_default();
        match first {
            "running" | "ready" | "succeeded" | "sealed" | "leader" | "good" | "repaired" => {
                // A ready node that is cordoned or draining is not simply well.
                self.wrap(if word.len() > first.len() { "33" } else { "32" }, word)
            }
            "failed" | "lost" | "quarantined" | "damaged" | "missing" | "unrepaired" => self.wrap("31", word),
            "pending" | "cancelling" | "suspect" | "stopping" | "unreachable" | "away" | "learner" => {
                self.wrap("33", word)
            }
            _ => word.to_owned(),
        }
    }
}

/// See <https://no-color.org>: any value that is not empty counts.
fn wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}
