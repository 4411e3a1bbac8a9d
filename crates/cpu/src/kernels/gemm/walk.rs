//! Which axes of a contraction are rows, columns and depth of matrices, and which are loops around
//! them.

use crate::kernel::{KernelError, check_output};
use aerogel_graph::DType;
use aerogel_lower::space::Space;
use aerogel_lower::{Axis, Contraction, Operand, Role};

pub(super) const A: usize = 0;
pub(super) const B: usize = 1;
pub(super) const C: usize = 2;
/// Fourth "operand": the row-major position in the epilogue's space.
pub(super) const POSITION: usize = 3;

/// The axes of a contraction, ordered and merged.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    /// Loops around a block: the rest of batch, M and N.
    pub outer: Space,
    /// The rest of K.
    pub depth: Space,
    /// Sizes and strides of the matrix axes M, N, K.
    pub size: [usize; 3],
    pub stride: [[isize; 4]; 3],
}

impl Walk {
    pub fn new(spec: &Contraction) -> Result<Walk, KernelError> {
        check(spec)?;
        let position = positions(&spec.axes);
        let role = |role: Role| group(spec, &position, role);
        let keep_last = spec.epilogue.is_some();
        let (batch, m_all, n_all, k_all) =
            (role(Role::Batch)?, role(Role::M)?, role(Role::N)?, role(Role::K)?);
        let (m_rest, m) = split(m_all, false);
        let (n_rest, n) = split(n_all, keep_last);
        let (k_rest, k) = split(k_all, false);
        Ok(Walk {
            outer: join(vec![batch, m_rest, n_rest]).finish("gemm")?,
            depth: k_rest.finish("gemm")?,
            size: [m.0, n.0, k.0],
            stride: [m.1, n.1, k.1],
        })
    }
}

fn check(spec: &Contraction) -> Result<(), KernelError> {
    let refuse = |what: String| Err(KernelError::Unsupported { kernel: "gemm", what });
    for (name, dtype) in [("A", spec.a), ("B", spec.b), ("C", spec.c)] {
        if dtype == DType::U32 {
            return refuse(format!("{name} holds u32; contractions take floats"));
        }
    }
    let in_c: Vec<_> = in_c(&spec.axes).collect();
    let sizes: Vec<_> = in_c.iter().map(|axis| axis.size).collect();
    match &spec.epilogue {
        None => {
            let c = Operand::f32(in_c.iter().map(|axis| axis.c).collect::<Vec<_>>());
            check_output("gemm", C, &c, &sizes)
        }
        Some(_) if spec.accumulate => {
            refuse("an epilogue cannot be combined with accumulate; load C in the program".into())
        }
        Some(program) if program.sizes != sizes => refuse(format!(
            "the epilogue's sizes {:?} are not those of batch, M and N: {sizes:?}",
            program.sizes
        )),
        Some(_) => Ok(()),
    }
}

/// The axes of C in the order of the epilogue's space.
fn in_c(axes: &[Axis]) -> impl Iterator<Item = &Axis> {
    let of = move |role: Role| axes.iter().filter(move |axis| axis.role == role);
    of(Role::Batch).chain(of(Role::M)).chain(of(Role::N))
}

/// For every axis, its row-major stride in the epilogue's space; 0 for K.
fn positions(axes: &[Axis]) -> Vec<isize> {
    let order = [Role::Batch, Role::M, Role::N];
    let after = |at: usize, role: Role| {
        let rank = |role| order.iter().position(|&other| other == role);
        let later = |(other, axis): &(usize, &Axis)| {
            axis.role != Role::K && (rank(axis.role), *other) > (rank(role), at)
        };
        axes.iter().enumerate().filter(later).map(|(_, axis)| axis.size as isize).product()
    };
    let stride = |(at, axis): (usize, &Axis)| match axis.role {
        Role::K => 0,
        role => after(at, role),
    };
    axes.iter().enumerate().map(stride).collect()
}

/// The merged axes of one role, as a space over A, B, C and the position.
fn group(spec: &Contraction, position: &[isize], role: Role) -> Result<Space, KernelError> {
    let keep = |here: bool, stride: isize| if here { stride } else { 0 };
    let (mut sizes, mut strides) = (Vec::new(), vec![Vec::new(); 4]);
    for (axis, &at) in spec.axes.iter().zip(position).filter(|(axis, _)| axis.role == role) {
        sizes.push(axis.size);
        strides[A].push(keep(role != Role::N, axis.a));
        strides[B].push(keep(role != Role::M, axis.b));
        strides[C].push(keep(role != Role::K && spec.epilogue.is_none(), axis.c));
        strides[POSITION].push(keep(spec.epilogue.is_some(), at));
    }
    let mut space = Space::new("gemm", &sizes, strides)?;
    if spec.epilogue.is_none() {
        let order = match role {
            Role::M | Role::K => [A, B],
            Role::N | Role::Batch => [B, A],
        };
        let keys = order.map(|which| space.strides[which].clone());
        let axes: Vec<_> = (0..sizes.len()).collect();
        space.permute(&aerogel_lower::space::by_stride(&axes, &[&keys[0], &keys[1]]));
    }
    let rank = space.sizes.len();
    space.collapse(rank);
    Ok(space)
}

/// Takes the matrix axis out of a role: the longest, or the last.
fn split(mut space: Space, last: bool) -> (Space, (usize, [isize; 4])) {
    let count = space.sizes.len();
    let longest = (0..count).max_by_key(|&axis| space.sizes[axis]);
    let Some(axis) = (if last { count.checked_sub(1) } else { longest }) else {
        return (space, (1, [0; 4]));
    };
    let size = space.sizes.remove(axis);
    let mut strides = [0; 4];
    for (own, stride) in space.strides.iter_mut().zip(&mut strides) {
        *stride = own.remove(axis);
    }
    (space, (size, strides))
}

/// One space with the axes of all, in order.
fn join(spaces: Vec<Space>) -> Space {
    let mut all = Space { sizes: Vec::new(), strides: vec![Vec::new(); 4] };
    for space in spaces {
        all.sizes.extend(space.sizes);
        for (own, more) in all.strides.iter_mut().zip(space.strides) {
            own.extend(more);
        }
    }
    all
}
