//! Unpacking what somebody else has packed: nothing in it is believed.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Entry, EntryType};

use super::{Meter, PackError, PackLimits, PackStats, link_stays_inside};

/// Archive bytes that an entry may take besides its content: header, long name, padding.
const OVERHEAD_BYTES: u64 = 8 << 10;

/// Written at a time.
const COPY_BYTES: usize = 1 << 20;

/// Unpacks into `dest`, which is made, and must be empty where it exists. Refused are paths that leave the folder (also
/// through links), links that point out of it, hard links, devices, pipes, names that come twice, and anything beyond the
/// limits. Owners and times are not taken over; of the modes the permission bits are.
///
/// # Errors
/// The first entry that is refused. What was unpacked before it stays for the caller to remove.
pub fn unpack(reader: impl Read, dest: &Path, limits: PackLimits) -> Result<PackStats, PackError> {
    let io = |source| PackError::Io { entry: ".".to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dest).map_err(io)?;
    if fs::read_dir(dest).map_err(io)?.next().is_some() {
        return Err(io(io::Error::new(
            io::ErrorKind::DirectoryNotEmpty,
            "the folder to unpack into is not empty",
        )));
    }
    // Also what is not content is bounded: names and headers are read into memory before anything can look at them.
    let overhead = limits.entries.saturating_add(2).saturating_mul(OVERHEAD_BYTES);
    let mut archive = Archive::new(reader.take(limits.total_bytes.saturating_add(overhead)));
    let mut meter = Meter::new(limits);
    let mut folder_modes = Vec::new();
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        place(&mut entry, dest, &mut meter, &mut folder_modes)?;
    }
    // Last and inside out, or a folder without write permission could not be filled.
    for (path, mode) in folder_modes.into_iter().rev() {
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(io)?;
    }
    Ok(meter.stats)
}

fn place(
    entry: &mut Entry<'_, impl Read>,
    dest: &Path,
    meter: &mut Meter,
    folder_modes: &mut Vec<(PathBuf, u32)>,
) -> Result<(), PackError> {
    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let io = |source| PackError::Io { entry: name.clone(), source };
    let kind = entry.header().entry_type();
    if kind == EntryType::XGlobalHeader {
        return Ok(());
    }
    meter.count(&name, if kind.is_file() { entry.size() } else { 0 })?;
    let relative = inside(&entry.path().map_err(damaged)?, &name)?;
    let mode = entry.header().mode().map_err(damaged)? & 0o777;
    let path = dest.join(&relative);
    make_parents(dest, &relative, &name)?;
    match kind {
        // The folder itself; its mode is the receiver's choice.
        EntryType::Directory if relative.as_os_str().is_empty() => {}
        EntryType::Directory => {
            make_dir(&path, &name)?;
            folder_modes.push((path, mode | 0o700));
        }
        EntryType::Regular | EntryType::Continuous => {
            // create_new follows no link and overwrites nothing.
            let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let file = opened.map_err(|err| twice_or(&name, err))?;
            let buffer_bytes = usize::try_from(entry.size()).map_or(COPY_BYTES, |size| size.min(COPY_BYTES));
            // `io::copy` reads straight into the buffer of its writer.
            let mut out = BufWriter::with_capacity(buffer_bytes, file);
            let count = io::copy(entry, &mut out).map_err(io)?;
            let file = out.into_inner().map_err(|err| io(err.into_error()))?;
            if count != entry.size() {
                return Err(damaged(io::ErrorKind::UnexpectedEof.into()));
            }
            file.set_permissions(Permissions::from_mode(mode)).map_err(io)?;
        }
        EntryType::Symlink => {
            let target = entry.link_name().map_err(damaged)?.unwrap_or_default();
            if !link_stays_inside(relative.components().count().saturating_sub(1), &target) {
                return Err(PackError::Escapes { entry: name });
            }
            symlink(&target, &path).map_err(|err| twice_or(&name, err))?;
        }
        other => return Err(PackError::Kind { entry: name, kind: kind_name(other) }),
    }
    Ok(())
}

/// The path without `.`; refused where it could lead anywhere but down.
fn inside(path: &Path, name: &str) -> Result<PathBuf, PackError> {
    let mut relative = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => relative.push(part),
            Component::CurDir => {}
            _ => return Err(PackError::Escapes { entry: name.to_owned() }),
        }
    }
    Ok(relative)
}

/// Makes the folders above an entry. Each must be a real folder: through a link, an entry could land elsewhere.
fn make_parents(dest: &Path, relative: &Path, name: &str) -> Result<(), PackError> {
    let mut path = dest.to_owned();
    for part in relative.parent().unwrap_or(Path::new("")).components() {
        path.push(part);
        make_dir(&path, name)?;
    }
    Ok(())
}

fn make_dir(path: &Path, name: &str) -> Result<(), PackError> {
    let io = |source| PackError::Io { entry: name.to_owned(), source };
    match DirBuilder::new().mode(0o700).create(path) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(path).map_err(io)?;
            if found.is_dir() { Ok(()) } else { Err(PackError::Escapes { entry: name.to_owned() }) }
        }
        other => other.map_err(io),
    }
}

fn twice_or(name: &str, source: io::Error) -> PackError {
    let entry = name.to_owned();
    if source.kind() == io::ErrorKind::AlreadyExists {
        PackError::Twice { entry }
    } else {
        PackError::Io { entry, source }
    }
}

fn damaged(source: io::Error) -> PackError {
    PackError::Damaged { source }
}

fn kind_name(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Link => "hard link",
        EntryType::Fifo => "pipe",
        EntryType::Char | EntryType::Block => "device",
        _ => "special entry",
    }
}
