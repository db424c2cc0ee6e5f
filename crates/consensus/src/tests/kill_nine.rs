//! A real process, really killed: what it said was acknowledged is in its log.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use outlast_control::state::decode_batch;

use crate::disk::RaftDisk as _;
use crate::disk::sled::SledDisk;
use crate::testing::{TestConfig, barrier};
use crate::verify::verify_folder;

const FOLDER: &str = "OUTLAST_TEST_KILL_FOLDER";
const ROUND: &str = "OUTLAST_TEST_KILL_ROUND";
const ROUNDS: usize = 6;

/// Run as a child by the test below: proposes for ever and prints each request that was acknowledged.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of invariant_9_a_killed_process_has_lost_nothing_that_it_acknowledged"]
async fn child() {
    let (Ok(folder), Ok(round)) = (std::env::var(FOLDER), std::env::var(ROUND)) else { return };
    let config = TestConfig::new(folder.as_ref());
    let unused = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let node = match config.reopen(1, unused, None).await.expect("opens") {
        Some(node) => node,
        None => config.found(None).await.expect("founding"),
    };
    let mut leadership = node.consensus.leadership();
    leadership.wait_for(|now| now.is_self).await.expect("leads");
    for i in 0.. {
        let request = format!("k{round}-{i}");
        if node.consensus.propose(barrier(&request)).await.is_ok() {
            println!("acked {request}");
        }
    }
}

#[test]
fn invariant_9_a_killed_process_has_lost_nothing_that_it_acknowledged() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut acked = BTreeSet::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "tests::kill_nine::child", "--ignored", "--nocapture"])
            .env(FOLDER, dir.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a child");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut left = 20 + 17 * round;
        for line in output.lines().map_while(Result::ok) {
            let Some(request) = line.split("acked ").nth(1) else { continue };
            acked.insert(request.to_owned());
            // What was printed before the kill still counts.
            if left > 0 {
                left -= 1;
                if left == 0 {
                    child.kill().expect("killed");
                }
            }
        }
        child.wait().expect("reaped");
        assert_eq!(left, 0, "round {round} ended early");
    }
    let config = TestConfig::new(dir.path());
    verify_folder(&config.dir(1), true).expect("a good folder");
    let disk = SledDisk::open(&config.dir(1).join("raft")).expect("the log opens");
    let records = disk.reader().read(0..u64::MAX, usize::MAX).expect("the log reads");
    let batches = records.iter().filter(|record| record.payload[0] == 1);
    let envelopes = batches.flat_map(|record| decode_batch(&record.payload[1..]).expect("a batch"));
    let found: BTreeSet<_> =
        envelopes.filter_map(|envelope| envelope.request).map(|request| request.to_string()).collect();
    let missing: Vec<_> = acked.difference(&found).collect();
    assert!(missing.is_empty(), "lost {missing:?}");
}
