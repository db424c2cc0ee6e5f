//! A folder as one archive and back: the same folder always gives the same bytes, and no archive can write outside the
//! folder that it is unpacked into.

mod read;
mod write;

use std::io;

pub use read::unpack;
pub use write::{pack_dir, pack_files};

/// What an archive may hold at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackLimits {
    /// All files together.
    pub total_bytes: u64,
    /// One file.
    pub entry_bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
}

impl PackLimits {
    /// A job's bundle. 100,000 entries is far more than a source tree and far less than a data set.
    pub const BUNDLE: Self = Self { total_bytes: 256 << 20, entry_bytes: 256 << 20, entries: 100_000 };
    /// What a bundle may weigh as an archive: content, and for each entry a header and padding (1 KiB) and some long
    /// names. So whatever may be packed may be sent and stored.
    pub const BUNDLE_ARCHIVE_BYTES: u64 = Self::BUNDLE.total_bytes + (128 << 20);
    /// One rank's checkpoint as a folder: bounded by the disk long before this.
    pub const CHECKPOINT: Self = Self { total_bytes: 16 << 40, entry_bytes: 16 << 40, entries: 1_000_000 };
}

impl Default for PackLimits {
    /// Those of a bundle.
    fn default() -> Self {
        Self::BUNDLE
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PackStats {
    pub entries: u64,
    pub total_bytes: u64,
}

/// Why a folder could not be packed or unpacked. Every entry is named as it is in the archive.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("{entry:?} leads out of the folder")]
    Escapes { entry: String },
    #[error("{entry:?} is a {kind}; only files, folders and symbolic links can be packed")]
    Kind { entry: String, kind: &'static str },
    #[error("{entry:?} is in the archive twice")]
    Twice { entry: String },
    #[error("{entry:?} has {size_bytes} bytes; one file may have {limit_bytes}")]
    EntryTooLarge { entry: String, size_bytes: u64, limit_bytes: u64 },
    #[error("at {entry:?} the files exceed {limit_bytes} bytes together")]
    TooLarge { entry: String, limit_bytes: u64 },
    #[error("at {entry:?} there are more than {limit} entries")]
    TooMany { entry: String, limit: u64 },
    #[error("{entry:?} changed while it was packed")]
    Changed { entry: String },
    #[error("the archive is damaged or ends too early")]
    Damaged {
        #[source]
        source: io::Error,
    },
    #[error("{entry:?} could not be read or written")]
    Io {
        entry: String,
        #[source]
        source: io::Error,
    },
}

/// Counts entries and bytes against the limits.
struct Meter {
    limits: PackLimits,
    stats: PackStats,
}

impl Meter {
    fn new(limits: PackLimits) -> Self {
        Self { limits, stats: PackStats::default() }
    }

    fn count(&mut self, entry: &str, size_bytes: u64) -> Result<(), PackError> {
        let entry = || entry.to_owned();
        self.stats.entries += 1;
        if self.stats.entries > self.limits.entries {
            return Err(PackError::TooMany { entry: entry(), limit: self.limits.entries });
        }
        if size_bytes > self.limits.entry_bytes {
            return Err(PackError::EntryTooLarge {
                entry: entry(),
                size_bytes,
                limit_bytes: self.limits.entry_bytes,
            });
        }
        self.stats.total_bytes = self.stats.total_bytes.saturating_add(size_bytes);
        if self.stats.total_bytes > self.limits.total_bytes {
            return Err(PackError::TooLarge { entry: entry(), limit_bytes: self.limits.total_bytes });
        }
        Ok(())
    }
}

/// Whether a link at `depth` folders below the root stays inside. `..` only in front: behind a name it could step out
/// of wherever another link leads.
fn link_stays_inside(depth: usize, target: &std::path::Path) -> bool {
    use std::path::Component;
    let mut up = 0;
    let mut has_name = false;
    for component in target.components() {
        match component {
            Component::ParentDir if !has_name => up += 1,
            Component::Normal(_) => has_name = true,
            Component::CurDir => {}
            _ => return false,
        }
    }
    up <= depth && (has_name || up > 0 || target.as_os_str() == ".")
}
