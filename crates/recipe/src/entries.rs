//! From text to checked single values: TOML, `[tiny]` and overrides become one map from
//! `section.key` to a value that has the right type and range, and knows where it came from.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Place, Problem, RecipeError};
use crate::schema::{self, Key, KeyType};
use crate::suggest;

/// A value that fits its key's type and range.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Integer(u64),
    Number(f64),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<u64>),
}

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

type Pair<'a, 'i> = (&'a Spanned<std::borrow::Cow<'i, str>>, &'a Spanned<DeValue<'i>>);

/// A table's pairs in the order of the text, so that the first fault is the one reported.
fn by_position<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Pair<'a, 'i>> {
    let mut pairs: Vec<_> = table.iter().collect();
    pairs.sort_by_key(|(name, _)| name.span().start);
    pairs
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
        (None, Some(key)) => format!("did you mean `{}` in [{}]?", key.name, key.section),
        (None, None) if schema::sections().contains(&name) => {
            format!("[{name}] is a section of its own")
        }
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

/// Checks a value written as TOML or, as shells eat quotes, as bare text.
pub(crate) fn check_text(key: &Key, text: &str) -> Result<Value, Problem> {
    match DeValue::parse(text) {
        Ok(value) if !is_bare_text(key, value.get_ref()) => check(key, value.get_ref()),
        _ => check(key, &DeValue::String(text.into())),
    }
}

/// Whether a text was meant where TOML reads something else, as in `sample.prompt=1984`.
fn is_bare_text(key: &Key, value: &DeValue<'_>) -> bool {
    matches!(key.key_type, KeyType::Text) && !value.is_str()
}

/// Checks type and range of one value.
fn check(key: &Key, value: &DeValue<'_>) -> Result<Value, Problem> {
    match key.key_type {
        KeyType::Integer(min, max) => integer(key, value, min, max).map(Value::Integer),
        KeyType::Number(range) => {
            let x = number(value).ok_or_else(|| wrong_type(key, value))?;
            match range.contains(x) {
                true => Ok(Value::Number(x)),
                false => Err(out_of_range(key, &plain(value), &range.to_string())),
            }
        }
        KeyType::Text => text(key, value).map(|text| Value::Text(text.into())),
        KeyType::Choice(words) => {
            let word = value.as_str().ok_or_else(|| wrong_type(key, value))?;
            choice(key, word, words).map(Value::Text)
        }
        KeyType::Choices(words) => {
            let list = texts(key, value)?;
            if list.is_empty() {
                return Err(out_of_range(key, "[]", "a list of at least one entry"));
            }
            list.iter()
                .map(|word| choice(key, word, words))
                .collect::<Result<_, _>>()
                .map(Value::Texts)
        }
        KeyType::Texts => {
            let list = texts(key, value)?;
            if list.iter().any(String::is_empty) {
                return Err(out_of_range(key, &plain(value), "a list of texts that are not empty"));
            }
            Ok(Value::Texts(list))
        }
        KeyType::ImageShape => image_shape(key, value).map(Value::Integers),
        KeyType::Bytes => bytes(key, value).map(Value::Integer),
    }
}

fn integer(key: &Key, value: &DeValue<'_>, min: u64, max: u64) -> Result<u64, Problem> {
    let literal = value.as_integer().ok_or_else(|| wrong_type(key, value))?;
    i128::from_str_radix(literal.as_str(), literal.radix())
        .ok()
        .and_then(|x| u64::try_from(x).ok())
        .filter(|x| (min..=max).contains(x))
        .ok_or_else(|| out_of_range(key, &plain(value), &KeyType::Integer(min, max).to_string()))
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Float(x) => x.as_str().parse().ok(),
        DeValue::Integer(x) => i128::from_str_radix(x.as_str(), x.radix()).ok().map(|x| x as f64),
        _ => None,
    }
}

