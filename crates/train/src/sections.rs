//! From a model to the sections of every pipeline stage: which passes run, in which order.

use crate::error::TrainError;
use crate::layout::Layout;
use aerogel_graph::{Build, Graph, ValueId};
use aerogel_models::{self as models, ModelConfig, PositionInput};
use aerogel_passes::pipeline::{
    Cost, Message, Replica, Schedule, cut as cut_layers, layer_stages, schedule, split,
};
use aerogel_passes::recompute::{Policy, recompute};
use aerogel_passes::{
    self as passes, Buckets, Compute, LossScale, Optimizer, Partials, Share, Tensor, UpdateConfig,
    accumulate, inside, layer_of, partition, section_of, update,
};
use aerogel_plan::Ask;
use aerogel_recipe::{self as recipe, Recipe, RecomputePolicy};

/// The sections of one stage.
pub(crate) struct StageAsks {
    pub asks: Vec<Ask>,
}

/// The sections of all stages, and how stages hang together.
pub(crate) struct Sections {
    pub stages: Vec<StageAsks>,
    pub schedule: Option<Schedule>,
    pub messages: Vec<Message>,
    pub eval_messages: Vec<Message>,
    pub replicas: Vec<Replica>,
    pub positions: Vec<PositionInput>,
}

/// A model after all passes that see the whole of it.
struct Whole {
    /// One micro-batch of one rank, forward and backward, over buckets.
    micro: Graph,
    buckets: Buckets,
    eval: Graph,
    /// Where any one rank can decode, and samples are asked for.
    decode: Option<Graph>,
    positions: Vec<PositionInput>,
}

impl Sections {
    /// Runs the passes over the training graph of the global batch; `only` asks for the sections
    /// of one stage.
    pub fn new(
        recipe: &Recipe,
        model: &ModelConfig,
        layout: &Layout,
        forward: Graph,
        only: Option<usize>,
    ) -> Result<Sections, TrainError> {
        Sections::observed(recipe, model, layout, forward, only, &mut |_, _| ())
    }

    /// The same, with all graphs on the way shown to an observer, by the names of the passes and
    /// of the sections that they come from.
    pub fn observed(
        recipe: &Recipe,
        model: &ModelConfig,
        layout: &Layout,
        forward: Graph,
        only: Option<usize>,
        observer: &mut dyn FnMut(&str, &Graph),
    ) -> Result<Sections, TrainError> {
        let whole = Whole::new(recipe, model, layout, forward, observer)?;
        let sections = match layout.pipe {
            None => whole.sections(recipe, layout)?,
            Some(axis) => whole.pipelined(recipe, model, layout, axis, only)?,
        };
        for (i, stage) in sections.stages.iter().enumerate() {
            for ask in &stage.asks {
                match layout.pipe {
                    None => observer(&ask.name, &ask.graph),
                    Some(_) => {
                        observer(&format!("stage.{}.{}", only.unwrap_or(i), ask.name), &ask.graph);
                    }
                }
            }
        }
        Ok(sections)
    }
}

impl Whole {
    fn new(
        recipe: &Recipe,
        model: &ModelConfig,
        layout: &Layout,
        forward: Graph,
        observer: &mut dyn FnMut(&str, &Graph),
    ) -> Result<Whole, TrainError> {
        let compute = match recipe.precision.compute {
            recipe::Compute::F32 => Compute::F32,
            recipe::Compute::Bf16 => Compute::Bf16,
            recipe::Compute::F16 => Compute::F16,
        };
        let step = passes::precision(&forward, compute)?;
        observer("precision", &step);
        let step = match loss_scale(recipe) {
            Some(scale) => passes::scale(&step, &scale)?,
            None => step,
        };
        let step = passes::backward(&step)?;
        observer("backward", &step);
        let (mlp, loss) = (recipe.memory.mlp_chunks, recipe.memory.loss_chunks);
        let step = passes::chunk(&step, mlp, loss)?;
        if mlp * loss > 1 {
            observer("chunk", &step);
        }
        let step = recomputed(recipe, layout, step)?;
        if recipe.memory.recompute != RecomputePolicy::None {
            observer("recompute", &step);
        }
        let (step, partial) = cut_tensors(layout, step)?;
        if layout.tensor.is_some() {
            observer("partition", &step);
        }
        let partials = Partials { axis: layout.tensor.map(|t| t.axis), parameters: partial };
        let buckets = Buckets::of(&step, &layout.shards, &partials);
        let step = buckets.apply(&step)?;
        observer("buckets", &step);
        let micro = passes::cut(&step, &layout.shards, layout.micro_batches)?;
        observer("cut", &micro);
        let eval = models::eval_graph(model, recipe.train.micro_batch)?;
        let eval = cut_tensors(layout, passes::precision(&eval, compute)?)?.0;
        let (mut decode, mut positions) = (None, vec![]);
        if layout.is_data_parallel() && recipe.sample.count > 0 {
            let made = models::decode_graph(model, recipe.sample.count)?;
            decode = Some(buckets.apply(&passes::precision(&made.graph, compute)?)?);
            positions = made.positions;
        }
        Ok(Whole { micro, eval: buckets.apply(&eval)?, buckets, decode, positions })
    }

