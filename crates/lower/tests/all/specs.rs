//! What regions become.

use super::common::{lowered, try_lower};
use aerogel_graph::ops::{Attend, Fold, ScatterMode};
use aerogel_graph::{AxisId, Build, Cutter, DType, Expr, Graph, Mesh, Pattern, Place, ValueId};
use aerogel_lower::{
    AttendMask, Axis, Binary, Call, Contraction, CopySpec, Draws, FillSpec, Instr, Operand,
    OperandSums, Output, Products, Program, Role, Spec, Unary,
};

fn axis(g: &mut Graph, name: &str, size: usize) -> AxisId {
    g.axis(name, size).unwrap()
}

fn input(g: &mut Graph, name: &str, dtype: DType, axes: &[AxisId]) -> ValueId {
    g.input(name, dtype, axes).unwrap()
}

/// The only call, and the values of its operands, which begin at their first elements.
fn only(mut calls: Vec<Call>) -> (Spec, Vec<ValueId>) {
    assert_eq!(calls.len(), 1);
    let call = calls.remove(0);
    assert!(call.operands.iter().all(|operand| operand.1 == 0));
    (call.spec, call.operands.into_iter().map(|operand| operand.0).collect())
}

/// A program stores what something outside of it reads, and rounds what is declared bf16 where
/// others read it, and only there.
#[test]
fn maps_become_one_program() {
    let mut g = Graph::new();
    let [t, e] = [("t", 4), ("e", 8)].map(|(name, size)| axis(&mut g, name, size));
    let x = input(&mut g, "x", DType::Bf16, &[t, e]);
    let bias = input(&mut g, "bias", DType::F32, &[e]);
    let sum = g.map(&[x, bias], &|v| &v[0] + &v[1]).unwrap();
    let out = g.map(&[sum, sum], &|v| &v[0] * &v[1]).unwrap();
    g.output("out", out);
    let (spec, operands) = only(lowered(&g, &[0, 1]));
    assert_eq!(operands, [x, bias, out]);
    let round = |dst, a| Instr::Unary { op: Unary::RoundBf16, dst, a };
    let instrs = vec![
        Instr::Load { dst: 0, input: 0 },
        Instr::Load { dst: 1, input: 1 },
        Instr::Binary { op: Binary::Add, dst: 2, a: 0, b: 1 },
        round(3, 2),
        Instr::Binary { op: Binary::Mul, dst: 4, a: 3, b: 3 },
        // The rounding of the result is the store's.
        Instr::Store { output: 0, src: 4 },
    ];
    let inputs = vec![Operand::bf16([8, 1]), Operand::f32([0, 1])];
    let outputs = vec![Operand::bf16([8, 1])];
    assert_eq!(spec, Spec::Map(Program { sizes: vec![4, 8], inputs, outputs, instrs }));
}

#[test]
fn a_map_that_is_summed_is_the_reductions_program() {
    let mut g = Graph::new();
    let [t, e] = [("t", 4), ("e", 8)].map(|(name, size)| axis(&mut g, name, size));
    let x = input(&mut g, "x", DType::F32, &[t, e]);
    let square = g.map(&[x], &|v| &v[0] * &v[0]).unwrap();
    let sum = g.sum(square, &[t]).unwrap();
    g.output("out", sum);
    let (spec, operands) = only(lowered(&g, &[0, 1]));
    assert_eq!(operands, [x, sum]);
    let Spec::Reduce(spec) = spec else { panic!("{spec:?}") };
    assert_eq!((spec.reduced, spec.fold), (vec![true, false], Fold::Sum));
    assert_eq!(spec.output, Operand::f32([0, 1]));
    assert!(spec.program.outputs.is_empty());
    let last = spec.program.instrs.last();
    assert_eq!(last, Some(&Instr::Binary { op: Binary::Mul, dst: spec.value, a: 0, b: 0 }));
}

