//! split: the graph of one micro-batch as the forward and the backward section of every stage.
//!
//! ```text
//! stage 0   forward ──saved──► backward ─► grad.*
//!              │send              ▲ receive
//!              ▼ receive          │send
//! stage 1   forward ──saved──► backward ─► loss, tokens, grad.*
//! ```
//!
//! A value that the backward of its stage reads is saved, one that another stage reads is sent, and
//! both are as small as they can be: of a view its source goes, and the view is made again where it
//! is read; a cotangent with several terms is summed before it goes; and what is made of states and
//! inputs alone by views, casts and collectives does not go at all, but is made in every section
//! that reads it. Nothing else is computed twice, every op reads the values that it read before,
//! and so the sections give the bits of the graph that was split. Blocks that are recomputed
//! together may lie in several stages: each of them starts from what it was sent.

mod borders;
mod crossings;
mod section;
mod sites;

use super::schedule::Pass;
use crate::PassError;
use crate::scope::layer_of;
use aerogel_graph::{Build, Graph};
use borders::originals_across;
use crossings::crossings;
use section::Names;
use sites::{Section, sites};
use std::ops::Range;

/// The sections of a stage.
#[derive(Clone, Debug, PartialEq)]
pub struct StageSections {
    /// What [`Pass::Forward`] runs.
    pub forward: Graph,
    /// What [`Pass::Backward`] runs.
    pub backward: Graph,
}

/// A value that goes from one stage to another, once each micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Output `send.NAME` of the section it comes from, input `receive.NAME` of the section that
    /// it goes to. Where two stages want one value, two messages have the same name.
    pub name: String,
    /// Virtual stage and section that make it.
    pub from: (usize, Pass),
    /// Virtual stage and section that read it.
    pub to: (usize, Pass),
    /// Bytes of one micro-batch.
    pub bytes: u64,
}

/// A state that one stage updates and another stage reads as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its name.
    pub state: String,
    /// The stage whose backward has output `grad.NAME`, or that of the master if the state is its
    /// copy `NAME.bf16`; the first that reads the state, if no stage has a gradient of it.
    pub owner: usize,
    /// Another stage, which reads it.
    pub user: usize,
}

/// A graph as the sections of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// By virtual stage.
    pub stages: Vec<StageSections>,
    /// By where they come from, then by where they go, then in the order in which they are made;
    /// forwards of a stage stand before its backwards.
    pub messages: Vec<Message>,
    /// In the order of the states, then of the users.
    pub replicas: Vec<Replica>,
}

/// The stage of a scope, for [`split`], from the layers of each stage: those of `h.N` go where `N`
/// is, `embed*` goes to the first stage and all else to the last. A layer that no range has goes
/// one beyond the last stage, which `split` refuses.
pub fn layer_stages(ranges: &[Range<usize>]) -> impl Fn(&str) -> usize + use<> {
    let ranges = ranges.to_vec();
    move |scope| match layer_of(scope) {
        Some(layer) => ranges.iter().position(|r| r.contains(&layer)).unwrap_or(ranges.len()),
        None if scope.starts_with("embed") => 0,
        None => ranges.len().saturating_sub(1),
    }
}

/// Splits the graph of one micro-batch, as [`backward`](crate::backward()) and passes behind it
/// give it, into sections of virtual stages. `stage_of` maps the scope of a node to its stage; the
/// stages are a chain, so a forward node reads its own stage and earlier ones. `slots` has the
/// number of micro-batches in flight of each stage.
///
/// - `saved.S.NAME` is a state that the forward of stage S assigns and its backward reads, with
///   `slots[S]` copies.
/// - All outputs of the graph become outputs of the backward of the stage that makes them; of its
///   forward, if the graph has no backward nodes. The backward sections are empty then.
/// - Each section declares the inputs and states that it reads and no others.
/// - Two kinds of backward nodes move to the first stage that their operands come from: a sum whose
///   own stage is before that, if it is smaller than its terms; and what finishes a gradient, up to
///   its output, if its own stage is behind that.
///
/// # Errors
/// The graph assigns states or has nodes of the update; a scope has no stage; a stage has nothing
/// to do in one of its sections; a node reads what is made later, as backward values are for every
/// forward; `slots` has not one positive number a stage.
pub fn split(
    g: &Graph,
    stage_of: &dyn Fn(&str) -> usize,
    stages: usize,
    slots: &[u32],
) -> Result<Split, PassError> {
    if slots.len() != stages || slots.contains(&0) {
        return Err(PassError::Slots { stages, got: slots.to_vec() });
    }
    if let Some((state, _)) = g.assigns.first() {
        let what = format!("state `{}` is assigned", g.states()[state.index()].name);
        return Err(PassError::NotAMicroBatch { what });
    }
    // Values count up in the order in which they are made, from here on.
    let g = &originals_across(g, stage_of)?;
    let sites = sites(g, stage_of, stages)?;
    let crossings = crossings(g, &sites, stages);
    let names = Names::new(g);
    let write = |at: Section| section::write(g, at, &crossings, slots[at.0], &names);
    let stages: Vec<StageSections> = (0..stages)
        .map(|s| {
            let (forward, backward) = (write((s, Pass::Forward))?, write((s, Pass::Backward))?);
            Ok(StageSections { forward, backward })
        })
        .collect::<Result<_, PassError>>()?;
    let messages = crossings.messages.iter().map(|m| Message {
        name: names.of(m.value).to_owned(),
        from: m.from,
        to: m.to,
        bytes: g.value(m.value).ty.bytes(g.axes()),
    });
    let messages = messages.collect();
    let replicas = replicas(g, &stages);
    Ok(Split { stages, messages, replicas })
}

fn replicas(g: &Graph, stages: &[StageSections]) -> Vec<Replica> {
    let mut list = vec![];
    for state in g.states() {
        let reads = |s: &StageSections| {
            [&s.forward, &s.backward].iter().any(|g| g.find_state(&state.name).is_some())
        };
        let users: Vec<usize> = (0..stages.len()).filter(|&s| reads(&stages[s])).collect();
        // A copy is named after its master, which has the gradient, and its dtype.
        let suffix = format!(".{}", g.ty(state.value).dtype);
        let master = state.name.strip_suffix(&suffix).unwrap_or(&state.name);
        let grads = [state.name.as_str(), master].map(|name| format!("grad.{name}"));
        let owns = |s: &StageSections| grads.iter().any(|n| s.backward.find_output(n).is_some());
        let owner = stages.iter().position(owns);
        let Some(owner) = owner.or(users.first().copied()) else { continue };
        let others = users.into_iter().filter(|user| *user != owner);
        list.extend(others.map(|user| Replica { state: state.name.clone(), owner, user }));
    }
    list
}
