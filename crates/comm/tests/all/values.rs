//! Every pattern against its definition, element by element, in f64.

use super::common::*;
use aerogel_graph::{DType, Mesh};
use aerogel_machine::{Call, Collectives, Merge, Pattern};
use std::time::{Duration, Instant};

/// What a rank brings: a function of the call and the element.
fn brought(seed: u64, call: &Call, rank: usize) -> Vec<f64> {
    let mut draws = Draws(seed ^ ((rank as u64) << 32));
    let value = |x: u64| match call.dtype {
        DType::U32 => (x >> 40) as f64,
        dtype => dtype.round((x >> 40) as f64 / f64::from(1 << 21) - 4.0),
    };
    (0..call.elements).map(|_| value(draws.next())).collect()
}

fn tree(by: Merge, x: &[f64], round: fn(f64) -> f64) -> f64 {
    if x.len() == 1 {
        return x[0];
    }
    let (left, right) = x.split_at(x.len().next_power_of_two() / 2);
    round(by.of(tree(by, left, round), tree(by, right, round)))
}

/// What a member gets as an element of its output: numbers to be merged, or one number.
fn wanted(call: &Call, member: usize, ins: &[Vec<f64>], i: usize) -> (Merge, Vec<f64>) {
    let members = ins.len();
    let row = call.elements / call.rows;
    let piece = row / members;
    let all = |i: usize| ins.iter().map(|x| x[i]).collect::<Vec<f64>>();
    let one = |from: usize, i: usize| (Merge::Sum, vec![ins[from][i]]);
    match call.pattern {
        Pattern::AllReduce(by) => (by, all(i)),
        Pattern::ReduceScatter => (Merge::Sum, all(i / piece * row + member * piece + i % piece)),
        Pattern::AllGather => one(i / row % members, i / (row * members) * row + i % row),
        Pattern::AllToAll => one(i % row / piece, i / row * row + member * piece + i % piece),
        Pattern::Broadcast { root } => one(root, i),
        Pattern::Permute { by } => {
            one((0..members).find(|from| (from + by) % members == member).unwrap(), i)
        }
        Pattern::Barrier => unreachable!("a barrier moves nothing"),
    }
}

fn out_elements(call: &Call, members: usize) -> usize {
    match call.pattern {
        Pattern::ReduceScatter => call.elements / members,
        Pattern::AllGather => call.elements * members,
        _ => call.elements,
    }
}

fn draw_call(draws: &mut Draws, mesh: &Mesh, number: usize) -> Call {
    let over = draws.over(mesh);
    let members: usize = over.iter().map(|&m| mesh.size(m)).product();
    let merge = draws.pick(&[Merge::Sum, Merge::Max, Merge::Lse]);
    let (root, by) = (draws.below(members), draws.below(2 * members));
    let pattern = draws.pick(&[
        Pattern::AllReduce(merge),
        Pattern::AllReduce(Merge::Sum),
        Pattern::AllGather,
        Pattern::ReduceScatter,
        Pattern::AllToAll,
        Pattern::Broadcast { root },
        Pattern::Permute { by },
        Pattern::Barrier,
    ]);
    let merges = matches!(pattern, Pattern::AllReduce(_) | Pattern::ReduceScatter);
    let dtypes = [DType::F32, DType::Bf16, DType::F16, DType::U32];
    let dtype = draws.pick(&dtypes[..if merges { 2 } else { 3 }]);
    let rows = 1 + draws.below(5);
    let size = draws.pick(&[0, 1, 3, 40, 150]) + draws.below(9);
    let elements = match pattern {
        Pattern::Barrier => 0,
        Pattern::AllReduce(_) => draws.pick(&[size, 9 * size + 1]),
        _ => rows * members * size,
    };
    Call { pattern, over, dtype, elements, rows, site: format!("call {number}").into() }
}

/// The output against the definition: exactly by the tree in f32, and near the tree in f64.
fn compare(call: &Call, member: usize, ins: &[Vec<f64>], got: &[f64]) {
    let eps = if call.dtype.is_half() { 4e-3 } else { 1e-6 };
    for (i, &got) in got.iter().enumerate() {
        let (by, all) = wanted(call, member, ins, i);
        let bits = call.dtype.round(tree(by, &all, |x| f64::from(x as f32)));
        assert_eq!(got, bits, "{call:?} element {i}");
        let near = tree(by, &all, |x| x);
        let scale: f64 = 1.0 + all.iter().map(|x| x.abs()).sum::<f64>();
        assert!((got - near).abs() <= eps * scale, "{call:?} element {i}: {got}, wanted {near}");
    }
}

#[test]
fn every_pattern_on_random_meshes() {
    for seed in 0..60 {
        let mut draws = Draws(seed);
        let sizes: Vec<usize> =
            draws.pick(&[vec![5], vec![1], vec![2, 3], vec![4, 1], vec![3, 2, 2], vec![2, 1, 4]]);
        let mesh = mesh(&sizes);
        let calls: Vec<Call> = (0..12).map(|i| draw_call(&mut draws, &mesh, i)).collect();
        run(ties(&sizes, 20_000), |tie| {
            for (i, call) in calls.iter().enumerate() {
                let group = mesh.group(tie.rank(), &call.over);
                let seed = seed * 1000 + i as u64;
                let ins: Vec<Vec<f64>> = group.iter().map(|&r| brought(seed, call, r)).collect();
                let member = group.iter().position(|&r| r == tie.rank()).unwrap();
                let elements = out_elements(call, ins.len());
                let mut out = vec![0xff; elements * call.dtype.bytes()];
                tie.exchange(call, &encode(call.dtype, &ins[member]), &mut out).unwrap();
                compare(call, member, &ins, &decode(call.dtype, &out));
            }
        });
    }
}

#[test]
fn buffers_need_no_alignment() {
    let n = 1001;
    let got = run(ties(&[3], 20_000), |tie| {
        let input = encode(DType::F32, &vec![tie.rank() as f64 + 0.5; n]);
        let (mut shifted, mut out) = (vec![0; 4 * n + 1], vec![0; 4 * n + 3]);
        shifted[1..].copy_from_slice(&input);
        tie.exchange(&sum(&[0], n, "odd"), &shifted[1..], &mut out[3..]).unwrap();
        decode(DType::F32, &out[3..])
    });
    assert_eq!(got, vec![vec![4.5; n]; 3]);
}

#[test]
fn many_ranks_on_few_cores() {
    let start = Instant::now();
    let sizes = [2, 4, 4];
    let overs: [&[u8]; 5] = [&[0], &[2, 1], &[1], &[0, 1, 2], &[2]];
    let sums = run(ties(&sizes, 20_000), |tie| {
        let mut last = 0.0;
        for i in 0..200 {
            let n = [10, 1000][i % 2];
            let call = sum(overs[i % overs.len()], n, "layer");
            let mut out = vec![0; 4 * n];
            tie.exchange(&call, &encode(DType::F32, &vec![1.0; n]), &mut out).unwrap();
            let all = decode(DType::F32, &out);
            assert!(all.iter().all(|&x| x == all[0]));
            last = all[0];
            let members: usize = call.over.iter().map(|&m| sizes[m as usize]).product();
            assert_eq!(last, members as f64);
        }
        last
    });
    assert_eq!(sums, vec![4.0; 32]);
    let seconds = start.elapsed().as_secs_f64();
    println!("32 ranks, 200 exchanges each: {seconds:.2} s");
    assert!(start.elapsed() < Duration::from_secs(15), "{seconds} s");
}
