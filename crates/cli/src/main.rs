//! The `aerogel` binary: one file a command, presentation only.
//!
//! A command reads its arguments, calls the crates below and shows what they say: results on
//! stdout, progress and errors on stderr. The invariant: every end of the process has one of the
//! exit codes that `--help` lists. Tests run the binary, in `tests/`.

mod args;
mod bench;
mod command;
mod doctor;
mod eval;
mod explain;
mod failure;
mod hardware;
mod inspect;
mod keys;
mod plan;
mod prepare;
mod progress;
mod sample;
mod selftest;
mod show;
mod signals;
mod train;

use aerogel_train::Exit;
use clap::Parser;
use command::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    failure::ask_for_reports();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::usage(&error),
    };
    match run(cli) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(error) => failure::end(&error),
    }
}

fn run(cli: Cli) -> anyhow::Result<Exit> {
    let shared = cli.shared;
    match cli.command {
        Command::Prepare(args) => prepare::run(&args, &shared),
        Command::Plan(args) => plan::run(&args, &shared),
        Command::Explain(args) => explain::run(&args, &shared),
        Command::Train(args) => train::run(&args, &shared),
        Command::Eval(args) => eval::run(&args, &shared),
        Command::Sample(args) => sample::run(&args, &shared),
        Command::Inspect(args) => inspect::run(&args, &shared),
        Command::Bench(args) => bench::run(&args, &shared),
        Command::Doctor(args) => doctor::run(&args, &shared),
        Command::Selftest(args) => selftest::run(&args, &shared),
        Command::Keys => keys::run(),
    }
}
