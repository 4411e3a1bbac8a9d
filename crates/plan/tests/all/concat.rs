//! Concatenations that move nothing: parts are written where the whole lies, in the slot of a state
//! where that is sound; what cannot be placed is copied; and the checker refuses what is broken.

use super::support::{kernels, offset, plan_of};
use aerogel_graph::{
    AxisId, Build, DType, Graph, Init, Op, OpError, Role, StateId, Type, ValueId, ops::View,
};
use aerogel_machine::{Program, Section, Step};
use aerogel_plan::{Kind, PlanError, check};

/// The inputs of the nth concatenation, and its output.
fn joined(s: &Section, nth: usize) -> (Vec<ValueId>, ValueId) {
    let concat = |n: &&aerogel_graph::Node| matches!(n.op, Op::View(View::Concat { .. }));
    let node = s.graph.nodes().iter().filter(concat).nth(nth).expect("a concatenation");
    (node.ins.clone(), node.outs[0])
}

/// First bytes of the parts, counted from the whole.
fn places(s: &Section, nth: usize) -> Vec<u64> {
    let (parts, whole) = joined(s, nth);
    let place = |v: &ValueId| {
        assert!(s.slot(*v).unwrap().is_contiguous(s.axes(), s.graph.ty(*v)), "a part has gaps");
        offset(s, *v) - offset(s, whole)
    };
    parts.iter().map(place).collect()
}

fn state(g: &mut Graph, name: &str, axis: AxisId) -> Result<ValueId, OpError> {
    let ty = Type::new(DType::F32, [axis]);
    g.state(name, ty, Role::Accumulator, None, Init::Constant(0.0))
}

/// Axes of a bucket: 6 × 5 elements, 7, and 3 of padding.
struct Bucket {
    a: AxisId,
    b: AxisId,
    ab: AxisId,
    c: AxisId,
    pad: AxisId,
    flat: AxisId,
}

impl Bucket {
    fn new(g: &mut Graph) -> Result<Bucket, OpError> {
        let (a, b, c) = (g.axis("a", 6)?, g.axis("b", 5)?, g.axis("c", 7)?);
        let (ab, pad, flat) = (g.axis("ab", 30)?, g.axis("pad", 3)?, g.axis("flat", 40)?);
        Ok(Bucket { a, b, ab, c, pad, flat })
    }

    /// Two gradients, flat: of `6 × 5` and of 7 elements.
    fn gradients(&self, g: &mut Graph) -> Result<[ValueId; 2], OpError> {
        let x = g.input("x", DType::F32, &[self.a, self.b])?;
        let y = g.input("y", DType::F32, &[self.c])?;
        let (dx, dy) = (g.map(&[x], &|v| v[0].tanh())?, g.map(&[y], &|v| v[0].exp())?);
        Ok([g.merge(dx, &[self.a, self.b], self.ab)?, dy])
    }

    fn zeros(&self, g: &mut Graph) -> Result<ValueId, OpError> {
        g.constant(0.0, Type::new(DType::F32, [self.pad]))
    }

    fn join(&self, g: &mut Graph, parts: [ValueId; 3]) -> Result<ValueId, OpError> {
        g.concat(&parts, &[self.ab, self.c, self.pad], self.flat)
    }

    /// `sum' = sum + gradients`, part by part.
    fn accumulated(&self, g: &mut Graph) -> Result<ValueId, OpError> {
        let [dx, dy] = self.gradients(g)?;
        let sum = state(g, "sum", self.flat)?;
        let plus = |g: &mut Graph, d, start, axis| {
            let old = g.slice(sum, self.flat, start, axis)?;
            g.add(old, d)
        };
        let parts = [plus(g, dx, 0, self.ab)?, plus(g, dy, 30, self.c)?, self.zeros(g)?];
        let new = self.join(g, parts)?;
        g.assign(StateId(0), new)?;
        Ok(new)
    }
}

