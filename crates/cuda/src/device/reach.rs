//! What the steps of a section do to the arena: which bytes they touch, and how much work they are.

use aerogel_graph::{Build, StateId, ValueId};
use aerogel_machine::{Program, Section, Step, Uses};
use std::ops::Range;

/// A step that reads and writes no more is short: 24 MB are 8 µs at 3 TB/s.
const SHORT_BYTES: u64 = 24 << 20;
/// The same for its arithmetic: 4 GFLOP are 6 µs at the 680 TFLOP/s of large products.
const SHORT_FLOPS: u64 = 4 << 30;
/// Bytes and operations a nanosecond, for estimates.
const RATES: (u64, u64) = (3000, 300_000);

/// What one step touches and does.
#[derive(Clone, Debug, Default)]
pub(super) struct Work {
    /// Bytes of the arena.
    pub reads: Vec<Range<u64>>,
    /// Bytes of the arena, workspace included.
    pub writes: Vec<Range<u64>>,
    /// Read and written.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
}

fn overlap(a: &[Range<u64>], b: &[Range<u64>]) -> bool {
    a.iter().any(|a| b.iter().any(|b| a.start < b.end && b.start < a.end))
}

impl Work {
    /// Whether one writes what the other touches.
    pub fn meets(&self, other: &Work) -> bool {
        overlap(&self.writes, &other.writes)
            || overlap(&self.writes, &other.reads)
            || overlap(&self.reads, &other.writes)
    }

    /// Whether it keeps the GPU busy by itself.
    pub fn is_long(&self) -> bool {
        self.bytes > SHORT_BYTES || self.flops > SHORT_FLOPS
    }

    /// About how long the work takes, without a kernel's start and end.
    pub fn nanoseconds(&self) -> u64 {
        (self.bytes / RATES.0).max(self.flops / RATES.1)
    }
}

/// What each step of a section touches and does; `None` if a place of something is not known.
///
/// It is what the planner's checker holds a program to: a kernel reads what its nodes take from
/// others, writes what others take from them, and its workspace.
pub(super) fn works(program: &Program, s: &Section) -> Option<Vec<Work>> {
    let reach = Reach { program, section: s, uses: Uses::new(&s.graph) };
    s.steps.iter().map(|step| reach.work(step)).collect()
}

struct Reach<'a> {
    program: &'a Program,
    section: &'a Section,
    uses: Uses,
}

