//! The resolved form, and the part of it that defines the numbers.

use crate::choices::{
    AttentionKind, Combine, Compute, PipelineSchedule, RecomputeKind, TokenizerKind,
};
use crate::layout::{Memory, Parallel, RecomputePolicy, mesh_text};
use crate::recipe::{Attention, Data, Model, Optimizer, Part, Recipe, Rule, Source};
use crate::schema;

/// The sections that define the numbers of a run.
const RUN_SECTIONS: &[&str] =
    &["model", "data", "tokenizer", "optimizer", "schedule", "train", "precision"];

/// Keys of those sections that change no number.
const NOT_IN_RUN: &[&str] = &["train.log_every", "data.hint", "data.blake3"];

impl Recipe {
    /// The recipe with every key that applies, which parses back to this recipe (beside the same
    /// `file_name`, `recipe_dir` and `tiny`). A tiny form ends with an empty `[tiny]`.
    pub fn to_toml(&self) -> String {
        let mut text = render(&self.lines());
        if self.tiny {
            text += "\n[tiny]\n";
        }
        text
    }

    /// The text whose hash is the recipe's share of `run_hash`: what defines the numbers of a
    /// run, so that a checkpoint of one recipe may continue under another with the same text.
    ///
    /// In: model, data, tokenizer, optimizer, schedule, precision, and of `[train]` the batch,
    /// the micro-batch, the seed, the determinism and the steps, on which the schedule depends.
    /// Out: what only
    /// watches or places the run (`log_every`, `[memory]`, `[parallel]`, `[eval]`, `[sample]`,
    /// `[checkpoint]`), the data's hint and checksum, the name, and whether the form is tiny,
    /// though not what that changed. The contents of the data are not known here: the caller
    /// adds the hash of the prepared shards and, where it was trained, of the tokenizer.
    pub fn run_hash_text(&self) -> String {
        let mut lines = self.lines();
        lines.retain(|line| {
            let name = format!("{}.{}", line.section, line.key);
            RUN_SECTIONS.contains(&line.section) && !NOT_IN_RUN.contains(&name.as_str())
        });
        render(&lines)
    }

    /// Every key that applies, in the schema's order.
    fn lines(&self) -> Vec<Line> {
        let mut lines = Lines { section: "", lines: Vec::new() };
        lines.model(&self.model);
        lines.data(&self.data);
        lines.tokenizer(self);
        lines.optimizer(&self.optimizer);
        lines.training(self);
        lines.running(self);
        let order = |line: &Line| {
            schema::schema()
                .iter()
                .position(|key| (key.section, key.name) == (line.section, line.key))
        };
        lines.lines.sort_by_key(order);
        lines.lines
    }
}

struct Line {
    section: &'static str,
    key: &'static str,
    value: String,
}

fn render(lines: &[Line]) -> String {
    let mut text = String::new();
    let mut section = "";
    for line in lines {
        if line.section != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            text += &format!("{gap}[{}]\n", line.section);
            section = line.section;
        }
        text += &format!("{} = {}\n", line.key, line.value);
    }
    text
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

fn list(texts: &[String]) -> String {
    let items: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", items.join(", "))
}

/// Collects lines of the section at hand.
struct Lines {
    section: &'static str,
    lines: Vec<Line>,
}

impl Lines {
    fn push(&mut self, key: &'static str, value: String) {
        self.lines.push(Line { section: self.section, key, value });
    }

    fn number(&mut self, key: &'static str, value: f64) {
        // Debug always writes a point or an exponent, so that TOML reads a float again.
        self.push(key, format!("{value:?}"));
    }

    fn integer(&mut self, key: &'static str, value: impl Into<u128>) {
        self.push(key, value.into().to_string());
    }

    fn size(&mut self, key: &'static str, value: usize) {
        self.integer(key, value as u128);
    }

    fn text(&mut self, key: &'static str, value: &str) {
        self.push(key, quoted(value));
    }

    fn optional(&mut self, key: &'static str, value: &Option<String>) {
        if let Some(text) = value {
            self.text(key, text);
        }
    }

