//! What can be wrong with a pipeline.

use super::schedule::Action;

/// A pipeline that cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PipelineError {
    /// A count is 0.
    #[error("pipeline: the number of {what} is 0; give at least 1")]
    Zero {
        /// What is counted.
        what: &'static str,
    },
    /// The lists would fill the memory.
    #[error(
        "pipeline: {stages} stages, {chunks} chunks and {micros} micro-batches make more than \
         {max} actions; use fewer, larger micro-batches"
    )]
    TooLong {
        /// Ranks in the pipeline.
        stages: usize,
        /// Parts of the model on each.
        chunks: usize,
        /// Micro-batches of a step.
        micros: usize,
        /// The largest number of actions.
        max: usize,
    },
    /// The interleaved schedule takes micro-batches in groups.
    #[error(
        "pipeline: the interleaved schedule takes micro-batches in groups of {stages}, one for \
         each stage, and {micros} are no multiple of that; change `batch` or `micro_batch`, or \
         choose the schedule 1f1b"
    )]
    Groups {
        /// Ranks in the pipeline.
        stages: usize,
        /// Micro-batches of a step.
        micros: usize,
    },
    /// A stage would stay empty.
    #[error(
        "pipeline: {layers} layers cannot fill {stages} stages, which hold one at least; use at \
         most {layers} stages (ranks of the pipeline times chunks), or more layers"
    )]
    FewLayers {
        /// Layers of the model.
        layers: usize,
        /// Stages, those of all chunks together.
        stages: usize,
    },
    /// A list has another length than the schedule asks for.
    #[error("pipeline: {what} has {got} entries, wanted {wanted}")]
    Length {
        /// The list.
        what: &'static str,
        /// The length asked for.
        wanted: usize,
        /// The length it has.
        got: usize,
    },
    /// A duration is negative or not finite.
    #[error("pipeline: {what} takes {got} seconds; give a finite number, 0 or more")]
    NotADuration {
        /// What takes so long.
        what: String,
        /// The number.
        got: f64,
    },
    /// A schedule cannot be run.
    #[error("pipeline: rank {rank} cannot run {action}: {defect}")]
    Invalid {
        /// The rank.
        rank: usize,
        /// The action of its list, or the one that its list lacks.
        action: Action,
        /// Why not.
        defect: Defect,
    },
}

/// Why an action cannot be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    /// Chunk or micro-batch does not exist.
    #[error("the schedule has {chunks} chunks and {micros} micro-batches, each counted from 0")]
    Unknown {
        /// Chunks of the schedule.
        chunks: usize,
        /// Micro-batches of the schedule.
        micros: usize,
    },
    /// It is not in the list.
    #[error("its list lacks it")]
    Missing,
    /// It is in the list twice.
    #[error("its list has it {count} times")]
    Repeated {
        /// How often it is there.
        count: usize,
    },
    /// Micro-batches are not taken in ascending order.
    #[error(
        "it is the turn of micro-batch {wanted}; each stage takes them in ascending order in \
         each pass, so that gradients are summed in one order"
    )]
    OutOfOrder {
        /// The micro-batch whose turn it is.
        wanted: usize,
    },
    /// The same stage must run another action first.
    #[error("{first} of the same stage must come first")]
    Before {
        /// That action.
        first: Action,
    },
    /// What it keeps would overwrite what another micro-batch keeps.
    #[error("the chunk has {slots} slots, and micro-batch {holder} still holds the one it needs")]
    SlotInUse {
        /// Slots of the chunk.
        slots: usize,
        /// The micro-batch in the slot.
        holder: usize,
    },
    /// The ranks wait for one another.
    #[error(
        "it waits for {awaited} of rank {sender}, whose list has {blocked} before that, which \
         waits as well: a deadlock"
    )]
    Deadlock {
        /// What it receives.
        awaited: Action,
        /// Who would send it.
        sender: usize,
        /// Where the sender waits.
        blocked: Action,
    },
}
