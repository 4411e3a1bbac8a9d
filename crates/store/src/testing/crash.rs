//! A file system in memory that can lose power.
//!
//! It records every change. A crash after the k-th change may lose each change that no fsync has
//! made durable: a write in whole or from some sector on (with or without the file having grown),
//! and a name given, taken or changed in a folder. [`Crashes`] goes through these states.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fs::{Entry, Fs, FsFile, FsRead, Lock, TryLock};

type Inode = usize;
const ROOT: Inode = 0;

#[derive(Clone)]
enum Node {
    File(Vec<u8>),
    Dir(BTreeMap<String, Inode>),
}

#[derive(Clone)]
enum Change {
    Link { dir: Inode, name: String, inode: Inode, is_dir: bool },
    Unlink { dir: Inode, name: String },
    Rename { dir: Inode, from: String, to: String },
    Write { file: Inode, offset: usize, bytes: Arc<[u8]> },
    Sync { inode: Inode },
    Acknowledge(u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Lost,
    /// The first so many bytes are on the disk; the rest of the file's length is or is not.
    Torn(usize, bool),
}

#[derive(Clone)]
struct Tree(HashMap<Inode, Node>);

struct World {
    start: Tree,
    now: Tree,
    next_inode: Inode,
    log: Vec<Change>,
    free_bytes: u64,
    locks: BTreeMap<PathBuf, String>,
}

/// The file system; clones share it. Its paths begin at `/`, which is an empty folder at first.
#[derive(Clone)]
pub struct CrashFs(Arc<Mutex<World>>);

impl Default for CrashFs {
    fn default() -> Self {
        Self::from_tree(Tree(HashMap::from([(ROOT, Node::Dir(BTreeMap::new()))])))
    }
}

impl CrashFs {
    fn from_tree(tree: Tree) -> Self {
        let next_inode = tree.0.keys().max().map_or(1, |last| last + 1);
        Self(Arc::new(Mutex::new(World {
            start: tree.clone(),
            now: tree,
            next_inode,
            log: Vec::new(),
            free_bytes: u64::MAX,
            locks: BTreeMap::new(),
        })))
    }

    /// Records that a user was told of number `mark`: crashes after this know it.
    pub fn acknowledge(&self, mark: u64) {
        self.world().log.push(Change::Acknowledge(mark));
    }

    /// What `free_bytes` answers from now on.
    pub fn set_free_bytes(&self, bytes: u64) {
        self.world().free_bytes = bytes;
    }

    /// Number of changes so far: crashes are possible after each.
    pub fn changes(&self) -> usize {
        self.world().log.len()
    }

