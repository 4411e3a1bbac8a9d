//! `manifest.json`: what a checkpoint holds and where, with a checksum of itself in its last line.
//!
//! A manifest may come from anywhere, so [`Manifest::decode`] proves that each part lies in its
//! file and that the parts tile it, before anybody allocates or reads by it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};
use crate::tensor::{Dtype, elements};

/// The version that this build writes, and the newest that it reads.
pub(crate) const VERSION: u64 = 1;
/// The manifest's name in the folder of a step.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Some 30,000 tensors. A larger manifest is neither written nor read: parsed, it takes up to
/// twenty times its size in memory.
pub(crate) const MANIFEST_LIMIT_BYTES: u64 = 16 << 20;
/// The same for the JSON of a safetensors header, whose format would allow 100 MB.
pub(crate) const HEADER_LIMIT_BYTES: u64 = 16 << 20;

const SEAL_HEAD: &[u8] = b",\n  \"manifest_blake3\": \"";
const SEAL_TAIL: &[u8] = b"\"\n}\n";
const HEX_LENGTH: usize = 64;

/// Everything about one checkpoint but the bytes of its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub version: u64,
    /// The step after which it was taken.
    pub step: u64,
    /// Hash of what must be equal to resume: model, data, optimizer, batch, seed.
    pub run_hash: String,
    /// Hash of what may change between runs: layout and kernel choices.
    pub plan_hash: String,
    /// Small state beside the tensors, such as the data position.
    pub extra: serde_json::Value,
    /// The tensor files by name.
    pub files: BTreeMap<String, FileEntry>,
    /// The tensors by name.
    pub tensors: BTreeMap<String, TensorEntry>,
}

/// One safetensors file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Size of the whole file.
    pub size_bytes: u64,
    /// Size of its header: the length field and the JSON.
    pub header_bytes: u64,
    /// blake3 of its header, in hexadecimal.
    pub header_blake3: String,
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Element type.
    pub dtype: Dtype,
    /// Names of the axes, outermost first.
    pub axes: Vec<String>,
    /// Extents of the axes.
    pub shape: Vec<u64>,
    /// The ranges of the row-major tensor, ascending, that together are all of it.
    pub parts: Vec<Part>,
    /// blake3 of the whole tensor's bytes in row-major order, in hexadecimal.
    pub blake3: String,
}

/// A range of a tensor's elements and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The file.
    pub file: String,
    /// First byte of the part in the file, counted from the file's beginning.
    pub offset: u64,
    /// First element of the part in the tensor.
    pub start: u64,
    /// Number of elements.
    pub length: u64,
}

impl TensorEntry {
    /// Size in bytes; a decoded manifest guarantees that it is no larger than the checkpoint.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| self.part_bytes(part)).sum()
    }

    pub(crate) fn part_bytes(&self, part: &Part) -> u64 {
        part.length.saturating_mul(self.dtype.bytes())
    }
}

impl Manifest {
    /// The text of the file, sealed.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("maps have text keys");
        text.truncate(text.len() - b"\n}".len());
        let seal = blake3::hash(&text).to_hex();
        text.extend_from_slice(SEAL_HEAD);
        text.extend_from_slice(seal.as_bytes());
        text.extend_from_slice(SEAL_TAIL);
        text
    }

    /// Reads the text of the file at `path`, which should be that of `step`.
    ///
    /// # Errors
    /// `Damaged` for anything that `encode` did not write or that contradicts itself, `Version`.
    pub(crate) fn decode(text: &[u8], path: &Path, step: u64) -> Result<Self> {
        let damaged = |reason: String| StoreError::damaged(path, None, reason);
        check_seal(text).map_err(|reason| damaged(reason.to_owned()))?;
        #[derive(Deserialize)]
        struct Head {
            version: u64,
        }
        let head: Head = serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
        if head.version > VERSION {
            let path = path.to_owned();
            return Err(StoreError::Version { path, got: head.version, known: VERSION });
        }
        let manifest: Self = serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
        if manifest.step != step {
            let reason = format!("it is of step {} in the folder of step {step}", manifest.step);
            return Err(damaged(reason));
        }
        for (name, file) in &manifest.files {
            file.check(name).map_err(&damaged)?;
        }
        for (name, tensor) in &manifest.tensors {
            let in_tensor = |reason| StoreError::damaged(path, Some(name), reason);
            tensor.check(&manifest.files).map_err(in_tensor)?;
        }
        manifest
            .check_tiling()
            .map_err(|(tensor, reason)| StoreError::damaged(path, tensor.as_deref(), reason))?;
        Ok(manifest)
    }

    /// Checks that in each file the parts follow each other without a gap or an overlap.
    fn check_tiling(&self) -> Result<(), (Option<String>, String)> {
        let mut spans: BTreeMap<&str, Vec<(u64, u64, &str)>> = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            for part in &tensor.parts {
                let end = part.offset.saturating_add(tensor.part_bytes(part));
                spans.entry(&part.file).or_default().push((part.offset, end, name));
            }
        }
        for (name, file) in &self.files {
            let mut position = file.header_bytes;
            let in_file = spans.get_mut(name.as_str()).map_or(&mut [][..], |s| s.as_mut_slice());
            in_file.sort_unstable();
            for (start, end, tensor) in in_file {
                if *start != position {
                    let reason = format!("its part in {name} begins at {start}, not {position}");
                    return Err((Some((*tensor).to_owned()), reason));
                }
                position = *end;
            }
            if position != file.size_bytes {
                let reason = format!("tensors end at {position} of {} in {name}", file.size_bytes);
                return Err((None, reason));
            }
        }
        Ok(())
    }
}

