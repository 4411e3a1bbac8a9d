//! Machine code on disk: what was compiled once is loaded afterwards.

use crate::error::CudaError;
use crate::gpu::Architecture;
use crate::nvrtc;
use crate::source::Source;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A folder of compiled kernels, named by everything that their code depends on.
///
/// It may be removed at any time, and a file that cannot be read or written is as good as none.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// Kernels that were asked for together.
pub struct Cubins {
    by_source: HashMap<Source, Vec<u8>>,
    /// How many of them had to be compiled.
    pub compiled: usize,
}

impl Cubins {
    /// The machine code of a source.
    pub fn get(&self, source: &Source) -> Option<&[u8]> {
        self.by_source.get(source).map(Vec::as_slice)
    }
}

impl Cache {
    /// The user's: `$XDG_CACHE_HOME/aerogel/cubins`, or under `~/.cache`; none where neither is
    /// known.
    pub fn of_user() -> Cache {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
        Cache { folder: base.map(|base| base.join("aerogel").join("cubins")) }
    }

    /// One in a folder of its own.
    pub fn in_folder(folder: &Path) -> Cache {
        Cache { folder: Some(folder.to_owned()) }
    }

    /// The machine code of all sources, each compiled at most once, on `threads` threads.
    ///
    /// # Errors
    /// The compiler is needed and missing, or refuses one of them.
    pub fn all(
        &self,
        sources: &[Source],
        architecture: Architecture,
        threads: usize,
    ) -> Result<Cubins, CudaError> {
        let mut wanted: Vec<&Source> = sources.iter().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let (next, compiled) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let done = Mutex::new(Ok(HashMap::new()));
        let compiler = nvrtc::version()?;
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(&source) = wanted.get(at) else { break };
                let one = self.one(source, architecture, compiler, &compiled);
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                match (one, done.as_mut()) {
                    (Ok(cubin), Ok(map)) => drop(map.insert(source.clone(), cubin)),
                    (Err(e), Ok(_)) => *done = Err(e),
                    (_, Err(_)) => break,
                }
            }
        };
        std::thread::scope(|scope| {
            (1..threads.min(wanted.len())).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        let by_source = done.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        Ok(Cubins { by_source, compiled: compiled.into_inner() })
    }

    fn one(
        &self,
        source: &Source,
        architecture: Architecture,
        compiler: (i32, i32),
        compiled: &AtomicUsize,
    ) -> Result<Vec<u8>, CudaError> {
        let name = format!("{}.cubin", source.key(architecture, compiler));
        let path = self.folder.as_ref().map(|folder| folder.join(&name));
        if let Some(found) = path.as_deref().and_then(read) {
            return Ok(found);
        }
        let cubin = nvrtc::compile(source, architecture)?.cubin;
        compiled.fetch_add(1, Ordering::Relaxed);
        if let Some(path) = path {
            write(&path, &cubin);
        }
        Ok(cubin)
    }
}

/// Bytes of the hash that stands before the code.
const HASH: usize = 32;

/// What a file holds, if it is whole.
fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let (hash, cubin) = bytes.split_at_checked(HASH)?;
    (blake3::hash(cubin).as_bytes() == hash).then(|| cubin.to_vec())
}

/// Writes a file that is either whole or not there.
fn write(path: &Path, cubin: &[u8]) {
    let bytes = [blake3::hash(cubin).as_bytes().as_slice(), cubin].concat();
    let aside = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&aside, bytes))
        .and_then(|()| std::fs::rename(&aside, path));
    // Without a cache the next start compiles again, which is slow and right.
    if written.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("x.cubin");
        write(&path, b"machine code");
        assert_eq!(read(&path).as_deref(), Some(b"machine code".as_slice()));
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(&path), None);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(read(&path), None);
    }
}
