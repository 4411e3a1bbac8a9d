//! Every kernel against a naive f64 twin: random shapes and strides, NaN-filled outputs and
//! scratch, canaries around outputs, equal bits for 1, 2 and 3 threads and twice in a row.

mod all {
    mod attend;
    mod common;
    mod gemm;
    mod linear_ce;
    mod native;
    mod norm;
    mod regions;
    mod rows;
    mod tile;
}
