//! The published schedules as lists of actions.
//!
//! Each is one rule: a rank begins with some forwards, its warm-up, then takes turns between one
//! forward and one backward, and drains the backwards that are left. The schedules differ in the
//! length of the warm-up, and in whether a rank holds one part of the model or several.

use std::fmt;

use super::error::PipelineError;

/// Actions of one schedule at most: lists beyond this are a mistake in a recipe, not a run.
const ACTIONS_MAX: usize = 1 << 24;

/// A published schedule. All of them flush: a step's backwards end before the update, so that every
/// micro-batch of a step sees the same weights. None splits the backward, so none has
/// [`Pass::Weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// All forwards, then all backwards (Huang et al., GPipe, 2019). Every micro-batch of the step
    /// is in flight at once.
    GPipe,
    /// One forward, one backward (Narayanan et al., PipeDream, 2019, in the flushing form of
    /// Memory-Efficient Pipeline-Parallel DNN Training, 2021). The bubble of GPipe with at most
    /// `stages - rank` micro-batches in flight.
    OneFOneB,
    /// 1F1B in which each rank holds `chunks` parts of the model that lie `stages` apart (Narayanan
    /// et al., Efficient Large-Scale Language Model Training on GPU Clusters, 2021): the bubble is
    /// `chunks` times smaller, there are `chunks` times the messages and more is in flight.
    /// The micro-batches go in groups of `stages`, which must divide their number. With one chunk
    /// it is 1F1B.
    Interleaved {
        /// Parts of the model on each rank.
        chunks: usize,
    },
}

impl Kind {
    /// Parts of the model on each rank.
    pub fn chunks(self) -> usize {
        match self {
            Self::GPipe | Self::OneFOneB => 1,
            Self::Interleaved { chunks } => chunks,
        }
    }

    /// Forwards that rank `rank` runs before it takes turns, if there are so many.
    fn warmup(self, stages: usize, rank: usize) -> usize {
        match self {
            Self::GPipe => usize::MAX,
            Self::OneFOneB | Self::Interleaved { chunks: 1 } => stages - rank - 1,
            // All chunks but the last must have seen the first group; then it is twice the way to
            // the end, as forwards and backwards of other chunks come between.
            Self::Interleaved { chunks } => (stages - rank - 1) * 2 + (chunks - 1) * stages,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GPipe => f.write_str("gpipe"),
            Self::OneFOneB => f.write_str("1f1b"),
            Self::Interleaved { chunks } => write!(f, "interleaved with {chunks} chunks"),
        }
    }
}

/// What an action computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pass {
    /// F: the stage's output from its input.
    Forward,
    /// B: the gradient of the stage's input from that of its output. It adds to the gradients of
    /// the weights as well, unless the schedule has [`Pass::Weights`] for this stage.
    Backward,
    /// W: the gradients of the stage's weights, where a schedule takes them apart from B to fill
    /// the bubble with them (Qi et al., Zero Bubble Pipeline Parallelism, 2023).
    Weights,
}

/// One entry of a rank's list. Its Display is the field's short form: `F2`, or `F2/1` in chunk 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Action {
    /// What is computed.
    pub pass: Pass,
    /// The part of the model, counted on this rank.
    pub chunk: usize,
    /// The micro-batch, counted from 0 within the step.
    pub micro: usize,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pass = match self.pass {
            Pass::Forward => 'F',
            Pass::Backward => 'B',
            Pass::Weights => 'W',
        };
        write!(f, "{pass}{}", self.micro)?;
        if self.chunk > 0 { write!(f, "/{}", self.chunk) } else { Ok(()) }
    }
}

/// Who runs what, in which order. One that [`schedule`] writes can be run; one written by hand can
/// if [`check`](super::check) says so.
///
/// The model is a chain of virtual stages; that of chunk `c` on rank `r` is `c * stages + r`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Parts of the model on each rank.
    pub chunks: usize,
    /// Micro-batches of a step.
    pub micros: usize,
    /// For each rank its actions in order.
    pub actions: Vec<Vec<Action>>,
    /// For each rank and chunk, how many micro-batches it has room for; see [`Schedule::slots`].
    pub slots: Vec<Vec<usize>>,
}

impl Schedule {
    /// A schedule from each rank's list, with as many slots as the lists need.
    pub fn new(chunks: usize, micros: usize, actions: Vec<Vec<Action>>) -> Self {
        let of_rank = |list: &Vec<Action>| (0..chunks).map(|c| most_in_flight(list, c)).collect();
        let slots = actions.iter().map(of_rank).collect();
        Self { chunks, micros, actions, slots }
    }

    /// Ranks in the pipeline.
    pub fn stages(&self) -> usize {
        self.actions.len()
    }

    /// Links of the chain: ranks times chunks.
    pub fn virtual_stages(&self) -> usize {
        self.stages() * self.chunks
    }

    /// The virtual stage of a chunk on a rank.
    pub fn stage(&self, rank: usize, chunk: usize) -> usize {
        chunk * self.stages() + rank
    }

    /// Rank and chunk of a virtual stage.
    pub fn place(&self, stage: usize) -> (usize, usize) {
        (stage % self.stages(), stage / self.stages())
    }

