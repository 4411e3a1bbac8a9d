//! Rows of a table by id, and their adjoint.

use crate::operand::Operand;
use aerogel_graph::ops::ScatterMode;

/// Shapes of a gather or a scatter.
///
/// The space is [batch axes.., row axes.., width]: `rows[b, r, w] = table[b, ids[b, r], w]`. Ids
/// have stride 0 on width; a table has the stride of a table row on the last row axis and 0 on the
/// others. A table may be a piece of a longer one that its ids count along: rows of other pieces
/// are read as zeros and not written, so that a sum over the pieces is the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowsShape {
    /// Sizes of the batch axes.
    pub batch: Vec<usize>,
    /// Sizes of the axes of ids of one batch position; at least one.
    pub rows: Vec<usize>,
    /// Rows of the table.
    pub table_rows: usize,
    /// The id of its first row.
    pub first_row: usize,
    /// Rows of the whole table, of which this one is a piece.
    pub all_rows: usize,
    /// Elements of a row.
    pub width: usize,
}

/// Rows of a table. An id outside the whole table gives NaN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatherSpec {
    /// Shapes.
    pub shape: RowsShape,
    /// The table, floats.
    pub table: Operand,
    /// Ids, u32.
    pub ids: Operand,
    /// The rows that are written.
    pub rows: Operand,
}

/// Rows into a table. Ids outside of it are skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScatterSpec {
    /// Shapes.
    pub shape: RowsShape,
    /// The table that is written.
    pub table: Operand,
    /// Ids, u32.
    pub ids: Operand,
    /// The rows that are read.
    pub rows: Operand,
    /// Whether a row is added to its table row, which starts at zero, or replaces it.
    pub mode: ScatterMode,
}
