//! How a long operation tells its caller where it is. This crate draws nothing.

/// What a [`Progress`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of the source.
    Bytes,
    /// Images.
    Images,
}

/// Receives the progress of [`prepare`](crate::prepare()) and
/// [`Dataset::verify`](crate::Dataset::verify), and may stop them.
pub trait Progress {
    /// A stage begins: `total` units are to come.
    fn start(&mut self, stage: &str, total: u64, unit: Unit);
    /// `done` more units of the stage are finished.
    fn tick(&mut self, done: u64);
    /// Something that the user should know: what was skipped, what is waited for.
    fn message(&mut self, text: &str);
    /// Asked often; `true` ends the operation with
    /// [`DataError::Interrupted`](crate::DataError::Interrupted), leaving nothing behind.
    fn stopped(&self) -> bool {
        false
    }
}

/// Ignores all progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn start(&mut self, _: &str, _: u64, _: Unit) {}
    fn tick(&mut self, _: u64) {}
    fn message(&mut self, _: &str) {}
}
