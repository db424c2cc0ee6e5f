//! Takes records from everybody, in memory and, line by line, in a file that outlives a crash of the harness.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

use super::record::{Answer, Call, Record, What};

/// Now, on the clock of all records. No time namespace of ours shifts it.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::MonotonicRaw);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

struct Inner {
    file: BufWriter<File>,
    records: Vec<Record>,
    broken: Option<std::io::Error>,
}

/// Cheap to clone; all clones write the same history.
#[derive(Clone)]
pub(crate) struct Recorder {
    inner: Arc<Mutex<Inner>>,
    ops: Arc<AtomicU64>,
}

impl Recorder {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("could not write {}", path.display()))?;
        let inner = Inner { file: BufWriter::new(file), records: Vec::new(), broken: None };
        Ok(Self { inner: Arc::new(Mutex::new(inner)), ops: Arc::default() })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing below panics between two changes.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, what: What) {
        let mut inner = self.inner();
        // Under the lock, so that the order of records is that of their times.
        let record = Record { at: now_ns(), what };
        let line = serde_json::to_string(&record).expect("records are plain data");
        if let Err(err) = writeln!(inner.file, "{line}") {
            inner.broken.get_or_insert(err);
        }
        inner.records.push(record);
    }

    pub(crate) fn phase(&self, name: &str) {
        println!("chaos: {name}");
        self.put(What::Phase { name: name.to_owned() });
    }

    /// Writes the call down before it is made; the number joins it with its return.
    pub(crate) fn call(&self, client: &str, to: &str, call: Call) -> u64 {
        let op = self.ops.fetch_add(1, Ordering::Relaxed);
        self.put(What::Call { op, client: client.to_owned(), to: to.to_owned(), call });
        op
    }

    pub(crate) fn done(&self, op: u64, answer: Answer) {
        self.put(What::Return { op, answer });
    }

    /// Everything so far.
    ///
    /// # Errors
    /// When the file could not take it all.
    pub(crate) fn records(&self) -> Result<Vec<Record>> {
        let mut inner = self.inner();
        inner.file.flush().context("could not write the history")?;
        match inner.broken.take() {
            Some(err) => Err(err).context("could not write the history"),
            None => Ok(inner.records.clone()),
        }
    }
}
