//! What a plan asks of a machine and what a device obeys: no driver, no kernel, no allocation.
//!
//! The types to know are [`Target`], which answers for regions of a graph with [`Claim`]s, and
//! [`Program`], which a [`Device`] loads and runs. Invariant: nothing here touches hardware, so an
//! H100 plan can be made on a laptop.

mod collectives;
mod device;
mod lookup;
mod profile;
mod program;
mod slot;
mod target;

pub use collectives::{Alone, Call, Collectives, CommError, Merge, Pattern, Traffic};
pub use device::{Device, DeviceError};
pub use lookup::Placed;
pub use profile::{Account, Kind, Machine, Span, Timing};
pub use program::{Part, Program, Run, Section, StateSlot, Step};
pub use slot::{ALIGN, Slot};
pub use target::{Claim, Sight, Sums, Target, Uses};
