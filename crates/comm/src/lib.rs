//! The ties between ranks that are threads of one process.
//!
//! The type to know is [`Tie`], one rank's end: an implementation of
//! [`Collectives`](aerogel_machine::Collectives). [`Fabric::new`] makes one for every rank of a
//! mesh. Members of a group meet on a board, read one another's inputs in place, and leave when
//! all have read; nothing is staged. Threads that wait are blocked and never spin, so a mesh may
//! have many more ranks than there are cores.
//!
//! The invariants: sums take one fixed tree over members, whoever comes first, so results have the
//! same bits in every run. And nobody waits for ever: members that come to different calls, ranks
//! that end, ranks that stay away without a sign of life, and ranks that wait in a circle are found
//! by those who wait for them (there is no thread that watches), named with their site, and then
//! every blocked and every later call of every rank fails.
//!
//! Modules, lowest first: `check` (sizes), `merge` and `spread` (arithmetic and copies, no
//! threads), `peers` (buffers of others), `board`, `mail`, `traffic` (what is shared), `state` (all
//! of it, behind one lock), `sign` (of life), `judge` (who is to blame), `hub` (blocking and
//! breaking), `tie`, `fabric`; [`faults`] breaks ranks on purpose. `unsafe` stands in `peers` and
//! where `tie` uses it.
//!
//! Tests: `tests/all.rs` with one file per promise (values, bits, traffic, messages, errors,
//! faults); those of `merge` are in the file.

pub mod faults;

mod board;
mod check;
mod fabric;
mod hub;
mod judge;
mod mail;
mod merge;
mod peers;
mod sign;
mod spread;
mod state;
mod tie;
mod traffic;

pub use fabric::{Fabric, Options};
pub use tie::Tie;
