//! `[model]`: widths, context, and the attention pattern of every layer.

use crate::choices::{AttentionKind, Choice, Combine, CycleEntry, Family};
use crate::divisors::{divisor_from_root, nearest_divisor};
use crate::error::RecipeError;
use crate::fields::Fields;
use crate::recipe::{Attention, Data, Model, Part};

pub(crate) fn resolve(fields: &mut Fields, data: &Data) -> Result<Model, RecipeError> {
    let family: Family = fields.choice("model.family");
    let layers = fields.require("model.layers", "the model needs a depth", "layers = 4")?;
    let heads = fields.require("model.heads", "attention needs its heads", "heads = 4")?;
    let embed = fields.require("model.embed", "the model needs a width", "embed = 128")?;
    let context = context(fields, data)?;
    let (mlp_ratio, qk_ratio) = ratios(fields, heads, embed)?;
    let init = match family {
        Family::SparseTransformer => Some(fields.choice("model.init")),
        Family::Gpt2 => {
            let because = "with model.family = \"gpt2\", which has its own initialisation";
            fields.refuse(&["model.init"], because, "remove it")?;
            None
        }
    };
    Ok(Model {
        family,
        layers,
        heads,
        embed,
        mlp_ratio,
        qk_ratio,
        context,
        dropout: fields.get("model.dropout"),
        embed_dropout: fields.get("model.embed_dropout"),
        attention: attention(fields, data, Shape { layers, heads, context })?,
        init,
    })
}

fn context(fields: &mut Fields, data: &Data) -> Result<usize, RecipeError> {
    let Some(image) = data.image() else {
        let why = "a text has no length of its own";
        return fields.require("model.context", why, "context = 256");
    };
    let size = image.size_bytes();
    let shape = format!("{} * {} * {}", image.height, image.width, image.channels);
    let context = fields.derive(
        "model.context",
        size,
        &size.to_string(),
        &format!("{shape} bytes of one image"),
    );
    match context == size {
        true => Ok(context),
        false => Err(fields.clash(
            &["model.context", "data.image", "data.kind"],
            format!("model.context = {context}"),
            &format!("an image of this data is {shape} = {size} tokens"),
            "remove model.context, it follows from the image".into(),
        )),
    }
}

fn ratios(fields: &Fields, heads: usize, embed: usize) -> Result<(f64, f64), RecipeError> {
    if !embed.is_multiple_of(heads) {
        return Err(fields.clash(
            &["model.heads", "model.embed"],
            format!("model.heads = {heads} does not divide model.embed = {embed}"),
            "every head takes an equal part of the width",
            format!("set model.heads = {}", nearest_divisor(embed, heads)),
        ));
    }
    let whole = |name: &str, ratio: f64| {
        let width = embed as f64 * ratio;
        match width >= 1.0 && (width - width.round()).abs() < 1e-6 {
            true => Ok(width.round() as usize),
            false => Err(fields.clash(
                &[name, "model.embed"],
                format!("{name} = {ratio} of model.embed = {embed} is {width} features"),
                "a width is a whole number, at least 1",
                format!("choose {name} so that {embed} times it is whole"),
            )),
        }
    };
    let mlp_ratio = fields.get("model.mlp_ratio");
    whole("model.mlp_ratio", mlp_ratio)?;
    let qk_ratio = fields.get("model.qk_ratio");
    let qk_width = whole("model.qk_ratio", qk_ratio)?;
    if !qk_width.is_multiple_of(heads) {
        return Err(fields.clash(
            &["model.qk_ratio", "model.heads", "model.embed"],
            format!("model.heads = {heads} does not divide the {qk_width} features of queries"),
            "they are model.embed * model.qk_ratio, and every head takes an equal part",
            format!("set model.heads = {}, or another ratio", nearest_divisor(qk_width, heads)),
        ));
    }
    Ok((mlp_ratio, qk_ratio))
}

#[derive(Clone, Copy)]
struct Shape {
    layers: usize,
    heads: usize,
    context: usize,
}

