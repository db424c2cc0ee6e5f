//! `outlast checkpoint export`: out of the cluster again, as files that need nothing of ours to be read.
//!
//! ```text
//!  newest sealed ─► each rank: stream (hashed) ─► unpacked beside DIR ─► synced ─► renamed to DIR
//!        └─ no good bytes anywhere: the next older one, said aloud
//! ```

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use outlast_blobs::{PackError, PackLimits, unpack};
use outlast_client::ClientError;
use outlast_proto::control::v1::Checkpoint;
use serde_json::json;
use tokio::sync::mpsc;

use super::bar::bar;
use super::newest::{newest_first, nothing_sealed};
use crate::connection::Session;
use crate::local::interrupted;
use crate::problem::{Exit, Problem};
use crate::term::{print_one, size, talk};

/// Pieces of up to 1 MiB between the network and the disk.
const PIECES_MAX: usize = 8;

#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    /// Id or name of the job
    job: String,
    /// Which one [default: the newest that can be read]
    checkpoint: Option<String>,
    /// Where to; made, or empty. Each rank gets a folder in it: rank-0, rank-1, …
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

/// Why a checkpoint did not come out whole.
enum Failed {
    /// No holder of some rank has good bytes: it will never be read.
    Lost(ClientError),
    Other(Problem),
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Failed::Other(problem)
    }
}

impl Export {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        check_free(&self.to)?;
        let candidates = self.candidates(&session).await?;
        let parent = parent_of(&self.to);
        let last = candidates.len().saturating_sub(1);
        for (turn, checkpoint) in candidates.iter().enumerate() {
            // Beside the final name, so that the rename stays on one disk. Whatever happens, it goes with this value.
            let partial = tempfile::Builder::new().prefix(".outlast-export-").tempdir_in(&parent);
            let partial = partial.map_err(|error| unwritable(&parent, &error))?;
            let exported = tokio::select! {
                exported = export(&session, &self.job, checkpoint, partial.path()) => exported,
                _ = interrupted() => return Ok(Exit::Interrupted),
            };
            match exported {
                Ok(()) => {
                    place(partial.path(), &self.to)?;
                    return self.tell(&session, checkpoint);
                }
                Err(Failed::Lost(error)) if turn < last => {
                    talk(&format!("{} cannot be read ({error}); trying an older one", checkpoint.id));
                }
                Err(Failed::Lost(error)) => return Err(error.into()),
                Err(Failed::Other(problem)) => return Err(problem),
            }
        }
        Err(nothing_sealed(&self.job, &self.job))
    }

    /// Only the named one, or all that are sealed: first those that can be read now, the newest of them first.
    async fn candidates(&self, session: &Session) -> Result<Vec<Checkpoint>, Problem> {
        if let Some(named) = &self.checkpoint {
            return Ok(vec![session.client.get_checkpoint(&self.job, named).await?]);
        }
        let mut sealed = newest_first(session.client.list_checkpoints(&self.job).await?);
        let newest = sealed.first().map(|checkpoint| checkpoint.id.clone());
        sealed.sort_by_key(|checkpoint| checkpoint.durability_now == "none");
        let chosen = sealed.first().map(|checkpoint| checkpoint.id.clone());
        if let (Some(newest), true) = (&newest, newest != chosen) {
            talk(&format!("{newest} cannot be read now: some rank has no holder that is there"));
        }
        Ok(sealed)
    }

    fn tell(&self, session: &Session, checkpoint: &Checkpoint) -> Result<Exit, Problem> {
        let value = json!({
            "checkpoint": checkpoint.id,
            "step": checkpoint.step,
            "size_bytes": checkpoint.size_bytes,
            "manifest_root": checkpoint.manifest_root,
            "to": self.to,
            "ranks": checkpoint.shards.iter().map(|shard| format!("rank-{}", shard.rank)).collect::<Vec<_>>(),
        });
        print_one(session.format, &value, || {
            let (ranks, step) = (checkpoint.shards.len(), checkpoint.step);
            let what =
                format!("{} (step {step}, {ranks} ranks, {})", checkpoint.id, size(checkpoint.size_bytes));
            format!("{what} is in {}\n", self.to.display())
        })?;
        Ok(Exit::Done)
    }
}

/// Everything of it into `dir`, whole and synced.
async fn export(session: &Session, job: &str, checkpoint: &Checkpoint, dir: &Path) -> Result<(), Failed> {
    if checkpoint.shards.is_empty() {
        return Err(Problem::new(Exit::Conflict, format!("{} is {}", checkpoint.id, checkpoint.state))
            .because("only sealed checkpoints have recorded bytes")
            .next(format!("`outlast checkpoint list {job}` shows what there is"))
            .into());
    }
    let whole = dir.join("whole");
    fs::create_dir(&whole).map_err(|error| unwritable(&whole, &error))?;
    let bar = bar(&format!("exporting {}", checkpoint.id), checkpoint.size_bytes);
    for shard in &checkpoint.shards {
        let rank_dir = whole.join(format!("rank-{}", shard.rank));
        let fetched = fetch(session, job, &checkpoint.id, shard.rank, &rank_dir, &bar).await;
        if fetched.is_err() {
            bar.finish_and_clear();
        }
        fetched?;
    }
    bar.finish_and_clear();
    let synced = fs::File::open(&whole).and_then(|folder| rustix::fs::syncfs(&folder).map_err(Into::into));
    synced.map_err(|error| unwritable(&whole, &error))?;
    Ok(())
}

