//! Attention of dense and sparse patterns, in bf16, forward and backward.
//!
//! A sparse pattern should take the part of the dense time that it visits of the dense one's
//! blocks, or the time of the bytes that it cannot do without, if that is longer.

use crate::bench::account::Rates;
use crate::bench::lab::{self, Attention, Lab, Measured};
use crate::show;
use aerogel_graph::DType;
use aerogel_models::{Form, Part};
use serde_json::{Value, json};

/// Queries, keys and values of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub batch: usize,
    pub heads: usize,
    pub seq: usize,
    pub key_width: usize,
    pub value_width: usize,
    /// Positions of the local pattern, distance of two in the strided one, and block of the fixed
    /// one.
    pub window: usize,
    pub peers: Peers,
}

/// Milliseconds that others took for forward and backward on an H100: cuDNN of the dense pattern,
/// FlexAttention (PyTorch 2.11, the best size of blocks) of the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peers {
    pub dense: Option<f64>,
    pub local: Option<f64>,
    pub strided: Option<f64>,
    /// A window of [`WIDE`] positions; none where the local pattern has it.
    pub wide: Option<f64>,
    pub fixed: Option<f64>,
}

/// Positions of the wide window.
const WIDE: usize = 256;
/// Columns at the end of each block that the fixed pattern sees from everywhere.
const COLUMNS: usize = 32;

/// `peers`: dense, local, strided, fixed.
const fn shape(
    [batch, heads, seq, width, window]: [usize; 5],
    peers: [f64; 4],
    wide: Option<f64>,
) -> Shape {
    let [dense, local, strided, fixed] = peers;
    let (dense, local) = (Some(dense), Some(local));
    let peers = Peers { dense, local, strided: Some(strided), wide, fixed: Some(fixed) };
    Shape { batch, heads, seq, key_width: width, value_width: width, window, peers }
}

/// Long sequences of several widths, those that peers were measured with; the last one is a layer
/// of the CIFAR-10 Sparse Transformer.
pub const SHAPES: [Shape; 6] = [
    shape([16, 2, 3072, 128, 128], [0.650, 0.918, 1.562, 1.103], Some(0.470)),
    shape([4, 16, 12_288, 32, 128], [9.40, 0.656, 1.341, 8.18], Some(1.009)),
    // FlexAttention was measured with this window twice: the faster one.
    shape([4, 2, 16_384, 128, 256], [3.32, 0.714, 1.362, 3.47], None),
    shape([1, 64, 4096, 64, 128], [1.26, 0.977, 1.100, 2.42], Some(0.849)),
    shape([2, 2, 65_536, 128, 256], [28.2, 0.822, 1.338, 24.5], None),
    Shape {
        batch: 16,
        heads: 2,
        seq: 3072,
        key_width: 64,
        value_width: 128,
        window: 96,
        peers: Peers { dense: None, local: None, strided: None, wide: None, fixed: None },
    },
];

impl Shape {
    /// The patterns, the dense one first, each with what a peer took.
    pub fn forms(&self) -> Vec<(Form, Option<f64>)> {
        let (block, columns, peers) = (self.window, COLUMNS, self.peers);
        let one = |part, peer: Option<f64>| (Form::One(part), peer);
        let mut all = vec![
            one(Part::Dense, peers.dense),
            one(Part::Local { window: block }, peers.local),
            one(Part::Strided { stride: block }, peers.strided),
        ];
        if peers.wide.is_some() {
            all.push(one(Part::Local { window: WIDE }, peers.wide));
        }
        if peers.fixed.is_some() {
            let parts = [Part::Block { block }, Part::Summary { block, columns }];
            all.push((Form::Merged(parts), peers.fixed));
        }
        all
    }

    pub fn ask(&self, form: Form) -> Attention {
        let Shape { batch, heads, seq, key_width, value_width, .. } = *self;
        Attention { form, batch, seq, heads, key_width, value_width }
    }
}

