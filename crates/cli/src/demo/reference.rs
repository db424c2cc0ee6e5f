//! The undisturbed run: the same training, two plain processes without Outlast, at the same time.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The line that rank 0 writes at its end.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct TrainingResult {
    pub(super) steps: u64,
    pub(super) accuracy: f64,
    pub(super) digest: String,
}

impl TrainingResult {
    /// # Errors
    /// When the file is missing or damaged.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("no result at {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no result", path.display()))
    }
}

/// Two ranks that nobody watches over. Ended when dropped.
pub(super) struct ReferenceRun {
    ranks: Vec<Child>,
    result: PathBuf,
}

impl ReferenceRun {
    /// # Errors
    /// When the processes cannot be started.
    pub(super) fn start(exe: &Path, folder: &Path) -> Result<Self> {
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).context("no free port")?.port();
        let result = folder.join("reference.json");
        let rank = |rank: u32| {
            Command::new(exe)
                .args(["example", "digits"])
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", "2")
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", port.to_string())
                .env("DIGITS_RESULT", &result)
                .env_remove("OUTLAST_SOCKET")
                .current_dir(folder)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("could not start the undisturbed run")
        };
        Ok(Self { ranks: vec![rank(0)?, rank(1)?], result })
    }

    /// Waits for both ranks.
    ///
    /// # Errors
    /// When one of them failed.
    pub(super) fn finish(mut self) -> Result<TrainingResult> {
        for child in &mut self.ranks {
            let status = child.wait().context("the undisturbed run cannot be waited for")?;
            ensure!(status.success(), "the undisturbed run failed: {status}");
        }
        TrainingResult::read(&self.result)
    }
}

impl Drop for ReferenceRun {
    fn drop(&mut self) {
        for child in &mut self.ranks {
            // An error means that it has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
