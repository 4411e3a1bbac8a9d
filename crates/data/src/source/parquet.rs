//! A text column of Parquet files, without Arrow.

use parquet::basic::Type;
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::piece::{Assign, Content, Listed, Piece, Sink};
use crate::error::{DataError, Result};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 1024;

pub(super) fn read(listed: &Listed, column: &str, sink: &mut Sink<'_>) -> Result<()> {
    let path = &listed.file.path;
    let bad = |reason: String| DataError::bad_file(path, reason);
    let broken = |e: parquet::errors::ParquetError| bad(format!("not readable as Parquet ({e})"));
    let reader = SerializedFileReader::new(listed.file.open()?).map_err(broken)?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let columns = schema.columns();
    let at = columns.iter().position(|c| c.path().string() == column).ok_or_else(|| {
        let have: Vec<_> = columns.iter().map(|c| c.path().string()).collect();
        bad(format!("no column {column:?}; the file has: {}", have.join(", ")))
    })?;
    let facts = &columns[at];
    if facts.physical_type() != Type::BYTE_ARRAY || facts.max_rep_level() != 0 {
        return Err(bad(format!("the column {column:?} does not hold one text a row")));
    }
    let nullable = facts.max_def_level() > 0;
    let rows = reader.metadata().file_metadata().num_rows().max(1) as u64;
    let mut row = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(broken)?;
        let ColumnReader::ByteArrayColumnReader(mut texts) =
            group.get_column_reader(at).map_err(broken)?
        else {
            return Err(bad(format!("the column {column:?} does not hold text")));
        };
        let (mut values, mut levels) = (Vec::<ByteArray>::new(), Vec::new());
        loop {
            values.clear();
            levels.clear();
            let wanted = nullable.then_some(&mut levels);
            let (records, filled, _) =
                texts.read_records(BATCH_ROWS, wanted, None, &mut values).map_err(broken)?;
            if records == 0 {
                break;
            }
            if filled != records {
                let reason = format!("the column {column:?} is null here or a few rows below");
                return Err(DataError::BadRecord { path: path.clone(), line: row + 1, reason });
            }
            for value in &values {
                let text = std::str::from_utf8(value.data()).map_err(|e| {
                    let reason = format!("the column {column:?} is not UTF-8 ({e})");
                    DataError::BadRecord { path: path.clone(), line: row + 1, reason }
                })?;
                // Rows share the file's bytes evenly, as far as progress is concerned.
                let size = u128::from(listed.file.size_bytes);
                let upto = |r: u64| (size * u128::from(r.min(rows)) / u128::from(rows)) as u64;
                sink(Piece {
                    content: Content::Bytes(text.as_bytes()),
                    assign: Assign::Hash(text.as_bytes()),
                    ends: true,
                    path,
                    offset: row,
                    units: upto(row + 1) - upto(row),
                })?;
                row += 1;
            }
        }
    }
    Ok(())
}
