//! The way in: text to [`Recipe`].

use std::path::Path;

use crate::entries;
use crate::error::{Place, Problem, RecipeError};
use crate::fields::Fields;
use crate::recipe::Recipe;
use crate::resolve;

impl Recipe {
    /// Reads a recipe from text.
    ///
    /// `file_name` names it in messages, and its stem names the run; paths of the recipe are
    /// relative to `recipe_dir`. Each override is `section.key=value` with a value as in TOML,
    /// where text may stand without quotes; an empty value drops the key. With `tiny`, the
    /// recipe's `[tiny]` table is laid over it first.
    ///
    /// # Errors
    /// The first fault by line, or the first contradiction: where, what, why, and what to do.
    pub fn parse(
        text: &str,
        file_name: &str,
        recipe_dir: &Path,
        overrides: &[String],
        tiny: bool,
    ) -> Result<Recipe, RecipeError> {
        Recipe::parse_with_ranks(text, file_name, recipe_dir, overrides, tiny, None)
    }

    /// Reads a recipe from text for so many ranks: [`Recipe::parse`] with the `--ranks N` of the
    /// command line. Without `parallel.mesh` they form one axis `data`.
    ///
    /// # Errors
    /// As [`Recipe::parse`], and where the recipe has a mesh of another number of ranks.
    pub fn parse_with_ranks(
        text: &str,
        file_name: &str,
        recipe_dir: &Path,
        overrides: &[String],
        tiny: bool,
        ranks: Option<usize>,
    ) -> Result<Recipe, RecipeError> {
        let mut entries = entries::read(text, file_name, overrides, tiny)?;
        if let Some(ranks) = ranks {
            entries::apply_ranks(ranks, &mut entries)?;
        }
        let mut fields = Fields::new(entries);
        let data = resolve::data::resolve(&mut fields)?;
        let tokenizer = resolve::data::tokenizer(&mut fields, &data)?;
        let model = resolve::model::resolve(&mut fields, &data)?;
        let parallel = resolve::parallel::resolve(&mut fields, &model, &tokenizer)?;
        let train = resolve::training::train(&mut fields, &parallel, tiny)?;
        let optimizer = resolve::training::optimizer(&mut fields)?;
        let schedule = resolve::training::schedule(&mut fields, &train)?;
        let precision = resolve::running::precision(&mut fields)?;
        let memory =
            resolve::memory::resolve(&fields, &model, &optimizer, &train, &parallel, &precision)?;
        let eval = resolve::running::eval(&mut fields, &data, &train)?;
        let sample = resolve::running::sample(&mut fields, &data, &tokenizer, &model, &train)?;
        let checkpoint = resolve::running::checkpoint(&mut fields, &train);
        let name = Path::new(file_name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        Ok(Recipe {
            name: name.unwrap_or_else(|| "recipe".into()),
            dir: recipe_dir.into(),
            tiny,
            model,
            data,
            tokenizer,
            optimizer,
            schedule,
            train,
            precision,
            memory,
            parallel,
            eval,
            sample,
            checkpoint,
            derived: fields.derived,
        })
    }

    /// Reads a recipe from a file; see [`Recipe::parse`].
    ///
    /// # Errors
    /// As [`Recipe::parse`], and where the file cannot be read.
    pub fn load(path: &Path, overrides: &[String], tiny: bool) -> Result<Recipe, RecipeError> {
        Recipe::load_with_ranks(path, overrides, tiny, None)
    }

    /// Reads a recipe from a file for so many ranks; see [`Recipe::parse_with_ranks`].
    ///
    /// # Errors
    /// As [`Recipe::parse_with_ranks`], and where the file cannot be read.
    pub fn load_with_ranks(
        path: &Path,
        overrides: &[String],
        tiny: bool,
        ranks: Option<usize>,
    ) -> Result<Recipe, RecipeError> {
        let file_name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            let problem = Problem::Unreadable { reason: error.to_string() };
            RecipeError::new(Place::File(file_name.clone()), problem)
        })?;
        let dir = path.parent().unwrap_or(Path::new(""));
        Recipe::parse_with_ranks(&text, &file_name, dir, overrides, tiny, ranks)
    }
}
