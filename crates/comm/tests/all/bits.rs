//! The same bits, whoever comes first.

use super::common::*;
use aerogel_graph::DType;
use aerogel_machine::{Collectives, Merge, Pattern};
use std::time::Duration;

/// All outputs of all ranks of a run whose ranks sleep here and there.
fn outputs(seed: u64) -> Vec<Vec<u8>> {
    run(ties(&[2, 3], 20_000), |tie| {
        let mut naps = Draws(seed * 100 + tie.rank() as u64);
        let mut data = Draws(tie.rank() as u64);
        let mut all = vec![];
        for i in 0..12 {
            let over: &[u8] = [&[1][..], &[0, 1], &[1, 0], &[0]][i % 4];
            let pattern = match i % 3 {
                0 => Pattern::ReduceScatter,
                1 => Pattern::AllReduce(Merge::Sum),
                _ => Pattern::AllReduce(Merge::Lse),
            };
            let mut call = call(pattern, over, 6 * (20 + 61 * i), "step");
            call.dtype = [DType::F32, DType::Bf16][i / 2 % 2];
            let value = |x: u64| ((x >> 11) as f64 / (1u64 << 53) as f64 - 0.5) * 1e3;
            let x: Vec<f64> = (0..call.elements).map(|_| value(data.next())).collect();
            let members: usize = over.iter().map(|&m| [2, 3][m as usize]).product();
            let pieces = if pattern == Pattern::ReduceScatter { members } else { 1 };
            let mut out = vec![0; call.elements * call.dtype.bytes() / pieces];
            std::thread::sleep(Duration::from_micros(naps.below(1500) as u64));
            tie.exchange(&call, &encode(call.dtype, &x), &mut out).unwrap();
            all.extend(out);
        }
        all
    })
}

#[test]
fn timing_does_not_change_bits() {
    let first = outputs(0);
    assert!(first[0].iter().any(|&b| b != 0));
    for seed in 1..6 {
        assert!(outputs(seed) == first, "run {seed}");
    }
}
