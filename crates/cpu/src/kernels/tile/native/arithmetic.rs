//! The operations of `ops` as instructions.
//!
//! Each is the sequence of roundings that `math` and `ops` write down, with the same constants, so
//! that results are the same bits. Only which of two NaN a result is may differ, as it may between
//! two builds of the interpreter.

use super::encode::{Assembler, Cmp, Mask, NO_MASK, Op, Shift, Src, Zmm};
use super::registers::Registers;
use crate::math;
use aerogel_lower::{Binary, Unary};
use std::f32::consts::LOG2_E;

/// Lanes for which a condition of the node in work holds.
const CHOSEN: Mask = Mask(2);
const SIGN: u32 = 0x8000_0000;
const MAGNITUDE: u32 = 0x7fff_ffff;
/// Truth table of "where the third is set, the first, else the second".
const MERGE: u8 = 0xe4;

/// What emitting one node works with.
pub(super) struct Arithmetic<'a, 'b> {
    pub asm: &'a mut Assembler,
    pub registers: &'a mut Registers<'b>,
    /// The node.
    pub at: usize,
}

impl Arithmetic<'_, '_> {
    pub fn temporary(&mut self) -> Zmm {
        self.registers.temporary(self.asm, self.at)
    }

    fn bits(&mut self, bits: u32) -> Src {
        Src::Each(self.asm.constant(bits))
    }

    fn constant(&mut self, value: f32) -> Src {
        self.bits(value.to_bits())
    }

    /// Fills a register.
    fn set(&mut self, to: Zmm, value: f32) {
        let from = Src::Memory(self.asm.constant(value.to_bits()));
        self.asm.single(Op::BROADCASTSS, to, from);
    }

    /// An operation whose second source is a constant.
    fn with(&mut self, op: Op, to: Zmm, a: Zmm, value: f32) {
        let value = self.constant(value);
        self.asm.vector(op, to, a, value);
    }

    /// The same with a constant of bits.
    fn with_bits(&mut self, op: Op, to: Zmm, a: Zmm, bits: u32) {
        let bits = self.bits(bits);
        self.asm.vector(op, to, a, bits);
    }

    fn when(&mut self, cmp: Cmp, a: Zmm, value: f32) {
        let value = self.constant(value);
        self.asm.compare(cmp, CHOSEN, a, value);
    }

    /// `op to, first, last` in the chosen lanes only.
    fn there(&mut self, op: Op, to: Zmm, first: Zmm, last: impl Into<Src>) {
        self.asm.masked(op, to, Some(first), last.into(), (CHOSEN, false));
    }

    /// The same for instructions of one source.
    fn there_single(&mut self, op: Op, to: Zmm, last: impl Into<Src>) {
        self.asm.masked(op, to, None, last.into(), (CHOSEN, false));
    }

    /// 1 in the chosen lanes, else 0.
    fn truth(&mut self, to: Zmm) {
        let one = Src::Memory(self.asm.constant(1f32.to_bits()));
        self.asm.masked(Op::BROADCASTSS, to, None, one, (CHOSEN, true));
    }

    /// `to = op(value, to)`; `first` is lost.
    fn after(&mut self, op: Op, value: f32, to: Zmm, first: Zmm) {
        self.set(first, value);
        self.asm.vector(op, to, first, to);
    }

    /// The magnitude of `to` with the sign of `x`.
    fn copy_sign(&mut self, to: Zmm, x: Zmm) {
        let magnitude = self.bits(MAGNITUDE);
        self.asm.immediate(Op::PTERNLOGD, to, Some(x), magnitude, MERGE);
    }

    fn polynomial(&mut self, to: Zmm, x: Zmm, coefficients: &[f32]) {
        let Some((&last, rest)) = coefficients.split_last() else { return };
        self.set(to, last);
        for &c in rest.iter().rev() {
            self.with(Op::FMADD213PS, to, x, c);
        }
    }

    /// Where x is an exponent: leaves the remainder `r` in it, the bits of the shifted multiple of
    /// ln 2 in `shifted`, and gives `e^r - 1`; `tail` is lost.
    fn exponential(&mut self, x: Zmm, shifted: Zmm, tail: Zmm) -> Zmm {
        let n = self.temporary();
        self.set(shifted, math::ROUND);
        self.with(Op::FMADD231PS, shifted, x, LOG2_E);
        self.with(Op::SUBPS, n, shifted, math::ROUND);
        self.with(Op::FMADD231PS, x, n, -math::LN2_HIGH);
        self.with(Op::FMADD231PS, x, n, -math::LN2_LOW);
        self.polynomial(tail, x, &math::EXP_TAIL);
        self.asm.vector(Op::MULPS, n, x, x);
        self.asm.vector(Op::FMADD213PS, n, tail, x);
        n
    }

