//! The bytes of a segment: a header, then frames.
//!
//! ```text
//!  segment header  "OUTLOG" 0 version(u8)  first_seq u64                          16 bytes, little endian throughout
//!  frame           len u32  crc32c u32  seq u64  ts_ns u64  stream u8  flags u8   26 bytes, then len bytes
//! ```
//! The CRC covers everything of the frame behind it and the length before it, so no flipped bit goes unseen.

/// Lines longer than this are split into partial frames and a last full one.
pub(crate) const LINE_BYTES_MAX: usize = 16 << 10;
/// A damaged length must not make a reader wait for gigabytes.
const FRAME_BYTES_MAX: usize = 64 << 10;
pub(super) const FRAME_HEADER_BYTES: usize = 26;
pub(super) const SEGMENT_HEADER_BYTES: usize = 16;
const MAGIC: [u8; 7] = *b"OUTLOG\0";
const VERSION: u8 = 1;
const FLAG_PARTIAL: u8 = 1;

/// Where a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum LogStream {
    Stdout = 1,
    Stderr = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) seq: u64,
    pub(super) ts_ns: u64,
    pub(super) stream: LogStream,
    pub(super) partial: bool,
    pub(super) bytes: &'a [u8],
}

/// What the front of some bytes is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed<'a> {
    /// A frame, and how many bytes it takes.
    Frame(Frame<'a>, usize),
    /// Not all of it is there (yet).
    Short,
    Damaged,
}

pub(super) fn segment_header(first_seq: u64) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    header[..7].copy_from_slice(&MAGIC);
    header[7] = VERSION;
    header[8..].copy_from_slice(&first_seq.to_le_bytes());
    header
}

/// The first seq of a segment; `None` where the header is not one of this version.
pub(super) fn parse_segment_header(bytes: &[u8]) -> Option<u64> {
    let header = bytes.get(..SEGMENT_HEADER_BYTES)?;
    (header[..7] == MAGIC && header[7] == VERSION).then(|| u64_at(header, 8))
}

pub(super) fn encode(frame: &Frame<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    let len = u32::try_from(frame.bytes.len()).expect("lines are split far below 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&frame.seq.to_le_bytes());
    out.extend_from_slice(&frame.ts_ns.to_le_bytes());
    out.push(frame.stream as u8);
    out.push(if frame.partial { FLAG_PARTIAL } else { 0 });
    out.extend_from_slice(frame.bytes);
    let crc = checksum(&out[start..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

pub(super) fn parse(bytes: &[u8]) -> Parsed<'_> {
    if bytes.len() < FRAME_HEADER_BYTES {
        return Parsed::Short;
    }
    let len = u32_at(bytes, 0) as usize;
    if len > FRAME_BYTES_MAX {
        return Parsed::Damaged;
    }
    let Some(frame) = bytes.get(..FRAME_HEADER_BYTES + len) else { return Parsed::Short };
    let stream = match frame[24] {
        1 => LogStream::Stdout,
        2 => LogStream::Stderr,
        _ => return Parsed::Damaged,
    };
    if checksum(frame) != u32_at(frame, 4) {
        return Parsed::Damaged;
    }
    let parsed = Frame {
        seq: u64_at(frame, 8),
        ts_ns: u64_at(frame, 16),
        stream,
        partial: frame[25] & FLAG_PARTIAL != 0,
        bytes: &frame[FRAME_HEADER_BYTES..],
    };
    Parsed::Frame(parsed, frame.len())
}

fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..4]), &frame[8..])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_single_flipped_bit_of_a_frame_is_seen() {
        let frame = Frame { seq: 9, ts_ns: 7, stream: LogStream::Stderr, partial: true, bytes: b"hello" };
        let mut bytes = Vec::new();
        encode(&frame, &mut bytes);
        assert_eq!(parse(&bytes), Parsed::Frame(frame, bytes.len()));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(parse(&bytes), Parsed::Frame(..)), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(parse(&bytes[..bytes.len() - 1]), Parsed::Short);
    }
}
