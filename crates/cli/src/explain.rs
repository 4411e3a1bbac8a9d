//! `explain`: what each pass makes of a recipe's graph.

use crate::args::{RecipeArgs, Shared};
use crate::failure::Usage;
use crate::show;
use aerogel_graph::{Graph, text};
use aerogel_recipe::Recipe;
use aerogel_train::{Exit, GraphFacts, Workspace, explain};
use clap::Args;
use std::io::Write;

/// Show the graph of a training step after each pass
#[derive(Args)]
#[command(after_help = "Example: aerogel explain recipes/quick.toml --tiny\n         \
    aerogel explain recipes/quick.toml --tiny --pass backward --scope h.0.attn\n\n\
    Without --pass, a line for each pass and section. `kept` is what the forward leaves to the\n\
    backward. Graphs up to `buckets` are of all ranks' batch, those from `cut` on of one\n\
    micro-batch of one rank.")]
pub struct ExplainArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The whole text of the graph after this pass, or of this section; `micro` is all of its
    /// sections, `stage.0` all of that stage
    #[arg(long, value_name = "NAME")]
    pass: Option<String>,
    /// Of that text only the nodes whose scope this is, or lies in this
    #[arg(long, value_name = "PREFIX", requires = "pass")]
    scope: Option<String>,
}

/// Runs the passes, and shows the graphs.
pub fn run(args: &ExplainArgs, shared: &Shared) -> anyhow::Result<Exit> {
    let recipe = args.recipe.load()?;
    let workspace = shared.workspace();
    let shown = match &args.pass {
        None => summary(&recipe, &workspace)?,
        Some(pass) => texts(&recipe, &workspace, pass, args.scope.as_deref())?,
    };
    std::io::stdout().write_all(shown.as_bytes())?;
    Ok(Exit::Done)
}

fn summary(recipe: &Recipe, workspace: &Workspace) -> anyhow::Result<String> {
    let names = ["pass", "nodes", "values", "FLOP", "parameters", "kept", "collectives"];
    let mut rows = vec![names.map(str::to_owned).to_vec()];
    explain(recipe, workspace, &mut |name, graph| {
        let facts = GraphFacts::of(graph);
        rows.push(vec![
            name.to_owned(),
            show::count(facts.nodes as u64),
            show::count(facts.values as u64),
            show::scaled(facts.flops as f64, ""),
            show::count(facts.parameters),
            show::bytes(facts.kept_bytes),
            facts.collectives.to_string(),
        ]);
    })?;
    Ok(show::table(&rows))
}

/// The graphs of a pass, or of the sections that its name begins.
fn texts(
    recipe: &Recipe,
    workspace: &Workspace,
    pass: &str,
    scope: Option<&str>,
) -> anyhow::Result<String> {
    let (mut names, mut found, mut shown) = (vec![], false, String::new());
    explain(recipe, workspace, &mut |name, graph| {
        names.push(name.to_owned());
        if !is_within(name, pass) {
            return;
        }
        found = true;
        let text = match scope {
            None => text::print(graph),
            Some(scope) => nodes(graph, scope),
        };
        if !text.is_empty() {
            shown += &format!("# {name}\n{text}");
        }
    })?;
    if !found {
        let names = names.join(", ");
        return Err(Usage(format!("there is no pass `{pass}`; choose one of {names}")).into());
    }
    if let Some(scope) = scope.filter(|_| shown.is_empty()) {
        let what = format!("`{pass}` has no node in scope `{scope}`");
        return Err(Usage(format!("{what}; leave out --scope to see its scopes")).into());
    }
    Ok(shown)
}

/// Whether a dotted name is another, or continues it.
fn is_within(name: &str, whole: &str) -> bool {
    name.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The lines of the nodes of a scope.
fn nodes(graph: &Graph, scope: &str) -> String {
    let text = text::print(graph);
    let is_shown = |line: &&str| {
        let mut words = line.split(' ').rev();
        let own = words.find_map(|word| word.strip_prefix('@'));
        line.starts_with('%') && own.is_some_and(|own| is_within(own, scope))
    };
    text.lines().filter(is_shown).map(|line| format!("{line}\n")).collect()
}
