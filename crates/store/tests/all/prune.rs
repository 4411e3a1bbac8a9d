//! Old steps go, the last good one stays, readers are not disturbed.

use super::common::*;

#[test]
fn the_newest_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    for step in 1..=6 {
        commit(&checkpoints, step).unwrap();
    }
    assert!(checkpoints.prune(6).unwrap().is_empty());
    assert_eq!(checkpoints.prune(3).unwrap(), [1, 2, 3]);
    assert_eq!(checkpoints.list().unwrap(), [4, 5, 6]);
    assert_eq!(checkpoints.prune(0).unwrap(), [4, 5]);
    assert_contents(&checkpoints.latest().unwrap().checkpoint.unwrap());
    assert_eq!(std::fs::read_dir(dir.path().join("checkpoints")).unwrap().count(), 1);
}

#[test]
fn the_last_that_verifies_is_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    for step in 1..=4 {
        commit(&checkpoints, step).unwrap();
    }
    for step in [3, 4] {
        std::fs::remove_file(&files_of(dir.path(), step)[1]).unwrap();
    }
    assert_eq!(checkpoints.prune(1).unwrap(), [1, 3]);
    assert_eq!(checkpoints.list().unwrap(), [2, 4]);
    assert_eq!(checkpoints.latest().unwrap().checkpoint.unwrap().step(), 2);
}

#[test]
fn an_open_checkpoint_outlives_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    commit(&checkpoints, 1).unwrap();
    let old = checkpoints.open(1).unwrap();
    commit(&checkpoints, 2).unwrap();
    assert_eq!(checkpoints.prune(1).unwrap(), [1]);
    assert!(!old.path().exists());
    assert_contents(&old);
}

#[test]
fn readers_never_see_half_of_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    commit(&checkpoints, 1).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                // Between listing and opening a step may be pruned; then a look again finds newer.
                if let Ok(latest) = checkpoints.latest() {
                    assert_contents(&latest.checkpoint.unwrap());
                    reads += 1;
                }
            }
            reads
        });
        for step in 2..30 {
            commit(&checkpoints, step).unwrap();
            checkpoints.prune(2).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reader.join().unwrap() > 5);
    });
}

#[test]
fn other_names_are_not_steps() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    commit(&checkpoints, 123_456_789).unwrap();
    let folder = dir.path().join("checkpoints");
    for name in ["step-5", "step-+0000005", "step-000000005", "step-", "step-00000005x", "x"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    std::fs::write(folder.join("step-00000007"), b"a file").unwrap();
    std::fs::create_dir(folder.join("step-00000008.tmp-dead")).unwrap();
    std::fs::write(folder.join("step-00000008.tmp-dead/half"), b"x").unwrap();
    assert_eq!(checkpoints.list().unwrap(), [123_456_789]);
    commit(&checkpoints, 123_456_790).unwrap();
    assert!(!folder.join("step-00000008.tmp-dead").exists());
    assert!(folder.join("step-5").exists());
}

#[test]
fn later_steps_are_set_aside_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    for step in [2, 4, 6] {
        commit(&checkpoints, step).unwrap();
    }
    assert_eq!(checkpoints.set_aside_after(2).unwrap(), [4, 6]);
    assert_eq!(checkpoints.list().unwrap(), [2]);
    // The way goes on from there, and can be left again.
    commit(&checkpoints, 4).unwrap();
    assert_eq!(checkpoints.set_aside_after(2).unwrap(), [4]);
    assert!(checkpoints.set_aside_after(2).unwrap().is_empty());
    let mut left: Vec<String> = std::fs::read_dir(dir.path().join("checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("aside"))
        .collect();
    left.sort();
    assert_eq!(left, ["aside-1-00000004", "aside-1-00000006", "aside-2-00000004"]);
}