    fn exp(&mut self, to: Zmm, x: Zmm) {
        let [u, n] = [self.temporary(), self.temporary()];
        let [least, most] = math::EXP_BOUNDS;
        // Of NaN and a number, these give the second.
        self.set(u, least);
        self.asm.vector(Op::MAXPS, u, u, x);
        self.set(to, most);
        self.asm.vector(Op::MINPS, u, to, u);
        let value = self.exponential(u, n, to);
        self.with(Op::ADDPS, value, value, 1.0);
        self.with_bits(Op::PSUBD, n, n, math::ROUND.to_bits());
        self.asm.shift(Shift::RightArithmetic, u, n, 1);
        self.asm.vector(Op::PSUBD, n, n, u);
        for e in [u, n] {
            self.with_bits(Op::PADDD, e, e, 127);
            self.asm.shift(Shift::Left, e, e, 23);
        }
        self.asm.vector(Op::MULPS, value, value, u);
        self.asm.vector(Op::MULPS, to, value, n);
    }

    fn ln(&mut self, to: Zmm, x: Zmm) {
        let [s, e, f, tail, low] = [(); 5].map(|()| self.temporary());
        self.when(Cmp::Less, x, f32::MIN_POSITIVE);
        self.asm.single(Op::MOVAPS, s, x);
        let scale = self.constant(math::LN_SCALE);
        self.there(Op::MULPS, s, s, scale);
        self.with_bits(Op::PSUBD, e, s, math::LN_ORIGIN);
        self.asm.shift(Shift::RightArithmetic, e, e, 23);
        self.asm.shift(Shift::Left, f, e, 23);
        self.asm.vector(Op::PSUBD, f, s, f);
        self.with(Op::SUBPS, f, f, 1.0);
        self.asm.single(Op::CVTDQ2PS, e, e);
        let shift = self.constant(23.0);
        self.there(Op::SUBPS, e, e, shift);
        self.polynomial(tail, f, &math::LN_TAIL);
        self.asm.vector(Op::MULPS, s, f, f);
        self.asm.vector(Op::MULPS, to, f, s);
        self.with(Op::MULPS, low, e, math::LN2_LOW);
        self.asm.vector(Op::FMADD231PS, low, to, tail);
        self.with(Op::FMADD231PS, low, s, -0.5);
        self.asm.vector(Op::ADDPS, low, low, f);
        self.with(Op::FMADD231PS, low, e, math::LN2_HIGH);
        self.when(Cmp::Equal, x, f32::INFINITY);
        self.there_single(Op::MOVAPS, low, x);
        self.when(Cmp::Equal, x, 0.0);
        let infinity = Src::Memory(self.asm.constant(f32::NEG_INFINITY.to_bits()));
        self.there_single(Op::BROADCASTSS, low, infinity);
        self.when(Cmp::GreaterOrEqual, x, 0.0);
        self.set(to, f32::NAN);
        self.there_single(Op::MOVAPS, to, low);
    }

    fn tanh(&mut self, to: Zmm, x: Zmm) {
        let [t, s, u, n] = [(); 4].map(|()| self.temporary());
        let [near, far] = math::TANH_BOUNDS;
        self.with_bits(Op::PANDD, t, x, MAGNITUDE);
        self.asm.vector(Op::MULPS, s, x, x);
        self.polynomial(to, s, &math::TANH_TAIL);
        self.asm.vector(Op::MULPS, s, s, x);
        self.asm.vector(Op::FMADD213PS, s, to, x);
        self.set(u, far);
        self.asm.vector(Op::MINPS, u, u, t);
        self.asm.vector(Op::ADDPS, u, u, u);
        let low = self.exponential(u, n, to);
        self.with_bits(Op::PADDD, n, n, 127u32.wrapping_sub(math::ROUND.to_bits()));
        self.asm.shift(Shift::Left, n, n, 23);
        self.with(Op::ADDPS, to, n, 1.0);
        self.asm.vector(Op::FMADD231PS, to, n, low);
        self.after(Op::DIVPS, 2.0, to, u);
        self.after(Op::SUBPS, 1.0, to, u);
        self.copy_sign(to, x);
        self.when(Cmp::Less, t, near);
        self.there_single(Op::MOVAPS, to, s);
    }

    fn erf(&mut self, to: Zmm, x: Zmm) {
        let [t, s, log, u] = [(); 4].map(|()| self.temporary());
        let [near, far] = math::ERF_BOUNDS;
        self.with_bits(Op::PANDD, t, x, MAGNITUDE);
        self.asm.vector(Op::MULPS, u, x, x);
        self.polynomial(s, u, &math::ERF_SMALL);
        self.asm.vector(Op::MULPS, s, x, s);
        self.set(u, far);
        self.asm.vector(Op::MINPS, u, u, t);
        self.polynomial(log, u, &math::ERF_LOG);
        self.exp(to, log);
        self.after(Op::SUBPS, 1.0, to, u);
        self.copy_sign(to, x);
        self.when(Cmp::Less, t, near);
        self.there_single(Op::MOVAPS, to, s);
    }

