//! `bench cuda`: what a GPU reaches: copies, the products and attention of models that people
//! train, and their training steps, each beside its floor.

mod attention;
mod gemm;
mod steps;

use crate::bench::account::Rates;
use crate::bench::cpu::{COPIED, LARGE, VERSION};
use crate::bench::lab::{self, Lab, Linear, Way};
use crate::hardware::Hardware;
use crate::show;
use aerogel_cuda::Context;
use aerogel_graph::DType;
use aerogel_train::{Backend, TrainError};
use clap::ValueEnum;
use serde_json::{Value, json};

/// A part of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Copies that no cache holds, and the cost of starting a kernel
    Copy,
    /// Products of linear layers
    Gemm,
    /// Attention, forward and backward
    Attention,
    /// Training steps
    Step,
}

/// What to measure, and how long.
pub struct Plan {
    pub quick: bool,
    pub only: Vec<What>,
}

impl Plan {
    fn wants(&self, what: What) -> bool {
        self.only.is_empty() || self.only.contains(&what)
    }
}

/// Numbers of the map whose time is the cost of a start.
const FEW: usize = 256;

/// Measures; gives the page and the object. `tell` hears what is measured next.
pub fn measure(plan: &Plan, tell: &dyn Fn(&str)) -> anyhow::Result<(String, Value)> {
    Backend::Cuda.check(1)?;
    let hardware = Hardware::look();
    let lab = match plan.quick {
        true => Lab { batch_seconds: 0.02, ..Lab::new(Backend::Cuda, 0, 3) },
        false => Lab::new(Backend::Cuda, 0, 7),
    };
    let name = hardware.gpus.first().map_or("no GPU", |g| &g.name);
    let mut page = format!("{name}\n");
    // The floors of all else are made from these two, asked for or not.
    tell("copies and the rate of a large product");
    let rates = rates(lab, LARGE, COPIED)?;
    page += &rates_page(rates);
    let mut start_seconds = None;
    if plan.wants(What::Copy) {
        let seconds = lab::map(lab, FEW)?.seconds;
        page += &format!("a kernel that does nothing else starts every {:.2} µs\n", 1e6 * seconds);
        start_seconds = Some(seconds);
    }
    let (mut products, mut attentions) = (vec![], vec![]);
    if plan.wants(What::Gemm) {
        let list = if plan.quick { &gemm::LAYERS[..gemm::QUICK] } else { &gemm::LAYERS };
        let (text, found) = gemm::measure(lab, list, rates, tell)?;
        page += &format!("\n{text}");
        products = found;
    }
    if plan.wants(What::Attention) {
        let list = if plan.quick { &attention::SHAPES[..2] } else { &attention::SHAPES };
        let (text, found) = attention::measure(lab, list, rates, tell)?;
        page += &format!("\n{text}");
        attentions = found;
    }
    let mut found = steps::Found::default();
    if plan.wants(What::Step) {
        let (list, count) =
            if plan.quick { (&steps::ASKS[..1], 5) } else { (&steps::ASKS[..], 12) };
        let free_bytes = Context::new(0).and_then(|c| c.free_bytes()).map_err(TrainError::from)?;
        found = steps::measure(Backend::Cuda, list, (count, free_bytes), rates, tell)?;
        page += &format!("\n{}", found.page());
    }
    let object = json!({
        "version": VERSION, "aerogel": env!("CARGO_PKG_VERSION"), "machine": hardware,
        "quick": plan.quick, "rates": rates, "start_seconds": start_seconds,
        "products": products, "attention": attentions, "steps": found.accounts,
        "skipped": found.skipped,
    });
    Ok((page, object))
}

/// The rates of a product and of a copy, both in steady work.
fn rates(lab: Lab, product: Linear, copied: usize) -> anyhow::Result<Rates> {
    let product = lab::linear(lab, product, Way::Forward, DType::Bf16)?;
    Ok(Rates {
        product_flops_per_second: product.flops_per_second(),
        copy_bytes_per_second: lab::map(lab, copied)?.bytes_per_second(),
    })
}

fn rates_page(rates: Rates) -> String {
    format!(
        "copies {}, read and written; a product of 8,192³ in bf16 {}: floors are made from these\n",
        show::scaled(rates.copy_bytes_per_second, "B/s"),
        show::scaled(rates.product_flops_per_second, "FLOP/s"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::lab::{attention_graph, planned};
    use aerogel_cuda::{Architecture, Chip, sources};
    use aerogel_graph::Graph;
    use aerogel_machine::Kind;
    use aerogel_models::Form;
    use std::collections::BTreeSet;

    /// What a graph asks a GPU's compiler for; it holds one kernel of the kind for each phase.
    fn kernels(graph: Graph, kind: Kind, count: usize) -> BTreeSet<String> {
        let program = planned(Lab::new(Backend::Cuda, 1, 1), graph).unwrap();
        let accounts = program.sections[0].accounts();
        assert_eq!(accounts.iter().filter(|a| a.kind == kind).count(), count, "{accounts:?}");
        // Columns of blocks are gathered first.
        let copies = accounts.iter().filter(|a| a.kind == Kind::Copy).count();
        assert!(copies == 0 || count == 4, "{accounts:?}");
        let chip = Chip { architecture: Architecture::SM90A };
        sources(&program, chip).unwrap().iter().map(|s| format!("{s:?}")).collect()
    }

    /// Every shape has kernels, with no copy beside them, and few of them are to be compiled.
    #[test]
    fn all_shapes_can_run_on_a_gpu() {
        let mut all = BTreeSet::new();
        for (_, layer) in gemm::LAYERS.into_iter().chain([("", LARGE)]) {
            for way in Way::ALL {
                let mut g = Graph::new();
                layer.product(&mut g, way, DType::Bf16, 0).unwrap();
                all.extend(kernels(g, Kind::Product, 1));
            }
        }
        assert!(all.len() <= 24, "{} kernels of products", all.len());
        all.clear();
        for shape in attention::SHAPES {
            for (form, _) in shape.forms() {
                let graph = attention_graph(shape.ask(form), DType::Bf16).unwrap();
                let count = if matches!(form, Form::Merged(_)) { 4 } else { 2 };
                all.extend(kernels(graph, Kind::Attention, count));
            }
        }
        assert!(all.len() <= 64, "{} kernels with those of attention", all.len());
    }

    /// Rates of the CPU, on little work.
    #[test]
    fn rates_come_from_work_and_time() {
        let lab = Lab::new(Backend::Cpu, 1, 1);
        let found = rates(lab, Linear { tokens: 64, from: 64, to: 64 }, 1 << 12).unwrap();
        assert!(found.product_flops_per_second > 1e6 && found.copy_bytes_per_second > 1e6);
        let half = found.product_flops_per_second / 2.0;
        assert_eq!(found.floor(half as u64, 0), half.floor() / found.product_flops_per_second);
    }

    #[test]
    fn all_is_measured_unless_a_part_is_named() {
        let all = Plan { quick: false, only: vec![] };
        assert!(What::value_variants().iter().all(|w| all.wants(*w)));
        let one = Plan { quick: false, only: vec![What::Gemm] };
        assert!(one.wants(What::Gemm) && !one.wants(What::Step));
    }
}
