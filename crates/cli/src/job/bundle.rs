//! From a workdir to a bundle in the cluster: packed the same way every time, hashed, and sent only if it is not there.

use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use outlast_blobs::{PackLimits, pack_files};
use outlast_client::BundleFile;
use outlast_types::Digest;

use crate::connection::Session;
use crate::job::workdir::{self, BUNDLE_SIZE_MAX, Contents};
use crate::problem::{Exit, Problem};
use crate::term::{size, talk};

/// Hashes what goes through it.
struct HashingWriter<W> {
    inner: W,
    hasher: blake3::Hasher,
    size_bytes: u64,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size_bytes += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Packs and uploads; answers the bundle's digest.
pub(crate) async fn upload(session: &Session, workdir: &Path) -> Result<String, Problem> {
    let contents = workdir::walk(workdir)?;
    let temp = tempfile::NamedTempFile::new()
        .map_err(|error| Problem::new(Exit::Failed, "no temporary file for the bundle").because_of(&error))?;
    let (digest, size_bytes) = pack(&contents, temp.as_file())?;
    let bundle = BundleFile { path: temp.path().to_path_buf(), digest, size_bytes };
    let bar = progress_bar(size_bytes);
    let uploaded = session.client.upload_bundle(&bundle, |sent| bar.set_position(sent)).await;
    bar.finish_and_clear();
    let uploaded = uploaded?;
    talk(&format!(
        "workdir {}: {} entries, {}, on {}",
        contents.root.display(),
        contents.entries.len(),
        size(size_bytes),
        uploaded.holders.join(", ")
    ));
    Ok(digest.to_string())
}

fn pack(contents: &Contents, file: &File) -> Result<(Digest, u64), Problem> {
    let what = || format!("the workdir {} cannot be packed", contents.root.display());
    let mut out = HashingWriter { inner: BufWriter::new(file), hasher: blake3::Hasher::new(), size_bytes: 0 };
    let limits =
        PackLimits { total_bytes: BUNDLE_SIZE_MAX, entry_bytes: BUNDLE_SIZE_MAX, ..PackLimits::default() };
    pack_files(&contents.root, contents.entries.clone(), &mut out, limits).map_err(|error| {
        Problem::new(Exit::Usage, what())
            .because_of(&error)
            .next("mend or remove it, or name it in .outlastignore (same rules as .gitignore)")
    })?;
    out.flush().map_err(|error| Problem::new(Exit::Failed, what()).because_of(&error))?;
    Ok((Digest(*out.hasher.finalize().as_bytes()), out.size_bytes))
}

/// Drawn only where somebody sees it.
fn progress_bar(size_bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(size_bytes), ProgressDrawTarget::hidden());
    }
    let template = "uploading {bytes}/{total_bytes} {wide_bar} {bytes_per_sec}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(size_bytes).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_folder_is_the_same_bundle() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("train.py"), "pass").expect("written");
        let digest = || {
            let contents = workdir::walk(dir.path()).expect("small");
            pack(&contents, &tempfile::tempfile().expect("a file")).expect("packs").0
        };
        let first = digest();
        assert_eq!(first, digest());
        std::fs::write(dir.path().join("train.py"), "quit").expect("written");
        assert_ne!(first, digest());
    }
}
