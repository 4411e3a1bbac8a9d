//! How the micro-batches of an update fall on ranks.

use crate::choices::{Determinism, PipelineSchedule};
use crate::divisors::{divisor_up_to, divisor_where};
use crate::error::RecipeError;
use crate::fields::Fields;
use crate::layout::Parallel;
use crate::recipe::Train;

const KEYS: &[&str] =
    &["train.micro_batch", "train.batch", "train.determinism", "parallel.mesh", "parallel.shard"];

/// Into how many micro-batches a batch has to fall at least, for each rank to have its own.
pub(crate) fn least_micro_batches(parallel: &Parallel) -> usize {
    parallel.data_ranks() * group(parallel)
}

/// Micro-batches that a pipeline takes together.
fn group(parallel: &Parallel) -> usize {
    match parallel.schedule {
        PipelineSchedule::Interleaved => parallel.pipeline_ranks(),
        PipelineSchedule::GPipe | PipelineSchedule::OneForwardOneBackward => 1,
    }
}

/// Refuses a batch that does not fall evenly on the data ranks or, under `bitwise`, not on the
/// borders of the tree of sums.
pub(crate) fn check(
    fields: &Fields,
    train: &Train,
    parallel: &Parallel,
) -> Result<(), RecipeError> {
    let split = Split {
        ranks: parallel.data_ranks(),
        gradient_ranks: parallel.size(&parallel.shard.gradients),
        group: group(parallel),
        bitwise: train.determinism == Determinism::Bitwise,
    };
    let micro_batches = train.batch / train.micro_batch;
    let Some(fault) = split.fault(micro_batches) else { return Ok(()) };
    let fits = |micro_batch: usize| split.fault(train.batch / micro_batch).is_none();
    let lower = divisor_where(train.batch, train.micro_batch, fits);
    let any = lower.or_else(|| divisor_where(train.batch, train.batch, fits));
    let fewer = divisor_up_to(micro_batches, split.ranks);
    let advice = match (any, fault.of_tree) {
        (Some(size), false) => {
            let verb = if lower.is_some() { "lower" } else { "raise" };
            format!("{verb} train.micro_batch to {size}")
        }
        (Some(size), true) => {
            format!("set train.micro_batch = {size}, or train.determinism = \"fast\"")
        }
        (None, true) => "set train.determinism = \"fast\", or use a power of two of ranks".into(),
        (None, false) => format!(
            "make train.batch a multiple of {}, or lower the data ranks to {fewer}",
            least_micro_batches(parallel)
        ),
    };
    Err(fields.clash(KEYS, fault.what, &fault.why, advice))
}

/// The ranks that share a batch, and the rules of the sharing.
struct Split {
    ranks: usize,
    /// The data ranks over which gradients are cut, and so summed after every micro-batch.
    gradient_ranks: usize,
    group: usize,
    bitwise: bool,
}

struct Fault {
    what: String,
    why: String,
    /// Whether `determinism = "fast"` would allow it.
    of_tree: bool,
}

impl Split {
    fn fault(&self, micro_batches: usize) -> Option<Fault> {
        let ranks = self.ranks;
        if !micro_batches.is_multiple_of(ranks) {
            let what = format!(
                "train.batch / train.micro_batch = {micro_batches} over {ranks} data ranks"
            );
            let why = "every data rank computes an equal number of micro-batches".into();
            return Some(Fault { what, why, of_tree: false });
        }
        let each = micro_batches / ranks;
        let what = format!("{each} of {micro_batches} micro-batches on each of {ranks} data ranks");
        if !each.is_multiple_of(self.group) {
            let why = format!(
                "an interleaved pipeline takes them in groups of {}, one for each of its ranks",
                self.group
            );
            return Some(Fault { what, why, of_tree: false });
        }
        let why = self.tree(each).filter(|_| self.bitwise && ranks > 1)?;
        let what = format!("{what} under train.determinism = \"bitwise\"");
        Some(Fault { what, why, of_tree: true })
    }

