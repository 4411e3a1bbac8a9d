//! The binary from outside: what it prints, how it ends, what it leaves.

mod all {
    mod bench;
    mod bin;
    mod explain;
    mod faults;
    mod kill;
    mod memory;
    mod ranks;
    mod recipes;
    mod runs;
    mod surface;
}