#[test]
fn parts_are_written_where_the_whole_lies() {
    let plan = plan_of(|g| {
        let k = Bucket::new(g)?;
        let [dx, dy] = k.gradients(g)?;
        let zeros = k.zeros(g)?;
        let all = k.join(g, [dx, dy, zeros])?;
        let sum = g.sum(all, &[k.flat])?;
        g.output("sum", sum);
        Ok(())
    });
    let s = &plan.program.sections[0];
    assert_eq!(kernels(s), ["map", "map", "map", "reduce"]);
    assert_eq!(places(s, 0), [0, 120, 148]);
    let named = |v: &&aerogel_plan::Share| v.name.contains("concat f32[flat=40]");
    let share = plan.report.peak_values.iter().find(named).expect("the whole is one piece");
    assert_eq!((share.bytes, share.kind), (160, Kind::Activations));
}

#[test]
fn a_sum_over_a_bucket_is_made_in_place() {
    let plan = plan_of(|g| Bucket::new(g)?.accumulated(g).map(drop));
    let s = &plan.program.sections[0];
    assert_eq!(kernels(s), ["map"; 5]);
    assert_eq!(offset(s, joined(s, 0).1), plan.program.state("sum").unwrap().offset);
    assert_eq!(places(s, 0), [0, 120, 148]);
    // Neither a bucket beside the state nor parts of one: two inputs and the first gradient.
    assert_eq!(plan.report.sections[0].largest_live_bytes, 128 + 64 + 128);
}

/// The same sum in the axes of the parameter, where it can be the epilogue of a product: the old
/// value comes through slice and split, the new one goes through merge.
#[test]
fn a_sum_in_the_axes_of_the_parameter() {
    let plan = plan_of(|g| {
        let k = Bucket::new(g)?;
        let old = state(g, "sum", k.flat)?;
        let x = g.input("x", DType::F32, &[k.a, k.b])?;
        let slice = g.slice(old, k.flat, 0, k.ab)?;
        let split = g.split(slice, k.ab, &[k.a, k.b])?;
        let first = g.add(split, x)?;
        let first = g.merge(first, &[k.a, k.b], k.ab)?;
        let y = g.input("y", DType::F32, &[k.c])?;
        let second = g.slice(old, k.flat, 30, k.c)?;
        let second = g.add(y, second)?;
        let zeros = k.zeros(g)?;
        let new = k.join(g, [first, second, zeros])?;
        g.assign(StateId(0), new)
    });
    let s = &plan.program.sections[0];
    assert_eq!(kernels(s), ["map"; 3]);
    assert_eq!(offset(s, joined(s, 0).1), plan.program.state("sum").unwrap().offset);
}

/// Zeros that all buckets share are made for each: a reader of the first bucket's would keep it
/// alive.
#[test]
fn a_constant_is_made_for_each_whole() {
    let plan = plan_of(|g| {
        let (a, b, ab) = (g.axis("a", 29)?, g.axis("b", 3)?, g.axis("ab", 32)?);
        let zeros = g.constant(0.0, Type::new(DType::F32, [b]))?;
        let x = g.input("x", DType::F32, &[a])?;
        for i in 0..3 {
            let y = g.map(&[x], &|v| f64::from(i) * &v[0])?;
            let all = g.concat(&[y, zeros], &[a, b], ab)?;
            let sum = g.sum(all, &[ab])?;
            g.output(&format!("sum.{i}"), sum);
        }
        Ok(())
    });
    // The second sum: the input, one bucket, a workspace of 100 bytes, two scalars.
    assert_eq!(plan.report.sections[0].largest_live_bytes, 128 + 128 + 128 + 2 * 64);
}

/// The first gradients of a step are written into the state as they come, through views.
#[test]
fn the_first_gradients_of_a_step_are_the_sum() {
    let plan = plan_of(|g| {
        let k = Bucket::new(g)?;
        let (n, m) = (g.axis("n", 8)?, g.axis("m", 5)?);
        let ty = Type::new(DType::F32, [n, m]);
        g.state("sum", ty, Role::Accumulator, None, Init::Constant(0.0))?;
        let [dx, dy] = k.gradients(g)?;
        let zeros = k.zeros(g)?;
        let all = k.join(g, [dx, dy, zeros])?;
        let split = g.split(all, k.flat, &[n, m])?;
        g.assign(StateId(0), split)
    });
    let s = &plan.program.sections[0];
    assert_eq!(kernels(s), ["map"; 3]);
    assert_eq!(offset(s, joined(s, 0).1), plan.program.state("sum").unwrap().offset);
}

