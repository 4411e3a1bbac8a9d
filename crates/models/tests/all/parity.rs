//! The losses of the first three steps are PyTorch's. `fixtures/README.md` says how its numbers
//! were made.

use super::common::{data, run, weights};
use aerogel_graph::{Build, State};
use aerogel_models::train_graph;
use aerogel_models::{AttentionKind, Combine, Family, LayerKind, ModelConfig, WeightInit};
use serde_json::Value;

/// A model of the file.
fn config(json: &Value) -> ModelConfig {
    let size = |key: &str| json[key].as_u64().unwrap() as usize;
    let text = |key: &str| json[key].as_str().unwrap();
    let image = json["image"].as_array().map(|list| {
        let sizes: Vec<_> = list.iter().map(|n| n.as_u64().unwrap() as usize).collect();
        sizes.try_into().unwrap()
    });
    let cycle = json["cycle"].as_array().unwrap().iter().map(|kind| match kind.as_str().unwrap() {
        "dense" => LayerKind::Dense,
        "local" => LayerKind::Local,
        "strided" => LayerKind::Strided,
        "block" => LayerKind::Block,
        "summary" => LayerKind::Summary,
        other => panic!("{other}"),
    });
    ModelConfig {
        family: match text("family") {
            "gpt2" => Family::Gpt2,
            _ => Family::SparseTransformer,
        },
        layers: size("layers"),
        heads: size("heads"),
        embed: size("embed"),
        mlp: size("mlp"),
        qk: size("qk"),
        context: size("context"),
        vocab: size("vocab"),
        image,
        attention: match text("attention") {
            "dense" => AttentionKind::Dense,
            "local" => AttentionKind::Local,
            "strided" => AttentionKind::Strided,
            "fixed" => AttentionKind::Fixed,
            other => panic!("{other}"),
        },
        combine: match text("combine") {
            "interleaved" => Combine::Interleaved,
            "merged" => Combine::Merged,
            "heads" => Combine::Heads,
            other => panic!("{other}"),
        },
        cycle: cycle.collect(),
        stride: size("stride"),
        window: size("window"),
        columns: size("columns"),
        dropout: 0.0,
        embed_dropout: 0.0,
        init: WeightInit::Paper,
    }
}

/// Adam's memory of one parameter.
struct Moments {
    m: Vec<f64>,
    v: Vec<f64>,
}

/// One AdamW step on all elements of a parameter, step numbers from 1.
fn adamw(p: &mut [f64], grad: &[f64], state: &mut Moments, decay: f64, recipe: &Value, step: i32) {
    let get = |key: &str| recipe[key].as_f64().unwrap();
    let (rate, eps, b1, b2) = (get("learning_rate"), get("eps"), get("beta1"), get("beta2"));
    for (i, (p, g)) in p.iter_mut().zip(grad).enumerate() {
        state.m[i] = b1 * state.m[i] + (1.0 - b1) * g;
        state.v[i] = b2 * state.v[i] + (1.0 - b2) * g * g;
        let m = state.m[i] / (1.0 - b1.powi(step));
        let v = state.v[i] / (1.0 - b2.powi(step));
        *p -= rate * decay * *p + rate * m / (v.sqrt() + eps);
    }
}

/// Mean losses and gradient norms of the first steps, exactly.
fn train(config: &ModelConfig, recipe: &Value, steps: i32) -> Vec<(f64, f64)> {
    let get = |key: &str| recipe[key].as_f64().unwrap();
    let batch = recipe["batch"].as_u64().unwrap() as usize;
    let mut g = train_graph(config, batch).unwrap();
    let loss = g.find_output("loss").unwrap();
    let parameters = g.states().to_vec();
    let wrt: Vec<_> = parameters.iter().map(|s| s.value).collect();
    for (s, grad) in parameters.iter().zip(aerogel_graph::gradients(&mut g, loss, &wrt).unwrap()) {
        // In the order of the parameter's axes, to walk over both at once.
        let grad = g.einsum(&[grad.unwrap()], &g.ty(s.value).axes.clone()).unwrap();
        g.output(&s.name, grad);
    }
    let mut env = weights(&g);
    data(&g, &mut env, config, batch);
    let zeros = |s: &State| vec![0.0; g.axes().count(&g.ty(s.value).axes)];
    let mut moments: Vec<_> =
        parameters.iter().map(|s| Moments { m: zeros(s), v: zeros(s) }).collect();
    let mut seen = vec![];
    for step in 1..=steps {
        let run = run(&g, &env);
        let tokens = run.outputs["tokens"].data[0];
        let all = parameters.iter().flat_map(|s| &run.outputs[&s.name].data);
        let norm = all.map(|x| (x / tokens).powi(2)).sum::<f64>().sqrt();
        seen.push((run.outputs["loss"].data[0] / tokens, norm));
        let factor = (get("clip") / (norm + 1e-6)).min(1.0) / tokens;
        for (s, moments) in parameters.iter().zip(&mut moments) {
            let grad: Vec<f64> = run.outputs[&s.name].data.iter().map(|x| x * factor).collect();
            let decays = s.class.unwrap().decays();
            let decay = if decays { get("weight_decay") } else { 0.0 };
            let p = &mut env.get_mut(&s.name).unwrap().data;
            adamw(p, &grad, moments, decay, recipe, step);
        }
    }
    seen
}

#[test]
fn the_first_losses_and_gradient_norms_are_those_of_pytorch() {
    let file: Value = serde_json::from_str(include_str!("../fixtures/losses.json")).unwrap();
    let models = file["models"].as_object().unwrap();
    assert_eq!(models.len(), 9);
    for (name, model) in models {
        let seen = train(&config(&model["config"]), &file["recipe"], 3);
        for (step, (loss, norm)) in seen.into_iter().enumerate() {
            let near = |got: f64, key: &str, tolerance: f64| {
                let wanted = model[key][step].as_f64().unwrap();
                let error = (got / wanted - 1.0).abs();
                assert!(error < tolerance, "{name} {key}[{step}]: {got}, wanted {wanted}");
            };
            near(loss, "f64", 1e-9);
            near(loss, "f32", 1e-6);
            near(norm, "gradient_norms_f64", 1e-8);
        }
    }
}
