//! Packing: sorted names, no times, no owners; of the mode only the permission bits.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::{Meter, PackError, PackLimits, PackStats, link_stays_inside};

/// Of an archive.
const BLOCK_BYTES: usize = 512;
/// Copied at a time.
const COPY_BYTES: usize = 256 << 10;

/// Packs everything below `dir`.
///
/// # Errors
/// The first entry that cannot be packed, or the limit that it exceeds.
pub fn pack_dir(dir: &Path, out: &mut impl Write, limits: PackLimits) -> Result<PackStats, PackError> {
    let mut names = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(dir.join(&folder)).map_err(|err| io_error(&folder, err))? {
            let entry = entry.map_err(|err| io_error(&folder, err))?;
            let name = folder.join(entry.file_name());
            if names.len() as u64 >= limits.entries {
                return Err(PackError::TooMany { entry: text(&name), limit: limits.entries });
            }
            if entry.file_type().map_err(|err| io_error(&name, err))?.is_dir() {
                open.push(name.clone());
            }
            names.push(name);
        }
    }
    pack_files(dir, names, out, limits)
}

/// Packs the named entries of `dir` (paths relative to it; folders without their content), in an order of its own.
///
/// # Errors
/// The first entry that cannot be packed, or the limit that it exceeds.
pub fn pack_files(
    dir: &Path,
    mut names: Vec<PathBuf>,
    out: &mut impl Write,
    limits: PackLimits,
) -> Result<PackStats, PackError> {
    names.sort_unstable();
    names.dedup();
    let mut meter = Meter::new(limits);
    let mut builder = Builder::new(out);
    builder.sparse(false);
    for name in &names {
        append(&mut builder, dir, name, &mut meter)?;
    }
    builder.finish().map_err(|err| io_error(Path::new("."), err))?;
    Ok(meter.stats)
}

fn append(
    builder: &mut Builder<impl Write>,
    dir: &Path,
    name: &Path,
    meter: &mut Meter,
) -> Result<(), PackError> {
    let path = dir.join(name);
    let metadata = fs::symlink_metadata(&path).map_err(|err| io_error(name, err))?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        meter.count(&text(name), 0)?;
        let mut header = header(EntryType::Directory, &metadata, 0);
        return builder
            .append_data(&mut header, name.join(""), io::empty())
            .map_err(|err| io_error(name, err));
    }
    if kind.is_symlink() {
        meter.count(&text(name), 0)?;
        let target = fs::read_link(&path).map_err(|err| io_error(name, err))?;
        if !link_stays_inside(name.components().count() - 1, &target) {
            return Err(PackError::Escapes { entry: text(name) });
        }
        let mut header = header(EntryType::Symlink, &metadata, 0);
        return builder.append_link(&mut header, name, target).map_err(|err| io_error(name, err));
    }
    if !kind.is_file() {
        return Err(PackError::Kind {
            entry: text(name),
            kind: if kind.is_fifo() { "pipe" } else { "socket or device" },
        });
    }
    append_file(builder, &path, name, meter)
}

fn append_file(
    builder: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    meter: &mut Meter,
) -> Result<(), PackError> {
    const O_NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW)
        .open(path)
        .map_err(|err| io_error(name, err))?;
    let metadata = file.metadata().map_err(|err| io_error(name, err))?;
    meter.count(&text(name), metadata.len())?;
    let mut header = header(EntryType::Regular, &metadata, metadata.len());
    builder.append_data(&mut header, name, io::empty()).map_err(|err| io_error(name, err))?;
    copy_exactly(file, metadata.len(), builder.get_mut(), name)
}

/// The header says how long the file is, so exactly that many bytes must follow, and zeros to the end of a block. In
/// large pieces, which the archive's own writer does not do.
fn copy_exactly(mut file: File, size_bytes: u64, out: &mut impl Write, name: &Path) -> Result<(), PackError> {
    let mut buffer = vec![0; usize::try_from(size_bytes).map_or(COPY_BYTES, |size| size.min(COPY_BYTES))];
    let mut left = size_bytes;
    while left > 0 {
        let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        match file.read(&mut buffer[..wanted]) {
            Ok(0) => return Err(PackError::Changed { entry: text(name) }),
            Ok(count) => {
                out.write_all(&buffer[..count]).map_err(|err| io_error(name, err))?;
                left -= count as u64;
            }
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(io_error(name, err)),
        }
    }
    let padding = (size_bytes.next_multiple_of(BLOCK_BYTES as u64) - size_bytes) as usize;
    out.write_all(&[0; BLOCK_BYTES][..padding]).map_err(|err| io_error(name, err))
}

fn header(kind: EntryType, metadata: &Metadata, size_bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    // The mode of a link means nothing and differs between systems.
    header.set_mode(if kind.is_symlink() { 0o777 } else { metadata.permissions().mode() & 0o777 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size_bytes);
    header
}

fn text(name: &Path) -> String {
    name.to_string_lossy().into_owned()
}

fn io_error(name: &Path, source: io::Error) -> PackError {
    PackError::Io { entry: text(name), source }
}
