//! The thread that owns the disk. All writes go through it in order, so a vote is durable before the entries of its term.
//!
//! ```text
//! drain the queue ──► one group ──► stage ──► sync (if anybody waits for durability) ──► high-water mark ──► answer, in order
//!                                      └────────────── any error or panic: the process ends
//! nothing for a second ──► touch the disk all the same, so that a hung one is noticed
//! ```

use std::io;
use std::sync::Arc;
#[cfg(not(feature = "simulated"))]
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
#[cfg(not(feature = "simulated"))]
use std::thread::JoinHandle;
use std::time::Instant;

use openraft::storage::LogFlushed;
use tokio::sync::oneshot;

use crate::disk::{DiskOp, Meter, RaftDisk};
use crate::fatal::{FatalHook, chain};
use crate::hwm::{self, HighMark, HighWater};
use crate::types::TypeConfig;
use crate::watchdog::Pulse;

/// openraft waits for each vote, append and truncation; only the bookkeeping between them adds to the queue.
const QUEUE_JOBS: usize = 1_024;
const GROUP_JOBS_MAX: usize = 256;

pub(crate) enum Done {
    Flushed(LogFlushed<TypeConfig>),
    Waiter(oneshot::Sender<()>),
    /// Nobody waits, and durability may come with the next barrier.
    Nobody,
}

pub(crate) struct Write {
    pub(crate) ops: Vec<DiskOp>,
    /// What the log has at least once this is durable.
    pub(crate) after: HighMark,
    pub(crate) done: Done,
}

enum Job {
    Write(Write),
    /// Writes the high-water mark and lets go of the disk.
    Stop,
    /// Lets go of the disk as it is, as a kill would.
    Kill,
}

pub(crate) struct LogWriter {
    jobs: SyncSender<Job>,
    #[cfg(not(feature = "simulated"))]
    thread: parking_lot::Mutex<Option<JoinHandle<()>>>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) pulse: Arc<Pulse>,
}

impl LogWriter {
    pub(crate) fn spawn(disk: Box<dyn RaftDisk>, high: HighWater, fatal: FatalHook) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE_JOBS);
        let (meter, pulse) = (Arc::new(Meter::default()), Arc::new(Pulse::default()));
        let durable = high.written();
        let owner = Owner {
            disk,
            high,
            durable,
            meter: Arc::clone(&meter),
            pulse: Arc::clone(&pulse),
            fatal: fatal.clone(),
        };
        #[cfg(not(feature = "simulated"))]
        let thread = std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || {
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| owner.run(&queue)));
            match ran {
                Ok(Ok(())) => {}
                Ok(Err(err)) => fatal.die(&told(&err)),
                Err(_) => fatal.die("the disk of the Raft log panicked"),
            }
        })?;
        #[cfg(feature = "simulated")]
        tokio::spawn(async move {
            if let Err(err) = owner.run_simulated(queue).await {
                fatal.die(&told(&err));
            }
        });
        Ok(Self {
            jobs,
            #[cfg(not(feature = "simulated"))]
            thread: parking_lot::Mutex::new(Some(thread)),
            meter,
            pulse,
        })
    }

    /// # Errors
    /// The writer has stopped.
    pub(crate) fn send(&self, write: Write) -> io::Result<()> {
        let stopped = || io::Error::other("the log's writer has stopped");
        match self.jobs.try_send(Job::Write(write)) {
            Ok(()) => Ok(()),
            // Only bookkeeping can pile up, and only behind a slow sync: waiting here is the back-pressure.
            Err(TrySendError::Full(job)) => self.jobs.send(job).map_err(|_| stopped()),
            Err(TrySendError::Disconnected(_)) => Err(stopped()),
        }
    }

    /// A simulated disk is closed at its writer's next look; nobody can wait for it in the one thread there is.
    #[cfg(feature = "simulated")]
    pub(crate) fn stop(&self, clean: bool) {
        let _ = self.jobs.try_send(if clean { Job::Stop } else { Job::Kill });
    }

    /// Blocks until the disk is closed.
    #[cfg(not(feature = "simulated"))]
    pub(crate) fn stop(&self, clean: bool) {
        let Some(thread) = self.thread.lock().take() else { return };
        // A writer that is gone already has closed its disk.
        let _ = self.jobs.send(if clean { Job::Stop } else { Job::Kill });
        let _ = thread.join();
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.stop(false);
    }
}

/// What waits, up to an end of the writer, which comes last.
fn group(first: Job, queue: &Receiver<Job>) -> (Vec<Write>, Option<Job>) {
    let mut group = Vec::new();
    let mut next = Some(first);
    while let Some(job) = next {
        match job {
            Job::Write(write) => group.push(write),
            last_words => return (group, Some(last_words)),
        }
        next = if group.len() < GROUP_JOBS_MAX { queue.try_recv().ok() } else { None };
    }
    (group, None)
}

/// What a person reads last.
fn told(err: &io::Error) -> String {
    let next = match err.kind() {
        io::ErrorKind::StorageFull => {
            "make room under the data folder and start it again; what is in it is intact"
        }
        _ => "look at the disk, then start it again",
    };
    format!("the disk of the Raft log failed: {}: {next}", chain(err))
}

