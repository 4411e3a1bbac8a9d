//! Counters against the formulas.

use super::common::*;
use aerogel_graph::ops::{Collective, Exchange};
use aerogel_graph::{Axes, Axis, DType, Type};
use aerogel_machine::{Collectives, Merge, Pattern, Traffic};

fn count(pattern: &'static str, over: &[u8], calls: u64, sent_bytes: u64) -> Traffic {
    Traffic { pattern, over: over.to_vec(), calls, sent_bytes }
}

#[test]
fn bytes_are_those_of_rings() {
    let traffic = run(ties(&[2, 3], 20_000), |tie| {
        let reduce = Pattern::AllReduce(Merge::Sum);
        for (pattern, over, elements) in [
            (reduce, &[1][..], 30),
            (reduce, &[1], 31),
            (reduce, &[0, 1], 7),
            (reduce, &[1, 0], 7),
            (Pattern::AllGather, &[1], 5),
            (Pattern::ReduceScatter, &[0], 8),
            (Pattern::AllToAll, &[1], 9),
            (Pattern::Broadcast { root: 2 }, &[1], 10),
            (Pattern::Permute { by: 1 }, &[0], 11),
            (Pattern::Permute { by: 2 }, &[0], 11),
            (Pattern::Barrier, &[0, 1], 0),
            (reduce, &[], 100),
        ] {
            exchange(&tie, &call(pattern, over, elements, "count")).unwrap();
        }
        tie.send((tie.rank() + 1) % 6, 0, "ring", &[0; 13]).unwrap();
        tie.receive((tie.rank() + 5) % 6, 0, "ring", &mut [0; 13]).unwrap();
        tie.traffic()
    });
    for (rank, got) in traffic.into_iter().enumerate() {
        let mut wanted = vec![
            count("all_reduce", &[], 1, 0),
            count("all_reduce", &[1], 2, 2 * 120 * 2 / 3 + 2 * 124 * 2 / 3),
            count("all_reduce", &[0, 1], 1, 2 * 28 * 5 / 6),
            count("all_reduce", &[1, 0], 1, 2 * 28 * 5 / 6),
            count("all_gather", &[1], 1, 20 * 2),
            count("reduce_scatter", &[0], 1, 16),
            count("all_to_all", &[1], 1, 24),
            count("broadcast", &[1], 1, if rank % 3 == 2 { 40 } else { 0 }),
            count("permute", &[0], 2, 44),
            count("barrier", &[0, 1], 1, 0),
            count("send", &[], 1, 13),
        ];
        wanted.sort();
        assert_eq!(got, wanted, "rank {rank}");
    }
}

/// What a plan says of a node is what its exchange is counted as.
#[test]
fn bytes_are_those_of_plans() {
    let mut axes = Axes::default();
    axes.mesh = mesh(&[4, 2]);
    let mut axis = |name: &str, size| axes.intern(Axis::whole(name, size)).unwrap();
    let (rows, whole, piece) = (axis("rows", 3), axis("whole", 16), axis("piece", 4));
    let by = Merge::Sum;
    let cases = [
        (Exchange::AllReduce(by), Pattern::AllReduce(by), vec![rows, whole]),
        (Exchange::AllGather { axis: piece, into: whole }, Pattern::AllGather, vec![rows, piece]),
        (
            Exchange::ReduceScatter { axis: whole, into: piece },
            Pattern::ReduceScatter,
            vec![rows, whole],
        ),
    ];
    for (kind, pattern, list) in cases {
        for dtype in [DType::F32, DType::Bf16] {
            let ty = Type::new(dtype, list.iter().copied());
            let node = Collective { exchange: kind.clone(), over: [0u8].into_iter().collect() };
            let mut call = call(pattern, &[0], axes.count(&list), "node");
            (call.dtype, call.rows) = (dtype, axes.size(list[0]));
            let sent = run(ties(&[4, 2], 20_000), |tie| {
                exchange(&tie, &call).unwrap();
                tie.traffic()
            });
            let wanted = count(node.kind_name(), &[0], 1, node.wire_bytes(&axes, &ty));
            assert_eq!(sent, vec![vec![wanted]; 8]);
        }
    }
}
