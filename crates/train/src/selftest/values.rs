//! Numbers as a device holds them.

use super::rng::Rng;
use aerogel_graph::types::{f16_to_f32, f32_to_f16};
use aerogel_graph::{Build, DType, Def, Env, Graph, Tensor, Type};
use std::collections::BTreeMap;

/// Bytes by name.
pub type Bytes = BTreeMap<String, Vec<u8>>;

/// The elements of a tensor as a device holds them.
pub fn bytes_of(dtype: DType, data: &[f64]) -> Vec<u8> {
    let bytes = |x: &f64| match dtype {
        DType::F32 => (*x as f32).to_le_bytes().to_vec(),
        DType::Bf16 => (dtype.round(*x) as f32).to_le_bytes()[2..].to_vec(),
        DType::F16 => f32_to_f16(*x as f32).to_le_bytes().to_vec(),
        DType::U32 => (*x as u32).to_le_bytes().to_vec(),
    };
    data.iter().flat_map(bytes).collect()
}

/// The inverse of [`bytes_of`].
pub fn numbers_of(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let number = |b: &[u8]| match dtype {
        DType::F32 => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        DType::Bf16 => f64::from(f32::from_le_bytes([0, 0, b[0], b[1]])),
        DType::F16 => f64::from(f16_to_f32(u16::from_le_bytes([b[0], b[1]]))),
        DType::U32 => f64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
    };
    bytes.chunks_exact(dtype.bytes()).map(number).collect()
}

/// Random numbers for all inputs and states that the environment lacks: floats in [-1, 1), and
/// ids below `rows`.
pub fn fill(g: &Graph, env: &mut Env, rng: &mut Rng, rows: usize) {
    for value in g.values() {
        let name = match value.def {
            Def::Input(i) => &g.inputs()[i as usize].name,
            Def::State(s) => &g.states()[s.index()].name,
            Def::Node(..) => continue,
        };
        if !env.contains_key(name) {
            env.insert(name.clone(), random(g, &value.ty, rng, rows));
        }
    }
}

/// A random tensor of a type.
pub fn random(g: &Graph, ty: &Type, rng: &mut Rng, rows: usize) -> Tensor {
    let count = g.axes().count(&ty.axes);
    let draw = |rng: &mut Rng| match ty.dtype {
        DType::U32 => rng.below(rows) as f64,
        dtype => dtype.round(rng.value()),
    };
    let data = (0..count).map(|_| draw(rng)).collect();
    Tensor::from_vec(g.axes(), &ty.axes, data)
}
