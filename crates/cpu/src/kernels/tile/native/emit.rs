//! From nodes to a function: the loops, and what is read and written.

use super::arithmetic::Arithmetic;
use super::encode::{Assembler, Gpr, LANES, Mask, Mem, NO_MASK, Op, Shift, Src, Zmm, registers};
use super::registers::Registers;
use super::split::{Form, Node, Value};
use crate::executable::Function;
use aerogel_lower::Binary;

/// The table of places, the uniform values, rows, blocks of a row, vectors behind them, lanes of
/// the last vector: the arguments in order.
const PLACES: Gpr = Gpr::Rdi;
const UNIFORMS: Gpr = Gpr::Rsi;
const ROWS: Gpr = Gpr::Rdx;
const BLOCKS: Gpr = Gpr::Rcx;
const VECTORS: Gpr = Gpr::R8;
const TAIL: Gpr = Gpr::R9;
/// The first element of the vector in work.
const ELEMENT: Gpr = Gpr::Rax;
/// Blocks or vectors that are left.
const LEFT: Gpr = Gpr::R11;
/// An address for a moment.
const ADDRESS: Gpr = Gpr::R10;
/// Bytes of an entry of the table.
const ENTRY: i32 = 16;
/// Most vectors of a block: more would leave each of them too few registers.
const MOST_VECTORS: u8 = 3;
/// The lanes of a row's end.
const END: Mask = Mask(1);
/// Most bytes of the stack.
const MOST_STACK: i32 = 4096;

/// What a function is made of.
#[derive(Clone, Copy)]
pub(super) struct Body<'a> {
    pub nodes: &'a [Node],
    /// How many places the nodes name.
    pub places: usize,
    /// By how many bytes a slot is behind the uniform values.
    pub uniform: &'a dyn Fn(usize) -> usize,
}

impl Body<'_> {
    /// The function: on as many vectors side by side as find registers, for one alone would mostly
    /// wait for its last instruction. `None` if a node has no code or too many values are alive.
    pub fn function(self) -> Option<Function> {
        for vectors in (2..=MOST_VECTORS).rev() {
            let (code, stack) = self.attempt(vectors, 0)?;
            if stack == 0 {
                let block = usize::from(vectors) * LANES as usize;
                return Some(Function { code, block });
            }
        }
        let (mut code, stack) = self.attempt(1, 0)?;
        if stack > MOST_STACK {
            return None;
        }
        if stack > 0 {
            code = self.attempt(1, stack)?.0;
        }
        Some(Function { code, block: LANES as usize })
    }

    /// The function with so much stack, and how much it needs.
    fn attempt(self, vectors: u8, stack: i32) -> Option<(Vec<u8>, i32)> {
        let mut asm = Assembler::default();
        let [row, next] = [(); 2].map(|()| asm.label());
        if stack > 0 {
            asm.add(Gpr::Rsp, -stack);
        }
        asm.set_mask(END, TAIL);
        asm.bind(row);
        asm.clear(ELEMENT);
        let mut used = self.repeat(&mut asm, BLOCKS, vectors)?;
        if vectors > 1 {
            used = used.max(self.repeat(&mut asm, VECTORS, 1)?);
        }
        asm.test(TAIL);
        asm.jump_if(true, next);
        used = used.max(self.emit(&mut asm, 1, END)?);
        asm.bind(next);
        for place in 0..self.places as i32 {
            asm.load(ADDRESS, PLACES, place * ENTRY + 8);
            asm.add_to(PLACES, place * ENTRY, ADDRESS);
        }
        asm.add(ROWS, -1);
        asm.jump_if(false, row);
        if stack > 0 {
            asm.add(Gpr::Rsp, stack);
        }
        asm.leave();
        Some((asm.finish(), used))
    }

    /// A loop over blocks of so many vectors; returns the stack that they need.
    fn repeat(self, asm: &mut Assembler, count: Gpr, vectors: u8) -> Option<i32> {
        let [block, end] = [(); 2].map(|()| asm.label());
        asm.copy(LEFT, count);
        asm.test(LEFT);
        asm.jump_if(true, end);
        asm.bind(block);
        let used = self.emit(asm, vectors, NO_MASK)?;
        asm.add(ELEMENT, i32::from(vectors) * LANES);
        asm.add(LEFT, -1);
        asm.jump_if(false, block);
        asm.bind(end);
        Some(used)
    }

    /// One block; returns the stack that it needs.
    fn emit(self, asm: &mut Assembler, vectors: u8, mask: Mask) -> Option<i32> {
        let Body { nodes, uniform, .. } = self;
        let mut registers = Registers::new(nodes, registers(vectors).into());
        asm.vectors = vectors;
        for at in 0..nodes.len() {
            let work = Arithmetic { asm, registers: &mut registers, at };
            let mut emitter = Emitter { work, nodes, uniform, mask };
            emitter.node(&nodes[at])?;
            registers.end(at);
        }
        Some(registers.stack_bytes())
    }
}

