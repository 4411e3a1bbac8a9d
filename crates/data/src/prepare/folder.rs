//! The output folder appears whole or not at all.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::error::{DataError, Result};
use crate::files;
use crate::index::{INDEX_FILE, TOKENIZER_FILE};
use crate::progress::Progress;

/// How often a process that waits for another one looks again.
const WAIT: Duration = Duration::from_millis(100);

/// A new folder beside the output, under a lock that one process holds; removed when dropped
/// unless it took the output's place.
#[derive(Debug)]
pub(super) struct Staging {
    out: PathBuf,
    work: PathBuf,
    parent: PathBuf,
    prefix: String,
    // Holds the lock until this is dropped, also when the process is killed.
    _lock: File,
}

impl Staging {
    /// Waits for the lock of `out`. Nothing but the lock file exists afterwards.
    pub(super) fn lock(out: &Path, progress: &mut dyn Progress) -> Result<Self> {
        // A link stays, what it points to is replaced.
        let out = &fs::canonicalize(out).unwrap_or_else(|_| out.to_owned());
        let name = out.file_name().ok_or_else(|| {
            DataError::option("the output folder", out.display(), "a path that ends in a name")
        })?;
        let prefix = format!(".{}", name.to_string_lossy());
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        fs::create_dir_all(&parent).map_err(|e| DataError::write(&parent, e))?;
        let path = parent.join(format!("{prefix}.lock"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| DataError::write(&path, e))?;
        let mut told = false;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(e)) => return Err(DataError::write(&path, e)),
                Err(TryLockError::WouldBlock) => {}
            }
            if progress.stopped() {
                return Err(DataError::Interrupted);
            }
            if !told {
                progress.message("another process prepares the same folder: waiting for it");
                told = true;
            }
            thread::sleep(WAIT);
        }
        let work = parent.join(format!("{prefix}.tmp-{}", std::process::id()));
        Ok(Self { out: out.to_owned(), work, parent, prefix, _lock: lock })
    }

    /// Removes what killed processes left behind and creates the folder to work in.
    pub(super) fn create(&self) -> Result<&Path> {
        self.check_replaceable()?;
        let parent = &self.parent;
        let leftover = format!("{}.tmp-", self.prefix);
        for entry in fs::read_dir(parent).map_err(|e| DataError::read(parent, e))?.flatten() {
            // Whoever made it held the lock, which is ours now, so it is dead.
            if entry.file_name().to_string_lossy().starts_with(&leftover) {
                fs::remove_dir_all(entry.path()).map_err(|e| DataError::write(&entry.path(), e))?;
            }
        }
        fs::create_dir(&self.work).map_err(|e| DataError::write(&self.work, e))?;
        Ok(&self.work)
    }

    /// A folder is replaced only if everything in it looks like our own files.
    fn check_replaceable(&self) -> Result<()> {
        if !self.out.exists() {
            return Ok(());
        }
        let entries = fs::read_dir(&self.out).map_err(|e| DataError::write(&self.out, e))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = name == INDEX_FILE || name == TOKENIZER_FILE || name.ends_with(".bin");
            if !ours || !entry.path().is_file() {
                return Err(DataError::OutputOccupied { path: self.out.clone(), found: name });
            }
        }
        Ok(())
    }

    /// Puts the finished folder in the output's place, durably. Readers see the old folder or the
    /// new one, never a part.
    pub(super) fn commit(self) -> Result<()> {
        files::sync_folder(&self.work)?;
        let rename = |from: &Path, to: &Path| {
            fs::rename(from, to).map_err(|e| DataError::write(&self.out, e))
        };
        if !self.out.exists() {
            rename(&self.work, &self.out)?;
        } else if !exchange(&self.work, &self.out) {
            // Without an atomic exchange there is a moment without the folder, and never a moment
            // with half of it; the next call removes the old one if this process dies here.
            let old = self.parent.join(format!("{}.tmp-old", self.prefix));
            rename(&self.out, &old)?;
            rename(&self.work, &self.out)?;
            fs::remove_dir_all(&old).map_err(|e| DataError::write(&old, e))?;
        }
        files::sync_folder(&self.parent)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Best effort: an error here must not hide the one that brought us here, and the next
        // call cleans up anyway.
        let _ = fs::remove_dir_all(&self.work);
    }
}

#[cfg(target_os = "linux")]
fn exchange(new: &Path, old: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> bool {
    false
}
