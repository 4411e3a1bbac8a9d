//! Devices: what runs a program.

use crate::collectives::Collectives;
use crate::profile::Span;
use aerogel_graph::Clock;

/// A device could not do what it was asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// The arena could not be had.
    #[error("the device refused an arena of {bytes} bytes: {reason}")]
    Arena {
        /// Bytes asked for.
        bytes: u64,
        /// What the system said.
        reason: String,
    },
    /// The program names something that the device does not have.
    #[error("the program asks for {what}, which the device {device} does not have")]
    Unsupported {
        /// Kernel or op.
        what: String,
        /// Name of the device.
        device: String,
    },
    /// The device failed at its work.
    #[error("the device {device} failed: {reason}")]
    Failed {
        /// Name of the device.
        device: String,
        /// What its driver said.
        reason: String,
        /// Whether nothing more can run on it in this process.
        is_lost: bool,
    },
    /// The ranks could not exchange what they should.
    #[error(transparent)]
    Comm(#[from] crate::CommError),
    /// A section, state, input or output of that name does not exist, or has another size.
    #[error("no {kind} `{name}` of {bytes} bytes in the program")]
    Unknown {
        /// Section, state, input or output.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Bytes that were offered or asked for.
        bytes: usize,
    },
}

/// Runs one loaded program. Values are bytes in the dtype of the value, row-major.
pub trait Device: Send {
    /// The ties to other ranks.
    fn ties(&self) -> &dyn Collectives;

    /// Bytes of all arenas, as allocated.
    fn allocated_bytes(&self) -> u64;

    /// Bytes that libraries took for themselves beside the arenas, where it is known.
    fn library_bytes(&self) -> u64;

    /// Sets bytes of a state, from `offset_bytes` on.
    ///
    /// # Errors
    /// There is none of that name with so many bytes.
    fn write_state(
        &mut self,
        name: &str,
        offset_bytes: u64,
        bytes: &[u8],
    ) -> Result<(), DeviceError>;

    /// Reads bytes of a state, from `offset_bytes` on.
    ///
    /// # Errors
    /// There is none of that name with so many bytes.
    fn read_state(
        &self,
        name: &str,
        offset_bytes: u64,
        bytes: &mut [u8],
    ) -> Result<(), DeviceError>;

    /// Sets an input of a section, for its next run.
    ///
    /// # Errors
    /// There is none of that name and size.
    fn write_input(&mut self, section: usize, name: &str, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Runs a section to its end, on copy `copy` of the states that have several.
    ///
    /// # Errors
    /// The device failed, or another rank did.
    fn run(&mut self, section: usize, clock: Clock, copy: u32) -> Result<(), DeviceError>;

    /// Reads an output of the section that ran last.
    ///
    /// # Errors
    /// There is none of that name and size.
    fn read_output(&self, section: usize, name: &str, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Times the steps of all sections from now on, each from zero; or no more. A device that is
    /// not asked to does not look at the clock.
    fn profile(&mut self, on: bool);

    /// The steps that ran since timing began, in order. A step of several kernels is one span, and
    /// spans of a section follow one another without a gap.
    fn spans(&self) -> &[Span];

    /// Fills the arenas with bytes that are NaN in every float dtype: whatever is not written
    /// afterwards, no kernel may read.
    ///
    /// # Errors
    /// The device failed.
    #[doc(hidden)]
    fn poison(&mut self) -> Result<(), DeviceError>;
}
