//! The promises of the store, one file each.

mod all {
    mod common;
    mod crash;
    mod damage;
    mod fault;
    mod hostile;
    mod kill;
    mod metrics;
    mod prune;
    mod resolve;
    mod round_trip;
}
