//! Machine code for tile programs, on processors with AVX-512.
//!
//! The interpreter passes over a piece once per step. Generated code passes over it once: sixteen
//! elements at a time are loaded, all arithmetic happens in vector registers, and the results are
//! stored. The parts, in the order of the work:
//!
//! - [`split`]: which steps become *nodes* of the code, and which the interpreter runs before it
//!   (coordinates, random draws, odd strides, sines) or after it (odd strides);
//! - [`registers`]: values to the 32 registers, and to the stack where these do not suffice;
//! - [`arithmetic`]: each operation as the instructions of the same roundings as in `math`;
//! - [`emit`]: the loops over rows and vectors, loads and stores;
//! - [`encode`]: the bytes of instructions;
//! - [`crate::executable`]: pages to run them from, shared by equal programs.
//!
//! The function is `f(places, uniforms, rows, blocks, vectors, tail)`, in the C convention of
//! System V:
//!
//! | register | what |
//! |---|---|
//! | rdi | table of [`Place`]: an address and a step in bytes for each operand; it is advanced |
//! | rsi | the worker's registers, where values that hold for a whole task are |
//! | rdx | rows that are left |
//! | rcx, r8, r11 | blocks of a row, vectors behind them, and those of them that are left |
//! | r9d, k1 | the lanes of the last, partial vector of a row, 0 if there is none |
//! | rax | the first element of the block in work |
//! | r10 | an address, for a moment |
//! | k2-k4 | lanes for which a condition holds, in each vector of a block |
//! | zmm0-30 | values, those of a block's vectors one after the other |
//! | zmm31 | a constant that the vectors of a block share, for a moment |
//!
//! A *block* is up to three vectors, with the same instruction for each of them side by side: the
//! chain of operations of one vector alone is too long for the processor to look far beyond it. The
//! loop body is there three times: for blocks, for single vectors, and with the mask for the end of
//! a row, so that nothing behind it is touched. All loads of a vector come before its stores, and
//! elements are independent: an output may lie where an input of the same layout does. Constants
//! and values that hold for a whole task are read where they are used; constants lie behind the
//! code. To look at a function: write the `code` of `Body::function`'s result to a file, then
//! `objdump -D -b binary -m i386:x86-64 FILE`.
//!
//! Code is made while loading ([`crate::kernel::Kernel::prepare`]), never while planning or in a
//! step, and the scratch that a kernel claims is the same with and without.

mod arithmetic;
mod emit;
mod encode;
mod registers;
mod split;

use self::emit::Body;
use self::encode::LANES as VECTOR;
use self::split::{Form, Layout, Node, Origin, split};
use super::compile::{Code, Step};
use super::interpret::{PITCH, Work};
use crate::executable::{Arguments, Executable, Library, Place, Recipe};
use aerogel_graph::DType;
use aerogel_lower::space::Space;
use std::hash::Hash;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Floats of a vector.
const LANES: usize = VECTOR as usize;
/// Most operands and slots that a function reads or writes.
const MOST_PLACES: usize = 48;

/// A program as machine code, with what the interpreter does around it.
#[derive(Clone, Debug)]
pub(super) struct Native {
    code: Arc<Executable>,
    setup: Vec<Step>,
    before: Vec<Step>,
    after: Vec<Step>,
    places: Vec<(Origin, Form)>,
    /// Slots that the code fills.
    filled: Vec<usize>,
}

