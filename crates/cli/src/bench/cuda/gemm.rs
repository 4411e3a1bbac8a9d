//! The products of the linear layers of models, in bf16.

use crate::bench::account::Rates;
use crate::bench::lab::{self, Lab, Linear, Measured, Way};
use crate::show;
use aerogel_graph::DType;
use serde_json::{Value, json};

/// A linear layer of a model.
pub type Layer = (&'static str, Linear);

const fn layer(model: &'static str, tokens: usize, from: usize, to: usize) -> Layer {
    (model, Linear { tokens, from, to })
}

/// 64 sequences of GPT-2 124M, 9 and 16 of 1.5B, 16 and 24 images of a Sparse Transformer of width
/// 256.
pub const LAYERS: [Layer; 17] = [
    layer("GPT-2 124M", 65_536, 768, 768),
    layer("GPT-2 124M", 65_536, 768, 3072),
    layer("GPT-2 124M", 65_536, 3072, 768),
    layer("GPT-2 1.5B", 9216, 1600, 1600),
    layer("GPT-2 1.5B", 9216, 1600, 6400),
    layer("GPT-2 1.5B", 9216, 6400, 1600),
    layer("GPT-2 1.5B", 16_384, 1600, 1600),
    layer("GPT-2 1.5B", 16_384, 1600, 6400),
    layer("GPT-2 1.5B", 16_384, 6400, 1600),
    layer("CIFAR-10, 16", 49_152, 256, 128),
    layer("CIFAR-10, 16", 49_152, 256, 256),
    layer("CIFAR-10, 16", 49_152, 256, 512),
    layer("CIFAR-10, 16", 49_152, 512, 256),
    layer("CIFAR-10, 24", 73_728, 256, 128),
    layer("CIFAR-10, 24", 73_728, 256, 256),
    layer("CIFAR-10, 24", 73_728, 256, 512),
    layer("CIFAR-10, 24", 73_728, 512, 256),
];
/// How many of them a quick look takes.
pub const QUICK: usize = 3;

/// The table, and an object for each of its rows.
pub fn measure(
    lab: Lab,
    layers: &[Layer],
    rates: Rates,
    tell: &dyn Fn(&str),
) -> anyhow::Result<(String, Vec<Value>)> {
    let head = ["product", "tokens", "layer", "ms", "TFLOP/s", "GB/s", "floor ms", "ratio"];
    let (mut rows, mut objects) = (vec![head.map(str::to_owned).to_vec()], vec![]);
    for &(model, layer) in layers {
        tell(&format!("products of {model}, {} to {}", layer.from, layer.to));
        for way in Way::ALL {
            let found = lab::linear(lab, layer, way, DType::Bf16)?;
            let floor = rates.floor(found.flops, found.bytes);
            rows.push(cells(model, layer, way, found, floor));
            objects.push(json!({
                "model": model, "tokens": layer.tokens, "from": layer.from, "to": layer.to,
                "way": way.name(), "dtype": "bf16", "seconds": found.seconds,
                "flops": found.flops, "bytes": found.bytes,
                "flops_per_second": found.flops_per_second(),
                "bytes_per_second": found.bytes_per_second(), "floor_seconds": floor,
                "ratio": found.seconds / floor,
            }));
        }
    }
    Ok((show::table(&rows), objects))
}

fn cells(model: &str, layer: Linear, way: Way, found: Measured, floor: f64) -> Vec<String> {
    vec![
        format!("{model}, {}", way.name()),
        show::count(layer.tokens as u64),
        format!("{} → {}", layer.from, layer.to),
        format!("{:.3}", 1e3 * found.seconds),
        format!("{:.0}", 1e-12 * found.flops_per_second()),
        format!("{:.0}", 1e-9 * found.bytes_per_second()),
        format!("{:.3}", 1e3 * floor),
        format!("{:.2}", found.seconds / floor),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use aerogel_train::Backend;

    #[test]
    fn every_layer_has_three_rows_beside_their_floors() {
        let layers = [layer("small", 32, 16, 24), layer("large", 64, 16, 8)];
        let rates = Rates { product_flops_per_second: 1e9, copy_bytes_per_second: 1e30 };
        let lab = Lab::new(Backend::Cpu, 1, 1);
        let (page, objects) = measure(lab, &layers, rates, &|_| ()).unwrap();
        assert_eq!((page.lines().count(), objects.len()), (7, 6));
        assert!(page.contains("large, weight gradient") && page.contains("16 → 24"), "{page}");
        for (object, (_, layer)) in objects.iter().zip(layers.iter().flat_map(|l| [l; 3])) {
            let flops = (2 * layer.tokens * layer.from * layer.to) as f64;
            assert_eq!(object["flops"].as_f64(), Some(flops));
            assert_eq!(object["floor_seconds"].as_f64(), Some(flops / 1e9));
            assert!(object["ratio"].as_f64() > Some(0.0));
        }
    }
}
