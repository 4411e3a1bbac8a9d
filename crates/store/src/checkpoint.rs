//! Reading one committed step.
//!
//! Opening checks the manifest, the size of each file and its header; the bytes of a tensor are
//! checked against their blake3 whenever they are read.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{At, Result, StoreError};
use crate::fs::{Fs, FsRead, read_exact_at, read_small, retry};
use crate::manifest::{FileEntry, MANIFEST, MANIFEST_LIMIT_BYTES, Manifest, TensorEntry};

/// Bytes that are read or written at a time: enough for the disk, little beside a model.
pub(crate) const CHUNK_BYTES: u64 = 4 << 20;

/// A committed step, open for reading.
///
/// Its files stay open, so that pruning the step does not disturb a reader.
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
    files: HashMap<String, Box<dyn FsRead>>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens the folder `path`, which should be that of `step`.
    pub(crate) fn open(fs: &dyn Fs, path: &Path, step: u64) -> Result<Self> {
        let manifest_path = path.join(MANIFEST);
        let text = read_small(fs, &manifest_path, MANIFEST_LIMIT_BYTES);
        let text = readable(text, &manifest_path, None)?;
        let manifest = Manifest::decode(&text, &manifest_path, step)?;
        let mut headers = HashMap::new();
        let mut files = HashMap::new();
        for (name, entry) in &manifest.files {
            let file_path = path.join(name);
            let first = first_tensor(&manifest, name, 0);
            let file = readable(retry(|| fs.open(&file_path)), &file_path, first)?;
            if file.len() != entry.size_bytes {
                let tensor = first_tensor(&manifest, name, file.len()).or(first);
                let reason = format!("it has {} bytes, not {}", file.len(), entry.size_bytes);
                return Err(StoreError::damaged(&file_path, tensor, reason));
            }
            headers.insert(name.as_str(), read_header(file.as_ref(), &file_path, entry)?);
            files.insert(name.clone(), file);
        }
        for (name, tensor) in &manifest.tensors {
            check_against_headers(&manifest, name, tensor, &headers)
                .map_err(|reason| StoreError::damaged(&manifest_path, Some(name), reason))?;
        }
        Ok(Self { path: path.to_owned(), manifest, files })
    }

    /// The folder of the step.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The step after which it was taken.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// Everything but the bytes of the tensors.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Fills `out` with the whole tensor, row-major and little-endian.
    ///
    /// # Errors
    /// `Damaged` where the bytes are not those committed (`out` is then zeroed), `NoSuchTensor`,
    /// `BufferSize` where `out` is not [`TensorEntry::bytes`] long, `Io`.
    pub fn read(&self, name: &str, out: &mut [u8]) -> Result<()> {
        let entry = self.entry(name)?;
        if out.len() as u64 != entry.bytes() {
            return Err(StoreError::BufferSize {
                name: name.to_owned(),
                wanted_bytes: entry.bytes(),
                got_bytes: out.len() as u64,
            });
        }
        let mut hasher = blake3::Hasher::new();
        let mut filled = 0;
        for (file, offset, length) in chunks(entry) {
            let chunk = &mut out[filled..filled + length];
            self.read_chunk(name, file, offset, chunk)?;
            hasher.update(chunk);
            filled += length;
        }
        let checked = self.check_hash(name, entry, &hasher);
        if checked.is_err() {
            out.fill(0);
        }
        checked
    }

    /// Reads every tensor and checks it; the memory needed is one chunk.
    ///
    /// # Errors
    /// `Damaged` or `Io` of the first tensor that is not as it was committed.
    pub fn verify(&self) -> Result<()> {
        let mut buffer = Vec::new();
        for (name, entry) in &self.manifest.tensors {
            let mut hasher = blake3::Hasher::new();
            for (file, offset, length) in chunks(entry) {
                buffer.resize(length, 0);
                self.read_chunk(name, file, offset, &mut buffer)?;
                hasher.update(&buffer);
            }
            self.check_hash(name, entry, &hasher)?;
        }
        Ok(())
    }

    fn entry(&self, name: &str) -> Result<&TensorEntry> {
        self.manifest.tensors.get(name).ok_or_else(|| StoreError::NoSuchTensor {
            path: self.path.clone(),
            name: name.to_owned(),
        })
    }

    fn read_chunk(&self, tensor: &str, file: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let path = self.path.join(file);
        readable(read_exact_at(self.files[file].as_ref(), offset, out), &path, Some(tensor))
    }

    fn check_hash(&self, name: &str, entry: &TensorEntry, hasher: &blake3::Hasher) -> Result<()> {
        let got = hasher.finalize().to_hex();
        if got.as_str() == entry.blake3 {
            return Ok(());
        }
        let file = entry.parts.first().map_or(MANIFEST, |part| &part.file);
        let reason = format!("its bytes have blake3 {got}, not {}", entry.blake3);
        Err(StoreError::damaged(&self.path.join(file), Some(name), reason))
    }
}

