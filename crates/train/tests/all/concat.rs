//! Concatenations through planner and device: parts that are written where the whole lies, sums of
//! flat gradients in a state's slot, and what has to be copied, against the interpreter.

use crate::harness::{Rng, alone, bytes_of, check, fill, loaded, numbers_of};
use aerogel_graph::{
    AxisId, Build, Clock, DType, Env, Graph, Init, OpError, Role, StateId, Type, ValueId,
};
use aerogel_machine::Step;
use aerogel_plan::Ask;

/// What becomes part of a bucket.
#[derive(Clone, Copy)]
struct Part {
    flat: ValueId,
    axis: AxisId,
    /// The same in two axes, if a kernel made it so.
    square: Option<(ValueId, [AxisId; 2])>,
}

/// A random bucket: kernels of several kinds make its parts, some of which have to be copied.
struct Bucket {
    g: Graph,
    rng: Rng,
    parts: Vec<Part>,
}

impl Bucket {
    fn axis(&mut self, name: &str, size: usize) -> Result<AxisId, OpError> {
        let name = format!("{name}.{}", self.parts.len());
        self.g.axis(&name, size)
    }

    /// One part: a product, a map, a reduction, zeros, an input, a slice, or the part before.
    fn part(&mut self) -> Result<(), OpError> {
        let (n, m) = (1 + self.rng.below(9), 1 + self.rng.below(7));
        let (a, b, ab) = (self.axis("a", n)?, self.axis("b", m)?, self.axis("ab", n * m)?);
        let name = format!("x.{}", self.parts.len());
        let float = DType::F32;
        let (flat, axis, square) = match (self.rng.below(9), self.parts.last().copied()) {
            (0 | 1, _) => {
                let k = self.axis("k", 3)?;
                let x = self.g.input(&name, float, &[a, k])?;
                let w = self.g.input(&format!("{name}.w"), float, &[b, k])?;
                let y = self.g.einsum(&[x, w], &[a, b])?;
                (self.g.merge(y, &[a, b], ab)?, ab, Some((y, [a, b])))
            }
            (2 | 3, _) => {
                let x = self.g.input(&name, float, &[a, b])?;
                let y = self.g.map(&[x], &|v| v[0].tanh())?;
                (self.g.merge(y, &[a, b], ab)?, ab, Some((y, [a, b])))
            }
            (4, _) => {
                let x = self.g.input(&name, float, &[a, ab])?;
                (self.g.sum(x, &[a])?, ab, None)
            }
            (5, _) => (self.g.constant(0.0, Type::new(float, [ab]))?, ab, None),
            (6, _) => (self.g.input(&name, float, &[ab])?, ab, None),
            (7, Some(last)) => {
                let size = self.g.axes().size(last.axis);
                let twin = self.axis("twin", size)?;
                (self.g.rename(last.flat, last.axis, twin)?, twin, None)
            }
            _ => {
                let long = self.axis("long", n * m + 3)?;
                let x = self.g.input(&name, float, &[long])?;
                let y = self.g.map(&[x], &|v| 0.5 * &v[0])?;
                (self.g.slice(y, long, 2, ab)?, ab, None)
            }
        };
        self.parts.push(Part { flat, axis, square });
        Ok(())
    }

    /// All parts but the first as one.
    fn nest(&mut self) -> Result<(), OpError> {
        let rest = self.parts.split_off(1);
        let axes: Vec<AxisId> = rest.iter().map(|p| p.axis).collect();
        let values: Vec<ValueId> = rest.iter().map(|p| p.flat).collect();
        let size = axes.iter().map(|&a| self.g.axes().size(a)).sum();
        let axis = self.g.axis("inner", size)?;
        let flat = self.g.concat(&values, &axes, axis)?;
        self.parts.push(Part { flat, axis, square: None });
        Ok(())
    }

