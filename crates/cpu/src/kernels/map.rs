//! Element-wise maps: a tile program over its whole space.

use crate::executable::Library;
use crate::kernel::{Carve, Kernel, KernelError, Ptr, Scalars, per_worker_bytes, scratch_for};
use crate::kernels::tile::{Engine, Frame, Program};
use crate::pool::Pool;

/// Some microseconds of work.
const TASK_ELEMENTS: usize = 8192;

/// A prepared element-wise map. Addresses: the program's inputs, then its outputs; an output may
/// share the address of an input of the same type and strides.
#[derive(Clone, Debug)]
pub struct Map {
    engine: Engine,
    operands: usize,
}

impl Map {
    /// Compiles the program.
    ///
    /// # Errors
    /// If strides do not match the sizes, an output repeats, the program is malformed, or more than
    /// eight axes remain after merging.
    pub fn new(program: &Program) -> Result<Map, KernelError> {
        let mut engine = Engine::compile(program, &[], None, false)?;
        engine.reorder(program.inputs.len().min(program.inputs.len() + program.outputs.len() - 1));
        engine.space = engine.space.finish("map")?;
        Ok(Map { engine, operands: program.inputs.len() + program.outputs.len() })
    }
}

impl Kernel for Map {
    fn operands(&self) -> usize {
        self.operands
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        scratch_for(&[per_worker_bytes(threads, self.engine.register_bytes())])
    }

    fn prepare(&mut self, library: &mut Library) {
        self.engine.prepare(library);
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], scalars: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), self.operands, "map: one address per operand");
        let registers =
            Carve::new(scratch).per_worker(pool.threads(), self.engine.register_bytes());
        let elements = self.engine.space.elements();
        pool.run(elements.div_ceil(TASK_ELEMENTS), &|task, worker| {
            let registers = registers.of(worker).at(0);
            let frame = Frame { simd: pool.simd(), ptrs, scalars, registers };
            let (start, end) = (task * TASK_ELEMENTS, ((task + 1) * TASK_ELEMENTS).min(elements));
            // SAFETY: the caller vouches for the addresses; tasks write disjoint positions.
            unsafe {
                self.engine.begin(frame);
                self.engine.tile(frame, start, end - start, std::ptr::null());
            }
        });
    }
}
