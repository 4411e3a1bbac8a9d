//! From text to checked single values: TOML, `[tiny]` and overrides become one map from
//! `section.key` to a value that has the right type and range, and knows where it came from.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Place, Problem, RecipeError};
use crate::schema::{self, Key};
use crate::suggest;
use crate::values::{Value, by_position, check, check_text, describe};

/// A value and where it was given.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub value: Value,
    pub place: Place,
    pub layer: Layer,
}

/// What a value was given by; the later overlays the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    File,
    Tiny,
    Override,
}

/// The key that says how many ranks there are.
const MESH: &str = "parallel.mesh";

/// Everything that a recipe and its overrides say.
#[derive(Debug)]
pub(crate) struct Entries {
    pub file: String,
    /// By `section.key`.
    pub values: BTreeMap<String, Entry>,
    /// Where each section that the file has begins.
    pub sections: BTreeMap<String, Place>,
}

/// Reads `text`, lays `[tiny]` over it if asked, then `overrides`, the later over the earlier.
pub(crate) fn read(
    text: &str,
    file: &str,
    overrides: &[String],
    tiny: bool,
) -> Result<Entries, RecipeError> {
    let reader = Reader { text, file };
    let document = DeTable::parse(text).map_err(|error| reader.syntax(&error))?;
    let mut entries =
        Entries { file: file.into(), values: BTreeMap::new(), sections: BTreeMap::new() };
    let mut tiny_values = None;
    for (name, value) in by_position(document.get_ref()) {
        if name.get_ref() == "tiny" {
            tiny_values = Some(reader.tiny(name, value)?);
        } else {
            reader.section(name, value, &mut entries)?;
        }
    }
    match (tiny, tiny_values) {
        (true, Some(values)) => entries.values.extend(values),
        (true, None) => {
            return Err(RecipeError::new(
                Place::File(file.into()),
                Problem::Missing {
                    key: "[tiny]".into(),
                    reason: "--tiny asks for a tiny form and this recipe has none".into(),
                    example: "a [tiny] table of overrides, as in model = { layers = 2 }".into(),
                },
            ));
        }
        (false, _) => {}
    }
    for text in overrides {
        apply_override(text, &mut entries)?;
    }
    Ok(entries)
}

/// Lays the number of ranks of the command line over the recipe: a mesh has to have as many, and
/// without one there is a single axis of data-parallel ranks.
pub(crate) fn apply_ranks(ranks: usize, entries: &mut Entries) -> Result<(), RecipeError> {
    let place = Place::Ranks(ranks);
    let size = u64::try_from(ranks).unwrap_or(u64::MAX);
    if !(1..=schema::MAX_AXIS_SIZE).contains(&size) {
        let wanted = format!("an integer from 1 to {}", schema::MAX_AXIS_SIZE);
        let problem = Problem::Range { key: "--ranks".into(), got: ranks.to_string(), wanted };
        return Err(RecipeError::new(place, problem));
    }
    let Some(entry) = entries.values.get(MESH) else {
        let value = Value::Sizes(vec![("data".into(), size)]);
        entries.values.insert(MESH.into(), Entry { value, place, layer: Layer::Override });
        return Ok(());
    };
    let Value::Sizes(mesh) = &entry.value else { unreachable!("the schema's type of the mesh") };
    let product: u128 = mesh.iter().map(|(_, size)| u128::from(*size)).product();
    if product == u128::from(size) {
        return Ok(());
    }
    let problem = Problem::Contradiction {
        what: format!("{MESH} has {product} ranks, and {ranks} are asked for"),
        why: "the sizes of the mesh multiply to the number of ranks".into(),
        advice: format!(
            "give --ranks {product}, or another parallel.mesh (`{MESH}=` drops it, and the ranks \
             form one axis \"data\")"
        ),
    };
    Err(RecipeError::new(place, problem))
}

/// Knows the text, to turn byte offsets into lines.
struct Reader<'t> {
    text: &'t str,
    file: &'t str,
}

