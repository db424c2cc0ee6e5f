//! sled against the simulated disk as its model: the same operations, the same contents, also after reopening.
//!
//! Reopening relies on `open_db` asking again for sled's lock: other tests of this process start children, and a child holds
//! every lock of its parent until it runs its own program.

use proptest::prelude::*;

use crate::ballot::Ballot;
use crate::disk::check::{check_log, encode};
use crate::disk::sim::SimContents;
use crate::disk::sled::SledDisk;
use crate::disk::{DiskOp, DiskReader, LogMark, MetaKey, RaftDisk, Record};

#[derive(Clone, Debug)]
enum Step {
    Append { count: u8, bytes: usize },
    Truncate { back: u8 },
    Purge { ahead: u8 },
    Mark { value: u64 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..6_u8, prop_oneof![Just(0_usize), 1..300_usize, 60_000..200_000_usize])
            .prop_map(|(count, bytes)| Step::Append { count, bytes }),
        1 => (1..4_u8).prop_map(|back| Step::Truncate { back }),
        1 => (1..5_u8).prop_map(|ahead| Step::Purge { ahead }),
        1 => any::<u64>().prop_map(|value| Step::Mark { value }),
        1 => Just(Step::Reopen),
    ]
}

/// What the log above would keep of its own accord: the next index, the purged one, the term.
struct Log {
    first: u64,
    next: u64,
    term: u64,
}

impl Log {
    fn ops(&mut self, step: &Step) -> Vec<DiskOp> {
        match *step {
            Step::Append { count, bytes } => {
                let record = |index: u64| Record {
                    mark: LogMark { term: self.term, index },
                    payload: vec![index as u8; bytes].into(),
                };
                let records = (self.next..self.next + u64::from(count)).map(record).collect();
                self.next += u64::from(count);
                vec![DiskOp::Append(records)]
            }
            Step::Truncate { back } => {
                self.next = self.next.saturating_sub(u64::from(back)).max(self.first);
                self.term += 1;
                vec![DiskOp::Truncate { from: self.next }]
            }
            Step::Purge { ahead } => {
                self.first = (self.first + u64::from(ahead)).min(self.next);
                match self.first.checked_sub(1) {
                    None => Vec::new(),
                    Some(to) => {
                        let purged = encode(&LogMark { term: 0, index: to });
                        vec![DiskOp::Put { key: MetaKey::Purged, value: purged }, DiskOp::Purge { to }]
                    }
                }
            }
            Step::Mark { value } => {
                let vote = Ballot { term: value | 1 << 40, voted_for: Some(1), committed: false };
                vec![DiskOp::Put { key: MetaKey::Vote, value: encode(&vote) }]
            }
            Step::Reopen => Vec::new(),
        }
    }
}

fn same(sled: &dyn DiskReader, sim: &dyn DiskReader) {
    assert_eq!(sled.bounds().expect("bounds"), sim.bounds().expect("bounds"));
    for key in MetaKey::ALL {
        assert_eq!(sled.meta(key).expect("meta"), sim.meta(key).expect("meta"), "{key:?}");
    }
    for bytes_max in [1, 100_000, usize::MAX] {
        assert_eq!(
            sled.read(0..u64::MAX, bytes_max).expect("read"),
            sim.read(0..u64::MAX, bytes_max).expect("read")
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn sled_holds_what_the_model_holds(steps in prop::collection::vec(step(), 1..30)) {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("raft");
        let mut sled = SledDisk::create(&path, "test", 1).expect("a new log");
        let contents = SimContents::create("test", 1);
        let mut sim = contents.open();
        let mut log = Log { first: 0, next: 0, term: 1 };
        for step in &steps {
            let ops = log.ops(step);
            sled.stage(&ops).expect("stage");
            sim.stage(&ops).expect("stage");
            if matches!(step, Step::Reopen) {
                sled.sync().expect("sync");
                sim.sync().expect("sync");
                drop(sled);
                sled = SledDisk::open(&path).expect("open");
            }
            same(&*sled.reader(), &contents);
        }
        // The terms of this log are in order, so the open check has nothing to say but for the vote that is not there.
        let checked = check_log(&*sled.reader(), true);
        let text = format!("{checked:?}");
        prop_assert!(checked.is_ok() || text.contains("the vote is for term 0"), "{}", text);
    }
}