impl Reach<'_> {
    fn work(&self, step: &Step) -> Option<Work> {
        let g = &self.section.graph;
        match step {
            Step::Kernel { claim, workspace } => {
                let nodes = &claim.nodes;
                let (reads, writes) = (self.uses.imports(g, nodes), self.uses.exports(g, nodes));
                let moved: u64 = reads.iter().chain(&writes).map(|v| self.bytes(*v)).sum();
                let reads = self.values(&reads)?;
                let mut writes = self.values(&writes)?;
                if claim.workspace_bytes > 0 {
                    writes.push(*workspace..workspace + claim.workspace_bytes);
                }
                let flops = nodes.iter().map(|n| {
                    let node = g.node(*n);
                    node.op.cost(g.axes(), &g.in_types(node), &g.out_types(node)).flops
                });
                let bytes = moved + 2 * claim.workspace_bytes;
                Some(Work { reads, writes, bytes, flops: flops.sum() })
            }
            Step::Assign { from, to } => {
                let (reads, writes) = (vec![self.value(*from)?], vec![self.state(*to)?]);
                Some(Work { reads, writes, bytes: 2 * self.bytes(*from), flops: 0 })
            }
        }
    }

    fn bytes(&self, v: ValueId) -> u64 {
        self.section.graph.ty(v).bytes(self.section.axes())
    }

    fn values(&self, list: &[ValueId]) -> Option<Vec<Range<u64>>> {
        list.iter().map(|v| self.value(*v)).collect()
    }

    /// From the first byte of a value to its last, in all copies of the state that it lies in.
    fn value(&self, v: ValueId) -> Option<Range<u64>> {
        let (g, slot) = (&self.section.graph, self.section.slot(v)?);
        let (ty, placed) = (g.ty(v), self.program.placed(self.section, v)?);
        let ends = g.axes().sizes(&ty.axes).into_iter().zip(&slot.strides);
        let steps = ends.map(|(size, stride)| (size as i64 - 1).max(0) * *stride as i64);
        let (mut first, mut last) = (0, 0);
        steps.for_each(|step| if step < 0 { first += step } else { last += step });
        let bytes = ty.dtype.bytes() as i64;
        let start = placed.at(0).checked_add_signed(first * bytes)?;
        let end = placed.at(placed.copies.max(1) - 1).checked_add_signed((last + 1) * bytes)?;
        Some(start..end)
    }

    /// All copies of a state.
    fn state(&self, to: StateId) -> Option<Range<u64>> {
        let slot = self.program.state(&self.section.graph.states()[to.index()].name)?;
        let more = u64::from(slot.copies.max(1) - 1) * slot.stride_bytes;
        Some(slot.offset..slot.offset + slot.bytes + more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aerogel_graph::{DType, Graph, Init, NodeId, Role, Type};
    use aerogel_machine::{Claim, Slot, StateSlot, Sums};

    /// Twice an input, copied into a state of two copies.
    fn section() -> (Program, Section) {
        let mut g = Graph::new();
        let axis = g.axis("x", 4).unwrap();
        let ty = Type::new(DType::F32, [axis]);
        let a = g.input("a", DType::F32, &[axis]).unwrap();
        let zero = Init::Constant(0.0);
        let state = g.state("s", ty.clone(), Role::Accumulator, None, zero).unwrap();
        let b = g.map(&[a], &|x| &x[0] * 2.0).unwrap();
        g.assign(StateId(0), b).unwrap();
        let mut slots = vec![None; g.values().len()];
        for (v, offset) in [(a, 0), (state, 64), (b, 256)] {
            slots[v.index()] = Some(Slot::contiguous(offset, g.axes(), &ty.axes));
        }
        let claim = Claim {
            kernel: "map",
            nodes: vec![NodeId(0)],
            workspace_bytes: 128,
            in_place: vec![],
            sums: Sums::Fixed,
            nanoseconds: 0.0,
        };
        let kernel = Step::Kernel { claim, workspace: 512 };
        let steps = vec![kernel, Step::Assign { from: b, to: StateId(0) }];
        let states = vec![StateSlot {
            name: "s".to_owned(),
            role: Role::Accumulator,
            dtype: DType::F32,
            axes: vec![],
            offset: 64,
            bytes: 16,
            copies: 2,
            stride_bytes: 64,
            parts: vec![],
        }];
        let (sections, hash) = (vec![], String::new());
        let program = Program { sections, states, arena_bytes: 640, hash };
        (program, Section { name: "one".to_owned(), graph: g, slots, steps })
    }

    #[test]
    fn a_step_touches_operands_results_and_workspace() {
        let (program, section) = section();
        let list = works(&program, &section).unwrap();
        let of =
            |list: &[Range<u64>]| -> Vec<_> { list.iter().map(|r| (r.start, r.end)).collect() };
        assert_eq!(of(&list[0].reads), [(0, 16)]);
        assert_eq!(of(&list[0].writes), [(256, 272), (512, 640)]);
        assert_eq!((list[0].bytes, list[0].flops), (32 + 2 * 128, 4));
        assert_eq!(of(&list[1].reads), [(256, 272)]);
        assert_eq!(of(&list[1].writes), [(64, 144)], "both copies");
        assert!(list[0].meets(&list[1]) && list[1].meets(&list[0]));
        assert!(!list[0].is_long());
    }

    #[test]
    fn what_has_no_place_is_told() {
        let (program, mut section) = section();
        section.slots[0] = None;
        assert!(works(&program, &section).is_none());
    }
}
