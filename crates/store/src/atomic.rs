//! Replacing one file as a whole: a reader, or a crash, sees the old bytes or the new ones.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{At, Result};
use crate::fs::{Fs, FsFile, parent, retry, write_all};

/// Writes `bytes` to `path` durably: temporary file beside it, fsync, rename, fsync of the folder.
///
/// # Errors
/// `Io`, after which `path` is as it was, or (where the last fsync failed) perhaps already new.
pub fn write_atomic(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(fs, path)?;
    file.write(bytes)?;
    file.commit()
}

/// A replacement of `path` that is being written; dropped before `commit`, it leaves no trace.
pub(crate) struct AtomicFile<'a> {
    fs: &'a dyn Fs,
    path: PathBuf,
    temp: PathBuf,
    file: Box<dyn FsFile>,
    committed: bool,
}

impl<'a> AtomicFile<'a> {
    pub(crate) fn create(fs: &'a dyn Fs, path: &Path) -> Result<Self> {
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let temp = path.with_file_name(format!(".{name}{TEMP_MARK}{}", nonce()));
        let file = retry(|| fs.create(&temp)).at("create", &temp)?;
        Ok(Self { fs, path: path.to_owned(), temp, file, committed: false })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        write_all(self.file.as_mut(), bytes).at("write", &self.temp)
    }

    pub(crate) fn commit(mut self) -> Result<()> {
        retry(|| self.file.sync()).at("fsync", &self.temp)?;
        retry(|| self.fs.rename(&self.temp, &self.path)).at("rename a new file to", &self.path)?;
        self.committed = true;
        let folder = parent(&self.path);
        retry(|| self.fs.sync_dir(folder)).at("fsync the folder", folder)
    }
}

impl Drop for AtomicFile<'_> {
    fn drop(&mut self) {
        if !self.committed {
            // The error that brought us here is the one to report; `reclaim` finds what stays.
            let _ = retry(|| self.fs.remove_file(&self.temp));
        }
    }
}

/// What all temporary names have in common.
pub(crate) const TEMP_MARK: &str = ".tmp-";

/// Removes temporary files that a crash left in `folder`. The caller holds the run's lock.
pub(crate) fn reclaim_files(fs: &dyn Fs, folder: &Path) -> Result<()> {
    for entry in retry(|| fs.list(folder)).at("list", folder)? {
        if !entry.is_dir && is_temp_file(&entry.name) {
            let path = folder.join(entry.name);
            retry(|| fs.remove_file(&path)).at("remove", &path)?;
        }
    }
    Ok(())
}

/// Whether a file of this name is one that [`write_atomic`] had not finished.
pub(crate) fn is_temp_file(name: &str) -> bool {
    name.starts_with('.') && name.contains(TEMP_MARK)
}

/// A name part that no other process and no earlier call has used.
pub(crate) fn nonce() -> String {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    format!("{:x}-{:x}-{call:x}", std::process::id(), time as u64)
}
