//! Finding the files of a source, and the few things that are asked of the file system.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::globs;

/// One input file: where it is and what tells that it changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InputFile {
    /// Relative to the root where it lies below it, with `/` between folders; the file's identity.
    pub name: String,
    #[serde(skip)]
    pub path: PathBuf,
    pub size_bytes: u64,
    pub modified_nanoseconds: u64,
}

impl InputFile {
    fn new(path: PathBuf, root: &Path) -> Result<Self> {
        let facts = fs::metadata(&path).map_err(|e| DataError::read(&path, e))?;
        let modified = facts.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let name = path.strip_prefix(root).unwrap_or(&path);
        let name = name.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/");
        Ok(Self {
            name,
            size_bytes: facts.len(),
            modified_nanoseconds: modified.map_or(0, |m| m.as_nanos() as u64),
            path,
        })
    }

    /// Whether the file still has the size and time that it had when it was listed.
    pub(crate) fn unchanged(&self) -> bool {
        Self::new(self.path.clone(), Path::new("")).is_ok_and(|now| {
            (now.size_bytes, now.modified_nanoseconds)
                == (self.size_bytes, self.modified_nanoseconds)
        })
    }

    pub(crate) fn open(&self) -> Result<File> {
        File::open(&self.path).map_err(|e| DataError::read(&self.path, e))
    }
}

/// The files that match any of `patterns` and none of `exclude`, sorted by path, each once.
/// Relative patterns start at `root`. Hidden files and folders match only if named.
pub(crate) fn matching(
    root: &Path,
    patterns: &[String],
    exclude: &[String],
) -> Result<Vec<InputFile>> {
    let paths = globs::matching(root, patterns, exclude)?;
    if paths.is_empty() {
        return Err(DataError::NoMatch { patterns: patterns.to_vec(), root: root.to_owned() });
    }
    paths.into_iter().map(|path| InputFile::new(path, root)).collect()
}

/// All files below `dir`, sorted by path. Hidden entries are left out.
pub(crate) fn below(root: &Path, dir: &Path) -> Result<Vec<InputFile>> {
    let mut folders = vec![root.join(dir)];
    let mut paths = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| DataError::read(&folder, e))? {
            let entry = entry.map_err(|e| DataError::read(&folder, e))?;
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            // Links are followed for files only: a link to a folder may lead in a circle.
            let kind = entry.file_type().map_err(|e| DataError::read(&path, e))?;
            if kind.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                paths.push(path);
            }
        }
    }
    paths.sort();
    paths.into_iter().map(|path| InputFile::new(path, root)).collect()
}

/// Makes the entries of a folder durable.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| DataError::write(path, e))
}

/// blake3 of a file, in hexadecimal, as `b3sum` prints it.
pub(crate) fn file_hash(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).map_err(|e| DataError::read(path, e))?;
    hasher.update_reader(file).map_err(|e| DataError::read(path, e))?;
    Ok(hasher.finalize().to_hex().to_string())
}
