//! Events are appended line by line and cut back to a step.

use aerogel_store::{CutBack, MetricsWriter, RealFs, cut_back};
use serde_json::json;

#[test]
fn lines_are_there_at_once_and_appended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    for run in 0..2 {
        let mut writer = MetricsWriter::open(&RealFs, &path).unwrap();
        writer.push(&json!({ "v": 1, "event": "start", "text": "two\nlines" })).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), run + 1);
        assert!(text.ends_with("}\n"));
    }
}

#[test]
fn later_and_torn_lines_go_and_the_others_stay_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let keep = "{\"v\":1,\"event\":\"start\"}\n{\"step\": 1,  \"x\":1.50}\n{\"step\":20}\n";
    let later = "{\"step\":21}\n{\"event\":\"warn\"}\n{\"step\":99}\n";
    for (torn_text, torn) in [("", 0), ("{\"step\":1", 1), ("{\"step\":19}", 1), ("\0\0\0\0", 1)] {
        std::fs::write(&path, format!("{keep}{later}{torn_text}")).unwrap();
        let cut = cut_back(&RealFs, &path, 20).unwrap();
        assert_eq!(cut, CutBack { kept: 4, later: 2, torn });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{keep}{{\"event\":\"warn\"}}\n"));
        assert_eq!(cut_back(&RealFs, &path, 20).unwrap(), CutBack { kept: 4, later: 0, torn: 0 });
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn garbage_inside_is_counted_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    std::fs::write(&path, b"{\"step\":1}\nnot json\n[1]\n\xff\xfe\n\n{\"step\":2}\n").unwrap();
    assert_eq!(cut_back(&RealFs, &path, 5).unwrap(), CutBack { kept: 2, later: 0, torn: 4 });
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
}

#[test]
fn a_large_file_is_cut_in_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let line = |step: u64| format!("{{\"step\":{step},\"pad\":\"{}\"}}\n", "y".repeat(100));
    let text = |steps: u64| (0..steps).map(line).collect::<String>();
    std::fs::write(&path, text(30_000)).unwrap();
    let cut = cut_back(&RealFs, &path, 24_999).unwrap();
    assert_eq!(cut, CutBack { kept: 25_000, later: 5_000, torn: 0 });
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text(25_000));
}

#[test]
fn no_file_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let none = cut_back(&RealFs, &dir.path().join("metrics.jsonl"), 1).unwrap();
    assert_eq!(none, CutBack::default());
}
