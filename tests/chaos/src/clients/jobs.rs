//! The jobs that are submitted. The first letters of a name say what kind it is; checkers read them.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::rng::Rng;

/// Two attempts of it must never run at one time.
pub(crate) const EXCLUSIVE: &str = "x";
pub(crate) const SERVICE: &str = "s-";

#[derive(Clone, Debug)]
pub(crate) struct JobMaker {
    pub(crate) exe: PathBuf,
    pub(crate) journal: PathBuf,
    pub(crate) root: PathBuf,
    /// Exclusive jobs need control groups.
    pub(crate) may_be_exclusive: bool,
}

pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) spec: String,
    pub(crate) is_real: bool,
}

const STEP_MS: u64 = 50;

impl JobMaker {
    /// A job with workers: one, exclusive, a gang of two, or an exclusive gang.
    pub(crate) fn real(&self, number: u64, rng: &mut Rng) -> Made {
        let kinds: &[(&str, u32, bool)] =
            &[("p", 1, false), ("g", 2, false), ("x", 1, true), ("xg", 2, true)];
        let usable = if self.may_be_exclusive { kinds.len() } else { 2 };
        let (kind, workers, exclusive) = kinds[rng.between(0, usable as u64) as usize];
        let (steps, save_every) = (rng.between(80, 260), rng.between(15, 40));
        let mut spec = self.spec(&format!("{kind}-{number}"), steps, save_every);
        spec["workers"] = workers.into();
        spec["exclusive"] = exclusive.into();
        made(&spec, true)
    }

    /// Runs until it is cancelled.
    pub(crate) fn service(&self) -> Made {
        let mut spec = self.spec(&format!("{SERVICE}1"), 0, 1);
        spec["kind"] = "service".into();
        spec["workers"] = 2.into();
        spec["ready"] = "worker".into();
        made(&spec, true)
    }

    /// One that no node can take: a cheap write that can be read and cancelled.
    pub(crate) fn parked(number: u64) -> Made {
        let spec = json!({
            "name": format!("k-{number}"),
            "command": ["true"],
            "placement": {"require": {"nowhere": "yes"}},
        });
        made(&spec, false)
    }

    fn spec(&self, name: &str, steps: u64, save_every: u64) -> Value {
        let number = |n: u64| n.to_string();
        json!({
            "name": name,
            "command": [
                self.exe, "worker", "--journal", self.journal, "--steps", number(steps), "--step-ms",
                number(STEP_MS), "--save-every", number(save_every), "--root", self.root,
            ],
            "resources": {"cpus": 0.5},
            "checkpoint": {"every": "1h"},
            // Killed workers count as the program's own failures.
            "recovery": {"max_user_failures": 100, "stop_grace": "1s", "restore_wait": "15s"},
        })
    }
}

fn made(spec: &Value, is_real: bool) -> Made {
    let name = spec["name"].as_str().unwrap_or_default().to_owned();
    Made { name, spec: spec.to_string(), is_real }
}
