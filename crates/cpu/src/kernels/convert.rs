//! Stretches of stored elements to f32 and back.

mod half;

use crate::kernel::Ptr;
use crate::math::{from_bf16, to_bf16};
use crate::simd::{Simd, multiversion};
use aerogel_graph::DType;
use aerogel_graph::types::{f16_to_f32, f32_to_f16};

multiversion! {
    fn widen(out: &mut [f32], from: &[u16]) {
        for (o, &x) in out.iter_mut().zip(from) {
            *o = from_bf16(x);
        }
    }
}

multiversion! {
    fn narrow(out: &mut [u16], from: &[f32]) {
        for (o, &x) in out.iter_mut().zip(from) {
            *o = to_bf16(x);
        }
    }
}

/// Reads `n` elements, `stride` apart, as f32.
///
/// # Safety
/// The elements are valid for reads, `out` for writes of `n` f32, and they do not overlap.
#[inline]
pub(crate) unsafe fn load(
    simd: Simd,
    out: *mut f32,
    (from, dtype): (Ptr, DType),
    offset: isize,
    stride: isize,
    n: usize,
) {
    // SAFETY: the caller vouches for both stretches; slices are made only where stride is 1.
    unsafe {
        match dtype {
            DType::F32 if stride == 1 => out.copy_from_nonoverlapping(from.at(offset), n),
            DType::F32 => strided(out, from.at::<f32>(offset), stride, n, |x| x),
            DType::Bf16 if stride == 1 => {
                let from = std::slice::from_raw_parts(from.at::<u16>(offset), n);
                widen(simd, std::slice::from_raw_parts_mut(out, n), from);
            }
            DType::Bf16 => strided(out, from.at::<u16>(offset), stride, n, from_bf16),
            DType::F16 if stride == 1 => {
                let from = std::slice::from_raw_parts(from.at::<u16>(offset), n);
                half::widen(simd, std::slice::from_raw_parts_mut(out, n), from);
            }
            DType::F16 => strided(out, from.at::<u16>(offset), stride, n, f16_to_f32),
            DType::U32 => strided(out, from.at::<u32>(offset), stride, n, |x| x as f32),
        }
    }
}

#[inline]
unsafe fn strided<T: Copy>(
    out: *mut f32,
    from: *const T,
    stride: isize,
    n: usize,
    convert: impl Fn(T) -> f32,
) {
    // SAFETY: as `load`, whose stretches these are.
    unsafe {
        if stride == 0 {
            let value = convert(*from);
            (0..n).for_each(|i| *out.add(i) = value);
        } else {
            (0..n).for_each(|i| *out.add(i) = convert(*from.offset(i as isize * stride)));
        }
    }
}

/// Writes `n` f32 as elements `stride` apart.
///
/// # Safety
/// The elements are valid for writes, `from` for reads of `n` f32, and they do not overlap.
#[inline]
pub(crate) unsafe fn store(
    simd: Simd,
    from: *const f32,
    (to, dtype): (Ptr, DType),
    offset: isize,
    stride: isize,
    n: usize,
) {
    // SAFETY: the caller vouches for both stretches; slices are made only where stride is 1.
    unsafe {
        match dtype {
            DType::F32 if stride == 1 => to.at::<f32>(offset).copy_from_nonoverlapping(from, n),
            DType::F32 => {
                let to = to.at::<f32>(offset);
                (0..n).for_each(|i| *to.offset(i as isize * stride) = *from.add(i));
            }
            DType::Bf16 if stride == 1 => {
                let to = std::slice::from_raw_parts_mut(to.at::<u16>(offset), n);
                narrow(simd, to, std::slice::from_raw_parts(from, n));
            }
            DType::Bf16 => {
                let to = to.at::<u16>(offset);
                (0..n).for_each(|i| *to.offset(i as isize * stride) = to_bf16(*from.add(i)));
            }
            DType::F16 if stride == 1 => {
                let to = std::slice::from_raw_parts_mut(to.at::<u16>(offset), n);
                half::narrow(simd, to, std::slice::from_raw_parts(from, n));
            }
            DType::F16 => {
                let to = to.at::<u16>(offset);
                (0..n).for_each(|i| *to.offset(i as isize * stride) = f32_to_f16(*from.add(i)));
            }
            DType::U32 => {
                let to = to.at::<u32>(offset);
                (0..n).for_each(|i| *to.offset(i as isize * stride) = *from.add(i) as u32);
            }
        }
    }
}