/// `sum' = concat(2 sum[..20], sum[20..] + sum[..20])`: sound in place where the second part, which
/// reads what the first one writes over, is made first.
#[test]
fn the_order_of_reads_and_writes_decides() {
    let of = |second_first: bool| {
        plan_of(|g| {
            let (h, k, flat) = (g.axis("h", 20)?, g.axis("k", 20)?, g.axis("flat", 40)?);
            let old = state(g, "sum", flat)?;
            let (low, high) = (g.slice(old, flat, 0, h)?, g.slice(old, flat, 20, k)?);
            let low_as_k = g.rename(low, h, k)?;
            let first = |g: &mut Graph| g.map(&[low], &|v| 2.0 * &v[0]);
            let second = |g: &mut Graph| g.add(high, low_as_k);
            let parts = match second_first {
                true => {
                    let second = second(g)?;
                    [first(g)?, second]
                }
                false => [first(g)?, second(g)?],
            };
            let new = g.concat(&parts, &[h, k], flat)?;
            g.assign(StateId(0), new)
        })
    };
    let (sound, late) = (of(true), of(false));
    assert_eq!(kernels(&sound.program.sections[0]), ["map", "map"]);
    assert_eq!(kernels(&late.program.sections[0]), ["map", "map", "assign"]);
    for plan in [sound, late] {
        assert_eq!(places(&plan.program.sections[0], 0), [0, 80]);
    }
}

/// The step that writes reads other elements than those it writes over: not in place.
#[test]
fn a_shifted_window_of_the_old_value_is_no_operand_in_place() {
    let plan = plan_of(|g| {
        let (h, k, flat) = (g.axis("h", 20)?, g.axis("k", 20)?, g.axis("flat", 40)?);
        let old = state(g, "sum", flat)?;
        let shifted = g.slice(old, flat, 1, h)?;
        let first = g.map(&[shifted], &|v| 2.0 * &v[0])?;
        let high = g.slice(old, flat, 20, k)?;
        let second = g.map(&[high], &|v| 2.0 * &v[0])?;
        let new = g.concat(&[first, second], &[h, k], flat)?;
        g.assign(StateId(0), new)
    });
    assert_eq!(kernels(&plan.program.sections[0]), ["map", "map", "assign"]);
}

#[test]
fn what_cannot_be_placed_is_copied_and_nothing_else() {
    let plan = plan_of(|g| {
        let (flat, p, q) = (g.axis("flat", 48)?, g.axis("p", 8)?, g.axis("q", 8)?);
        let (r, s, t, u) = (g.axis("r", 8)?, g.axis("s", 8)?, g.axis("t", 8)?, g.axis("u", 8)?);
        let x = g.input("x", DType::F32, &[p])?;
        let old = state(g, "old", q)?;
        let made = g.map(&[x], &|v| v[0].exp())?;
        let again = g.rename(made, p, r)?;
        let long = g.constant(1.0, Type::new(DType::F32, [flat]))?;
        let piece = g.slice(long, flat, 3, s)?;
        let own = g.constant(2.0, Type::new(DType::F32, [t]))?;
        let input = g.rename(x, p, u)?;
        let parts = [made, old, again, piece, own, input];
        let all = g.concat(&parts, &[p, q, r, s, t, u], flat)?;
        g.output("all", all);
        Ok(())
    });
    let s = &plan.program.sections[0];
    // Of made, long and own; copies of old, again, piece and input.
    assert_eq!(kernels(s), ["map"; 3 + 4]);
    assert_eq!(places(s, 0), [0, 32, 64, 96, 128, 160]);
}

