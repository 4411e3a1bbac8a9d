//! randomness