fn attention(fields: &mut Fields, data: &Data, shape: Shape) -> Result<Attention, RecipeError> {
    let kind: AttentionKind = fields.choice("model.attention");
    let because = format!("with model.attention = \"{}\"", kind.name());
    let advice = "remove it, or choose another model.attention";
    let idle: &[&str] = match kind {
        AttentionKind::Dense => &["combine", "cycle", "stride", "window", "columns"],
        AttentionKind::Local => &["combine", "stride", "columns"],
        AttentionKind::Strided => &["columns"],
        AttentionKind::Fixed => &[],
    };
    for key in idle {
        fields.refuse(&[&format!("model.{key}")], &because, advice)?;
    }
    if kind == AttentionKind::Dense {
        return Ok(Attention { kind, combine: Combine::Interleaved, parts: vec![Part::Dense] });
    }
    let combine = fields.choice("model.combine");
    if combine == Combine::Heads && !shape.heads.is_multiple_of(2) {
        return Err(fields.clash(
            &["model.combine", "model.heads"],
            format!("model.combine = \"heads\" with model.heads = {}", shape.heads),
            "heads take the two parts by turns",
            "choose an even number of heads, or combine = \"merged\"".into(),
        ));
    }
    let cycle = cycle(fields, kind, combine, shape)?;
    let numbers = numbers(fields, data, kind, &cycle, shape)?;
    let parts = cycle.iter().map(|entry| numbers.part(*entry)).collect();
    Ok(Attention { kind, combine, parts })
}

/// The entries that a kind of attention can take, its own ones first.
fn entries_of(kind: AttentionKind) -> (&'static [CycleEntry], &'static [CycleEntry]) {
    use CycleEntry::{Block, Dense, Local, Strided, Summary};
    match kind {
        AttentionKind::Dense => (&[Dense], &[]),
        AttentionKind::Local => (&[Local], &[Dense]),
        AttentionKind::Strided => (&[Strided], &[Local, Dense]),
        AttentionKind::Fixed => (&[Block, Summary], &[Local, Dense]),
    }
}

fn names(entries: &[CycleEntry]) -> Vec<String> {
    entries.iter().map(|entry| format!("\"{}\"", entry.name())).collect()
}

fn cycle(
    fields: &mut Fields,
    kind: AttentionKind,
    combine: Combine,
    shape: Shape,
) -> Result<Vec<CycleEntry>, RecipeError> {
    let (own, other) = entries_of(kind);
    let default = match kind {
        AttentionKind::Strided => vec![CycleEntry::Local, CycleEntry::Strided],
        _ => own.to_vec(),
    };
    if combine != Combine::Interleaved {
        let because = format!("with model.combine = \"{}\"", combine.name());
        let advice = "remove it: every layer has both parts";
        fields.refuse(&["model.cycle"], &because, advice)?;
        return Ok(default);
    }
    let cycle = match fields.choices("model.cycle") {
        Some(cycle) => cycle,
        None => {
            let reason = format!("the parts of {} attention by turns", kind.name());
            let shown = format!("[{}]", names(&default).join(", "));
            let words = default.iter().map(|entry| entry.name().to_string()).collect();
            fields.derive::<Vec<String>>("model.cycle", words, &shown, &reason);
            default
        }
    };
    check_cycle(fields, kind, &cycle, own, other)?;
    if cycle.len() > shape.layers {
        return Err(fields.clash(
            &["model.cycle", "model.layers", "model.attention"],
            format!("model.cycle has {} entries with model.layers = {}", cycle.len(), shape.layers),
            "the last entries would never be used",
            "shorten model.cycle, or add layers".into(),
        ));
    }
    Ok(cycle)
}

fn check_cycle(
    fields: &Fields,
    kind: AttentionKind,
    cycle: &[CycleEntry],
    own: &[CycleEntry],
    other: &[CycleEntry],
) -> Result<(), RecipeError> {
    let known = |entry: &CycleEntry| own.contains(entry) || other.contains(entry);
    if let Some(entry) = cycle.iter().find(|entry| !known(entry)) {
        let mut list = names(own);
        list.extend(names(other));
        return Err(fields.clash(
            &["model.cycle", "model.attention"],
            format!("model.cycle has \"{}\"", entry.name()),
            &format!("model.attention = \"{}\" has only {}", kind.name(), list.join(", ")),
            format!("use one of these, or set model.attention = \"{}\"", owner(*entry).name()),
        ));
    }
    if !cycle.iter().any(|entry| own.contains(entry)) {
        return Err(fields.clash(
            &["model.cycle", "model.attention"],
            format!("model.cycle has no {}", names(own).join(" or ")),
            &format!("model.attention = \"{}\" would have no effect", kind.name()),
            "add one to the cycle, or choose the model.attention that the cycle is made of".into(),
        ));
    }
    Ok(())
}