/// A value can be part of one whole; the second one gets a copy.
#[test]
fn a_part_of_two_wholes() {
    let plan = plan_of(|g| {
        let k = Bucket::new(g)?;
        let [dx, dy] = k.gradients(g)?;
        let zeros = k.zeros(g)?;
        let first = k.join(g, [dx, dy, zeros])?;
        let more = g.constant(1.0, Type::new(DType::F32, [k.pad]))?;
        let second = k.join(g, [dx, dy, more])?;
        g.output("first", first);
        g.output("second", second);
        Ok(())
    });
    let s = &plan.program.sections[0];
    assert_eq!(kernels(s), ["map"; 4 + 2]);
    assert_eq!((places(s, 0), places(s, 1)), (vec![0, 120, 148], vec![0, 120, 148]));
}

#[test]
fn another_order_of_axes_is_a_copy() {
    let plan = plan_of(|g| {
        let (a, b, c, ab) = (g.axis("a", 2)?, g.axis("b", 3)?, g.axis("c", 4)?, g.axis("ab", 5)?);
        let x = g.constant(1.0, Type::new(DType::F32, [a, c]))?;
        let y = g.constant(2.0, Type::new(DType::F32, [c, b]))?;
        let z = g.concat(&[x, y], &[a, b], ab)?;
        g.output("z", z);
        Ok(())
    });
    let s = &plan.program.sections[0];
    assert_eq!(kernels(s), ["map"; 3]);
    assert_eq!(places(s, 0), [0, 32]);
}

#[test]
fn wholes_may_be_parts_of_longer_ones() {
    let plan = plan_of(|g| {
        let k = Bucket::new(g)?;
        let [dx, dy] = k.gradients(g)?;
        let zeros = k.zeros(g)?;
        let all = k.join(g, [dx, dy, zeros])?;
        let (twice, head) = (g.axis("twice", 47)?, g.axis("head", 7)?);
        let head_value = g.constant(3.0, Type::new(DType::F32, [head]))?;
        let longer = g.concat(&[head_value, all], &[head, k.flat], twice)?;
        let part = g.slice(all, k.flat, 30, k.c)?;
        let sum = g.map(&[part], &|v| 2.0 * &v[0])?;
        g.output("longer", longer);
        g.output("sum", sum);
        Ok(())
    });
    let s = &plan.program.sections[0];
    assert_eq!(kernels(s), ["map"; 5]);
    assert_eq!((places(s, 0), places(s, 1)), (vec![0, 120, 148], vec![0, 28]));
}

#[test]
fn parts_side_by_side_are_a_kernel_and_so_are_integers() {
    let plan = plan_of(|g| {
        let (n, a, b, ab) = (g.axis("n", 2)?, g.axis("a", 3)?, g.axis("b", 4)?, g.axis("ab", 7)?);
        let x = g.constant(1.0, Type::new(DType::F32, [n, a]))?;
        let y = g.constant(2.0, Type::new(DType::F32, [n, b]))?;
        let wide = g.concat(&[x, y], &[a, b], ab)?;
        let (i, j) = (g.input("i", DType::U32, &[a])?, g.input("j", DType::U32, &[b])?);
        let ids = g.concat(&[i, j], &[a, b], ab)?;
        // The output of a kernel may still be part of a whole.
        let (m, nm) = (g.axis("m", 1)?, g.axis("nm", 3)?);
        let row = g.constant(0.0, Type::new(DType::F32, [m, ab]))?;
        let tall = g.concat(&[row, wide], &[m, n], nm)?;
        g.output("tall", tall);
        g.output("ids", ids);
        Ok(())
    });
    let s = &plan.program.sections[0];
    assert_eq!(kernels(s).iter().filter(|k| **k == "view").count(), 2);
    assert_eq!(places(s, 2), [0, 28]);
    let (parts, whole) = joined(s, 1);
    assert!(parts.iter().all(|v| offset(s, *v) != offset(s, whole)));
}

#[test]
fn gradients_that_wait_in_a_bucket_are_gradients() {
    let plan = plan_of(|g| {
        let k = Bucket::new(g)?;
        let new = k.accumulated(g)?;
        // The old value is read when the first part of the new one is made already: a copy.
        let sum = g.find_state("sum").map(|s| g.states()[s.index()].value).unwrap();
        let both = g.add(sum, new)?;
        g.output("both", both);
        Ok(())
    });
    assert!(kernels(&plan.program.sections[0]).contains(&"assign"));
    let named = |v: &&aerogel_plan::Share| v.name.contains("concat");
    let share = plan.report.peak_values.iter().find(named).expect("the bucket is transient");
    assert_eq!(share.kind, Kind::Gradients);
}

