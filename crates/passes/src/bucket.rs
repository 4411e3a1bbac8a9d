//! bucket: parameters, gradients and the optimizer's memory in flat buckets, dealt out over ranks.
//!
//! A bucket holds the parameters of one layer that are treated alike: matrices, which decay, or
//! vectors, which do not; a parameter that several layers read has one of its own. It is one state
//! of one storage axis, so that a gather is one message and an update one kernel. Where ranks share
//! a batch, a bucket's optimizer state, gradients and parameters may each be cut into one piece a
//! rank: ZeRO stages 1, 2 and 3 (Rajbhandari et al., ZeRO: memory optimizations toward training
//! trillion parameter models, 2020), over all of those ranks or over the innermost of them (hybrid
//! sharding). A parameter that is cut is gathered before its first use in the forward and again in
//! the backward; a gradient that is cut is summed over ranks as soon as the bucket's last one is
//! made.
//!
//! With bf16 compute the f32 masters of matrices belong to the optimizer's state, and what the
//! model reads is a copy in bf16 that the update writes.

mod apply;
mod layout;

pub use layout::{Bucket, BucketTensor, Buckets, Partials};