    /// A whole file, for tests that damage it and put it back.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let world = self.world();
        match world.now.0.get(&world.now.find(path)?) {
            Some(Node::File(bytes)) => Ok(bytes.clone()),
            _ => Err(ErrorKind::IsADirectory.into()),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self, path: &Path, is_dir: bool) -> io::Result<Inode> {
        let mut world = self.world();
        let (dir, name) = world.now.split(path)?;
        if world.now.names(dir)?.contains_key(&name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let inode = world.next_inode;
        world.next_inode += 1;
        world.change(Change::Link { dir, name, inode, is_dir });
        Ok(inode)
    }
}

impl World {
    fn change(&mut self, change: Change) {
        self.now.apply(&change, Fate::Kept);
        self.log.push(change);
    }
}

impl Tree {
    fn names(&self, dir: Inode) -> io::Result<&BTreeMap<String, Inode>> {
        match self.0.get(&dir) {
            Some(Node::Dir(names)) => Ok(names),
            Some(Node::File(_)) => Err(ErrorKind::NotADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<Inode> {
        let mut inode = ROOT;
        for component in path.components() {
            if let Component::Normal(name) = component {
                let found = self.names(inode)?.get(name.to_string_lossy().as_ref());
                inode = *found.ok_or(ErrorKind::NotFound)?;
            }
        }
        Ok(inode)
    }

    fn split(&self, path: &Path) -> io::Result<(Inode, String)> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
        let dir = self.find(path.parent().unwrap_or(Path::new("/")))?;
        self.names(dir)?;
        Ok((dir, name.to_string_lossy().into_owned()))
    }

    fn apply(&mut self, change: &Change, fate: Fate) {
        // Its contents follow from other changes: a file whose name is lost is just not found.
        if let Change::Link { inode, is_dir, .. } = change {
            let node = if *is_dir { Node::Dir(BTreeMap::new()) } else { Node::File(Vec::new()) };
            self.0.entry(*inode).or_insert(node);
        }
        if fate == Fate::Lost {
            return;
        }
        match change {
            Change::Link { dir, name, inode, .. } => {
                self.with_names(*dir, |names| {
                    names.insert(name.clone(), *inode);
                });
            }
            Change::Unlink { dir, name } => self.with_names(*dir, |names| {
                names.remove(name);
            }),
            Change::Rename { dir, from, to } => self.with_names(*dir, |names| {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }),
            Change::Write { file, offset, bytes } => {
                let (kept, grown) = match fate {
                    Fate::Torn(kept, true) => (kept, bytes.len()),
                    Fate::Torn(kept, false) => (kept, kept),
                    _ => (bytes.len(), bytes.len()),
                };
                if let Some(Node::File(contents)) = self.0.get_mut(file) {
                    let length = contents.len().max(offset + grown);
                    contents.resize(length, 0);
                    contents[*offset..offset + kept].copy_from_slice(&bytes[..kept]);
                }
            }
            Change::Sync { .. } | Change::Acknowledge(_) => {}
        }
    }

    fn with_names(&mut self, dir: Inode, edit: impl FnOnce(&mut BTreeMap<String, Inode>)) {
        if let Some(Node::Dir(names)) = self.0.get_mut(&dir) {
            edit(names);
        }
    }
}

/// One state that a power loss may leave.
pub struct Crash {
    /// The file system after it.
    pub fs: CrashFs,
    /// The highest number acknowledged before it.
    pub acknowledged: Option<u64>,
    /// Which state it is, to print when a test fails.
    pub description: String,
}

/// The states that a power loss may leave, at every instant.
///
/// At each instant: nothing lost, all pending changes lost, each lost alone, each kept alone, each
/// write torn at sectors of 512 and 4,096 bytes, and two or three lost together, at most
/// `per_instant` states.
pub struct Crashes {
    start: Tree,
    log: Vec<Change>,
    per_instant: usize,
}

impl Crashes {
    /// The crashes of all that happened to `fs` so far.
    pub fn of(fs: &CrashFs, per_instant: usize) -> Self {
        let world = fs.world();
        Self { start: world.start.clone(), log: world.log.clone(), per_instant }
    }

    /// Calls `visit` with each state, in a fixed order; returns how many there were.
    pub fn for_each(&self, mut visit: impl FnMut(Crash)) -> usize {
        let mut count = 0;
        for instant in 0..=self.log.len() {
            let pending = self.pending(instant);
            for fates in self.fates(&pending, instant) {
                visit(self.state(instant, &fates));
                count += 1;
            }
        }
        count
    }

    /// Indices of the changes before `instant` that no fsync before it has covered.
    fn pending(&self, instant: usize) -> Vec<usize> {
        let mut synced = BTreeSet::new();
        let mut pending = Vec::new();
        for (index, change) in self.log[..instant].iter().enumerate().rev() {
            match change {
                Change::Sync { inode } => drop(synced.insert(*inode)),
                Change::Acknowledge(_) => {}
                Change::Write { file: inode, .. }
                | Change::Link { dir: inode, .. }
                | Change::Unlink { dir: inode, .. }
                | Change::Rename { dir: inode, .. } => {
                    if !synced.contains(inode) {
                        pending.push(index);
                    }
                }
            }
        }
        pending
    }

    fn fates(&self, pending: &[usize], instant: usize) -> Vec<Vec<(usize, Fate)>> {
        let lose = |indices: &[usize]| -> Vec<(usize, Fate)> {
            indices.iter().map(|i| (*i, Fate::Lost)).collect()
        };
        let mut all = vec![Vec::new()];
        if pending.is_empty() {
            return all;
        }
        all.push(lose(pending));
        for (position, index) in pending.iter().enumerate() {
            all.push(lose(&[*index]));
            let mut others = pending.to_vec();
            others.remove(position);
            all.push(lose(&others));
            for (fate, alone) in self.tears(*index).into_iter().zip([true, false].iter().cycle()) {
                let mut fates = if *alone { Vec::new() } else { lose(&others) };
                fates.push((*index, fate));
                all.push(fates);
            }
        }
        for (i, a) in pending.iter().enumerate() {
            for (j, b) in pending.iter().enumerate().skip(i + 1) {
                all.push(lose(&[*a, *b]));
                all.extend(pending[j + 1..].iter().map(|c| lose(&[*a, *b, *c])));
            }
        }
        // Too many: a spread that differs from instant to instant, the first two always.
        let stride = all.len().div_ceil(self.per_instant.max(1));
        let keep = |i: &usize| *i < 2 || (i + instant).is_multiple_of(stride);
        let mut index = 0..all.len();
        all.retain(|_| index.next().is_some_and(|i| keep(&i)));
        all
    }

    fn tears(&self, index: usize) -> Vec<Fate> {
        let Change::Write { bytes, .. } = &self.log[index] else { return Vec::new() };
        let mut tears = Vec::new();
        for sector in [512, 4096] {
            let sectors = (bytes.len().saturating_sub(1)) / sector;
            for kept in BTreeSet::from([0, 1, sectors / 2, sectors]) {
                if kept <= sectors {
                    tears.push(Fate::Torn(kept * sector, true));
                    tears.push(Fate::Torn(kept * sector, false));
                }
            }
        }
        tears
    }

    fn state(&self, instant: usize, fates: &[(usize, Fate)]) -> Crash {
        let mut tree = self.start.clone();
        let mut acknowledged = None;
        for (index, change) in self.log[..instant].iter().enumerate() {
            let fate =
                fates.iter().find(|(i, _)| *i == index).map_or(Fate::Kept, |(_, fate)| *fate);
            tree.apply(change, fate);
            if let Change::Acknowledge(mark) = change {
                acknowledged = acknowledged.max(Some(*mark));
            }
        }
        let lost: Vec<String> =
            fates.iter().map(|(index, fate)| self.describe(*index, *fate)).collect();
        let description = format!("after change {instant}: {}", lost.join(", "));
        Crash { fs: CrashFs::from_tree(tree), acknowledged, description }
    }

    fn describe(&self, index: usize, fate: Fate) -> String {
        let change = match &self.log[index] {
            Change::Link { name, .. } => format!("name {name}"),
            Change::Unlink { name, .. } => format!("removal of {name}"),
            Change::Rename { from, to, .. } => format!("rename {from} -> {to}"),
            Change::Write { offset, bytes, .. } => format!("write {offset}+{}", bytes.len()),
            Change::Sync { .. } | Change::Acknowledge(_) => "nothing".to_owned(),
        };
        match fate {
            Fate::Torn(kept, grown) => format!("#{index} {change} torn at {kept} (grown {grown})"),
            _ => format!("#{index} {change} lost"),
        }
    }
}

struct CrashFile {
    fs: CrashFs,
    inode: Inode,
}

impl FsFile for CrashFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut world = self.fs.world();
        let offset = match world.now.0.get(&self.inode) {
            Some(Node::File(contents)) => contents.len(),
            _ => return Err(ErrorKind::NotFound.into()),
        };
        world.change(Change::Write { file: self.inode, offset, bytes: bytes.into() });
        Ok(bytes.len())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.fs.world().change(Change::Sync { inode: self.inode });
        Ok(())
    }
}

impl FsRead for Vec<u8> {
    fn len(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let length = out.len().min(self.len() - from);
        out[..length].copy_from_slice(&self[from..from + length]);
        Ok(length)
    }
}

struct CrashLock(CrashFs, PathBuf);

impl Drop for CrashLock {
    fn drop(&mut self) {
        self.0.world().locks.remove(&self.1);
    }
}

impl Fs for CrashFs {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.link(path, true).map(drop)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        let inode = self.link(path, false)?;
        Ok(Box::new(CrashFile { fs: self.clone(), inode }))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        let found = self.world().now.find(path);
        let inode = match found {
            Err(error) if error.kind() == ErrorKind::NotFound => self.link(path, false)?,
            found => found?,
        };
        Ok(Box::new(CrashFile { fs: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn FsRead>> {
        Ok(Box::new(self.contents(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.now.find(from)?;
        let ((dir, from), (to_dir, to)) = (world.now.split(from)?, world.now.split(to)?);
        if dir != to_dir {
            return Err(ErrorKind::Unsupported.into());
        }
        if let Some(Node::Dir(names)) = world.now.names(dir)?.get(&to).map(|i| &world.now.0[i])
            && !names.is_empty()
        {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        world.change(Change::Rename { dir, from, to });
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        let inode = world.now.find(path)?;
        world.change(Change::Sync { inode });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.now.find(path)?;
        let (dir, name) = world.now.split(path)?;
        world.change(Change::Unlink { dir, name });
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let inode = self.world().now.find(path)?;
        if !self.world().now.names(inode)?.is_empty() {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        self.remove_file(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let world = self.world();
        let names = world.now.names(world.now.find(path)?)?;
        let is_dir = |inode| matches!(world.now.0.get(inode), Some(Node::Dir(_)));
        let entry = |(name, i): (&String, _)| Entry { name: name.clone(), is_dir: is_dir(i) };
        Ok(names.iter().map(entry).collect())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(self.world().free_bytes)
    }

    fn try_lock(&self, path: &Path, note: &str) -> io::Result<TryLock> {
        if self.world().now.find(path).is_err() {
            self.link(path, false)?;
        }
        let mut world = self.world();
        if let Some(holder) = world.locks.get(path) {
            return Ok(TryLock::Busy(holder.clone()));
        }
        world.locks.insert(path.to_owned(), note.to_owned());
        Ok(TryLock::Held(Lock(Box::new(CrashLock(self.clone(), path.to_owned())))))
    }
}
