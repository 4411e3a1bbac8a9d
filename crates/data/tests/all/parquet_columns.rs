//! Text columns of Parquet files.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use aerogel_data::{DataError, Source};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use tempfile::tempdir;

use crate::common::{all_bytes, fails, put, request, run};

/// A file with the columns `id`, `text` and `note`, in row groups of 3.
fn write(path: &Path, texts: &[&str], notes: &[Option<&str>]) {
    let schema = "message m { required int32 id; required binary text (UTF8); \
                  optional binary note (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = File::create(path).unwrap();
    let mut file = SerializedFileWriter::new(file, schema, Default::default()).unwrap();
    for (texts, notes) in texts.chunks(3).zip(notes.chunks(3)) {
        let mut group = file.next_row_group().unwrap();
        let ids: Vec<i32> = (0..texts.len() as i32).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int32Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let values: Vec<ByteArray> = texts.iter().map(|&t| t.into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
        let values: Vec<ByteArray> = notes.iter().flatten().map(|&t| t.into()).collect();
        let levels: Vec<i16> = notes.iter().map(|n| i16::from(n.is_some())).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    file.close().unwrap();
}

fn source(column: &str) -> Source {
    Source::Parquet { globs: vec!["*.parquet".into()], column: column.into() }
}

#[test]
fn rows_become_documents_and_bad_columns_are_named() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let notes = [Some("n1"), Some("n2"), Some("n3"), Some("n4")];
    write(&path, &["one", "two", "", "four"], &notes);
    let index = run(&request(source("text"), dir.path())).index;
    let out = dir.path().join("out");
    assert_eq!(all_bytes(&out, "train"), b"one\ntwo\nfour\n");
    assert_eq!((index.splits["train"].documents, index.skipped.empty_documents), (3, 1));
    run(&request(source("note"), dir.path()));
    assert_eq!(all_bytes(&out, "train"), b"n1\nn2\nn3\nn4\n");
    std::fs::remove_dir_all(&out).unwrap();

    let error = fails(&request(source("body"), dir.path())).to_string();
    assert!(error.contains("no column \"body\"; the file has: id, text, note"), "{error}");
    let error = fails(&request(source("id"), dir.path())).to_string();
    assert!(error.contains("does not hold one text a row"), "{error}");

    write(&path, &["a", "b", "c", "d"], &[Some("x"), None, Some("y"), None]);
    let error = fails(&request(source("note"), dir.path()));
    assert!(matches!(error, DataError::BadRecord { line: 1, .. }), "{error}");

    put(&path, "not parquet at all");
    let error = fails(&request(source("text"), dir.path())).to_string();
    assert!(error.contains("a.parquet: not readable as Parquet"), "{error}");
}
