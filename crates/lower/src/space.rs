//! Iteration spaces: sizes, and strides of several operands, with axes merged where all agree.

use crate::error::LowerError;

/// Axes that a walk keeps track of, after merging.
pub const MAX_AXES: usize = 8;

/// Sizes of the axes, outermost first, and each operand's strides on them.
#[derive(Clone, Debug)]
pub struct Space {
    /// Axis sizes.
    pub sizes: Vec<usize>,
    /// `strides[operand][axis]`, in elements.
    pub strides: Vec<Vec<isize>>,
}

impl Space {
    /// Sizes, and strides of every operand.
    ///
    /// # Errors
    /// An operand has another number of strides.
    pub fn new(
        kernel: &'static str,
        sizes: &[usize],
        strides: Vec<Vec<isize>>,
    ) -> Result<Space, LowerError> {
        for (operand, own) in strides.iter().enumerate() {
            if own.len() != sizes.len() {
                let (wanted, got) = (sizes.len(), own.len());
                return Err(LowerError::Rank { kernel, operand, wanted, got });
            }
        }
        Ok(Space { sizes: sizes.to_vec(), strides })
    }

    /// Positions.
    pub fn elements(&self) -> usize {
        self.sizes.iter().product()
    }

    /// The axes in the given order.
    pub fn permute(&mut self, order: &[usize]) {
        self.sizes = order.iter().map(|&axis| self.sizes[axis]).collect();
        for own in &mut self.strides {
            *own = order.iter().map(|&axis| own[axis]).collect();
        }
    }

    /// Drops axes of size 1 and merges neighbours that every operand walks evenly, but never
    /// across `boundary`; returns where the boundary is now.
    pub fn collapse(&mut self, boundary: usize) -> usize {
        let (mut sizes, mut kept): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        let mut new_boundary = 0;
        for axis in 0..self.sizes.len() {
            if axis == boundary {
                new_boundary = sizes.len();
            }
            let size = self.sizes[axis];
            if size == 1 {
                continue;
            }
            let even =
                |last: usize| self.strides.iter().all(|own| own[last] == own[axis] * size as isize);
            match kept.last_mut() {
                Some(last) if (axis < boundary || new_boundary < sizes.len()) && even(*last) => {
                    *last = axis;
                    *sizes.last_mut().expect("one size per kept axis") *= size;
                }
                _ => {
                    kept.push(axis);
                    sizes.push(size);
                }
            }
        }
        if boundary >= self.sizes.len() {
            new_boundary = sizes.len();
        }
        for own in &mut self.strides {
            *own = kept.iter().map(|&axis| own[axis]).collect();
        }
        self.sizes = sizes;
        new_boundary
    }

    /// Gives an empty space one axis of size 1, and refuses what a walk cannot hold.
    ///
    /// # Errors
    /// More than [`MAX_AXES`] are left.
    pub fn finish(mut self, kernel: &'static str) -> Result<Space, LowerError> {
        if self.sizes.is_empty() {
            self.sizes.push(1);
            self.strides.iter_mut().for_each(|own| own.push(0));
        }
        let got = self.sizes.len();
        if got > MAX_AXES {
            return Err(LowerError::TooManyAxes { kernel, got, most: MAX_AXES });
        }
        Ok(self)
    }

    /// The offset of an operand's element at a row-major position of the space.
    #[inline]
    pub fn offset(&self, operand: usize, mut linear: usize) -> isize {
        let mut offset = 0;
        for (&size, &stride) in self.sizes.iter().zip(&self.strides[operand]).rev() {
            offset += (linear % size) as isize * stride;
            linear /= size;
        }
        offset
    }

    /// Walks `len` positions from `start`, calling `visit(at, offset, n)` for every stretch of `n`
    /// positions along the innermost axis; `at` counts from 0, `offset` is the operand's.
    #[inline]
    pub fn runs(
        &self,
        operand: usize,
        start: usize,
        len: usize,
        mut visit: impl FnMut(usize, isize, usize),
    ) {
        let strides = &self.strides[operand];
        let last = self.sizes.len() - 1;
        let mut coords = [0usize; MAX_AXES];
        let (mut rest, mut offset) = (start, 0);
        for axis in (0..=last).rev() {
            coords[axis] = rest % self.sizes[axis];
            rest /= self.sizes[axis];
            offset += coords[axis] as isize * strides[axis];
        }
        let mut at = 0;
        while at < len {
            let n = (self.sizes[last] - coords[last]).min(len - at);
            visit(at, offset, n);
            at += n;
            coords[last] += n;
            offset += n as isize * strides[last];
            let mut axis = last;
            while coords[axis] == self.sizes[axis] && axis > 0 {
                offset -= self.sizes[axis] as isize * strides[axis];
                coords[axis] = 0;
                axis -= 1;
                coords[axis] += 1;
                offset += strides[axis];
            }
        }
    }
}

/// The axes ordered for walking memory forward: by falling stride of the first operand, then of
/// the next, and so on.
pub fn by_stride(axes: &[usize], strides: &[&[isize]]) -> Vec<usize> {
    let mut order = axes.to_vec();
    order.sort_by_key(|&axis| {
        let key: Vec<_> = strides.iter().map(|own| own[axis].unsigned_abs()).collect();
        std::cmp::Reverse(key)
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_every_offset() {
        let strides = vec![vec![120, 0, 30, 6, 1], vec![0, 7, 15, 3, 0]];
        let space = Space::new("test", &[4, 1, 4, 5, 6], strides).unwrap();
        for boundary in 0..=5 {
            let mut merged = space.clone();
            let cut = merged.collapse(boundary);
            let merged = merged.finish("test").unwrap();
            assert_eq!(merged.elements(), space.elements());
            let before: usize = space.sizes[..boundary].iter().product();
            assert_eq!(merged.sizes[..cut].iter().product::<usize>(), before);
            for operand in 0..2 {
                let mut seen = Vec::new();
                merged.runs(operand, 7, 300, |at, offset, n| {
                    assert_eq!(at, seen.len());
                    let stride = *merged.strides[operand].last().unwrap();
                    seen.extend((0..n as isize).map(|i| offset + i * stride));
                });
                let wanted: Vec<_> = (7..307).map(|l| space.offset(operand, l)).collect();
                assert_eq!(seen, wanted);
            }
        }
    }
}
