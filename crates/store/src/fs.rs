//! The file system as this crate uses it: a trait, so that tests can crash it and make it fail.
//!
//! Calls may return `EINTR`; [`retry`] repeats them. An fsync that failed is never repeated: the
//! kernel may have dropped the dirty pages, and a second fsync would then report success.

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// One name in a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name, without its folder.
    pub name: String,
    /// Whether it is a folder.
    pub is_dir: bool,
}

/// A file that is being written.
pub trait FsFile: Send {
    /// Writes some of `bytes` at the end and returns how many; the rest is for another call.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Returns once the contents are on the disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file that is being read; it stays readable when its name is removed.
pub trait FsRead: Send + Sync {
    /// Length in bytes when it was opened.
    fn len(&self) -> u64;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads some bytes from `offset` on and returns how many; 0 is the end of the file.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize>;
}

/// A lock that is held until it is dropped, or until the process ends.
pub struct Lock(pub Box<dyn Any + Send + Sync>);

/// The answer to a request for a lock.
pub enum TryLock {
    /// It is ours.
    Held(Lock),
    /// Somebody else has it; the text is what they wrote into the lock file.
    Busy(String),
}

/// The operations that durable storage needs; each is one system call or nearly so.
pub trait Fs: Send + Sync {
    /// Makes a folder, whose parent exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes a new file; one of that name is an error.
    fn create(&self, path: &Path) -> io::Result<Box<dyn FsFile>>;
    /// Opens a file to write at its end, and makes it where there is none.
    fn append(&self, path: &Path) -> io::Result<Box<dyn FsFile>>;
    /// Opens a file to read.
    fn open(&self, path: &Path) -> io::Result<Box<dyn FsRead>>;
    /// Gives a file or folder another name in the same folder; a file replaces one of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Returns once the names in a folder are on the disk.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a folder, sorted. Names that are no UTF-8 are none of ours and left out.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;
    /// Bytes that this user can still write to the disk under `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Takes the lock file at `path`, and writes `note` into it, unless somebody holds it.
    fn try_lock(&self, path: &Path, note: &str) -> io::Result<TryLock>;
}

/// Repeats `call` while a signal interrupts it.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Writes all of `bytes`, over short writes and interruptions.
pub(crate) fn write_all(file: &mut dyn FsFile, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = retry(|| file.write(bytes))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Fills `out` from `offset` on; the end of the file before that is `UnexpectedEof`.
pub(crate) fn read_exact_at(file: &dyn FsRead, mut offset: u64, out: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < out.len() {
        let got = retry(|| file.read_at(offset, &mut out[filled..]))?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += got;
        offset += got as u64;
    }
    Ok(())
}

/// Reads a whole file that must not be longer than `limit_bytes`.
pub(crate) fn read_small(fs: &dyn Fs, path: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let file = retry(|| fs.open(path))?;
    if file.len() > limit_bytes {
        let text = format!("it has {} bytes where at most {limit_bytes} are sane", file.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = vec![0; file.len() as usize];
    read_exact_at(file.as_ref(), 0, &mut bytes)?;
    Ok(bytes)
}

/// Whether `path` is an existing folder.
pub(crate) fn is_dir(fs: &dyn Fs, path: &Path) -> io::Result<bool> {
    match retry(|| fs.list(path)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes `path` and the folders above it where they are absent, each durably.
pub(crate) fn ensure_dir(fs: &dyn Fs, path: &Path) -> io::Result<()> {
    if is_dir(fs, path)? {
        return Ok(());
    }
    let folder = parent(path);
    if is_dir(fs, folder)? {
        // Whoever made the folder may have died before its own name was durable. Where we may not
        // look into the one above, it is not ours and older than this run.
        match retry(|| fs.sync_dir(parent(folder))) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
    } else {
        ensure_dir(fs, folder)?;
    }
    match retry(|| fs.create_dir(path)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    retry(|| fs.sync_dir(folder))
}

/// Removes a folder and all that is in it; one that is absent is fine.
pub(crate) fn remove_tree(fs: &dyn Fs, path: &Path) -> io::Result<()> {
    let entries = match retry(|| fs.list(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let child = path.join(&entry.name);
        if entry.is_dir {
            remove_tree(fs, &child)?;
        } else {
            retry(|| fs.remove_file(&child))?;
        }
    }
    retry(|| fs.remove_dir(path))
}

/// The folder that holds `path`; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// The file system of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFs;

impl FsFile for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(self, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

struct RealRead {
    file: File,
    length_bytes: u64,
}

impl FsRead for RealRead {
    fn len(&self) -> u64 {
        self.length_bytes
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(out, offset)
    }
}

/// Empties the lock file when the lock goes, so that nobody is told the name of a dead process.
struct RealLock(File);

impl Drop for RealLock {
    fn drop(&mut self) {
        // The lock itself goes with the descriptor; a note that stays does no harm.
        let _ = self.0.set_len(0);
    }
}

impl Fs for RealFs {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        Ok(Box::new(OpenOptions::new().write(true).create_new(true).open(path)?))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        Ok(Box::new(OpenOptions::new().append(true).create(true).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn FsRead>> {
        // A pipe or a device under a stored name must not block or feed us without end.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
        }
        let file = File::open(path)?;
        let length_bytes = file.metadata()?.len();
        Ok(Box::new(RealRead { file, length_bytes }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let is_dir = entry.file_type()?.is_dir();
            entries.extend(entry.file_name().into_string().map(|name| Entry { name, is_dir }));
        }
        entries.sort();
        Ok(entries)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn try_lock(&self, path: &Path, note: &str) -> io::Result<TryLock> {
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let mut file = options.open(path)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                file.take(64).read_to_string(&mut text)?;
                return Ok(TryLock::Busy(text));
            }
            Err(error) => return Err(error.into()),
        }
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(note.as_bytes())?;
        Ok(TryLock::Held(Lock(Box::new(RealLock(file)))))
    }
}