/// Emits one node.
struct Emitter<'a, 'b> {
    work: Arithmetic<'a, 'b>,
    nodes: &'b [Node],
    uniform: &'b dyn Fn(usize) -> usize,
    mask: Mask,
}

impl Emitter<'_, '_> {
    fn node(&mut self, node: &Node) -> Option<()> {
        let done = match *node {
            Node::Constant(_) | Node::Uniform(_) => true,
            Node::Read(place, form) => {
                self.read(place, form);
                true
            }
            Node::Write(place, form, src) => return self.write(place, form, src),
            Node::Unary(op, a) => {
                let a = self.register(a);
                let to = self.define();
                self.work.unary(op, to, a)
            }
            Node::Binary(op, a, b) => {
                let swap = matches!(op, Binary::Add | Binary::Mul) && self.is_uniform(a);
                let (a, b) = if swap { (b, a) } else { (a, b) };
                let (a, b) = (self.register(a), self.source(b));
                let to = self.define();
                self.work.binary(op, to, a, b)
            }
            Node::Fma(a, b, c) => {
                let (a, b, c) = (self.register(a), self.source(b), self.register(c));
                let to = self.define();
                self.work.fma(to, a, b, c);
                true
            }
            Node::Select(cond, a, b) => {
                let (cond, a, b) = (self.register(cond), self.source(a), self.register(b));
                let to = self.define();
                self.work.select(to, cond, a, b);
                true
            }
        };
        done.then_some(())
    }

    /// Whether a value is in memory, as one float.
    fn is_uniform(&self, value: Value) -> bool {
        matches!(self.nodes[value], Node::Constant(_) | Node::Uniform(_))
    }

    fn define(&mut self) -> Zmm {
        self.work.registers.define(self.work.asm, self.work.at)
    }

    /// A value as a last source.
    fn source(&mut self, value: Value) -> Src {
        match self.nodes[value] {
            Node::Constant(bits) => Src::Each(self.work.asm.constant(bits)),
            Node::Uniform(slot) => Src::Each(Mem::At(UNIFORMS, (self.uniform)(slot) as i32)),
            _ => Src::Reg(self.work.registers.read(self.work.asm, self.work.at, value)),
        }
    }

    /// A value in a register.
    fn register(&mut self, value: Value) -> Zmm {
        match self.source(value) {
            Src::Reg(reg) => reg,
            Src::Each(mem) | Src::Memory(mem) => {
                let reg = self.work.temporary();
                self.work.asm.single(Op::BROADCASTSS, reg, Src::Memory(mem));
                reg
            }
        }
    }

    /// Where the vector in work is in a row.
    fn address(&mut self, place: usize, form: Form) -> Src {
        self.work.asm.load(ADDRESS, PLACES, place as i32 * ENTRY);
        Src::Memory(match form.step_bytes() {
            0 => Mem::At(ADDRESS, 0),
            bytes => Mem::Indexed(ADDRESS, ELEMENT, bytes.trailing_zeros() as u8, 0),
        })
    }

    fn read(&mut self, place: usize, form: Form) {
        let from = self.address(place, form);
        let to = self.define();
        let (op, mask) = match form {
            Form::F32 => (Op::MOVUPS_LOAD, self.mask),
            Form::Bf16 => (Op::PMOVZXWD, self.mask),
            Form::F16 => (Op::CVTPH2PS, self.mask),
            Form::U32 => (Op::MOVUPS_LOAD, self.mask),
            Form::EachF32 => (Op::BROADCASTSS, NO_MASK),
            Form::EachBf16 | Form::EachF16 => (Op::PBROADCASTW, NO_MASK),
        };
        let asm = &mut self.work.asm;
        asm.masked(op, to, None, from, (mask, true));
        match form {
            Form::Bf16 | Form::EachBf16 => asm.shift(Shift::Left, to, to, 16),
            Form::U32 => asm.single(Op::CVTUDQ2PS, to, to),
            Form::EachF16 => asm.single(Op::CVTPH2PS, to, to),
            Form::F32 | Form::F16 | Form::EachF32 => {}
        }
    }

    fn write(&mut self, place: usize, form: Form, src: Value) -> Option<()> {
        let (mut src, mask) = (self.register(src), self.mask);
        let op = match form {
            Form::F32 => Op::MOVUPS_STORE,
            Form::Bf16 => {
                let narrow = self.work.temporary();
                self.work.narrow(narrow, src);
                src = narrow;
                Op::PMOVDW
            }
            Form::F16 => {
                let to = self.address(place, form);
                self.work.asm.narrow_f16(to, src, mask);
                return Some(());
            }
            Form::U32 | Form::EachF32 | Form::EachBf16 | Form::EachF16 => return None,
        };
        let to = self.address(place, form);
        self.work.asm.masked(op, src, None, to, (mask, false));
        Some(())
    }
}
