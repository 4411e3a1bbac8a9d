//! Which steps of a program become machine code, and which the interpreter keeps.
//!
//! Generated code reads and writes rows of consecutive elements, and does arithmetic. Coordinates,
//! random draws, operands with other strides, and the few operations that it lacks are interpreted
//! before it, with all that they depend on, into registers of the worker, where it reads them.
//! Results with other strides are left in such registers and stored after it.

use super::super::compile::{Code, Step, What};
use aerogel_graph::DType;
use aerogel_lower::{Binary, Unary};

/// A value of generated code by the number of the node that defines it.
pub(super) type Value = usize;

/// What generated code does with one vector.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Node {
    /// The bits of a float.
    Constant(u32),
    /// The first float of a register that holds for a whole task.
    Uniform(usize),
    Read(usize, Form),
    Unary(Unary, Value),
    Binary(Binary, Value, Value),
    /// First times second plus third.
    Fma(Value, Value, Value),
    /// Where the first is not zero, the second, else the third.
    Select(Value, Value, Value),
    Write(usize, Form, Value),
}

impl Node {
    /// The values that it takes.
    pub fn sources(&self) -> impl Iterator<Item = Value> + use<> {
        let (count, all) = match *self {
            Node::Constant(_) | Node::Uniform(_) | Node::Read(..) => (0, [0; 3]),
            Node::Unary(_, a) | Node::Write(_, _, a) => (1, [a, 0, 0]),
            Node::Binary(_, a, b) => (2, [a, b, 0]),
            Node::Fma(a, b, c) | Node::Select(a, b, c) => (3, [a, b, c]),
        };
        all.into_iter().take(count)
    }
}

/// How the elements of an operand lie along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    F32,
    Bf16,
    F16,
    /// Only read.
    U32,
    /// One f32 for the whole row; only read.
    EachF32,
    /// One bf16 for the whole row; only read.
    EachBf16,
    /// One f16 for the whole row; only read.
    EachF16,
}

impl Form {
    /// Bytes from one element of a row to the next.
    pub fn step_bytes(self) -> usize {
        match self {
            Form::F32 | Form::U32 => 4,
            Form::Bf16 | Form::F16 => 2,
            Form::EachF32 | Form::EachBf16 | Form::EachF16 => 0,
        }
    }
}

/// What generated code reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Operand(usize),
    Product,
    /// A slot of the worker.
    Slot(usize),
}

/// A program in parts.
#[derive(Clone, Debug, Default)]
pub(super) struct Split {
    /// Once per task.
    pub setup: Vec<Step>,
    /// Interpreted before the code.
    pub before: Vec<Step>,
    pub nodes: Vec<Node>,
    /// What places of nodes are.
    pub places: Vec<(Origin, Form)>,
    /// Interpreted after the code.
    pub after: Vec<Step>,
}

/// Operands of a program as they lie.
#[derive(Clone, Copy)]
pub(super) struct Layout<'a> {
    pub strides: &'a [Vec<isize>],
    pub dtypes: &'a [DType],
    /// Size of the innermost axis.
    pub inner: usize,
}

impl Layout<'_> {
    fn form(self, operand: usize, writes: bool) -> Option<Form> {
        let stride = self.strides[operand].last().copied().unwrap_or(1);
        let contiguous = stride == 1 || self.inner == 1;
        match (self.dtypes[operand], contiguous) {
            (DType::F32, true) => Some(Form::F32),
            (DType::Bf16, true) => Some(Form::Bf16),
            (DType::F16, true) => Some(Form::F16),
            (DType::U32, true) if !writes => Some(Form::U32),
            (DType::F32, false) if stride == 0 && !writes => Some(Form::EachF32),
            (DType::Bf16, false) if stride == 0 && !writes => Some(Form::EachBf16),
            (DType::F16, false) if stride == 0 && !writes => Some(Form::EachF16),
            _ => None,
        }
    }
}

/// One step with its sources by the steps that define them.
struct Item<'a> {
    step: &'a Step,
    setup: bool,
    sources: Vec<usize>,
    /// How generated code reads or writes it, if it is a load, a product or a store.
    place: Option<(Origin, Form)>,
    /// The interpreter computes it.
    interpreted: bool,
    /// Generated code takes it.
    wanted: bool,
    /// The interpreter takes it.
    needed: bool,
}

