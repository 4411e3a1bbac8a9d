use aerogel_cpu::kernel::*;
use aerogel_cpu::kernels::gemm::*;
use aerogel_cpu::pool::Pool;
use std::time::Instant;
fn main() {
    let shapes: [(&str, usize, usize, usize, u8); 12] = [
        ("1024^3", 1024, 1024, 1024, 0),
        ("1024x1056", 1024, 1056, 1024, 0),
        ("1024x512", 1024, 512, 1024, 0),
        ("qkv fwd", 1024, 768, 256, 0),
        ("qkv dx", 1024, 256, 768, 1),
        ("qkv dw", 256, 768, 1024, 2),
        ("up fwd", 1024, 1024, 256, 0),
        ("up dx", 1024, 256, 1024, 1),
        ("up dw", 256, 1024, 1024, 2),
        ("down fwd", 1024, 256, 1024, 0),
        ("down dw", 1024, 256, 1024, 2),
        ("proj fwd", 1024, 256, 256, 0),
    ];
    for threads in [1, 2] {
        let pool = Pool::new(threads).unwrap();
        for (name, m, n, k, form) in shapes {
            let mut line = format!("{threads}t {name:10}");
            for dt in [Dtype::F32, Dtype::Bf16] {
                let (a, b) = match form {
                    0 => ((k, 1), (n, 1)), // a [m,k], b [k,n]
                    1 => ((k, 1), (1, k)), // b stored [n,k]
                    _ => ((1, m), (n, 1)), // a stored [k,m]
                };
                let axes = vec![
                    Axis { role: Role::M, size: m, a: a.0 as isize, b: 0, c: n as isize },
                    Axis { role: Role::N, size: n, a: 0, b: b.1 as isize, c: 1 },
                    Axis { role: Role::K, size: k, a: a.1 as isize, b: b.0 as isize, c: 0 },
                ];
                let spec = Contraction {
                    axes,
                    a: dt,
                    b: dt,
                    c: Dtype::F32,
                    accumulate: false,
                    alpha: 1.0,
                    epilogue: None,
                };
                let g = Gemm::new(&spec).unwrap();
                let x = vec![0u32; m * k];
                let y = vec![0u32; n * k];
                let mut z = vec![0f32; m * n];
                let ptrs = [Ptr::new(x.as_ptr()), Ptr::new(y.as_ptr()), Ptr::new(z.as_mut_ptr())];
                let mut scratch = vec![0u8; g.scratch_bytes(threads)];
                let mut times = vec![];
                for _ in 0..15 {
                    let t = Instant::now();
                    unsafe { g.run(&pool, &ptrs, &Scalars::default(), &mut scratch) };
                    times.push(t.elapsed().as_secs_f64());
                }
                times.sort_by(f64::total_cmp);
                line += &format!(
                    "  {dt:?} {:6.0} best {:6.0}",
                    2e-9 * (m * n * k) as f64 / times[7],
                    2e-9 * (m * n * k) as f64 / times[0]
                );
            }
            println!("{line}");
        }
    }
}
