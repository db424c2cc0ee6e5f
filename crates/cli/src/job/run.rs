//! `outlast job run -- CMD…`: submit and follow.

use std::path::{Path, PathBuf};

use outlast_types::{ByteSize, NodeId};
use serde_json::{Map, Value, json};

use crate::connection::Session;
use crate::job::{file, follow, submit};
use crate::problem::{Exit, Problem};
use crate::term::talk;

const AFTER_HELP: &str = "\
The job's output comes on stdout, what happens to it on stderr. Exit code 1 when the job fails.
Ctrl-C only stops the following: the job goes on, and the way back to it is printed.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Run {
    /// The job's name [default: the command's, and a random end]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// How many workers
    #[arg(long, default_value_t = 1, value_name = "N")]
    workers: u32,
    /// Cores of each worker
    #[arg(long, value_name = "N")]
    cpus: Option<f64>,
    /// Memory of each worker, for example 512MiB
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// GPUs of each worker
    #[arg(long, value_name = "N")]
    gpus: Option<u32>,
    /// A variable for the workers; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// A folder that the job brings along; its command starts in it
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// training: the workers stand and fall together; batch: each for itself; service: restarted whenever it ends
    #[arg(long, default_value = "training", value_name = "KIND", value_parser = ["training", "batch", "service"])]
    kind: String,
    /// Submit, print the job's id, and leave
    #[arg(long)]
    detach: bool,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Run {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let job = file::check(self.value(), "this", Path::new(""))?;
        if job.workdir.is_none() {
            self.mention_files();
        }
        let submitted = submit::submit(&session, &job).await?;
        if self.detach {
            crate::term::print_one(session.format, &submitted, || format!("{}\n", submitted.job_id))?;
            return Ok(Exit::Done);
        }
        talk(&format!("submitted {} as {}", submitted.name, submitted.job_id));
        follow::follow(&session, &submitted.job_id).await
    }

    fn value(&self) -> Value {
        let mut resources = Map::new();
        let mut set =
            |key: &str, value: Option<Value>| value.map(|value| resources.insert(key.to_owned(), value));
        set("cpus", self.cpus.map(Value::from));
        set("memory", self.memory.map(|memory| Value::from(memory.0)));
        set("gpus", self.gpus.map(Value::from));
        let env: Map<_, _> =
            self.env.iter().map(|(key, value)| (key.clone(), Value::from(value.clone()))).collect();
        let mut job = json!({
            "name": self.name.clone().unwrap_or_else(|| name_of(&self.command)),
            "kind": self.kind,
            "command": self.command,
            "workers": self.workers,
            "resources": resources,
            "env": env,
        });
        if let Some(workdir) = &self.workdir {
            job["workdir"] = workdir.to_string_lossy().into_owned().into();
        }
        job
    }

    /// The commonest surprise: a script that lies here, and not where the worker runs.
    fn mention_files(&self) {
        let here = |arg: &&String| Path::new(arg).is_relative() && Path::new(arg).is_file();
        if let Some(file) = self.command.iter().find(here) {
            talk(&format!(
                "note: {file} is a file here, but the job does not bring this folder along; --workdir . does"
            ));
        }
    }
}

/// `python3 train.py` becomes `python3-3f9a`.
fn name_of(command: &[String]) -> String {
    let program = command.first().and_then(|program| Path::new(program).file_name()).unwrap_or_default();
    let letters: String = program
        .to_string_lossy()
        .to_lowercase()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(40)
        .collect();
    let suffix = format!("{:04x}", getrandom::u32().unwrap_or(0) & 0xffff);
    let name = format!("{letters}-{suffix}");
    if NodeId::new(name.clone()).is_ok() { name } else { format!("job-{suffix}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_command() {
        for (command, start) in
            [("/usr/bin/python3", "python3-"), ("./Train Me.sh", "trainmesh-"), ("…", "job-")]
        {
            let name = name_of(&[command.to_owned()]);
            assert!(name.starts_with(start), "{name}");
            let job = json!({"name": name, "command": [command]});
            assert!(outlast_types::spec::parse(&job).is_ok(), "{name}");
        }
    }
}
