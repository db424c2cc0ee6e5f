//! Staged parts against the packer of folders: the same names and bytes are the same archive.

use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};

use outlast_blobs::{PackLimits, pack_dir, unpack};
use outlast_staging::{DATA_AT, MappedSlot, Parts};

#[test]
fn parts_are_packed_as_a_folder_with_the_same_files() {
    // Several threads copy it.
    let big: Vec<u8> = (0..20_000_001u64).map(|n| (n.wrapping_mul(2_654_435_761) >> 9) as u8).collect();
    let long = "n".repeat(outlast_staging::PART_NAME_BYTES_MAX);
    let given: [(&str, &[u8]); 5] =
        [("weights", &big), ("empty", b""), ("B", b"b"), ("whole", &[1; 512]), (&long, b"x")];
    let tmp = tempfile::tempdir().expect("a folder");
    let dir = tmp.path().join("dir");
    std::fs::create_dir(&dir).expect("made");
    for (name, bytes) in given {
        std::fs::write(dir.join(name), bytes).expect("written");
        std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(0o644)).expect("set");
    }
    let mut folder = Vec::new();
    pack_dir(&dir, &mut folder, PackLimits::CHECKPOINT).expect("packed");

    let parts = Parts::new(&given).expect("good names");
    let mut staged = vec![0; parts.packed_bytes() as usize];
    for is_mapped in [false, true] {
        let slot = tempfile::tempfile_in("/dev/shm").expect("a file in shared memory");
        // What an earlier checkpoint left in the slot must not show through.
        slot.write_all_at(&vec![0xff; 20_200_000], 0).expect("written");
        if is_mapped {
            let mut mapped = MappedSlot::new(&slot).expect("mapped");
            mapped.write_at(&parts, DATA_AT).expect("room");
        } else {
            parts.write_at(&slot, DATA_AT).expect("written");
        }
        slot.read_exact_at(&mut staged, DATA_AT).expect("read");
        assert!(staged == folder, "the bytes differ (mapped: {is_mapped})");
        let mut beside = [0];
        slot.read_exact_at(&mut beside, DATA_AT + staged.len() as u64).expect("read");
        assert_eq!(beside, [0xff], "beyond its end");
    }
    let back = tmp.path().join("back");
    unpack(staged.as_slice().take(u64::MAX), &back, PackLimits::CHECKPOINT).expect("unpacked");
    assert_eq!(std::fs::read(back.join("weights")).expect("there"), big);
}
