//! `metrics.jsonl`: one JSON object a line, only ever appended to, and cut back on resume.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::atomic::AtomicFile;
use crate::error::{At, Result};
use crate::fs::{Fs, FsFile, FsRead, parent, retry};

/// A line longer than this is none of ours.
const LINE_LIMIT_BYTES: u64 = 16 << 20;

/// Appends events to `metrics.jsonl`, each handed to the operating system before the next.
pub struct MetricsWriter {
    file: Box<dyn FsFile>,
    path: PathBuf,
    /// What a failed write left over: it goes first the next time, so that no line is torn.
    unwritten: Vec<u8>,
}

impl MetricsWriter {
    /// Opens `path` to append to, and makes it, durably, where there is none. After a crash,
    /// [`cut_back`] comes first.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(fs: &dyn Fs, path: &Path) -> Result<Self> {
        let file = retry(|| fs.append(path)).at("open", path)?;
        let folder = parent(path);
        retry(|| fs.sync_dir(folder)).at("fsync the folder", folder)?;
        Ok(Self { file, path: path.to_owned(), unwritten: Vec::new() })
    }

    /// Writes one event as one line.
    ///
    /// # Errors
    /// `Io`; the event is not lost, the next call writes what is missing of it first.
    pub fn push(&mut self, event: &Value) -> Result<()> {
        // `Display` of a value is its compact form: a newline in a text is `\n` there.
        self.unwritten.extend_from_slice(event.to_string().as_bytes());
        self.unwritten.push(b'\n');
        self.flush()
    }

    /// Returns once all events are on the disk. Call it before a checkpoint is committed: then no
    /// power loss leaves a checkpoint whose steps are missing here.
    ///
    /// # Errors
    /// `Io`.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        retry(|| self.file.sync()).at("fsync", &self.path)
    }

    fn flush(&mut self) -> Result<()> {
        while !self.unwritten.is_empty() {
            let written = retry(|| match self.file.write(&self.unwritten)? {
                0 => Err(io::ErrorKind::WriteZero.into()),
                written => Ok(written),
            });
            self.unwritten.drain(..written.at("write", &self.path)?);
        }
        Ok(())
    }
}

/// What [`cut_back`] did, in lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutBack {
    /// Lines that stay, byte for byte.
    pub kept: u64,
    /// Lines of later steps, removed.
    pub later: u64,
    /// Lines that are no JSON object or not finished, removed: a crash tore them.
    pub torn: u64,
}

/// Removes the lines of `path` whose `step` is greater than `step`, and torn ones, all at once.
/// Lines without a `step` stay. A file that needs no change, or is not there, is left alone.
///
/// # Errors
/// `Io`; the file is then as it was.
pub fn cut_back(fs: &dyn Fs, path: &Path, step: u64) -> Result<CutBack> {
    let file = match retry(|| fs.open(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(CutBack::default()),
        file => file.at("open", path)?,
    };
    let counted = scan(file.as_ref(), path, step, |_| Ok(()))?;
    if counted.later + counted.torn == 0 {
        return Ok(counted);
    }
    let mut replacement = AtomicFile::create(fs, path)?;
    let mut block = Vec::new();
    scan(file.as_ref(), path, step, |line| {
        block.extend_from_slice(line);
        if block.len() >= 1 << 20 {
            replacement.write(&block)?;
            block.clear();
        }
        Ok(())
    })?;
    replacement.write(&block)?;
    replacement.commit()?;
    Ok(counted)
}

fn scan(
    file: &dyn FsRead,
    path: &Path,
    step: u64,
    mut keep: impl FnMut(&[u8]) -> Result<()>,
) -> Result<CutBack> {
    let mut reader = BufReader::with_capacity(1 << 16, Sequential { file, offset: 0 });
    let mut counted = CutBack::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = reader.by_ref().take(LINE_LIMIT_BYTES);
        if limited.read_until(b'\n', &mut line).at("read", path)? == 0 {
            return Ok(counted);
        }
        match step_of(&line) {
            None => counted.torn += 1,
            Some(Some(line_step)) if line_step > step => counted.later += 1,
            Some(_) => {
                keep(&line)?;
                counted.kept += 1;
            }
        }
    }
}

/// `None` for a torn line, else its `step`, where it has one.
fn step_of(line: &[u8]) -> Option<Option<u64>> {
    let line = line.strip_suffix(b"\n")?;
    let event: Value = serde_json::from_slice(line).ok()?;
    Some(event.as_object()?.get("step").and_then(Value::as_u64))
}

struct Sequential<'a> {
    file: &'a dyn FsRead,
    offset: u64,
}

impl Read for Sequential<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(self.offset, out)?;
        self.offset += got as u64;
        Ok(got)
    }
}
