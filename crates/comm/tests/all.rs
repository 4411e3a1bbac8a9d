//! The promises of the ties between ranks, one file each.

mod all {
    mod allocation;
    mod bits;
    mod common;
    mod errors;
    mod faults;
    mod messages;
    mod silence;
    mod traffic;
    mod values;
}
