//! Files of the blob stores, of slots and of logs, edited under the program that reads them.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use outlast_blobs::{BundleStore, PackLimits, ShardKey, ShardStore, pack_dir, unpack};
use outlast_staging::{Note, SlotHeader, SlotState};
use outlast_types::AttemptId;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::edit::{Edit, edited, edits};

const SMALL_EXTENT_BYTES: u64 = 1 << 14;

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut all: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    all.sort();
    all.into_iter().flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// A name of four bytes of CRC-32C behind everything else: made to fit, so that the fields behind it are read.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len().saturating_sub(4);
    let crc = crc32c::crc32c(&bytes[..body]).to_le_bytes();
    let tail = bytes.len() - body;
    bytes[body..].copy_from_slice(&crc[4 - tail..]);
    bytes
}

/// Whatever is done to its files, a store opens, and a shard's bytes are the right ones or none.
fn check_store(which: &Index, edits: &[Edit], fits_crc: bool) -> Result<(), TestCaseError> {
    let tmp = tempfile::tempdir().expect("a folder");
    let store = ShardStore::open_with_extents(tmp.path(), SMALL_EXTENT_BYTES).expect("opens");
    let attempt: AttemptId = "j12/0@1.3".parse().expect("valid");
    let key = ShardKey { job: attempt.group.job, attempt, seq: "ck7".parse().expect("valid"), rank: 0 };
    let content: Vec<u8> = (0..3 * SMALL_EXTENT_BYTES as usize + 100).map(|at| (at * 7) as u8).collect();
    let mut writer = store.begin(None).expect("begins");
    std::io::Write::write_all(&mut writer, &content).expect("written");
    let meta = writer.finish(&key).expect("finished");
    drop(store);
    let files = files_below(&tmp.path().join("blobs"));
    let path = which.get(&files);
    let bytes = edited(&fs::read(path).expect("there"), edits);
    let is_outboard = path.extension().is_some_and(|end| end == "ext");
    fs::write(path, if is_outboard && fits_crc { sealed(bytes) } else { bytes }).expect("written");
    let store = ShardStore::open_with_extents(tmp.path(), SMALL_EXTENT_BYTES).expect("opens all the same");
    store.list();
    if let Ok(mut reader) = store.open_shard(&key, meta.root) {
        let mut read = Vec::new();
        if reader.read_to_end(&mut read).is_ok() {
            prop_assert_eq!(&read, &content, "wrong bytes were handed out");
        } else {
            prop_assert!(content.starts_with(&read), "wrong bytes were handed out before the error");
        }
    }
    Ok(())
}

fn archive() -> Vec<u8> {
    let tmp = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(tmp.path().join("a/b")).expect("made");
    fs::write(tmp.path().join("a/b/c"), b"content").expect("written");
    fs::write(tmp.path().join("d"), vec![1; 3_000]).expect("written");
    let mut bytes = Vec::new();
    pack_dir(tmp.path(), &mut bytes, PackLimits::default()).expect("packed");
    bytes
}

/// The checksum of a tar header is the sum of its bytes, with spaces in its own place.
fn with_tar_sums(mut bytes: Vec<u8>) -> Vec<u8> {
    for block in bytes.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4 + 1, ..ProptestConfig::default() })]

    #[test]
    fn shards(which in any::<Index>(), edits in edits(), fits_crc in any::<bool>()) {
        check_store(&which, &edits, fits_crc)?;
    }

    #[test]
    fn archives_stay_in_their_folder(edits in edits(), fits_sum in any::<bool>()) {
        let bytes = edited(&archive(), &edits);
        let bytes = if fits_sum { with_tar_sums(bytes) } else { bytes };
        let tmp = tempfile::tempdir().expect("a folder");
        let dest = tmp.path().join("inside");
        fs::create_dir(&dest).expect("made");
        let limits = PackLimits { total_bytes: 1 << 20, entry_bytes: 1 << 20, entries: 100 };
        let _ = unpack(bytes.as_slice(), &dest, limits);
        let outside: Vec<_> = fs::read_dir(tmp.path()).expect("there").flatten().map(|entry| entry.path()).collect();
        prop_assert_eq!(outside, vec![dest]);
    }

    #[test]
    fn bundles(edits in edits()) {
        let tmp = tempfile::tempdir().expect("a folder");
        let store = BundleStore::open(tmp.path()).expect("opens");
        let content = vec![5; 9_000];
        let (digest, _) = store.put(content.as_slice(), None, 1 << 20).expect("put");
        let path = files_below(tmp.path()).into_iter().find(|path| path.metadata().is_ok_and(|meta| meta.len() == 9_000));
        let path = path.expect("one file has the bytes");
        let bytes = edited(&content, &edits);
        fs::write(&path, &bytes).expect("written");
        let read = store.open_bundle(&digest).ok().and_then(|mut reader| {
            let mut read = Vec::new();
            reader.read_to_end(&mut read).ok()?;
            Some(read)
        });
        match read {
            Some(read) => prop_assert_eq!(read, content),
            None => prop_assert!(bytes != content, "good bytes were refused"),
        }
    }

    #[test]
    fn slots(edits in edits(), fits_crc in any::<bool>()) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let slot = File::options().read(true).write(true).open(file.path()).expect("opens");
        slot.set_len(8_192).expect("sized");
        let attempt = "j12/0@1.3".parse().expect("valid");
        let header = SlotHeader { state: SlotState::Staged, step: 7, sequence: 8, length: 9, attempt };
        header.write(&slot).expect("written");
        Note { step: 7, seq: "ck7".parse().expect("valid") }.write(&slot).expect("written");
        let whole = fs::read(file.path()).expect("there");
        let used = whole.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let mut bytes = edited(&whole[..used], &edits);
        // The header's checksum stands at the end of its first part, whose length the writer knows.
        if let Some(end) = header_end(&whole).filter(|end| fits_crc && bytes.len() >= *end) {
            let head = sealed(bytes[..end].to_vec());
            bytes[..end].copy_from_slice(&head);
        }
        bytes.resize(whole.len(), 0);
        fs::write(file.path(), &bytes).expect("written");
        let _ = SlotHeader::read(&slot).map_err(|err| err.to_string());
        let _ = Note::read(&slot);
    }
}

/// Where the four bytes end that are the checksum of all before them.
fn header_end(bytes: &[u8]) -> Option<usize> {
    (8..2_048).find(|end| crc32c::crc32c(&bytes[..end - 4]).to_le_bytes() == bytes[end - 4..*end])
}