/// The kind of attention that an entry belongs to.
fn owner(entry: CycleEntry) -> AttentionKind {
    match entry {
        CycleEntry::Block | CycleEntry::Summary => AttentionKind::Fixed,
        entry => AttentionKind::from_name(entry.name()).unwrap_or(AttentionKind::Dense),
    }
}

/// The numbers of the parts; those that no part reads stay 1.
struct Numbers {
    stride: usize,
    window: usize,
    columns: usize,
}

impl Numbers {
    fn part(&self, entry: CycleEntry) -> Part {
        match entry {
            CycleEntry::Dense => Part::Dense,
            CycleEntry::Local => Part::Local { window: self.window },
            CycleEntry::Strided => Part::Strided { stride: self.stride },
            CycleEntry::Block => Part::Block { length: self.stride },
            CycleEntry::Summary => Part::Summary { stride: self.stride, columns: self.columns },
        }
    }
}

fn numbers(
    fields: &mut Fields,
    data: &Data,
    kind: AttentionKind,
    cycle: &[CycleEntry],
    shape: Shape,
) -> Result<Numbers, RecipeError> {
    let stride = match kind {
        AttentionKind::Strided | AttentionKind::Fixed => stride(fields, data, shape.context)?,
        _ => 1,
    };
    let window = match (cycle.contains(&CycleEntry::Local), kind) {
        (false, _) => {
            let because = "where no layer is local";
            fields.refuse(
                &["model.window"],
                because,
                "remove it, or add \"local\" to the cycle",
            )?;
            1
        }
        (true, AttentionKind::Local) => {
            fields.require("model.window", "local attention has a window", "window = 64")?
        }
        (true, _) => {
            let reason = "the window reaches back to the last strided position";
            fields.derive("model.window", stride, &stride.to_string(), reason)
        }
    };
    if window > shape.context {
        return Err(fields.clash(
            &["model.window", "model.context"],
            format!("model.window = {window} is longer than model.context = {}", shape.context),
            "there are no positions beyond the context",
            "shorten the window, or use dense attention".into(),
        ));
    }
    let columns = match cycle.contains(&CycleEntry::Summary) {
        true => columns(fields, stride)?,
        false => {
            let because = "where no layer is a summary";
            let advice = "remove it, or add \"summary\" to the cycle";
            fields.refuse(&["model.columns"], because, advice)?;
            1
        }
    };
    Ok(Numbers { stride, window, columns })
}

fn stride(fields: &mut Fields, data: &Data, context: usize) -> Result<usize, RecipeError> {
    let (default, reason) = match data.image() {
        Some(image) => (image.row_bytes(), "one row of the image"),
        // Near the square root both parts cost alike (Child et al. §4.2).
        None => (divisor_from_root(context), "the divisor of context next above its square root"),
    };
    let stride = fields.derive("model.stride", default, &default.to_string(), reason);
    match context.is_multiple_of(stride) {
        true => Ok(stride),
        false => Err(fields.clash(
            &["model.stride", "model.context"],
            format!("model.stride = {stride} does not divide model.context = {context}"),
            "the pattern is computed on whole rows of stride positions",
            format!("set model.stride = {}", nearest_divisor(context, stride)),
        )),
    }
}

fn columns(fields: &mut Fields, stride: usize) -> Result<usize, RecipeError> {
    let default = if stride.is_multiple_of(8) { stride / 8 } else { 1 };
    let reason = "an eighth of the block, as 16 of 128 in Child et al.";
    let columns = fields.derive("model.columns", default, &default.to_string(), reason);
    match stride.is_multiple_of(columns) {
        true => Ok(columns),
        false => Err(fields.clash(
            &["model.columns", "model.stride"],
            format!("model.columns = {columns} does not divide model.stride = {stride}"),
            "a block is cut into groups of columns, one for each head",
            format!("set model.columns = {}", nearest_divisor(stride, columns)),
        )),
    }
}
