//! `outlast demo`: a training job that outlives the death of its node and of the coordinator's leader, on this machine,
//! with real processes — and whose weights come out bit for bit as if nothing had happened.

mod acts;
mod observer;
mod reference;
mod report;
mod screen;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outlast_local::{Builder, LocalCluster};
use serde_json::json;

use crate::local;
use crate::problem::{Exit, Problem};
use observer::Observer;
use reference::{ReferenceRun, TrainingResult};
use report::{AttemptLine, Report};
use screen::Screen;

/// Watch a training job survive the death of its node and of the coordinator's leader.
///
/// Starts three coordinators and four agents as real processes in a temporary folder, trains on them, kills things with
/// kill -9, and compares the weights with an undisturbed run. Exit code 1 when they differ or the accuracy is too low.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Write what was measured as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the cluster running afterwards, to play with; ends with Ctrl-C.
    #[arg(long)]
    keep: bool,
}

/// Pace of the training: slow enough to be watched and disturbed, about 45 s in all.
const STEP_MS: u32 = 25;

impl DemoArgs {
    /// Fails when the cluster does not come up, or the job does not go on after a disturbance.
    pub(crate) fn run(self) -> Result<ExitCode, Problem> {
        let outcome = local::block_on(self.perform());
        outcome.map_err(|error| local::problem("the demo could not go on", &error))
    }

    async fn perform(self) -> Result<ExitCode> {
        let screen = Screen::new();
        let interrupted = tokio::select! {
            outcome = play(&self, &screen) => return outcome,
            interrupted = local::interrupted() => interrupted,
        };
        interrupted?;
        // The cluster was dropped with the play, which ended its processes.
        screen.finish();
        screen.say("interrupted: all processes were ended and the folder was removed");
        Ok(Exit::Interrupted.into())
    }
}

async fn play(args: &DemoArgs, screen: &Screen) -> Result<ExitCode> {
    let started = Instant::now();
    let exe = std::env::current_exe().context("this program does not know its own path")?;
    screen.say("starting 3 coordinators and 4 agents, each a process of its own");
    let mut cluster = Builder::new(&exe)
        .coordinators(3)
        .agents(4)
        .agent_args(&["--cpus", "2", "--memory", "1GiB"])
        .start()
        .await?;
    screen.say(&format!(
        "the cluster is up after {:.1} s in {}",
        started.elapsed().as_secs_f64(),
        cluster.folder().display()
    ));

    let reference = ReferenceRun::start(&exe, cluster.folder())?;
    let result_file = cluster.folder().join("result.json");
    let job = submit(&cluster, &exe, &result_file).await?;
    screen.say(&format!(
        "job {job}: two ranks train on handwritten digits; the same training runs undisturbed beside it"
    ));

    let observer = Observer::start(cluster.client().clone(), &job, screen.clone());
    let mut report = Report::default();
    acts::kill_node(&mut cluster, &observer, screen, &mut report).await?;
    acts::kill_leader(&mut cluster, &observer, screen, &mut report).await?;
    acts::freeze_agent(&mut cluster, &observer, screen, &mut report).await?;
    screen.say("nothing more will be disturbed; the training runs to its end");
    observer.wait("the job's end", FINISH_DEADLINE, |seen| seen.job_is_final()).await?;

    let job = cluster.client().get_job(&job).await.context("the job's record")?;
    ensure!(job.state == "succeeded", "the job {}: {}", job.state, job.reason);
    fill(&mut report, &job, &observer, &TrainingResult::read(&result_file)?, &reference.finish()?);
    screen.finish();
    if !args.keep {
        report.leftover_processes = cluster.stop().len();
    }
    report.total_s = started.elapsed().as_secs_f64();
    println!("\nWhat was measured\n\n{}", report.table());
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report).context("the report")?;
        std::fs::write(file, text).with_context(|| format!("could not write {}", file.display()))?;
    }
    let good = report.is_good();
    println!("{}", if good { "The job outlived them all." } else { "FAILED: see the table above." });
    if args.keep {
        keep_running(&cluster, screen).await;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Generous: a busy machine may take several times as long.
const FINISH_DEADLINE: Duration = Duration::from_secs(300);

async fn submit(cluster: &LocalCluster, exe: &std::path::Path, result: &std::path::Path) -> Result<String> {
    let spec = json!({
        "name": "digits",
        "kind": "training",
        "command": [exe, "example", "digits"],
        "workers": 2,
        "resources": {"cpus": 1, "memory": "256MiB"},
        "env": {"DIGITS_STEP_MS": STEP_MS.to_string(), "DIGITS_RESULT": result},
        "checkpoint": {"every": "1s", "keep": 3},
    });
    let answer =
        cluster.client().submit_job(spec.to_string(), String::new()).await.context("the job was refused")?;
    Ok(answer.job_id)
}

fn fill(
    report: &mut Report,
    job: &outlast_proto::control::v1::Job,
    observer: &Observer,
    result: &TrainingResult,
    reference: &TrainingResult,
) {
    report.accuracy = result.accuracy;
    report.steps = result.steps;
    report.digest = result.digest.clone();
    report.reference_digest = reference.digest.clone();
    report.sealed = observer.read(|seen| seen.sealed);
    let attempts = job.groups.first().map_or(&[][..], |group| &group.attempts);
    report.attempts = attempts
        .iter()
        .map(|attempt| AttemptLine {
            attempt: attempt.id.clone(),
            rung: attempt.rung.clone(),
            nodes: attempt.assignments.iter().map(|a| a.node.clone()).collect(),
            from_step: attempt.restore_step,
            outcome: attempt.outcome.clone(),
            cause: attempt.cause_text.clone(),
        })
        .collect();
}

/// Never returns: Ctrl-C ends the play. What was measured has been told by then.
async fn keep_running(cluster: &LocalCluster, screen: &Screen) {
    screen.say("the cluster goes on running; try, in another terminal:");
    screen.say(&format!("  export OUTLAST_COORDINATOR={}", cluster.endpoints()));
    screen.say("  outlast cluster status; outlast job explain digits; outlast checkpoint list digits");
    screen.say("Ctrl-C ends it");
    std::future::pending::<()>().await;
}