/// The program of an epilogue walks batch, M and N, wherever these lie in the result.
#[test]
fn a_product_hands_its_elements_to_the_maps_after_it() {
    let mut g = Graph::new();
    let [n, b, m, k] =
        [("n", 5), ("b", 2), ("m", 3), ("k", 7)].map(|(name, size)| axis(&mut g, name, size));
    let x = input(&mut g, "x", DType::Bf16, &[b, m, k]);
    let w = input(&mut g, "w", DType::Bf16, &[b, k, n]);
    let bias = input(&mut g, "bias", DType::F32, &[n]);
    let product = g.einsum_to(&[x, w], &[n, b, m], DType::F32).unwrap();
    let out = g.map(&[product, bias], &|v| &v[0] + &v[1]).unwrap();
    g.output("out", out);
    let axes = vec![
        Axis { role: Role::N, size: 5, a: 0, b: 1, c: 6 },
        Axis { role: Role::Batch, size: 2, a: 21, b: 35, c: 3 },
        Axis { role: Role::M, size: 3, a: 7, b: 0, c: 1 },
        Axis { role: Role::K, size: 7, a: 1, b: 5, c: 0 },
    ];
    let (a, c) = (DType::Bf16, DType::F32);
    let mut wanted =
        Contraction { axes, a, b: a, c, accumulate: false, alpha: 1.0, epilogue: None, sums: None };
    let (spec, operands) = only(lowered(&g, &[0]));
    assert_eq!((spec, operands), (Spec::Product(wanted.clone()), vec![x, w, product]));
    wanted.epilogue = Some(Program {
        sizes: vec![2, 3, 5],
        inputs: vec![Operand::f32([0, 0, 1])],
        outputs: vec![Operand::f32([3, 1, 6])],
        instrs: vec![
            Instr::Product { dst: 0 },
            Instr::Load { dst: 1, input: 0 },
            Instr::Binary { op: Binary::Add, dst: 2, a: 0, b: 1 },
            Instr::Store { output: 0, src: 2 },
        ],
    });
    let (spec, operands) = only(lowered(&g, &[0, 1]));
    assert_eq!((spec, operands), (Spec::Product(wanted), vec![x, w, bias, out]));
}

/// A product and the sum of its second operand, whichever comes first.
#[test]
fn the_sum_of_an_operand_is_part_of_the_product() {
    let mut g = Graph::new();
    let [t, m, n] = [("t", 6), ("m", 3), ("n", 5)].map(|(name, size)| axis(&mut g, name, size));
    let x = input(&mut g, "x", DType::Bf16, &[t, n]);
    let dy = input(&mut g, "dy", DType::Bf16, &[t, m]);
    let sum = g.sum(dy, &[t]).unwrap();
    let product = g.einsum_to(&[x, dy], &[m, n], DType::F32).unwrap();
    [sum, product].iter().for_each(|v| g.output("out", *v));
    let (spec, operands) = only(lowered(&g, &[0, 1]));
    assert_eq!(operands, [x, dy, product, sum]);
    let Spec::Product(spec) = spec else { panic!("{spec:?}") };
    assert_eq!(spec.epilogue, None);
    let Some(OperandSums { factor: 1, output }) = spec.sums else { panic!("{spec:?}") };
    let stride = |role| spec.axes.iter().position(|a| a.role == role).map(|i| output.strides[i]);
    assert_eq!((output.dtype, stride(Role::N)), (g.ty(sum).dtype, Some(1)));
}

/// Members stand in the order of their products, each as it is alone, and what they have in common
/// is the same factor of all.
#[test]
fn products_list_their_members() {
    let mut g = Graph::new();
    let [t, n, m] = [("t", 6), ("n", 5), ("m", 3)].map(|(name, size)| axis(&mut g, name, size));
    let x = input(&mut g, "x", DType::Bf16, &[t, n]);
    let [p, q] = ["p", "q"].map(|name| input(&mut g, name, DType::Bf16, &[t, m]));
    let sum = g.sum(q, &[t]).unwrap();
    let first = g.einsum_to(&[p, x], &[m, n], DType::F32).unwrap();
    let second = g.einsum_to(&[x, q], &[m, n], DType::F32).unwrap();
    [sum, first, second].iter().for_each(|v| g.output("out", *v));
    let (spec, operands) = only(lowered(&g, &[0, 1, 2]));
    assert_eq!(operands, [p, x, first, q, x, second, sum]);
    let Spec::Products(Products { common: 1, members }) = spec else { panic!("{spec:?}") };
    let [a, b] = members.as_slice() else { panic!("{members:?}") };
    let (Spec::Product(alone), _) = only(lowered(&g, &[1])) else { panic!() };
    assert_eq!((a, &b.axes), (&alone, &a.axes));
    assert_eq!((a.sums.as_ref(), b.sums.as_ref().map(|s| s.factor)), (None, Some(0)));
}

