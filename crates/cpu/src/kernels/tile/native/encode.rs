//! Bytes of the few instructions that generated code consists of.
//!
//! Vector instructions are EVEX with 512 bits: an [`Op`] names prefix map, prefix and opcode, and
//! [`Assembler::vector`] takes the three operands as in the manuals (destination, first source,
//! second source), of which the last can be memory. Displacements are always 32 bits wide, except
//! none: shorter forms would save bytes and no time.

/// Floats of a vector.
pub(super) const LANES: i32 = 16;

/// What the vectors of a block have in common for a moment.
const SHARED: Zmm = Zmm(31);

/// The registers that each of so many vectors has.
pub(super) fn registers(vectors: u8) -> u8 {
    if vectors <= 1 { 32 } else { SHARED.0 / vectors }
}

/// A vector register, 0 to 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Zmm(pub u8);

/// A mask register; [`NO_MASK`] means all lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mask(pub u8);

/// All lanes.
pub(super) const NO_MASK: Mask = Mask(0);

/// A general register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the processor's
pub(super) enum Gpr {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rsp = 4,
    Rsi = 6,
    Rdi = 7,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
}

/// An address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mem {
    /// The constant of this number, which lies behind the code.
    Constant(usize),
    /// `base + displacement`.
    At(Gpr, i32),
    /// `base + (index << scale) + displacement`.
    Indexed(Gpr, Gpr, u8, i32),
}

/// The last source of a vector instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Src {
    Reg(Zmm),
    /// One float for all lanes.
    Each(Mem),
    /// A vector in memory, or what the instruction makes of a narrower one.
    Memory(Mem),
}

impl From<Zmm> for Src {
    fn from(reg: Zmm) -> Src {
        Src::Reg(reg)
    }
}

/// A vector instruction: map of opcodes (1: 0F, 2: 0F38, 3: 0F3A), prefix (0: none, 1: 66, 2: F3,
/// 3: F2), opcode. All have W = 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Op(u8, u8, u8);

#[allow(missing_docs)] // the names are the processor's, without "v"
impl Op {
    pub const MOVUPS_LOAD: Op = Op(1, 0, 0x10);
    pub const MOVUPS_STORE: Op = Op(1, 0, 0x11);
    pub const MOVAPS: Op = Op(1, 0, 0x28);
    pub const BROADCASTSS: Op = Op(2, 1, 0x18);
    pub const PBROADCASTW: Op = Op(2, 1, 0x79);
    pub const PMOVZXWD: Op = Op(2, 1, 0x33);
    pub const PMOVDW: Op = Op(2, 2, 0x33);
    /// Of half a vector, or 32 bytes.
    pub const CVTPH2PS: Op = Op(2, 1, 0x13);
    /// To half a vector, or 32 bytes: the destination is the last operand.
    const CVTPS2PH: Op = Op(3, 1, 0x1d);
    pub const SQRTPS: Op = Op(1, 0, 0x51);
    pub const ADDPS: Op = Op(1, 0, 0x58);
    pub const MULPS: Op = Op(1, 0, 0x59);
    pub const CVTDQ2PS: Op = Op(1, 0, 0x5b);
    pub const CVTUDQ2PS: Op = Op(1, 3, 0x7a);
    pub const SUBPS: Op = Op(1, 0, 0x5c);
    pub const MINPS: Op = Op(1, 0, 0x5d);
    pub const DIVPS: Op = Op(1, 0, 0x5e);
    pub const MAXPS: Op = Op(1, 0, 0x5f);
    pub const CMPPS: Op = Op(1, 0, 0xc2);
    /// `dst = src1 * dst + src2`.
    pub const FMADD213PS: Op = Op(2, 1, 0xa8);
    /// `dst = src1 * src2 + dst`.
    pub const FMADD231PS: Op = Op(2, 1, 0xb8);
    pub const BLENDMPS: Op = Op(2, 1, 0x65);
    pub const RNDSCALEPS: Op = Op(3, 1, 0x08);
    pub const PTERNLOGD: Op = Op(3, 1, 0x25);
    pub const PANDD: Op = Op(1, 1, 0xdb);
    pub const PORD: Op = Op(1, 1, 0xeb);
    pub const PXORD: Op = Op(1, 1, 0xef);
    pub const PADDD: Op = Op(1, 1, 0xfe);
    pub const PSUBD: Op = Op(1, 1, 0xfa);
    const SHIFT: Op = Op(1, 1, 0x72);
}