struct Owner {
    disk: Box<dyn RaftDisk>,
    high: HighWater,
    durable: HighMark,
    meter: Arc<Meter>,
    pulse: Arc<Pulse>,
    fatal: FatalHook,
}

impl Owner {
    #[cfg(not(feature = "simulated"))]
    fn run(mut self, queue: &Receiver<Job>) -> io::Result<()> {
        let reader = self.disk.reader();
        let ran = self.serve(queue);
        reader.close();
        ran
    }

    /// The same in the one thread of a simulation: what was staged waits for its sync as long as a disk takes, and a
    /// crash may come in between.
    #[cfg(feature = "simulated")]
    async fn run_simulated(mut self, queue: Receiver<Job>) -> io::Result<()> {
        let mut idle_since = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(crate::simulated::pause()).await;
            let Ok(first) = queue.try_recv() else {
                if idle_since.elapsed() >= hwm::AGE_MAX {
                    self.timed(Self::touch)?;
                    idle_since = tokio::time::Instant::now();
                }
                continue;
            };
            idle_since = tokio::time::Instant::now();
            let (mut group, last_words) = group(first, &queue);
            if let Some(Job::Kill) = last_words {
                return Ok(());
            }
            self.or_die(|owner| owner.stage(&group))?;
            tokio::time::sleep(crate::simulated::pause()).await;
            self.or_die(|owner| owner.settle(&mut group))?;
            if last_words.is_some() {
                self.disk.sync()?;
                return self.write_high_water();
            }
        }
    }

    #[cfg(not(feature = "simulated"))]
    fn serve(&mut self, queue: &Receiver<Job>) -> io::Result<()> {
        loop {
            let first = match queue.recv_timeout(hwm::AGE_MAX) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    self.timed(Self::touch)?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return self.write_high_water(),
            };
            let (group, last_words) = group(first, queue);
            match last_words {
                Some(Job::Kill) => return Ok(()),
                Some(_) => {
                    self.write_or_die(group)?;
                    self.disk.sync()?;
                    return self.write_high_water();
                }
                None => self.write_or_die(group)?,
            }
        }
    }

    fn timed(&mut self, operation: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let pulse = Arc::clone(&self.pulse);
        pulse.time(|| operation(self))
    }

    /// What an idle writer does once a second. The mark is written although it has not changed: a sync without a write
    /// need not reach the disk.
    fn touch(&mut self) -> io::Result<()> {
        self.disk.sync()?;
        self.high.write(self.durable)
    }

    /// Dropping a group tells those who wait for it that the writer is gone, and the Raft core would end the process for
    /// that: the reason has to be told before.
    #[cfg(not(feature = "simulated"))]
    fn write_or_die(&mut self, mut group: Vec<Write>) -> io::Result<()> {
        self.or_die(|owner| {
            owner.stage(&group)?;
            owner.settle(&mut group)
        })
    }

    fn or_die(&mut self, operation: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let written = self.timed(operation);
        if let Err(err) = &written {
            self.fatal.die(&told(err));
        }
        written
    }

    fn stage(&mut self, group: &[Write]) -> io::Result<()> {
        if group.is_empty() {
            return Ok(());
        }
        self.lower_high_water(group)?;
        let ops: Vec<DiskOp> = group.iter().flat_map(|write| write.ops.iter().cloned()).collect();
        self.disk.stage(&ops)
    }

    /// Makes what was staged durable where somebody waits for that, and answers.
    fn settle(&mut self, group: &mut Vec<Write>) -> io::Result<()> {
        let Some(after) = group.last().map(|write| write.after) else { return Ok(()) };
        let barrier = group.iter().any(|write| !matches!(write.done, Done::Nobody));
        if barrier {
            let began = Instant::now();
            self.disk.sync()?;
            self.meter.record(began.elapsed());
            self.durable = after;
            if self.high.is_old() {
                self.write_high_water()?;
            }
        }
        for write in group.drain(..) {
            match write.done {
                Done::Flushed(callback) => callback.log_io_completed(Ok(())),
                // A waiter that went away has nothing to learn.
                Done::Waiter(waiter) => drop(waiter.send(())),
                Done::Nobody => {}
            }
        }
        Ok(())
    }

    /// A truncation makes less durable on purpose: the mark has to go down before the log does.
    fn lower_high_water(&mut self, group: &[Write]) -> io::Result<()> {
        let truncates = |write: &&Write| write.ops.iter().any(|op| matches!(op, DiskOp::Truncate { .. }));
        let lowest = group
            .iter()
            .filter(truncates)
            .map(|write| write.after.last)
            .min_by_key(|last| last.map(|mark| mark.index));
        if let Some(last) = lowest {
            self.durable.last = self.durable.last.min(last);
            self.high.write(self.durable)?;
        }
        Ok(())
    }

    fn write_high_water(&mut self) -> io::Result<()> {
        if self.high.written() == self.durable { Ok(()) } else { self.high.write(self.durable) }
    }
}