/// Terms have the axes of the sum in one order, and its rows on one side.
#[test]
fn a_sum_of_products_is_not_rounded_between_them() {
    let mut g = Graph::new();
    let [t, e, p, q] =
        [("t", 6), ("e", 4), ("p", 3), ("q", 5)].map(|(name, size)| axis(&mut g, name, size));
    let values = [p, q].map(|n| {
        let dy = input(&mut g, &format!("d{}", n.index()), DType::Bf16, &[t, n]);
        let w = input(&mut g, &format!("w{}", n.index()), DType::Bf16, &[n, e]);
        (dy, w)
    });
    let [(dp, wp), (dq, wq)] = values;
    let first = g.einsum_to(&[dp, wp], &[t, e], DType::Bf16).unwrap();
    let second = g.einsum_to(&[wq, dq], &[e, t], DType::Bf16).unwrap();
    let sum = g.map(&[first, second], &|v| &v[0] + &v[1]).unwrap();
    g.output("out", sum);
    let (spec, operands) = only(lowered(&g, &[0, 1, 2]));
    assert_eq!(operands, [dp, wp, dq, wq, sum]);
    let Spec::Summed(terms) = spec else { panic!("{spec:?}") };
    let roles = |i: usize| terms[i].axes.iter().map(|a| (a.role, a.size)).collect::<Vec<_>>();
    assert_eq!(roles(0), [(Role::M, 6), (Role::N, 4), (Role::K, 3)]);
    assert_eq!(roles(1), [(Role::M, 6), (Role::N, 4), (Role::K, 5)]);
    assert_eq!(terms[0].epilogue, None);
    let program = terms[1].epilogue.as_ref().unwrap();
    assert_eq!(program.sizes, [6, 4]);
    let stored = [Instr::Product { dst: 0 }, Instr::Store { output: 0, src: 0 }];
    assert_eq!(program.instrs, stored);
    assert_eq!(program.outputs, [Operand::bf16([4, 1])]);
}

/// The normalised axis is innermost for the kernel, wherever it lies.
#[test]
fn a_norm_walks_rows() {
    let mut g = Graph::new();
    let [e, t] = [("e", 8), ("t", 4)].map(|(name, size)| axis(&mut g, name, size));
    let x = input(&mut g, "x", DType::F32, &[e, t]);
    let gain = input(&mut g, "gain", DType::F32, &[e]);
    let y = g.norm(x, e, false, 1e-5, Some(gain), None).unwrap();
    let half = g.map(&[y], &|v| 0.5 * &v[0]).unwrap();
    g.output("out", half);
    let (spec, operands) = only(lowered(&g, &[0]));
    assert_eq!(operands, [x, y, gain]);
    let Spec::Norm(spec) = spec else { panic!("{spec:?}") };
    assert_eq!((&spec.norm.sizes[..], spec.norm.center), (&[4, 8][..], false));
    assert_eq!(spec.norm.gain, Some(Operand::f32([0, 1])));
    assert_eq!((spec.x, spec.output), (Operand::f32([1, 4]), Output::Store(Operand::f32([1, 4]))));
    let (spec, operands) = only(lowered(&g, &[0, 1]));
    assert_eq!(operands, [x, gain, half]);
    let Spec::Norm(spec) = spec else { panic!("{spec:?}") };
    assert!(matches!(spec.output, Output::Epilogue(program) if program.sizes == [4, 8]));
}

