//! Single kernels on their way through graph, plan and device, as training runs them.

use aerogel_graph::{
    AxisId, Build, Clock, DType, Graph, Init, OpError, ParamClass, Phase, Role, Type, ValueId,
    gradients,
};
use aerogel_machine::{Account, Alone, Device, Kind, Program};
use aerogel_models::attention::{Form, Heads, attend};
use aerogel_plan::{Ask, plan};
use aerogel_train::{Backend, TrainError};
use std::sync::Arc;
use std::time::Instant;

/// A kernel's work, and the median time of a run.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub seconds: f64,
    pub flops: u64,
    /// Read and written, each value once.
    pub bytes: u64,
}

impl Measured {
    pub fn flops_per_second(self) -> f64 {
        self.flops as f64 / self.seconds
    }

    pub fn bytes_per_second(self) -> f64 {
        self.bytes as f64 / self.seconds
    }
}

/// Attention whose speed is asked for: queries and keys [batch, seq, head, key_width], values
/// [batch, seq, head, value_width].
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub form: Form,
    pub batch: usize,
    pub seq: usize,
    pub heads: usize,
    pub key_width: usize,
    pub value_width: usize,
}

/// A linear layer: [tokens, from] to [tokens, to] by weights [to, from].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    pub tokens: usize,
    pub from: usize,
    pub to: usize,
}

/// One of the three products of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Forward,
    InputGradient,
    /// Of f32, as the optimizer reads it.
    WeightGradient,
}

impl Way {
    pub const ALL: [Way; 3] = [Way::Forward, Way::InputGradient, Way::WeightGradient];

    pub fn name(self) -> &'static str {
        match self {
            Way::Forward => "forward",
            Way::InputGradient => "input gradient",
            Way::WeightGradient => "weight gradient",
        }
    }
}

impl Linear {
    /// Adds a product with operands of its own to a graph.
    pub fn product(
        self,
        g: &mut Graph,
        way: Way,
        dtype: DType,
        number: usize,
    ) -> Result<(), OpError> {
        let tokens = g.axis("tokens", self.tokens)?;
        let (from, to) = (g.axis("from", self.from)?, g.axis("to", self.to)?);
        let (a, b, c, sums) = match way {
            Way::Forward => ([tokens, from], [to, from], [tokens, to], dtype),
            Way::InputGradient => ([tokens, to], [to, from], [tokens, from], dtype),
            Way::WeightGradient => ([tokens, to], [tokens, from], [to, from], DType::F32),
        };
        let a = state(g, &format!("a.{number}"), dtype, &a)?;
        let b = state(g, &format!("b.{number}"), dtype, &b)?;
        let c = g.einsum_to(&[a, b], &c, sums)?;
        g.output(&format!("c.{number}"), c);
        Ok(())
    }
}

/// What kernels are measured on, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Lab {
    pub backend: Backend,
    pub threads: usize,
    pub repeats: usize,
    /// How long each repeat of [`sustained`] runs, so that clocks are those of steady work.
    pub batch_seconds: f64,
    /// What a section of [`sustained`] moves, so that no cache holds it and its start is short
    /// beside it.
    pub section_bytes: u64,
}

impl Lab {
    pub fn new(backend: Backend, threads: usize, repeats: usize) -> Lab {
        let (batch_seconds, section_bytes) = match backend {
            Backend::Cpu => (0.0, 0),
            Backend::Cuda => (0.04, 1 << 30),
        };
        Lab { backend, threads, repeats, batch_seconds, section_bytes }
    }
}

/// Kernels of one section at most, where they are so small that a section of them moves little.
const MOST_COPIES: u64 = 200;

/// C = A · B of n × n matrices, row by row as they lie, all of one dtype.
pub fn product(lab: Lab, n: usize, dtype: DType) -> anyhow::Result<Measured> {
    let mut g = Graph::new();
    let axes = [g.axis("m", n)?, g.axis("k", n)?, g.axis("n", n)?];
    let a = state(&mut g, "a", dtype, &axes[..2])?;
    let b = state(&mut g, "b", dtype, &axes[1..])?;
    let c = g.einsum_to(&[a, b], &[axes[0], axes[2]], dtype)?;
    g.output("c", c);
    Ok(total(&spans(lab, g)?, |a| a.kind == Kind::Product))
}