/// Shifts of 32-bit lanes, by their number in the opcode's extension.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shift {
    RightLogical = 2,
    RightArithmetic = 4,
    Left = 6,
}

/// Conditions of [`Op::CMPPS`] that raise no flags.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cmp {
    Equal = 0x00,
    Unordered = 0x03,
    /// True for NaN.
    NotEqual = 0x04,
    Less = 0x11,
    LessOrEqual = 0x12,
    GreaterOrEqual = 0x1d,
}

/// What the first field of an instruction is.
#[derive(Clone, Copy, Debug)]
enum Field {
    Vector(Zmm),
    Mask(Mask),
    /// A part of the opcode.
    Opcode(u8),
}

/// The operands of a vector instruction.
#[derive(Clone, Copy, Debug)]
struct Operands {
    field: Field,
    first: Option<Zmm>,
    last: Src,
    mask: Mask,
    zero: bool,
}

impl Operands {
    /// The same instruction for the vector of this number of a block, whose registers are `by`
    /// further.
    fn of_vector(self, number: u8, by: u8) -> Operands {
        let far = |reg: Zmm| Zmm(reg.0 + number * by);
        let next = |mask: Mask| Mask(if mask == NO_MASK { 0 } else { mask.0 + number });
        let field = match self.field {
            Field::Vector(reg) => Field::Vector(far(reg)),
            Field::Mask(mask) => Field::Mask(next(mask)),
            opcode => opcode,
        };
        let last = match self.last {
            Src::Reg(reg) => Src::Reg(far(reg)),
            Src::Memory(Mem::Indexed(base, index, scale, at)) => {
                let at = at + i32::from(number) * (LANES << scale);
                Src::Memory(Mem::Indexed(base, index, scale, at))
            }
            same => same,
        };
        let first = self.first.map(far);
        Operands { field, first, last, mask: next(self.mask), zero: self.zero }
    }
}

/// A place in the code that a jump names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label(usize);

