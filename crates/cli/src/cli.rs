//! The command line as a whole: which nouns and verbs there are, and what each starts.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::problem::{Exit, Problem};
use crate::{bench, checkpoint, cluster, demo, example, job, node, serve, version};

const AFTER_HELP: &str = "\
Start here:
  outlast dev                             a coordinator and an agent on this machine
  outlast job run -- python3 train.py     submit a job and follow it
  outlast job explain JOB                 what happened to it, and why

Exit codes:
  0 done                  3 not found        6 cluster unreachable, or no leader in time
  1 what was asked about  4 conflict        78 a daemon's data folder is damaged
    failed                5 not permitted      or belongs to another
  2 usage

Colours appear on a terminal only, and never with NO_COLOR.";

/// Jobs that outlast their machines: a fault-tolerant supervisor for training, inference and batch work.
#[derive(Debug, Parser)]
#[command(name = "outlast", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Submit jobs, follow them, and ask what happened
    Job(job::JobArgs),
    /// The machines that work
    Node(node::NodeArgs),
    /// Checkpoints of a job
    Checkpoint(checkpoint::CheckpointArgs),
    /// The coordinators
    Cluster(cluster::ClusterArgs),
    /// Run a coordinator
    Coordinator(serve::CoordinatorArgs),
    /// Run an agent: the daemon of a node
    Agent(serve::AgentArgs),
    /// Run a coordinator and agents together on this machine
    Dev(serve::DevArgs),
    /// Watch a training job survive its node, the leader and a frozen agent, on this machine
    Demo(demo::DemoArgs),
    /// Measure this build on this machine
    Bench(bench::BenchArgs),
    /// Print the version
    Version(version::VersionArgs),
    /// Print a completion script for a shell, for example `outlast completions bash`
    Completions { shell: clap_complete::Shell },
    /// Run an example worker that is built in
    Example(example::ExampleArgs),
    /// Watch over one worker; started by the agent
    #[command(hide = true)]
    Keeper { dir: std::path::PathBuf },
    /// Try to open a coordinator's folder; run by the coordinator before it opens it itself
    #[command(hide = true)]
    CoordinatorCheck(serve::CheckArgs),
}

impl Cli {
    pub(crate) fn run(self) -> Result<ExitCode, Problem> {
        match self.command {
            Command::Job(args) => args.run(),
            Command::Node(args) => args.run(),
            Command::Checkpoint(args) => args.run(),
            Command::Cluster(args) => args.run(),
            Command::Coordinator(args) => args.run(),
            Command::Agent(args) => args.run(),
            Command::Dev(args) => args.run(),
            Command::Demo(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Version(args) => args.run(),
            Command::Completions { shell } => completions(shell),
            Command::Example(args) => Ok(args.run()),
            Command::CoordinatorCheck(args) => Ok(args.run()),
            Command::Keeper { dir } => Ok(outlast_process::keeper::run(&dir)),
        }
    }
}

fn completions(shell: clap_complete::Shell) -> Result<ExitCode, Problem> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "outlast", &mut script);
    crate::term::write_data(&script)?;
    Ok(Exit::Done.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_line_of_the_design_parses() {
        for line in [
            "job submit -f job.yaml",
            "job run --workers 2 --env A=b -- python3 -c pass",
            "job list -o json",
            "job -o json list --active",
            "job show j1",
            "job logs -f --tail 10 --rank 0 --attempt 2 --timestamps digits",
            "job wait j1 --coordinator a:1,b:2",
            "job cancel j1 --yes",
            "job explain j1",
            "job events -f",
            "node list",
            "node show n1",
            "node cordon n1",
            "node uncordon n1",
            "node drain n1 --yes",
            "node label n1 disk=nvme zone-",
            "checkpoint list j1",
            "checkpoint show j1 ck2",
            "checkpoint verify j1 ck2",
            "checkpoint verify j1 --deep --repair-within 30s",
            "checkpoint export j1 --to out",
            "checkpoint export j1 ck2 --to out",
            "checkpoint pin j1 ck2",
            "checkpoint unpin j1 ck2",
            "checkpoint put out --step 5",
            "cluster status",
            "cluster init --profile wan",
            "cluster remove c2 --yes",
            "cluster backup out.backup",
            "cluster backup",
            "cluster restore out.backup --data-dir d --address host:7400 --yes",
            "cluster restore --from-store s3://b/p --data-dir d --address host:7400 --ended j1 --ended b --yes",
            "cluster restore --from-agents n1,http://n2:7401 --cluster c-1 --profile wan --data-dir d --address h:1",
            "cluster recover --data-dir d --address 10.0.0.1:7400 --yes",
            "cluster verify --data-dir d --deep -o json",
            "coordinator --data-dir d --listen 127.0.0.1:0 --profile lan --join a:1 --join b:2 --insecure",
            "agent --name n1 --label zone=a --resource tpu=4 --cpus 2 --memory 1GiB --gpus 0 --coordinator a:1",
            "dev --nodes 3 --keep",
            "demo --json out.json --keep",
            "bench control --runs 3",
            "bench checkpoint --size 64MiB --json out.json",
            "version",
            "completions zsh",
            "keeper /tmp/x",
            "coordinator-check /tmp/x",
            "example digits",
        ] {
            let words = std::iter::once("outlast").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    /// An argument with the name of a global one takes its place without a word: `cluster remove c2` once asked a
    /// coordinator at the address c2.
    #[test]
    fn no_argument_has_the_name_of_a_global_one() {
        fn look(command: &clap::Command, path: &str, globals: &[String]) {
            let path = format!("{path} {}", command.get_name());
            let own: Vec<_> = command.get_arguments().filter(|arg| arg.is_global_set()).collect();
            for arg in command.get_arguments().filter(|arg| !arg.is_global_set()) {
                let is_taken = globals.iter().any(|global| global == arg.get_id().as_str());
                assert!(!is_taken, "{path}: {} is the name of a global option", arg.get_id());
            }
            let names = own.iter().map(|arg| arg.get_id().to_string());
            let globals: Vec<_> = globals.iter().cloned().chain(names).collect();
            command.get_subcommands().for_each(|sub| look(sub, &path, &globals));
        }
        look(&Cli::command(), "", &[]);
    }

    #[test]
    fn times_and_sizes_without_units_are_refused() {
        for line in [
            "job list --timeout 10",
            "agent --memory lots",
            "dev --nodes 0",
            "job run",
            "cluster recover --data-dir d --address nowhere",
            "cluster restore --data-dir d --address host:7400",
            "cluster restore out.backup --from-agents n1 --data-dir d --address host:7400",
        ] {
            let words = std::iter::once("outlast").chain(line.split(' '));
            let error = Cli::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
