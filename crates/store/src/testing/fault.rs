//! A file system that fails at its k-th operation.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::fs::{Entry, Fs, FsFile, FsRead, TryLock};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `ENOSPC` for all that needs room, from the k-th operation on.
    NoSpace,
    /// `EDQUOT` for all that needs room, from the k-th operation on.
    Quota,
    /// `EROFS` for all that changes anything, from the k-th operation on.
    ReadOnly,
    /// `EIO`, once, whatever the operation.
    Io,
    /// `EINTR`, once, whatever the operation.
    Interrupted,
    /// A write that takes only half of its bytes, once.
    ShortWrite,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Read,
    Change,
    NeedsRoom,
}

/// Passes everything on to another file system until the fault strikes.
#[derive(Clone)]
pub struct FaultFs {
    inner: Arc<dyn Fs>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    operations: AtomicUsize,
    strikes: AtomicUsize,
    armed: Mutex<Option<(usize, Fault)>>,
}

impl FaultFs {
    /// Over `inner`, without a fault yet.
    pub fn new(inner: Arc<dyn Fs>) -> Self {
        Self { inner, shared: Arc::default() }
    }

    /// Counts operations from 0 again and strikes at number `at`.
    pub fn arm(&self, at: usize, fault: Fault) {
        self.set(Some((at, fault)));
    }

    /// Counts operations from 0 again and strikes no more.
    pub fn disarm(&self) {
        self.set(None);
    }

    fn set(&self, armed: Option<(usize, Fault)>) {
        *self.shared.armed() = armed;
        self.shared.operations.store(0, Ordering::SeqCst);
        self.shared.strikes.store(0, Ordering::SeqCst);
    }

    /// How often the fault has struck since the last `arm`.
    pub fn strikes(&self) -> usize {
        self.shared.strikes.load(Ordering::SeqCst)
    }

    /// Operations since the last `arm` or `disarm`.
    pub fn operations(&self) -> usize {
        self.shared.operations.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn armed(&self) -> std::sync::MutexGuard<'_, Option<(usize, Fault)>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one operation; `Ok(true)` asks for a short write.
    fn step(&self, class: Class) -> io::Result<bool> {
        let result = self.decide(class);
        if !matches!(result, Ok(false)) {
            self.strikes.fetch_add(1, Ordering::SeqCst);
        }
        result
    }

    fn decide(&self, class: Class) -> io::Result<bool> {
        let now = self.operations.fetch_add(1, Ordering::SeqCst);
        let Some((at, fault)) = *self.armed() else { return Ok(false) };
        let (struck, first) = (now >= at, now == at);
        let room = class == Class::NeedsRoom;
        match fault {
            Fault::NoSpace if struck && room => Err(ErrorKind::StorageFull.into()),
            Fault::Quota if struck && room => Err(ErrorKind::QuotaExceeded.into()),
            Fault::ReadOnly if struck && class != Class::Read => {
                Err(ErrorKind::ReadOnlyFilesystem.into())
            }
            Fault::Io if first => Err(io::Error::other("input/output error")),
            Fault::Interrupted if first => Err(ErrorKind::Interrupted.into()),
            Fault::ShortWrite => Ok(first),
            _ => Ok(false),
        }
    }
}

struct FaultFile {
    inner: Box<dyn FsFile>,
    shared: Arc<Shared>,
}

impl FsFile for FaultFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let short = self.shared.step(Class::NeedsRoom)?;
        let length = if short { bytes.len().div_ceil(2) } else { bytes.len() };
        self.inner.write(&bytes[..length])
    }

    fn sync(&mut self) -> io::Result<()> {
        self.shared.step(Class::NeedsRoom)?;
        self.inner.sync()
    }
}

struct FaultRead {
    inner: Box<dyn FsRead>,
    shared: Arc<Shared>,
}

impl FsRead for FaultRead {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        self.shared.step(Class::Read)?;
        self.inner.read_at(offset, out)
    }
}

impl Fs for FaultFs {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.shared.step(Class::NeedsRoom)?;
        self.inner.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        self.shared.step(Class::NeedsRoom)?;
        let shared = self.shared.clone();
        Ok(Box::new(FaultFile { inner: self.inner.create(path)?, shared }))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        self.shared.step(Class::NeedsRoom)?;
        let shared = self.shared.clone();
        Ok(Box::new(FaultFile { inner: self.inner.append(path)?, shared }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn FsRead>> {
        self.shared.step(Class::Read)?;
        let shared = self.shared.clone();
        Ok(Box::new(FaultRead { inner: self.inner.open(path)?, shared }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.shared.step(Class::Change)?;
        self.inner.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.shared.step(Class::NeedsRoom)?;
        self.inner.sync_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.shared.step(Class::Change)?;
        self.inner.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.shared.step(Class::Change)?;
        self.inner.remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.shared.step(Class::Read)?;
        self.inner.list(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.shared.step(Class::Read)?;
        self.inner.free_bytes(path)
    }

    fn try_lock(&self, path: &Path, note: &str) -> io::Result<TryLock> {
        self.shared.step(Class::NeedsRoom)?;
        self.inner.try_lock(path, note)
    }
}
