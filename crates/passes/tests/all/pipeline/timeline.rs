//! When actions start, and what the ranks idle.

use aerogel_passes::pipeline::{Kind, PipelineError, Schedule, Seconds, Span, schedule, timeline};

use super::{published, zero_bubble};

#[test]
fn bubbles_are_as_published() {
    for (kind, p, m, s) in published() {
        let v = s.chunks;
        for (forward, backward) in [(1.0, 1.0), (1.0, 2.0), (0.3, 0.7)] {
            let t = timeline(&s, &Seconds::uniform(p * v, forward, backward)).unwrap();
            let bubble = (p - 1) as f64 / (v * m + p - 1) as f64;
            let total = (v * m + p - 1) as f64 * (forward + backward);
            assert!((t.bubble - bubble).abs() < 1e-9, "{kind} {p} {m}: {} {bubble}", t.bubble);
            assert!((t.total_seconds - total).abs() < 1e-9 * total, "{kind} {p} {m}");
            let idle = t.idle_seconds.iter().sum::<f64>() / (p as f64 * total);
            assert!((idle - bubble).abs() < 1e-9);
        }
    }
}

#[test]
fn weights_by_themselves_fill_the_bubble() {
    let seconds = Seconds { weights: vec![1.0; 2], ..Seconds::uniform(2, 1.0, 1.0) };
    let t = timeline(&zero_bubble(), &seconds).unwrap();
    assert_eq!((t.total_seconds, t.idle_seconds), (10.0, vec![1.0, 1.0]));
    let s = schedule(Kind::OneFOneB, 2, 3).unwrap();
    let t = timeline(&s, &Seconds::uniform(2, 1.0, 2.0)).unwrap();
    assert_eq!((t.total_seconds, t.idle_seconds), (12.0, vec![3.0, 3.0]));
}

#[test]
fn actions_start_when_the_rank_is_free_and_has_what_it_needs() {
    let spans = |s: &Schedule, seconds: &Seconds| {
        let t = timeline(s, seconds).unwrap();
        let of = |span: &Span| {
            let action = span.action.to_string();
            format!("{action}@{}:{}-{}", span.stage, span.start_seconds, span.end_seconds)
        };
        let ranks = t.ranks.iter().map(|spans| spans.iter().map(of).collect::<Vec<_>>().join(" "));
        ranks.collect::<Vec<_>>()
    };
    let uneven = Seconds {
        forward: vec![1.0, 2.0],
        backward: vec![3.0, 4.0],
        weights: Vec::new(),
        message: 0.5,
    };
    let s = schedule(Kind::OneFOneB, 2, 2).unwrap();
    let wanted = [
        "F0@0:0-1 F1@0:1-2 B0@0:8-11 B1@0:14-17",
        "F0@1:1.5-3.5 B0@1:3.5-7.5 F1@1:7.5-9.5 B1@1:9.5-13.5",
    ];
    assert_eq!(spans(&s, &uneven), wanted);
    // A rank that hands over to itself sends no message.
    let s = schedule(Kind::Interleaved { chunks: 2 }, 1, 1).unwrap();
    let wanted = ["F0@0:0-1 F0/1@1:1-3 B0/1@1:3-7 B0@0:7-10"];
    assert_eq!(spans(&s, &uneven), wanted);
}

#[test]
fn durations_that_are_none_are_refused() {
    let s = schedule(Kind::GPipe, 2, 2).unwrap();
    let good = Seconds::uniform(2, 1.0, 2.0);
    for (bad, wanted) in [
        (Seconds::uniform(3, 1.0, 2.0), "seconds of the forward has 3 entries, wanted 2"),
        (
            Seconds { weights: vec![1.0], ..good.clone() },
            "seconds of the weights has 1 entries, wanted 2",
        ),
        (
            Seconds { backward: vec![1.0, -1.0], ..good.clone() },
            "B of virtual stage 1 takes -1 seconds; give a finite number, 0 or more",
        ),
        (
            Seconds { message: f64::NAN, ..good },
            "a message takes NaN seconds; give a finite number, 0 or more",
        ),
    ] {
        assert_eq!(timeline(&s, &bad).unwrap_err().to_string(), format!("pipeline: {wanted}"));
    }
    let none = PipelineError::Length { what: "seconds of the weights", wanted: 2, got: 0 };
    assert_eq!(timeline(&zero_bubble(), &Seconds::uniform(2, 1.0, 2.0)), Err(none));
    let t = timeline(&s, &Seconds::uniform(2, 0.0, 0.0)).unwrap();
    assert_eq!((t.total_seconds, t.bubble), (0.0, 0.0));
}
