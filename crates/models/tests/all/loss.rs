//! Before the first step, and the reach of the gradient.

use super::common::{data, every_attention, gpt2, initial, run, sparse, weights};
use aerogel_graph::{Role, gradients, verify::verify};
use aerogel_models::{eval_graph, train_graph};

#[test]
fn the_sparse_transformer_starts_at_the_log_of_the_vocabulary() {
    for (name, config) in every_attention(&sparse()) {
        let g = train_graph(&config, 2).unwrap();
        verify(&g).unwrap();
        let mut env = initial(&g, 1);
        data(&g, &mut env, &config, 2);
        let run = run(&g, &env);
        let (loss, tokens) = (run.outputs["loss"].data[0], run.outputs["tokens"].data[0]);
        assert_eq!(tokens, 96.0);
        assert!((loss / tokens - 11f64.ln()).abs() < 1e-12, "{name}: {loss}");
    }
}

#[test]
fn weights_of_zero_leave_tokens_out() {
    let config = gpt2();
    let g = eval_graph(&config, 2).unwrap();
    let mut env = weights(&g);
    data(&g, &mut env, &config, 2);
    let mut loss = |keep: &dyn Fn(usize) -> bool| {
        let weights = (0..24).map(|i| if keep(i) { 1.0 } else { 0.0 }).collect();
        super::common::set(&g, &mut env, "weights", weights);
        let run = run(&g, &env);
        (run.outputs["loss"].data[0], run.outputs["tokens"].data[0])
    };
    let (all, n) = loss(&|_| true);
    let (even, n_even) = loss(&|i| i % 2 == 0);
    let (odd, n_odd) = loss(&|i| i % 2 == 1);
    assert!((even + odd - all).abs() < 1e-10 * all);
    assert_eq!((n, n_even, n_odd), (24.0, 12.0, 12.0));
}

#[test]
fn the_gradient_reaches_every_parameter() {
    for base in [sparse(), gpt2()] {
        for (name, config) in every_attention(&base) {
            let mut g = train_graph(&config, 1).unwrap();
            let loss = g.find_output("loss").unwrap();
            let parameters: Vec<_> =
                g.states().iter().map(|s| (s.name.clone(), s.role, s.value)).collect();
            assert!(parameters.iter().all(|p| p.1 == Role::Parameter));
            let wrt: Vec<_> = parameters.iter().map(|p| p.2).collect();
            let grads = gradients(&mut g, loss, &wrt).unwrap();
            verify(&g).unwrap();
            for ((parameter, ..), grad) in parameters.iter().zip(&grads) {
                assert!(grad.is_some(), "{name}: {parameter}");
                g.output(parameter, grad.unwrap());
            }
            let mut env = weights(&g);
            data(&g, &mut env, &config, 1);
            let run = run(&g, &env);
            for (parameter, ..) in &parameters {
                let grad = &run.outputs[parameter].data;
                let largest = grad.iter().fold(0f64, |m, x| m.max(x.abs()));
                assert!(largest.is_finite(), "{name}: {parameter}");
                // A bias of the keys adds the same to all scores of a query: its gradient is 0.
                let none = parameter.ends_with("attn.k.bias");
                assert_eq!(largest > 1e-9, !none, "{name}: {parameter} {largest}");
            }
        }
    }
}
