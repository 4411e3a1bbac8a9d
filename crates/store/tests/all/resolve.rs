//! Which run folder a command works in.

use std::path::Path;
use std::sync::Arc;

use aerogel_store::Resume::{Auto, Never, Step};
use aerogel_store::RunStatus::{Done, Running, Stopped};
use aerogel_store::{ErrorKind, Fs, RealFs, Resume, RunDir, RunRecord, RunStatus, StoreError};
use aerogel_store::{Resolution, Result, Start, resolve};

use super::common::commit;

fn fs() -> Arc<dyn Fs> {
    Arc::new(RealFs)
}

fn make(runs: &Path, folder: &str, name: &str, hash: &str, status: RunStatus, steps: &[u64]) {
    let dir = RunDir::new(fs(), runs.join(folder));
    let lock = dir.lock().unwrap();
    let record = RunRecord { status, ..RunRecord::begin(name, hash, "plan") };
    dir.write_record(&record, &lock).unwrap();
    assert_eq!(dir.read_record().unwrap(), Some(record));
    for step in steps {
        commit(&dir.checkpoints(), *step).unwrap();
    }
}

fn ask(runs: &Path, hash: &str, resume: Resume) -> Result<Resolution> {
    resolve(&fs(), runs, "r", hash, resume)
}

/// Folders as (folder, name, hash, status), the question, the answer.
type Row<'a> = (&'a [(&'a str, &'a str, &'a str, RunStatus)], &'a str, Resume, &'a str, Start);

#[test]
fn the_table_of_answers() {
    let table: &[Row<'_>] = &[
        (&[], "a", Auto, "r", Start::New),
        (&[], "a", Never, "r", Start::New),
        (&[("r", "r", "a", Running)], "a", Auto, "r", Start::Latest),
        (&[("r", "r", "a", Stopped)], "a", Auto, "r", Start::Latest),
        (&[("r", "r", "a", Done)], "a", Auto, "r-2", Start::New),
        (&[("r", "r", "b", Done)], "a", Auto, "r-2", Start::New),
        (&[("r", "r", "a", Running)], "a", Never, "r-2", Start::New),
        (&[("r", "r", "b", Running)], "a", Never, "r-2", Start::New),
        (&[("r", "r", "a", Done), ("r-2", "r", "a", Stopped)], "a", Auto, "r-2", Start::Latest),
        (&[("r", "r", "a", Stopped), ("r-2", "r", "b", Stopped)], "a", Auto, "r", Start::Latest),
        (&[("r", "r", "a", Done), ("r-2", "r", "a", Done)], "a", Auto, "r-3", Start::New),
        (&[("r", "r", "b", Running), ("r-2", "r", "a", Done)], "a", Auto, "r-3", Start::New),
        (&[("r", "r", "a", Done), ("r-7", "r", "a", Done)], "a", Auto, "r-8", Start::New),
        (&[("r", "r", "a", Done), ("r-10", "r", "a", Running)], "a", Auto, "r-10", Start::Latest),
        // A folder of the family's form that belongs to another name only takes the name.
        (&[("r", "r", "a", Done), ("r-2", "r-2", "z", Running)], "a", Auto, "r-3", Start::New),
        (&[("r-2", "r", "a", Done)], "a", Never, "r-3", Start::New),
        (&[("r-02", "x", "a", Done), ("rr", "rr", "b", Running)], "a", Auto, "r", Start::New),
    ];
    for (folders, hash, resume, folder, start) in table {
        let runs = tempfile::tempdir().unwrap();
        for (folder, name, hash, status) in *folders {
            make(runs.path(), folder, name, hash, *status, &[]);
        }
        let answer = ask(runs.path(), hash, *resume).unwrap();
        let path = runs.path().join(folder);
        let wanted = Resolution { folder: (*folder).to_owned(), path, start: *start };
        assert_eq!(answer, wanted, "{folders:?} {hash} {resume:?}");
    }
}

#[test]
fn another_recipe_is_an_error_with_both_choices() {
    let runs = tempfile::tempdir().unwrap();
    make(runs.path(), "r", "r", "b", Stopped, &[10]);
    for resume in [Auto, Step(10)] {
        let error = ask(runs.path(), "a", resume).unwrap_err();
        assert!(matches!(&error, StoreError::WrongRun { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Choice);
        let text = error.to_string();
        assert!(text.contains("r-2") && text.contains("--resume never"), "{text}");
        assert!(text.contains("run_hash b") && text.contains("continue it"), "{text}");
    }
}

#[test]
fn a_step_is_found_or_the_others_are_listed() {
    let runs = tempfile::tempdir().unwrap();
    let error = ask(runs.path(), "a", Step(10)).unwrap_err();
    assert!(error.to_string().contains("there are none"), "{error}");
    make(runs.path(), "r", "r", "a", Done, &[10, 20]);
    make(runs.path(), "r-2", "r", "a", Stopped, &[10, 30]);
    for (step, folder) in [(10, "r-2"), (20, "r"), (30, "r-2")] {
        let answer = ask(runs.path(), "a", Step(step)).unwrap();
        assert_eq!((answer.folder.as_str(), answer.start), (folder, Start::Step(step)));
    }
    let error = ask(runs.path(), "a", Step(15)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Choice);
    assert!(error.to_string().contains("10, 20, 30"), "{error}");
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let runs = tempfile::tempdir().unwrap();
    let folder = runs.path().join("r");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("lock"), b"").unwrap();
    std::fs::write(folder.join(".run.json.tmp-1"), b"{").unwrap();
    let answer = ask(runs.path(), "a", Auto).unwrap();
    assert_eq!((answer.folder.as_str(), answer.start), ("r", Start::New));
    RunDir::new(fs(), &folder).lock().unwrap();
    assert!(!folder.join(".run.json.tmp-1").exists());

    std::fs::write(folder.join("thesis.tex"), b"years").unwrap();
    let error = ask(runs.path(), "a", Auto).unwrap_err();
    assert!(matches!(error, StoreError::NotARun { .. }), "{error}");
    assert_eq!(ask(runs.path(), "a", Never).unwrap().folder, "r-2");

    std::fs::write(folder.join("run.json"), b"{\"version\":1").unwrap();
    let error = ask(runs.path(), "a", Auto).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(error.to_string().contains("run.json"), "{error}");
    std::fs::write(folder.join("run.json"), b"{\"version\":9}").unwrap();
    assert!(matches!(ask(runs.path(), "a", Auto), Err(StoreError::Version { got: 9, .. })));

    make(runs.path(), "r-5", "s", "a", Running, &[]);
    let error = resolve(&fs(), runs.path(), "r-5", "a", Auto).unwrap_err();
    assert!(matches!(&error, StoreError::NameTaken { owner, .. } if owner == "s"), "{error}");
    for name in ["", ".", "..", "../x", "a/b", ".hidden", "a b", "a\0b", &"x".repeat(101)] {
        let error = resolve(&fs(), runs.path(), name, "a", Auto).unwrap_err();
        assert!(matches!(error, StoreError::BadName { .. }), "{name:?}: {error}");
    }
}

#[test]
fn a_second_opening_is_refused_until_the_first_ends() {
    let runs = tempfile::tempdir().unwrap();
    let dir = RunDir::new(fs(), runs.path().join("deep/r"));
    let lock = dir.lock().unwrap();
    let Err(StoreError::Locked { pid, path }) = dir.lock() else { panic!("two writers") };
    assert_eq!((pid, path.as_path()), (Some(std::process::id()), dir.path()));
    drop(lock);
    assert_eq!(std::fs::read(dir.lock_file()).unwrap(), b"");
    dir.lock().unwrap();
}