/// A product of a linear layer, in steady work.
pub fn linear(lab: Lab, layer: Linear, way: Way, dtype: DType) -> anyhow::Result<Measured> {
    sustained(lab, |g, number| layer.product(g, way, dtype, number))
}

/// A map over so many f32, in steady work: a copy, or, of few numbers, the cost of a start.
pub fn map(lab: Lab, count: usize) -> anyhow::Result<Measured> {
    sustained(lab, |g, number| {
        let a = g.axis("a", count)?;
        let x = state(g, &format!("x.{number}"), DType::F32, &[a])?;
        let y = g.map(&[x], &|v| 2.0 * &v[0])?;
        g.output(&format!("y.{number}"), y);
        Ok(())
    })
}

/// Attention, forward and backward, by marks between kernels. FLOPs are those of the pairs that
/// the pattern keeps. A merged form counts whatever runs in the backward, for its parts are brought
/// together by maps; of other forms the attention itself counts.
pub fn attention(lab: Lab, ask: Attention, dtype: DType) -> anyhow::Result<[Measured; 2]> {
    let all = spans(lab, attention_graph(ask, dtype)?)?;
    let merged = matches!(ask.form, Form::Merged(_));
    let of = |phase, all_kinds| {
        total(&all, |a| a.phase == phase && (all_kinds || a.kind == Kind::Attention))
    };
    Ok([of(Phase::Forward, false), of(Phase::Backward, merged)])
}

/// Attention, forward and backward, with a loss between.
pub fn attention_graph(ask: Attention, dtype: DType) -> Result<Graph, OpError> {
    let mut g = Graph::new();
    let ([q, k, v], o) = attended(&mut g, ask, dtype, 0)?;
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
    Ok(g)
}

/// Attention forward alone, in steady work.
pub fn attention_forward(lab: Lab, ask: Attention, dtype: DType) -> anyhow::Result<Measured> {
    sustained(lab, |g, number| {
        let (_, o) = attended(g, ask, dtype, number)?;
        g.output(&format!("o.{number}"), o);
        Ok(())
    })
}

/// Queries, keys and values of their own, and the attention's output.
fn attended(
    g: &mut Graph,
    ask: Attention,
    dtype: DType,
    number: usize,
) -> Result<([ValueId; 3], ValueId), OpError> {
    let batch = g.axis("batch", ask.batch)?;
    let (seq, kv, group) = (g.axis("seq", ask.seq)?, g.axis("kv", ask.heads)?, g.axis("group", 1)?);
    let (dim, width) = (g.axis("dim", ask.key_width)?, g.axis("width", ask.value_width)?);
    let q = state(g, &format!("q.{number}"), dtype, &[batch, seq, kv, group, dim])?;
    let k = state(g, &format!("k.{number}"), dtype, &[batch, seq, kv, dim])?;
    let v = state(g, &format!("v.{number}"), dtype, &[batch, seq, kv, width])?;
    let o = attend(g, &ask.form, Heads { q, k, v, seq, dim, kv, group })?;
    Ok(([q, k, v], o))
}

fn state(g: &mut Graph, name: &str, dtype: DType, axes: &[AxisId]) -> Result<ValueId, OpError> {
    let (ty, init) = (Type::new(dtype, axes.iter().copied()), Init::Constant(0.0));
    g.state(name, ty, Role::Parameter, Some(ParamClass::Weight), init)
}

fn total(all: &[(Account, f64)], is_meant: impl Fn(&Account) -> bool) -> Measured {
    let meant = all.iter().filter(|(a, _)| is_meant(a));
    let none = Measured { seconds: 0.0, flops: 0, bytes: 0 };
    meant.fold(none, |sum, (account, seconds)| Measured {
        seconds: sum.seconds + seconds,
        flops: sum.flops + account.cost.flops,
        bytes: sum.bytes + account.cost.bytes,
    })
}