impl Reader<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Place::Line { file: self.file.into(), line }
    }

    fn syntax(&self, error: &toml::de::Error) -> RecipeError {
        let place = match error.span() {
            Some(span) => self.place(span.start),
            None => Place::File(self.file.into()),
        };
        RecipeError::new(place, Problem::Syntax { reason: error.message().replace('\n', ", ") })
    }

    fn section(
        &self,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        entries: &mut Entries,
    ) -> Result<(), RecipeError> {
        let place = self.place(name.span().start);
        let section = name.get_ref().as_ref();
        let table = known_section(section, value.get_ref(), &place)?;
        entries.sections.insert(section.to_string(), place);
        self.keys(section, table, Layer::File, &mut entries.values)
    }

    fn tiny(
        &self,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<BTreeMap<String, Entry>, RecipeError> {
        let mut values = BTreeMap::new();
        let Some(table) = value.get_ref().as_table() else {
            return Err(not_a_section("tiny", value.get_ref(), self.place(name.span().start)));
        };
        for (name, value) in by_position(table) {
            let place = self.place(name.span().start);
            let section = name.get_ref().as_ref();
            let table = known_section(section, value.get_ref(), &place)?;
            self.keys(section, table, Layer::Tiny, &mut values)?;
        }
        Ok(values)
    }

    fn keys(
        &self,
        section: &str,
        table: &DeTable<'_>,
        layer: Layer,
        values: &mut BTreeMap<String, Entry>,
    ) -> Result<(), RecipeError> {
        for (name, value) in by_position(table) {
            let place = self.place(name.span().start);
            let key = known_key(section, name.get_ref(), &place)?;
            let value = check(key, value.get_ref())
                .map_err(|problem| RecipeError::new(place.clone(), problem))?;
            values.insert(key.full_name(), Entry { value, place, layer });
        }
        Ok(())
    }
}

fn known_section<'a, 'i>(
    name: &str,
    value: &'a DeValue<'i>,
    place: &Place,
) -> Result<&'a DeTable<'i>, RecipeError> {
    match value.as_table() {
        Some(table) if schema::sections().contains(&name) => Ok(table),
        _ if schema::sections().contains(&name) => Err(not_a_section(name, value, place.clone())),
        _ => Err(unknown_section(name, place.clone())),
    }
}

fn not_a_section(name: &str, value: &DeValue<'_>, place: Place) -> RecipeError {
    let problem = Problem::Type {
        key: format!("[{name}]"),
        wanted: "a section".into(),
        got: describe(value),
        doc: format!("write [{name}] on a line of its own and its keys below"),
    };
    RecipeError::new(place, problem)
}

/// Names the nearest section or, for a key outside of any section, the sections that have it.
fn unknown_section(name: &str, place: Place) -> RecipeError {
    let owners: Vec<String> = schema::schema()
        .iter()
        .filter(|key| key.name == name || suggest::synonym(name, &[key.name]).is_some())
        .map(|key| format!("`{}` in [{}]", key.name, key.section))
        .collect();
    let advice = match owners.is_empty() {
        true => suggest::advice(name, &schema::sections(), "sections"),
        false => format!("did you mean the key {}?", owners.join(" or ")),
    };
    RecipeError::new(place, Problem::UnknownSection { section: name.into(), advice })
}

/// The key, or an error that names the nearest one here, or the section that has it.
fn known_key(section: &str, name: &str, place: &Place) -> Result<&'static Key, RecipeError> {
    if let Some(key) = schema::find(section, name) {
        return Ok(key);
    }
    let here = schema::names_of(section);
    let elsewhere = schema::schema()
        .iter()
        .find(|key| key.name == name || suggest::synonym(name, &[key.name]).is_some());
    let near = suggest::synonym(name, &here).or_else(|| suggest::nearest(name, &here));
    let advice = match (near, elsewhere) {
        (None, elsewhere) if schema::sections().contains(&name) => {
            let also =
                elsewhere.map(|key| format!(", and [{}] has a key `{}`", key.section, key.name));
            format!("[{name}] is a section of its own{}", also.unwrap_or_default())
        }
        (None, Some(key)) => format!("did you mean `{}` in [{}]?", key.name, key.section),
        _ => suggest::advice(name, &here, "keys"),
    };
    let problem = Problem::UnknownKey { section: section.into(), key: name.into(), advice };
    Err(RecipeError::new(place.clone(), problem))
}

fn apply_override(text: &str, entries: &mut Entries) -> Result<(), RecipeError> {
    let place = Place::Override(text.into());
    let form = |reason: &str| {
        RecipeError::new(place.clone(), Problem::OverrideForm { reason: reason.into() })
    };
    let (path, value) = text.split_once('=').ok_or_else(|| form("there is no `=`"))?;
    let (section, name) =
        path.trim().split_once('.').ok_or_else(|| form("the key names no section"))?;
    if section == "tiny" {
        return Err(form("overrides already win over [tiny], so they cannot change it"));
    }
    if !schema::sections().contains(&section) {
        return Err(unknown_section(section, place));
    }
    let key = known_key(section, name, &place)?;
    let value = value.trim();
    if value.is_empty() {
        entries.values.remove(&key.full_name());
        return Ok(());
    }
    let value =
        check_text(key, value).map_err(|problem| RecipeError::new(place.clone(), problem))?;
    entries.values.insert(key.full_name(), Entry { value, place, layer: Layer::Override });
    Ok(())
}
