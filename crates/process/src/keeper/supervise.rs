//! The keeper's loop while the worker runs, and after it while its record waits to be fetched.
//!
//! After every wake-up the deadline comes first (A5), then the worker, then the agent's wishes. Owns the worker, its
//! cgroup, the deadline and the socket.

use std::path::Path;

use outlast_types::BootTime;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions, WaitStatus, kill_process_group, wait};

use super::clients::Clients;
use super::launch::Worker;
use super::timer::Timer;
use crate::boot_now;
use crate::cgroup::Cgroup;
use crate::procfs;
use crate::record::{ExitFile, LEFT_MAX, LeftProcess};
use crate::spec::KeeperSpec;
use crate::wire::{KeeperStatus, Reply, Request};

/// Wakes even where nothing happens: orphans are reaped, and a lost wake-up heals.
const TICK_MS: u64 = 5_000;
/// A process that did not die yet (its fork was faster, or it hangs in the kernel) is killed again this often.
const KILL_AGAIN_MS: u64 = 20;
/// How long the keeper waits for somebody to fetch the record; the record stays on the disk after that.
const LINGER_MS: u64 = 60_000;

/// Why the keeper kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Killing {
    Stopped { after_ms: u64 },
    Fenced,
}

pub(super) struct Outcome {
    pub(super) status: WaitStatus,
    pub(super) killing: Option<Killing>,
    pub(super) terminated: bool,
}

pub(super) struct Supervisor {
    pub(super) spec: KeeperSpec,
    pub(super) worker: Worker,
    pub(super) cgroup: Option<Cgroup>,
    clients: Clients,
    timer: Timer,
    /// When a polite stop turns into a kill, and the grace that was given.
    stop: Option<(BootTime, u64)>,
    killing: Option<Killing>,
    kill_again_at: BootTime,
    status: Option<WaitStatus>,
    ended: bool,
}

impl Supervisor {
    pub(super) fn new(
        spec: KeeperSpec,
        worker: Worker,
        cgroup: Option<Cgroup>,
        clients: Clients,
    ) -> std::io::Result<Self> {
        let timer = Timer::new()?;
        let kill_again_at = BootTime(0);
        Ok(Self {
            spec,
            worker,
            cgroup,
            clients,
            timer,
            stop: None,
            killing: None,
            kill_again_at,
            status: None,
            ended: false,
        })
    }

    /// Until the worker's main process has ended.
    pub(super) fn watch(&mut self) -> Outcome {
        loop {
            self.enforce(boot_now());
            self.reap();
            if let Some(status) = self.status {
                return Outcome { status, killing: self.killing, terminated: self.stop.is_some() };
            }
            self.serve(None);
            self.sleep(TICK_MS);
        }
    }

    /// Answers until the agent has the record, the folder is gone, or a minute has passed.
    pub(super) fn linger(&mut self, exit: ExitFile) {
        self.ended = true;
        let mut is_written = write_record(&exit);
        let until = boot_now().plus(LINGER_MS);
        let reply = Reply::Exit(exit.clone());
        self.clients.announce(&reply);
        loop {
            let is_done = self.serve(Some(&exit));
            self.clients.announce(&reply);
            if is_done || boot_now() >= until || !Path::new("spec.json").exists() {
                return;
            }
            self.sleep(1_000);
            self.reap();
            is_written = is_written || write_record(&exit);
        }
    }

    pub(super) fn status(&self) -> KeeperStatus {
        KeeperStatus {
            keeper_pid: std::process::id(),
            worker_pid: self.worker.pid.as_raw_nonzero().get().unsigned_abs(),
            started_at: self.worker.started_at,
            ended: self.ended,
            deadline_boot_ms: self.spec.lease_deadline.map(|deadline| deadline.0),
        }
    }

    /// How much time is left until an exclusive worker must be killed.
    pub(super) fn until_fence_ms(&self) -> u64 {
        super::fence_at(&self.spec).map_or(u64::MAX, |at| at.since(boot_now()))
    }

    fn enforce(&mut self, now: BootTime) {
        if super::fence_at(&self.spec).is_some_and(|at| now >= at) && self.killing != Some(Killing::Fenced) {
            self.killing = Some(Killing::Fenced);
            self.kill_again_at = now;
        }
        if let Some((at, after_ms)) = self.stop
            && now >= at
            && self.killing.is_none()
        {
            self.killing = Some(Killing::Stopped { after_ms });
            self.kill_again_at = now;
        }
        if self.killing.is_some() && now >= self.kill_again_at {
            self.kill_all();
            self.kill_again_at = now.plus(KILL_AGAIN_MS);
        }
    }

