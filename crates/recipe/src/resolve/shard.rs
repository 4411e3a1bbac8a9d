//! `parallel.shard` and `parallel.preset`: what each axis of the mesh cuts.

use crate::choices::{Choice, Preset};
use crate::error::RecipeError;
use crate::fields::Fields;
use crate::layout::Shard;
use crate::suggest;

/// The name of a mesh axis that cuts the inside of layers, unless the recipe says otherwise.
const TENSOR: &str = "tensor";
/// The name of a mesh axis that cuts the stack of layers, unless the recipe says otherwise.
const PIPE: &str = "pipe";
const INSIDE: [&str; 4] = ["heads", "mlp", "vocab", "seq"];
/// What a fault of the lists is blamed on.
const KEYS: &[&str] = &["parallel.shard", "parallel.preset", "parallel.mesh"];

pub(crate) fn resolve(fields: &mut Fields, mesh: &[(String, usize)]) -> Result<Shard, RecipeError> {
    let given = Given(fields.given("parallel.shard").unwrap_or_default());
    known_axes(fields, mesh, &given)?;
    let mut shard = by_names(mesh, &given);
    state(fields, mesh, &given, &mut shard)?;
    tensor(fields, &shard)?;
    one_use_each(fields, mesh, &shard)?;
    nested(fields, &mut shard)?;
    let ranks: usize = mesh.iter().map(|(_, size)| size).product();
    // On a single rank nothing is cut, and the lists would only be noise.
    if ranks > 1 && given.0.len() < Shard::NAMES.len() {
        let reason = match fields.given::<String>("parallel.preset") {
            Some(preset) => format!("preset \"{preset}\" and the names of the mesh axes"),
            None => "the names of the mesh axes".into(),
        };
        fields.note("parallel.shard", &shard.text(), &reason);
    }
    Ok(shard)
}

/// The lists that the recipe gives.
struct Given(Vec<(String, Vec<String>)>);

impl Given {
    fn list(&self, name: &str) -> Option<Vec<String>> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, axes)| axes.clone())
    }

    /// Whether one of the lists `names` has the axis.
    fn has(&self, names: &[&str], axis: &str) -> bool {
        let mut lists = self.0.iter().filter(|(name, _)| names.contains(&name.as_str()));
        lists.any(|(_, axes)| axes.iter().any(|other| other == axis))
    }
}

fn known_axes(fields: &Fields, mesh: &[(String, usize)], given: &Given) -> Result<(), RecipeError> {
    let names: Vec<&str> = mesh.iter().map(|(name, _)| name.as_str()).collect();
    for (list, axes) in &given.0 {
        for (i, axis) in axes.iter().enumerate() {
            let what = format!("parallel.shard.{list} = {axes:?}");
            if !names.contains(&axis.as_str()) {
                let why = format!("\"{axis}\" is no axis of parallel.mesh");
                let advice = suggest::advice(axis, &names, "axes");
                return Err(fields.clash(KEYS, what, &why, advice));
            }
            if axes[..i].contains(axis) {
                let why = format!("\"{axis}\" is in it twice");
                return Err(fields.clash(KEYS, what, &why, "name every axis once".into()));
            }
        }
    }
    Ok(())
}

/// What the names of the axes say; given lists win, and an axis that they use is not used again.
fn by_names(mesh: &[(String, usize)], given: &Given) -> Shard {
    let named = |name: &str, elsewhere: &[&str]| -> Vec<String> {
        let free = mesh.iter().any(|(axis, _)| axis == name) && !given.has(elsewhere, name);
        if free { vec![name.to_string()] } else { Vec::new() }
    };
    let inside =
        |list: &str| given.list(list).unwrap_or_else(|| named(TENSOR, &["batch", "layers"]));
    let others = mesh.iter().map(|(axis, _)| axis).filter(|axis| {
        ![TENSOR, PIPE].contains(&axis.as_str())
            && !given.has(&[&INSIDE[..], &["layers"]].concat(), axis)
    });
    let mut shard = Shard {
        batch: given.list("batch").unwrap_or_else(|| others.cloned().collect()),
        heads: inside("heads"),
        mlp: inside("mlp"),
        vocab: inside("vocab"),
        layers: given
            .list("layers")
            .unwrap_or_else(|| named(PIPE, &[&INSIDE[..], &["batch"]].concat())),
        ..Shard::default()
    };
    // Positions are cut between products that the same axis cuts.
    let cuts_products = shard.tensor_axis().is_some_and(|axis| axis == TENSOR);
    let seq = if cuts_products { inside("seq") } else { Vec::new() };
    shard.seq = given.list("seq").unwrap_or(seq);
    shard
}

