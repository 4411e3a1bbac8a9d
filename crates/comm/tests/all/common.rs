//! Ranks as threads, numbers as bytes, and draws.

use aerogel_comm::{Fabric, Options, Tie};
use aerogel_graph::types::{f16_to_f32, f32_to_f16};
use aerogel_graph::{DType, Mesh};
use aerogel_machine::{Call, Collectives, CommError, Merge, Pattern};
use std::time::Duration;

/// Draws that only depend on the seed (splitmix64: Steele et al., 2014).
pub struct Draws(pub u64);

impl Draws {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    /// Some of the axes of a mesh, in any order.
    pub fn over(&mut self, mesh: &Mesh) -> Vec<u8> {
        let mut left: Vec<u8> = (0..mesh.0.len() as u8).collect();
        let n = self.below(left.len() + 1);
        (0..n).map(|_| left.remove(self.below(left.len()))).collect()
    }
}

pub fn mesh(sizes: &[usize]) -> Mesh {
    let name = |i: usize| ["data", "tensor", "pipe", "context"][i].to_owned();
    Mesh(sizes.iter().enumerate().map(|(i, &size)| (name(i), size)).collect())
}

pub fn ties(sizes: &[usize], timeout_ms: u64) -> Vec<Tie> {
    Fabric::new(mesh(sizes), Options { timeout: Duration::from_millis(timeout_ms) })
}

/// Runs every rank on a thread of its own; it drops its tie when it returns.
pub fn run<R: Send>(ties: Vec<Tie>, rank: impl Fn(Tie) -> R + Sync) -> Vec<R> {
    std::thread::scope(|s| {
        let rank = &rank;
        let threads: Vec<_> = ties.into_iter().map(|tie| s.spawn(move || rank(tie))).collect();
        threads.into_iter().map(|t| t.join().expect("a rank panicked")).collect()
    })
}

pub fn call(pattern: Pattern, over: &[u8], elements: usize, site: &str) -> Call {
    let over = over.to_vec();
    Call { pattern, over, dtype: DType::F32, elements, rows: 1, site: site.into() }
}

pub fn sum(over: &[u8], elements: usize, site: &str) -> Call {
    call(Pattern::AllReduce(Merge::Sum), over, elements, site)
}

/// The call with buffers of zeros of the right sizes.
pub fn exchange(tie: &(impl Collectives + ?Sized), call: &Call) -> Result<(), CommError> {
    let members: usize = call.over.iter().map(|&m| tie.mesh().size(m)).product();
    let bytes = call.elements * call.dtype.bytes();
    let out_bytes = match call.pattern {
        Pattern::AllGather => bytes * members,
        Pattern::ReduceScatter => bytes / members,
        _ => bytes,
    };
    tie.exchange(call, &vec![0; bytes], &mut vec![1; out_bytes])
}

pub fn encode(dtype: DType, x: &[f64]) -> Vec<u8> {
    x.iter()
        .flat_map(|&x| match dtype {
            DType::F32 => (x as f32).to_ne_bytes().to_vec(),
            DType::U32 => (x as u32).to_ne_bytes().to_vec(),
            DType::F16 => f32_to_f16(x as f32).to_ne_bytes().to_vec(),
            DType::Bf16 => ((dtype.round(x) as f32).to_bits() >> 16).to_ne_bytes()[..2].to_vec(),
        })
        .collect()
}

pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(dtype.bytes())
        .map(|b| match dtype {
            DType::F32 => f64::from(f32::from_ne_bytes([b[0], b[1], b[2], b[3]])),
            DType::F16 => f64::from(f16_to_f32(u16::from_ne_bytes([b[0], b[1]]))),
            DType::U32 => f64::from(u32::from_ne_bytes([b[0], b[1], b[2], b[3]])),
            DType::Bf16 => {
                f64::from(f32::from_bits(u32::from(u16::from_ne_bytes([b[0], b[1]])) << 16))
            }
        })
        .collect()
}
