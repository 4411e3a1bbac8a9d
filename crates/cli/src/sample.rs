//! `sample`: text or pictures out of a trained model.

use crate::args::Shared;
use crate::eval::RunArgs;
use crate::failure::Usage;
use crate::show;
use aerogel_data::{ImageShape, read_image};
use aerogel_store::{RealFs, write_atomic};
use aerogel_train::{Exit, Opened, Samples, Sampling, grid, sample};
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Draw text, or a PNG of images, from a trained model
#[derive(Args)]
#[command(
    after_help = "Examples: aerogel sample quick --prompt 'fn main' --tokens 200\n          \
    aerogel sample cifar10-strided --complete a.png b.png --out completed.png\n\n\
    The same run, step and options give the same samples."
)]
pub struct SampleArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Samples to draw [default: sample.count of the recipe]
    #[arg(long, value_name = "N", conflicts_with = "complete")]
    count: Option<usize>,
    /// Tokens of a sample, the prompt included [default: sample.tokens of the recipe]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Divides the logits; 0 takes the likeliest token [default: the recipe's]
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Draw out of the likeliest K tokens; 0 draws out of all [default: the recipe's]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Text that every sample continues [default: the recipe's]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Seed of the draws [default: the recipe's]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Images of the model's size, whose lower halves are drawn anew
    #[arg(long, value_name = "IMAGE.png", num_args = 1..)]
    complete: Vec<PathBuf>,
    /// Where the PNG goes [default: samples/ of the run]
    #[arg(long, value_name = "FILE.png")]
    out: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Draws, and shows it.
pub fn run(args: &SampleArgs, shared: &Shared) -> anyhow::Result<Exit> {
    check(args)?;
    let samples = if args.complete.is_empty() { args.count } else { Some(args.complete.len()) };
    let mut opened = args.run.open(shared, samples)?;
    match opened.data.index().image {
        Some(shape) => images(args, &mut opened, shape)?,
        None => text(args, &mut opened)?,
    }
    Ok(Exit::Done)
}

fn refuse(text: &str) -> anyhow::Error {
    Usage(text.to_owned()).into()
}

fn check(args: &SampleArgs) -> anyhow::Result<()> {
    if args.count == Some(0) || args.tokens == Some(0) {
        return Err(refuse("--count and --tokens have to be 1 at least"));
    }
    match args.temperature {
        Some(t) if !(t.is_finite() && t >= 0.0) => {
            Err(refuse("--temperature has to be a number of 0 or more; 1 is the model's own"))
        }
        _ => Ok(()),
    }
}

/// The recipe's way to sample with what the command line changes.
fn sampling(
    args: &SampleArgs,
    opened: &Opened,
    prefixes: Vec<Vec<u32>>,
    tokens: usize,
) -> Sampling {
    let own = &opened.recipe.sample;
    Sampling {
        prefixes,
        tokens,
        temperature: args.temperature.unwrap_or(own.temperature),
        top_k: args.top_k.unwrap_or(own.top_k),
        seed: args.seed.unwrap_or(own.seed),
    }
}

fn images(args: &SampleArgs, opened: &mut Opened, shape: ImageShape) -> anyhow::Result<()> {
    if args.prompt.is_some() || args.tokens.is_some() {
        let text = "--prompt and --tokens are for text and this model draws whole images; \
                    give upper halves with --complete";
        return Err(refuse(text));
    }
    let upper = shape.height as usize / 2 * shape.row_tokens();
    let mut prefixes = vec![vec![]; args.count.unwrap_or(opened.recipe.sample.count.max(1))];
    if !args.complete.is_empty() {
        let half = |path: &PathBuf| {
            let bytes = read_image(path, shape)?;
            Ok(bytes[..upper].iter().map(|&b| u32::from(b)).collect())
        };
        prefixes = args.complete.iter().map(half).collect::<anyhow::Result<_>>()?;
    }
    let ask = sampling(args, opened, prefixes, shape.tokens());
    let drawn = sample(&mut opened.session, &ask)?;
    let name = format!("drawn-step-{:08}-seed-{}.png", opened.step, ask.seed);
    let path = match &args.out {
        Some(path) => path.clone(),
        None => opened.folder.join("samples").join(name),
    };
    write(&path, &grid(&drawn.tokens, shape)?)?;
    let line = match args.json {
        true => object(opened, &ask, &drawn, json!({ "file": path })),
        false => format!(
            "{}: {} of step {}, seed {}, in {}",
            path.display(),
            show::plural(drawn.tokens.len() as u64, "image", "s"),
            opened.step,
            ask.seed,
            show::duration(drawn.seconds)
        ),
    };
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    // A bare file name has the empty folder, which is the working directory.
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder)?;
    }
    Ok(write_atomic(&RealFs, &Path::new(".").join(path), bytes)?)
}

fn text(args: &SampleArgs, opened: &mut Opened) -> anyhow::Result<()> {
    if !args.complete.is_empty() || args.out.is_some() {
        let text = "--complete and --out are for images and this model writes text, to stdout; \
                    leave them out";
        return Err(refuse(text));
    }
    let own = &opened.recipe.sample;
    let tokenizer = opened.data.tokenizer()?;
    let prompt = match (args.prompt.as_ref().or(own.prompt.as_ref()), &tokenizer) {
        (Some(text), Some(t)) => t.encode(text.as_bytes())?,
        (Some(_), None) => {
            return Err(refuse("a prompt needs a tokenizer, and this data came without one"));
        }
        (None, _) => vec![],
    };
    let count = args.count.unwrap_or(own.count.max(1));
    let tokens = args.tokens.unwrap_or(own.tokens);
    let ask = sampling(args, opened, vec![prompt; count], tokens);
    let drawn = sample(&mut opened.session, &ask)?;
    let texts = drawn
        .tokens
        .iter()
        .map(|tokens| match &tokenizer {
            Some(t) => Ok(String::from_utf8_lossy(&t.decode(tokens)?).into_owned()),
            None => Ok(tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
        })
        .collect::<anyhow::Result<Vec<String>>>()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        return Ok(writeln!(out, "{}", object(opened, &ask, &drawn, json!({ "text": texts })))?);
    }
    for (n, text) in texts.iter().enumerate() {
        if n > 0 {
            writeln!(out, "\n---- sample {} ----", n + 1)?;
        }
        writeln!(out, "{text}")?;
    }
    Ok(())
}

fn object(opened: &Opened, ask: &Sampling, drawn: &Samples, more: serde_json::Value) -> String {
    let mut value = json!({
        "run": opened.folder, "step": opened.step, "seed": ask.seed, "tokens": ask.tokens,
        "temperature": ask.temperature, "top_k": ask.top_k, "seconds": drawn.seconds,
    });
    if let (Some(all), serde_json::Value::Object(more)) = (value.as_object_mut(), more) {
        all.extend(more);
    }
    value.to_string()
}
