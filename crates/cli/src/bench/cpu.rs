//! `bench cpu`: what this machine reaches, beside its limits.

use crate::bench::account::{Rates, StepAccount};
use crate::bench::lab::{self, Attention, Lab, Linear, Measured, Way};
use crate::hardware::Hardware;
use crate::show;
use aerogel_cpu::peak::{Peak, copy_bytes_per_second, peak_bf16, peak_f32};
use aerogel_cpu::pool::Pool;
use aerogel_graph::DType;
use aerogel_models::{Form, Part};
use aerogel_recipe::Recipe;
use aerogel_train::{Backend, Workspace, time_steps};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::path::Path;

/// The model whose step is timed: that of the comparison with PyTorch.
const SMALL_GPT: &str = include_str!("../../../../bench/small-gpt.toml");
/// Width of a head.
const HEAD_WIDTH: usize = 64;
/// f32 that are copied on a GPU: a GiB, read and written.
pub const COPIED: usize = 1 << 27;
/// Rows and columns of the matrices whose product is a GPU's rate.
pub const LARGE: Linear = Linear { tokens: 8192, from: 8192, to: 8192 };
/// Version of the JSON object.
pub const VERSION: u32 = 1;
/// The dtypes of kernels, with their names in recipes.
const DTYPES: [(DType, &str); 2] = [(DType::F32, "f32"), (DType::Bf16, "bf16")];

/// A part of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Multiply-adds between registers
    Peak,
    /// Copies that no cache holds
    Copy,
    /// Products of square matrices
    Gemm,
    /// Attention, forward and backward
    Attention,
    /// Steps of a small GPT
    Step,
}

/// How long to measure, and on how many threads.
pub struct Plan {
    pub threads: usize,
    pub quick: bool,
    pub only: Vec<What>,
}

impl Plan {
    fn wants(&self, what: What) -> bool {
        self.only.is_empty() || self.only.contains(&what)
    }

    /// The first where there is time, else the second.
    fn size(&self, long: usize, quick: usize) -> usize {
        if self.quick { quick } else { long }
    }
}

/// The limits that were asked for.
struct Limits {
    f32: Option<Peak>,
    bf16: Option<Peak>,
    copy_bytes_per_second: Option<f64>,
}

impl Limits {
    fn of(&self, dtype: DType) -> Option<f64> {
        let peak = if dtype == DType::Bf16 { self.bf16.or(self.f32) } else { self.f32 };
        peak.map(|p| p.flops_per_second)
    }
}

/// Measures; gives the page and the object. `tell` hears what is measured next.
pub fn measure(plan: &Plan, tell: &dyn Fn(&str)) -> anyhow::Result<(String, Value)> {
    let hardware = Hardware::look();
    let limits = limits(plan, tell)?;
    let (mut rows, mut products, mut attentions) = (vec![heading()], vec![], vec![]);
    limit_rows(&limits, &mut rows);
    let mut rates = [f64::NAN; 2];
    // A step's floors need the rates of products, asked for or not.
    if plan.wants(What::Gemm) || plan.wants(What::Step) {
        tell("products");
        for (rate, (dtype, name)) in rates.iter_mut().zip(DTYPES) {
            let n = plan.size(1024, 512);
            let found = lab::product(on_cpu(plan.threads, plan.size(25, 7)), n, dtype)?;
            *rate = found.flops_per_second();
            if plan.wants(What::Gemm) {
                rows.push(kernel_row(&format!("product {n}³, {name}"), found, limits.of(dtype)));
                products.push(kernel(found, limits.of(dtype), json!({"dtype": name, "size": n})));
            }
        }
    }
    if plan.wants(What::Attention) {
        tell("attention");
        attention(plan, &limits, &mut rows, &mut attentions)?;
    }
    let mut page = format!(
        "{}, {}, {}; caches {}\n{}",
        hardware.cpu,
        show::plural(plan.threads as u64, "thread", "s"),
        hardware.level,
        hardware.caches_text(),
        show::table(&rows)
    );
    let mut steps = vec![];
    if plan.wants(What::Step) {
        for ((_, name), product_flops_per_second) in DTYPES.into_iter().zip(rates) {
            tell(&format!("a training step in {name}"));
            let copy_bytes_per_second = match limits.copy_bytes_per_second {
                Some(rate) => rate,
                None => copy(plan)?,
            };
            let rates = Rates { product_flops_per_second, copy_bytes_per_second };
            let account = small_gpt(plan, name, rates)?;
            page += &format!("\n{}", account.page());
            steps.push(account);
        }
    }
    let object = json!({
        "version": VERSION, "aerogel": env!("CARGO_PKG_VERSION"), "machine": hardware,
        "threads": plan.threads, "quick": plan.quick, "limits": limits_object(&limits),
        "products": products, "attention": attentions, "steps": steps,
    });
    Ok((page, object))
}

/// A step's rates where nothing else is measured: a product in its dtype, and a copy. A CPU
/// multiplies f16 as f32, a GPU as fast as bf16.
pub fn rates(backend: Backend, dtype: &str, threads: usize) -> anyhow::Result<Rates> {
    let dtype = match (dtype, backend) {
        ("bf16", _) | ("f16", Backend::Cuda) => DType::Bf16,
        _ => DType::F32,
    };
    if backend == Backend::Cuda {
        let lab = Lab::new(backend, threads, 9);
        let product = lab::linear(lab, LARGE, Way::Forward, dtype)?;
        return Ok(Rates {
            product_flops_per_second: product.flops_per_second(),
            copy_bytes_per_second: lab::map(lab, COPIED)?.bytes_per_second(),
        });
    }
    let product = lab::product(on_cpu(threads, 9), 1024, dtype)?;
    let plan = Plan { threads, quick: true, only: vec![] };
    Ok(Rates {
        product_flops_per_second: product.flops_per_second(),
        copy_bytes_per_second: copy(&plan)?,
    })
}

