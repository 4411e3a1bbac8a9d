//! What lists and launches say, told again pair by pair, against the patterns and the specs.

mod choice;
mod compile;
mod lists;
mod params;
mod specs;
mod walk;
