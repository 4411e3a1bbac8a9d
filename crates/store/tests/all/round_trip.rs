//! What goes in comes out, also through the `safetensors` crate.

use std::sync::Arc;

use aerogel_store::{Checkpoints, CommitInfo, RealFs};
use aerogel_store::{Committed, Dtype, ErrorKind, StoreError, TensorSpec};
use proptest::prelude::*;

use super::common::*;

#[test]
fn a_committed_step_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    assert!(checkpoints.latest().unwrap().checkpoint.is_none());
    for step in [10, 40] {
        assert!(matches!(commit(&checkpoints, step), Ok(Committed::Written { .. })));
    }
    assert_eq!(checkpoints.list().unwrap(), [10, 40]);
    assert_contents(&checkpoints.open(10).unwrap());
    let latest = checkpoints.latest().unwrap();
    assert!(latest.skipped.is_empty());
    let checkpoint = latest.checkpoint.unwrap();
    assert_eq!(checkpoint.step(), 40);
    assert!(checkpoint.path().ends_with("checkpoints/step-00000040"));
    assert_contents(&checkpoint);
    let entry = &checkpoint.manifest().tensors["h.0.attn.q.weight"];
    assert_eq!(
        (&entry.axes[..], &entry.shape[..]),
        (&["kv".into(), "embed".into()][..], &[5, 300][..])
    );
    assert_eq!(checkpoint.manifest().files.len(), 3);
}

#[test]
fn the_files_are_valid_and_aligned_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    commit(&real(dir.path()), 7).unwrap();
    let mut seen = 0;
    for path in files_of(dir.path(), 7) {
        if path.extension().is_some_and(|e| e == "json") {
            continue;
        }
        let bytes = std::fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, view) in file.tensors() {
            let spec = specs().into_iter().find(|spec| spec.name == name).unwrap();
            let shape: Vec<u64> = view.shape().iter().map(|extent| *extent as u64).collect();
            assert_eq!(shape, spec.axes.iter().map(|(_, extent)| *extent).collect::<Vec<_>>());
            let position = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            assert_eq!(position as u64 % spec.dtype.bytes(), 0, "{name} is not aligned");
            let wanted = |i: usize| byte(&name, 7, i as u64);
            assert!(view.data().iter().enumerate().all(|(i, b)| *b == wanted(i)));
            seen += 1;
        }
    }
    assert_eq!(seen, specs().len());
}

#[test]
fn equal_commits_give_equal_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&a, &b] {
        commit(&real(dir.path()), 3).unwrap();
    }
    for (x, y) in files_of(a.path(), 3).iter().zip(files_of(b.path(), 3)) {
        assert_eq!(x.file_name(), y.file_name());
        assert_eq!(std::fs::read(x).unwrap(), std::fs::read(y).unwrap());
    }
}

#[test]
fn a_step_is_never_written_twice() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    commit(&checkpoints, 5).unwrap();
    let again = checkpoints.commit(&info(5), &specs(), |_, _, _| Err("must not be asked".into()));
    assert_eq!(again.unwrap(), Committed::AlreadyThere);
    let other = CommitInfo { run_hash: "run-b".to_owned(), ..info(5) };
    let error = checkpoints.commit(&other, &specs(), |_, _, _| Ok(())).unwrap_err();
    assert!(matches!(&error, StoreError::StepTaken { step: 5, .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Choice);
    assert_contents(&checkpoints.open(5).unwrap());
}

#[test]
fn a_damaged_step_is_replaced_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    commit(&checkpoints, 5).unwrap();
    std::fs::remove_file(&files_of(dir.path(), 5)[1]).unwrap();
    let Committed::Written { replaced: Some(reason), .. } = commit(&checkpoints, 5).unwrap() else {
        panic!("it was left damaged");
    };
    assert!(reason.contains("tensors-00000.safetensors"), "{reason}");
    assert_contents(&checkpoints.latest().unwrap().checkpoint.unwrap());
    assert_eq!(std::fs::read_dir(dir.path().join("checkpoints")).unwrap().count(), 1);
}

#[test]
fn a_failing_source_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    let error = checkpoints
        .commit(&info(5), &specs(), |spec, _, _| match spec.name.as_str() {
            "h.0.mask" => Err("device lost".into()),
            _ => Ok(()),
        })
        .unwrap_err();
    assert!(error.to_string().contains("h.0.mask") && error.to_string().contains("device lost"));
    assert_eq!(std::fs::read_dir(dir.path().join("checkpoints")).unwrap().count(), 0);
}