/// A program of one section.
pub fn planned(lab: Lab, graph: Graph) -> Result<Program, TrainError> {
    let machine = lab.backend.machine(lab.threads);
    let target = lab.backend.target(&machine);
    let ask = Ask { name: "bench".to_owned(), graph, calls: 1 };
    Ok(plan(vec![ask], target.as_ref(), &machine)?.program)
}

/// A graph on a device, with numbers in its states.
struct Loaded {
    device: Box<dyn Device>,
    accounts: Vec<Account>,
    /// A state to read from, and the bytes of its first element.
    first: (String, usize),
}

impl Loaded {
    fn new(lab: Lab, graph: Graph) -> Result<Loaded, TrainError> {
        let states: Vec<(String, Type)> =
            graph.states().iter().map(|s| (s.name.clone(), graph.ty(s.value).clone())).collect();
        let counts: Vec<usize> =
            states.iter().map(|(_, ty)| graph.axes().count(&ty.axes)).collect();
        let program = planned(lab, graph)?;
        let accounts = program.sections[0].accounts();
        let loader = lab.backend.loader(lab.threads, 1)?;
        let mut device = loader.load(Arc::new(program), Arc::new(Alone::new()))?;
        let (wide, narrow) = (numbers(DType::F32), numbers(DType::Bf16));
        for ((name, ty), count) in states.iter().zip(counts) {
            let chunk = if ty.dtype == DType::Bf16 { &narrow } else { &wide };
            let bytes = count * ty.dtype.bytes();
            for start in (0..bytes).step_by(chunk.len()) {
                let part = &chunk[..chunk.len().min(bytes - start)];
                device.write_state(name, start as u64, part)?;
            }
        }
        let first = states.first().map(|(name, ty)| (name.clone(), ty.dtype.bytes()));
        let mut loaded = Loaded { device, accounts, first: first.unwrap_or_default() };
        loaded.run()?;
        Ok(loaded)
    }

    fn run(&mut self) -> Result<(), TrainError> {
        Ok(self.device.run(0, Clock::default(), 0)?)
    }

    /// Until the device has nothing to do: reading waits for it.
    fn wait(&self) -> Result<(), TrainError> {
        let (name, bytes) = &self.first;
        Ok(self.device.read_state(name, 0, &mut vec![0; *bytes])?)
    }

    /// The time of a run among others before and after it.
    fn back_to_back(&mut self, lab: Lab) -> Result<f64, TrainError> {
        let mut batch = |runs: usize| -> Result<f64, TrainError> {
            self.wait()?;
            let started = Instant::now();
            (0..runs).try_for_each(|_| self.run())?;
            self.wait()?;
            Ok(started.elapsed().as_secs_f64() / runs as f64)
        };
        let runs = (lab.batch_seconds / batch(1)?).clamp(1.0, 1e4) as usize;
        let mut times = (0..lab.repeats).map(|_| batch(runs)).collect::<Result<Vec<_>, _>>()?;
        Ok(median(&mut times))
    }
}

/// One of several pieces of work that are alike, each on operands of its own, which run one after
/// another without a mark between them. `one` adds the piece of that number to a graph.
fn sustained(
    lab: Lab,
    one: impl Fn(&mut Graph, usize) -> Result<(), OpError>,
) -> anyhow::Result<Measured> {
    let mut g = Graph::new();
    one(&mut g, 0)?;
    let bytes = |v: ValueId| g.ty(v).bytes(g.axes());
    let moved = g.states().iter().map(|s| bytes(s.value)).sum::<u64>()
        + g.outputs.iter().map(|(_, v)| bytes(*v)).sum::<u64>();
    let copies = (lab.section_bytes / moved).clamp(1, MOST_COPIES);
    for number in 1..copies as usize {
        one(&mut g, number)?;
    }
    let mut loaded = Loaded::new(lab, g)?;
    let seconds = loaded.back_to_back(lab)? / copies as f64;
    let work: Vec<_> = loaded.accounts.iter().map(|a| (a.clone(), 0.0)).collect();
    let work = total(&work, |_| true);
    Ok(Measured { seconds, flops: work.flops / copies, bytes: work.bytes / copies })
}

