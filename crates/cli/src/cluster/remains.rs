//! What `restore` finds in a bucket and at agents, chosen and told.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use outlast_agent::DEFAULT_PORT;
use outlast_blobs::objects::{StoreOptions, StoreUrl};
use outlast_control::state::{LeftOut, Lineage, Remains, Restored, RestoredJob};
use outlast_coordinator::{FindError, find_remains};
use outlast_types::{ClusterId, Profile, WallTime};
use serde_json::{Value, json};

use crate::problem::{Exit, Problem};
use crate::term::{Columns, size, talk};

const FAILED: &str = "the cluster was not restored";

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Without a backup")]
pub(super) struct Sources {
    /// The agents' object store: s3://bucket/prefix, gs://, az://, file:///folder
    #[arg(long, value_name = "URL")]
    // Text: the parser of arguments would repeat a refused one, which may hold a secret.
    from_store: Option<String>,
    /// Agents that run, at the address of their peer service (port 7401)
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', value_parser = agent_address)]
    from_agents: Vec<String>,
    /// Which cluster, where seals of several are found
    #[arg(long, value_name = "ID")]
    cluster: Option<ClusterId>,
    /// A job (id or name) that had ended: it comes back cancelled and does not run; may be repeated
    #[arg(long, value_name = "JOB")]
    ended: Vec<String>,
    /// The timers: lan or wan [default: the lost cluster's, where its seals tell]
    #[arg(long, value_name = "PROFILE")]
    profile: Option<Profile>,
}

/// `host`, `host:port` or `http://host:port`.
fn agent_address(text: &str) -> Result<String, String> {
    let plain = text.trim().trim_end_matches('/');
    let plain = plain.strip_prefix("http://").unwrap_or(plain);
    let has_port = plain.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    super::address(&if has_port { plain.to_owned() } else { format!("{plain}:{DEFAULT_PORT}") })
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let agents = match self.from_agents.len() {
            0 => None,
            1 => Some("one agent".to_owned()),
            count => Some(format!("{count} agents")),
        };
        f.write_str(&self.from_store.iter().cloned().chain(agents).collect::<Vec<_>>().join(" and "))
    }
}

impl Sources {
    /// Reads all of it, and makes a state of one cluster.
    pub(super) fn find(&self) -> Result<(Lineage, Restored), Problem> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| Problem::new(Exit::Failed, "this process cannot start").because_of(&error))?;
        let url = self.from_store.as_deref().map(str::parse::<StoreUrl>).transpose();
        let url = url.map_err(|error| Problem::new(Exit::Usage, FAILED).because_of(&error))?;
        self.check_folder()?;
        let options = StoreOptions::from_vars(std::env::vars());
        let store = url.as_ref().map(|url| (url, &options));
        let remains = runtime.block_on(find_remains(store, &self.from_agents));
        let remains = remains.map_err(|error| not_read(&error))?;
        let lineage = self.choose(&remains)?;
        let ended: BTreeSet<String> = self.ended.iter().cloned().collect();
        let restored = remains.restore(&lineage, self.profile, &ended, now());
        if restored.jobs.is_empty() {
            return Err(self.nothing(&restored.left_out));
        }
        let is_known = |name: &&String| {
            restored.jobs.iter().any(|job| job.name == **name || job.id.to_string() == **name)
        };
        if let Some(unknown) = self.ended.iter().find(|name| !is_known(name)) {
            let what = format!("no job that was found is called {unknown}, as --ended says");
            return Err(Problem::new(Exit::NotFound, what).next(format!("found were {}", names(&restored))));
        }
        Ok((lineage, restored))
    }

    /// Opening a store of this kind makes its folder, which is not what who mistyped it wants.
    fn check_folder(&self) -> Result<(), Problem> {
        let folder = self.from_store.as_ref().and_then(|url| url.strip_prefix("file://"));
        match folder.filter(|folder| !Path::new(folder).is_dir()) {
            None => Ok(()),
            Some(folder) => Err(Problem::new(Exit::NotFound, FAILED)
                .because(format!("there is no folder {folder}"))
                .next("give the very URL that the agents had as --store")),
        }
    }

    fn choose(&self, remains: &Remains) -> Result<Lineage, Problem> {
        let mut lineages = remains.lineages();
        lineages.retain(|lineage| lineage.checkpoints > 0);
        if lineages.is_empty() {
            return Err(self.nothing(&remains.damaged));
        }
        let wanted = |lineage: &&Lineage| self.cluster.as_ref().is_none_or(|id| lineage.cluster == *id);
        let fitting: Vec<&Lineage> = lineages.iter().filter(wanted).collect();
        if let [one] = fitting.as_slice() {
            return Ok((*one).clone());
        }
        let problem = match &self.cluster {
            Some(id) => Problem::new(Exit::NotFound, format!("nothing of cluster {id} was found")),
            None => Problem::new(Exit::Usage, "seals of several clusters were found"),
        };
        let told = |problem: Problem, lineage: &Lineage| {
            let Lineage { cluster, jobs, checkpoints, .. } = lineage;
            problem.because(format!("cluster {cluster}: {jobs} jobs, {checkpoints} checkpoints"))
        };
        let problem = lineages.iter().fold(problem, told);
        Err(problem.next("say which one comes back: --cluster ID"))
    }

    fn nothing(&self, left_out: &[LeftOut]) -> Problem {
        let what = format!("{FAILED}: {self} told of no sealed checkpoint that can be used");
        let told = |problem: Problem, one: &LeftOut| problem.because(line(one));
        let problem = left_out.iter().fold(Problem::new(Exit::NotFound, what), told);
        let problem = match &self.from_store {
            Some(_) => problem.next("give the very URL that the agents had as --store, with its prefix"),
            None => {
                problem.next("name every agent that is left: a checkpoint needs the bytes of all its ranks")
            }
        };
        problem.next("where there is a backup: outlast cluster restore FILE")
    }

    /// What is to be done so that the jobs go on.
    pub(super) fn advise(&self, address: &str) {
        if let Some(url) = &self.from_store {
            talk(&format!(
                "agents that fetch from there: outlast agent --data-dir DIR --coordinator {address} --store {url}"
            ));
        }
        talk(&format!(
            "what had ended runs again unless it is cancelled: outlast job cancel JOB --coordinator {address}"
        ));
    }
}