#[test]
fn bad_requests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    let spec = |name: &str, extent| TensorSpec {
        name: name.to_owned(),
        dtype: Dtype::F32,
        axes: vec![("a".to_owned(), extent), ("b".to_owned(), 4)],
    };
    let twice_axis = TensorSpec { axes: vec![("a".into(), 1), ("a".into(), 1)], ..spec("x", 1) };
    for bad in [
        vec![spec("", 1)],
        vec![spec("__metadata__", 1)],
        vec![spec("x", 1), spec("x", 1)],
        vec![spec("x", u64::MAX / 2)],
        vec![spec("x", u64::MAX / 32), spec("y", u64::MAX / 32), spec("z", u64::MAX / 32)],
        vec![twice_axis],
    ] {
        let error = checkpoints.commit(&info(1), &bad, |_, _, _| Ok(())).unwrap_err();
        assert!(
            matches!(error, StoreError::BadTensor { .. } | StoreError::NoSpace { .. }),
            "{error}"
        );
    }
    commit(&checkpoints, 1).unwrap();
    let checkpoint = checkpoints.open(1).unwrap();
    let error = checkpoint.read("h.0.mask", &mut [0; 776]).unwrap_err();
    assert!(matches!(error, StoreError::BufferSize { wanted_bytes: 777, got_bytes: 776, .. }));
    assert!(matches!(checkpoint.read("h.9", &mut []), Err(StoreError::NoSuchTensor { .. })));
    let error = checkpoints.open(2).unwrap_err();
    assert!(matches!(&error, StoreError::NoSuchStep { available, .. } if available == &[1]));
}

#[test]
fn a_tensor_larger_than_a_chunk_streams() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(Arc::new(RealFs), dir.path());
    let bytes: u64 = (9 << 20) + 3;
    let axes = vec![("a".to_owned(), bytes)];
    let big = TensorSpec { name: "big".to_owned(), dtype: Dtype::U8, axes };
    let mut largest = 0;
    let fill = |_: &TensorSpec, offset: u64, out: &mut [u8]| {
        largest = largest.max(out.len());
        out.iter_mut().zip(offset..).for_each(|(b, at)| *b = byte("big", 1, at));
        Ok(())
    };
    checkpoints.commit(&info(1), &[big], fill).unwrap();
    assert!(largest <= 4 << 20);
    let mut out = vec![0; bytes as usize];
    checkpoints.open(1).unwrap().read("big", &mut out).unwrap();
    assert!(out.iter().zip(0..).all(|(b, at)| *b == byte("big", 1, at)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_tensors_round_trip(
        shapes in prop::collection::vec((0..13usize, prop::collection::vec(0..6u64, 0..4)), 0..9),
        file_bytes in 0..2000u64,
    ) {
        use Dtype::*;
        let all = [F64, F32, F16, Bf16, I64, I32, I16, I8, U64, U32, U16, U8, Bool];
        let spec = |(i, (dtype, shape)): (usize, &(usize, Vec<u64>))| TensorSpec {
            name: format!("t\u{e9}\"{i}"),
            dtype: all[*dtype],
            axes: shape.iter().enumerate().map(|(a, extent)| (format!("a{a}"), *extent)).collect(),
        };
        let specs: Vec<TensorSpec> = shapes.iter().enumerate().map(spec).collect();
        let fs = Arc::new(aerogel_store::testing::CrashFs::default());
        let checkpoints = Checkpoints::new(fs, "/c").with_file_bytes(file_bytes);
        checkpoints.commit(&info(9), &specs, |spec, offset, out| {
            out.iter_mut().zip(offset..).for_each(|(b, at)| *b = byte(&spec.name, 9, at));
            Ok(())
        }).unwrap();
        let checkpoint = checkpoints.latest().unwrap().checkpoint.unwrap();
        for spec in specs {
            let mut out = vec![0; spec.bytes().unwrap() as usize];
            checkpoint.read(&spec.name, &mut out).unwrap();
            prop_assert!(out.iter().zip(0..).all(|(b, at)| *b == byte(&spec.name, 9, at)));
        }
    }
}
