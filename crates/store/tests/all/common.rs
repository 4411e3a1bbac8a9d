//! A small checkpoint whose bytes follow from its step.

use std::path::Path;
use std::sync::Arc;

use aerogel_store::{
    Checkpoint, Checkpoints, CommitInfo, Committed, Dtype, Fs, RealFs, Result, TensorSpec,
};

pub const RUN: &str = "run-a";

/// Tensors of several dtypes and sizes: beyond a disk block, odd, scalar, empty.
pub fn specs() -> Vec<TensorSpec> {
    let spec = |name: &str, dtype, axes: &[(&str, u64)]| TensorSpec {
        name: name.to_owned(),
        dtype,
        axes: axes.iter().map(|(axis, extent)| ((*axis).to_owned(), *extent)).collect(),
    };
    vec![
        spec("h.0.norm.gain", Dtype::Bf16, &[("embed", 33)]),
        spec("h.0.attn.q.weight", Dtype::F32, &[("kv", 5), ("embed", 300)]),
        spec("optimizer.steps", Dtype::U64, &[]),
        spec("h.0.mask", Dtype::U8, &[("seq", 777)]),
        spec("h.0.none", Dtype::F32, &[("seq", 0), ("embed", 4)]),
        spec("h.0.attn.k.weight", Dtype::F32, &[("kv", 5), ("embed", 300)]),
    ]
}

/// One byte of a tensor after a step.
pub fn byte(name: &str, step: u64, position: u64) -> u8 {
    let seed = name.bytes().fold(step, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
    (seed.wrapping_add(position).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

pub fn info(step: u64) -> CommitInfo {
    let (run_hash, plan_hash) = (RUN.to_owned(), "plan-a".to_owned());
    CommitInfo { step, run_hash, plan_hash, extra: serde_json::json!({ "position": step * 8 }) }
}

pub fn commit(checkpoints: &Checkpoints, step: u64) -> Result<Committed> {
    checkpoints.commit(&info(step), &specs(), |spec, offset, out| {
        for (index, b) in out.iter_mut().enumerate() {
            *b = byte(&spec.name, step, offset + index as u64);
        }
        Ok(())
    })
}

/// Files of a few KiB, so that the checkpoint has three.
pub fn open(fs: Arc<dyn Fs>, dir: &Path) -> Checkpoints {
    Checkpoints::new(fs, dir.join("checkpoints")).with_file_bytes(6_100)
}

pub fn real(dir: &Path) -> Checkpoints {
    open(Arc::new(RealFs), dir)
}

/// Reads every tensor and compares it with what was committed.
pub fn assert_contents(checkpoint: &Checkpoint) {
    let step = checkpoint.step();
    assert_eq!(checkpoint.manifest().extra["position"], step * 8);
    assert_eq!(checkpoint.manifest().tensors.len(), specs().len());
    for spec in specs() {
        let mut bytes = vec![0; spec.bytes().unwrap() as usize];
        checkpoint.read(&spec.name, &mut bytes).unwrap();
        for (index, b) in bytes.iter().enumerate() {
            assert_eq!(*b, byte(&spec.name, step, index as u64), "{} at {index}", spec.name);
        }
    }
}

/// All files of a step's folder.
pub fn files_of(checkpoints: &Path, step: u64) -> Vec<std::path::PathBuf> {
    let folder = checkpoints.join(format!("checkpoints/step-{step:08}"));
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// A reproducible stream of numbers.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