/// Code under construction, and its constants.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    /// Vectors of a block: every vector instruction is there so often, each time with registers
    /// that are [`registers`] further, the next mask, and the next vector of indexed memory.
    pub vectors: u8,
    code: Vec<u8>,
    constants: Vec<u32>,
    /// Where a displacement is, how many bytes of the instruction follow it, and which constant.
    uses: Vec<(usize, usize, usize)>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// A constant of 32 bits; equal ones are kept once.
    pub fn constant(&mut self, bits: u32) -> Mem {
        let known = self.constants.iter().position(|&own| own == bits);
        Mem::Constant(known.unwrap_or_else(|| {
            self.constants.push(bits);
            self.constants.len() - 1
        }))
    }

    /// ModRM and what belongs to it; `reg` has its low three bits used.
    fn operand(&mut self, reg: u8, mem: Mem, trailing: usize) {
        let reg = (reg & 7) << 3;
        match mem {
            Mem::Constant(number) => {
                self.code.push(reg | 5);
                self.uses.push((self.code.len(), trailing, number));
                self.code.extend([0; 4]);
            }
            Mem::At(base, displacement) => {
                self.code.push(0x80 | reg | (base as u8 & 7));
                if base as u8 & 7 == 4 {
                    self.code.push(0x24); // the stack pointer needs a SIB byte without index
                }
                self.code.extend(displacement.to_le_bytes());
            }
            Mem::Indexed(base, index, scale, displacement) => {
                self.code.push(0x80 | reg | 4);
                self.code.push(scale << 6 | (index as u8 & 7) << 3 | (base as u8 & 7));
                self.code.extend(displacement.to_le_bytes());
            }
        }
    }

    /// An instruction, with its immediate if it has one, for all vectors of a block.
    fn evex(&mut self, op: Op, mut operands: Operands, immediate: Option<u8>) {
        if self.vectors <= 1 {
            return self.evex_once(op, operands, immediate);
        }
        let each = match operands.last {
            Src::Each(mem) => Some(mem),
            _ => None,
        };
        if let Some(mem) = each {
            // One load instead of one for each vector.
            let (field, last) = (Field::Vector(SHARED), Src::Memory(mem));
            let load = Operands { field, first: None, last, mask: NO_MASK, zero: false };
            self.evex_once(Op::BROADCASTSS, load, None);
            operands.last = Src::Reg(SHARED);
        }
        for number in 0..self.vectors {
            let own = operands.of_vector(number, registers(self.vectors));
            let last = if each.is_some() { operands.last } else { own.last };
            self.evex_once(op, Operands { last, ..own }, immediate);
        }
    }

    fn evex_once(&mut self, Op(map, prefix, opcode): Op, with: Operands, immediate: Option<u8>) {
        let bit = |value: u8, at: u8| value >> at & 1;
        let field = match with.field {
            Field::Vector(Zmm(reg)) => reg,
            Field::Mask(Mask(own)) | Field::Opcode(own) => own,
        };
        // The high bits of the last operand: of a register, or of base and index.
        let (base, index, each) = match with.last {
            Src::Reg(Zmm(reg)) => (bit(reg, 3), bit(reg, 4), 0),
            Src::Each(mem) | Src::Memory(mem) => {
                let (base, index) = match mem {
                    Mem::Constant(_) => (0, 0),
                    Mem::At(base, _) => (bit(base as u8, 3), 0),
                    Mem::Indexed(base, index, ..) => (bit(base as u8, 3), bit(index as u8, 3)),
                };
                (base, index, u8::from(matches!(with.last, Src::Each(_))))
            }
        };
        let first = with.first.map_or(0, |reg| reg.0);
        let p0 = (bit(field, 3) << 7 | index << 6 | base << 5 | bit(field, 4) << 4) ^ 0xf0 | map;
        let p1 = (first & 15) << 3 ^ 0x78 | 4 | prefix;
        let zero = u8::from(with.zero && with.mask != NO_MASK);
        let p2 = zero << 7 | 2 << 5 | each << 4 | (bit(first, 4) ^ 1) << 3 | with.mask.0;
        self.code.extend([0x62, p0, p1, p2, opcode]);
        match with.last {
            Src::Reg(Zmm(reg)) => self.code.push(0xc0 | (field & 7) << 3 | (reg & 7)),
            Src::Each(mem) | Src::Memory(mem) => {
                self.operand(field, mem, usize::from(immediate.is_some()));
            }
        }
        self.code.extend(immediate);
    }

    /// `op reg {mask}, first, last`, with zeros in lanes outside of the mask if `zero`.
    pub fn masked(
        &mut self,
        op: Op,
        reg: Zmm,
        first: Option<Zmm>,
        last: Src,
        (mask, zero): (Mask, bool),
    ) {
        self.evex(op, Operands { field: Field::Vector(reg), first, last, mask, zero }, None);
    }

    /// `op dst, first, last`.
    pub fn vector(&mut self, op: Op, dst: Zmm, first: Zmm, last: impl Into<Src>) {
        self.masked(op, dst, Some(first), last.into(), (NO_MASK, false));
    }

    /// `op dst, last`, for instructions of one source.
    pub fn single(&mut self, op: Op, dst: Zmm, last: impl Into<Src>) {
        self.masked(op, dst, None, last.into(), (NO_MASK, false));
    }

    /// `op dst, first, last, immediate`.
    pub fn immediate(
        &mut self,
        op: Op,
        dst: Zmm,
        first: Option<Zmm>,
        last: impl Into<Src>,
        value: u8,
    ) {
        let (field, last) = (Field::Vector(dst), last.into());
        self.evex(op, Operands { field, first, last, mask: NO_MASK, zero: false }, Some(value));
    }

    /// `vcvtps2ph to {mask}, from`: f16, to nearest, ties to even, whatever the current mode is.
    pub fn narrow_f16(&mut self, to: impl Into<Src>, from: Zmm, mask: Mask) {
        let (field, last) = (Field::Vector(from), to.into());
        let operands = Operands { field, first: None, last, mask, zero: false };
        self.evex(Op::CVTPS2PH, operands, Some(0));
    }

    /// `cmp to, first, last`.
    pub fn compare(&mut self, cmp: Cmp, to: Mask, first: Zmm, last: impl Into<Src>) {
        let (field, first, last) = (Field::Mask(to), Some(first), last.into());
        let operands = Operands { field, first, last, mask: NO_MASK, zero: false };
        self.evex(Op::CMPPS, operands, Some(cmp as u8));
    }

    /// `dst = from` shifted.
    pub fn shift(&mut self, shift: Shift, dst: Zmm, from: Zmm, by: u8) {
        let (field, first, last) = (Field::Opcode(shift as u8), Some(dst), Src::Reg(from));
        let operands = Operands { field, first, last, mask: NO_MASK, zero: false };
        self.evex(Op::SHIFT, operands, Some(by));
    }

    fn rex(&mut self, reg: Gpr, rm: Gpr) {
        self.code.push(0x48 | (reg as u8 >> 3) << 2 | rm as u8 >> 3);
    }

    /// `dst = [base + displacement]`.
    pub fn load(&mut self, dst: Gpr, base: Gpr, displacement: i32) {
        self.rex(dst, base);
        self.code.push(0x8b);
        self.operand(dst as u8, Mem::At(base, displacement), 0);
    }

    /// `[base + displacement] += from`.
    pub fn add_to(&mut self, base: Gpr, displacement: i32, from: Gpr) {
        self.rex(from, base);
        self.code.push(0x01);
        self.operand(from as u8, Mem::At(base, displacement), 0);
    }

    /// `dst = from`.
    pub fn copy(&mut self, dst: Gpr, from: Gpr) {
        self.rex(from, dst);
        self.code.extend([0x89, 0xc0 | (from as u8 & 7) << 3 | (dst as u8 & 7)]);
    }

    /// `reg += value`; zero is seen by the next jump.
    pub fn add(&mut self, reg: Gpr, value: i32) {
        self.rex(Gpr::Rax, reg);
        self.code.extend([0x81, 0xc0 | (reg as u8 & 7)]);
        self.code.extend(value.to_le_bytes());
    }

    /// Compares with zero.
    pub fn test(&mut self, reg: Gpr) {
        self.rex(reg, reg);
        self.code.extend([0x85, 0xc0 | (reg as u8 & 7) << 3 | (reg as u8 & 7)]);
    }

    /// `reg = 0`.
    pub fn clear(&mut self, reg: Gpr) {
        self.rex(reg, reg);
        self.code.extend([0x31, 0xc0 | (reg as u8 & 7) << 3 | (reg as u8 & 7)]);
    }

    /// `mask = reg`, its low 16 bits.
    pub fn set_mask(&mut self, mask: Mask, reg: Gpr) {
        let high = (reg as u8 >> 3) << 5 ^ 0x20;
        self.code.extend([0xc4, 0xc1 | high, 0x78, 0x92, 0xc0 | mask.0 << 3 | (reg as u8 & 7)]);
    }

    /// A name for a place that is yet to come.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Here is the place.
    pub fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// Jumps if the last number was zero, or was not.
    pub fn jump_if(&mut self, zero: bool, to: Label) {
        self.code.extend([0x0f, 0x85 - u8::from(zero)]);
        self.jumps.push((self.code.len(), to));
        self.code.extend([0; 4]);
    }

    /// Clears the upper halves, which slow down older instructions, and returns.
    pub fn leave(&mut self) {
        self.code.extend([0xc5, 0xf8, 0x77, 0xc3]);
    }

    /// The code with its constants behind it.
    pub fn finish(mut self) -> Vec<u8> {
        let pool = self.code.len().next_multiple_of(64);
        let mut set = |at: usize, target: usize, trailing: usize| {
            let distance = target as i32 - (at + 4 + trailing) as i32;
            self.code[at..at + 4].copy_from_slice(&distance.to_le_bytes());
        };
        for &(at, trailing, number) in &self.uses {
            set(at, pool + 4 * number, trailing);
        }
        for &(at, label) in &self.jumps {
            set(at, self.labels[label.0].expect("every label is bound"), 0);
        }
        self.code.resize(pool, 0xcc);
        self.code.extend(self.constants.iter().flat_map(|bits| bits.to_le_bytes()));
        self.code
    }
}

#[cfg(test)]
mod tests;
