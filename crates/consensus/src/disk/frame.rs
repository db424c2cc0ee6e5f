//! The bytes of a stored value. Every engine stores the same ones.
//!
//! ```text
//! key    0x01 | index u64 BE | part u16 BE
//! value  version u8 | crc32c u32 | length u32 | term u64 | leader u64 | parts u16 | payload
//!
//! key    0x00 | name
//! value  version u8 | crc32c u32 | payload
//! ```
//! The CRC covers the key and everything after the CRC, so a value that turns up under another key is caught too. A
//! payload is cut into parts of at most 4 KiB, because sled moves pages of more than 128 KiB out of its log into blob files,
//! which it never syncs, and it splits a page by the number of its values (16), not by their size. `leader` is zero: with one leader a term the term says it all; the field is there for engines and tools that
//! will want it.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{LogMark, MetaKey, Record};

const VERSION: u8 = 1;
/// A page with more than 16 values is split when it is next visited; by then it may have got those of a neighbour that was
/// merged into it. Thirty values of this size still fit into a page that stays in the log.
const PART_BYTES_MAX: usize = 4 << 10;
const RECORD_HEAD: usize = 1 + 4 + 4 + 8 + 8 + 2;
const META_HEAD: usize = 1 + 4;
const RECORD_PREFIX: u8 = 1;
const META_PREFIX: u8 = 0;
const CRC_END: usize = 5;

pub(crate) fn damaged(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

pub(crate) fn record_key(index: u64, part: u16) -> [u8; 11] {
    let mut key = [0; 11];
    key[0] = RECORD_PREFIX;
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9..].copy_from_slice(&part.to_be_bytes());
    key
}

/// The index and part of a record's key; `None` for other keys.
pub(crate) fn parse_record_key(key: &[u8]) -> Option<(u64, u16)> {
    let (&RECORD_PREFIX, rest) = key.split_first()? else { return None };
    let index = u64::from_be_bytes(rest.get(..8)?.try_into().ok()?);
    Some((index, u16::from_be_bytes(rest.get(8..)?.try_into().ok()?)))
}

pub(crate) fn meta_key(key: MetaKey) -> Vec<u8> {
    [&[META_PREFIX], key.name().as_bytes()].concat()
}

fn crc(key: &[u8], covered: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), covered)
}

fn sealed(key: &[u8], mut value: BytesMut) -> Vec<u8> {
    let crc = crc(key, &value[CRC_END..]);
    value[1..CRC_END].copy_from_slice(&crc.to_le_bytes());
    value.to_vec()
}

fn checked<'a>(key: &[u8], value: &'a [u8], head: usize) -> io::Result<&'a [u8]> {
    if value.len() < head {
        return Err(damaged(format!("a value of {} bytes is too short", value.len())));
    }
    if value[0] != VERSION {
        return Err(damaged(format!("format version {}; this build reads {VERSION}", value[0])));
    }
    let stored = u32::from_le_bytes(value[1..CRC_END].try_into().expect("four bytes"));
    if stored != crc(key, &value[CRC_END..]) {
        return Err(damaged("the checksum does not match"));
    }
    Ok(&value[CRC_END..])
}

/// The key-value pairs that hold a record.
pub(crate) fn encode_record(record: &Record) -> Vec<([u8; 11], Vec<u8>)> {
    let chunk = PART_BYTES_MAX - RECORD_HEAD;
    let parts = record.payload.len().div_ceil(chunk).max(1);
    let one = |part: usize| {
        let from = part * chunk;
        let payload = &record.payload[from..(from + chunk).min(record.payload.len())];
        let key = record_key(record.mark.index, part as u16);
        let mut value = BytesMut::with_capacity(RECORD_HEAD + payload.len());
        value.put_u8(VERSION);
        value.put_u32_le(0);
        value.put_u32_le(payload.len() as u32);
        value.put_u64_le(record.mark.term);
        value.put_u64_le(0);
        value.put_u16_le(parts as u16);
        value.put_slice(payload);
        (key, sealed(&key, value))
    };
    (0..parts).map(one).collect()
}

