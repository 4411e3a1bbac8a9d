//! Cuts of a chain of layers.

use aerogel_passes::pipeline::{Cost, PipelineError, cut};

/// All ways to cut, as the ends of the stages.
fn all_cuts(layers: usize, stages: usize) -> Vec<Vec<usize>> {
    if stages == 1 {
        return vec![vec![layers]];
    }
    let shorter =
        |end: usize| all_cuts(layers - end, stages - 1).into_iter().map(move |tail| (end, tail));
    (1..=layers + 1 - stages)
        .flat_map(shorter)
        .map(|(end, tail)| [vec![end], tail.iter().map(|e| e + end).collect()].concat())
        .collect()
}

#[test]
fn no_cut_is_better() {
    let mut state = 3_u64;
    let mut draw = |n: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % n
    };
    for layers in 1..=8 {
        for stages in 1..=layers {
            for spread in [1, 2, 10] {
                let mut cost = || Cost { flops: 1 + draw(spread), bytes: 1 + draw(spread) };
                let costs: Vec<Cost> = (0..layers).map(|_| cost()).collect();
                let (first, last) = (cost(), cost());
                let measure = |ends: &Vec<usize>| {
                    let starts = std::iter::once(&0).chain(ends);
                    let sums = starts.zip(ends).map(|(start, end)| {
                        let mut all = costs[*start..*end].to_vec();
                        all.extend((*start == 0).then_some(first));
                        all.extend((*end == layers).then_some(last));
                        let flops: u64 = all.iter().map(|c| c.flops).sum();
                        (flops, all.iter().map(|c| c.bytes).sum::<u64>())
                    });
                    let (flops, bytes): (Vec<u64>, Vec<u64>) = sums.unzip();
                    let squares: u64 = bytes.iter().map(|b| b * b).sum();
                    (
                        flops.iter().max().copied(),
                        bytes.iter().max().copied(),
                        squares,
                        ends.clone(),
                    )
                };
                let best = all_cuts(layers, stages).iter().map(measure).min().unwrap();
                let got = cut(&costs, stages, first, last).unwrap();
                let ends: Vec<usize> = got.iter().map(|stage| stage.layers.end).collect();
                assert_eq!(measure(&ends), best, "{costs:?} {first:?} {last:?}");
                assert_eq!(got.iter().map(|s| s.cost.flops).max(), best.0);
                assert_eq!(got.iter().map(|s| s.cost.bytes).max(), best.1);
                let starts = got.iter().skip(1).map(|stage| stage.layers.start);
                assert!(got[0].layers.start == 0 && starts.eq(ends[..stages - 1].iter().copied()));
            }
        }
    }
}

#[test]
fn cuts_heed_the_ends_and_ties() {
    let layer = Cost { flops: 10, bytes: 10 };
    let lengths = |layers: usize, stages, first, last| -> Vec<usize> {
        let stages = cut(&vec![layer; layers], stages, first, last).unwrap();
        stages.iter().map(|stage| stage.layers.len()).collect()
    };
    let none = Cost::default();
    assert_eq!(lengths(10, 4, none, none), [2, 2, 3, 3]);
    assert_eq!(lengths(10, 4, none, Cost { flops: 15, bytes: 0 }), [3, 3, 3, 1]);
    assert_eq!(lengths(10, 4, Cost { flops: 0, bytes: 15 }, none), [1, 3, 3, 3]);
    assert_eq!(lengths(9, 4, Cost { flops: 0, bytes: 25 }, none), [1, 2, 3, 3]);
    assert_eq!(lengths(32, 1, layer, layer), [32]);
    let huge = Cost { flops: u64::MAX, bytes: u64::MAX };
    assert_eq!(cut(&[huge; 3], 2, huge, huge).unwrap().len(), 2);
    assert_eq!(
        cut(&[layer; 3], 4, none, none).unwrap_err().to_string(),
        "pipeline: 3 layers cannot fill 4 stages, which hold one at least; use at most 3 stages \
         (ranks of the pipeline times chunks), or more layers"
    );
    assert_eq!(cut(&[layer], 0, none, none), Err(PipelineError::Zero { what: "stages" }));
}
