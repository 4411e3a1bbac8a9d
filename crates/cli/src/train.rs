//! `train`: runs the plan of a recipe, and shows how it goes.

use crate::args::{RecipeArgs, Shared};
use crate::progress::Stages;
use crate::{show, signals};
use aerogel_recipe::Recipe;
use aerogel_store::Resume;
use aerogel_train::{Event, Exit, Options, Outcome, Sink, Ties, TrainError, train};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Train a recipe, or go on with a run that was cut
#[derive(Args)]
#[command(after_help = "Example: aerogel train recipes/quick.toml train.steps=100\n\n\
    The run lies in runs/NAME. Ctrl-C saves and ends; the same command goes on from there.\n\
    With --ranks N the ranks are threads of this process, which share its cores.")]
pub struct TrainArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// auto: go on with an unfinished run of this recipe, else start one; N: go on from the
    /// checkpoint of step N; never: start beside what is there
    #[arg(long, value_name = "auto|N|never", default_value = "auto", value_parser = resume)]
    resume: Resume,
    /// One event a line on stdout, as in metrics.jsonl
    #[arg(long)]
    json: bool,
}

fn resume(text: &str) -> Result<Resume, String> {
    match text {
        "auto" => Ok(Resume::Auto),
        "never" => Ok(Resume::Never),
        _ => text.parse().map(Resume::Step).map_err(|_| {
            "give auto, never, or the number of a step that has a checkpoint".to_owned()
        }),
    }
}

/// Trains, and shows the results.
pub fn run(args: &TrainArgs, shared: &Shared) -> anyhow::Result<Exit> {
    let recipe = args.recipe.load()?;
    let stop = signals::stop_flag()?;
    let options = Options {
        workspace: shared.workspace(),
        resume: args.resume,
        stop: stop.clone(),
        ties: Some(ties(&recipe)),
    };
    let mut stages = Stages::new(stop.clone(), shared.quiet);
    let outcome = if args.json {
        train(&recipe, &options, &mut stages, &mut JsonLines { stop })?
    } else {
        let mut screen = Screen::new(&recipe, shared.quiet);
        let outcome = train(&recipe, &options, &mut stages, &mut screen)?;
        screen.clear();
        if outcome.exit == Exit::Done {
            std::io::stdout().write_all(screen.results(&outcome).as_bytes())?;
        }
        outcome
    };
    if outcome.exit == Exit::Resumable {
        eprintln!(
            "stopped after step {}, which is saved in {}; the same command goes on from there",
            outcome.step,
            outcome.folder.display()
        );
    }
    Ok(outcome.exit)
}

/// Ties that end the process where a rank does not come back: its thread cannot be ended, and
/// waits for it would never end. What was committed is good.
fn ties(recipe: &Recipe) -> Ties {
    let on_hang = Arc::new(|message: &str| {
        // Nothing is left to be done where the terminal is gone.
        let _ = writeln!(
            std::io::stderr(),
            "error: {message}\nWhat was saved is good; the same command goes on from there."
        );
        std::process::exit(Exit::Hang as i32);
    });
    let timeout = Duration::from_secs_f64(recipe.parallel.timeout_seconds);
    Ties { on_hang, ..Ties::new(timeout) }
}

/// Events on stdout.
struct JsonLines {
    stop: Arc<AtomicBool>,
}

impl Sink for JsonLines {
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        let text = serde_json::to_string(&event.line()).map_err(std::io::Error::from)?;
        match writeln!(std::io::stdout(), "{text}") {
            // Nobody reads any more: the run saves and ends, as if asked to stop.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => {
                self.stop.store(true, Ordering::Relaxed);
                Ok(())
            }
            result => Ok(result?),
        }
    }
}

/// Events for people, on stderr: a bar with lines above it, or lines alone.
struct Screen {
    quiet: bool,
    log_every: u64,
    steps: u64,
    terminal: bool,
    bar: Option<ProgressBar>,
    eval: Option<String>,
    samples: Option<(Option<String>, Vec<String>)>,
    done: Option<String>,
}

impl Screen {
    fn new(recipe: &Recipe, quiet: bool) -> Screen {
        Screen {
            quiet,
            log_every: recipe.train.log_every,
            steps: recipe.train.steps,
            terminal: std::io::stderr().is_terminal(),
            bar: None,
            eval: None,
            samples: None,
            done: None,
        }
    }

    fn start_bar(&mut self, step: u64) {
        if self.quiet || !self.terminal {
            return;
        }
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}")
            .expect("the template is a constant");
        self.bar = Some(ProgressBar::new(self.steps).with_style(style).with_position(step));
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// A line for the log.
    fn say(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.println(text),
            // A log that nobody reads is no reason to end a run.
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }

    fn step(&self, step: u64, event: &Event) {
        let line = step_line(self.steps, event);
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            if let Event::Step { loss_bits, eta_seconds, .. } = event {
                bar.set_message(format!(
                    "{loss_bits:.3} bits, {} left",
                    show::duration(*eta_seconds)
                ));
            }
        }
        if step.is_multiple_of(self.log_every.max(1)) || step == self.steps || step == 1 {
            self.say(&line);
        }
    }

    fn results(&self, outcome: &Outcome) -> String {
        let mut text = String::new();
        for line in self.eval.iter().chain(&self.done) {
            text += &format!("{line}\n");
        }
        if let Some((file, texts)) = &self.samples {
            for sample in texts {
                text += &format!("\n---- sample ----\n{sample}\n");
            }
            if let Some(file) = file {
                text += &format!("\nsamples: {}\n", outcome.folder.join(file).display());
            }
        }
        text += &format!("report:  {}\n", outcome.folder.join("report.html").display());
        text
    }
}

impl Sink for Screen {
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        match event {
            Event::Start { step, .. } => {
                for line in start_lines(event) {
                    self.say(&line);
                }
                self.start_bar(*step);
            }
            Event::Step { step, .. } => self.step(*step, event),
            Event::Eval { split, bits, unit, perplexity, seconds, .. } => {
                let line = format!("{split}: {bits:.4} bits a {unit}, perplexity {perplexity:.3}");
                self.say(&format!("{line} ({})", show::duration(*seconds)));
                self.eval = Some(line);
            }
            Event::Sample { file, text, .. } => {
                if let Some(first) = text.first() {
                    self.say(&format!("sample: {:?}", first.chars().take(80).collect::<String>()));
                }
                self.samples = Some((file.clone(), text.clone()));
            }
            Event::Checkpoint { step, checkpoint_bytes, seconds } => {
                let (size, time) = (show::bytes(*checkpoint_bytes), show::duration(*seconds));
                self.say(&format!("saved step {step}: {size} in {time}"));
            }
            Event::Warning { message, .. } => {
                let text = format!("warning: {message}");
                match &self.bar {
                    Some(bar) => bar.println(text),
                    None => eprintln!("{text}"),
                }
            }
            // The error itself is shown at the end of the process.
            Event::Stopped { .. } | Event::Failed { .. } => {}
            Event::Done { step, loss_bits, seconds, parameters_hash, .. } => {
                self.done = Some(format!(
                    "{} in {}, last loss {loss_bits:.4} bits a token, parameters {}",
                    show::plural(*step, "step", "s"),
                    show::duration(*seconds),
                    &parameters_hash[..parameters_hash.len().min(16)]
                ));
            }
        }
        Ok(())
    }
}

fn start_lines(event: &Event) -> Vec<String> {
    let Event::Start {
        step,
        run,
        resumed,
        steps,
        parameters,
        tokens_per_step,
        allocated_bytes,
        library_bytes,
        ranks,
        threads,
        ..
    } = event
    else {
        return vec![];
    };
    let from = if *resumed { format!(", resumed after step {step}") } else { String::new() };
    let ranks = match *ranks {
        1 => String::new(),
        n => format!("{}, ", show::plural(n as u64, "rank", "s")),
    };
    vec![
        format!("{run}: {}{from}", show::plural(*steps, "step", "s")),
        format!(
            "{} parameters, {} tokens a step, {} allocated and {} for libraries, {ranks}{}",
            show::count(*parameters),
            show::count(*tokens_per_step),
            show::bytes(*allocated_bytes),
            show::bytes(*library_bytes),
            show::plural(*threads as u64, "thread", "s"),
        ),
    ]
}

/// `step  10/300  loss 5.123 bits  rate 2.00e-3  norm 1.23  12,345 tokens/s  210 MiB  ETA 1:23`.
fn step_line(steps: u64, event: &Event) -> String {
    let Event::Step {
        step,
        loss_bits,
        learning_rate,
        grad_norm,
        tokens_per_second,
        resident_bytes,
        eta_seconds,
        loss_scale,
        ..
    } = event
    else {
        return String::new();
    };
    let width = steps.to_string().len();
    let scale = loss_scale.map_or(String::new(), |scale| format!("  scale {scale}"));
    format!(
        "step {step:>width$}/{steps}  loss {loss_bits:.4} bits  rate {learning_rate:.2e}  \
         norm {grad_norm:.3}{scale}  {} tokens/s  {}  ETA {}",
        show::count(tokens_per_second.round() as u64),
        show::bytes(*resident_bytes),
        show::duration(*eta_seconds),
    )
}