impl Native {
    /// Code for a program whose operands lie in this space, if there can be any. `table_floats`
    /// is where the registers begin.
    pub fn new(
        program: &Code,
        with_result: bool,
        table_floats: usize,
        (space, dtypes): (&Space, &[DType]),
        library: &mut Library,
    ) -> Option<Native> {
        if !library.takes_avx512() {
            return None;
        }
        let inner = space.sizes.last().copied().unwrap_or(1);
        let layout = Layout { strides: &space.strides, dtypes, inner };
        let parts = split(program, with_result, layout)?;
        if parts.places.len() > MOST_PLACES {
            return None;
        }
        let uniform = |slot: usize| (table_floats + slot * PITCH) * size_of::<f32>();
        let (nodes, places) = (&parts.nodes[..], parts.places.len());
        let mut recipe = Recipe::default();
        (nodes, places, table_floats).hash(&mut recipe);
        let code =
            library.share(recipe, || Body { nodes, places, uniform: &uniform }.function())?;
        let filled = parts.nodes.iter().filter_map(|node| match *node {
            Node::Write(place, ..) => match parts.places[place].0 {
                Origin::Slot(slot) => Some(slot),
                _ => None,
            },
            _ => None,
        });
        let filled = filled.collect();
        Some(Native {
            code,
            setup: parts.setup,
            before: parts.before,
            after: parts.after,
            places: parts.places,
            filled,
        })
    }

    /// Steps for the interpreter, once per task.
    pub fn setup(&self) -> &Vec<Step> {
        &self.setup
    }

    /// Whether no value of a piece is kept in a register of the worker, so that pieces may be
    /// larger than these.
    pub fn is_free(&self) -> bool {
        let in_slots = |(origin, _): &(Origin, Form)| matches!(origin, Origin::Slot(_));
        self.before.is_empty() && self.after.is_empty() && !self.places.iter().any(in_slots)
    }

    /// Runs the program on a piece.
    ///
    /// # Safety
    /// As [`Work::step`] for all of its steps, of which those of the setup have run.
    pub unsafe fn run(&self, work: &Work<'_>) {
        let (rows, cols) = (work.piece.rows, work.piece.cols);
        let mut table = [const { MaybeUninit::<Place>::uninit() }; MOST_PLACES];
        // SAFETY: the steps are a part of the program, in its order.
        self.before.iter().for_each(|step| unsafe { work.step(step) });
        for &slot in &self.filled {
            work.register(slot);
        }
        let mut dense = true;
        for (entry, &(origin, form)) in table.iter_mut().zip(&self.places) {
            // SAFETY: slots are defined above.
            let place = unsafe { place(work, origin) };
            dense &= place.step_bytes == (cols * form.step_bytes()) as isize;
            entry.write(place);
        }
        let (rows, cols) = if dense || rows == 1 { (1, rows * cols) } else { (rows, cols) };
        let with = Arguments {
            places: table.as_mut_ptr().cast(),
            uniforms: work.frame.registers,
            rows,
            blocks: cols / self.code.block,
            vectors: cols % self.code.block / LANES,
            tail: (1 << (cols % LANES)) - 1,
        };
        // SAFETY: the code reads and writes the operands of the piece, for which the caller
        // vouches, and slots, which hold a piece.
        unsafe { self.code.call(with) }
        // SAFETY: as above; the code has filled their sources.
        self.after.iter().for_each(|step| unsafe { work.step(step) });
    }
}

/// Where the rows of a piece are.
unsafe fn place(work: &Work<'_>, origin: Origin) -> Place {
    match origin {
        Origin::Operand(operand) => {
            let bytes = work.dtypes[operand].bytes() as isize;
            let (offset, row, _) = work.place(operand);
            let address = work.frame.ptrs[operand].at::<u8>(offset * bytes);
            Place { address, step_bytes: row * bytes }
        }
        Origin::Product => {
            let bytes = size_of::<f32>() as isize;
            let step = work.product.step.unwrap_or(work.piece.cols as isize);
            Place { address: work.product.ptr.cast(), step_bytes: step * bytes }
        }
        Origin::Slot(slot) => {
            // SAFETY: forwarded.
            let rows = unsafe { work.get(slot) };
            let step_bytes = rows.step() * size_of::<f32>() as isize;
            Place { address: rows.ptr().cast(), step_bytes }
        }
    }
}