    /// One stage: every section is the whole model's.
    fn sections(self, recipe: &Recipe, layout: &Layout) -> Result<Sections, TrainError> {
        let share = Share { tensor: layout.tensor.map(|t| t.axis), ..Share::whole(&self.buckets) };
        let mut asks = match recipe.memory.update_in_backward {
            true => vec![ask("step", inside(&self.micro, &share, &update_config(recipe))?, 1)],
            false => {
                let mut asks = micro_asks(&self.micro, layout, "")?;
                asks.push(ask("update", update(&self.micro, &share, &update_config(recipe))?, 1));
                asks
            }
        };
        asks.extend(passes::copies(&self.micro, &share)?.map(|g| ask("weights", g, 0)));
        asks.push(ask("eval", self.eval, 0));
        asks.extend(self.decode.map(|g| ask("decode", g, 0)));
        Ok(Sections {
            stages: vec![StageAsks { asks }],
            schedule: None,
            messages: vec![],
            eval_messages: vec![],
            replicas: vec![],
            positions: self.positions,
        })
    }

    /// A pipeline: forward and backward of each chunk of layers are sections of their own.
    fn pipelined(
        self,
        recipe: &Recipe,
        model: &ModelConfig,
        layout: &Layout,
        axis: u8,
        only: Option<usize>,
    ) -> Result<Sections, TrainError> {
        let ranks = layout.shards.mesh.size(axis);
        let schedule = schedule(layout.schedule, ranks, layout.micro_batches)?;
        let chunks = schedule.chunks;
        let ranges = layer_ranges(&self.micro, model.layers, ranks * chunks)?;
        let stage_of = layer_stages(&ranges);
        let slots: Vec<u32> = (0..ranks * chunks)
            .map(|stage| {
                let (rank, chunk) = schedule.place(stage);
                schedule.slots(rank, chunk) as u32
            })
            .collect();
        let parts = split(&self.micro, &stage_of, ranks * chunks, &slots)?;
        let eval = split(&self.eval, &stage_of, ranks * chunks, &vec![1; ranks * chunks])?;
        let mut stages = vec![];
        for rank in (0..ranks).filter(|r| only.is_none_or(|o| o == *r)) {
            let mut asks = vec![];
            let mut like = None;
            for chunk in 0..chunks {
                let stage = schedule.stage(rank, chunk);
                let part = &parts.stages[stage];
                let count = layout.micro_batches as u64;
                asks.push(ask(&format!("forward.{chunk}"), part.forward.clone(), count));
                asks.extend(micro_asks(&part.backward, layout, &format!("backward.{chunk}."))?);
                asks.push(ask(&format!("eval.{chunk}"), eval.stages[stage].forward.clone(), 0));
                like.get_or_insert(&part.backward);
            }
            let owned = self
                .buckets
                .list
                .iter()
                .map(|b| schedule.place(stage_of(&b.scope)).0 == rank)
                .collect();
            let share = Share {
                buckets: &self.buckets,
                owned,
                has_loss: rank + 1 == ranks,
                tensor: layout.tensor.map(|t| t.axis),
                pipe: Some(axis),
            };
            let like = like.unwrap_or(&self.micro);
            asks.push(ask("update", update(like, &share, &update_config(recipe))?, 1));
            asks.extend(passes::copies(like, &share)?.map(|g| ask("weights", g, 0)));
            stages.push(StageAsks { asks });
        }
        Ok(Sections {
            stages,
            schedule: Some(schedule),
            messages: parts.messages,
            eval_messages: eval.messages,
            replicas: parts.replicas,
            positions: vec![],
        })
    }
}