/// The kernels of a graph, each with the median time of its runs, by marks between them.
fn spans(lab: Lab, graph: Graph) -> Result<Vec<(Account, f64)>, TrainError> {
    let mut loaded = Loaded::new(lab, graph)?;
    let mut seconds: Vec<Vec<f64>> = vec![vec![]; loaded.accounts.len()];
    for _ in 0..lab.repeats {
        loaded.device.profile(true);
        loaded.run()?;
        for t in loaded.device.spans() {
            seconds[t.step].push(1e-9 * t.nanoseconds as f64);
        }
    }
    let measured = loaded.accounts.into_iter().zip(seconds).filter(|(_, times)| !times.is_empty());
    Ok(measured.map(|(account, mut times)| (account, median(&mut times))).collect())
}

/// Numbers between -1/2 and 1/2, as bytes: neither all alike nor too small for the hardware. They
/// repeat after a prime, so that such pieces one after another are the same as one of any length.
fn numbers(dtype: DType) -> Vec<u8> {
    const PERIOD: usize = 1009;
    let number = |i: usize| (i * 7919 % PERIOD) as f32 / PERIOD as f32 - 0.5;
    let mut bytes = vec![];
    for i in 0..1024 * PERIOD {
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
        let lab = Lab { section_bytes: 5 << 19, ..Lab::new(Backend::Cpu, 1, 3) };
        let found = map(lab, 1 << 16).unwrap();
        assert_eq!(found.bytes, 8 << 16);
        let rate = found.bytes_per_second();
        assert!(rate.is_finite() && rate > 1e6, "{rate}");
    }

    #[test]
    fn the_work_of_attention_is_that_of_its_pairs() {
        use aerogel_models::Part;
        let part = Part::Strided { stride: 4 };
        let (key_width, value_width) = (8, 16);
        let form = Form::One(part);
        let ask = Attention { form, batch: 3, seq: 16, heads: 2, key_width, value_width };
        let lab = Lab::new(Backend::Cpu, 1, 1);
        let [forward, backward] = attention(lab, ask, DType::F32).unwrap();
        // 4 columns, each causal over 4 rows, for 2 heads of 3 sequences: 240 pairs.
        let pairs = 4 * 10 * 2 * 3;
        assert_eq!(forward.flops, pairs * (2 * (8 + 16) + 4));
        assert_eq!(backward.flops, pairs * (6 * 8 + 4 * 16 + 6));
        assert!(forward.seconds > 0.0 && backward.seconds > 0.0);
        let several = Lab { section_bytes: 1 << 17, batch_seconds: 1e-3, ..lab };
        let alone = attention_forward(several, ask, DType::F32).unwrap();
        assert_eq!((alone.flops, alone.bytes), (forward.flops, forward.bytes));
    }

    #[test]
    fn the_products_of_a_layer_have_equal_work() {
        let layer = Linear { tokens: 48, from: 24, to: 32 };
        let lab = Lab { section_bytes: 1 << 15, ..Lab::new(Backend::Cpu, 1, 1) };
        for way in Way::ALL {
            let found = linear(lab, layer, way, DType::Bf16).unwrap();
            assert_eq!(found.flops, 2 * 48 * 24 * 32, "{way:?}");
            let (operands, weights) = (2 * 48 * (24 + 32), 24 * 32);
            let weights = if way == Way::WeightGradient { 4 * weights } else { 2 * weights };
            assert_eq!(found.bytes, operands + weights, "{way:?}");
        }
    }

    /// However long a state is, its numbers go on as they began.
    #[test]
    fn numbers_repeat_without_a_seam() {
        let bytes = numbers(DType::F32);
        let at = |i: usize| f32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap());
        let count = bytes.len() / 4;
        assert!((0..count).all(|i| at(i) == at(i % 1009) && at(i).abs() <= 0.5));
        assert_eq!((count % 1009, numbers(DType::Bf16).len()), (0, 2 * count));
    }
}
