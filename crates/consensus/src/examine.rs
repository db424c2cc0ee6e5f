//! A stopped coordinator's folder, part by part, for `cluster verify`. Reads all and changes nothing of it; the one that
//! stops at the first damage, for starts, is in `verify.rs`.

use std::path::Path;

use outlast_control::state::decode_batch;
use outlast_types::{ClusterId, CoordinatorId};

use crate::config::DiskChoice;
use crate::disk::check::{CheckError, check_log};
use crate::disk::{DiskReader, LogMark, Recovered};
use crate::error::OpenError;
use crate::fatal::chain;
use crate::folder::{Folder, Identity};
use crate::hwm::HighWater;
use crate::open::{disk_error, open_disk};
use crate::snapshot::inspect;
use crate::types::entry_of;

const CHUNK_ENTRIES: u64 = 256;
const CHUNK_BYTES: usize = 8 << 20;

/// What was found out about one part of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub part: String,
    /// What it is, or what is wrong with it.
    pub detail: String,
    pub is_good: bool,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examination {
    pub cluster_id: ClusterId,
    pub coordinator: CoordinatorId,
    pub findings: Vec<Finding>,
}

impl Examination {
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|finding| finding.is_good)
    }

    fn tell(&mut self, part: &str, outcome: Result<String, String>) {
        let is_good = outcome.is_ok();
        let detail = outcome.unwrap_or_else(|why| why);
        self.findings.push(Finding { part: part.to_owned(), detail, is_good });
    }
}

/// Checks every part of a stopped coordinator's folder; with `deep` every entry of its log too.
///
/// # Errors
/// The folder is in use, holds no coordinator, or cannot be read. Damage is in the findings.
pub fn examine_folder(dir: &Path, deep: bool) -> Result<Examination, OpenError> {
    let none = || OpenError::NoCoordinator { path: dir.to_owned() };
    let folder = Folder::open(dir)?.ok_or_else(none)?;
    let identity = folder.identity()?.ok_or_else(none)?;
    let mut found = Examination {
        cluster_id: identity.cluster_id.clone(),
        coordinator: identity.coordinator,
        findings: Vec::new(),
    };
    let whose = format!("{} of cluster {}", identity.coordinator, identity.cluster_id);
    found.tell("identity", Ok(whose.clone()));
    let log = read_log(&folder, &identity, deep).map_err(failed)?;
    match log {
        Ok((recovered, detail)) => {
            let own = format!("c{} of cluster {}", recovered.coordinator, recovered.cluster_id);
            let is_own = own == whose;
            found.tell("log", if is_own { Ok(detail) } else { Err(format!("it belongs to {own}")) });
            let high = HighWater::open(&folder.high_water(), &recovered);
            let high = damage_of(high.map(|_| "the log has all that was durable".to_owned()));
            found.tell("high water", high.map_err(failed)?);
            tell_snapshots(&mut found, &folder, &identity, recovered.purged).map_err(failed)?;
        }
        Err(damage) => {
            found.tell("log", Err(damage));
            tell_snapshots(&mut found, &folder, &identity, None).map_err(failed)?;
        }
    }
    Ok(found)
}

fn failed(err: std::io::Error) -> OpenError {
    disk_error(err)
}

/// Damage is an answer; what the disk says is not.
fn damage_of<T>(outcome: Result<T, CheckError>) -> std::io::Result<Result<T, String>> {
    match outcome {
        Ok(value) => Ok(Ok(value)),
        Err(CheckError::Damage(damage)) => Ok(Err(chain(&damage))),
        Err(CheckError::Io(source)) => Err(source),
    }
}

fn read_log(
    folder: &Folder,
    identity: &Identity,
    deep: bool,
) -> std::io::Result<Result<(Recovered, String), String>> {
    damage_of(open_disk(&DiskChoice::Sled, &folder.log(), identity).and_then(|disk| {
        let reader = disk.reader();
        let recovered = check_log(&*reader, deep)?;
        let decoded = if deep { decode_entries(&*reader, &recovered) } else { Ok(()) };
        reader.close();
        Ok((recovered, decoded))
    }))
    .map(|checked| {
        let (recovered, decoded) = checked?;
        decoded?;
        let index = |mark: Option<LogMark>| mark.map_or("none".to_owned(), |mark| mark.index.to_string());
        let detail = format!(
            "{} entries checked, the newest is {}, {} were purged",
            recovered.entries_checked,
            index(recovered.last),
            recovered.purged.map_or(0, |mark| mark.index + 1)
        );
        Ok((recovered, detail))
    })
}

/// That the bytes are as they were written is known; this says whether this build understands them.
fn decode_entries(reader: &dyn DiskReader, log: &Recovered) -> Result<(), String> {
    let end = log.last.map_or(0, |last| last.index + 1);
    let mut next = log.purged.map_or(0, |purged| purged.index + 1);
    while next < end {
        let records = reader.read(next..end.min(next + CHUNK_ENTRIES), CHUNK_BYTES);
        let records = records.map_err(|err| chain(&err))?;
        if records.is_empty() {
            return Err(format!("entry {next} is missing"));
        }
        for record in records {
            let index = record.mark.index;
            let entry = entry_of(&record).map_err(|err| format!("entry {index}: {}", chain(&err)))?;
            if let openraft::EntryPayload::Normal(batch) = &entry.payload {
                decode_batch(&batch.0).map_err(|err| format!("entry {index}: {}", chain(&err)))?;
            }
            next = index + 1;
        }
    }
    Ok(())
}

fn tell_snapshots(
    found: &mut Examination,
    folder: &Folder,
    identity: &Identity,
    purged: Option<LogMark>,
) -> std::io::Result<()> {
    let all = match inspect(&folder.snapshots(), &identity.cluster_id) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        listed => listed?,
    };
    let mut is_covered = purged.is_none();
    for (at, read) in all {
        let outcome = match read {
            Ok(()) => Ok(format!("whole; it covers the entries up to {}", at.index)),
            Err(err) => Err(chain(&err)),
        };
        is_covered |= outcome.is_ok() && purged.is_none_or(|purged| at.index >= purged.index);
        found.tell(&format!("snapshot {}-{}", at.term, at.index), outcome);
    }
    if !is_covered {
        found.tell("snapshots", Err("no good one covers what was purged from the log".to_owned()));
    }
    Ok(())
}