fn text<'a>(key: &Key, value: &'a DeValue<'_>) -> Result<&'a str, Problem> {
    match value.as_str() {
        None => Err(wrong_type(key, value)),
        Some("") => Err(out_of_range(key, "\"\"", "a text that is not empty")),
        Some(text) => Ok(text),
    }
}

fn texts(key: &Key, value: &DeValue<'_>) -> Result<Vec<String>, Problem> {
    let list = value.as_array().ok_or_else(|| wrong_type(key, value))?;
    list.iter()
        .map(|item| item.get_ref().as_str().map(str::to_string))
        .collect::<Option<_>>()
        .ok_or_else(|| wrong_type(key, value))
}

fn choice(key: &Key, word: &str, words: &[&str]) -> Result<String, Problem> {
    if words.contains(&word) {
        return Ok(word.into());
    }
    let advice = suggest::advice(word, words, "choices");
    Err(Problem::Choice { key: key.full_name(), got: word.into(), advice })
}

fn image_shape(key: &Key, value: &DeValue<'_>) -> Result<Vec<u64>, Problem> {
    let list = value.as_array().ok_or_else(|| wrong_type(key, value))?;
    if list.len() != 3 {
        return Err(out_of_range(
            key,
            &plain(value),
            "[height, width, channels], as in [32, 32, 3]",
        ));
    }
    let shape: Vec<u64> =
        list.iter().map(|item| integer(key, item.get_ref(), 1, 4096)).collect::<Result<_, _>>()?;
    match matches!(shape[2], 1 | 3) {
        true => Ok(shape),
        false => Err(out_of_range(key, &plain(value), "of 1 channel (grey) or 3 (colour)")),
    }
}

const UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

fn bytes(key: &Key, value: &DeValue<'_>) -> Result<u64, Problem> {
    if value.is_integer() {
        return integer(key, value, 1, i64::MAX as u64);
    }
    let text = value.as_str().ok_or_else(|| wrong_type(key, value))?;
    let wrong = || {
        let wanted =
            "a number and a unit (KiB, MiB, GiB, TiB, kB, MB, GB, TB or B), as in \"8GiB\"";
        out_of_range(key, &plain(value), wanted)
    };
    let (digits, unit) = UNITS
        .iter()
        .find_map(|(unit, size)| Some((text.strip_suffix(unit)?.trim(), *size as f64)))
        .ok_or_else(wrong)?;
    let size = digits.parse::<f64>().map_err(|_| wrong())? * unit;
    match size >= 1.0 && size < i64::MAX as f64 {
        true => Ok(size as u64),
        false => Err(wrong()),
    }
}

fn wrong_type(key: &Key, value: &DeValue<'_>) -> Problem {
    Problem::Type {
        key: key.full_name(),
        wanted: key.key_type.to_string(),
        got: describe(value),
        doc: format!("it means: {}", key.doc),
    }
}

fn out_of_range(key: &Key, got: &str, wanted: &str) -> Problem {
    Problem::Range { key: key.full_name(), got: got.into(), wanted: wanted.into() }
}

fn describe(value: &DeValue<'_>) -> String {
    let kind = match value {
        DeValue::String(_) => "the text",
        DeValue::Integer(_) => "the integer",
        DeValue::Float(_) => "the number",
        DeValue::Boolean(_) => "the boolean",
        DeValue::Datetime(_) => "the date",
        DeValue::Array(_) => "the list",
        DeValue::Table(_) => return "a table".into(),
    };
    format!("{kind} {}", plain(value))
}

/// The value as a user would write it.
fn plain(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("\"{text}\""),
        DeValue::Integer(x) => x.to_string(),
        DeValue::Float(x) => x.as_str().into(),
        DeValue::Boolean(x) => x.to_string(),
        DeValue::Datetime(x) => x.to_string(),
        DeValue::Array(list) => {
            let items: Vec<String> = list.iter().map(|item| plain(item.get_ref())).collect();
            format!("[{}]", items.join(", "))
        }
        DeValue::Table(_) => "{...}".into(),
    }
}
