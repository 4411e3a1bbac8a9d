//! Attention of dense and sparse patterns, in bf16, forward and backward.
//!
//! A sparse pattern should take the part of the dense time that it visits of the dense one's
//! blocks, or the time of the bytes that it cannot do without, if that is longer.

use crate::bench::account::Rates;
use crate::bench::lab::{self, Attention, Lab, Measured};
use crate::show;
use aerogel_graph::DType;
use aerogel_models::Part;
use serde_json::{Value, json};

/// Queries, keys and values of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub batch: usize,
    pub heads: usize,
    pub seq: usize,
    pub key_width: usize,
    pub value_width: usize,
    /// Positions of the local pattern, and distance of two in the strided one.
    pub window: usize,
}

const fn shape(batch: usize, heads: usize, seq: usize, width: usize, window: usize) -> Shape {
    Shape { batch, heads, seq, key_width: width, value_width: width, window }
}

/// Long sequences of several widths; the last one is a layer of the CIFAR-10 Sparse Transformer.
pub const SHAPES: [Shape; 6] = [
    shape(16, 2, 3072, 128, 128),
    shape(4, 16, 12_288, 32, 128),
    shape(4, 2, 16_384, 128, 256),
    shape(1, 64, 4096, 64, 128),
    shape(2, 2, 65_536, 128, 256),
    Shape { key_width: 64, ..shape(16, 2, 3072, 128, 96) },
];

/// Rows and columns of the blocks that density is counted in.
const BLOCK: usize = 128;

/// The part of the blocks of a causal pattern in which a part keeps any pair. A strided part is
/// taken with the positions of each column next to one another, which is how it runs.
fn block_density(part: Part, seq: usize) -> f64 {
    let first_key = |query: usize| match part {
        Part::Local { window } => (query + 1).saturating_sub(window),
        Part::Strided { stride } => query / (seq / stride) * (seq / stride),
        Part::Block { block } => query / block * block,
        Part::Dense | Part::Summary { .. } => 0,
    };
    let blocks = seq.div_ceil(BLOCK);
    let visited: usize = (0..blocks).map(|b| b + 1 - first_key(b * BLOCK) / BLOCK).sum();
    visited as f64 / (blocks * (blocks + 1) / 2) as f64
}

/// The table, and an object for each of its rows.
pub fn measure(
    lab: Lab,
    shapes: &[Shape],
    rates: Rates,
    tell: &dyn Fn(&str),
) -> anyhow::Result<(String, Vec<Value>)> {
    let head = [
        "attention, T × D × heads",
        "pattern",
        "forward ms",
        "backward ms",
        "TFLOP/s",
        "blocks",
        "allowed ms",
        "ratio",
    ];
    let (mut rows, mut objects) = (vec![head.map(str::to_owned).to_vec()], vec![]);
    for &shape in shapes {
        tell(&format!("attention of {} positions", show::count(shape.seq as u64)));
        let window = shape.window;
        let parts = [Part::Dense, Part::Local { window }, Part::Strided { stride: window }];
        let mut dense_seconds = None;
        for part in parts {
            let row = Row::measure(lab, shape, part, rates, dense_seconds)?;
            dense_seconds.get_or_insert(row.seconds());
            rows.push(row.cells());
            objects.push(row.object());
        }
    }
    let note = "forward without marks between kernels, backward by marks; `blocks` is the part of \
                dense attention's that a pattern visits;\nallowed is that part of the dense time, \
                or the least bytes at the copy rate, if that is longer; dense: FLOPs at the \
                product's rate\n";
    Ok((format!("{}{note}", show::table(&rows)), objects))
}

struct Row {
    shape: Shape,
    part: Part,
    forward: Measured,
    backward: Measured,
    block_density: f64,
    allowed_seconds: f64,
}

impl Row {
    fn measure(
        lab: Lab,
        shape: Shape,
        part: Part,
        rates: Rates,
        dense_seconds: Option<f64>,
    ) -> anyhow::Result<Row> {
        let Shape { batch, heads, seq, key_width, value_width, .. } = shape;
        let ask = Attention { part, batch, seq, heads, key_width, value_width };
        let forward = lab::attention_forward(lab, ask, DType::Bf16)?;
        let [_, backward] = lab::attention(lab, ask, DType::Bf16)?;
        let block_density = block_density(part, seq);
        let bytes = forward.bytes + backward.bytes;
        let allowed_seconds = match dense_seconds {
            None => rates.floor(forward.flops + backward.flops, bytes),
            Some(dense) => (block_density * dense).max(rates.floor(0, bytes)),
        };
        Ok(Row { shape, part, forward, backward, block_density, allowed_seconds })
    }