/// Rows and columns of the blocks that density is counted in.
const BLOCK: usize = 128;

/// As [`part_density`], of all parts.
fn block_density(form: Form, seq: usize) -> f64 {
    form.parts().into_iter().map(|part| part_density(part, seq)).sum()
}

/// The part of the blocks of a causal pattern in which a part keeps any pair. Positions are taken
/// as they lie when it runs: those of a strided column next to one another, and of a summary the
/// columns alone, next to one another, from blocks before the query's.
fn part_density(part: Part, seq: usize) -> f64 {
    let blocks = seq.div_ceil(BLOCK);
    let all = (blocks * (blocks + 1) / 2) as f64;
    if let Part::Summary { block, columns } = part {
        let keys = |b: usize| (((b + 1) * BLOCK).min(seq) - 1) / block * columns;
        return (0..blocks).map(|b| keys(b).div_ceil(BLOCK)).sum::<usize>() as f64 / all;
    }
    let first_key = |query: usize| match part {
        Part::Local { window } => (query + 1).saturating_sub(window),
        Part::Strided { stride } => query / (seq / stride) * (seq / stride),
        Part::Block { block } => query / block * block,
        Part::Dense | Part::Summary { .. } => 0,
    };
    let visited: usize = (0..blocks).map(|b| b + 1 - first_key(b * BLOCK) / BLOCK).sum();
    visited as f64 / all
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
        "peer ms",
        "faster",
    ];
    let (mut rows, mut objects) = (vec![head.map(str::to_owned).to_vec()], vec![]);
    for &shape in shapes {
        tell(&format!("attention of {} positions", show::count(shape.seq as u64)));
        let mut dense = None;
        for (form, peer_ms) in shape.forms() {
            let row = Row::measure(lab, shape, form, rates, dense)?;
            let row = Row { peer_seconds: peer_ms.map(|ms| 1e-3 * ms), ..row };
            dense.get_or_insert((row.seconds(), row.forward.bytes + row.backward.bytes));
            rows.push(row.cells());
            objects.push(row.object());
        }
    }
    let note = "forward without marks between kernels, backward by marks; `blocks` is the part of \
                dense attention's that a pattern visits;\nallowed is that part of the dense time, \
                or the least bytes at the copy rate, if that is longer; dense: FLOPs at the \
                product's rate;\nfixed: the query's block, and the last columns of those before \
                it, whose backward counts all kernels;\npeer: FlexAttention on an H100, recorded, \
                dense cuDNN; faster: its time by ours\n";
    Ok((format!("{}{note}", show::table(&rows)), objects))
}

struct Row {
    shape: Shape,
    form: Form,
    forward: Measured,
    backward: Measured,
    block_density: f64,
    allowed_seconds: f64,
    peer_seconds: Option<f64>,
}

