//! A network as a chain of segments, and schedules over it: which segment runs when, and what is
//! kept of it. Nothing here knows a graph.

/// What is kept of a segment when it has run forward, and what that costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    /// Bytes that are kept beside the segment's input and output.
    pub bytes: u64,
    /// FLOPs of running the segment again for its output and these bytes.
    pub again_flops: u64,
    /// FLOPs spent just before the backward, for what it needs and these bytes are not.
    pub extra_flops: u64,
}

/// A stretch of the network that reads the output of the one before it and nothing else that
/// could be dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// FLOPs of running it again for its output alone.
    pub forward_flops: u64,
    /// FLOPs of running it again for what its backward needs, without its output where that is not
    /// needed.
    pub replay_flops: u64,
    /// Bytes of its output.
    pub boundary_bytes: u64,
    /// Whether its own backward reads its output.
    pub reads_output: bool,
    /// All that its backward needs beside input and output is kept: nothing extra before it.
    pub all: Variant,
    /// Less is kept, and the rest computed from it.
    pub lean: Option<Variant>,
}

impl Segment {
    /// A segment that costs the same whatever it is run for.
    pub fn new(forward_flops: u64, boundary_bytes: u64, saved_bytes: u64) -> Self {
        let all = Variant { bytes: saved_bytes, again_flops: forward_flops, extra_flops: 0 };
        let replay_flops = forward_flops;
        Segment { forward_flops, replay_flops, boundary_bytes, all, ..Segment::default() }
    }

    /// The segment with a lean variant.
    pub fn with_lean(self, bytes: u64, extra_flops: u64) -> Self {
        let lean = Some(Variant { bytes, extra_flops, ..self.all });
        Segment { lean, ..self }
    }

    /// Bytes beside its input while its backward runs.
    pub(super) fn backward_bytes(&self) -> u64 {
        self.all.bytes + if self.reads_output { self.boundary_bytes } else { 0 }
    }

    /// The variant that a way of keeping names; nothing for those that keep no inner value.
    fn variant(&self, keep: Keep) -> Option<Variant> {
        match keep {
            Keep::Nothing | Keep::Boundary => None,
            Keep::Lean => self.lean,
            Keep::All => Some(self.all),
        }
    }
}

/// What stays of a segment that runs forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keep {
    /// The output, until the next segment has run forward.
    Nothing,
    /// The output, until the backward of the next segment is done.
    Boundary,
    /// As `Boundary`, and the lean variant until the own backward is done.
    Lean,
    /// As `Boundary`, and all that the own backward needs until it is done.
    All,
}

/// One step of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Computes the output of a segment from its input.
    Forward {
        /// Position in the chain.
        segment: usize,
        /// What stays.
        keep: Keep,
    },
    /// Computes what the backward of a segment needs and is not there: from its input, or from
    /// what the lean variant kept.
    Replay {
        /// Position in the chain.
        segment: usize,
    },
    /// Runs the backward of a segment; what it read is dropped.
    Backward {
        /// Position in the chain.
        segment: usize,
    },
}

/// Every segment forward, every one backward, and what runs again in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// In order.
    pub actions: Vec<Action>,
    /// FLOPs beyond those of running every segment forward once.
    pub recomputed_flops: u64,
    /// The most bytes at once of outputs and kept values, the input of the chain left out. What a
    /// segment needs while it runs, beside that, is the runner's.
    pub peak_bytes: u64,
}

impl Schedule {
    /// A list of actions with its FLOPs and its peak counted.
    pub(super) fn counted(chain: &[Segment], actions: Vec<Action>) -> Self {
        let mut account = Account::new(chain);
        actions.iter().for_each(|action| account.run(*action));
        let Account { flops, peak, .. } = account;
        Schedule { actions, recomputed_flops: flops, peak_bytes: peak }
    }
}

/// Every segment is kept: nothing runs again.
pub fn keep_all(chain: &[Segment]) -> Schedule {
    each(chain, |_| Keep::All)
}

/// Every segment is kept in its lean variant, where it has one.
pub fn keep_lean(chain: &[Segment]) -> Schedule {
    each(chain, |s| if s.lean.is_some() { Keep::Lean } else { Keep::All })
}

