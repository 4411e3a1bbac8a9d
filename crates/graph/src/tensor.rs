//! The interpreter's value: f64 elements under named axes. Slow and obvious on purpose.

use crate::types::{Axes, AxisId, AxisList};

/// A dense tensor in f64, row-major in the order of its axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Axes, outermost first.
    pub axes: AxisList,
    /// Extents of `axes`.
    pub sizes: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor of one number.
    pub fn full(table: &Axes, axes: &[AxisId], value: f64) -> Self {
        let sizes = table.sizes(axes);
        let count = sizes.iter().product();
        Tensor { axes: axes.into(), sizes, data: vec![value; count] }
    }

    /// A tensor from its elements; the caller vouches for their number.
    pub fn from_vec(table: &Axes, axes: &[AxisId], data: Vec<f64>) -> Self {
        let sizes = table.sizes(axes);
        assert_eq!(sizes.iter().product::<usize>(), data.len(), "elements of a tensor");
        Tensor { axes: axes.into(), sizes, data }
    }

    /// Element strides along `labels`; 0 where the tensor lacks a label (broadcast).
    pub fn strides(&self, labels: &[AxisId]) -> Vec<usize> {
        let own = row_major(&self.sizes);
        labels.iter().map(|l| self.axes.iter().position(|a| a == l).map_or(0, |p| own[p])).collect()
    }

    /// The same elements with the axes in another order.
    pub fn permuted(&self, table: &Axes, order: &[AxisId]) -> Tensor {
        let mut out = Tensor::full(table, order, 0.0);
        let strides = self.strides(order);
        let sizes = out.sizes.clone();
        for_each(&sizes, &[&strides], |i, at| out.data[i] = self.data[at[0]]);
        out
    }
}

/// Row-major strides of the extents.
pub fn row_major(sizes: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; sizes.len()];
    for i in (0..sizes.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * sizes[i + 1];
    }
    strides
}

/// Visits an index space in row-major order: the running number and each operand's offset.
pub fn for_each(sizes: &[usize], strides: &[&[usize]], mut f: impl FnMut(usize, &[usize])) {
    let total: usize = sizes.iter().product();
    let mut index = vec![0usize; sizes.len()];
    let mut at = vec![0usize; strides.len()];
    for i in 0..total {
        f(i, &at);
        for axis in (0..sizes.len()).rev() {
            index[axis] += 1;
            for (a, s) in at.iter_mut().zip(strides) {
                *a += s[axis];
            }
            if index[axis] < sizes[axis] {
                break;
            }
            for (a, s) in at.iter_mut().zip(strides) {
                *a -= s[axis] * sizes[axis];
            }
            index[axis] = 0;
        }
    }
}
