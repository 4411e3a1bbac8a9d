//! The tests of the graph crate, as one binary. `cases` is the table of random graphs that every op
//! must be listed in; gradients, expansions and the text form walk it. It is the table that
//! `aerogel selftest` holds devices to, so that an op cannot be in one and not in the other.

mod all {
    mod autodiff;
    #[path = "../../../train/src/selftest/cases.rs"]
    mod cases;
    mod collectives;
    mod cost;
    mod expansion;
    mod expressions;
    mod gradient;
    mod harness;
    mod masks;
    mod randomness;
    mod rewriting;
    #[allow(dead_code, reason = "devices need more of it")]
    #[path = "../../../train/src/selftest/rng.rs"]
    mod rng;
    mod rounding;
    mod sharding;
    mod text;
    mod text_errors;
    mod verifier;
    mod vocabulary;
    #[path = "../../../train/src/selftest/world.rs"]
    mod world;
}
