//! Writing one step: the commit protocol, in one place.
//!
//! Temporary folder, tensor files, fsync of each, manifest, fsync, fsync of the folder, rename,
//! fsync of its parent. Only the rename makes the step visible, and only what was fsynced before
//! it can become visible, so each crash leaves the step whole or absent.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo};

use crate::atomic::write_atomic;
use crate::checkpoint::CHUNK_BYTES;
use crate::error::{At, Result, StoreError};
use crate::fs::{Fs, retry, write_all};
use crate::manifest::{FileEntry, Manifest, Part, TensorEntry};
use crate::manifest::{HEADER_LIMIT_BYTES, MANIFEST, MANIFEST_LIMIT_BYTES, VERSION};
use crate::tensor::TensorSpec;

/// What a checkpoint records beside its tensors.
#[derive(Clone, Debug)]
pub struct CommitInfo {
    /// The step after which it is taken.
    pub step: u64,
    /// Hash of what must be equal to resume.
    pub run_hash: String,
    /// Hash of what may change between runs.
    pub plan_hash: String,
    /// Small state, such as the data position; it lies in the manifest.
    pub extra: serde_json::Value,
}

/// How a commit ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committed {
    /// The step was written and is durable.
    Written {
        /// Bytes written, of all files.
        size_bytes: u64,
        /// Why a damaged step of the same number was replaced, where there was one.
        replaced: Option<String>,
    },
    /// The step was there, verified, with the same `run_hash`; it was left alone and is durable.
    AlreadyThere,
}

/// Why the caller could not give the bytes of a tensor.
pub type FillError = Box<dyn std::error::Error + Send + Sync>;

/// Gives the bytes of a tensor from a byte offset on, as many as the buffer holds.
pub(crate) type Fill<'a> = &'a mut dyn FnMut(&TensorSpec, u64, &mut [u8]) -> Result<(), FillError>;

/// Which tensors go into which file, with the headers ready to write.
pub(crate) struct FilePlan<'a> {
    name: String,
    header: Vec<u8>,
    tensors: Vec<&'a TensorSpec>,
    data_bytes: u64,
}

/// Deals the tensors out to files of at least one tensor and about `file_bytes`.
pub(crate) fn plan_files<'a>(
    specs: &'a [TensorSpec],
    step: u64,
    file_bytes: u64,
) -> Result<Vec<FilePlan<'a>>> {
    // Wide elements first, in the given order among equals: then every tensor is aligned.
    let mut order: Vec<&TensorSpec> = specs.iter().collect();
    order.sort_by_key(|spec| std::cmp::Reverse(spec.dtype.bytes()));
    let mut groups: Vec<(u64, Vec<&TensorSpec>)> = Vec::new();
    for spec in order {
        let bytes = spec.bytes()?;
        match groups.last_mut() {
            Some((total, group)) if total.saturating_add(bytes) <= file_bytes => {
                *total += bytes;
                group.push(spec);
            }
            _ => groups.push((bytes, vec![spec])),
        }
    }
    let plan = |(index, (data_bytes, tensors)): (usize, (u64, Vec<&'a TensorSpec>))| {
        let name = format!("tensors-{index:05}.safetensors");
        let header = header(&tensors, step)?;
        Ok(FilePlan { name, header, tensors, data_bytes })
    };
    groups.into_iter().enumerate().map(plan).collect()
}

