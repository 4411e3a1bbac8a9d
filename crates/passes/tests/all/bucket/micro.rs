//! Which micro-batch runs where.

use super::super::support::network;
use super::*;
use aerogel_graph::{
    Build, Clock, DType, Env, Expr, Place, Rounding, Tensor, Type, interpret_mesh,
};

/// Meshes with the number of the global micro-batch that a rank at a place runs as its i-th.
type Owner = fn(i: usize, local: usize, place: Place) -> usize;

fn rank_outermost(i: usize, local: usize, place: Place) -> usize {
    usize::from(place.0[0]) * local + i
}

fn cases() -> Vec<(Shards, Owner)> {
    vec![
        (Shards::default(), |i, _, _| i),
        (zero(2, 0), rank_outermost),
        (zero(2, 1), rank_outermost),
        (zero(2, 2), |i, _, place| 2 * i + usize::from(place.0[0])),
        (zero(4, 3), |i, _, place| 4 * i + usize::from(place.0[0])),
        // Gradients are cut over `local` alone, so time is between nodes and their ranks.
        (nodes([1, 1, 1]), between),
        (nodes([2, 1, 0]), between),
        (nodes([2, 2, 2]), |i, _, p| 4 * i + 2 * usize::from(p.0[0]) + usize::from(p.0[1])),
        (nodes([2, 0, 0]), |i, n, p| n * (2 * usize::from(p.0[0]) + usize::from(p.0[1])) + i),
    ]
}

fn between(i: usize, local: usize, place: Place) -> usize {
    (usize::from(place.0[0]) * local + i) * 2 + usize::from(place.0[1])
}

#[test]
fn each_micro_batch_runs_once() {
    for (shards, owner) in cases() {
        let local = MICRO_BATCHES / shards.mesh.ranks();
        let g = cut(&network(ROWS, true), &shards, local).unwrap();
        let batch = &g.axes()[g.axes().find("batch").unwrap()];
        assert_eq!((batch.size, batch.pieces()), (ROWS / MICRO_BATCHES, MICRO_BATCHES));
        let mut ran = vec![];
        for rank in 0..shards.mesh.ranks() {
            let place = shards.mesh.place(rank);
            for i in 0..local {
                let piece = batch.piece(i as u64, place);
                assert_eq!(piece as usize, owner(i, local, place), "{shards:?}");
                let later = batch.piece(0, place) + i as u64 * batch.pieces_in_time();
                assert_eq!(piece, later, "{shards:?}");
                ran.push(piece as usize);
            }
        }
        ran.sort_unstable();
        assert_eq!(ran, (0..MICRO_BATCHES).collect::<Vec<_>>(), "{shards:?}");
    }
}

/// The squares of the differences between numbers and the rows that they are for.
fn misplaced() -> Graph {
    let mut g = Graph::new();
    let batch = g.axis("batch", ROWS).unwrap();
    let row = g.input("row", DType::F32, &[batch]).unwrap();
    let wrong = g
        .map_to(&[row], Type::new(DType::F32, [batch]), &|v| {
            let off = &v[0] - Expr::Coord(batch);
            &off * &off
        })
        .unwrap();
    let loss = g.sum(wrong, &[batch]).unwrap();
    g.output("loss", loss);
    g
}

/// Coordinates, and with them draws, are those of the rows that a rank is given.
#[test]
fn a_rank_sees_its_micro_batch_as_rows_of_the_whole() {
    let size = ROWS / MICRO_BATCHES;
    for (shards, owner) in cases() {
        let local = MICRO_BATCHES / shards.mesh.ranks();
        let g = cut(&misplaced(), &shards, local).unwrap();
        let axis = g.axes().find("batch").unwrap();
        let given = |micro: usize| -> Env {
            let data = (micro * size..(micro + 1) * size).map(|x| x as f64).collect();
            [("row".to_owned(), Tensor::from_vec(g.axes(), &[axis], data))].into()
        };
        for i in 0..local {
            let envs = |shift: usize| -> Vec<Env> {
                (0..shards.mesh.ranks())
                    .map(|rank| owner(i, local, shards.mesh.place(rank)))
                    .map(|micro| given((micro + shift) % MICRO_BATCHES))
                    .collect()
            };
            let clock = Clock { micro: i as u64, ..Clock::default() };
            for (shift, right) in [(0, true), (1, false)] {
                for run in interpret_mesh(&g, &envs(shift), clock, Rounding::Exact).unwrap() {
                    assert_eq!(run.outputs["loss"].data[0] == 0.0, right, "{shards:?}");
                }
            }
        }
    }
}
