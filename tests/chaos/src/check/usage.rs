//! Memory and descriptors are back to normal after the faults (invariant 51).

use std::collections::BTreeMap;

use super::Verdict;
use crate::history::{Record, Usage, What};

/// Connections to peers, clients and keepers come and go; a leak in a run of minutes is many times this.
const DESCRIPTORS_MORE: u64 = 64;
/// The applied state and the ring of events grow with the jobs of the run; twice the memory and this is allowed.
const MEMORY_MORE_KIB: u64 = 64 << 10;

pub(super) fn check(records: &[Record]) -> Verdict {
    let mut verdict =
        Verdict::new("usage", "memory and descriptors of every daemon are back to normal at the end");
    let mut before: BTreeMap<&str, &Usage> = BTreeMap::new();
    for record in records {
        let What::Usage(usage) = &record.what else { continue };
        if usage.before {
            before.insert(&usage.daemon, usage);
            continue;
        }
        let Some(first) = before.get(usage.daemon.as_str()) else { continue };
        let (now, then) = (usage.descriptors, first.descriptors);
        verdict.check(now <= then + DESCRIPTORS_MORE, || {
            format!("{} has {now} descriptors open; it began with {then}", usage.daemon)
        });
        let (now, then) = (usage.rss_kib, first.rss_kib);
        verdict.check(now <= then * 2 + MEMORY_MORE_KIB, || {
            format!("{} uses {now} KiB; it began with {then}", usage.daemon)
        });
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::testing::record;
    use super::*;

    #[test]
    fn a_leak_of_memory_or_descriptors_is_found() {
        let usage = |before, rss_kib, descriptors| {
            record(1, What::Usage(Usage { daemon: "c1".to_owned(), before, rss_kib, descriptors }))
        };
        let wrong = |rss, fds| check(&[usage(true, 40_000, 30), usage(false, rss, fds)]).violations.len();
        assert_eq!((wrong(60_000, 50), wrong(900_000, 30), wrong(40_000, 300)), (0, 1, 1));
    }
}
