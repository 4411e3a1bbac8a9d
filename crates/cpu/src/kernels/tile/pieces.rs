//! Cuts stretches of a space into pieces on which every operand is a plain matrix.

use aerogel_lower::space::{MAX_AXES, Space};

/// Rows of consecutive positions: `rows` times `cols`, with even steps for every operand.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    /// Coordinates of the first position.
    coords: [usize; MAX_AXES],
    /// By how much they grow from row to row.
    step: [usize; MAX_AXES],
    pub rows: usize,
    pub cols: usize,
    /// Where the piece is in the stretch that was cut.
    pub row: usize,
    pub col: usize,
}

impl Piece {
    /// The origin, as one row.
    pub fn origin(cols: usize) -> Piece {
        Piece { coords: [0; MAX_AXES], step: [0; MAX_AXES], rows: 1, cols, row: 0, col: 0 }
    }

    /// An operand's offset at the first position, and by how much it grows from row to row.
    #[inline]
    pub fn place(&self, strides: &[isize]) -> (isize, isize) {
        let (mut offset, mut row) = (0, 0);
        for (axis, &stride) in strides.iter().enumerate() {
            offset += self.coords[axis] as isize * stride;
            row += self.step[axis] as isize * stride;
        }
        (offset, row)
    }
}

/// A position's coordinates.
#[inline]
fn coords(space: &Space, position: usize) -> [usize; MAX_AXES] {
    let mut coords = [0; MAX_AXES];
    let mut rest = position;
    for axis in (1..space.sizes.len()).rev() {
        coords[axis] = rest % space.sizes[axis];
        rest /= space.sizes[axis];
    }
    coords[0] = rest;
    coords
}

/// Visits the `cols` positions from `position + i * row_step` for each row `i`, in pieces of at
/// most `most` positions. The pieces depend on the space and the arguments alone.
#[inline]
pub(super) fn cut(
    space: &Space,
    position: usize,
    row_step: usize,
    [rows, cols]: [usize; 2],
    most: usize,
    visit: &mut impl FnMut(Piece),
) {
    let inner = space.sizes[space.sizes.len() - 1];
    let first = position % inner;
    let even = row_step.is_multiple_of(inner) || first + (rows - 1) * row_step + cols <= inner;
    // Rows that begin at different places of the innermost axis end at different ones, too.
    let (bands, rows) = if rows == 1 || even { (1, rows) } else { (rows, 1) };
    for band in 0..bands {
        let position = position + band * row_step;
        let mut col = 0;
        while col < cols {
            let width = (inner - (position + col) % inner).min(cols - col);
            let place = (band, col);
            cut_rows(space, position + col, row_step, [rows, width], place, most, visit);
            col += width;
        }
    }
}

/// The same for rows that lie within the innermost axis.
#[inline]
fn cut_rows(
    space: &Space,
    position: usize,
    row_step: usize,
    [rows, width]: [usize; 2],
    (band, col): (usize, usize),
    most: usize,
    visit: &mut impl FnMut(Piece),
) {
    let last = space.sizes.len() - 1;
    let step = if rows == 1 { [0; MAX_AXES] } else { coords(space, row_step) };
    let parts = width.div_ceil(most).max(1);
    let part = width.div_ceil(parts).next_multiple_of(16).min(width);
    let mut row = 0;
    while row < rows {
        let coords = coords(space, position + row * row_step);
        let mut count = (most / part).clamp(1, rows - row);
        if parts > 1 {
            count = 1;
        }
        for axis in 0..=last {
            let taken = coords[axis] + if axis == last { width } else { 1 };
            if let Some(even) = (space.sizes[axis] - taken).checked_div(step[axis]) {
                count = count.min(even + 1);
            }
        }
        let mut at = 0;
        while at < width {
            let mut coords = coords;
            coords[last] += at;
            let cols = part.min(width - at);
            visit(Piece { coords, step, rows: count, cols, row: band + row, col: col + at });
            at += cols;
        }
        row += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_positions_in_their_places() {
        let strides = vec![vec![1000, 0, 30, 3], vec![5, 77, 0, 1]];
        let space = Space::new("test", &[3, 4, 5, 6], strides).unwrap();
        for (position, row_step, rows, cols) in [
            (0, 6, 60, 6),
            (7, 30, 11, 19),
            (2, 7, 9, 3),
            (0, 0, 1, 360),
            (5, 1, 4, 100),
            (0, 12, 30, 12),
        ] {
            for most in [1, 16, 64] {
                let mut seen = vec![0; rows * cols];
                cut(&space, position, row_step, [rows, cols], most, &mut |piece| {
                    assert!(piece.rows * piece.cols <= most.max(16));
                    for (i, j) in (0..piece.rows).flat_map(|i| (0..piece.cols).map(move |j| (i, j)))
                    {
                        let (row, col) = (piece.row + i, piece.col + j);
                        seen[row * cols + col] += 1;
                        for (operand, strides) in space.strides.iter().enumerate() {
                            let (offset, step) = piece.place(strides);
                            let got = offset + i as isize * step + j as isize * strides[3];
                            let linear = position + row * row_step + col;
                            assert_eq!(got, space.offset(operand, linear));
                        }
                    }
                });
                assert!(seen.iter().all(|&n| n == 1));
            }
        }
    }
}
