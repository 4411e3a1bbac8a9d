//! Products: axes become matrices, a model of the machine chooses kernel and tiles, the
//! element-wise part becomes a header, and all of it launches.
//!
//! Everything is a product with a program behind it: one that stores C, or adds to it, where the
//! spec has none. A depth of more axes than kernels walk is summed over several launches in f32
//! scratch, and so are batches that a launch cannot hold, without scratch. Sums of a factor are
//! made by the product's kernel where it has such a form, else by a reduction behind it. Products
//! with a factor in common share a launch where they can.

mod arrange;
mod choice;
mod epilogue;
mod launches;
mod matrix;
mod summed;
mod sums;
#[cfg(test)]
pub(crate) mod tests;
mod together;

use super::{Chip, unsupported};
use crate::launch::{Address, Kernel, Launch};
use aerogel_lower::{Binary, Contraction, Draws, Instr, LowerError, Operand, Products, Program};
pub(crate) use arrange::Place;
use arrange::{BEST, KNOWN, PART, Product, WORST};
use launches::Job;
use matrix::{A, Axis, B, FIRST, Roles};
use sums::Sums;
/// Launches over an axis of the depth that kernels do not walk, at most.
const MOST_PARTS: usize = 1024;

pub(crate) fn product(
    spec: &Contraction,
    draws: Draws,
    align: &[u64],
    chip: Chip,
) -> Result<Kernel, LowerError> {
    let (launches, workspace_bytes) = launches(spec, draws, &places(spec, 0, align), chip, 0)?;
    Ok(Kernel { launches, workspace_bytes, tables: vec![] })
}

/// Where the operands of a contraction lie, the first of which has this number.
fn places(spec: &Contraction, first: usize, align: &[u64]) -> Vec<Place> {
    let mut dtypes = vec![spec.a, spec.b];
    match &spec.epilogue {
        None => dtypes.push(spec.c),
        Some(program) => {
            dtypes.extend(program.inputs.iter().chain(&program.outputs).map(|o| o.dtype));
        }
    }
    dtypes.extend(spec.sums.as_ref().map(|sums| sums.output.dtype));
    let numbered = (first..).zip(dtypes);
    let align = |i: usize| align.get(i).copied().unwrap_or(1);
    numbered.map(|(i, dtype)| Place::operand(i, align(i), dtype)).collect()
}

/// Products with a factor in common: in one launch, or one after the other where their addresses do
/// not allow it.
///
/// # Errors
/// No addresses allow it, or it would not be faster: then they are better off alone.
pub(crate) fn products(spec: &Products, align: &[u64], chip: Chip) -> Result<Kernel, LowerError> {
    let (mut members, mut first) = (vec![], 0);
    let (mut launches, mut most) = (vec![], 0);
    for own in &spec.members {
        let at = places(own, first, align);
        let (alone, bytes) = self::launches(own, Draws::default(), &at, chip, 0)?;
        launches.extend(alone);
        most = most.max(bytes);
        // Whatever the addresses, there is room.
        for which in [BEST, WORST] {
            let at: Vec<Place> = at.iter().map(|place| place.known_as(which)).collect();
            most = most.max(self::launches(own, Draws::default(), &at, chip, 0)?.1);
        }
        first += at.len();
        members.push((own, at));
    }
    let refused = || unsupported("products", "they do not share a launch, or better not");
    let plan = together::plan(spec.common, &members, chip)?.ok_or_else(refused)?;
    if let Some(shared) = plan.launches()? {
        launches = shared;
    }
    let workspace_bytes = most.max(plan.bytes());
    Ok(Kernel { launches, workspace_bytes, tables: vec![] })
}