/// A step of decoding sees a window of the pattern, whose place is read at run time.
#[test]
fn decoding_names_its_position() {
    let mut g = Graph::new();
    let list = [("b", 2), ("h", 2), ("r", 3), ("now", 1), ("seq", 16), ("d", 4), ("w", 5)];
    let [b, h, r, now, seq, d, w] = list.map(|(name, size)| axis(&mut g, name, size));
    let q = input(&mut g, "q", DType::F32, &[b, h, r, now, d]);
    let k = input(&mut g, "k", DType::F32, &[b, h, seq, d]);
    let v = input(&mut g, "v", DType::F32, &[b, h, seq, w]);
    let at = input(&mut g, "at", DType::U32, &[]);
    let (heads, pattern) = ([h, r].into_iter().collect(), Pattern::Causal);
    let op = Attend { query: now, key: seq, dim: d, heads, scale: 0.5, pattern, offset: true };
    let (o, lse) = g.attend(op, &[q, k, v, at]).unwrap();
    g.output("o", o);
    let calls = lowered(&g, &[0]);
    assert_eq!(calls[0].position, Some(at));
    let (spec, operands) = only(calls);
    assert_eq!(operands, [q, k, v, o, lse]);
    let Spec::Attend(spec, mask) = spec else { panic!("{spec:?}") };
    let pattern = Pattern::Causal;
    assert_eq!(mask, AttendMask { pattern, heads: 1, queries: 16, keys: 16 });
    let shape = &spec.attention;
    assert_eq!((&shape.batch[..], shape.kv, shape.group, shape.queries), (&[2][..], 2, 3, 1));
    // Keys are the same for all query heads that share them, and a row has one log-sum-exp.
    assert_eq!(spec.k.strides, [128, 64, 0, 4, 1]);
    assert_eq!(spec.lse.strides, [6, 3, 1, 1, 0]);
    assert_eq!(spec.v.strides, [160, 80, 0, 5, 1]);
    assert_eq!((shape.key_width, shape.value_width), (4, 5));
    assert_eq!((shape.outer(), shape.head(3, 2)), (4, 5));
}

/// Of twelve rows on two times two ranks, the third rank reads rows 6 to 8; nothing else differs.
#[test]
fn a_rank_reads_the_rows_that_it_holds() {
    let mut g = Graph::new();
    let [rows, t, e] =
        [("rows", 12), ("t", 4), ("e", 2)].map(|(name, size)| axis(&mut g, name, size));
    (0..2).for_each(|mesh| g.cut_axis("rows", Cutter::Mesh(mesh), 2).unwrap());
    let table = input(&mut g, "table", DType::F32, &[rows, e]);
    let ids = input(&mut g, "ids", DType::U32, &[t]);
    let out = g.gather(table, rows, ids).unwrap();
    let on = |place: [u16; 4]| {
        let (spec, operands) = only(try_lower(&g, &[0], Place(place)).unwrap());
        assert_eq!(operands, [table, ids, out]);
        let Spec::Gather(spec) = spec else { panic!("{spec:?}") };
        spec
    };
    let (first, mut third) = (on([0; 4]), on([1, 0, 0, 0]));
    let shape = &third.shape;
    assert_eq!((shape.first_row, shape.table_rows, shape.all_rows, shape.width), (6, 3, 12, 2));
    assert_eq!(third.table, Operand::f32([0, 2, 1]));
    third.shape.first_row = 0;
    assert_eq!(first, third);
}

#[test]
fn rows_are_set_in_a_copy_of_the_base_or_in_the_base_itself() {
    let mut g = Graph::new();
    let [rows, t, e] =
        [("rows", 12), ("t", 4), ("e", 2)].map(|(name, size)| axis(&mut g, name, size));
    let base = input(&mut g, "base", DType::Bf16, &[rows, e]);
    let ids = input(&mut g, "ids", DType::U32, &[t]);
    let new = input(&mut g, "new", DType::Bf16, &[t, e]);
    let out = g.scatter_set(base, rows, ids, new).unwrap();
    let [copy, set]: [Call; 2] = lowered(&g, &[0]).try_into().unwrap();
    assert!(copy.idle_in_place && !set.idle_in_place);
    assert_eq!(copy.operands, [(base, 0), (out, 0)]);
    assert!(matches!(copy.spec, Spec::Copy(CopySpec { sizes, .. }) if sizes == [12, 2]));
    assert_eq!(set.operands, [(out, 0), (ids, 0), (new, 0)]);
    assert!(matches!(set.spec, Spec::Scatter(spec) if spec.mode == ScatterMode::Set));
}