impl Item<'_> {
    fn is_store(&self) -> bool {
        matches!(self.step.what, What::Store { .. })
    }

    /// Whether generated code has it as a node.
    fn is_node(&self) -> bool {
        !self.setup && self.wanted && (!self.interpreted || self.place.is_some())
    }
}

/// Splits a program; `None` if generated code would not help, or the slots do not suffice.
pub(super) fn split(code: &Code, with_result: bool, layout: Layout<'_>) -> Option<Split> {
    let (mut items, current) = items(code, layout);
    let result = with_result.then(|| current[code.result]).flatten();
    if with_result {
        // What is only loaded can be read where it lies.
        let own = &mut items[result?];
        if own.setup || own.interpreted || own.place.is_some() {
            return None;
        }
        own.wanted = true;
    }
    for at in (0..items.len()).rev() {
        let item = &items[at];
        if item.setup {
            continue;
        }
        let store = item.is_store() && item.place.is_some();
        let node = store || item.is_node();
        let after = item.is_store() && item.place.is_none();
        let (interpreted, sources) = (item.interpreted, item.sources.clone());
        items[at].wanted |= store;
        for source in sources {
            let source = &mut items[source];
            source.needed |= interpreted || after;
            // What is stored afterwards, generated code leaves in a register.
            source.wanted |= node || (after && !source.interpreted && !source.setup);
        }
    }
    let mut builder = Builder::new(code, items, with_result);
    builder.interpreted()?;
    builder.generated(result)?;
    builder.setup();
    (!builder.split.nodes.is_empty()).then_some(builder.split)
}

/// The steps in order, and which defined each slot last.
fn items<'a>(code: &'a Code, layout: Layout<'_>) -> (Vec<Item<'a>>, Vec<Option<usize>>) {
    let mut current = vec![None; code.slots];
    let mut items: Vec<Item<'a>> = Vec::new();
    let setup = code.setup.iter().map(|step| (step, true));
    for (step, setup) in setup.chain(code.steps.iter().map(|step| (step, false))) {
        let sources = step.what.slots().filter_map(|slot: usize| current[slot]).collect();
        let place = match step.what {
            What::Load { operand, .. } => {
                layout.form(operand, false).map(|form| (Origin::Operand(operand), form))
            }
            What::Store { operand, .. } => {
                layout.form(operand, true).map(|form| (Origin::Operand(operand), form))
            }
            What::Product => Some((Origin::Product, Form::F32)),
            _ => None,
        };
        let interpreted = !setup
            && match step.what {
                What::Load { .. } => place.is_none(),
                What::Coord { .. } | What::Rand { .. } => true,
                What::Unary { op, .. } => matches!(op, Unary::Sin | Unary::Cos),
                What::Binary { op, .. } => op == Binary::Pow,
                _ => false,
            };
        if !matches!(step.what, What::Store { .. }) {
            current[step.dst] = Some(items.len());
        }
        let (wanted, needed) = (false, false);
        items.push(Item { step, setup, sources, place, interpreted, wanted, needed });
    }
    // All that an interpreted step depends on is interpreted, too.
    for at in (0..items.len()).rev() {
        if items[at].interpreted {
            for source in items[at].sources.clone() {
                items[source].interpreted |= !items[source].setup;
            }
        }
    }
    (items, current)
}

/// Makes the parts.
struct Builder<'a> {
    items: Vec<Item<'a>>,
    /// By item: its slot in the parts that are interpreted.
    slots: Vec<Option<usize>>,
    /// By item: its node.
    nodes: Vec<Option<Value>>,
    free: Vec<usize>,
    result: usize,
    split: Split,
}

