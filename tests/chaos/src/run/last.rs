//! The end of a run: what is open is resolved, every job ends, and what is there is looked at once more.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use outlast_proto::control::v1 as pb;

use super::disks;
use crate::bed::Bed;
use crate::clients::{Asker, Board, SERVICE};
use crate::history::{Answer, FinalAttempt, FinalCheckpoint, FinalJob, Recorder, Usage, What};

/// A cluster that is whole answers at once; this is for a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Jobs run for 13 s at most, and may have to wait for cores, holders and back-off.
const JOBS_MAX: Duration = Duration::from_secs(240);
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Connections of the run are closed, and what was ordered is done.
const SETTLE: Duration = Duration::from_secs(4);

pub(super) async fn see_to_the_end(
    bed: &Arc<Bed>,
    recorder: &Recorder,
    board: &Board,
    seed: u64,
) -> Result<()> {
    let mut asker = Asker::new("last", bed, recorder, seed)?;
    recorder.phase("end jobs");
    resolve_open(&mut asker, board).await?;
    let endless = board.all().into_iter().filter(|known| !known.is_real || known.name.starts_with(SERVICE));
    for known in endless.filter(|known| !known.is_over) {
        cancel(&mut asker, &known.id).await?;
    }
    wait_all_over(&mut asker, board).await?;
    tokio::time::sleep(SETTLE).await;
    recorder.phase("last look");
    let mut jobs = Vec::new();
    for known in board.all() {
        asker.get(&known.id).await;
        let job = bed.client.get_job(&known.id).await;
        match job {
            Ok(job) => jobs.push(look(bed, recorder, job).await?),
            // The checkers say what that means.
            Err(err) => eprintln!("chaos: {} cannot be read: {err}", known.id),
        }
    }
    disks::look(bed, recorder, &jobs).await;
    Ok(())
}

/// Submissions without an answer become known: the same request is the same job.
async fn resolve_open(asker: &mut Asker, board: &Board) -> Result<()> {
    for open in board.take_open() {
        let began = Instant::now();
        loop {
            match asker.submit(&open.request, &open.name, &open.spec).await {
                Answer::Submitted { job } => {
                    board.add(&job, &open.name, !open.name.starts_with('k'));
                    break;
                }
                answer if began.elapsed() > ANSWER_MAX => bail!("{} was not taken: {answer:?}", open.name),
                _ => asker.pause(100, 300).await,
            }
        }
    }
    Ok(())
}

async fn cancel(asker: &mut Asker, job: &str) -> Result<()> {
    let (request, began) = (asker.request_id(), Instant::now());
    loop {
        match asker.cancel(&request, job).await {
            Answer::Unknown { reason } if began.elapsed() > ANSWER_MAX => {
                bail!("{job} was not cancelled: {reason}")
            }
            Answer::Unknown { .. } => asker.pause(100, 300).await,
            _ => return Ok(()),
        }
    }
}

async fn wait_all_over(asker: &mut Asker, board: &Board) -> Result<()> {
    let began = Instant::now();
    loop {
        let open: Vec<_> = board.all().into_iter().filter(|known| !known.is_over).collect();
        if open.is_empty() {
            return Ok(());
        }
        for known in &open {
            if let Answer::Job { seen, .. } = asker.get(&known.id).await {
                board.saw(&seen);
            }
        }
        if began.elapsed() > JOBS_MAX {
            // Their last state is told by the checker.
            let names: Vec<&str> = open.iter().map(|known| known.name.as_str()).collect();
            eprintln!("chaos: not over after {} s: {}", JOBS_MAX.as_secs(), names.join(", "));
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(bed: &Bed, recorder: &Recorder, job: pb::Job) -> Result<FinalJob> {
    let newest =
        job.checkpoints.iter().filter(|checkpoint| checkpoint.state == "sealed").max_by_key(|c| c.step);
    if let Some(checkpoint) = newest {
        let verified = bed.client.verify_checkpoint(&job.id, &checkpoint.id, true, &[]).await;
        let verified =
            verified.with_context(|| format!("{} of {} could not be looked at", checkpoint.id, job.id))?;
        let bad = verified.results.iter().filter(|result| result.outcome != "ok");
        let notes: Vec<String> =
            bad.map(|r| format!("rank {} on {}: {} {}", r.rank, r.node, r.outcome, r.detail)).collect();
        recorder.put(What::Verified {
            job: job.id.clone(),
            checkpoint: checkpoint.id.clone(),
            restorable: verified.restorable,
            intact: verified.intact,
            note: notes.join("; "),
        });
    }
    let job = final_job(job);
    recorder.put(What::Final(job.clone()));
    Ok(job)
}

fn final_job(job: pb::Job) -> FinalJob {
    let attempt = |a: pb::Attempt| FinalAttempt {
        id: a.id,
        number: a.number,
        phase: a.phase,
        cause: a.cause,
        restore_from: a.restore_from,
        restore_step: a.restore_step,
        passed_over: a.passed_over,
    };
    let checkpoint =
        |c: pb::Checkpoint| FinalCheckpoint { id: c.id, step: c.step, attempt: c.attempt, state: c.state };
    FinalJob {
        id: job.id,
        name: job.name,
        state: job.state,
        reason: job.reason,
        attempts: job.groups.into_iter().flat_map(|group| group.attempts).map(attempt).collect(),
        checkpoints: job.checkpoints.into_iter().map(checkpoint).collect(),
    }
}

/// Memory and descriptors of every daemon.
pub(crate) fn read_usage(bed: &Bed, recorder: &Recorder, before: bool) {
    let cluster = bed.cluster();
    for daemon in cluster.coordinators.iter().chain(&cluster.agents) {
        let Some(pid) = daemon.pid() else { continue };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        let descriptors =
            std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64);
        let daemon = daemon.name.clone();
        recorder.put(What::Usage(Usage { daemon, before, rss_kib: rss.unwrap_or(0), descriptors }));
    }
}

/// No daemon may panic, whatever was done to it.
///
/// # Errors
/// When a log cannot be read.
pub(crate) fn scan_logs(bed: &Bed, recorder: &Recorder) -> Result<()> {
    let logs: Vec<(String, PathBuf)> = {
        let cluster = bed.cluster();
        let daemons = cluster.coordinators.iter().chain(&cluster.agents);
        daemons.map(|daemon| (daemon.name.clone(), daemon.log().to_path_buf())).collect()
    };
    for (daemon, path) in logs {
        let bytes = std::fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        for line in text.lines().filter(|line| line.contains("panicked at")) {
            recorder.put(What::Log { daemon: daemon.clone(), line: line.to_owned() });
        }
    }
    Ok(())
}
