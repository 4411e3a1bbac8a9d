//! From a contraction to matrices: axes by role, merged where all operands walk evenly, of each
//! role one as the matrix axis and the others as loops around it.

use super::super::text::indices;
use super::super::unsupported;
use aerogel_graph::DType;
use aerogel_lower::{Binary, Contraction, Instr, LowerError, Operand, Program, Role};

/// Left and right factor among the strides of an [`Axis`]; the epilogue's operands follow, then
/// its indices.
pub(super) const A: usize = 0;
pub(super) const B: usize = 1;
/// The first operand of the epilogue among the strides.
pub(super) const FIRST: usize = 2;

/// One axis of a product: its size, and the stride of every operand on it, in elements.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    pub size: usize,
    pub strides: Vec<isize>,
}

impl Axis {
    /// An axis that nothing moves along.
    pub fn one(operands: usize) -> Axis {
        Axis { size: 1, strides: vec![0; operands] }
    }
}

/// The axes by role, merged.
#[derive(Clone, Debug)]
pub(super) struct Roles {
    pub batch: Vec<Axis>,
    pub m: Vec<Axis>,
    pub n: Vec<Axis>,
    pub k: Vec<Axis>,
    /// Strides that an axis has.
    operands: usize,
}

/// What of the axes is what.
#[derive(Clone, Debug)]
pub(super) struct Matrices {
    pub m: Axis,
    pub n: Axis,
    pub k: Axis,
    /// A second axis of the depth.
    pub k_outer: Axis,
    /// Loops around the product, outermost first.
    pub batch: Vec<Axis>,
    /// The rows of the product are the contraction's columns. Strides stand as the kernel sees
    /// them: its left factor first.
    pub swapped: bool,
}

/// The program of a contraction: its own, or what stores C or adds to it.
///
/// # Errors
/// A type or a combination that no device takes.
pub(super) fn program(spec: &Contraction) -> Result<Program, LowerError> {
    let refuse = |what: String| Err(unsupported("product", what));
    if [spec.a, spec.b].contains(&DType::U32) {
        return refuse("a factor holds u32; products take f32, bf16 and f16".to_owned());
    }
    let in_c = || axes_of(spec).map(|axis| &spec.axes[axis]);
    let sizes: Vec<usize> = in_c().map(|axis| axis.size).collect();
    match &spec.epilogue {
        Some(_) if spec.accumulate => refuse(
            "an epilogue cannot be combined with accumulate; load C in the program".to_owned(),
        ),
        Some(program) if program.sizes != sizes => refuse(format!(
            "the epilogue's sizes {:?} are not those of batch, M and N: {sizes:?}",
            program.sizes
        )),
        Some(program) => Ok(program.clone()),
        None => {
            if spec.c == DType::U32 {
                return refuse("C holds u32; products write f32, bf16 and f16".to_owned());
            }
            let some = !sizes.contains(&0);
            if let Some(axis) = in_c().find(|axis| some && axis.c == 0 && axis.size > 1) {
                return refuse(format!("C repeats along an axis of {} elements", axis.size));
            }
            let c = Operand { dtype: spec.c, strides: in_c().map(|axis| axis.c).collect() };
            Ok(store(&sizes, c, spec.accumulate))
        }
    }
}

/// What stores products, or adds them to what is there.
pub(super) fn store(sizes: &[usize], c: Operand, accumulate: bool) -> Program {
    let mut instrs = vec![Instr::Product { dst: 0 }];
    let mut inputs = vec![];
    if accumulate {
        inputs.push(c.clone());
        instrs.push(Instr::Load { dst: 1, input: 0 });
        instrs.push(Instr::Binary { op: Binary::Add, dst: 2, a: 0, b: 1 });
    }
    instrs.push(Instr::Store { output: 0, src: if accumulate { 2 } else { 0 } });
    Program { sizes: sizes.to_vec(), inputs, outputs: vec![c], instrs }
}

/// The contraction's axes in the order of the program's.
fn axes_of(spec: &Contraction) -> impl Iterator<Item = usize> {
    let of = |role: Role| (0..spec.axes.len()).filter(move |&axis| spec.axes[axis].role == role);
    of(Role::Batch).chain(of(Role::M)).chain(of(Role::N))
}