fn now() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn not_read(error: &FindError) -> Problem {
    let problem = Problem::new(Exit::Unreachable, FAILED).because_of(error);
    match error {
        FindError::Agent { .. } => {
            problem.next("start that agent, or leave it out: what only it has does not come back then")
        }
        FindError::Open(_) | FindError::Store(_) => {
            problem.next("check the URL, and give the variables that the agents were started with")
        }
    }
}

fn names(restored: &Restored) -> String {
    let named = |job: &RestoredJob| format!("{} ({})", job.id, job.name);
    restored.jobs.iter().map(named).collect::<Vec<_>>().join(", ")
}

fn line(left_out: &LeftOut) -> String {
    let LeftOut { job, checkpoint, reason } = left_out;
    let job = job.map(|job| format!("{job} ")).unwrap_or_default();
    let checkpoint = checkpoint.map(|checkpoint| format!("{checkpoint} ")).unwrap_or_default();
    format!("not taken: {job}{checkpoint}{reason}")
}

/// What comes back, and what does not.
pub(super) fn summary(lineage: &Lineage, restored: &Restored) -> String {
    let header = ["JOB", "NAME", "CHECKPOINTS", "NEWEST", "STEP", "SIZE", "BYTES AT", "COMES BACK"];
    let mut columns = Columns::new(&header);
    for job in &restored.jobs {
        columns.row(&[
            job.id.to_string(),
            job.name.clone(),
            job.checkpoints.to_string(),
            job.newest.0.to_string(),
            job.newest.1.to_string(),
            size(job.size_bytes),
            places(job),
            job.cancelled.as_ref().map_or_else(
                || format!("goes on from step {}", job.newest.1),
                |why| format!("cancelled: {why}"),
            ),
        ]);
    }
    let mut text = format!("cluster {}\n{}", lineage.cluster, columns.finish());
    for one in &restored.left_out {
        text += &format!("{}\n", line(one));
    }
    text += "seals do not tell: jobs that never sealed a checkpoint (submit them again), work after each newest \
             checkpoint, pins, and whether a job had ended since (--ended JOB)";
    text
}

fn places(job: &RestoredJob) -> String {
    let store = job.stored.then(|| "object store".to_owned());
    store.into_iter().chain(job.nodes.iter().map(ToString::to_string)).collect::<Vec<_>>().join(", ")
}

pub(super) fn json(restored: &Restored) -> Value {
    let job = |job: &RestoredJob| {
        json!({
            "job_id": job.id, "name": job.name, "checkpoints": job.checkpoints,
            "checkpoint": job.newest.0, "step": job.newest.1, "size_bytes": job.size_bytes,
            "nodes": job.nodes, "stored": job.stored,
            "state": if job.cancelled.is_some() { "cancelled" } else { "pending" },
            "reason": job.cancelled,
        })
    };
    let left_out =
        |one: &LeftOut| json!({"job_id": one.job, "checkpoint": one.checkpoint, "reason": one.reason});
    json!({
        "jobs": restored.jobs.iter().map(job).collect::<Vec<_>>(),
        "left_out": restored.left_out.iter().map(left_out).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_have_one_spelling() {
        for (text, address) in [
            ("n1", "n1:7401"),
            ("n1:9", "n1:9"),
            ("http://n1:7401/", "n1:7401"),
            ("[::1]", "[::1]:7401"),
            ("[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(agent_address(text).as_deref(), Ok(address), "{text}");
        }
        for bad in ["", "http://", "n1:port", "https://n1:1", "a/b"] {
            assert!(agent_address(bad).is_err(), "{bad:?}");
        }
    }
}
