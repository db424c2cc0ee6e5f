//! Writer and reader together: following, gaps, torn tails, damage.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn lines(range: std::ops::Range<u64>) -> Vec<Line> {
    range
        .map(|n| Line {
            ts_ns: n,
            partial: false,
            bytes: format!("line {n} {}", "x".repeat(1000)).into_bytes(),
        })
        .collect()
}

fn writer(dir: &Path, segments_max: u32) -> LogWriter {
    LogWriter::create(&dir.join("log"), 64 << 10, segments_max).expect("a writer")
}

/// Ascending, complete together with what is reported as missing, and never past `last`.
fn check(read: &[LogLine], from: u64, last: u64) {
    let mut next = from;
    for line in read {
        assert_eq!(line.seq, next + line.missed);
        assert!(line.bytes.starts_with(format!("line {} ", line.seq - 1).as_bytes()) && line.seq <= last);
        next = line.seq + 1;
    }
}

#[test]
fn a_reader_follows_across_segments_and_resumes_anywhere() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut reader = LogReader::open(dir.path(), 0);
    assert_eq!(reader.next(), None);
    let mut writer = writer(dir.path(), 16);
    let mut read = Vec::new();
    for start in (0..400).step_by(20) {
        writer.append(LogStream::Stdout, &lines(start..start + 20));
        read.extend(reader.by_ref());
    }
    assert!(segments(&dir.path().join("log")).len() > 4);
    assert!(read.len() == 400 && read.iter().all(|line| line.missed == 0));
    check(&read, 1, 400);
    for from in [1, 2, 63, 64, 65, 200, 400] {
        let read: Vec<_> = LogReader::open(dir.path(), from).collect();
        assert_eq!((read.len() as u64, read[0].seq, read[0].missed), (401 - from, from, 0));
    }
    assert_eq!(LogReader::open(dir.path(), 401).next(), None);
}

#[test]
fn dropped_segments_show_as_missing_lines() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut writer = writer(dir.path(), 3);
    let mut reader = LogReader::open(dir.path(), 1);
    writer.append(LogStream::Stderr, &lines(0..10));
    assert_eq!(reader.by_ref().count(), 10);
    (0..100).for_each(|n| writer.append(LogStream::Stderr, &lines(10 + n * 10..20 + n * 10)));
    assert!(segments(&dir.path().join("log")).len() <= 3);
    let read: Vec<_> = reader.collect();
    assert!(read.iter().map(|line| line.missed).sum::<u64>() > 0);
    assert_eq!(read.last().map(|line| line.seq), Some(1010));
    check(&read, 11, 1010);
}

#[test]
fn a_torn_tail_is_the_end_until_the_rest_arrives() {
    let dir = tempfile::tempdir().expect("a folder");
    writer(dir.path(), 3).append(LogStream::Stdout, &lines(0..3));
    let path = segment_path(&dir.path().join("log"), 1);
    let whole = fs::read(&path).expect("bytes");
    for cut in (0..60).chain((60..whole.len()).step_by(97)) {
        fs::write(&path, &whole[..cut]).expect("cut");
        let mut reader = LogReader::open(dir.path(), 1);
        let before = reader.by_ref().count();
        assert!(before < 3);
        fs::write(&path, &whole).expect("whole");
        assert_eq!(before + reader.count(), 3, "cut at {cut}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damage_costs_lines_but_never_order_nor_a_panic(flips in proptest::collection::vec((0usize..4, any::<u32>(), any::<u8>()), 1..6)) {
        let dir = tempfile::tempdir().expect("a folder");
        let mut writer = writer(dir.path(), 16);
        (0..20).for_each(|n| writer.append(LogStream::Stdout, &lines(n * 10..n * 10 + 10)));
        let folder = dir.path().join("log");
        let numbers = segments(&folder);
        for (segment, at, byte) in flips {
            let path = segment_path(&folder, numbers[segment % numbers.len()]);
            let mut bytes = fs::read(&path).expect("bytes");
            let at = at as usize % bytes.len();
            bytes[at] = byte;
            fs::write(&path, bytes).expect("written");
        }
        check(&LogReader::open(dir.path(), 1).collect::<Vec<_>>(), 1, 200);
    }

    #[test]
    fn any_bytes_at_all_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), headed in any::<bool>()) {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("log")).expect("a folder");
        let mut content = if headed { frame::segment_header(1).to_vec() } else { Vec::new() };
        content.extend(bytes);
        fs::write(segment_path(&dir.path().join("log"), 1), content).expect("written");
        let _ = LogReader::open(dir.path(), 1).count();
    }
}