/// Bytes that a checkpoint will take, the manifest by a generous guess.
pub(crate) fn planned_bytes(plans: &[FilePlan<'_>], info: &CommitInfo) -> u64 {
    let extra = info.extra.to_string().len() as u64 * 8;
    let files = plans.iter().map(|p| (p.header.len() as u64).saturating_mul(8) + p.data_bytes);
    // Of a tensor, the manifest takes six to seven times the bytes that the header takes.
    files.fold(4096 + extra, u64::saturating_add)
}

fn header(tensors: &[&TensorSpec], step: u64) -> Result<Vec<u8>> {
    let mut infos = Vec::with_capacity(tensors.len());
    let mut position = 0usize;
    for spec in tensors {
        let end = position + spec.bytes()? as usize;
        let info = TensorInfo {
            dtype: spec.dtype.safetensors(),
            shape: spec.axes.iter().map(|(_, extent)| *extent as usize).collect(),
            data_offsets: (position, end),
        };
        infos.push((spec.name.clone(), info));
        position = end;
    }
    let bad = |reason: String| {
        let name = tensors.first().map_or_else(String::new, |spec| spec.name.clone());
        StoreError::BadTensor { name, reason }
    };
    // One key only: the crate keeps these in a hash map, and equal runs shall give equal bytes.
    let notes = [("aerogel_step".to_owned(), step.to_string())].into();
    let metadata = Metadata::new(Some(notes), infos).map_err(|e| bad(e.to_string()))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| bad(e.to_string()))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() as u64 > HEADER_LIMIT_BYTES {
        return Err(bad("too many tensors for one safetensors header".to_owned()));
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

/// Writes all files of a step into `temp`, which it makes, durably. Returns the bytes written.
pub(crate) fn write_step(
    fs: &dyn Fs,
    temp: &Path,
    info: &CommitInfo,
    plans: &[FilePlan<'_>],
    fill: Fill<'_>,
) -> Result<u64> {
    retry(|| fs.create_dir(temp)).at("create", temp)?;
    let mut manifest = Manifest {
        version: VERSION,
        step: info.step,
        run_hash: info.run_hash.clone(),
        plan_hash: info.plan_hash.clone(),
        extra: info.extra.clone(),
        files: BTreeMap::new(),
        tensors: BTreeMap::new(),
    };
    let mut size_bytes = 0;
    for plan in plans {
        write_file(fs, temp, plan, fill, &mut manifest)?;
        size_bytes += plan.header.len() as u64 + plan.data_bytes;
    }
    let text = manifest.encode();
    if text.len() as u64 > MANIFEST_LIMIT_BYTES {
        let reason = format!("the manifest would have {} bytes", text.len());
        return Err(StoreError::BadTensor { name: MANIFEST.to_owned(), reason });
    }
    // Its last act is to fsync the folder, after which all names in it are durable.
    write_atomic(fs, &temp.join(MANIFEST), &text)?;
    Ok(size_bytes + text.len() as u64)
}

fn write_file(
    fs: &dyn Fs,
    folder: &Path,
    plan: &FilePlan<'_>,
    fill: Fill<'_>,
    manifest: &mut Manifest,
) -> Result<()> {
    let path = folder.join(&plan.name);
    let mut file = retry(|| fs.create(&path)).at("create", &path)?;
    write_all(file.as_mut(), &plan.header).at("write", &path)?;
    let header_bytes = plan.header.len() as u64;
    let mut offset = header_bytes;
    let mut buffer = Vec::new();
    for spec in &plan.tensors {
        let bytes = spec.bytes()?;
        let mut hasher = blake3::Hasher::new();
        let mut position = 0;
        while position < bytes {
            buffer.resize((bytes - position).min(CHUNK_BYTES) as usize, 0);
            fill(spec, position, &mut buffer)
                .map_err(|source| StoreError::Fill { name: spec.name.clone(), source })?;
            hasher.update(&buffer);
            write_all(file.as_mut(), &buffer).at("write", &path)?;
            position += buffer.len() as u64;
        }
        let part = Part { file: plan.name.clone(), offset, start: 0, length: spec.elements()? };
        manifest.tensors.insert(spec.name.clone(), entry(spec, part, &hasher));
        offset += bytes;
    }
    retry(|| file.sync()).at("fsync", &path)?;
    let header_blake3 = blake3::hash(&plan.header).to_hex().to_string();
    let entry = FileEntry { size_bytes: offset, header_bytes, header_blake3 };
    manifest.files.insert(plan.name.clone(), entry);
    Ok(())
}

fn entry(spec: &TensorSpec, part: Part, hasher: &blake3::Hasher) -> TensorEntry {
    let (axes, shape) = spec.axes.iter().cloned().unzip();
    let blake3 = hasher.finalize().to_hex().to_string();
    TensorEntry { dtype: spec.dtype, axes, shape, parts: vec![part], blake3 }
}