    fn model(&mut self, model: &Model) {
        self.section = "model";
        self.text("family", model.family.name());
        self.size("layers", model.layers);
        self.size("heads", model.heads);
        self.size("embed", model.embed);
        self.number("mlp_ratio", model.mlp_ratio);
        self.number("qk_ratio", model.qk_ratio);
        self.size("context", model.context);
        self.number("dropout", model.dropout);
        self.number("embed_dropout", model.embed_dropout);
        self.attention(&model.attention);
        if let Some(init) = model.init {
            self.text("init", init.name());
        }
    }

    fn attention(&mut self, attention: &Attention) {
        self.text("attention", attention.kind.name());
        if attention.kind == AttentionKind::Dense {
            return;
        }
        if attention.kind != AttentionKind::Local {
            self.text("combine", attention.combine.name());
        }
        if attention.combine == Combine::Interleaved {
            let names: Vec<String> = attention.parts.iter().map(part_name).collect();
            self.push("cycle", list(&names));
        }
        // Parts repeat, and so would their numbers: each key once.
        let mut numbers: Vec<(&'static str, usize)> = Vec::new();
        for part in &attention.parts {
            match *part {
                Part::Dense => {}
                Part::Local { window } => numbers.push(("window", window)),
                Part::Strided { stride } => numbers.push(("stride", stride)),
                Part::Block { length } => numbers.push(("stride", length)),
                Part::Summary { stride, columns } => {
                    numbers.extend([("stride", stride), ("columns", columns)]);
                }
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        for (key, value) in numbers {
            self.size(key, value);
        }
    }

    fn data(&mut self, data: &Data) {
        self.section = "data";
        self.text("kind", data.kind().name());
        match &data.source {
            Source::Text { paths, exclude } => {
                self.push("paths", list(paths));
                self.push("exclude", list(exclude));
            }
            Source::Jsonl { paths, exclude, field } | Source::Parquet { paths, exclude, field } => {
                self.push("paths", list(paths));
                self.push("exclude", list(exclude));
                self.text("field", field);
            }
            Source::Images { train, .. } => self.text("train", train),
            Source::Cifar10 { paths } => self.push("paths", list(paths)),
            Source::Bin { paths, format } => {
                self.push("paths", list(paths));
                self.text("format", format.name());
            }
            Source::CopyRows { .. } => {}
        }
        if let Source::Images { image, .. } | Source::CopyRows { image } = data.source {
            let shape = format!("[{}, {}, {}]", image.height, image.width, image.channels);
            self.push("image", shape);
        }
        self.optional("test", &data.test);
        self.number("validation", data.validation);
        if data.test.is_none() {
            self.number("test_fraction", data.test_fraction);
        }
        if data.validation + data.test_fraction > 0.0 {
            self.integer("split_seed", data.split_seed);
        }
        self.optional("hint", &data.hint);
        self.optional("blake3", &data.blake3);
    }

    fn tokenizer(&mut self, recipe: &Recipe) {
        self.section = "tokenizer";
        let tokenizer = &recipe.tokenizer;
        self.text("kind", tokenizer.kind.name());
        if let (TokenizerKind::Bpe, Some(vocab)) = (tokenizer.kind, tokenizer.vocab) {
            self.size("vocab", vocab);
        }
        self.optional("path", &tokenizer.path);
    }

    fn optimizer(&mut self, optimizer: &Optimizer) {
        self.section = "optimizer";
        self.text("kind", optimizer.rule.kind().name());
        match optimizer.rule {
            Rule::AdamW { beta1, beta2, epsilon } | Rule::Adam { beta1, beta2, epsilon } => {
                self.number("beta1", beta1);
                self.number("beta2", beta2);
                self.number("epsilon", epsilon);
            }
            Rule::Sgd { momentum } => self.number("momentum", momentum),
            Rule::RmsProp { alpha, epsilon, momentum } => {
                self.number("alpha", alpha);
                self.number("epsilon", epsilon);
                self.number("momentum", momentum);
            }
        }
        self.number("learning_rate", optimizer.learning_rate);
        if !matches!(optimizer.rule, Rule::Adam { .. }) {
            self.number("weight_decay", optimizer.weight_decay);
        }
        self.number("clip", optimizer.clip);
    }

    fn training(&mut self, recipe: &Recipe) {
        self.section = "schedule";
        let schedule = &recipe.schedule;
        self.text("kind", schedule.kind.name());
        self.integer("warmup", schedule.warmup);
        if schedule.kind != crate::choices::ScheduleKind::Constant {
            self.number("final_ratio", schedule.final_ratio);
        }
        if let Some(base) = schedule.base_batch {
            self.integer("base_batch", base);
        }
        self.section = "train";
        self.integer("steps", recipe.train.steps);
        self.size("batch", recipe.train.batch);
        self.size("micro_batch", recipe.train.micro_batch);
        self.integer("seed", recipe.train.seed);
        self.integer("log_every", recipe.train.log_every);
        self.text("determinism", recipe.train.determinism.name());
        self.section = "precision";
        self.text("compute", recipe.precision.compute.name());
        // Where nothing is scaled by default nothing is said: the text, and with it the hash of the
        // run, is what it was before there were scales.
        match &recipe.precision.loss_scale {
            Some(scale) => {
                self.number("loss_scale", scale.initial);
                self.integer("loss_scale_interval", scale.interval);
            }
            None if recipe.precision.compute == Compute::F16 => self.number("loss_scale", 0.0),
            None => {}
        }
    }

    fn running(&mut self, recipe: &Recipe) {
        self.memory(&recipe.memory);
        self.parallel(&recipe.parallel);
        self.section = "eval";
        self.integer("every", recipe.eval.every);
        if recipe.data.has_held_out() {
            self.integer("sequences", recipe.eval.sequences);
        }
        self.section = "sample";
        let sample = &recipe.sample;
        self.size("count", sample.count);
        if sample.count > 0 {
            self.drawing(recipe);
        }
        self.section = "checkpoint";
        self.integer("every", recipe.checkpoint.every);
        self.integer("keep", recipe.checkpoint.keep);
    }

    fn memory(&mut self, memory: &Memory) {
        self.section = "memory";
        if let Some(budget_bytes) = memory.budget_bytes {
            self.integer("budget", budget_bytes);
        }
        let kind = match memory.recompute {
            RecomputePolicy::None => RecomputeKind::None,
            RecomputePolicy::Cheap => RecomputeKind::Cheap,
            RecomputePolicy::Blocks { every } => {
                self.size("recompute_every", every);
                RecomputeKind::Block
            }
            RecomputePolicy::Budget { bytes } => {
                self.integer("activations", bytes);
                RecomputeKind::Budget
            }
        };
        self.text("recompute", kind.name());
        self.size("mlp_chunks", memory.mlp_chunks);
        self.size("loss_chunks", memory.loss_chunks);
        self.push("update_in_backward", memory.update_in_backward.to_string());
    }

    fn parallel(&mut self, parallel: &Parallel) {
        self.section = "parallel";
        self.text("device", parallel.device.name());
        self.size("threads", parallel.threads);
        self.push("mesh", mesh_text(&parallel.mesh));
        self.push("shard", parallel.shard.text());
        if parallel.pipeline_ranks() > 1 {
            self.text("schedule", parallel.schedule.name());
            if parallel.schedule == PipelineSchedule::Interleaved {
                self.size("chunks", parallel.chunks);
            }
        }
        self.number("timeout_seconds", parallel.timeout_seconds);
    }

    fn drawing(&mut self, recipe: &Recipe) {
        let sample = &recipe.sample;
        if recipe.data.image().is_none() {
            self.size("tokens", sample.tokens);
        }
        self.number("temperature", sample.temperature);
        if sample.temperature > 0.0 {
            self.size("top_k", sample.top_k);
            self.integer("seed", sample.seed);
        }
        self.optional("prompt", &sample.prompt);
        self.integer("every", sample.every);
    }
}

fn part_name(part: &Part) -> String {
    let name = match part {
        Part::Dense => "dense",
        Part::Local { .. } => "local",
        Part::Strided { .. } => "strided",
        Part::Block { .. } => "block",
        Part::Summary { .. } => "summary",
    };
    name.into()
}
