//! Which document goes where.

use std::collections::BTreeSet;
use std::fs;

use aerogel_data::{DataError, Request, Source, Split, SplitRule, SplitSpec, TokenizerSpec};
use tempfile::tempdir;

use crate::common::{all_bytes, fails, jsonl, put, request, run, text};

fn spec(validation: f64, test: f64, seed: u64) -> SplitSpec {
    SplitSpec { validation: Some(validation), test: Some(test), seed }
}

/// Lines of every split of a prepared folder.
fn lines(request: &Request) -> [BTreeSet<String>; 3] {
    run(request);
    Split::ALL.map(|s| {
        let bytes = all_bytes(&request.out, s.name());
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    })
}

#[test]
fn fractions_are_met_and_depend_on_seed_and_identity_alone() {
    let dir = tempdir().unwrap();
    let records: Vec<String> =
        (0..4000).map(|i| format!("{{\"text\": \"document {i}\"}}")).collect();
    put(&dir.path().join("a.jsonl"), records.join("\n"));
    let mut request = request(jsonl("a.jsonl"), dir.path());
    request.split = spec(0.1, 0.2, 1);
    let [train, validation, test] = lines(&request);
    // Five standard deviations of a binomial draw.
    assert!((validation.len() as f64 - 400.0).abs() < 95.0, "{}", validation.len());
    assert!((test.len() as f64 - 800.0).abs() < 127.0, "{}", test.len());
    assert_eq!(train.len() + validation.len() + test.len(), 4000);
    assert!(train.is_disjoint(&validation) && train.is_disjoint(&test));
    assert!(validation.is_disjoint(&test));

    // Other order, other file name, fewer and repeated documents: no document moves.
    let some: Vec<_> = records.iter().rev().step_by(3).chain(&records[..9]).cloned().collect();
    put(&dir.path().join("b.jsonl"), some.join("\n"));
    request.source = jsonl("b.jsonl");
    let [a, b, c] = lines(&request);
    assert!(a.is_subset(&train) && b.is_subset(&validation) && c.is_subset(&test));

    request.source = jsonl("a.jsonl");
    request.split.seed = 2;
    assert_ne!(lines(&request)[2], test);
    // A larger validation split leaves the test split alone.
    request.split = spec(0.3, 0.2, 1);
    assert_eq!(lines(&request)[2], test);
}

#[test]
fn few_files_hold_out_their_ends() {
    let dir = tempdir().unwrap();
    let content: String = (0..1000).map(|i| format!("line {i:04}\n")).collect();
    put(&dir.path().join("a.txt"), &content);
    let mut request = request(text("a.txt"), dir.path());
    request.split = spec(0.1, 0.05, 0);
    let index = run(&request).index;
    assert_eq!(index.split_rule, SplitRule::Tail);
    let parts = Split::ALL.map(|s| all_bytes(&request.out, s.name()));
    assert_eq!(parts.concat(), content.as_bytes());
    assert_eq!(parts.each_ref().map(Vec::len), [8500, 1000, 500]);
    assert!(parts.iter().all(|p| p.ends_with(b"\n")));
}

#[test]
fn many_files_are_dealt_whole() {
    let dir = tempdir().unwrap();
    for i in 0..200 {
        put(&dir.path().join(format!("d{}/{i}.txt", i % 3)), format!("{i}\n{i}\n{i}\n"));
    }
    let mut request = request(text("**/*.txt"), dir.path());
    request.split = spec(0.3, 0.0, 0);
    let index = run(&request).index;
    assert_eq!(index.split_rule, SplitRule::Hash);
    let sizes = ["train", "validation"].map(|s| index.splits[s].documents);
    assert_eq!(sizes.iter().sum::<u64>(), 200);
    assert!((35..85).contains(&sizes[1]), "{sizes:?}");
    for split in ["train", "validation"] {
        let text = String::from_utf8(all_bytes(&request.out, split)).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.chunks(3).all(|c| c.len() == 3 && c[0] == c[1] && c[1] == c[2]));
    }
}

#[test]
fn excluded_and_hidden_files_stay_out() {
    let dir = tempdir().unwrap();
    put(&dir.path().join("src/a.rs"), "a\n");
    put(&dir.path().join("target/b.rs"), "b\n");
    put(&dir.path().join(".git/c.rs"), "c\n");
    let source = Source::Text { globs: vec!["**/*.rs".into()], exclude: vec!["target/**".into()] };
    let request = request(source, dir.path());
    run(&request);
    assert_eq!(all_bytes(&request.out, "train"), b"a\n");
}