    /// `sum' = concat(sum[part] + part, ...)`, flat or in the axes of the part; or without `sum`.
    fn build(seed: u64) -> Result<Graph, OpError> {
        let mut k = Bucket { g: Graph::new(), rng: Rng(seed), parts: vec![] };
        for _ in 0..2 + k.rng.below(5) {
            k.part()?;
        }
        if k.rng.one_in(3) {
            k.nest()?;
        }
        let axes: Vec<AxisId> = k.parts.iter().map(|p| p.axis).collect();
        let flat = k.g.axis("flat", axes.iter().map(|&a| k.g.axes().size(a)).sum())?;
        let ty = Type::new(DType::F32, [flat]);
        let old = k.g.state("sum", ty, Role::Accumulator, None, Init::Constant(0.0))?;
        let (mut start, how) = (0, k.rng.below(4));
        let mut values = vec![];
        for part in k.parts.clone() {
            // Now and then another window of the old value than the one that is written over.
            let shift = usize::from(how == 1 && start > 0 && k.rng.one_in(2));
            let own = k.g.slice(old, flat, start - shift, part.axis)?;
            values.push(match part.square {
                _ if how == 3 => part.flat,
                Some((square, list)) if k.rng.one_in(2) => {
                    let own = k.g.split(own, part.axis, &list)?;
                    let new = k.g.add(square, own)?;
                    k.g.merge(new, &list, part.axis)?
                }
                _ => k.g.add(own, part.flat)?,
            });
            start += k.g.axes().size(part.axis);
        }
        let new = k.g.concat(&values, &axes, flat)?;
        k.g.assign(StateId(0), new)?;
        if k.rng.one_in(2) {
            let read = if k.rng.one_in(2) { old } else { new };
            let norm = k.g.map(&[read], &|v| &v[0] * &v[0])?;
            let norm = k.g.sum(norm, &[flat])?;
            k.g.output("norm", norm);
        }
        k.g.output("part", k.parts[0].flat);
        Ok(k.g)
    }
}

#[test]
fn random_buckets_hold_what_the_interpreter_says() {
    let (mut in_place, mut copied) = (0, 0);
    for seed in 0..150 {
        let g = Bucket::build(seed).unwrap();
        let mut env = Env::new();
        fill(&g, &mut env, &mut Rng(seed + 1000), 4);
        let clock = Clock { seed, step: 7, ..Clock::default() };
        check(&format!("bucket {seed}"), &g, &env, clock);
        let program = loaded(alone(&g), 1).unwrap().program;
        let steps = &program.sections[0].steps;
        let view = |s: &Step| matches!(s, Step::Kernel { claim, .. } if claim.kernel == "view");
        assert!(!steps.iter().any(view), "seed {seed}: a flat concatenation is a kernel");
        match steps.iter().any(|s| matches!(s, Step::Assign { .. })) {
            true => copied += 1,
            false => in_place += 1,
        }
    }
    assert!(in_place > 60 && copied > 20, "{in_place} in place, {copied} copied");
}

/// Three micro-batches in flight: each backward finds what its own forward kept.
#[test]
fn copies_of_a_state_are_kept_apart() {
    let kept = |g: &mut Graph| {
        let a = g.axis("a", 21)?;
        let ty = Type::new(DType::F32, [a]);
        let kept = g.state("kept", ty, Role::Saved, None, Init::Constant(0.0))?;
        g.set_copies(StateId(0), 3);
        Ok::<_, OpError>((a, kept))
    };
    let forward = || {
        let mut g = Graph::new();
        let (a, _) = kept(&mut g)?;
        let x = g.input("x", DType::F32, &[a])?;
        let y = g.map(&[x], &|v| 2.0 * &v[0])?;
        let z = g.map(&[y], &|v| &v[0] + 1.0)?;
        g.assign(StateId(0), y)?;
        g.output("z", z);
        Ok::<_, OpError>(g)
    };
    let backward = || {
        let mut g = Graph::new();
        let (_, y) = kept(&mut g)?;
        g.output("y", y);
        Ok::<_, OpError>(g)
    };
    let ask = |name: &str, g| Ask { name: name.to_owned(), graph: g, calls: 3 };
    let asks = vec![ask("forward", forward().unwrap()), ask("backward", backward().unwrap())];
    let mut device = loaded(asks, 2).unwrap().device;
    let input = |copy: u32| (0..21).map(|i| f64::from(100 * copy + i)).collect::<Vec<f64>>();
    let mut bytes = vec![0; 84];
    for copy in [1, 0, 2] {
        device.write_input(0, "x", &bytes_of(DType::F32, &input(copy))).unwrap();
        device.run(0, Clock::default(), copy).unwrap();
        device.read_output(0, "z", &mut bytes).unwrap();
        let wanted: Vec<f64> = input(copy).iter().map(|x| 2.0 * x + 1.0).collect();
        assert_eq!(numbers_of(DType::F32, &bytes), wanted);
    }
    for copy in [2, 0, 1] {
        device.run(1, Clock::default(), copy).unwrap();
        device.read_output(1, "y", &mut bytes).unwrap();
        let wanted: Vec<f64> = input(copy).iter().map(|x| 2.0 * x).collect();
        assert_eq!(numbers_of(DType::F32, &bytes), wanted, "copy {copy}");
    }
}