    /// Why a sum that forms on some ranks is none of the balanced tree over all micro-batches.
    ///
    /// Leaves of the tree are micro-batches in their order; its inner nodes cover a power of two
    /// of them. A group of ranks with cut gradients sums one micro-batch of each of its ranks at
    /// a time, and over these; groups are summed last.
    fn tree(&self, each: usize) -> Option<String> {
        let (ranks, cut) = (self.ranks, self.gradient_ranks);
        let own = each * cut;
        if cut < ranks && !own.is_power_of_two() {
            let who = match cut {
                1 => "each rank".into(),
                _ => format!("each group of {cut} ranks"),
            };
            return Some(format!(
                "{who} first sums {own} on its own, and only a power of two of them falls on the \
                 borders of the tree of sums over all"
            ));
        }
        if cut > 1 && each > 1 && !ranks.is_power_of_two() {
            return Some(format!(
                "gradients are cut, so {ranks} ranks are summed after every micro-batch, and only \
                 a power of two of them falls on the borders of the tree of sums over all"
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum that a binary counter of partial sums forms, written out.
    fn tree(terms: &[String]) -> String {
        let mut partial: Vec<(usize, String)> = Vec::new();
        for term in terms {
            let mut top = (1, term.clone());
            while partial.last().is_some_and(|(size, _)| *size == top.0) {
                let (size, left) = partial.pop().unwrap();
                top = (size + top.0, format!("({left}+{})", top.1));
            }
            partial.push(top);
        }
        let sums = partial.into_iter().map(|(_, sum)| sum);
        sums.rev().reduce(|right, left| format!("({left}+{right})")).unwrap()
    }

    /// The sum as ranks form it: over the ranks of a group for every micro-batch, over the
    /// group's micro-batches, over the groups.
    fn of_ranks(split: &Split, each: usize) -> String {
        let cut = split.gradient_ranks;
        let groups = (0..split.ranks / cut).map(|group| {
            let rounds = (0..each).map(|round| {
                let first = (group * each + round) * cut;
                tree(&(first..first + cut).map(|leaf| leaf.to_string()).collect::<Vec<_>>())
            });
            tree(&rounds.collect::<Vec<_>>())
        });
        tree(&groups.collect::<Vec<_>>())
    }

    #[test]
    fn what_is_allowed_under_bitwise_forms_the_tree_of_all_micro_batches() {
        let (mut allowed, mut refused) = (0, 0);
        for ranks in 1..=12usize {
            for cut in (1..=ranks).filter(|cut| ranks % cut == 0) {
                for each in 1..=9 {
                    let split = Split { ranks, gradient_ranks: cut, group: 1, bitwise: true };
                    let all = tree(&(0..ranks * each).map(|i| i.to_string()).collect::<Vec<_>>());
                    let same = of_ranks(&split, each) == all;
                    let case = format!("{ranks} ranks, gradients over {cut}, {each} each");
                    match split.fault(ranks * each) {
                        None => assert!(same, "{case}"),
                        Some(fault) => {
                            assert!(fault.of_tree, "{case}");
                            // Inside groups the rule is stricter: it holds as well where the
                            // groups are summed after every micro-batch.
                            assert!(!same || (1 < cut && cut < ranks), "{case}");
                            refused += 1;
                            continue;
                        }
                    }
                    allowed += 1;
                }
            }
        }
        assert!(allowed > 100 && refused > 100, "{allowed} allowed, {refused} refused");
    }

    #[test]
    fn fast_needs_equal_shares_alone() {
        let split = Split { ranks: 3, gradient_ranks: 1, group: 1, bitwise: false };
        assert!(split.fault(9).is_none() && split.fault(8).is_some());
        let split = Split { group: 2, ..split };
        assert!(split.fault(9).is_some() && split.fault(12).is_none());
    }
}