fn ask(name: &str, graph: Graph, calls: u64) -> Ask {
    Ask { name: name.to_owned(), graph, calls }
}

/// The sections that sum over a rank's micro-batches.
fn micro_asks(g: &Graph, layout: &Layout, prefix: &str) -> Result<Vec<Ask>, TrainError> {
    let (count, order) = (layout.micro_batches, layout.order);
    let calls =
        |name: &str| (0..count).filter(|j| section_of(*j, count, order) == name).count() as u64;
    let sections = accumulate(g, count, order)?;
    Ok(sections
        .into_iter()
        .map(|(name, g)| Ask { calls: calls(&name), name: format!("{prefix}{name}"), graph: g })
        .collect())
}

fn recomputed(recipe: &Recipe, layout: &Layout, g: Graph) -> Result<Graph, TrainError> {
    let policy = match recipe.memory.recompute {
        RecomputePolicy::None => return Ok(g),
        RecomputePolicy::Cheap => Policy::Cheap,
        RecomputePolicy::Blocks { every } => Policy::Blocks { every },
        RecomputePolicy::Budget { bytes } => Policy::Budget { bytes },
    };
    // What one rank will have of a value that is still whole.
    let pieces = recipe.micro_batches() as u64;
    let ranks = layout.tensor.map_or(1, |t| layout.shards.mesh.size(t.axis) as u64);
    let bytes = |g: &Graph, v: ValueId| {
        let ty = g.ty(v);
        let has = |names: &[&str]| ty.axes.iter().any(|&a| names.contains(&&*g.axes()[a].name));
        let batch = if has(&["batch"]) { pieces } else { 1 };
        let cut = if has(&["kv", "mlp", "vocab"]) { ranks } else { 1 };
        ty.bytes(g.axes()) / (batch * cut)
    };
    Ok(recompute(&g, &policy, &bytes)?.graph)
}

/// Tensor parallelism; gives the parameters whose gradients are still to be summed.
fn cut_tensors(layout: &Layout, g: Graph) -> Result<(Graph, Vec<String>), TrainError> {
    let Some(t) = layout.tensor else { return Ok((g, vec![])) };
    let spec = Tensor {
        mesh: layout.shards.mesh.clone(),
        over: t.axis,
        heads: t.heads,
        mlp: t.mlp,
        vocab: t.vocab,
        seq: t.seq,
    };
    let done = partition(&g, &spec)?;
    let parameter = |output: String| output.trim_start_matches("grad.").to_owned();
    Ok((done.graph, done.partial.into_iter().map(parameter).collect()))
}

/// Layers of each virtual stage, balanced by the work of their nodes.
fn layer_ranges(
    g: &Graph,
    layers: usize,
    stages: usize,
) -> Result<Vec<std::ops::Range<usize>>, TrainError> {
    let mut costs = vec![Cost::default(); layers];
    let (mut first, mut last) = (Cost::default(), Cost::default());
    for node in g.nodes() {
        let cost = match layer_of(&node.scope) {
            Some(layer) => &mut costs[layer],
            None if node.scope.starts_with("embed") => &mut first,
            None => &mut last,
        };
        let work = node.op.cost(g.axes(), &g.in_types(node), &g.out_types(node));
        cost.flops += work.flops;
        cost.bytes += work.bytes;
    }
    let stages = cut_layers(&costs, stages, first, last)?;
    Ok(stages.into_iter().map(|s| s.layers).collect())
}

fn update_config(recipe: &Recipe) -> UpdateConfig {
    let kind = match recipe.optimizer.rule {
        recipe::Rule::AdamW { beta1, beta2, epsilon } => Optimizer::AdamW { beta1, beta2, epsilon },
        recipe::Rule::Adam { beta1, beta2, epsilon } => Optimizer::Adam { beta1, beta2, epsilon },
        recipe::Rule::Sgd { momentum } => Optimizer::Sgd { momentum },
        recipe::Rule::RmsProp { alpha, epsilon, momentum } => {
            Optimizer::RmsProp { alpha, epsilon, momentum }
        }
    };
    let (weight_decay, clip) = (recipe.optimizer.weight_decay, recipe.optimizer.clip);
    UpdateConfig { kind, weight_decay, clip, scale: loss_scale(recipe) }
}

fn loss_scale(recipe: &Recipe) -> Option<LossScale> {
    let scale = recipe.precision.loss_scale.as_ref()?;
    Some(LossScale { initial: scale.initial, interval: scale.interval })
}