impl Roles {
    /// The axes of a contraction and of its [`program`], those of size 1 left out.
    ///
    /// # Errors
    /// An operand of the program has another number of strides.
    pub fn new(spec: &Contraction, program: &Program) -> Result<Roles, LowerError> {
        let wanted = program.sizes.len();
        let operands = || program.inputs.iter().chain(&program.outputs);
        if let Some((i, own)) = operands().enumerate().find(|(_, o)| o.strides.len() != wanted) {
            let got = own.strides.len();
            return Err(LowerError::Rank { kernel: "product", operand: FIRST + i, wanted, got });
        }
        let mut columns: Vec<Vec<isize>> = operands().map(|o| o.strides.clone()).collect();
        columns.extend(indices(program));
        let mut places = vec![None; spec.axes.len()];
        axes_of(spec).enumerate().for_each(|(place, axis)| places[axis] = Some(place));
        let count = FIRST + columns.len();
        let mut roles = Roles { batch: vec![], m: vec![], n: vec![], k: vec![], operands: count };
        for (axis, place) in spec.axes.iter().zip(places).filter(|(axis, _)| axis.size != 1) {
            let a = if axis.role == Role::N { 0 } else { axis.a };
            let b = if axis.role == Role::M { 0 } else { axis.b };
            let others = columns.iter().map(|own| place.map_or(0, |p| own[p]));
            let strides: Vec<isize> = [a, b].into_iter().chain(others).collect();
            // What one factor repeats along is a side of the other.
            let list = match axis.role {
                Role::K => &mut roles.k,
                Role::M => &mut roles.m,
                Role::N => &mut roles.n,
                Role::Batch if b == 0 && a != 0 => &mut roles.m,
                Role::Batch if a == 0 && b != 0 => &mut roles.n,
                Role::Batch => &mut roles.batch,
            };
            list.push(Axis { size: axis.size, strides });
        }
        let Roles { batch, m, n, k, .. } = &mut roles;
        [batch, m, n, k].into_iter().for_each(merge);
        Ok(roles)
    }

    /// Strides that an axis has.
    pub fn operands(&self) -> usize {
        self.operands
    }

    /// Elements of C.
    pub fn elements(&self) -> usize {
        [&self.batch, &self.m, &self.n].into_iter().flatten().map(|axis| axis.size).product()
    }

    /// The arrangements that kernels of several products take: with nothing around the matrices.
    pub fn without_loops(&self) -> Vec<Matrices> {
        if self.k.len() != 1 || self.elements() == 0 {
            return vec![];
        }
        let mut all = self.arrangements();
        all.retain(|x| x.batches() == 1 && x.k.size > 0);
        all
    }

    /// Every way to choose the matrix axes, of at most two axes of the depth.
    pub fn arrangements(&self) -> Vec<Matrices> {
        let mut all = vec![];
        for swapped in [false, true] {
            let (rows, cols) = if swapped { (&self.n, &self.m) } else { (&self.m, &self.n) };
            for (m, more) in self.choices(rows) {
                for (n, others) in self.choices(cols) {
                    for (k, rest) in self.choices(&self.k) {
                        let k_outer = rest.into_iter().next();
                        let mut batch = [&self.batch[..], &more, &others].concat();
                        merge(&mut batch);
                        // The few go around the many; of equals the first.
                        batch.sort_by_key(|axis| axis.size);
                        all.push(Matrices {
                            m: m.clone(),
                            n: n.clone(),
                            k,
                            k_outer: k_outer.unwrap_or_else(|| Axis::one(self.operands)),
                            batch,
                            swapped,
                        });
                    }
                }
            }
        }
        all.iter_mut().filter(|x| x.swapped).for_each(Matrices::exchange);
        all
    }

    /// One of the axes, or one of size 1, and those that are left.
    fn choices(&self, axes: &[Axis]) -> Vec<(Axis, Vec<Axis>)> {
        if axes.is_empty() {
            return vec![(Axis::one(self.operands), vec![])];
        }
        let pick = |at: usize| {
            let mut rest = axes.to_vec();
            let one = rest.remove(at);
            (one, rest)
        };
        (0..axes.len()).map(pick).collect()
    }
}

impl Matrices {
    fn exchange(&mut self) {
        let Matrices { m, n, k, k_outer, batch, .. } = self;
        let axes = [m, n, k, k_outer].into_iter().chain(batch);
        axes.for_each(|axis| axis.strides.swap(A, B));
    }

    /// All axes that a factor's, or an operand's, elements lie along, but for these.
    pub fn strides<'a>(
        &'a self,
        operand: usize,
        but: &'a Axis,
    ) -> impl Iterator<Item = isize> + 'a {
        let axes = [&self.m, &self.n, &self.k, &self.k_outer].into_iter().chain(&self.batch);
        axes.filter(move |axis| !std::ptr::eq(*axis, but)).map(move |axis| axis.strides[operand])
    }

    /// Products around which nothing but loops is.
    pub fn batches(&self) -> usize {
        self.batch.iter().map(|axis| axis.size).product()
    }
}

/// Merges axes, whatever their order, until no two of them are walked evenly by all operands.
fn merge(axes: &mut Vec<Axis>) {
    let pair = |axes: &[Axis]| {
        let even = |outer: &Axis, inner: &Axis| {
            let size = inner.size as isize;
            outer.strides.iter().zip(&inner.strides).all(|(o, i)| *o == i * size)
        };
        (0..axes.len())
            .flat_map(|outer| (0..axes.len()).map(move |inner| (outer, inner)))
            .find(|&(outer, inner)| outer != inner && even(&axes[outer], &axes[inner]))
    };
    while let Some((outer, inner)) = pair(axes) {
        axes[inner].size *= axes[outer].size;
        axes.remove(outer);
    }
}
