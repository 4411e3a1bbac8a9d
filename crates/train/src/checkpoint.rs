//! States to a checkpoint and back.

use crate::error::TrainError;
use crate::session::Session;
use aerogel_graph::DType;
use aerogel_machine::{Device, StateSlot};
use aerogel_store::{Checkpoint, Checkpoints, CommitInfo, Committed, Dtype, FillError, TensorSpec};

/// What is committed with the tensors.
pub(crate) struct Stamp<'a> {
    pub step: u64,
    pub run_hash: &'a str,
    pub sequences: u64,
}

fn spec(state: &StateSlot) -> TensorSpec {
    TensorSpec {
        name: state.name.clone(),
        dtype: match state.dtype {
            DType::F32 => Dtype::F32,
            DType::Bf16 => Dtype::Bf16,
            DType::U32 => Dtype::U32,
        },
        axes: state.axes.iter().map(|a| (a.name.clone(), a.size as u64)).collect(),
    }
}

/// Commits all parameters and the optimizer's memory; gives the bytes written.
pub(crate) fn save(
    session: &Session,
    to: &Checkpoints,
    stamp: &Stamp<'_>,
) -> Result<u64, TrainError> {
    let specs: Vec<TensorSpec> = session.lasting().map(spec).collect();
    let info = CommitInfo {
        step: stamp.step,
        run_hash: stamp.run_hash.to_owned(),
        plan_hash: session.plan.program.hash.clone(),
        extra: serde_json::json!({ "sequences": stamp.sequences }),
    };
    let read = |spec: &TensorSpec, offset: u64, out: &mut [u8]| {
        session
            .device
            .read_state(&spec.name, offset, out)
            .map_err(|e| FillError::from(e.to_string()))
    };
    match to.commit(&info, &specs, read)? {
        Committed::Written { size_bytes, .. } => Ok(size_bytes),
        Committed::AlreadyThere => Ok(0),
    }
}

/// Loads all lasting states from a checkpoint; every byte is verified on the way.
pub(crate) fn load(session: &mut Session, from: &Checkpoint) -> Result<(), TrainError> {
    let program = session.plan.program.clone();
    let wanted: Vec<&StateSlot> = {
        let names: Vec<String> = session.lasting().map(|s| s.name.clone()).collect();
        program.states.iter().filter(|s| names.contains(&s.name)).collect()
    };
    for state in wanted {
        let mismatch = |problem: String| TrainError::Mismatch {
            step: from.step(),
            name: state.name.clone(),
            problem,
        };
        let tensors = &from.manifest().tensors;
        let Some(entry) = tensors.get(&state.name) else {
            return Err(mismatch("is missing".to_owned()));
        };
        let own = spec(state);
        let axes: Vec<_> = entry.axes.iter().cloned().zip(entry.shape.iter().copied()).collect();
        if entry.dtype != own.dtype || axes != own.axes {
            return Err(mismatch(format!("has axes {axes:?}, the model {:?}", own.axes)));
        }
        let mut bytes = vec![0u8; state.bytes as usize];
        from.read(&state.name, &mut bytes)?;
        session.device.write_state(&state.name, 0, &bytes)?;
    }
    Ok(())
}
