//! Changes to bytes, as a disk, a network or an enemy makes them.

use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Clone, Debug)]
pub(crate) enum Edit {
    Flip {
        at: Index,
        bit: u8,
    },
    Set {
        at: Index,
        byte: u8,
    },
    /// A length or a number that is far too much, in the forms that our formats use.
    Number {
        at: Index,
        which: u8,
    },
    Insert {
        at: Index,
        bytes: Vec<u8>,
    },
    /// A piece of the bytes again, somewhere else.
    Copy {
        from: Index,
        to: Index,
        len: u8,
    },
    Cut {
        at: Index,
    },
}

pub(crate) fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = any::<Index>;
    let edit = prop_oneof![
        3 => (at(), 0u8..8).prop_map(|(at, bit)| Edit::Flip { at, bit }),
        3 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Set { at, byte }),
        3 => (at(), any::<u8>()).prop_map(|(at, which)| Edit::Number { at, which }),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Edit::Insert { at, bytes }),
        2 => (at(), at(), any::<u8>()).prop_map(|(from, to, len)| Edit::Copy { from, to, len }),
        1 => at().prop_map(|at| Edit::Cut { at }),
    ];
    prop::collection::vec(edit, 1..6)
}

pub(crate) fn edited(seed: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for edit in edits {
        if bytes.is_empty() {
            return bytes;
        }
        apply(&mut bytes, edit);
    }
    bytes
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit) {
    let len = bytes.len();
    match edit {
        Edit::Flip { at, bit } => bytes[at.index(len)] ^= 1 << bit,
        Edit::Set { at, byte } => bytes[at.index(len)] = *byte,
        Edit::Number { at, which } => {
            let number = number(*which);
            let at = at.index(len);
            let end = len.min(at + number.len());
            bytes[at..end].copy_from_slice(&number[..end - at]);
        }
        Edit::Insert { at, bytes: more } => {
            let at = at.index(len);
            bytes.splice(at..at, more.iter().copied());
        }
        Edit::Copy { from, to, len: piece } => {
            let from = from.index(len);
            let piece = bytes[from..len.min(from + usize::from(*piece))].to_vec();
            let to = to.index(len);
            let end = len.min(to + piece.len());
            bytes.splice(to..end, piece);
        }
        Edit::Cut { at } => bytes.truncate(at.index(len)),
    }
}

/// Little endian and plain, protobuf, and MessagePack with its marker in front.
fn number(which: u8) -> Vec<u8> {
    let all: [&[u8]; 10] = [
        &[0xff; 4],
        &[0xff; 8],
        &[0, 0, 0, 0x7f],
        &[0; 8],
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0],
        &[0xc6, 0xff, 0xff, 0xff, 0xff],
        &[0xdd, 0xff, 0xff, 0xff, 0xff],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
    ];
    all[usize::from(which) % all.len()].to_vec()
}