/// Beside sources lie build products: folders that are excluded as a whole cost nothing.
#[cfg(unix)]
#[test]
fn excluded_folders_are_not_looked_into() {
    let dir = tempdir().unwrap();
    put(&dir.path().join("src/deep/a.rs"), "a\n");
    // Two links that lead back: whoever looks inside finds 2^40 paths before the system says no.
    put(&dir.path().join("target/b.rs"), "b\n");
    for name in ["one", "two"] {
        let link = dir.path().join("target").join(name);
        std::os::unix::fs::symlink(dir.path().join("target"), link).unwrap();
    }
    let cases = [
        ("**/*.rs", "target/**"),
        ("**/*.rs", "t*/**"),
        ("src/../**/deep/*.rs", "src/../target/**"),
    ];
    for (glob, exclude) in cases {
        let source = Source::Text { globs: vec![glob.into()], exclude: vec![exclude.into()] };
        let request = request(source, dir.path());
        run(&request);
        assert_eq!(all_bytes(&request.out, "train"), b"a\n", "{exclude}");
    }
}

/// Which files a pattern means, each named by how it stands to the root.
#[test]
fn patterns_mean_files() {
    let dir = tempdir().unwrap();
    let root = dir.path().join("[ro*t]");
    for name in ["a.txt", "b.md", "x/c.txt", "x/y/d.txt", "x/.e.txt", ".f.txt", "x/g.txt/h.txt"] {
        put(&root.join(name), name);
    }
    let cases: &[(&str, &[&str])] = &[
        ("*.txt", &["a.txt"]),
        ("./a.txt", &["a.txt"]),
        ("**/*.txt", &["a.txt", "x/c.txt", "x/g.txt/h.txt", "x/y/d.txt"]),
        ("**/**/y/*", &["x/y/d.txt"]),
        ("**/y/d.txt", &["x/y/d.txt"]),
        ("x/**/*.txt", &["x/c.txt", "x/g.txt/h.txt", "x/y/d.txt"]),
        ("x/../?.[a-m]?", &["b.md"]),
        ("*/*.txt", &["x/c.txt"]),
        (".f.txt", &[".f.txt"]),
        ("**/.e.txt", &["x/.e.txt"]),
        ("a.txt/**", &[]),
        ("x/**", &[]),
        ("nowhere/**/*", &[]),
    ];
    for (pattern, wanted) in cases {
        let found = text(pattern).files(&root);
        let mut wanted: Vec<_> = wanted.iter().map(|name| root.join(name)).collect();
        wanted.sort();
        match found {
            Ok(found) => {
                let plain = |p: &std::path::PathBuf| p.canonicalize().unwrap();
                let found: Vec<_> = found.iter().map(plain).collect();
                let wanted: Vec<_> = wanted.iter().map(plain).collect();
                assert_eq!(found, wanted, "{pattern}");
            }
            Err(error) => assert!(wanted.is_empty(), "{pattern}: {error}"),
        }
    }
    let absolute = dir.path().canonicalize().unwrap().join("*/a.txt").display().to_string();
    assert_eq!(text(&absolute).files(&root).unwrap().len(), 1);
}

#[test]
fn wrong_fractions_are_refused() {
    let dir = tempdir().unwrap();
    put(&dir.path().join("a.txt"), "some text\n");
    let mut request = request(text("a.txt"), dir.path());
    for (validation, test) in [(1.0, 0.0), (-0.1, 0.0), (0.6, 0.5), (f64::NAN, 0.0)] {
        request.split = spec(validation, test, 0);
        let error = fails(&request);
        assert!(matches!(error, DataError::BadOption { .. }), "{error}");
        assert_eq!(error.exit_code(), 20);
    }
    // One line cannot be divided.
    request.split = spec(0.1, 0.0, 0);
    let error = fails(&request);
    assert!(matches!(error, DataError::EmptySplit { split: "validation", .. }), "{error}");
}

#[test]
fn a_fraction_for_a_split_that_exists_is_refused() {
    let dir = tempdir().unwrap();
    for name in ["train.bin", "val.bin"] {
        fs::write(dir.path().join(name), [1, 0, 2, 0]).unwrap();
    }
    let (train, validation) = (vec!["train.bin".into()], vec!["val.bin".into()]);
    let source = Source::Bin { train, validation, layout: Default::default() };
    let mut request = request(source, dir.path());
    request.tokenizer = TokenizerSpec::None { vocabulary: 3 };
    request.split.validation = Some(0.1);
    let error = fails(&request);
    assert!(error.to_string().contains("files of its own"), "{error}");
    request.split.validation = None;
    assert_eq!(run(&request).index.splits["validation"].tokens, 2);
}
