//! Tensors to a checkpoint and back.

use crate::error::TrainError;
use crate::session::Session;
use crate::tensors::Tensor;
use aerogel_graph::DType;
use aerogel_store::{Checkpoint, Checkpoints, CommitInfo, Committed, Dtype, FillError, TensorSpec};

/// What is committed with the tensors.
pub(crate) struct Stamp<'a> {
    pub step: u64,
    pub run_hash: &'a str,
    pub sequences: u64,
}

fn spec(tensor: &Tensor) -> TensorSpec {
    TensorSpec {
        name: tensor.name.clone(),
        dtype: match tensor.dtype {
            DType::F32 => Dtype::F32,
            DType::Bf16 => Dtype::Bf16,
            DType::F16 => Dtype::F16,
            DType::U32 => Dtype::U32,
        },
        axes: tensor.axes.clone(),
    }
}

/// Commits all parameters and the optimizer's memory, each value once whatever the ranks hold;
/// gives the bytes written.
pub(crate) fn save(
    session: &Session,
    to: &Checkpoints,
    stamp: &Stamp<'_>,
) -> Result<u64, TrainError> {
    let specs: Vec<TensorSpec> = session.tensors.iter().map(spec).collect();
    let info = CommitInfo {
        step: stamp.step,
        run_hash: stamp.run_hash.to_owned(),
        plan_hash: session.plan.hash(),
        extra: serde_json::json!({ "sequences": stamp.sequences }),
    };
    let read = |spec: &TensorSpec, offset: u64, out: &mut [u8]| {
        let found = session.tensors.find(&spec.name);
        let tensor = found.ok_or_else(|| FillError::from(format!("no tensor {}", spec.name)))?;
        let first = offset / tensor.dtype.bytes() as u64;
        tensor.read(&session.ranks, first, out).map_err(|e| FillError::from(e.to_string()))
    };
    match to.commit(&info, &specs, read)? {
        Committed::Written { size_bytes, .. } => Ok(size_bytes),
        Committed::AlreadyThere => Ok(0),
    }
}

/// Loads all tensors from a checkpoint, whatever layout wrote it; every byte is verified on the
/// way.
pub(crate) fn load(session: &mut Session, from: &Checkpoint) -> Result<(), TrainError> {
    let entries = &from.manifest().tensors;
    for tensor in session.tensors.iter() {
        let Some(entry) = entries.get(&tensor.name) else {
            let (name, problem) = (tensor.name.clone(), "is missing".to_owned());
            return Err(TrainError::Mismatch { step: from.step(), name, problem });
        };
        let axes: Vec<_> = entry.axes.iter().cloned().zip(entry.shape.iter().copied()).collect();
        let dtype = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::Bf16 => DType::Bf16,
            Dtype::F16 => DType::F16,
            _ => DType::U32,
        };
        tensor.check(from.step(), dtype, &axes)?;
        let mut bytes = vec![0u8; tensor.count() as usize * tensor.dtype.bytes()];
        from.read(&tensor.name, &mut bytes)?;
        tensor.write(&mut session.ranks, 0, &bytes)?;
    }
    session.refresh()
}
