//! `keys`: every key of a recipe.

use aerogel_train::Exit;
use std::io::Write;

/// Prints the reference.
pub fn run() -> anyhow::Result<Exit> {
    std::io::stdout().write_all(aerogel_recipe::reference().as_bytes())?;
    Ok(Exit::Done)
}
