//! The models as graphs, run by the reference interpreter at tiny sizes.

mod all {
    mod common;
    mod counts;
    mod decode;
    mod dropout;
    mod errors;
    mod loss;
    mod masks;
    mod parity;
    mod shapes;
}