    /// The bf16 of x in the low half of each lane; above it may be anything.
    pub fn narrow(&mut self, to: Zmm, x: Zmm) {
        let high = self.temporary();
        self.asm.shift(Shift::RightLogical, high, x, 16);
        self.with_bits(Op::PANDD, to, high, 1);
        self.with_bits(Op::PADDD, to, to, 0x7fff);
        self.asm.vector(Op::PADDD, to, to, x);
        self.asm.shift(Shift::RightLogical, to, to, 16);
        self.asm.compare(Cmp::Unordered, CHOSEN, x, x);
        let quiet = self.bits(0x40);
        self.there(Op::PORD, to, high, quiet);
    }

    /// `to = op(x)`; `to` is not `x`. False if there is no code for it.
    pub fn unary(&mut self, op: Unary, to: Zmm, x: Zmm) -> bool {
        match op {
            Unary::Neg => self.with_bits(Op::PXORD, to, x, SIGN),
            Unary::Exp => self.exp(to, x),
            Unary::Ln => self.ln(to, x),
            Unary::Tanh => self.tanh(to, x),
            Unary::Sqrt => self.asm.single(Op::SQRTPS, to, x),
            Unary::Rsqrt => {
                self.asm.single(Op::SQRTPS, to, x);
                let one = self.temporary();
                self.after(Op::DIVPS, 1.0, to, one);
            }
            Unary::Recip => {
                self.set(to, 1.0);
                self.asm.vector(Op::DIVPS, to, to, x);
            }
            Unary::Sigmoid => {
                let minus = self.temporary();
                self.with_bits(Op::PXORD, minus, x, SIGN);
                self.exp(to, minus);
                self.with(Op::ADDPS, to, to, 1.0);
                self.after(Op::DIVPS, 1.0, to, minus);
            }
            Unary::Erf => self.erf(to, x),
            Unary::Abs => self.with_bits(Op::PANDD, to, x, MAGNITUDE),
            Unary::Sin | Unary::Cos => return false,
            // Downwards, without raising the flag for lost digits.
            Unary::Floor => self.asm.immediate(Op::RNDSCALEPS, to, None, x, 9),
            Unary::Not => {
                self.when(Cmp::Equal, x, 0.0);
                self.truth(to);
            }
            Unary::RoundF16 => {
                self.asm.narrow_f16(to, x, NO_MASK);
                self.asm.single(Op::CVTPH2PS, to, to);
            }
            Unary::RoundBf16 => {
                self.narrow(to, x);
                self.asm.shift(Shift::Left, to, to, 16);
            }
        }
        true
    }

    /// `to = op(a, b)`; `to` is neither. False if there is no code for it.
    pub fn binary(&mut self, op: Binary, to: Zmm, a: Zmm, b: Src) -> bool {
        let plain = match op {
            Binary::Add => Op::ADDPS,
            Binary::Sub => Op::SUBPS,
            Binary::Mul => Op::MULPS,
            Binary::Div => Op::DIVPS,
            Binary::Min => Op::MINPS,
            Binary::Max => Op::MAXPS,
            Binary::Pow => return false,
            Binary::Lt | Binary::Le | Binary::Eq => {
                let cmp = match op {
                    Binary::Lt => Cmp::Less,
                    Binary::Le => Cmp::LessOrEqual,
                    _ => Cmp::Equal,
                };
                self.asm.compare(cmp, CHOSEN, a, b);
                self.truth(to);
                return true;
            }
        };
        self.asm.vector(plain, to, a, b);
        if matches!(op, Binary::Min | Binary::Max) {
            // Of NaN and a number, the instruction gives the second.
            self.asm.compare(Cmp::Unordered, CHOSEN, a, a);
            self.there_single(Op::MOVAPS, to, a);
        }
        true
    }

    /// `to = a * b + c`; `to` is none of them.
    pub fn fma(&mut self, to: Zmm, a: Zmm, b: Src, c: Zmm) {
        self.asm.single(Op::MOVAPS, to, c);
        self.asm.vector(Op::FMADD231PS, to, a, b);
    }

    /// `to = a` where `cond` is not zero, else `b`.
    pub fn select(&mut self, to: Zmm, cond: Zmm, a: Src, b: Zmm) {
        self.when(Cmp::NotEqual, cond, 0.0);
        match a {
            Src::Each(mem) => {
                self.asm.single(Op::MOVAPS, to, b);
                self.there_single(Op::BROADCASTSS, to, Src::Memory(mem));
            }
            a => self.there(Op::BLENDMPS, to, b, a),
        }
    }
}