fn limits(plan: &Plan, tell: &dyn Fn(&str)) -> anyhow::Result<Limits> {
    let mut limits = Limits { f32: None, bf16: None, copy_bytes_per_second: None };
    if plan.wants(What::Peak) {
        tell("multiply-adds");
        let (pool, repeats) = (Pool::new(plan.threads)?, plan.size(15, 5));
        limits.f32 = Some(peak_f32(&pool, repeats));
        limits.bf16 = peak_bf16(&pool, repeats);
    }
    if plan.wants(What::Copy) {
        tell("copies");
        limits.copy_bytes_per_second = Some(copy(plan)?);
    }
    Ok(limits)
}

fn copy(plan: &Plan) -> anyhow::Result<f64> {
    let bytes = plan.size(256 << 20, 64 << 20);
    Ok(copy_bytes_per_second(&Pool::new(plan.threads)?, bytes, plan.size(9, 3)))
}

fn attention(
    plan: &Plan,
    limits: &Limits,
    rows: &mut Vec<Vec<String>>,
    objects: &mut Vec<Value>,
) -> anyhow::Result<()> {
    let (long, stride) = (plan.size(3072, 768), plan.size(96, 24));
    let asks = [
        (Part::Dense, plan.size(1024, 256), 8),
        (Part::Local { window: stride }, long, 4),
        (Part::Strided { stride }, long, 4),
    ];
    let asks = asks.map(|(part, seq, heads)| {
        let (key_width, value_width) = (HEAD_WIDTH, HEAD_WIDTH);
        Attention { form: Form::One(part), batch: 1, seq, heads, key_width, value_width }
    });
    for ask in asks {
        for (dtype, name) in DTYPES {
            let found = lab::attention(on_cpu(plan.threads, plan.size(15, 5)), ask, dtype)?;
            let pattern = ask.form.pattern().to_string();
            for (found, phase) in found.into_iter().zip(["forward", "backward"]) {
                let words = format!("attention {pattern} {}, {name}, {phase}", ask.seq);
                rows.push(kernel_row(&words, found, limits.of(dtype)));
                let facts = json!({
                    "pattern": pattern, "phase": phase, "dtype": name, "tokens": ask.seq,
                    "heads": ask.heads, "head_width": HEAD_WIDTH,
                });
                objects.push(kernel(found, limits.of(dtype), facts));
            }
        }
    }
    Ok(())
}

fn small_gpt(plan: &Plan, dtype: &'static str, rates: Rates) -> anyhow::Result<StepAccount> {
    let overrides =
        [format!("precision.compute={dtype}"), format!("parallel.threads={}", plan.threads)];
    let recipe = Recipe::parse(SMALL_GPT, "small-gpt.toml", Path::new("."), &overrides, false)?;
    let nowhere = Workspace::under(Path::new("/nonexistent"));
    let times = time_steps(&recipe, &nowhere, plan.size(3, 1), plan.size(21, 3))?;
    Ok(StepAccount::new("small-gpt", dtype, &times, rates))
}

fn on_cpu(threads: usize, repeats: usize) -> Lab {
    Lab::new(Backend::Cpu, threads, repeats)
}

fn heading() -> Vec<String> {
    ["", "ms", "reached", "limit", "share"].map(str::to_owned).to_vec()
}

fn limit_rows(limits: &Limits, rows: &mut Vec<Vec<String>>) {
    let mut add = |name: String, rate: String| rows.push(vec![name, String::new(), rate]);
    for (dtype, peak) in [("f32", limits.f32), ("bf16", limits.bf16)] {
        if let Some(p) = peak {
            let rate = show::scaled(p.flops_per_second, "FLOP/s");
            add(format!("limit of {dtype}: {}", p.instruction), rate);
        }
    }
    if let Some(rate) = limits.copy_bytes_per_second {
        add("copies, read and written".to_owned(), show::scaled(rate, "B/s"));
    }
}

fn kernel_row(name: &str, found: Measured, limit: Option<f64>) -> Vec<String> {
    let rate = found.flops_per_second();
    let mut row =
        vec![name.to_owned(), format!("{:.3}", 1e3 * found.seconds), show::scaled(rate, "FLOP/s")];
    if let Some(limit) = limit {
        row.push(show::scaled(limit, "FLOP/s"));
        row.push(format!("{:.0} %", 100.0 * rate / limit));
    }
    row
}

/// A kernel's figures, with the facts that say what it was.
fn kernel(found: Measured, limit: Option<f64>, facts: Value) -> Value {
    let rate = found.flops_per_second();
    let mut object = facts;
    object["seconds"] = json!(found.seconds);
    object["flops"] = json!(found.flops);
    object["flops_per_second"] = json!(rate);
    object["limit_flops_per_second"] = json!(limit);
    object["share_of_limit"] = json!(limit.map(|l| rate / l));
    object
}

fn limits_object(limits: &Limits) -> Value {
    let peak = |p: Option<Peak>| {
        let object =
            |p: Peak| json!({"instruction": p.instruction, "flops_per_second": p.flops_per_second});
        p.map(object)
    };
    json!({
        "f32": peak(limits.f32), "bf16": peak(limits.bf16),
        "copy_bytes_per_second": limits.copy_bytes_per_second,
    })
}
