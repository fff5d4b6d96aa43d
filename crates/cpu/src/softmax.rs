//! Softmax over rows.

use vit_msn_tensor::{Error, Result};

use crate::runtime::simd::{Exp, F32x4, LANES, loads_before_stores, map_in_place};

/// Replaces each row of `columns` values by its softmax. The row's largest value is subtracted first, so that
/// no exponential overflows.
///
/// # Errors
/// INVALID_ARGUMENT when `x` isn't a whole number of rows.
pub fn softmax(x: &mut [f32], columns: usize) -> Result<()> {
    if columns == 0 || !x.len().is_multiple_of(columns) {
        return Err(Error::InvalidArgument(format!(
            "{} values aren't a whole number of rows of {columns}.",
            x.len()
        )));
    }
    softmax_rows(x, columns);
    Ok(())
}

/// [`softmax`] of whole rows.
pub(crate) fn softmax_rows(x: &mut [f32], columns: usize) {
    let exp = Exp::new();
    for row in x.chunks_exact_mut(columns) {
        let sum = exp_of_difference(&exp, row, largest(row));
        let factor = F32x4::splat(1.0 / sum);
        map_in_place(row, |v| v.mul(factor));
    }
}

/// Vectors per iteration of the loops below: this many independent sums hide the latency of an addition.
const UNROLLED: usize = 4;

/// The largest value of a row; −∞ if it is empty.
pub(crate) fn largest(row: &[f32]) -> f32 {
    let (turns, rest) = row.as_chunks::<{ UNROLLED * LANES }>();
    let mut most = [F32x4::splat(f32::NEG_INFINITY); UNROLLED];
    for turn in turns {
        for (v, most) in most.iter_mut().enumerate() {
            // SAFETY: the chunk is UNROLLED vectors.
            *most = most.max(unsafe { F32x4::load(turn.as_ptr().add(v * LANES)) });
        }
    }
    let [a, b, c, d] = most;
    let lanes = a.max(b).max(c.max(d));
    rest.iter().copied().fold(lanes.largest(), f32::max)
}

/// Replaces each value by e^(value − shift) and returns the sum of the results. No value may exceed `shift`.
pub(crate) fn exp_of_difference(exp: &Exp, row: &mut [f32], shift: f32) -> f32 {
    let shift = F32x4::splat(shift);
    let (turns, rest) = row.as_chunks_mut::<{ UNROLLED * LANES }>();
    let mut sums = [F32x4::splat(0.0); UNROLLED];
    for turn in turns {
        let at = turn.as_mut_ptr();
        // SAFETY: the chunk is UNROLLED vectors.
        unsafe {
            for pair in [0, 2] {
                let values = [pair, pair + 1]
                    .map(|v| exp.of_nonpositive(F32x4::load(at.add(v * LANES)).sub(shift)));
                loads_before_stores();
                for (v, value) in (pair..).zip(values) {
                    value.store(at.add(v * LANES));
                    sums[v] = sums[v].add(value);
                }
            }
        }
    }
    let [a, b, c, d] = sums;
    map_in_place(rest, |v| exp.of_nonpositive(v.sub(shift)));
    a.add(b).add(c.add(d)).sum() + rest.iter().sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, values};
    use proptest::prelude::*;

    fn naive(row: &[f32]) -> Vec<f64> {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f64> = row
            .iter()
            .map(|&v| (f64::from(v) - f64::from(largest)).exp())
            .collect();
        let sum: f64 = exps.iter().sum();
        exps.into_iter().map(|v| v / sum).collect()
    }

    proptest! {
        #[test]
        fn softmax_matches_the_naive_one(rows in 0usize..5, columns in 1usize..70, scale in 0.1f32..200.0) {
            let x: Vec<f32> = values(rows * columns, 9).into_iter().map(|v| v * scale).collect();
            let mut out = x.clone();
            softmax(&mut out, columns).unwrap();
            for (row, actual) in x.chunks(columns).zip(out.chunks(columns)) {
                assert_close(actual, &naive(row), 3e-7);
            }
        }
    }

    #[test]
    fn huge_and_infinite_values_do_not_overflow() {
        let mut x = [1e30, 1e30, -1e30, f32::NEG_INFINITY];
        softmax(&mut x, 4).unwrap();
        assert_eq!(x[..2], [0.5, 0.5]);
        assert!(x[2..].iter().all(|v| *v < 1e-27));
    }

    #[test]
    fn ragged_rows_are_errors() {
        assert_eq!(
            softmax(&mut [0.0; 5], 2).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(softmax(&mut [], 0).unwrap_err().code(), "INVALID_ARGUMENT");
    }
}