fn each(chain: &[Segment], keep: impl Fn(&Segment) -> Keep) -> Schedule {
    let mut actions = vec![];
    for (segment, s) in chain.iter().enumerate() {
        actions.push(Action::Forward { segment, keep: keep(s) });
    }
    for (segment, s) in chain.iter().enumerate().rev() {
        if keep(s) == Keep::Lean {
            actions.push(Action::Replay { segment });
        }
        actions.push(Action::Backward { segment });
    }
    Schedule::counted(chain, actions)
}

/// Of the first `blocks` segments only the output of every `every`-th is kept, and the segments
/// between two such outputs run again together, once. The segments after `blocks` are kept.
pub fn keep_blocks(chain: &[Segment], blocks: usize, every: usize) -> Schedule {
    let mut actions = vec![];
    for segment in 0..chain.len() {
        let border = (segment + 1).is_multiple_of(every) || segment + 1 == blocks;
        let keep = match segment {
            _ if segment >= blocks => Keep::All,
            _ if border => Keep::Boundary,
            _ => Keep::Nothing,
        };
        actions.push(Action::Forward { segment, keep });
    }
    actions.extend((blocks..chain.len()).rev().map(|segment| Action::Backward { segment }));
    for group in (0..blocks.div_ceil(every)).rev() {
        let (first, last) = (group * every, ((group + 1) * every).min(blocks) - 1);
        for segment in first..last {
            actions.push(Action::Forward { segment, keep: Keep::All });
        }
        actions.push(Action::Replay { segment: last });
        actions.extend((first..=last).rev().map(|segment| Action::Backward { segment }));
    }
    Schedule::counted(chain, actions)
}

/// What is there while a schedule runs.
struct Account<'a> {
    chain: &'a [Segment],
    /// How each segment last ran forward; `None` before that.
    kept: Vec<Option<Keep>>,
    /// Bytes of the output of each segment, where it is there.
    output: Vec<u64>,
    /// Bytes of the inner values of each segment that are there.
    saved: Vec<u64>,
    flops: u64,
    peak: u64,
}

impl<'a> Account<'a> {
    fn new(chain: &'a [Segment]) -> Self {
        let (output, saved) = (vec![0; chain.len()], vec![0; chain.len()]);
        Account { chain, kept: vec![None; chain.len()], output, saved, flops: 0, peak: 0 }
    }

    fn run(&mut self, action: Action) {
        match action {
            Action::Forward { segment, keep } => self.forward(segment, keep),
            Action::Replay { segment } => self.replay(segment),
            Action::Backward { segment } => self.backward(segment),
        }
    }

    fn forward(&mut self, i: usize, keep: Keep) {
        let s = &self.chain[i];
        let variant = s.variant(keep);
        if self.kept[i].is_some() {
            self.flops += variant.map_or(s.forward_flops, |v| v.again_flops);
        }
        self.output[i] = s.boundary_bytes;
        self.saved[i] = variant.map_or(0, |v| v.bytes);
        self.kept[i] = Some(keep);
        self.note();
        if i > 0 && self.kept[i - 1] == Some(Keep::Nothing) {
            self.output[i - 1] = 0;
        }
    }

    fn replay(&mut self, i: usize) {
        let s = &self.chain[i];
        let lean = s.lean.filter(|_| self.kept[i] == Some(Keep::Lean));
        self.flops += lean.map_or(s.replay_flops, |v| v.extra_flops);
        self.saved[i] = s.all.bytes;
        if s.reads_output {
            self.output[i] = s.boundary_bytes;
        }
        self.note();
    }

    fn backward(&mut self, i: usize) {
        self.note();
        (self.output[i], self.saved[i]) = (0, 0);
        if i > 0 && !keeps_output(self.chain[i - 1].reads_output, self.kept[i - 1]) {
            self.output[i - 1] = 0;
        }
    }

    fn note(&mut self) {
        let now = self.output.iter().sum::<u64>() + self.saved.iter().sum::<u64>();
        self.peak = self.peak.max(now);
    }
}

/// Whether the output of a segment stays when the backward of the next one is done.
pub(super) fn keeps_output(reads_output: bool, kept: Option<Keep>) -> bool {
    reads_output && matches!(kept, Some(Keep::Lean | Keep::All))
}
