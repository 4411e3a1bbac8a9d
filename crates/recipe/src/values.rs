//! Single values: from TOML to a value that has its key's type and range.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::Problem;
use crate::schema::{Key, KeyType, MAX_AXES, MAX_AXIS_SIZE};
use crate::suggest;

/// A value that fits its key's type and range.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Integer(u64),
    Number(f64),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<u64>),
    Boolean(bool),
    /// Names and sizes, in the order of the text.
    Sizes(Vec<(String, u64)>),
    /// Names and their lists, in the order of the text.
    Lists(Vec<(String, Vec<String>)>),
}

pub(crate) type Pair<'a, 'i> = (&'a Spanned<std::borrow::Cow<'i, str>>, &'a Spanned<DeValue<'i>>);

/// A table's pairs in the order of the text, so that the first fault is the one reported.
pub(crate) fn by_position<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Pair<'a, 'i>> {
    let mut pairs: Vec<_> = table.iter().collect();
    pairs.sort_by_key(|(name, _)| name.span().start);
    pairs
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
pub(crate) fn check(key: &Key, value: &DeValue<'_>) -> Result<Value, Problem> {
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
        KeyType::Boolean => {
            value.as_bool().map(Value::Boolean).ok_or_else(|| wrong_type(key, value))
        }
        KeyType::Mesh => mesh(key, value).map(Value::Sizes),
        KeyType::AxisLists(roles) => axis_lists(key, value, roles).map(Value::Lists),
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

fn mesh(key: &Key, value: &DeValue<'_>) -> Result<Vec<(String, u64)>, Problem> {
    let table = value.as_table().ok_or_else(|| wrong_type(key, value))?;
    if !(1..=MAX_AXES).contains(&table.len()) {
        let got = format!("a table of {} axes", table.len());
        return Err(out_of_range(key, &got, &format!("a table of 1 to {MAX_AXES} axes")));
    }
    let mut axes = Vec::new();
    for (name, size) in by_position(table) {
        let name = name.get_ref().as_ref();
        if !is_identifier(name) {
            let got = format!("{{ {name:?} = {} }}", plain(size.get_ref()));
            let wanted = "named by letters, digits and _, as in { data = 2, tensor = 4 }";
            return Err(out_of_range(key, &got, wanted));
        }
        let axis = Key { key_type: KeyType::Integer(1, MAX_AXIS_SIZE), ..*key };
        let size = integer(&axis, size.get_ref(), 1, MAX_AXIS_SIZE)
            .map_err(|problem| of_part(name, problem))?;
        axes.push((name.to_string(), size));
    }
    Ok(axes)
}

/// The fault of one entry of a table, which the message then names.
fn of_part(part: &str, problem: Problem) -> Problem {
    match problem {
        Problem::Type { key, wanted, got, doc } => {
            Problem::Type { key: format!("{key}.{part}"), wanted, got, doc }
        }
        Problem::Range { key, got, wanted } => {
            Problem::Range { key: format!("{key}.{part}"), got, wanted }
        }
        other => other,
    }
}

fn is_identifier(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn axis_lists(
    key: &Key,
    value: &DeValue<'_>,
    roles: &[&str],
) -> Result<Vec<(String, Vec<String>)>, Problem> {
    let table = value.as_table().ok_or_else(|| wrong_type(key, value))?;
    let mut lists = Vec::new();
    for (role, axes) in by_position(table) {
        let role = role.get_ref().as_ref();
        if !roles.contains(&role) {
            let advice = suggest::advice(role, roles, "keys");
            let section = key.full_name();
            return Err(Problem::UnknownKey { section, key: role.into(), advice });
        }
        let list = texts(key, axes.get_ref()).map_err(|_| Problem::Type {
            key: format!("{}.{role}", key.full_name()),
            wanted: "a list of mesh axes, as in [\"data\"]".into(),
            got: describe(axes.get_ref()),
            doc: format!("it means: {}", key.doc),
        })?;
        lists.push((role.to_string(), list));
    }
    Ok(lists)
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

pub(crate) fn describe(value: &DeValue<'_>) -> String {
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