    fn seconds(&self) -> f64 {
        self.forward.seconds + self.backward.seconds
    }

    fn flops_per_second(&self) -> f64 {
        (self.forward.flops + self.backward.flops) as f64 / self.seconds()
    }

    fn ratio(&self) -> f64 {
        self.seconds() / self.allowed_seconds
    }

    fn cells(&self) -> Vec<String> {
        let Shape { batch, heads, seq, key_width, value_width, .. } = self.shape;
        let width = match key_width == value_width {
            true => key_width.to_string(),
            false => format!("({key_width}, {value_width})"),
        };
        vec![
            format!("{} × {width} × {}", show::count(seq as u64), batch * heads),
            self.part.pattern().to_string(),
            format!("{:.3}", 1e3 * self.forward.seconds),
            format!("{:.3}", 1e3 * self.backward.seconds),
            format!("{:.1}", 1e-12 * self.flops_per_second()),
            format!("{:.2} %", 100.0 * self.block_density),
            format!("{:.3}", 1e3 * self.allowed_seconds),
            format!("{:.2}", self.ratio()),
        ]
    }

    fn object(&self) -> Value {
        let phase = |m: Measured| {
            json!({
                "seconds": m.seconds, "flops": m.flops, "bytes": m.bytes,
                "flops_per_second": m.flops_per_second(),
                "bytes_per_second": m.bytes_per_second(),
            })
        };
        let s = self.shape;
        json!({
            "pattern": self.part.pattern().to_string(), "dtype": "bf16", "tokens": s.seq,
            "batch": s.batch, "heads": s.heads, "key_width": s.key_width,
            "value_width": s.value_width, "forward": phase(self.forward),
            "backward": phase(self.backward), "seconds": self.seconds(),
            "flops_per_second": self.flops_per_second(), "block_density": self.block_density,
            "allowed_seconds": self.allowed_seconds, "ratio": self.ratio(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aerogel_train::Backend;

    /// Beside a count of every pair.
    #[test]
    fn blocks_are_those_that_hold_a_pair() {
        let seq = 1024;
        let keeps = |part: Part, query: usize, key: usize| match part {
            Part::Local { window } => query - key < window,
            Part::Strided { stride } => query / (seq / stride) == key / (seq / stride),
            Part::Block { block } => query / block == key / block,
            _ => true,
        };
        for part in [
            Part::Dense,
            Part::Local { window: 1 },
            Part::Local { window: 128 },
            Part::Local { window: 300 },
            Part::Strided { stride: 4 },
            Part::Strided { stride: 32 },
            Part::Block { block: 512 },
        ] {
            let (mut visited, mut all) = (0, 0);
            for (rows, columns) in (0..8).flat_map(|r| (0..=r).map(move |c| (r, c))) {
                let mut pairs = (0..128).flat_map(|q| (0..128).map(move |k| (q, k)));
                all += 1;
                visited += usize::from(pairs.any(|(q, k)| {
                    let (q, k) = (rows * 128 + q, columns * 128 + k);
                    k <= q && keeps(part, q, k)
                }));
            }
            let wanted = f64::from(visited as u32) / f64::from(all);
            assert_eq!(block_density(part, seq), wanted, "{part:?}");
        }
    }

    #[test]
    fn every_shape_has_a_dense_row_and_two_sparse_ones_beside_it() {
        let shapes = [Shape { key_width: 4, ..shape(2, 2, 256, 8, 32) }];
        let rates = Rates { product_flops_per_second: 1e9, copy_bytes_per_second: 1e30 };
        let lab = Lab::new(Backend::Cpu, 1, 1);
        let (page, rows) = measure(lab, &shapes, rates, &|_| ()).unwrap();
        assert!(page.contains("256 × (4, 8) × 4"), "{page}");
        assert_eq!(rows.len(), 3);
        let number = |row: &Value, name: &str| row[name].as_f64().unwrap();
        let dense = number(&rows[0], "seconds");
        let flops = (256 * 257 / 2 * 4) as f64 * f64::from(2 * 12 + 4 + 6 * 4 + 4 * 8 + 6);
        assert!((number(&rows[0], "allowed_seconds") - flops / 1e9).abs() < 1e-12);
        for row in &rows[1..] {
            let allowed = number(row, "block_density") * dense;
            assert_eq!(number(row, "allowed_seconds"), allowed, "{row}");
            assert!(number(&row["backward"], "seconds") > 0.0);
        }
    }
}
