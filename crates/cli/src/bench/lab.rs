//! Single kernels on their way through graph, plan and device, as training runs them.

use aerogel_graph::{
    AxisId, Build, Clock, DType, Graph, Init, OpError, ParamClass, Phase, Role, Type, ValueId,
    gradients,
};
use aerogel_machine::{Account, Alone, Kind};
use aerogel_models::Part;
use aerogel_models::attention::{Form, Heads, attend};
use aerogel_plan::{Ask, plan};
use aerogel_train::{Backend, TrainError};
use std::sync::Arc;

/// A kernel's work, and the median time of a run.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub seconds: f64,
    pub flops: u64,
}

impl Measured {
    pub fn flops_per_second(self) -> f64 {
        self.flops as f64 / self.seconds
    }
}

/// Attention whose speed is asked for: [batch, seq, head, 64] operands.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub part: Part,
    pub seq: usize,
    pub heads: usize,
}

/// What kernels are measured on, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Lab {
    pub backend: Backend,
    pub threads: usize,
    pub repeats: usize,
}

/// Width of a head.
pub const HEAD_WIDTH: usize = 64;

/// C = A · B of n × n matrices, row by row as they lie, all of one dtype.
pub fn product(lab: Lab, n: usize, dtype: DType) -> anyhow::Result<Measured> {
    let mut g = Graph::new();
    let axes = [g.axis("m", n)?, g.axis("k", n)?, g.axis("n", n)?];
    let a = state(&mut g, "a", dtype, &axes[..2])?;
    let b = state(&mut g, "b", dtype, &axes[1..])?;
    let c = g.einsum_to(&[a, b], &[axes[0], axes[2]], dtype)?;
    g.output("c", c);
    let all = measure(lab, g)?;
    let found = total(&all, |a| a.kind == Kind::Product);
    Ok(Measured { flops: 2 * (n as u64).pow(3), ..found })
}

/// The rate at which f32 are read and written by a map, of bytes read and written.
pub fn copy_bytes_per_second(lab: Lab, count: usize) -> anyhow::Result<f64> {
    let mut g = Graph::new();
    let a = g.axis("a", count)?;
    let x = state(&mut g, "x", DType::F32, &[a])?;
    let y = g.map(&[x], &|v| 2.0 * &v[0])?;
    g.output("y", y);
    let all = measure(lab, g)?;
    Ok(8.0 * count as f64 / total(&all, |a| a.kind == Kind::Map).seconds)
}

/// Attention, forward and backward. FLOPs are those of the pairs that the pattern keeps.
pub fn attention(lab: Lab, ask: Attention, dtype: DType) -> anyhow::Result<[Measured; 2]> {
    let mut g = Graph::new();
    let batch = g.axis("batch", 1)?;
    let (seq, kv, group) = (g.axis("seq", ask.seq)?, g.axis("kv", ask.heads)?, g.axis("group", 1)?);
    let (dim, width) = (g.axis("dim", HEAD_WIDTH)?, g.axis("width", HEAD_WIDTH)?);
    let q = state(&mut g, "q", dtype, &[batch, seq, kv, group, dim])?;
    let k = state(&mut g, "k", dtype, &[batch, seq, kv, dim])?;
    let v = state(&mut g, "v", dtype, &[batch, seq, kv, width])?;
    let o = attend(&mut g, &Form::One(ask.part), Heads { q, k, v, seq, dim, kv, group })?;
    // Any scalar that depends on all of o: its gradient is the cotangent w.
    let axes: Vec<AxisId> = g.ty(o).axes.to_vec();
    let w = state(&mut g, "w", dtype, &axes)?;
    let weighted =
        g.map_to(&[o, w], Type::new(DType::F32, axes.iter().copied()), &|x| &x[0] * &x[1])?;
    let loss = g.sum(weighted, &axes)?;
    let found = gradients(&mut g, loss, &[q, k, v])?;
    for (name, gradient) in ["dq", "dk", "dv"].into_iter().zip(found) {
        let missing = || OpError::new("attend", "a gradient is missing");
        g.output(name, gradient.ok_or_else(missing)?);
    }
    g.output("loss", loss);
    let all = measure(lab, g)?;
    let of = |phase| total(&all, |a| a.kind == Kind::Attention && a.phase == phase);
    Ok([of(Phase::Forward), of(Phase::Backward)])
}

