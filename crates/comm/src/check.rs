//! Whether the buffers fit the call, before anybody sees them.

use aerogel_machine::{Call, CommError, Pattern};

/// Sizes of the input and the output, which all patterns but gathers keep.
///
/// # Errors
/// [`CommError::Size`] says what does not fit.
pub(crate) fn check(
    call: &Call,
    members: usize,
    input: usize,
    output: usize,
) -> Result<(), CommError> {
    let width = call.dtype.bytes();
    let bytes = call.elements.saturating_mul(width);
    let want = |what, wanted: usize, got: usize| match wanted == got {
        true => Ok(()),
        false => Err(wrong_size(call, what, wanted, got)),
    };
    let pieces = match call.pattern {
        Pattern::AllReduce(_) | Pattern::ReduceScatter if !call.dtype.is_float() => {
            return Err(wrong_size(call, "u32 (floats alone can be merged)", 0, bytes));
        }
        Pattern::Broadcast { root } if root >= members => {
            return Err(wrong_size(call, "a root that the group does not have", 0, bytes));
        }
        Pattern::ReduceScatter | Pattern::AllToAll => call.rows.saturating_mul(members),
        Pattern::AllGather => call.rows,
        _ => 1,
    };
    let whole = match pieces {
        0 => 0,
        n => call.elements.checked_next_multiple_of(n).unwrap_or(usize::MAX),
    };
    want("input in equal rows and pieces", whole.saturating_mul(width), bytes)?;
    want("input", bytes, input)?;
    let out_bytes = match call.pattern {
        Pattern::AllGather => bytes.saturating_mul(members),
        Pattern::ReduceScatter => bytes / members,
        Pattern::Barrier => input,
        _ => bytes,
    };
    want("output", out_bytes, output)
}

/// The buffers of a call are not what it needs.
pub(crate) fn wrong_size(call: &Call, what: &'static str, wanted: usize, got: usize) -> CommError {
    let call = format!("{} at {}", call.pattern.name(), call.site);
    CommError::Size { call, what, wanted, got }
}