impl Row {
    fn measure(
        lab: Lab,
        shape: Shape,
        form: Form,
        rates: Rates,
        dense: Option<(f64, u64)>,
    ) -> anyhow::Result<Row> {
        let ask = shape.ask(form);
        let forward = lab::attention_forward(lab, ask, DType::Bf16)?;
        let [_, backward] = lab::attention(lab, ask, DType::Bf16)?;
        let block_density = block_density(form, shape.seq);
        let allowed_seconds = match dense {
            None => rates.floor(forward.flops + backward.flops, forward.bytes + backward.bytes),
            Some((seconds, bytes)) => (block_density * seconds).max(rates.floor(0, bytes)),
        };
        let peer_seconds = None;
        Ok(Row { shape, form, forward, backward, block_density, allowed_seconds, peer_seconds })
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

    /// The peer's time by ours.
    fn faster(&self) -> Option<f64> {
        self.peer_seconds.map(|peer| peer / self.seconds())
    }

    fn cells(&self) -> Vec<String> {
        let Shape { batch, heads, seq, key_width, value_width, .. } = self.shape;
        let width = match key_width == value_width {
            true => key_width.to_string(),
            false => format!("({key_width}, {value_width})"),
        };
        vec![
            format!("{} × {width} × {}", show::count(seq as u64), batch * heads),
            match self.form {
                Form::Merged([Part::Block { block }, Part::Summary { columns, .. }]) => {
                    format!("fixed({block},{columns})")
                }
                form => form.pattern().to_string(),
            },
            format!("{:.3}", 1e3 * self.forward.seconds),
            format!("{:.3}", 1e3 * self.backward.seconds),
            format!("{:.1}", 1e-12 * self.flops_per_second()),
            format!("{:.2} %", 100.0 * self.block_density),
            format!("{:.3}", 1e3 * self.allowed_seconds),
            format!("{:.2}", self.ratio()),
            self.peer_seconds.map_or(String::new(), |s| format!("{:.3}", 1e3 * s)),
            self.faster().map_or(String::new(), |times| format!("{times:.2}")),
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
            "pattern": self.form.pattern().to_string(), "dtype": "bf16", "tokens": s.seq,
            "batch": s.batch, "heads": s.heads, "key_width": s.key_width,
            "value_width": s.value_width, "forward": phase(self.forward),
            "backward": phase(self.backward), "seconds": self.seconds(),
            "flops_per_second": self.flops_per_second(), "block_density": self.block_density,
            "allowed_seconds": self.allowed_seconds, "ratio": self.ratio(),
            "peer_seconds": self.peer_seconds, "times_faster_than_peer": self.faster(),
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
            Part::Summary { block, columns } => key / columns < query / block,
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
            Part::Summary { block: 128, columns: 32 },
            Part::Summary { block: 64, columns: 64 },
        ] {
            let (mut visited, mut all) = (0, 0);
            for (rows, columns) in (0..8).flat_map(|r| (0..=r).map(move |c| (r, c))) {
                let mut pairs = (0..128).flat_map(|q| (0..128).map(move |k| (q, k)));
                all += 1;
                visited += usize::from(pairs.any(|(q, k)| {
                    let (q, k) = (rows * 128 + q, columns * 128 + k);
                    let exists = match part {
                        Part::Summary { block, columns } => k < seq / block * columns,
                        _ => k <= q,
                    };
                    exists && keeps(part, q, k)
                }));
            }
            let wanted = f64::from(visited as u32) / f64::from(all);
            assert_eq!(block_density(Form::One(part), seq), wanted, "{part:?}");
        }
    }

    #[test]
    fn every_shape_has_a_dense_row_and_sparse_ones_beside_it() {
        let peers = [1.0, 2.0, 3.0, 4.0];
        let shapes = [Shape { key_width: 4, ..shape([2, 2, 256, 8, 64], peers, None) }];
        let rates = Rates { product_flops_per_second: 1e9, copy_bytes_per_second: 1e30 };
        let lab = Lab::new(Backend::Cpu, 1, 1);
        let (page, rows) = measure(lab, &shapes, rates, &|_| ()).unwrap();
        assert!(page.contains("256 × (4, 8) × 4"), "{page}");
        assert!(page.contains("fixed(64,32)"), "{page}");
        assert_eq!(rows.len(), 4);
        let number = |row: &Value, name: &str| row[name].as_f64().unwrap();
        let dense = number(&rows[0], "seconds");
        let flops = (256 * 257 / 2 * 4) as f64 * f64::from(2 * 12 + 4 + 6 * 4 + 4 * 8 + 6);
        assert!((number(&rows[0], "allowed_seconds") - flops / 1e9).abs() < 1e-12);
        for row in &rows[1..] {
            let allowed = number(row, "block_density") * dense;
            assert_eq!(number(row, "allowed_seconds"), allowed, "{row}");
            assert!(number(&row["backward"], "seconds") > 0.0);
            let faster = number(row, "peer_seconds") / number(row, "seconds");
            assert_eq!(number(row, "times_faster_than_peer"), faster);
        }
    }
}
