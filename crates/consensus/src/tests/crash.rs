//! What a crash of the machine may take, and what it may not.

use openraft::storage::{RaftLogStorage, RaftLogStorageExt as _};
use openraft::{EntryPayload, RaftLogReader as _};

use super::conformance::log_store;
use crate::disk::LogMark;
use crate::disk::check::check_log;
use crate::disk::sim::{SimContents, SimFaults};
use crate::types::{Batch, Entry, Vote, log_id};

fn entry(term: u64, index: u64) -> Entry {
    let batch = Batch(vec![index as u8; 100].into());
    Entry { log_id: log_id(LogMark { term, index }), payload: EntryPayload::Normal(batch) }
}

/// Appends until the disk dies at its `dies_at`th sync; returns the last index and the term that were acknowledged.
async fn append_until_dead(contents: &SimContents, dies_at: u64) -> (u64, u64) {
    let dir = tempfile::tempdir().expect("temp dir");
    let (mut log, writer) = {
        let reader = contents.open();
        let disk: Box<dyn crate::disk::RaftDisk> = Box::new(reader);
        log_store_dying(disk, &dir)
    };
    let (mut acked, mut voted) = (0, 0);
    contents.set_faults(SimFaults {
        sync_fails_at: Some(contents.syncs() + dies_at),
        torn_writes: true,
        ..SimFaults::default()
    });
    for term in 1.. {
        if log.save_vote(&Vote::new_committed(term, 1)).await.is_err() {
            break;
        }
        voted = term;
        let next = acked + 1;
        if log.blocking_append([entry(term, next), entry(term, next + 1)]).await.is_err() {
            break;
        }
        acked = next + 1;
        let _ = log.save_committed(Some(log_id(LogMark { term, index: acked }))).await;
    }
    writer.stop(false);
    (acked, voted)
}

fn log_store_dying(
    disk: Box<dyn crate::disk::RaftDisk>,
    dir: &tempfile::TempDir,
) -> (crate::log::LogStore, std::sync::Arc<crate::log::LogWriter>) {
    use crate::fatal::FatalHook;
    use crate::hwm::HighWater;
    use crate::log::{LogStore, LogWriter};
    let reader = disk.reader();
    let recovered = check_log(&*reader, true).expect("a good log");
    let high = HighWater::create(&dir.path().join("hwm")).expect("a new file");
    let writer = std::sync::Arc::new(LogWriter::spawn(disk, high, FatalHook::new(|_| {})).expect("a thread"));
    (
        LogStore::new(&recovered, reader, std::sync::Arc::clone(&writer), super::conformance::all_covered()),
        writer,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_9_what_was_acknowledged_survives_every_crash_and_a_torn_write_is_never_read() {
    for seed in 0..40 {
        let contents = SimContents::create("test", 1);
        let dir = tempfile::tempdir().expect("temp dir");
        let (mut log, writer) = log_store(Box::new(contents.open()), &dir);
        log.save_vote(&Vote::new_committed(1, 1)).await.expect("voted");
        log.blocking_append([entry(1, 0)]).await.expect("appended");
        writer.stop(true);
        let (acked, voted) = append_until_dead(&contents, 1 + seed % 11).await;
        contents.crash(seed);
        contents.set_faults(SimFaults::default());
        let disk = contents.open();
        match check_log(&*crate::disk::RaftDisk::reader(&disk), true) {
            Ok(found) => {
                assert!(
                    found.last.expect("entries").index >= acked,
                    "seed {seed}: {found:?}, acknowledged {acked}"
                );
                assert!(found.vote.expect("a vote").term >= voted, "seed {seed}");
            }
            // Torn: refused, and never read.
            Err(err) => assert!(format!("{err:?}").contains("rotten"), "seed {seed}: {err:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn truncation_and_purge_leave_a_log_without_holes() {
    let contents = SimContents::create("test", 1);
    let dir = tempfile::tempdir().expect("temp dir");
    let (mut log, writer) = log_store(Box::new(contents.open()), &dir);
    log.save_vote(&Vote::new_committed(1, 1)).await.expect("voted");
    log.blocking_append((0..20).map(|index| entry(1, index))).await.expect("appended");
    log.purge(log_id(LogMark { term: 1, index: 4 })).await.expect("purged");
    log.truncate(log_id(LogMark { term: 1, index: 10 })).await.expect("truncated");
    log.save_vote(&Vote::new_committed(2, 1)).await.expect("voted");
    log.blocking_append([entry(2, 10)]).await.expect("appended");
    let read = log.try_get_log_entries(0..100).await.expect("read");
    assert_eq!(read.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(), (5..=10).collect::<Vec<_>>());
    writer.stop(true);
    contents.lose_unsynced();
    let found = check_log(&*crate::disk::RaftDisk::reader(&contents.open()), true).expect("good");
    assert_eq!(
        (found.last, found.purged),
        (Some(LogMark { term: 2, index: 10 }), Some(LogMark { term: 1, index: 4 }))
    );
}
