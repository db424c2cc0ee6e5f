//! The frame of the files that hold a whole state: a head, a body in checksummed pieces, a hash over both.
//!
//! ```text
//! magic 8 | head length u32 | crc32c of head u32 | head (MessagePack)
//! frame:   length u32 (1 ..= 256 KiB) | crc32c u32 | bytes        ... as often as needed
//! trailer: 0 u32 | frames u64 | body bytes u64 | BLAKE3 of head and body, 32 bytes
//! ```

use std::io::{self, Read};

pub(crate) const FRAME_BYTES_MAX: usize = 256 << 10;
/// A membership of five coordinators needs less than a kilobyte.
const HEAD_BYTES_MAX: usize = 1 << 20;
/// Beyond the memory that a coordinator may use; a wrong length must not make it allocate.
pub(crate) const BODY_BYTES_MAX: u64 = 4 << 30;

pub(crate) type Magic = [u8; 8];

#[derive(Debug, thiserror::Error)]
pub(crate) enum FramesError {
    #[error("it ends early or cannot be read")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Damaged(String),
}

/// How many bytes [`pieces`] gives.
pub(crate) fn framed_bytes(head: &[u8], body: &[u8]) -> u64 {
    let frames = body.len().div_ceil(FRAME_BYTES_MAX);
    (16 + head.len() + 8 * frames + body.len() + 52) as u64
}

/// The bytes of the file, piece by piece; none is much longer than a frame.
pub(crate) fn pieces<'a>(magic: Magic, head: &'a [u8], body: &'a [u8]) -> impl Iterator<Item = Vec<u8>> + 'a {
    let frames = (0_usize..).step_by(FRAME_BYTES_MAX).take_while(|at| *at < body.len());
    let frames = frames.map(|at| frame(&body[at..body.len().min(at + FRAME_BYTES_MAX)]));
    std::iter::once_with(move || first(magic, head))
        .chain(frames)
        .chain(std::iter::once_with(move || last(head, body)))
}

fn first(magic: Magic, head: &[u8]) -> Vec<u8> {
    let mut piece = magic.to_vec();
    piece.extend((head.len() as u32).to_le_bytes());
    piece.extend(crc32c::crc32c(head).to_le_bytes());
    piece.extend(head);
    piece
}

pub(crate) fn frame(bytes: &[u8]) -> Vec<u8> {
    let mut piece = Vec::with_capacity(8 + bytes.len());
    piece.extend((bytes.len() as u32).to_le_bytes());
    piece.extend(crc32c::crc32c(bytes).to_le_bytes());
    piece.extend(bytes);
    piece
}

fn last(head: &[u8], body: &[u8]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head).update(body);
    let mut piece = 0_u32.to_le_bytes().to_vec();
    piece.extend((body.len().div_ceil(FRAME_BYTES_MAX) as u64).to_le_bytes());
    piece.extend((body.len() as u64).to_le_bytes());
    piece.extend(hasher.finalize().as_bytes());
    piece
}

fn damaged(reason: impl Into<String>) -> FramesError {
    FramesError::Damaged(reason.into())
}

fn u32_of(input: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes).map(|()| u32::from_le_bytes(bytes))
}

fn u64_of(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes).map(|()| u64::from_le_bytes(bytes))
}

/// The head's bytes, with their own checksum only.
pub(crate) fn read_head(input: &mut impl Read, expected: Magic) -> Result<Vec<u8>, FramesError> {
    let mut magic = [0; 8];
    input.read_exact(&mut magic)?;
    let len = u32_of(input)? as usize;
    let crc = u32_of(input)?;
    if magic != expected || len > HEAD_BYTES_MAX {
        return Err(damaged("its first bytes are wrong"));
    }
    let mut bytes = vec![0; len];
    input.read_exact(&mut bytes)?;
    if crc32c::crc32c(&bytes) != crc {
        return Err(damaged("the checksum of its head does not match"));
    }
    Ok(bytes)
}

/// What follows the head, all of it verified: every frame, the trailer, and that nothing follows.
///
/// # Errors
/// Nothing of a damaged file is handed out.
pub(crate) fn read_body(input: &mut impl Read, head: &[u8]) -> Result<Vec<u8>, FramesError> {
    let mut body = Vec::new();
    let mut frames = 0_u64;
    loop {
        let len = u32_of(input)? as usize;
        if len == 0 {
            break;
        }
        if len > FRAME_BYTES_MAX || (body.len() + len) as u64 > BODY_BYTES_MAX {
            return Err(damaged(format!("frame {frames} is too long")));
        }
        let crc = u32_of(input)?;
        let from = body.len();
        body.resize(from + len, 0);
        input.read_exact(&mut body[from..])?;
        if crc32c::crc32c(&body[from..]) != crc {
            return Err(damaged(format!("the checksum of frame {frames} does not match")));
        }
        frames += 1;
    }
    let (frames_said, bytes_said) = (u64_of(input)?, u64_of(input)?);
    let mut hash = [0; 32];
    input.read_exact(&mut hash)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(head).update(&body);
    if frames_said != frames
        || bytes_said != body.len() as u64
        || hasher.finalize() != blake3::Hash::from_bytes(hash)
    {
        return Err(damaged("its trailer does not match"));
    }
    if input.read(&mut [0])? != 0 {
        return Err(damaged("bytes follow its end"));
    }
    Ok(body)
}