    /// Everything the worker ever started: by cgroup, and whatever descends from the keeper (as subreaper it inherits
    /// all orphans).
    pub(super) fn kill_all(&self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill_all();
        }
        procfs::descendants(std::process::id()).iter().for_each(procfs::kill_exactly);
    }

    /// Collects ended children, orphans included; whether there is none left at all.
    pub(super) fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.worker.pid => self.status = Some(status),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Processes that are still there. Exact with or without a cgroup; costs nothing when there are none.
    pub(super) fn remaining(&mut self) -> usize {
        let has_no_children = self.reap();
        let members = self.cgroup.as_ref().map_or(0, |cgroup| cgroup.pids().len());
        if has_no_children { members } else { members.max(procfs::descendants(std::process::id()).len()) }
    }

    /// The same by name, for those who look again when this keeper is gone.
    pub(super) fn left(&self) -> Vec<LeftProcess> {
        let members = self.cgroup.as_ref().map(Cgroup::pids).unwrap_or_default();
        let mut left: Vec<_> = members.into_iter().filter_map(procfs::stat).collect();
        left.extend(procfs::descendants(std::process::id()));
        left.sort_unstable_by_key(|stat| stat.pid);
        left.dedup_by_key(|stat| stat.pid);
        let name = |stat: &procfs::ProcStat| LeftProcess { pid: stat.pid, start_time: stat.start_time };
        left.iter().filter(|stat| !stat.is_dead()).map(name).take(LEFT_MAX).collect()
    }

    /// Whether the agent said that it is done.
    fn serve(&mut self, exit: Option<&ExitFile>) -> bool {
        let status = self.status();
        let (spec, stop, pid) = (&mut self.spec, &mut self.stop, self.worker.pid);
        let mut is_done = false;
        self.clients.serve(|request| {
            match (request, exit) {
                (Request::Status, _) => return Some(Reply::Status(status.clone())),
                (Request::Watch, _) => return None,
                (Request::Done, Some(_)) => is_done = true,
                (Request::Done, None) => {
                    return Some(Reply::Refused("the worker is still running".to_owned()));
                }
                (Request::Deadline { .. } | Request::Stop { .. }, Some(_)) => {}
                (Request::Deadline { boot_ms }, None) => {
                    spec.lease_deadline = spec.lease_deadline.max(Some(BootTime(*boot_ms)));
                }
                (Request::Stop { grace_ms }, None) => handle_stop(stop, *grace_ms, pid),
            }
            Some(Reply::Ok)
        });
        is_done
    }

    fn sleep(&mut self, tick_ms: u64) {
        let again = self.killing.map(|_| self.kill_again_at);
        let stop = self.stop.map(|(at, _)| at).filter(|_| self.killing.is_none());
        let fence = super::fence_at(&self.spec).filter(|_| self.killing != Some(Killing::Fenced));
        let next = [again, stop, fence].into_iter().flatten().min().filter(|_| !self.ended);
        // Should the timer refuse, poll's own time-out still wakes us in time (unless the machine sleeps).
        let _ = self.timer.set(next);
        let wait_ms = next.map_or(tick_ms, |at| at.since(boot_now()).saturating_add(1).min(tick_ms));
        let timeout = Timespec {
            tv_sec: (wait_ms / 1_000).cast_signed(),
            tv_nsec: (wait_ms % 1_000).cast_signed() * 1_000_000,
        };
        let mut fds = vec![PollFd::new(&self.timer.fd, PollFlags::IN)];
        if !self.ended {
            fds.push(PollFd::new(&self.worker.ended, PollFlags::IN));
        }
        fds.extend(self.clients.poll_fds());
        let _ = poll(&mut fds, Some(&timeout));
    }
}

/// The first stop says SIGTERM; a later one can only shorten the grace.
fn handle_stop(stop: &mut Option<(BootTime, u64)>, grace_ms: u64, worker: rustix::process::Pid) {
    let at = boot_now().plus(grace_ms);
    if stop.is_none() && grace_ms > 0 {
        // The worker is not reaped yet, so its pid (and group) cannot be anybody else's.
        let _ = kill_process_group(worker, Signal::TERM);
    }
    if stop.is_none_or(|(earlier, _)| at < earlier) {
        *stop = Some((at, grace_ms));
    }
}

fn write_record(exit: &ExitFile) -> bool {
    match exit.write(Path::new(".")) {
        Ok(()) => true,
        Err(err) => {
            tracing::error!(%err, "could not write the exit record; trying again");
            false
        }
    }
}
