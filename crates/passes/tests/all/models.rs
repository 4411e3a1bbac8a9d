//! The passes over the real models, each kind of attention, one after another as a step has them.

use super::support::{difference, environment, run, step, tile};
use aerogel_graph::verify::verify;
use aerogel_graph::{Build, DType, Graph, Op, Rounding, Tensor};
use aerogel_models::{
    AttentionKind, Combine, Family, LayerKind, ModelConfig, WeightInit, train_graph,
};
use aerogel_passes::{
    Buckets, Compute, Optimizer, Order, Partials, Shards, Share, UpdateConfig, backward, precision,
    update,
};

pub fn config(family: Family, attention: AttentionKind, combine: Combine) -> ModelConfig {
    ModelConfig {
        family,
        layers: 2,
        heads: 2,
        embed: 8,
        mlp: 8,
        qk: 8,
        context: 16,
        vocab: 6,
        image: None,
        attention,
        combine,
        cycle: match attention {
            AttentionKind::Dense => vec![LayerKind::Dense],
            AttentionKind::Local => vec![LayerKind::Local],
            AttentionKind::Strided => vec![LayerKind::Strided, LayerKind::Local],
            AttentionKind::Fixed => vec![LayerKind::Block, LayerKind::Summary],
        },
        stride: 4,
        window: 4,
        columns: 1,
        dropout: 0.1,
        embed_dropout: 0.1,
        init: WeightInit::Code,
    }
}

pub fn models() -> Vec<(String, Graph)> {
    let mut list = vec![];
    for family in [Family::Gpt2, Family::SparseTransformer] {
        for attention in [
            AttentionKind::Dense,
            AttentionKind::Local,
            AttentionKind::Strided,
            AttentionKind::Fixed,
        ] {
            for combine in [Combine::Interleaved, Combine::Merged, Combine::Heads] {
                let name = format!("{family:?} {attention:?} {combine:?}");
                // Kinds of one part have nothing to combine.
                match train_graph(&config(family, attention, combine), 4) {
                    Ok(g) => list.push((name, g)),
                    Err(e) => assert_ne!(combine, Combine::Interleaved, "{name}: {e}"),
                }
            }
        }
    }
    assert!(list.len() >= 12, "{} models", list.len());
    list
}

#[test]
fn micro_batches_of_the_models_sum_to_the_whole_batch() {
    for (name, g) in models() {
        let whole = backward(&g).unwrap();
        verify(&whole).unwrap();
        let wanted = run(&whole, &mut environment(&whole), 0, Rounding::Exact);
        let states = step(&whole, 4, Order::Tree, Rounding::Exact);
        // Against the largest of all gradients: that of a key bias is 0 but for rounding.
        let largest = |t: &Tensor| t.data.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let grads = wanted.iter().filter(|(output, _)| output.starts_with("grad."));
        let scale = grads.map(|(_, t)| largest(t)).fold(0.0, f64::max);
        for (output, tensor) in &wanted {
            let own = largest(tensor).max(f64::MIN_POSITIVE);
            let error = difference(&states[&format!("sum.0.{output}")], tensor) * own;
            assert!(error <= 1e-12 * own.max(scale), "{name}, {output}: {error}");
        }
    }
}

#[test]
fn bf16_contracts_bf16_and_gives_gradients_in_f32() {
    for (name, g) in models() {
        let half = backward(&precision(&g, Compute::Bf16).unwrap()).unwrap();
        verify(&half).unwrap_or_else(|e| panic!("{name}: {e}"));
        for node in half.nodes() {
            let dtypes: Vec<DType> = node.ins.iter().map(|&v| half.ty(v).dtype).collect();
            let at = format!("{name}, {} at {}: {dtypes:?}", node.op.name(), node.scope);
            match node.op {
                Op::Einsum(_) => assert!(dtypes.iter().all(|d| *d == DType::Bf16), "{at}"),
                Op::Attend(_) => assert_eq!(dtypes[..3], [DType::Bf16; 3], "{at}"),
                Op::LinearCe(_) => assert_eq!(dtypes[..2], [DType::Bf16; 2], "{at}"),
                Op::Norm(_) => assert_eq!(dtypes[0], DType::Bf16, "{at}"),
                _ => {}
            }
        }
        for s in half.states() {
            let grad = half.find_output(&format!("grad.{}", s.name)).unwrap();
            assert_eq!(half.ty(grad), half.ty(s.value), "{name}, {}", s.name);
        }
        let whole = backward(&g).unwrap();
        let wanted = run(&whole, &mut environment(&whole), 0, Rounding::Declared);
        let got = run(&half, &mut environment(&half), 0, Rounding::Declared);
        let error = difference(&got["loss"], &wanted["loss"]);
        assert!(error > 0.0 && error <= 5e-3, "{name}: loss off by {error}");
    }
}

#[test]
fn an_adam_step_lowers_the_loss_of_every_model() {
    let kind = Optimizer::Adam { beta1: 0.9, beta2: 0.95, epsilon: 1e-8 };
    for (name, g) in models() {
        let whole = backward(&g).unwrap();
        let buckets = Buckets::of(&whole, &Shards::default(), &Partials::default());
        let applied = buckets.apply(&whole).unwrap();
        let (_, section) = tile(&applied, 1, Order::Tree).unwrap().pop().unwrap();
        let config = UpdateConfig { kind, weight_decay: 0.0, clip: 1.0, scale: None };
        let update = update(&section, &Share::whole(&buckets), &config).unwrap();
        let mut env = environment(&section);
        env.extend(environment(&update));
        let rate = aerogel_graph::Tensor::full(update.axes(), &[], 3e-3);
        env.insert("rate".to_owned(), rate);
        let mut losses = vec![];
        for _ in 0..4 {
            run(&section, &mut env, 0, Rounding::Declared);
            let outputs = run(&update, &mut env, 0, Rounding::Declared);
            assert_eq!(outputs["finite"].data[0], 1.0, "{name}");
            losses.push(outputs["loss"].data[0]);
        }
        assert!(losses.is_sorted_by(|a, b| a > b), "{name}: {losses:?}");
    }
}
