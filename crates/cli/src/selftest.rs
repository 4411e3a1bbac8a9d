//! `selftest`: whether this machine computes what it should.

use crate::args::{Shared, backend};
use crate::show;
use aerogel_train::selftest::{Done, Ended, SelfTest, groups, selftest};
use aerogel_train::{Backend, Exit};
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;

/// Prove the kernels on this machine: random graphs, attention, products, whole models
#[derive(Args)]
#[command(after_help = "Example: aerogel selftest --device cuda\n         \
    aerogel selftest --device cuda --only attention --cases 500 --seed 7\n\n\
    Each case runs twice, which has to give the same bits, in memory that was full of NaN, and is\n\
    compared with an interpreter in f64, or, where that would take long, with the CPU in f32.\n\
    `worst` is the largest error of a group in parts of its bound. Ends with 31 where one fails.")]
pub struct SelfTestArgs {
    /// What to test
    #[arg(long, value_name = "cpu|cuda", value_parser = backend, default_value = "cpu")]
    device: Backend,
    /// Seed of shapes and numbers
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Cases of each group [default: about a minute of them on a CPU, in all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cases: Option<u32>,
    /// One group alone, by its name in the table
    #[arg(long, value_name = "GROUP")]
    only: Option<String>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// What became of a group.
struct Tally {
    name: &'static str,
    about: &'static str,
    cases: usize,
    worst: f64,
    failures: Vec<Value>,
    seconds: f64,
}

/// Tests, and shows what came of it.
pub fn run(args: &SelfTestArgs, shared: &Shared) -> anyhow::Result<Exit> {
    let ask = SelfTest {
        backend: args.device,
        seed: args.seed,
        cases: args.cases.map(|n| n as usize),
        only: args.only.clone(),
    };
    let mut tallies: Vec<Tally> = vec![];
    let ended = selftest(&ask, &mut |done| {
        if tallies.last().is_none_or(|t| t.name != done.group) {
            let about = groups().find(|g| g.0 == done.group).map_or("", |g| g.1);
            if !shared.quiet {
                eprintln!("{}: {about}", done.group);
            }
            tallies.push(Tally::new(done.group, about));
        }
        if let Some(tally) = tallies.last_mut() {
            tally.add(&done);
        }
    })?;
    let text = match args.json {
        true => format!("{}\n", object(args, ended, &tallies)),
        false => page(args, ended, &tallies),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    let is_good = ended == Ended::Whole && tallies.iter().all(|t| t.failures.is_empty());
    Ok(if is_good { Exit::Done } else { Exit::Hardware })
}

impl Tally {
    fn new(name: &'static str, about: &'static str) -> Tally {
        Tally { name, about, cases: 0, worst: 0.0, failures: vec![], seconds: 0.0 }
    }

    fn add(&mut self, done: &Done) {
        self.cases += 1;
        self.seconds += done.seconds;
        match &done.result {
            Ok(worst) => self.worst = self.worst.max(*worst),
            Err(failure) => {
                eprintln!("failed: {} {}, {}: {failure}", done.group, done.number, done.name);
                self.failures.push(json!({
                    "number": done.number, "name": done.name, "why": failure.to_string(),
                }));
            }
        }
    }
}

fn object(args: &SelfTestArgs, ended: Ended, tallies: &[Tally]) -> Value {
    let group = |t: &Tally| {
        json!({
            "group": t.name, "cases": t.cases, "worst": t.worst, "failures": t.failures,
            "seconds": t.seconds,
        })
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"), "device": args.device.name(), "seed": args.seed,
        "whole": ended == Ended::Whole, "groups": tallies.iter().map(group).collect::<Vec<_>>(),
    })
}

fn page(args: &SelfTestArgs, ended: Ended, tallies: &[Tally]) -> String {
    let mut rows =
        vec![["group", "cases", "failed", "worst", "time", ""].map(str::to_owned).to_vec()];
    for t in tallies {
        rows.push(vec![
            t.name.to_owned(),
            t.cases.to_string(),
            t.failures.len().to_string(),
            format!("{:.2}", t.worst),
            show::duration(t.seconds),
            t.about.to_owned(),
        ]);
    }
    let mut text = show::table(&rows);
    let (cases, failed) = tallies
        .iter()
        .fold((0, 0), |(cases, failed), t| (cases + t.cases, failed + t.failures.len()));
    text += &match (ended, failed) {
        (Ended::Lost, _) => {
            "\nThe device is lost after the last of these, and nothing more was run on it.\n"
                .to_owned()
        }
        (Ended::Whole, 0) => {
            format!("\nAll {cases} cases hold on {}.\n", args.device.name())
        }
        (Ended::Whole, _) => format!(
            "\n{failed} of {cases} cases fail on {}: do not trust what it trains, and please \
             report them with --seed {}.\n",
            args.device.name(),
            args.seed
        ),
    };
    text
}
