//! The ranks of a run at work: each on a thread of its own, until all are done.

use crate::error::TrainError;
use aerogel_machine::{CommError, Device, DeviceError};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::Duration;

/// What to do when a rank does not come back: tell a user, and end the process. A thread cannot be
/// ended from outside.
pub type OnHang = std::sync::Arc<dyn Fn(&str) + Send + Sync>;

/// Runs `work` on every rank with its item, side by side, and gives the results by rank.
///
/// Where a rank fails, its ties to the others are cut, so that nobody waits for it. `patience` is
/// how long the others may take to notice.
///
/// # Errors
/// The error that came first in the order of causes, not of ranks: a rank that stopped because of
/// another is not told of.
pub(crate) fn each<E: Send, T: Send>(
    ranks: &mut [Box<dyn Device>],
    items: &mut [E],
    patience: Duration,
    on_hang: &OnHang,
    work: impl Fn(usize, &mut dyn Device, &mut E) -> Result<T, TrainError> + Sync,
) -> Result<Vec<T>, TrainError> {
    if let ([device], [item]) = (&mut *ranks, &mut *items) {
        return work(0, device.as_mut(), item).map(|t| vec![t]);
    }
    let count = ranks.len();
    let mut results: Vec<Option<Result<T, TrainError>>> = (0..count).map(|_| None).collect();
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        for (rank, (device, item)) in ranks.iter_mut().zip(items).enumerate() {
            let (tell, work) = (tell.clone(), &work);
            scope.spawn(move || {
                let done = catch_unwind(AssertUnwindSafe(|| work(rank, device.as_mut(), item)));
                let result = done.unwrap_or_else(|panic| {
                    Err(TrainError::Panicked { rank, message: message_of(panic.as_ref()) })
                });
                if let Err(e) = &result {
                    device.ties().leave(&e.to_string());
                }
                // The receiver lives as long as the scope.
                let _ = tell.send((rank, result));
            });
        }
        drop(tell);
        collect(&mut results, &told, patience, on_hang);
    });
    let (mut values, mut errors) = (vec![], vec![]);
    for result in results.into_iter().flatten() {
        match result {
            Ok(value) => values.push(value),
            Err(e) => errors.push(e),
        }
    }
    errors.sort_by_key(rank_of);
    match errors.into_iter().next() {
        None => Ok(values),
        Some(error) => Err(error),
    }
}

type Results<T> = [Option<Result<T, TrainError>>];

/// Takes results as they come. Once one rank has failed, the others have `patience`.
fn collect<T>(
    results: &mut Results<T>,
    told: &mpsc::Receiver<(usize, Result<T, TrainError>)>,
    patience: Duration,
    on_hang: &OnHang,
) {
    while results.iter().any(Option::is_none) {
        let failed = results.iter().flatten().any(Result::is_err);
        let next = match failed {
            true => told.recv_timeout(patience),
            false => told.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
        };
        match next {
            Ok((rank, result)) => results[rank] = Some(result),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let causes = results.iter().flatten().filter_map(|r| r.as_ref().err());
                let cause = causes.min_by_key(|e| rank_of(e));
                let cause = cause.map_or(String::new(), |e| e.to_string());
                let stuck: Vec<String> = (0..results.len())
                    .filter(|r| results[*r].is_none())
                    .map(|r| r.to_string())
                    .collect();
                on_hang(&format!("rank {} does not come back: {cause}", stuck.join(", ")));
            }
        }
    }
}

/// Causes before consequences.
fn rank_of(e: &TrainError) -> usize {
    match e {
        TrainError::Device(DeviceError::Comm(CommError::Stopped { .. })) => 3,
        TrainError::Device(DeviceError::Comm(CommError::Gone { .. })) => 2,
        TrainError::Device(DeviceError::Comm(_)) => 1,
        _ => 0,
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