/// The lists of the training state, by the preset.
fn state(
    fields: &Fields,
    mesh: &[(String, usize)],
    given: &Given,
    shard: &mut Shard,
) -> Result<(), RecipeError> {
    let preset: Option<String> = fields.given("parallel.preset");
    let preset = preset.map(|name| Preset::from_name(&name).expect("a word of the schema"));
    let batch = shard.batch.clone();
    let depth = match preset {
        None | Some(Preset::Ddp | Preset::Megatron) => 0,
        Some(Preset::Zero1) => 1,
        Some(Preset::Zero2) => 2,
        Some(Preset::Zero3 | Preset::Hybrid) => 3,
    };
    if depth > 0 && batch.is_empty() {
        let advice = "remove it, or add an axis to parallel.mesh, as in data = 2";
        fields.refuse(&["parallel.preset"], "where no mesh axis cuts the batch", advice)?;
    }
    if preset == Some(Preset::Hybrid) && batch.len() < 2 {
        return Err(fields.clash(
            &["parallel.preset", "parallel.mesh", "parallel.shard"],
            format!("parallel.preset = \"hybrid\" with parallel.shard.batch = {batch:?}"),
            "it cuts state over the last batch axis and copies it over the others",
            "name two, as in parallel.mesh = { node = 2, local = 4 }, or use \"zero3\"".into(),
        ));
    }
    if preset == Some(Preset::Megatron) && !mesh.iter().any(|(axis, _)| axis == TENSOR) {
        return Err(fields.clash(
            &["parallel.preset", "parallel.mesh"],
            "parallel.preset = \"megatron\" and a parallel.mesh without \"tensor\"".into(),
            "it cuts heads, feed-forward and vocabulary over an axis of this name",
            "add one to parallel.mesh, as in { data = 2, tensor = 2 }".into(),
        ));
    }
    let axes = match preset {
        Some(Preset::Hybrid) => batch[batch.len() - 1..].to_vec(),
        _ => batch,
    };
    let list = |name: &str, stage: usize| {
        let default = if depth >= stage { axes.clone() } else { Vec::new() };
        given.list(name).unwrap_or(default)
    };
    shard.optimizer = list("optimizer", 1);
    shard.gradients = list("gradients", 2);
    shard.parameters = list("parameters", 3);
    Ok(())
}

/// One axis cuts the inside of layers, one the stack of them.
fn tensor(fields: &Fields, shard: &Shard) -> Result<(), RecipeError> {
    let single = |name: &str, axes: &[String]| match axes.len() {
        0 | 1 => Ok(()),
        _ => Err(fields.clash(
            KEYS,
            format!("parallel.shard.{name} = {axes:?}"),
            "it can be cut by one mesh axis at most",
            "make them one axis of parallel.mesh".into(),
        )),
    };
    let inside = [("heads", &shard.heads), ("mlp", &shard.mlp), ("vocab", &shard.vocab)];
    for (name, axes) in inside {
        single(name, axes)?;
    }
    single("seq", &shard.seq)?;
    single("layers", &shard.layers)?;
    let Some(axis) = shard.tensor_axis() else {
        return match shard.seq.first() {
            None => Ok(()),
            Some(axis) => Err(fields.clash(
                KEYS,
                format!("parallel.shard.seq = [\"{axis}\"] without heads, mlp and vocab"),
                "positions are cut between products that the same axis cuts",
                format!("set seq = [], or heads = [\"{axis}\"] and mlp = [\"{axis}\"] as well"),
            )),
        };
    };
    for (name, axes) in inside.into_iter().chain([("seq", &shard.seq)]) {
        if let Some(other) = axes.first().filter(|other| *other != axis) {
            let lists = format!("parallel.shard.{name} = [\"{other}\"]");
            return Err(fields.clash(
                KEYS,
                format!("{lists} where another list has \"{axis}\""),
                "heads, mlp, vocab and seq are cut by the same axis or not at all",
                format!("set {name} = [\"{axis}\"] or {name} = []"),
            ));
        }
    }
    Ok(())
}

/// No axis cuts two things, and none with several ranks cuts nothing.
fn one_use_each(
    fields: &Fields,
    mesh: &[(String, usize)],
    shard: &Shard,
) -> Result<(), RecipeError> {
    for (axis, size) in mesh {
        let inside = [("heads", &shard.heads), ("mlp", &shard.mlp), ("vocab", &shard.vocab)];
        let inside = inside.into_iter().find(|(_, axes)| axes.contains(axis));
        let uses = [Some(("batch", &shard.batch)), inside, Some(("layers", &shard.layers))];
        let uses: Vec<&str> = uses
            .into_iter()
            .flatten()
            .filter(|(_, axes)| axes.contains(axis))
            .map(|(name, _)| name)
            .collect();
        if let [first, second, ..] = uses[..] {
            return Err(fields.clash(
                KEYS,
                format!("parallel.shard has the mesh axis \"{axis}\" in {first} and in {second}"),
                "an axis cuts the batch, the inside of layers or the stack of layers",
                "leave it in one of them, or give parallel.mesh another axis".into(),
            ));
        }
        if uses.is_empty() && *size > 1 {
            return Err(fields.clash(
                KEYS,
                format!("parallel.shard has no use for the {size} ranks of \"{axis}\""),
                "all of them would compute the same",
                format!("add \"{axis}\" to batch, heads, mlp, vocab or layers, or drop the axis"),
            ));
        }
    }
    Ok(())
}

/// State is cut over the last batch axes, and what is cut later is cut no finer. Lists are put
/// into the order of the batch.
fn nested(fields: &Fields, shard: &mut Shard) -> Result<(), RecipeError> {
    let batch = shard.batch.clone();
    let state = [
        ("optimizer", &mut shard.optimizer),
        ("gradients", &mut shard.gradients),
        ("parameters", &mut shard.parameters),
    ];
    let mut outer = ("batch", batch.clone());
    for (name, axes) in state {
        axes.sort_by_key(|axis| batch.iter().position(|other| other == axis));
        if !batch.ends_with(axes) {
            let last = batch.len().saturating_sub(axes.len().max(1));
            return Err(fields.clash(
                KEYS,
                format!("parallel.shard.{name} = {axes:?} with batch = {batch:?}"),
                "state is cut over the last of the axes that cut the batch",
                format!("set {name} = {:?}", &batch[last..]),
            ));
        }
        if axes.len() > outer.1.len() {
            return Err(fields.clash(
                KEYS,
                format!("parallel.shard.{name} = {axes:?} with {} = {:?}", outer.0, outer.1),
                "a rank computes and updates no more than its part: parameters are cut no finer \
                 than gradients, gradients no finer than the optimizer's state",
                format!("set {} = {axes:?}, or {name} = {:?}", outer.0, outer.1),
            ));
        }
        outer = (name, axes.clone());
    }
    Ok(())
}