impl FileEntry {
    fn check(&self, name: &str) -> Result<(), String> {
        // Only names that `commit` gives: a folder or `..` in a name would lead out of the step.
        let digits = name.strip_prefix("tensors-").and_then(|n| n.strip_suffix(".safetensors"));
        if !digits.is_some_and(|d| d.len() >= 5 && d.bytes().all(|b| b.is_ascii_digit())) {
            return Err(format!("{name:?} is no name of a tensor file"));
        }
        if self.header_bytes < 8 || self.header_bytes > HEADER_LIMIT_BYTES + 8 {
            return Err(format!("the header of {name} has {} bytes", self.header_bytes));
        }
        if self.header_bytes > self.size_bytes {
            return Err(format!("the header of {name} is longer than the file"));
        }
        check_hex(&self.header_blake3)
    }
}

impl TensorEntry {
    fn check(&self, files: &BTreeMap<String, FileEntry>) -> Result<(), String> {
        if self.axes.len() != self.shape.len() {
            return Err(format!("{} axes and {} extents", self.axes.len(), self.shape.len()));
        }
        let total = elements(self.shape.iter().copied()).ok_or("its shape overflows")?;
        total.checked_mul(self.dtype.bytes()).ok_or("its size overflows")?;
        let mut position = 0u64;
        for part in &self.parts {
            let file = files.get(&part.file);
            let file = file.ok_or_else(|| format!("its file {:?} is not listed", part.file))?;
            if part.start != position {
                return Err(format!("a part begins at element {}, not {position}", part.start));
            }
            position = position.checked_add(part.length).ok_or("its parts overflow")?;
            let bytes = part.length.checked_mul(self.dtype.bytes()).ok_or("its parts overflow")?;
            let end = part.offset.checked_add(bytes).ok_or("its parts overflow")?;
            if part.offset < file.header_bytes || end > file.size_bytes {
                return Err(format!("bytes {}..{end} are outside of {}", part.offset, part.file));
            }
        }
        if position != total {
            return Err(format!("its parts hold {position} of {total} elements"));
        }
        check_hex(&self.blake3)
    }
}

/// The seal is compared as text, so that no byte of the file can change unnoticed.
fn check_seal(text: &[u8]) -> Result<(), &'static str> {
    let unsealed = "it is cut off or was edited: its own checksum is missing";
    let text = text.strip_suffix(SEAL_TAIL).ok_or(unsealed)?;
    let (text, seal) = text.split_last_chunk::<HEX_LENGTH>().ok_or(unsealed)?;
    let body = text.strip_suffix(SEAL_HEAD).ok_or(unsealed)?;
    if blake3::hash(body).to_hex().as_bytes() == seal {
        Ok(())
    } else {
        Err("its own checksum does not match")
    }
}

fn check_hex(text: &str) -> Result<(), String> {
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() == HEX_LENGTH && text.bytes().all(is_hex) {
        Ok(())
    } else {
        Err(format!("{text:?} is no blake3 checksum"))
    }
}