#[test]
fn views_that_move_bytes_are_copies_into_parts_of_the_result() {
    let mut g = Graph::new();
    let [t, a, b, all] =
        [("t", 4), ("a", 2), ("b", 3), ("all", 5)].map(|(name, size)| axis(&mut g, name, size));
    let left = input(&mut g, "left", DType::F32, &[t, a]);
    let right = input(&mut g, "right", DType::F32, &[t, b]);
    let both = g.concat(&[left, right], &[a, b], all).unwrap();
    let turned = g.einsum(&[both], &[all, t]).unwrap();
    g.output("out", turned);
    let calls = lowered(&g, &[0]);
    assert_eq!(calls[0].operands, [(left, 0), (both, 0)]);
    assert_eq!(calls[1].operands, [(right, 0), (both, 2)]);
    let from = Operand::f32([3, 1]);
    let to = Operand::f32([5, 1]);
    assert_eq!(calls[1].spec, Spec::Copy(CopySpec { sizes: vec![4, 3], from, to }));
    let (spec, operands) = only(lowered(&g, &[1]));
    assert_eq!(operands, [both, turned]);
    let (from, to) = (Operand::f32([1, 5]), Operand::f32([4, 1]));
    assert_eq!(spec, Spec::Copy(CopySpec { sizes: vec![5, 4], from, to }));
}

#[test]
fn what_is_padded_is_zero_first() {
    let mut g = Graph::new();
    let [all, some] = [("all", 9), ("some", 3)].map(|(name, size)| axis(&mut g, name, size));
    let x = input(&mut g, "x", DType::F32, &[some]);
    let view = aerogel_graph::ops::View::Pad { axis: some, before: 2, into: all };
    let out = g.emit(view.into(), &[x]).unwrap()[0];
    let [zeros, window]: [Call; 2] = lowered(&g, &[0]).try_into().unwrap();
    let to = Operand::f32([1]);
    assert_eq!(zeros.spec, Spec::Fill(FillSpec { sizes: vec![9], to, value: 0.0 }));
    assert_eq!((zeros.operands, window.operands), (vec![(out, 0)], vec![(x, 0), (out, 2)]));
}

/// Draws are those of the whole tensor, whoever has a piece of it.
#[test]
fn draws_and_coordinates_are_global() {
    let mut g = Graph::new();
    g.set_mesh(Mesh(vec![("data".to_owned(), 2)]));
    let [t, e] = [("t", 24), ("e", 5)].map(|(name, size)| axis(&mut g, name, size));
    g.cut_axis("t", Cutter::Time, 3).unwrap();
    g.cut_axis("t", Cutter::Mesh(0), 2).unwrap();
    let x = input(&mut g, "x", DType::F32, &[t, e]);
    let drop = g.map(&[x], &|v| Expr::rand("drop").lt(0.5).select(0.0, &v[0] + Expr::Coord(t)));
    g.output("out", drop.unwrap());
    let call = try_lower(&g, &[0], Place([1, 0, 0, 0])).unwrap().remove(0);
    // Four of 24 rows: those of the second rank begin 4 rows after those of the first.
    assert_eq!(call.draws, Draws { first: 20, step: 40 });
    assert_eq!(call.draws.element(2), 100);
    let Spec::Map(program) = call.spec else { panic!("{:?}", call.spec) };
    let draw = program.instrs.iter().find(|i| matches!(i, Instr::Rand { .. })).unwrap();
    assert!(matches!(draw, Instr::Rand { strides, .. } if *strides == [5, 1]));
    // Four rows of this rank, after 8 for every micro-batch before and 4 of the other rank.
    let constants: Vec<_> = (program.instrs.iter())
        .filter_map(|i| match i {
            Instr::Const { value, .. } => Some(*value),
            _ => None,
        })
        .collect();
    assert!(constants.contains(&8.0) && constants.contains(&4.0), "{constants:?}");
}

#[test]
fn what_is_no_kernel_is_refused() {
    let mut g = Graph::new();
    let [t, part] = [("t", 4), ("part", 2)].map(|(name, size)| axis(&mut g, name, size));
    let x = input(&mut g, "x", DType::F32, &[t]);
    g.slice(x, t, 1, part).unwrap();
    let error = try_lower(&g, &[0], Place::default()).unwrap_err();
    assert_eq!(error.to_string(), "view: a slice is a window and moves nothing");
}