/// The sum of products over the same rows and columns: in one launch, or one after the other, added
/// in f32 scratch, where their addresses do not allow it.
///
/// # Errors
/// No addresses allow it, or it would not be faster.
pub(crate) fn summed(
    terms: &[Contraction],
    draws: Draws,
    align: &[u64],
    chip: Chip,
) -> Result<Kernel, LowerError> {
    let refused = || unsupported("products", "they are not summed by one launch, or better not");
    let (mut list, mut others): (Vec<summed::Term<'_>>, Vec<Place>) = (vec![], vec![]);
    for spec in terms {
        let mut at = places(spec, 2 * list.len(), align);
        others = at.split_off(FIRST);
        list.push(summed::Term { spec, factors: [at[A], at[B]] });
    }
    let program = matrix::program(terms.last().ok_or_else(refused)?)?;
    let plan = summed::plan(&list, &program, &others, draws, chip)?.ok_or_else(refused)?;
    let (mut launches, mut workspace_bytes) = (vec![], 0);
    for which in [WORST, BEST, KNOWN] {
        let at: Vec<summed::Term<'_>> = list.iter().map(|term| term.known_as(which)).collect();
        let others: Vec<Place> = others.iter().map(|place| place.known_as(which)).collect();
        let made = in_turn(&at, &program, &others, draws, chip)?;
        workspace_bytes = made.bytes.max(workspace_bytes);
        launches = made.launches;
    }
    if let Some(one) = plan.launches()? {
        launches = one;
    }
    Ok(Kernel { launches, workspace_bytes, tables: vec![] })
}

/// Products that are added one after the other.
fn in_turn(
    terms: &[summed::Term<'_>],
    program: &Program,
    others: &[Place],
    draws: Draws,
    chip: Chip,
) -> Result<Made, LowerError> {
    let own = (4 * program.sizes.iter().product::<usize>() as u64).next_multiple_of(PART);
    let (mut launches, mut most) = (vec![], 0);
    for (i, summed::Term { spec, factors }) in terms.iter().enumerate() {
        let product = Product { alpha: 1.0, dtypes: [spec.a, spec.b], draws, chip };
        let sum = Place::workspace(0);
        let (made, at) = turn(program, others, sum, i == 0, i + 1 == terms.len());
        let roles = Roles::new(spec, &made)?;
        let made = product.direct(roles, &made, &[&factors[..], &at].concat(), own, None)?;
        launches.extend(made.launches);
        most = most.max(made.bytes);
    }
    Ok(Made { launches, bytes: own + most, sums: false })
}

/// What a product does that is one of several which are summed in scratch, and what it works on
/// beside its factors: the first stores it there, others add to it, and the last goes on to the
/// program.
fn turn(
    program: &Program,
    others: &[Place],
    sum: Place,
    first: bool,
    last: bool,
) -> (Program, Vec<Place>) {
    let (inputs, outputs) = others.split_at(program.inputs.len());
    match (first, last) {
        (true, true) => (program.clone(), others.to_vec()),
        (true, false) => (matrix::store(&program.sizes, sums(program), false), vec![sum]),
        (false, false) => (matrix::store(&program.sizes, sums(program), true), vec![sum; 2]),
        (false, true) => (with_sum(program), [inputs, &[sum], outputs].concat()),
    }
}

/// The launches of a product whose operands lie in these places, in the order of the spec, with
/// scratch from this byte of the workspace on; and how much of it they take.
///
/// # Errors
/// Types that no device takes, or more axes or sizes than launches can hold.
pub(crate) fn launches(
    spec: &Contraction,
    draws: Draws,
    places: &[Place],
    chip: Chip,
    work: u64,
) -> Result<(Vec<Launch>, u64), LowerError> {
    let program = matrix::program(spec)?;
    let mut places = places.to_vec();
    let sums = match &spec.sums {
        Some(own) => places.pop().map(|place| Sums::new(spec, own, place.known())).transpose()?,
        None => None,
    };
    if spec.epilogue.is_none() && spec.accumulate {
        places.extend(places.last().copied());
    }
    let roles = Roles::new(spec, &program)?;
    let product = Product { alpha: spec.alpha, dtypes: [spec.a, spec.b], draws, chip };
    let mut made = match roles.k.len() {
        _ if roles.elements() == 0 => Made::default(),
        ..=2 => product.direct(roles, &program, &places, work, sums.as_ref())?,
        _ => product.chained(spec, &roles, &program, &places, work)?,
    };
    if let (Some(sums), false) = (&sums, made.sums) {
        // What the product left in the workspace is read by then.
        let (own, bytes) = sums.alone(places[sums.factor()].known(), work)?;
        made.launches.extend(own);
        made.bytes = made.bytes.max(bytes.next_multiple_of(PART));
    }
    Ok((made.launches, made.bytes))
}

/// Launches, the scratch that they take, and whether they make the sums of a factor, too.
#[derive(Default)]
struct Made {
    launches: Vec<Launch>,
    bytes: u64,
    sums: bool,
}

impl Product {
    /// A product whose depth has two axes at most.
    fn direct(
        &self,
        mut roles: Roles,
        program: &Program,
        places: &[Place],
        work: u64,
        sums: Option<&Sums<'_>>,
    ) -> Result<Made, LowerError> {
        if roles.k.iter().any(|axis| axis.size == 0) {
            let strides = vec![0; roles.k[0].strides.len()];
            roles.k = vec![Axis { size: 0, strides }];
        }
        let all = roles.arrangements();
        // Room for those of any form, so that it depends on nothing but the shares.
        let count = sums.map_or(0, Sums::count);
        let arrange = |which: usize, most_bytes: u64| {
            let (x, choice, along) = self.arrange(&all, program, places, which, sums, most_bytes);
            (x, choice, along, choice::part_bytes(x, choice.splits, count))
        };
        let [best, worst] = [BEST, WORST].map(|which| arrange(which, u64::MAX).3);
        let (matrices, choice, along, bytes) = arrange(KNOWN, best.max(worst));
        let factors = if matrices.swapped { [B, A] } else { [A, B] };
        let job = Job {
            program,
            text: epilogue::text(program, &along),
            choice,
            dtypes: factors.map(|which| self.dtypes[which]),
            alpha: self.alpha,
            draws: self.draws,
            work,
            beside: sums.and_then(|sums| sums.beside(matrices, &choice)),
            more: vec![],
        };
        let order = factors.into_iter().chain(FIRST..places.len());
        let addresses: Vec<Address> = order.map(|i| places[i].address).collect();
        let first = vec![0; along.len() - program.inputs.len() - program.outputs.len()];
        let mut launches = vec![];
        job.launches(matrices, &addresses, &first, &mut launches)?;
        Ok(Made { launches, bytes: bytes.next_multiple_of(PART), sums: job.beside.is_some() })
    }

    /// A product whose depth has more axes: the two longest are summed by kernels, the others by
    /// launches that follow each other, in f32 until the last one.
    fn chained(
        &self,
        spec: &Contraction,
        roles: &Roles,
        program: &Program,
        places: &[Place],
        work: u64,
    ) -> Result<Made, LowerError> {
        let mut k = roles.k.clone();
        k.sort_by_key(|axis| std::cmp::Reverse(axis.size));
        let loops = k.split_off(2);
        let parts: usize = loops.iter().map(|axis| axis.size).product();
        if parts > MOST_PARTS {
            return Err(unsupported(
                "product",
                format!(
                    "the depth has more than two axes, and {parts} parts; at most {MOST_PARTS}"
                ),
            ));
        }
        let sum = Place::workspace(work);
        let own = (4 * roles.elements() as u64).next_multiple_of(PART);
        let (mut list, mut most) = (vec![], 0);
        for part in 0..parts.max(1) {
            let last = part + 1 >= parts;
            let (made, others) = turn(program, &places[FIRST..], sum, part == 0, last);
            let mut offsets = [0; 2];
            let mut rest = part;
            for axis in loops.iter().rev().filter(|axis| axis.size > 0) {
                let at = (rest % axis.size) as isize;
                rest /= axis.size;
                (A..=B).for_each(|which| offsets[which] += at * axis.strides[which]);
            }
            let bytes =
                |which: usize| (self.dtypes[which].bytes() as isize * offsets[which]) as i64;
            let mut at: Vec<Place> =
                [A, B].into_iter().map(|which| places[which].plus(bytes(which))).collect();
            at.extend(others);
            let mut roles = Roles::new(spec, &made)?;
            // Without elements there is nothing to sum.
            roles.k = if parts == 0 { loops.clone() } else { k.clone() };
            let operands = roles.operands();
            roles.k.iter_mut().for_each(|axis| axis.strides.resize(operands, 0));
            let made = self.direct(roles, &made, &at, work + own, None)?;
            list.extend(made.launches);
            most = most.max(made.bytes);
        }
        Ok(Made { launches: list, bytes: own + most, sums: false })
    }
}

/// Sums of a product in scratch, row-major.
fn sums(program: &Program) -> Operand {
    let mut strides = vec![1; program.sizes.len()];
    for axis in (1..strides.len()).rev() {
        strides[axis - 1] = strides[axis] * program.sizes[axis] as isize;
    }
    Operand::f32(strides)
}

/// A program whose products are completed by a further input, its last.
fn with_sum(program: &Program) -> Program {
    let mut out = program.clone();
    let input = out.inputs.len();
    out.inputs.push(sums(program));
    let mut next = program.instrs.iter().filter_map(Instr::target).max().map_or(0, |v| v + 1);
    out.instrs.clear();
    for instr in &program.instrs {
        let Instr::Product { dst } = *instr else {
            out.instrs.push(instr.clone());
            continue;
        };
        let (a, b) = (next, next + 1);
        next += 2;
        out.instrs.push(Instr::Product { dst: a });
        out.instrs.push(Instr::Load { dst: b, input });
        out.instrs.push(Instr::Binary { op: Binary::Add, dst, a, b });
    }
    out
}