/// File, offset and length of the pieces that a tensor is read in, in its row-major order.
fn chunks(entry: &TensorEntry) -> impl Iterator<Item = (&str, u64, usize)> {
    entry.parts.iter().flat_map(|part| {
        let end = part.offset + entry.part_bytes(part);
        let offsets = (part.offset..end).step_by(CHUNK_BYTES as usize);
        offsets.map(move |at| (part.file.as_str(), at, (end - at).min(CHUNK_BYTES) as usize))
    })
}

/// Missing, cut-off and nonsensical files are damage; everything else is the disk's failure.
fn readable<T>(result: io::Result<T>, path: &Path, tensor: Option<&str>) -> Result<T> {
    use io::ErrorKind as K;
    match result {
        Err(e) if e.kind() == K::NotFound => {
            Err(StoreError::damaged(path, tensor, "it is missing"))
        }
        Err(e) if e.kind() == K::UnexpectedEof => {
            Err(StoreError::damaged(path, tensor, "it ends too early"))
        }
        Err(e) if matches!(e.kind(), K::InvalidData | K::NotADirectory | K::IsADirectory) => {
            Err(StoreError::damaged(path, tensor, e.to_string()))
        }
        result => result.at("read", path),
    }
}

/// The first tensor of `file` with bytes beyond `position`, to name in an error.
fn first_tensor<'a>(manifest: &'a Manifest, file: &str, position: u64) -> Option<&'a str> {
    let mut hit: Option<(u64, &str)> = None;
    for (name, tensor) in &manifest.tensors {
        for part in tensor.parts.iter().filter(|part| part.file == file) {
            let beyond = part.offset + tensor.part_bytes(part) > position;
            if beyond && hit.is_none_or(|(offset, _)| part.offset < offset) {
                hit = Some((part.offset, name));
            }
        }
    }
    hit.map(|(_, name)| name)
}

fn read_header(
    file: &dyn FsRead,
    path: &Path,
    entry: &FileEntry,
) -> Result<safetensors::tensor::Metadata> {
    // The manifest was checked: this is at most `HEADER_LIMIT_BYTES`, and within the file.
    let mut header = vec![0; entry.header_bytes as usize];
    readable(read_exact_at(file, 0, &mut header), path, None)?;
    if blake3::hash(&header).to_hex().as_str() != entry.header_blake3 {
        return Err(StoreError::damaged(path, None, "its header's checksum does not match"));
    }
    let (length, json) = header.split_at(8);
    if length != (json.len() as u64).to_le_bytes() {
        return Err(StoreError::damaged(path, None, "its header's length field is wrong"));
    }
    serde_json::from_slice(json)
        .map_err(|e| StoreError::damaged(path, None, format!("its header is invalid: {e}")))
}

/// The manifest and the safetensors header describe the same bytes, or one of them lies.
fn check_against_headers(
    manifest: &Manifest,
    name: &str,
    tensor: &TensorEntry,
    headers: &HashMap<&str, safetensors::tensor::Metadata>,
) -> Result<(), String> {
    let mut seen = HashSet::new();
    for part in &tensor.parts {
        if !seen.insert(&part.file) {
            return Err(format!("it has two parts in {}", part.file));
        }
        let info = headers[part.file.as_str()].info(name);
        let info = info.ok_or_else(|| format!("the header of {} does not list it", part.file))?;
        let data_start = manifest.files[&part.file].header_bytes;
        let (start, end) = info.data_offsets;
        let in_file = |position: usize| data_start.saturating_add(position as u64);
        let range = (in_file(start), in_file(end));
        let wanted = (part.offset, part.offset + tensor.part_bytes(part));
        if info.dtype != tensor.dtype.safetensors() || range != wanted {
            return Err(format!("the header of {} describes it otherwise", part.file));
        }
    }
    Ok(())
}