fn state(g: &mut Graph, name: &str, dtype: DType, axes: &[AxisId]) -> Result<ValueId, OpError> {
    let (ty, init) = (Type::new(dtype, axes.iter().copied()), Init::Constant(0.0));
    g.state(name, ty, Role::Parameter, Some(ParamClass::Weight), init)
}

fn total(all: &[(Account, f64)], is_meant: impl Fn(&Account) -> bool) -> Measured {
    let meant = all.iter().filter(|(a, _)| is_meant(a));
    meant.fold(Measured { seconds: 0.0, flops: 0 }, |sum, (account, seconds)| Measured {
        seconds: sum.seconds + seconds,
        flops: sum.flops + account.cost.flops,
    })
}

/// The kernels of a graph, each with the median time of its runs.
fn measure(lab: Lab, graph: Graph) -> Result<Vec<(Account, f64)>, TrainError> {
    let states: Vec<(String, Type)> =
        graph.states().iter().map(|s| (s.name.clone(), graph.ty(s.value).clone())).collect();
    let counts: Vec<usize> = states.iter().map(|(_, ty)| graph.axes().count(&ty.axes)).collect();
    let machine = lab.backend.machine(lab.threads);
    let target = lab.backend.target(&machine);
    let ask = Ask { name: "bench".to_owned(), graph, calls: 1 };
    let program = plan(vec![ask], target.as_ref(), &machine)?.program;
    let accounts = program.sections[0].accounts();
    let loader = lab.backend.loader(lab.threads, 1)?;
    let mut device = loader.load(Arc::new(program), Arc::new(Alone::new()))?;
    for ((name, ty), count) in states.iter().zip(counts) {
        device.write_state(name, 0, &numbers(count, ty.dtype))?;
    }
    let clock = Clock::default();
    device.run(0, clock, 0)?;
    let mut seconds: Vec<Vec<f64>> = vec![vec![]; accounts.len()];
    for _ in 0..lab.repeats {
        device.profile(true);
        device.run(0, clock, 0)?;
        for t in device.spans() {
            seconds[t.step].push(1e-9 * t.nanoseconds as f64);
        }
    }
    let measured = accounts.into_iter().zip(seconds).filter(|(_, times)| !times.is_empty());
    Ok(measured.map(|(account, mut times)| (account, median(&mut times))).collect())
}

/// Numbers between -1/2 and 1/2, as bytes: neither all alike nor too small for the hardware.
fn numbers(count: usize, dtype: DType) -> Vec<u8> {
    let number = |i: usize| (i * 7919 % 1009) as f32 / 1009.0 - 0.5;
    let mut bytes = vec![];
    for i in 0..count {
        let all = number(i).to_le_bytes();
        // The upper half of an f32 is a bf16.
        bytes.extend_from_slice(if dtype == DType::Bf16 { &all[2..] } else { &all });
    }
    bytes
}

/// The middle of some times; sorts them.
pub fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    match times.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => times[middle],
        _ => 0.5 * (times[middle - 1] + times[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn copies_take_time() {
        let lab = Lab { backend: Backend::Cpu, threads: 1, repeats: 3 };
        let rate = copy_bytes_per_second(lab, 1 << 16).unwrap();
        assert!(rate.is_finite() && rate > 1e6, "{rate}");
    }

    #[test]
    fn the_work_of_attention_is_that_of_its_pairs() {
        let ask = Attention { part: Part::Strided { stride: 4 }, seq: 16, heads: 2 };
        let lab = Lab { backend: Backend::Cpu, threads: 1, repeats: 1 };
        let [forward, backward] = attention(lab, ask, DType::F32).unwrap();
        // 4 columns, each causal over 4 rows, for 2 heads: 80 pairs.
        let pairs = 4 * 10 * 2;
        assert_eq!(forward.flops, pairs * (4 * HEAD_WIDTH as u64 + 4));
        assert_eq!(backward.flops, pairs * (10 * HEAD_WIDTH as u64 + 6));
        assert!(forward.seconds > 0.0 && backward.seconds > 0.0);
    }
}