/// One part of a record, checked.
pub(crate) struct Part<'a> {
    pub(crate) term: u64,
    pub(crate) parts: u16,
    pub(crate) payload: &'a [u8],
}

/// # Errors
/// `InvalidData` when the value fails a check.
pub(crate) fn decode_part<'a>(key: &[u8], value: &'a [u8]) -> io::Result<Part<'a>> {
    let body = checked(key, value, RECORD_HEAD)?;
    let len = u32::from_le_bytes(body[..4].try_into().expect("four bytes")) as usize;
    let term = u64::from_le_bytes(body[4..12].try_into().expect("eight bytes"));
    let parts = u16::from_le_bytes(body[20..22].try_into().expect("two bytes"));
    let payload = &body[22..];
    if payload.len() != len || parts == 0 {
        return Err(damaged("the length does not match"));
    }
    Ok(Part { term, parts, payload })
}

/// Puts the parts of one record together again, in the order of their keys.
pub(crate) struct Assembly {
    mark: LogMark,
    parts: u16,
    next: u16,
    payload: BytesMut,
}

impl Assembly {
    pub(crate) fn start(index: u64, part: &Part<'_>) -> Self {
        let mark = LogMark { term: part.term, index };
        Self { mark, parts: part.parts, next: 0, payload: BytesMut::with_capacity(part.payload.len()) }
    }

    /// # Errors
    /// `InvalidData` when the part is not the next one of this record.
    pub(crate) fn push(&mut self, number: u16, part: &Part<'_>) -> io::Result<()> {
        if number != self.next || part.parts != self.parts || part.term != self.mark.term {
            return Err(damaged(format!(
                "part {number} of record {} does not belong there",
                self.mark.index
            )));
        }
        self.next += 1;
        self.payload.put_slice(part.payload);
        Ok(())
    }

    pub(crate) fn finished(&mut self) -> Option<Record> {
        (self.next == self.parts)
            .then(|| Record { mark: self.mark, payload: Bytes::from(std::mem::take(&mut self.payload)) })
    }
}

pub(crate) fn encode_meta(key: MetaKey, payload: &[u8]) -> Vec<u8> {
    let mut value = BytesMut::with_capacity(META_HEAD + payload.len());
    value.put_u8(VERSION);
    value.put_u32_le(0);
    value.put_slice(payload);
    sealed(&meta_key(key), value)
}

/// # Errors
/// `InvalidData` when the value fails a check.
pub(crate) fn decode_meta(key: MetaKey, value: &[u8]) -> io::Result<Vec<u8>> {
    checked(&meta_key(key), value, META_HEAD).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_record_is_cut_and_put_together_and_any_flipped_bit_is_caught() {
        let payload: Vec<u8> = (0..200_000_u32).map(|i| i as u8).collect();
        let record = Record { mark: LogMark { term: 7, index: 9 }, payload: payload.into() };
        let parts = encode_record(&record);
        assert_eq!(parts.len(), 50);
        assert!(parts.iter().all(|(_, value)| value.len() <= PART_BYTES_MAX));
        let first = decode_part(&parts[0].0, &parts[0].1).expect("good");
        let mut assembly = Assembly::start(9, &first);
        for (number, (key, value)) in parts.iter().enumerate() {
            assembly.push(number as u16, &decode_part(key, value).expect("good")).expect("in order");
        }
        assert_eq!(assembly.finished(), Some(record));
        for at in (0..parts[3].1.len()).step_by(97) {
            let mut bad = parts[3].1.clone();
            bad[at] ^= 0x10;
            assert!(decode_part(&parts[3].0, &bad).is_err(), "byte {at}");
        }
        assert!(decode_part(&parts[2].0, &parts[3].1).is_err(), "a value under another's key is caught");
    }
}
