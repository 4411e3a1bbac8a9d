//! JSON objects, one a line.

use std::io::{BufRead, BufReader, Read};

use serde_json::Value;

use super::piece::{Assign, Content, Listed, Piece, Sink};
use crate::error::{DataError, Result};

/// A longer line is refused: it is no document but a file of another kind.
const MAX_LINE_BYTES: u64 = 1 << 28;

pub(super) fn read(listed: &Listed, field: &str, sink: &mut Sink<'_>) -> Result<()> {
    let path = &listed.file.path;
    let mut reader = BufReader::with_capacity(1 << 18, listed.file.open()?);
    let mut line = Vec::new();
    let (mut number, mut offset) = (0, 0);
    loop {
        line.clear();
        let limit = MAX_LINE_BYTES + 1;
        let got = reader.by_ref().take(limit).read_until(b'\n', &mut line);
        let got = got.map_err(|e| DataError::read(path, e))? as u64;
        if got == 0 {
            return Ok(());
        }
        number += 1;
        let bad = |reason| DataError::BadRecord { path: path.clone(), line: number, reason };
        if got == limit {
            return Err(bad(format!("a line of over {MAX_LINE_BYTES} bytes is no JSONL record")));
        }
        if !line.trim_ascii().is_empty() {
            let text = field_of(&line, field).map_err(bad)?;
            sink(Piece {
                content: Content::Bytes(text.as_bytes()),
                assign: Assign::Hash(text.as_bytes()),
                ends: true,
                path,
                offset,
                units: got,
            })?;
        }
        offset += got;
    }
}

fn field_of(line: &[u8], field: &str) -> Result<String, String> {
    let value: Value = serde_json::from_slice(line)
        .map_err(|e| format!("not JSON ({e}); every line has to be one JSON object"))?;
    let Value::Object(mut object) = value else {
        return Err("not a JSON object; every line has to be one".to_owned());
    };
    match object.remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("the field {field:?} is {}, wanted a string", kind(&other))),
        None => {
            let have = object.keys().take(8).cloned().collect::<Vec<_>>().join(", ");
            Err(format!("no field {field:?}; the object has: {have}"))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