/// One rank: unpacked while it comes; the stream ends well only if every byte was the sealed one.
async fn fetch(
    session: &Session,
    job: &str,
    checkpoint: &str,
    rank: u32,
    dir: &Path,
    bar: &ProgressBar,
) -> Result<(), Failed> {
    // Made here, with the modes of whoever exports: unpacking would make it private.
    fs::create_dir(dir).map_err(|error| unwritable(dir, &error))?;
    let (pieces, queue) = mpsc::channel(PIECES_MAX);
    let target = dir.to_owned();
    let unpacking = tokio::task::spawn_blocking(move || unpack_all(queue, &target));
    let mut stream = session.client.read_shard(job, checkpoint, rank);
    let fetched = loop {
        match stream.next().await {
            Ok(Some(bytes)) => {
                bar.inc(bytes.len() as u64);
                // Nobody takes it: the unpacking has failed, and says why below.
                if pieces.send(bytes).await.is_err() {
                    break Ok(());
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    drop(pieces);
    let unpacked = unpacking.await.expect("unpacking does not panic");
    match fetched {
        Err(error @ ClientError::Conflict { .. }) => return Err(Failed::Lost(error)),
        Err(error) => return Err(Problem::from(error).into()),
        Ok(()) => {}
    }
    unpacked.map_err(|error| {
        Problem::new(Exit::Failed, format!("rank {rank} of {checkpoint} could not be unpacked"))
            .because_of(&error)
            .into()
    })
}

fn unpack_all(queue: mpsc::Receiver<Vec<u8>>, dir: &Path) -> Result<(), PackError> {
    let mut pieces = PieceReader { queue, current: io::Cursor::default() };
    unpack(&mut pieces, dir, PackLimits::CHECKPOINT)?;
    // What lies behind the archive's end has to be taken too, for the hash is over all of it.
    let drained = io::copy(&mut pieces, &mut io::sink());
    drained.map(drop).map_err(|source| PackError::Damaged { source })
}

/// Pieces as one stream of bytes; its end is the sender's going away.
struct PieceReader {
    queue: mpsc::Receiver<Vec<u8>>,
    current: io::Cursor<Vec<u8>>,
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.current.read(buffer)? {
                0 if !buffer.is_empty() => {}
                count => return Ok(count),
            }
            match self.queue.blocking_recv() {
                Some(piece) => self.current = io::Cursor::new(piece),
                None => return Ok(0),
            }
        }
    }
}

fn unwritable(path: &Path, error: &dyn std::error::Error) -> Problem {
    Problem::new(Exit::Failed, format!("{} cannot be written", path.display())).because_of(error)
}

/// Nobody's files are overwritten or mixed with ours.
fn check_free(dir: &Path) -> Result<(), Problem> {
    let taken = |why: &str| {
        Problem::new(Exit::Conflict, format!("nothing was exported to {}", dir.display()))
            .because(why)
            .next("name a folder that does not exist yet, or an empty one")
    };
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(false) => Ok(()),
        Ok(true) => Err(taken("it is not empty")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(taken("it is a file")),
        Err(error) => Err(taken(&error.to_string())),
    }
}

fn parent_of(dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    absolute.parent().map_or(absolute.clone(), Path::to_owned)
}

/// The whole under its final name, in one step. A folder that filled up meanwhile is not touched: the rename refuses.
fn place(partial: &Path, to: &Path) -> Result<(), Problem> {
    let target = std::path::absolute(to).unwrap_or_else(|_| to.to_owned());
    let placed = fs::rename(partial.join("whole"), &target);
    placed.map_err(|error| unwritable(&target, &error))?;
    let synced = fs::File::open(parent_of(&target)).and_then(|folder| folder.sync_all());
    synced.map_err(|error| unwritable(&target, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_or_an_empty_folder_is_written_to() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(check_free(&dir.path().join("new")).is_ok());
        assert!(check_free(dir.path()).is_ok());
        fs::write(dir.path().join("file"), "x").expect("written");
        assert!(check_free(dir.path()).is_err());
        assert!(check_free(&dir.path().join("file")).is_err());
    }

    #[test]
    fn a_folder_that_filled_up_meanwhile_keeps_what_it_has() {
        let dir = tempfile::tempdir().expect("a folder");
        let (partial, to) = (dir.path().join("partial"), dir.path().join("to"));
        fs::create_dir_all(partial.join("whole/rank-0")).expect("made");
        fs::create_dir(&to).expect("made");
        fs::write(to.join("mine"), "x").expect("written");
        assert!(place(&partial, &to).is_err());
        assert!(to.join("mine").exists() && !to.join("rank-0").exists());
        fs::remove_file(to.join("mine")).expect("removed");
        place(&partial, &to).map_err(|problem| format!("{problem:?}")).expect("an empty one is taken");
        assert!(to.join("rank-0").exists());
    }
}
