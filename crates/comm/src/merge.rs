//! Merging the inputs of all members, element by element over a fixed tree.
//!
//! The tree is that of a binary counter: the left half is the largest power of two below the number
//! of members, neighbours come first. An element's tree does not depend on how elements are cut
//! into chunks, so any cut gives the same bits. Everything is f32, rounded once at the end.

use aerogel_graph::DType;
use aerogel_graph::types::{f16_to_f32, f32_to_f16, round_bf16};
use aerogel_machine::Merge;
use std::ops::Range;

/// Elements that are merged at a time: small enough for one buffer per level of the tree to stay in
/// the first cache, large enough for the inner loops to be vectors.
const CHUNK: usize = 512;

/// Bytes of every input that are merged: `count` runs, each `stride` behind the one before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strip {
    pub(crate) start: usize,
    /// Of one run.
    pub(crate) bytes: usize,
    pub(crate) stride: usize,
    pub(crate) count: usize,
}

/// Buffers for the levels of a tree.
pub(crate) struct Scratch(Vec<f32>);

impl Scratch {
    /// Enough for so many members.
    pub(crate) fn new(members: usize) -> Scratch {
        let levels = 1 + members.next_power_of_two().trailing_zeros() as usize;
        Scratch(vec![0.0; CHUNK * levels])
    }
}

/// What is merged, of how many.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    pub(crate) by: Merge,
    pub(crate) dtype: DType,
    pub(crate) members: usize,
}

/// Merges a strip of all inputs into `out`, where its runs follow one another.
pub(crate) fn merge<'a>(
    job: Job,
    input: &impl Fn(usize) -> &'a [u8],
    strip: Strip,
    out: &mut [u8],
    scratch: &mut Scratch,
) {
    let width = job.dtype.bytes();
    let len = strip.bytes / width;
    if len == 0 {
        return;
    }
    let (top, spare) = scratch.0.split_at_mut(CHUNK);
    let rows_at_once = (CHUNK / len).max(1);
    for row in (0..strip.count).step_by(rows_at_once) {
        let count = rows_at_once.min(strip.count - row);
        for at in (0..len).step_by(CHUNK) {
            let n = CHUNK.min(len - at);
            let start = strip.start + row * strip.stride + at * width;
            let chunk = Strip { start, bytes: n * width, count, ..strip };
            let merged = &mut top[..n * count];
            tree(job, input, 0..job.members, chunk, merged, spare);
            let to = (row * len + at) * width;
            store(job.dtype, merged, &mut out[to..to + n * count * width]);
        }
    }
}

fn tree<'a>(
    job: Job,
    input: &impl Fn(usize) -> &'a [u8],
    members: Range<usize>,
    chunk: Strip,
    out: &mut [f32],
    spare: &mut [f32],
) {
    if members.len() == 1 {
        return load(job.dtype, input(members.start), chunk, out);
    }
    let cut = members.start + members.len().next_power_of_two() / 2;
    tree(job, input, members.start..cut, chunk, out, spare);
    let (right, spare) = spare.split_at_mut(CHUNK);
    let right = &mut right[..out.len()];
    tree(job, input, cut..members.end, chunk, right, spare);
    combine(job.by, out, right);
}

fn combine(by: Merge, left: &mut [f32], right: &[f32]) {
    let pairs = left.iter_mut().zip(right);
    match by {
        Merge::Sum => pairs.for_each(|(a, &b)| *a += b),
        // Not `f32::max`: of two zeros it may give either, in vectors another than outside of them.
        Merge::Max => pairs.for_each(|(a, &b)| *a = if *a >= b || b.is_nan() { *a } else { b }),
        Merge::Lse => pairs.for_each(|(a, &b)| *a = by.of(f64::from(*a), f64::from(b)) as f32),
    }
}

