//! Divisors, for defaults and for advice; in time proportional to the square root.

/// The divisors of `n`, in no order.
fn divisors(n: usize) -> impl Iterator<Item = usize> {
    let low = (1..=n.isqrt()).filter(move |d| n.is_multiple_of(*d));
    low.flat_map(move |d| [d, n / d])
}

/// The divisor of `n` nearest to `wanted`, the smaller of two.
pub(crate) fn nearest_divisor(n: usize, wanted: usize) -> usize {
    divisors(n).min_by_key(|d| (d.abs_diff(wanted), *d)).unwrap_or(1)
}

/// The largest divisor of `n` that is at most `limit`.
pub(crate) fn divisor_up_to(n: usize, limit: usize) -> usize {
    divisors(n).filter(|d| *d <= limit).max().unwrap_or(1)
}

/// The largest divisor of `n` that is at most `limit` and that `fits`.
pub(crate) fn divisor_where(n: usize, limit: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    divisors(n).filter(|d| *d <= limit && fits(*d)).max()
}

/// The smallest divisor of `n` that is at least its square root.
pub(crate) fn divisor_from_root(n: usize) -> usize {
    divisors(n).filter(|d| d.saturating_mul(*d) >= n).min().unwrap_or(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn against_a_search_of_all_numbers() {
        for n in 1..200usize {
            let all = || (1..=n).filter(|d| n % d == 0);
            assert_eq!(Some(divisor_from_root(n)), all().find(|d| d * d >= n));
            for wanted in 1..210 {
                let nearest = all().min_by_key(|d| d.abs_diff(wanted));
                assert_eq!(Some(nearest_divisor(n, wanted)), nearest);
                assert_eq!(Some(divisor_up_to(n, wanted)), all().filter(|d| *d <= wanted).max());
            }
        }
    }
}