impl<'a> Builder<'a> {
    fn new(code: &Code, items: Vec<Item<'a>>, with_result: bool) -> Builder<'a> {
        let mut free: Vec<usize> = (0..code.slots).rev().collect();
        let mut slots = vec![None; items.len()];
        for (item, slot) in items.iter().zip(&mut slots).filter(|(item, _)| item.setup) {
            *slot = Some(item.step.dst);
        }
        let taken =
            |slot: usize| slots.contains(&Some(slot)) || (with_result && slot == code.result);
        free.retain(|&slot| !taken(slot));
        let nodes = vec![None; items.len()];
        Builder { items, slots, nodes, free, result: code.result, split: Split::default() }
    }

    fn renamed(&self, at: usize, dst: usize) -> Option<Step> {
        let item = &self.items[at];
        let mut sources = item.sources.iter();
        let mut what = item.step.what.clone();
        let mut known = true;
        what.rename(|_| {
            let slot = sources.next().and_then(|&source| self.slots[source]);
            known &= slot.is_some();
            slot.unwrap_or(0)
        });
        if let What::Load { keep, .. } = &mut what {
            *keep = true; // it is read while generated code writes
        }
        known.then_some(Step { what, dst, direct: None, narrow: false })
    }

    /// What comes before the code, each value in a slot of its own.
    fn interpreted(&mut self) -> Option<()> {
        for at in 0..self.items.len() {
            let item = &self.items[at];
            let read = item.needed || (item.wanted && item.place.is_none());
            if item.setup || !item.interpreted || !read {
                continue;
            }
            let slot = self.free.pop()?;
            let step = self.renamed(at, slot)?;
            self.split.before.push(step);
            self.slots[at] = Some(slot);
        }
        Some(())
    }

    fn place(&mut self, origin: Origin, form: Form) -> usize {
        let known = self.split.places.iter().position(|&own| own == (origin, form));
        known.unwrap_or_else(|| {
            self.split.places.push((origin, form));
            self.split.places.len() - 1
        })
    }

    fn node(&mut self, node: Node) -> Value {
        self.split.nodes.push(node);
        self.split.nodes.len() - 1
    }

    /// The node of a source.
    fn source(&mut self, item: usize) -> Option<Value> {
        if let Some(known) = self.nodes[item] {
            return Some(known);
        }
        let own = &self.items[item];
        let node = match own.step.what {
            What::Const(value) => Node::Constant(value.to_bits()),
            _ if own.setup => Node::Uniform(own.step.dst),
            _ => {
                let slot = self.slots[item]?;
                Node::Read(self.place(Origin::Slot(slot), Form::F32), Form::F32)
            }
        };
        let node = self.node(node);
        self.nodes[item] = Some(node);
        Some(node)
    }

    /// The code, and what comes after it.
    fn generated(&mut self, result: Option<usize>) -> Option<()> {
        for at in 0..self.items.len() {
            let item = &self.items[at];
            if item.is_store() {
                self.store(at)?;
            } else if item.is_node() {
                let sources = item.sources.clone();
                let (what, place) = (item.step.what.clone(), item.place);
                let sources: Option<Vec<_>> =
                    sources.into_iter().map(|source| self.source(source)).collect();
                let node = match (what, &sources?[..], place) {
                    (_, _, Some((origin, form))) => Node::Read(self.place(origin, form), form),
                    (What::Unary { op, .. }, &[a], _) => Node::Unary(op, a),
                    (What::Binary { op, .. }, &[a, b], _) => Node::Binary(op, a, b),
                    (What::Fma { .. }, &[a, b, c], _) => Node::Fma(a, b, c),
                    (What::Select { .. }, &[cond, a, b], _) => Node::Select(cond, a, b),
                    _ => return None,
                };
                self.nodes[at] = Some(self.node(node));
            }
        }
        if let Some(result) = result {
            let src = self.source(result)?;
            let place = self.place(Origin::Slot(self.result), Form::F32);
            self.node(Node::Write(place, Form::F32, src));
        }
        Some(())
    }

    fn store(&mut self, at: usize) -> Option<()> {
        let item = &self.items[at];
        let source = *item.sources.first()?;
        if let Some((origin, form)) = item.place {
            let src = self.source(source)?;
            let place = self.place(origin, form);
            self.node(Node::Write(place, form, src));
            return Some(());
        }
        if self.slots[source].is_none() {
            let (slot, src) = (self.free.pop()?, self.source(source)?);
            let place = self.place(Origin::Slot(slot), Form::F32);
            self.node(Node::Write(place, Form::F32, src));
            self.slots[source] = Some(slot);
        }
        let step = self.renamed(at, 0)?;
        self.split.after.push(step);
        Some(())
    }

    /// Once per task: generated code takes one float, the interpreter what it always does.
    fn setup(&mut self) {
        for item in self.items.iter().filter(|item| item.setup) {
            let read = item.wanted && !matches!(item.step.what, What::Const(_));
            if item.needed || read {
                let narrow = item.step.narrow || !item.needed;
                self.split.setup.push(Step { narrow, ..item.step.clone() });
            }
        }
    }
}
