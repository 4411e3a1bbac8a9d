//! Random contractions.

use super::*;

/// Numbers without a pattern.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        (1..list.len()).for_each(|i| list.swap(i, self.below(i + 1)));
    }

    /// Strides of axes of these sizes, in some order of memory, with gaps or without.
    pub(super) fn strides(&mut self, sizes: &[usize], repeats: bool) -> Vec<isize> {
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        if self.one_in(3) {
            self.shuffle(&mut order);
        }
        let (gaps, lines) = (self.one_in(4), self.one_in(2));
        let mut strides = vec![0; sizes.len()];
        let mut step = if self.one_in(8) { 2 } else { 1 };
        for &axis in order.iter().rev() {
            if repeats && self.one_in(6) {
                continue;
            }
            strides[axis] = step;
            step *= sizes[axis] as isize;
            step += if gaps { self.below(3) as isize } else { 0 };
            step = if lines { (step.max(8) + 7) / 8 * 8 } else { step };
        }
        strides
    }

    pub(super) fn spec(&mut self, large: bool) -> Contraction {
        let counts = [
            self.below(3 + self.0 as usize % 2),
            1 + self.below(2),
            1 + self.below(2),
            self.below(4),
        ];
        let roles = [Role::Batch, Role::M, Role::N, Role::K];
        let mut list: Vec<(Role, usize)> = vec![];
        for (role, count) in roles.into_iter().zip(counts) {
            let count = if large { 1 } else { count };
            for _ in 0..count {
                let some = [1, 2, 3, 4, 5, 8, 16];
                let size = match (large, role) {
                    (true, Role::M) => [72, 80][self.below(2)],
                    (true, Role::N) => [72, 96][self.below(2)],
                    (true, _) => 1 + self.below(9),
                    _ => some[self.below(some.len())],
                };
                list.push((role, size));
            }
        }
        self.shuffle(&mut list);
        let strides = |random: &mut Random, lacks: Role, repeats: bool| {
            let size = |&(role, size): &(Role, usize)| if role == lacks { 1 } else { size };
            let sizes: Vec<usize> = list.iter().map(size).collect();
            random.strides(&sizes, repeats)
        };
        let repeats = self.one_in(3);
        let (a, b) = (strides(self, Role::N, repeats), strides(self, Role::M, repeats));
        let c = strides(self, Role::K, false);
        let axis = |(i, &(role, size)): (usize, &(Role, usize))| Axis {
            role,
            size,
            a: a[i],
            b: b[i],
            c: c[i],
        };
        let axes: Vec<Axis> = list.iter().enumerate().map(axis).collect();
        let float = |random: &mut Random| {
            if random.one_in(4) { DType::F32 } else { DType::Bf16 }
        };
        let [mut a, mut b, mut c] = [(); 3].map(|()| float(self));
        // Of both types of 16 bits, and now and then of a mixture.
        let (all, some) = (self.one_in(3), self.one_in(4));
        if all {
            let other = |dtype| if dtype == DType::Bf16 { DType::F16 } else { dtype };
            (a, c) = (other(a), other(c));
            b = if some { b } else { other(b) };
        }
        let (accumulate, alpha) = (self.one_in(2), if self.one_in(2) { 1.0 } else { -0.5 });
        let mut spec = Contraction { axes, a, b, c, accumulate, alpha, epilogue: None, sums: None };
        if self.one_in(2) {
            spec.accumulate = false;
            spec.epilogue = Some(self.program(&spec));
        }
        if self.one_in(2) {
            spec.sums = Some(self.sums(&spec));
        }
        spec
    }

    pub(super) fn sums(&mut self, spec: &Contraction) -> OperandSums {
        let factor = self.below(2);
        let side = [Role::M, Role::N][factor];
        let has = |axis: &Axis| axis.role == Role::Batch || axis.role == side;
        let sizes: Vec<usize> =
            spec.axes.iter().map(|axis| if has(axis) { axis.size } else { 1 }).collect();
        let dtype = if self.one_in(4) { DType::Bf16 } else { DType::F32 };
        OperandSums { factor, output: Operand { dtype, strides: self.strides(&sizes, false) } }
    }

    /// Stores the sum of everything there is.
    pub(super) fn program(&mut self, spec: &Contraction) -> Program {
        let of = |role| spec.axes.iter().filter(move |axis| axis.role == role);
        let outside = [Role::Batch, Role::M, Role::N].into_iter().flat_map(of);
        let sizes: Vec<usize> = outside.map(|axis| axis.size).collect();
        let mut operand = |repeats: bool| {
            let dtype = [DType::F32, DType::Bf16, DType::F32, DType::F16][self.below(4)];
            Operand { dtype, strides: self.strides(&sizes, repeats) }
        };
        let outputs = vec![operand(false), operand(false)];
        let inputs = vec![operand(true), operand(true)];
        let mut instrs = vec![
            Instr::Product { dst: 0 },
            Instr::Load { dst: 1, input: 0 },
            Instr::Load { dst: 2, input: 1 },
            Instr::Binary { op: Binary::Add, dst: 3, a: 0, b: 1 },
            Instr::Binary { op: Binary::Add, dst: 4, a: 2, b: 3 },
        ];
        if self.one_in(2) {
            instrs.push(Instr::Coord { dst: 5, axis: self.below(sizes.len()) });
        }
        instrs.extend([0, 1].map(|output| Instr::Store { output, src: 4 }));
        Program { sizes, inputs, outputs, instrs }
    }
}
