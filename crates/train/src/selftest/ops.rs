//! Every op and its gradients, on random shapes and orders of axes.

use super::cases::{CASES, Case as Entry};
use super::failure::Failure;
use super::graphs::{On, make};
use super::suite::Case;
use super::world::{Built, World};
use aerogel_graph::{ValueId, gradients};
use aerogel_plan::PlanError;

/// Layouts that no device takes, by op: models do not have them.
const REFUSED: [(&str, &str); 3] = [
    ("attend", "one axis of key heads, then one of groups"),
    ("attend_grad", "one axis of key heads, then one of groups"),
    ("linear_ce", "the tokens' axes cannot be walked as one"),
];
/// Draws for a layout that is not refused.
const DRAWS: u64 = 16;

/// Whether a plan is refused for a layout that no device takes.
pub fn is_known(error: &PlanError) -> bool {
    match error {
        PlanError::NoKernel { op, reason, .. } => {
            REFUSED.iter().any(|r| r.0 == op.as_str() && reason.contains(r.1))
        }
        _ => false,
    }
}

/// The graph of an entry of the table, with its loss and the gradients of its leaves as outputs.
///
/// # Errors
/// It cannot be built.
pub fn with_gradients(entry: &Entry, variant: usize, seed: u64) -> Built<World> {
    let mut w = World::new(seed, variant);
    let loss = (entry.build)(&mut w)?;
    let wrt: Vec<ValueId> = w.leaves.iter().map(|l| l.1).collect();
    let grads = gradients(&mut w.g, loss, &wrt)?;
    w.g.output("loss", loss);
    for (i, d) in grads.iter().enumerate().filter_map(|(i, d)| Some((i, (*d)?))) {
        w.g.output(&format!("grad.{i}"), d);
    }
    Ok(w)
}

/// The case of that number: all entries of the table by turns.
pub fn case(seed: u64, number: usize) -> Case {
    let all: Vec<(&Entry, usize)> =
        CASES.iter().flat_map(|c| (0..c.variants).map(move |v| (c, v))).collect();
    let (entry, variant) = all[number % all.len()];
    // The table's own numbers, so that a failure here is one in the tests of gradients too.
    let first = seed.wrapping_mul(1 << 20).wrapping_add((number / all.len()) as u64 * DRAWS);
    let name = format!("{} variant {variant}, from seed {first}", entry.name);
    Case::new(name, move |bench| {
        for seed in first..first + DRAWS {
            let w = with_gradients(entry, variant, seed)?;
            // Sums of cotangents cancel: what they are made of is of magnitude one or more.
            match bench.device.check(&w.g, &w.env, w.clock, 8.0) {
                Err(Failure::Plan(e)) if is_known(&e) => {}
                result => return result,
            }
        }
        Ok(0.0)
    })
}

/// Random graphs of all ops.
pub fn graph_case(seed: u64, number: usize) -> Case {
    let seed = seed.wrapping_mul(1 << 20).wrapping_add(number as u64);
    Case::new(format!("graph {seed}"), move |bench| {
        let (g, envs, clock) = make(seed, On::Whole)?;
        bench.device.check(&g, &envs[0], clock, 1.0)
    })
}