/// The program of `sum' = sum + gradients` is fine, and no longer so once `spoil` has been at it.
fn refused(spoil: impl FnOnce(&mut Program)) -> (usize, String) {
    let mut program = plan_of(|g| {
        let k = Bucket::new(g)?;
        let new = k.accumulated(g)?;
        let twice = g.map(&[new], &|v| 2.0 * &v[0])?;
        g.output("twice", twice);
        Ok(())
    })
    .program;
    check::section(&program.sections[0], &program).unwrap();
    spoil(&mut program);
    let error = check::section(&program.sections[0], &program).unwrap_err();
    let PlanError::Unsound { step, message, .. } = error else { panic!("{error}") };
    (step, message)
}

/// The step that makes a value.
fn maker(s: &Section, v: ValueId) -> usize {
    let makes = |step: &Step| match step {
        Step::Kernel { claim, .. } => {
            claim.nodes.iter().any(|n| s.graph.node(*n).outs.contains(&v))
        }
        Step::Assign { .. } => false,
    };
    s.steps.iter().position(makes).expect("a step makes it")
}

#[test]
fn a_part_that_lies_elsewhere() {
    let (step, message) = refused(|p| {
        let part = joined(&p.sections[0], 0).0[2];
        p.sections[0].slots[part.index()].as_mut().unwrap().offset -= 4;
    });
    // What the padding is written over is missed by the reader of the whole.
    assert!(step == 5 && message.contains("lies elsewhere"), "{step}: {message}");
    let (_, message) = refused(|p| {
        let part = joined(&p.sections[0], 0).0[2];
        p.sections[0].slots[part.index()].as_mut().unwrap().strides[0] = 2;
    });
    assert!(message.contains("lies elsewhere") || message.contains("outside"), "{message}");
    let (_, message) = refused(|p| {
        let part = joined(&p.sections[0], 0).0[2];
        p.sections[0].slots[part.index()] = None;
    });
    assert!(message.contains("has no slot"), "{message}");
}

#[test]
fn a_whole_that_is_read_before_its_last_part() {
    let (step, message) = refused(|p| {
        let last = maker(&p.sections[0], joined(&p.sections[0], 0).0[2]);
        p.sections[0].steps.swap(last, 5);
    });
    assert!(step < 5 && message.contains("not there"), "{step}: {message}");
}

#[test]
fn a_part_that_nobody_makes() {
    let (_, message) = refused(|p| {
        let last = maker(&p.sections[0], joined(&p.sections[0], 0).0[2]);
        p.sections[0].steps.remove(last);
    });
    assert!(message.contains("no step makes"), "{message}");
}

#[test]
fn a_part_written_in_place_without_leave() {
    let (step, message) = refused(|p| {
        let i = maker(&p.sections[0], joined(&p.sections[0], 0).0[1]);
        let Step::Kernel { claim, .. } = &mut p.sections[0].steps[i] else { unreachable!() };
        claim.in_place.clear();
    });
    assert!(step > 0 && message.contains("over its operand"), "{step}: {message}");
}

#[test]
fn a_workspace_over_a_part() {
    let (_, message) = refused(|p| {
        let place = offset(&p.sections[0], joined(&p.sections[0], 0).0[0]);
        let last = p.sections[0].steps.len() - 2;
        let Step::Kernel { claim, workspace } = &mut p.sections[0].steps[last] else {
            unreachable!()
        };
        (claim.workspace_bytes, *workspace) = (4, place + 64);
    });
    assert!(message.contains("written over"), "{message}");
}

/// A whole in a place of its own: its bytes were never written there.
#[test]
fn a_whole_beside_its_parts() {
    let (_, message) = refused(|p| {
        let whole = joined(&p.sections[0], 0).1;
        p.sections[0].slots[whole.index()].as_mut().unwrap().offset += 256;
        p.arena_bytes += 512;
    });
    assert!(message.contains("lies elsewhere"), "{message}");
}
