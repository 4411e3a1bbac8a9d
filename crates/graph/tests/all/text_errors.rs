//! text_errors
