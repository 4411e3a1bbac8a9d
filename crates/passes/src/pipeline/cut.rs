//! Which layers make up which stage.
//!
//! The slowest stage sets the pace of a pipeline, so the largest cost of a stage is what counts.
//! Layers are few, so the best cut is found by dynamic programming over (stages, layers), as in
//! PipeDream (Narayanan et al., 2019), and no heuristic is needed.

use std::ops::Range;

use super::error::PipelineError;

/// What a layer, or a stage, costs. Sums stop at the largest u64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations of forward and backward.
    pub flops: u64,
    /// Bytes held: parameters with their states, and what is kept for the backward, as the caller
    /// counts them.
    pub bytes: u64,
}

/// A stage of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its layers, counted from 0.
    pub layers: Range<usize>,
    /// What they cost, with the extra cost of the first or last stage.
    pub cost: Cost,
}

/// Cuts a chain of layers into `stages` runs of one layer at least. `first` is what the first
/// stage carries beside its layers (the embedding) and `last` what the last one does (the head); a
/// single stage carries both. For the interleaved schedule, `stages` counts the virtual ones.
///
/// Of all cuts, it takes one whose largest FLOPs of a stage are least; of those, one whose largest
/// bytes are least; of those, one whose bytes have the least sum of squares, which is nearest to
/// even; of those, the one whose early stages are shortest, as they have the most micro-batches in
/// flight. Takes time O(stages * layers^2).
///
/// # Errors
/// There are no stages, or fewer layers than stages.
pub fn cut(
    layers: &[Cost],
    stages: usize,
    first: Cost,
    last: Cost,
) -> Result<Vec<Stage>, PipelineError> {
    if stages == 0 {
        return Err(PipelineError::Zero { what: "stages" });
    }
    if layers.len() < stages {
        return Err(PipelineError::FewLayers { layers: layers.len(), stages });
    }
    let chain = Chain::new(layers, stages, first, last);
    let flops = chain.best(|cost| Some(cost.flops.into()), u128::max).value;
    let within = |cost: Cost| u128::from(cost.flops) <= flops;
    let bytes = chain.best(|cost| within(cost).then_some(cost.bytes.into()), u128::max).value;
    let square = |cost: Cost| {
        let fits = within(cost) && u128::from(cost.bytes) <= bytes;
        fits.then(|| u128::from(cost.bytes).pow(2))
    };
    Ok(chain.best(square, u128::saturating_add).stages)
}

/// The costs of all runs of layers.
struct Chain {
    /// FLOPs and bytes of the layers before each layer, and of all.
    before: Vec<[u128; 2]>,
    stages: usize,
    first: Cost,
    last: Cost,
}

/// A cut that is best by some measure, and its measure.
struct Best {
    value: u128,
    stages: Vec<Stage>,
}

impl Chain {
    fn new(layers: &[Cost], stages: usize, first: Cost, last: Cost) -> Self {
        let mut before = vec![[0; 2]];
        let mut sum = [0_u128; 2];
        for layer in layers {
            sum = [sum[0] + u128::from(layer.flops), sum[1] + u128::from(layer.bytes)];
            before.push(sum);
        }
        Self { before, stages, first, last }
    }

    fn cost(&self, stage: usize, layers: Range<usize>) -> Cost {
        let mut sum = [0, 1].map(|i| self.before[layers.end][i] - self.before[layers.start][i]);
        let extras = [(stage == 0, self.first), (stage + 1 == self.stages, self.last)];
        for (_, extra) in extras.into_iter().filter(|(carries, _)| *carries) {
            sum = [sum[0] + u128::from(extra.flops), sum[1] + u128::from(extra.bytes)];
        }
        let [flops, bytes] = sum.map(|sum| u64::try_from(sum).unwrap_or(u64::MAX));
        Cost { flops, bytes }
    }

    /// The cut for which the values of the stages, combined, are least. A stage without a value is
    /// not allowed; some cut must have none of those.
    fn best(
        &self,
        value: impl Fn(Cost) -> Option<u128>,
        combine: impl Fn(u128, u128) -> u128,
    ) -> Best {
        let layers = self.before.len() - 1;
        // For each stage and first layer, the value from there to the end of the chain and the
        // first layer of the next stage. The chain is built from its end, so that among equals the
        // shortest early stages are found first.
        let mut table: Vec<Vec<Option<(u128, usize)>>> = vec![vec![None; layers]; self.stages];
        for stage in (0..self.stages).rev() {
            let behind = self.stages - 1 - stage;
            for start in stage..layers - behind {
                let ends = if behind == 0 { layers..=layers } else { start + 1..=layers - behind };
                let tails = ends.filter_map(|end| {
                    let own = value(self.cost(stage, start..end))?;
                    let tail = if behind == 0 { 0 } else { table[stage + 1][end]?.0 };
                    Some((combine(own, tail), end))
                });
                table[stage][start] = tails.min();
            }
        }
        let mut start = 0;
        let mut stages = Vec::with_capacity(self.stages);
        for (stage, row) in table.iter().enumerate() {
            let (_, end) = row[start].expect("a cut that kept all bounds was found before");
            let layers = start..end;
            stages.push(Stage { cost: self.cost(stage, layers.clone()), layers });
            start = end;
        }
        Best { value: table[0][0].map_or(0, |(value, _)| value), stages }
    }
}