fn load(dtype: DType, input: &[u8], chunk: Strip, out: &mut [f32]) {
    let runs = out.chunks_exact_mut(chunk.bytes / dtype.bytes());
    for (run, out) in runs.enumerate() {
        let from = chunk.start + run * chunk.stride;
        let (wide, _) = input[from..from + chunk.bytes].as_chunks::<4>();
        let (half, _) = input[from..from + chunk.bytes].as_chunks::<2>();
        match dtype {
            DType::Bf16 => out.iter_mut().zip(half).for_each(|(x, &b)| {
                *x = f32::from_bits(u32::from(u16::from_ne_bytes(b)) << 16);
            }),
            DType::F16 => {
                out.iter_mut().zip(half).for_each(|(x, &b)| *x = f16_to_f32(u16::from_ne_bytes(b)));
            }
            DType::F32 | DType::U32 => {
                out.iter_mut().zip(wide).for_each(|(x, &b)| *x = f32::from_ne_bytes(b));
            }
        }
    }
}

fn store(dtype: DType, merged: &[f32], out: &mut [u8]) {
    match dtype {
        DType::Bf16 => {
            let (half, _) = out.as_chunks_mut::<2>();
            half.iter_mut().zip(merged).for_each(|(b, &x)| {
                *b = ((round_bf16(x).to_bits() >> 16) as u16).to_ne_bytes();
            });
        }
        DType::F16 => {
            let (half, _) = out.as_chunks_mut::<2>();
            half.iter_mut().zip(merged).for_each(|(b, &x)| *b = f32_to_f16(x).to_ne_bytes());
        }
        DType::F32 | DType::U32 => {
            let (wide, _) = out.as_chunks_mut::<4>();
            wide.iter_mut().zip(merged).for_each(|(b, &x)| *b = x.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(by: Merge, inputs: &[Vec<f32>], strip: Strip) -> Vec<f32> {
        let bytes: Vec<Vec<u8>> =
            inputs.iter().map(|v| v.iter().flat_map(|x| x.to_ne_bytes()).collect()).collect();
        let mut out = vec![0; strip.bytes * strip.count];
        let job = Job { by, dtype: DType::F32, members: inputs.len() };
        let mut scratch = Scratch::new(inputs.len());
        merge(job, &|m: usize| &bytes[m][..], strip, &mut out, &mut scratch);
        out.as_chunks::<4>().0.iter().map(|&b| f32::from_ne_bytes(b)).collect()
    }

    #[test]
    fn five_members_are_added_as_four_and_one() {
        // 2^24 swallows a 1 that comes alone, but not two of them.
        let big = 16_777_216.0;
        let inputs = [big, 0.0, 1.0, 1.0, 1.0].map(|x| vec![x]);
        let strip = Strip { start: 0, bytes: 4, stride: 4, count: 1 };
        assert_eq!(merged(Merge::Sum, &inputs, strip), [(big + (1.0 + 1.0)) + 1.0]);
    }

    #[test]
    fn chunks_and_runs_do_not_change_bits() {
        let (rows, len) = (7, 1500);
        let value = |m: usize, i: usize| ((m * 7919 + i * 104_729) % 1013) as f32 * 0.1 - 37.3;
        let inputs: Vec<Vec<f32>> =
            (0..6).map(|m| (0..rows * len).map(|i| value(m, i)).collect()).collect();
        let whole = Strip { start: 0, bytes: rows * len * 4, stride: 0, count: 1 };
        for by in [Merge::Sum, Merge::Max, Merge::Lse] {
            let all = merged(by, &inputs, whole);
            for (from, n) in [(0, len), (3, 5), (700, 700), (1, 513)] {
                let strip = Strip { start: from * 4, bytes: n * 4, stride: len * 4, count: rows };
                let wanted: Vec<f32> =
                    all.chunks(len).flat_map(|row| row[from..from + n].to_vec()).collect();
                assert_eq!(merged(by, &inputs, strip), wanted, "{by:?} {from} {n}");
            }
        }
    }

    #[test]
    fn of_zeros_and_of_what_is_no_number_the_largest_is_decided() {
        let strip = Strip { start: 0, bytes: 16, stride: 0, count: 1 };
        let inputs = [vec![-0.0, 0.0, f32::NAN, 1.0], vec![0.0, -0.0, 2.0, f32::NAN]];
        let bits: Vec<u32> =
            merged(Merge::Max, &inputs, strip).iter().map(|x| x.to_bits()).collect();
        assert_eq!(bits, [-0.0, 0.0, 2.0, 1.0f32].map(f32::to_bits));
    }
}
