//! Values to vector registers, while code is emitted from its beginning to its end.
//!
//! Values never change, so one that has to leave its register is written to the stack once and
//! read back wherever it is used; the one whose next use is farthest leaves first (Belady 1966).

use super::encode::{Assembler, Gpr, Mem, Op, Src, Zmm};
use super::split::{Node, Value};

/// Registers of the processor.
const COUNT: usize = 32;
/// Bytes of one.
const BYTES: i32 = 64;

/// Who is where.
pub(super) struct Registers<'a> {
    nodes: &'a [Node],
    /// By value: the last node that takes it.
    last_use: Vec<usize>,
    /// How many there are.
    count: usize,
    /// By register: the value in it.
    held: [Option<Value>; COUNT],
    /// By register: whether the node in work uses it.
    busy: [bool; COUNT],
    /// By value: its register.
    home: Vec<Option<Zmm>>,
    /// By value: its place on the stack.
    spill: Vec<Option<usize>>,
    spilled: usize,
}

impl<'a> Registers<'a> {
    /// The first `count` registers.
    pub fn new(nodes: &'a [Node], count: usize) -> Registers<'a> {
        let mut last_use = vec![0; nodes.len()];
        for (at, node) in nodes.iter().enumerate() {
            node.sources().for_each(|source| last_use[source] = at);
        }
        Registers {
            nodes,
            last_use,
            count: count.min(COUNT),
            held: [None; COUNT],
            busy: [false; COUNT],
            home: vec![None; nodes.len()],
            spill: vec![None; nodes.len()],
            spilled: 0,
        }
    }

    /// Bytes of the stack that were used.
    pub fn stack_bytes(&self) -> i32 {
        self.spilled as i32 * BYTES
    }

    /// The next node after `at` that takes a value.
    fn next_use(&self, value: Value, at: usize) -> Option<usize> {
        (at + 1..self.nodes.len()).find(|&node| self.nodes[node].sources().any(|s| s == value))
    }

    fn slot(number: usize) -> Mem {
        Mem::At(Gpr::Rsp, number as i32 * BYTES)
    }

    /// A register for use within node `at`.
    pub fn temporary(&mut self, asm: &mut Assembler, at: usize) -> Zmm {
        let idle = |reg: &usize| !self.busy[*reg];
        let empty = (0..self.count).find(|reg| idle(reg) && self.held[*reg].is_none());
        let reg = empty.unwrap_or_else(|| {
            let distance = |reg: &usize| {
                self.held[*reg].and_then(|value| self.next_use(value, at)).unwrap_or(usize::MAX)
            };
            (0..self.count).filter(idle).max_by_key(distance).expect("no node takes all registers")
        });
        if let Some(value) = self.held[reg].take() {
            self.home[value] = None;
            if self.spill[value].is_none() {
                self.spill[value] = Some(self.spilled);
                let to = Src::Memory(Registers::slot(self.spilled));
                asm.single(Op::MOVUPS_STORE, Zmm(reg as u8), to);
                self.spilled += 1;
            }
        }
        self.busy[reg] = true;
        Zmm(reg as u8)
    }

    /// A register for the value that node `at` defines.
    pub fn define(&mut self, asm: &mut Assembler, at: usize) -> Zmm {
        let reg = self.temporary(asm, at);
        self.hold(reg, at);
        reg
    }

    fn hold(&mut self, reg: Zmm, value: Value) {
        self.held[usize::from(reg.0)] = Some(value);
        self.home[value] = Some(reg);
    }

    /// The register of a value that node `at` takes.
    pub fn read(&mut self, asm: &mut Assembler, at: usize, value: Value) -> Zmm {
        if let Some(reg) = self.home[value] {
            self.busy[usize::from(reg.0)] = true;
            return reg;
        }
        let reg = self.temporary(asm, at);
        let slot = self.spill[value].expect("a value is in a register or on the stack");
        asm.single(Op::MOVUPS_LOAD, reg, Src::Memory(Registers::slot(slot)));
        self.hold(reg, value);
        reg
    }

    /// Node `at` is done: temporaries and values that nothing takes any more are given up.
    pub fn end(&mut self, at: usize) {
        self.busy = [false; COUNT];
        for reg in 0..COUNT {
            let dead = self.held[reg].filter(|&value| self.last_use[value] <= at);
            if let Some(value) = dead {
                self.held[reg] = None;
                self.home[value] = None;
            }
        }
    }
}
