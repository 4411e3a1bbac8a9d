//! Prints what the main kernels reach on this machine, on one and on two threads.
//!
//! `cargo run --release -p aerogel-cpu --example kernels`

use std::sync::Arc;
use std::time::Instant;

use aerogel_cpu::kernel::{Dtype, Kernel, KernelError, Operand, Ptr, Scalars};
use aerogel_cpu::kernels::attend::{Attend, Attention};
use aerogel_cpu::kernels::attend_grad::{AttendGrad, GradOperands};
use aerogel_cpu::kernels::gemm::{Axis, Contraction, Gemm, Role};
use aerogel_cpu::kernels::linear_ce::{LinearCe, LinearCeSpec};
use aerogel_cpu::kernels::map::Map;
use aerogel_cpu::kernels::ops::{Binary, Unary};
use aerogel_cpu::kernels::pattern::BlockList;
use aerogel_cpu::kernels::tile::{Instr, Program};
use aerogel_cpu::pool::Pool;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Median seconds of a run; `floats` gives the length of each f32 operand.
fn seconds(pool: &Pool, kernel: &dyn Kernel, floats: &[usize]) -> f64 {
    let tensors: Vec<Vec<f32>> = floats
        .iter()
        .map(|&len| (0..len).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect())
        .collect();
    let ptrs: Vec<_> = tensors.iter().map(|tensor| Ptr::new(tensor.as_ptr())).collect();
    let mut scratch = vec![0u8; kernel.scratch_bytes(pool.threads())];
    let mut run = || {
        let start = Instant::now();
        // SAFETY: the operands have the lengths that the kernels were prepared for.
        unsafe { kernel.run(pool, &ptrs, &Scalars::default(), &mut scratch) };
        start.elapsed().as_secs_f64()
    };
    run();
    let mut times: Vec<f64> = (0..9).map(|_| run()).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn gemm(n: usize) -> Result<Gemm, KernelError> {
    let row = n as isize;
    let axes = vec![
        Axis { role: Role::M, size: n, a: row, b: 0, c: row },
        Axis { role: Role::N, size: n, a: 0, b: 1, c: 1 },
        Axis { role: Role::K, size: n, a: 1, b: row, c: 0 },
    ];
    let f32 = Dtype::F32;
    let spec =
        Contraction { axes, a: f32, b: f32, c: f32, accumulate: false, alpha: 1.0, epilogue: None };
    Gemm::new(&spec)
}

/// Causal attention of `heads` heads, [head, position, 64].
fn attention(heads: usize, length: usize) -> Result<(Attend, AttendGrad), KernelError> {
    let pattern = Arc::new(BlockList::new(1, length, length, &|_, i, j| j <= i)?);
    let spec = Attention {
        batch: vec![],
        kv: heads,
        group: 1,
        queries: length,
        key_width: 64,
        value_width: 64,
        scale: 0.125,
        pattern,
    };
    let x = Operand::f32([length as isize * 64, 0, 64, 1]);
    let query = Operand::f32([length as isize * 64, length as isize * 64, 64, 1]);
    let lse = Operand::f32([length as isize, length as isize, 1, 0]);
    let forward = Attend::new(&spec, [&query, &x, &x, &query, &lse])?;
    let operands = GradOperands {
        inputs: [&query, &x, &x, &query, &lse, &query],
        dlse: None,
        outputs: [&query, &x, &x],
    };
    Ok((forward, AttendGrad::new(&spec, operands)?))
}

/// x/2 (1 + tanh(0.79788456 (x + 0.044715 x^3))).
fn gelu(len: usize) -> Result<Map, KernelError> {
    let constant = |dst, value| Instr::Const { dst, value };
    let times = |dst, a, b| Instr::Binary { op: Binary::Mul, dst, a, b };
    let instrs = vec![
        Instr::Load { dst: 0, input: 0 },
        constant(1, 0.035_677_41),
        constant(2, 0.797_884_6),
        constant(3, 0.5),
        times(4, 0, 0),
        Instr::Fma { dst: 5, a: 4, b: 1, c: 2 },
        times(6, 5, 0),
        Instr::Unary { op: Unary::Tanh, dst: 7, a: 6 },
        times(8, 0, 3),
        Instr::Fma { dst: 9, a: 8, b: 7, c: 8 },
        Instr::Store { output: 0, src: 9 },
    ];
    let row = Operand::f32([1]);
    Map::new(&Program { sizes: vec![len], inputs: vec![row.clone()], outputs: vec![row], instrs })
}

fn linear_ce(rows: usize, width: usize, vocab: usize) -> Result<LinearCe, KernelError> {
    let row = width as isize;
    LinearCe::new(&LinearCeSpec {
        rows: vec![rows],
        vocab,
        first_row: 0,
        all_rows: vocab,
        width,
        x: Operand::f32([row, 0, 1]),
        w: Operand::f32([0, row, 1]),
        targets: Operand::u32([0, 0, 0]),
        weights: None,
        given: None,
        ce: Some(Operand::f32([1, 0, 0])),
        lse: None,
        hit: None,
        dx: Some(Operand::f32([row, 0, 1])),
        dw: Some(Operand::f32([0, row, 1])),
    })
}

fn main() -> Outcome {
    for threads in [1, 2] {
        let pool = Pool::new(threads)?;
        println!("threads {threads}, {:?}", pool.simd().level());
        for n in [256, 1024] {
            let time = seconds(&pool, &gemm(n)?, &[n * n; 3]);
            println!("  gemm {n}^3: {:.0} GFLOP/s", 2e-9 * (n as f64).powi(3) / time);
        }
        for (heads, length) in [(512, 32), (64, 256), (16, 1024)] {
            let (forward, backward) = attention(heads, length)?;
            let (x, rows) = (heads * length * 64, heads * length);
            let pairs = (heads * length * (length + 1) / 2) as f64;
            let time = seconds(&pool, &forward, &[x, x, x, x, rows]);
            println!("  attend {heads}x{length}x64: {:.0} GFLOP/s", 4.0 * 64e-9 * pairs / time);
            let time = seconds(&pool, &backward, &[x, x, x, x, rows, x, x, x, x]);
            println!("  its backward: {:.0} GFLOP/s", 10.0 * 64e-9 * pairs / time);
        }
        let (rows, width, vocab) = (1024, 256, 4096);
        let floats = [rows * width, vocab * width, 1, rows, rows * width, vocab * width];
        let time = seconds(&pool, &linear_ce(rows, width, vocab)?, &floats);
        let flops = 6e-9 * (rows * width * vocab) as f64;
        println!("  linear_ce {rows}x{width}x{vocab}: {:.0} GFLOP/s", flops / time);
        let len = 1 << 22;
        let time = seconds(&pool, &gelu(len)?, &[len, len]);
        println!("  gelu map: {:.1} GB/s", 8e-9 * len as f64 / time);
    }
    Ok(())
}
