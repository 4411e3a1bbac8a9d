//! Errors as a user sees them: one message on stderr, and the exit code.

use aerogel_data::DataError;
use aerogel_recipe::RecipeError;
use aerogel_store::StoreError;
use aerogel_train::{Exit, TrainError};
use std::io::ErrorKind;
use std::process::ExitCode;

/// A command line that parses and still cannot be obeyed: what, and what to do.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A panic is a bug: says so, instead of a bare backtrace.
pub fn ask_for_reports() {
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        shown(info);
        eprintln!(
            "error: this is a bug of aerogel {}. Please report it with the command, the recipe \
             and the lines above; checkpoints that were committed are good.",
            env!("CARGO_PKG_VERSION")
        );
    }));
}

/// Ends after a command line that does not parse, or with the help that was asked for.
pub fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to be done where the terminal is gone.
    let _ = error.print();
    match error.use_stderr() {
        true => ExitCode::from(Exit::Recipe as u8),
        false => ExitCode::SUCCESS,
    }
}

/// Ends after an error.
pub fn end(error: &anyhow::Error) -> ExitCode {
    // The reader of a pipe, as `head`, has read enough.
    if is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {error}");
    ExitCode::from(code(error))
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}

fn code(error: &anyhow::Error) -> u8 {
    if let Some(e) = error.downcast_ref::<TrainError>() {
        return e.exit() as u8;
    }
    if let Some(e) = error.downcast_ref::<DataError>() {
        return e.exit_code();
    }
    let exit = if let Some(e) = error.downcast_ref::<StoreError>() {
        match e.kind() {
            aerogel_store::ErrorKind::Storage => Exit::Storage,
            aerogel_store::ErrorKind::Choice => Exit::Recipe,
            aerogel_store::ErrorKind::Bug => Exit::Bug,
        }
    } else if error.is::<RecipeError>() || error.is::<Usage>() {
        Exit::Recipe
    } else if error.is::<std::io::Error>() {
        Exit::Storage
    } else {
        Exit::Bug
    };
    exit as u8
}
