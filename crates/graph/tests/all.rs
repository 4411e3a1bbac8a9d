//! The tests of the graph crate, as one binary. `harness` builds random graphs, `cases` is the
//! table that every op must be listed in; gradients, expansions and the text form walk that table.

mod all {
    mod autodiff;
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
    mod rounding;
    mod sharding;
    mod text;
    mod text_errors;
    mod verifier;
    mod vocabulary;
}
