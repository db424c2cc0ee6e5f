//! `outlast cluster backup`.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use outlast_consensus::read_backup;
use outlast_proto::control::v1::BackupClusterResponse;
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{print_one, size};

const AFTER_HELP: &str = "\
The backup has all that the coordinators know: jobs, attempts, nodes, and where checkpoints lie. The
checkpoints' bytes are not in it; they stay on the nodes. It is taken while the cluster runs, and gets
its name only when it was read back and found whole.

Restore it with `outlast cluster restore`. What happens after a backup is not in it: make one often.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Backup {
    /// Where to write it; an older backup of that name is replaced [default: outlast-CLUSTER-INDEX.backup]
    file: Option<PathBuf>,
}

/// What was written.
#[derive(Serialize)]
struct Written {
    file: String,
    cluster_id: String,
    generation: u64,
    index: u64,
    size_bytes: u64,
}

impl Backup {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let mut stream = session.client.backup_cluster().await?;
        let cut = || Problem::new(Exit::Failed, "the coordinator sent no backup").next("try again");
        let first = stream.next().await?.ok_or_else(cut)?;
        let (name, index) = (first.cluster_id.clone(), first.index);
        let path = self.file.unwrap_or_else(|| PathBuf::from(format!("outlast-{name}-{index}.backup")));
        let not_written = |error| not_written(&path, error);
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut temp = NamedTempFile::new_in(folder).map_err(not_written)?;
        let bar = progress_bar(first.size_bytes);
        let written = Written {
            file: path.display().to_string(),
            cluster_id: first.cluster_id.clone(),
            generation: first.generation,
            index,
            size_bytes: first.size_bytes,
        };
        let mut next = Some(first);
        while let Some(BackupClusterResponse { chunk, .. }) = next {
            temp.write_all(&chunk).map_err(not_written)?;
            bar.inc(chunk.len() as u64);
            next = stream.next().await?;
        }
        bar.finish_and_clear();
        keep(temp, &path, folder)?;
        print_one(session.format, &written, || {
            format!(
                "{}: cluster {}, generation {}, up to entry {}, {}\n",
                written.file,
                written.cluster_id,
                written.generation,
                written.index,
                size(written.size_bytes)
            )
        })?;
        Ok(Exit::Done)
    }
}

/// Durable and read back before it gets its name, so that a backup of that name is always a whole one.
fn keep(temp: NamedTempFile, path: &Path, folder: &Path) -> Result<(), Problem> {
    temp.as_file().sync_all().map_err(|error| not_written(path, error))?;
    read_backup(temp.path()).map_err(|error| {
        Problem::new(Exit::Failed, "the backup that came is not whole, and was not kept")
            .because_of(&error)
            .next("try again")
    })?;
    temp.persist(path).map_err(|error| not_written(path, error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| not_written(path, error))
}

fn not_written(path: &Path, error: std::io::Error) -> Problem {
    Problem::new(Exit::Failed, format!("{} cannot be written", path.display())).because_of(&error)
}

/// Drawn only where somebody sees it.
fn progress_bar(size_bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(size_bytes), ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("backup {bytes}/{total_bytes} {wide_bar} {bytes_per_sec}");
    ProgressBar::new(size_bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