    /// How many micro-batches are in flight at most: their forward is done, and their backward is
    /// not; where the stage has [`Pass::Weights`], that is not done either, for it reads what the
    /// forward kept. What is kept for micro-batch `j` lies in slot `j % slots`.
    ///
    /// # Panics
    /// There is no such rank or chunk.
    pub fn slots(&self, rank: usize, chunk: usize) -> usize {
        self.slots[rank][chunk]
    }

    /// Whether the gradients of a stage's weights have actions of their own.
    pub fn splits(&self, rank: usize, chunk: usize) -> bool {
        splits(&self.actions[rank], chunk)
    }

    /// Who computes what an action on `rank` receives: a forward the output of the stage before, a
    /// backward the gradient from the stage behind. `None` at the ends of the chain, and for
    /// weights. The sender is the same rank where the pipeline has only one.
    pub fn source(&self, rank: usize, action: Action) -> Option<(usize, Action)> {
        let stage = self.stage(rank, action.chunk);
        let from = match action.pass {
            Pass::Forward => stage.checked_sub(1)?,
            Pass::Backward if stage + 1 < self.virtual_stages() => stage + 1,
            Pass::Backward | Pass::Weights => return None,
        };
        let (rank, chunk) = self.place(from);
        Some((rank, Action { chunk, ..action }))
    }

    /// Who receives what an action on `rank` computes; the inverse of [`Schedule::source`].
    pub fn target(&self, rank: usize, action: Action) -> Option<(usize, Action)> {
        let stage = self.stage(rank, action.chunk);
        let to = match action.pass {
            Pass::Forward if stage + 1 < self.virtual_stages() => stage + 1,
            Pass::Backward => stage.checked_sub(1)?,
            Pass::Forward | Pass::Weights => return None,
        };
        let (rank, chunk) = self.place(to);
        Some((rank, Action { chunk, ..action }))
    }
}

fn splits(list: &[Action], chunk: usize) -> bool {
    list.iter().any(|a| a.chunk == chunk && a.pass == Pass::Weights)
}

fn most_in_flight(list: &[Action], chunk: usize) -> usize {
    let last = if splits(list, chunk) { Pass::Weights } else { Pass::Backward };
    let (mut now, mut most) = (0_usize, 0);
    for action in list.iter().filter(|a| a.chunk == chunk) {
        if action.pass == Pass::Forward {
            now += 1;
        } else if action.pass == last {
            now = now.saturating_sub(1);
        }
        most = most.max(now);
    }
    most
}

/// The lists of a published schedule over `stages` ranks and `micros` micro-batches.
///
/// GPipe's backwards go through the micro-batches as its forwards do, 0 first, where the paper's
/// figure starts from the last one: the length of the step is the same, and gradients are then
/// summed in the order of a step without a pipeline, bit for bit. In all schedules one rank wants
/// the messages of another in the order in which that one sends them.
///
/// # Errors
/// A count is 0 or absurdly large, or `stages` does not divide `micros` where that is needed.
pub fn schedule(kind: Kind, stages: usize, micros: usize) -> Result<Schedule, PipelineError> {
    let chunks = kind.chunks();
    for (what, count) in [("stages", stages), ("micro-batches", micros), ("chunks", chunks)] {
        if count == 0 {
            return Err(PipelineError::Zero { what });
        }
    }
    let passes = stages.checked_mul(chunks).and_then(|n| n.checked_mul(micros));
    if passes.is_none_or(|n| n > ACTIONS_MAX / 2) {
        return Err(PipelineError::TooLong { stages, chunks, micros, max: ACTIONS_MAX });
    }
    if matches!(kind, Kind::Interleaved { .. }) && !micros.is_multiple_of(stages) {
        return Err(PipelineError::Groups { stages, micros });
    }
    let lists = (0..stages).map(|rank| list(kind, stages, micros, rank)).collect();
    Ok(Schedule::new(chunks, micros, lists))
}

fn list(kind: Kind, stages: usize, micros: usize, rank: usize) -> Vec<Action> {
    let chunks = kind.chunks();
    let count = micros * chunks;
    // With several chunks, a group of `stages` micro-batches goes through one chunk after the
    // other: by the time a rank has sent off the last of them, the first has been around all
    // ranks and comes back for the next chunk.
    let nth = |pass: Pass, n: usize| {
        let (group, within) = (n / (stages * chunks), n % (stages * chunks));
        let chunk = if chunks == 1 { 0 } else { within / stages };
        let micro = if chunks == 1 { n } else { group * stages + within % stages };
        let chunk = if pass == Pass::Backward { chunks - 1 - chunk } else { chunk };
        Action { pass, chunk, micro }
    };
    let forward = |n| nth(Pass::Forward, n);
    let backward = |n| nth(Pass::Backward, n);
    let warmup = kind.warmup(stages, rank).min(count);
    let turns = count - warmup;
    let mut list: Vec<Action> = (0..warmup).map(forward).collect();
    list.extend((0..turns).flat_map(|n| [forward(warmup + n), backward(n)]));
    list.extend((turns..count).map(backward));
    list
}
