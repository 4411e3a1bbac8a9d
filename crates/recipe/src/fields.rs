//! Typed access to the entries for the resolvers: given or default, missing, idle, contradictory.

use crate::choices::Choice;
use crate::entries::{Entries, Entry};
use crate::error::{Place, Problem, RecipeError};
use crate::recipe::Derived;
use crate::schema::{self, DefaultValue, Key};
use crate::values::{self, Value};

/// The entries under resolution, and the defaults derived so far. Keys are `section.key`, and
/// name only keys of the schema; a slip is a bug of this crate that every test would hit.
pub(crate) struct Fields {
    entries: Entries,
    pub derived: Vec<Derived>,
}

/// A Rust type that a value of the recipe turns into.
pub(crate) trait FromValue: Sized {
    fn from_value(value: &Value) -> Option<Self>;
}

macro_rules! from_value {
    ($($kind:ty: $pattern:pat => $result:expr;)*) => {$(
        impl FromValue for $kind {
            fn from_value(value: &Value) -> Option<Self> {
                match value { $pattern => Some($result), _ => None }
            }
        }
    )*};
}

from_value! {
    u64: Value::Integer(x) => *x;
    usize: Value::Integer(x) => *x as usize;
    f64: Value::Number(x) => *x;
    String: Value::Text(x) => x.clone();
    Vec<String>: Value::Texts(x) => x.clone();
    Vec<u64>: Value::Integers(x) => x.clone();
    bool: Value::Boolean(x) => *x;
    Vec<(String, usize)>: Value::Sizes(x) => {
        x.iter().map(|(name, size)| (name.clone(), *size as usize)).collect()
    };
    Vec<(String, Vec<String>)>: Value::Lists(x) => x.clone();
}

impl Fields {
    pub fn new(entries: Entries) -> Fields {
        Fields { entries, derived: Vec::new() }
    }

    pub fn is_set(&self, key: &str) -> bool {
        self.entries.values.contains_key(key)
    }

    /// The value that was given.
    pub fn given<T: FromValue>(&self, key: &str) -> Option<T> {
        let entry = self.entries.values.get(key)?;
        Some(T::from_value(&entry.value).expect("the schema's type of the key"))
    }

    /// The value that was given, or the schema's fixed default.
    pub fn get<T: FromValue>(&self, key: &str) -> T {
        self.given(key).unwrap_or_else(|| {
            let row = row(key);
            let DefaultValue::Value(text) = row.default else {
                panic!("{key} has no fixed default")
            };
            let value = values::check_text(row, text).expect("a valid default");
            T::from_value(&value).expect("the schema's type of the key")
        })
    }

    /// The value that was given; `reason` says why there has to be one.
    pub fn require<T: FromValue>(
        &self,
        key: &str,
        reason: &str,
        example: &str,
    ) -> Result<T, RecipeError> {
        self.given(key).ok_or_else(|| {
            let section = row(key).section;
            let place = self.entries.sections.get(section).cloned();
            let problem = Problem::Missing {
                key: key.into(),
                reason: reason.into(),
                example: format!("`{example}` to [{section}]"),
            };
            RecipeError::new(place.unwrap_or(Place::File(self.entries.file.clone())), problem)
        })
    }

    /// The value that was given, or `value`, which is noted with the reason for it.
    pub fn derive<T: FromValue>(&mut self, key: &str, value: T, shown: &str, reason: &str) -> T {
        self.given(key).unwrap_or_else(|| {
            self.note(key, shown, reason);
            value
        })
    }

    /// Notes that `key`, or a part of it, was derived.
    pub fn note(&mut self, key: &str, shown: &str, reason: &str) {
        let (key, value, reason) = (key.into(), shown.into(), reason.into());
        self.derived.push(Derived { key, value, reason });
    }

    /// The choice that was given, or the schema's fixed default.
    pub fn choice<T: Choice>(&self, key: &str) -> T {
        T::from_name(&self.get::<String>(key)).expect("a word of the schema")
    }

    /// The words of a list of choices.
    pub fn choices<T: Choice>(&self, key: &str) -> Option<Vec<T>> {
        let words: Vec<String> = self.given(key)?;
        Some(words.iter().map(|word| T::from_name(word).expect("a word of the schema")).collect())
    }

    /// An error for the first of `keys` that was given: `because` makes it idle.
    pub fn refuse(&self, keys: &[&str], because: &str, advice: &str) -> Result<(), RecipeError> {
        for key in keys {
            if let Some(Entry { place, .. }) = self.entries.values.get(*key) {
                let problem = Problem::NoEffect {
                    key: (*key).into(),
                    because: because.into(),
                    advice: format!("{advice}{}", dropping(key, place)),
                };
                return Err(RecipeError::new(self.blame(&[key]), problem));
            }
        }
        Ok(())
    }

    /// Values that do not go together; the most suspicious key first.
    pub fn clash(&self, keys: &[&str], what: String, why: &str, advice: String) -> RecipeError {
        RecipeError::new(self.blame(keys), Problem::Contradiction { what, why: why.into(), advice })
    }

    /// The place of the given key that came last, as it broke what held before it.
    fn blame(&self, keys: &[&str]) -> Place {
        let given = keys.iter().filter_map(|key| self.entries.values.get(*key));
        // `rev`, as `max_by_key` takes the last of equals and the first of `keys` is the culprit.
        let last = given.rev().max_by_key(|entry| entry.layer);
        last.map_or_else(|| Place::File(self.entries.file.clone()), |entry| entry.place.clone())
    }
}

/// How to drop a key: where the file has it, an override can.
fn dropping(key: &str, place: &Place) -> String {
    match place {
        Place::Override(_) | Place::Ranks(_) => String::new(),
        _ => format!(" (or override with `{key}=`, which drops it)"),
    }
}

fn row(key: &str) -> &'static Key {
    let (section, name) = key.split_once('.').expect("section.key");
    schema::find(section, name).expect("a key of the schema")
}
