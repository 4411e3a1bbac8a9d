//! Offsets: pieces that live at the same time do not overlap, and little is wasted.

use aerogel_machine::ALIGN;
use aerogel_plan::pack;

fn below(state: &mut u64, n: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % n
}

#[test]
fn live_pieces_never_overlap() {
    for seed in 0..200 {
        let mut state = seed;
        let pieces: Vec<(u64, usize, usize)> = (0..1 + below(&mut state, 60))
            .map(|_| {
                let from = below(&mut state, 30) as usize;
                // Some last for good, as outputs do.
                let to = match below(&mut state, 10) {
                    0 => usize::MAX,
                    _ => from + below(&mut state, 8) as usize,
                };
                (1 + below(&mut state, 5000), from, to)
            })
            .collect();
        let base = 64 * below(&mut state, 4);
        let (offsets, end) = pack(&pieces, base);
        for (i, (a, &at)) in pieces.iter().zip(&offsets).enumerate() {
            assert!(at >= base && at % ALIGN == 0 && at + a.0 <= end, "seed {seed}: piece {i}");
            for (b, &other) in pieces[..i].iter().zip(&offsets) {
                let together = a.1 <= b.2 && b.1 <= a.2;
                let apart = at + a.0 <= other || other + b.0 <= at;
                assert!(!together || apart, "seed {seed}: {a:?} at {at}, {b:?} at {other}");
            }
        }
    }
}

/// A forward and a backward: what the forward keeps is let go in the opposite order.
#[test]
fn a_stack_of_activations_has_no_holes() {
    let layers = 50;
    let mut pieces = vec![];
    for i in 0..layers {
        pieces.push((4096, i, 2 * layers - i));
        pieces.push((1024, i, i + 1));
        pieces.push((1024, 2 * layers - i, 2 * layers - i + 1));
    }
    let alive = |t: usize| pieces.iter().filter(|p| p.1 <= t && t <= p.2).map(|p| p.0).sum::<u64>();
    let most = (0..2 * layers + 2).map(alive).max().unwrap();
    let (_, end) = pack(&pieces, 0);
    assert!(end >= most && end as f64 <= 1.05 * most as f64, "{end} for {most}");
}

#[test]
fn nothing_takes_nothing() {
    assert_eq!(pack(&[], 128), (vec![], 128));
}
