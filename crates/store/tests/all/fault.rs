//! A disk that fails at each operation in turn.

use std::path::Path;
use std::sync::Arc;

use aerogel_store::testing::{CrashFs, Fault, FaultFs};
use aerogel_store::{ErrorKind, Fs, MetricsWriter, StoreError, TensorSpec, cut_back, write_atomic};

use super::common::*;

const FAULTS: [Fault; 6] = [
    Fault::NoSpace,
    Fault::Quota,
    Fault::ReadOnly,
    Fault::Io,
    Fault::Interrupted,
    Fault::ShortWrite,
];

fn is_harmless(fault: Fault) -> bool {
    matches!(fault, Fault::Interrupted | Fault::ShortWrite)
}

#[test]
fn no_fault_at_any_operation_of_a_commit_does_damage() {
    for fault in FAULTS {
        for at in 0.. {
            let memory = CrashFs::default();
            let faulty = FaultFs::new(Arc::new(memory.clone()));
            let checkpoints = open(Arc::new(faulty.clone()), Path::new("/r"));
            commit(&checkpoints, 1).unwrap();
            commit(&checkpoints, 2).unwrap();
            faulty.arm(at, fault);
            let result = commit(&checkpoints, 3);
            let struck_commit = faulty.strikes() > 0;
            let pruned = if result.is_ok() { checkpoints.prune(1).map(drop) } else { Ok(()) };
            let (operations, harmless) = (faulty.operations(), is_harmless(fault));
            faulty.disarm();
            // Every failure is reported, but those that a repetition cures.
            assert_eq!(result.is_err(), struck_commit && !harmless, "{fault:?} at {at}");
            for error in result.as_ref().err().into_iter().chain(pruned.as_ref().err()) {
                assert!(!harmless, "{fault:?} at {at}: {error}");
                assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
                assert!(error.to_string().contains("/r"), "{error}");
            }
            let latest = checkpoints.latest().unwrap();
            assert!(latest.skipped.is_empty(), "{fault:?} at {at}: {:?}", latest.skipped);
            let latest = latest.checkpoint.unwrap();
            assert!(latest.step() >= if result.is_ok() { 3 } else { 2 });
            assert_contents(&latest);
            commit(&checkpoints, 3).unwrap();
            commit(&checkpoints, 4).unwrap();
            assert_contents(&checkpoints.latest().unwrap().checkpoint.unwrap());
            let names = memory.list(Path::new("/r/checkpoints")).unwrap();
            assert!(names.iter().all(|e| !e.name.contains("tmp")), "{fault:?} at {at}: {names:?}");
            if at >= operations {
                assert!(pruned.is_ok() && at > 40, "{at} operations only");
                break;
            }
        }
    }
}

#[test]
fn a_full_disk_is_noticed_before_writing() {
    let memory = CrashFs::default();
    let checkpoints = open(Arc::new(memory.clone()), Path::new("/r"));
    commit(&checkpoints, 1).unwrap();
    memory.set_free_bytes(9_000);
    let error = commit(&checkpoints, 2).unwrap_err();
    let StoreError::NoSpace { need_bytes, free_bytes: 9_000, .. } = error else {
        panic!("{error}")
    };
    let data: u64 = specs().iter().map(|spec| spec.bytes().unwrap()).sum();
    assert!(need_bytes > data + data / 10);
    // A disk with just that much takes it, and what was written is no more than was asked for.
    memory.set_free_bytes(need_bytes);
    let aerogel_store::Committed::Written { size_bytes, .. } = commit(&checkpoints, 2).unwrap()
    else {
        panic!("it was there")
    };
    assert!(size_bytes < need_bytes, "{size_bytes} of {need_bytes}");
}

#[test]
fn the_space_asked_for_covers_many_small_tensors() {
    let memory = CrashFs::default();
    let checkpoints = open(Arc::new(memory.clone()), Path::new("/r"));
    let tensors: Vec<TensorSpec> = (0..2000)
        .map(|i| {
            let axes = vec![("a".to_owned(), 1), ("b".to_owned(), 1)];
            TensorSpec { name: format!("t{i}"), dtype: aerogel_store::Dtype::F32, axes }
        })
        .collect();
    memory.set_free_bytes(0);
    let result = checkpoints.commit(&info(1), &tensors, |_, _, _| Ok(()));
    let Err(StoreError::NoSpace { need_bytes, .. }) = result else { panic!("{result:?}") };
    memory.set_free_bytes(need_bytes);
    let result = checkpoints.commit(&info(1), &tensors, |_, _, _| Ok(())).unwrap();
    let aerogel_store::Committed::Written { size_bytes, .. } = result else { panic!("{result:?}") };
    assert!(size_bytes < need_bytes && need_bytes < 3 * size_bytes, "{size_bytes} {need_bytes}");
}

#[test]
fn an_atomic_write_that_fails_leaves_the_old_file() {
    let path = Path::new("/run.json");
    for fault in [Fault::NoSpace, Fault::ReadOnly, Fault::Io] {
        for at in 0..6 {
            let memory = CrashFs::default();
            write_atomic(&memory, path, b"old").unwrap();
            let faulty = FaultFs::new(Arc::new(memory.clone()));
            faulty.arm(at, fault);
            match write_atomic(&faulty, path, b"new") {
                Ok(()) => assert_eq!(memory.contents(path).unwrap(), b"new"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Storage);
                    // Only the fsync of the folder comes after the file was replaced.
                    let replaced = error.to_string().contains("fsync the folder");
                    let wanted: &[u8] = if replaced { b"new" } else { b"old" };
                    assert_eq!(memory.contents(path).unwrap(), wanted, "{fault:?} at {at}");
                }
            }
        }
    }
}

#[test]
fn a_metrics_line_is_not_torn_by_a_full_disk() {
    for fault in FAULTS {
        for at in 0..5 {
            let memory = CrashFs::default();
            let faulty = FaultFs::new(Arc::new(memory.clone()));
            let path = Path::new("/metrics.jsonl");
            let mut writer = MetricsWriter::open(&faulty, path).unwrap();
            faulty.arm(at, fault);
            for step in 0..5u64 {
                let _ = writer.push(&serde_json::json!({ "step": step }));
            }
            faulty.disarm();
            writer.sync().unwrap();
            let text = String::from_utf8(memory.contents(path).unwrap()).unwrap();
            let wanted: String = (0..5).map(|step| format!("{{\"step\":{step}}}\n")).collect();
            assert_eq!(text, wanted, "{fault:?} at {at}");
        }
    }
}

#[test]
fn a_cut_that_fails_leaves_the_file() {
    let path = Path::new("/metrics.jsonl");
    for fault in [Fault::NoSpace, Fault::ReadOnly, Fault::Io] {
        for at in 0..6 {
            let memory = CrashFs::default();
            let (old, new) = ("{\"step\":1}\n{\"step\":2}\n{\"st", "{\"step\":1}\n");
            write_atomic(&memory, path, old.as_bytes()).unwrap();
            let faulty = FaultFs::new(Arc::new(memory.clone()));
            faulty.arm(at, fault);
            let done = cut_back(&faulty, path, 1).is_ok();
            let got = String::from_utf8(memory.contents(path).unwrap()).unwrap();
            assert!(got == new || (!done && got == old), "{fault:?} at {at}: {got}");
        }
    }
}
