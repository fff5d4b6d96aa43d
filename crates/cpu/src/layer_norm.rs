//! Layer normalisation over the last dimension.

use vit_msn_tensor::{Error, Result, check_len};

use crate::runtime::parallel::for_each_block_of_rows;
use crate::runtime::simd::{F32x4, LANES};

/// `out = (x − mean) / √(variance + eps) · weight + bias` for each row of `weight.len()` values, with the
/// biased variance, as in PyTorch.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match.
pub fn layer_norm(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) -> Result<()> {
    let columns = weight.len();
    if columns == 0 || !x.len().is_multiple_of(columns) {
        return Err(Error::InvalidArgument(format!(
            "A layer norm over {columns} values got {}, which isn't a whole number of rows.",
            x.len()
        )));
    }
    check_len("The bias of a layer norm", bias.len(), &[columns])?;
    check_len("The output of a layer norm", out.len(), &[x.len()])?;
    // About four passes over each value.
    let work = x.len().saturating_mul(4);
    for_each_block_of_rows(out, columns, work, &|first, out| {
        let rows = x[first * columns..].chunks_exact(columns);
        for (row, target) in rows.zip(out.chunks_exact_mut(columns)) {
            let moments = Moments::of(row);
            let factor = 1.0 / (moments.variance + eps).sqrt();
            normalise(row, moments, factor, weight, bias, target);
        }
    });
    Ok(())
}

/// The mean, as a float near it plus a remainder, and the biased variance.
#[derive(Clone, Copy)]
pub(crate) struct Moments {
    pub shift: f32,
    pub rest: f32,
    pub variance: f32,
}

impl Moments {
    /// The first sum only determines a shift near the mean. The differences from it are small and nearly exact,
    /// so their moments don't cancel, however large the mean.
    pub fn of(row: &[f32]) -> Self {
        let count = row.len() as f32;
        let shift = sum_of(row) / count;
        let (sum, squares) = sums_of(row, shift);
        let rest = sum / count;
        Self {
            shift,
            rest,
            variance: (squares / count - rest * rest).max(0.0),
        }
    }
}

/// Vectors per iteration of the loops below: this many independent sums hide the latency of an addition.
const UNROLLED: usize = 4;

fn sum_of(row: &[f32]) -> f32 {
    let (turns, rest) = row.as_chunks::<{ UNROLLED * LANES }>();
    let mut sums = [F32x4::splat(0.0); UNROLLED];
    for turn in turns {
        for (v, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the chunk is UNROLLED vectors.
            *sum = sum.add(unsafe { F32x4::load(turn.as_ptr().add(v * LANES)) });
        }
    }
    let [a, b, c, d] = sums;
    a.add(b).add(c.add(d)).sum() + rest.iter().sum::<f32>()
}

/// The sums of x − shift and of its square.
fn sums_of(row: &[f32], shift: f32) -> (f32, f32) {
    let (turns, rest) = row.as_chunks::<{ UNROLLED * LANES }>();
    let shifts = F32x4::splat(shift);
    let mut sums = [[F32x4::splat(0.0); 2]; UNROLLED];
    for turn in turns {
        for (v, [sum, squares]) in sums.iter_mut().enumerate() {
            // SAFETY: the chunk is UNROLLED vectors.
            let value = unsafe { F32x4::load(turn.as_ptr().add(v * LANES)) }.sub(shifts);
            *sum = sum.add(value);
            *squares = value.mul_add(value, *squares);
        }
    }
    let [a, b, c, d] = sums;
    let [mut sum, mut squares] = std::array::from_fn(|i| a[i].add(b[i]).add(c[i].add(d[i])).sum());
    for value in rest {
        let value = value - shift;
        sum += value;
        squares += value * value;
    }
    (sum, squares)
}

fn normalise(
    row: &[f32],
    moments: Moments,
    factor: f32,
    weight: &[f32],
    bias: &[f32],
    out: &mut [f32],
) {
    let whole = row.len() / LANES * LANES;
    let [shift, rest, factors] = [moments.shift, moments.rest, factor].map(F32x4::splat);
    for first in (0..whole).step_by(LANES) {
        let range = first..first + LANES;
        // SAFETY: each slice is four floats.
        unsafe {
            let value = F32x4::load(row[range.clone()].as_ptr())
                .sub(shift)
                .sub(rest)
                .mul(factors);
            let weights = F32x4::load(weight[range.clone()].as_ptr());
            let biases = F32x4::load(bias[range.clone()].as_ptr());
            value
                .mul_add(weights, biases)
                .store(out[range].as_mut_ptr());
        }
    }
    for index in whole..row.len() {
        let value = (row[index] - moments.shift - moments.rest) * factor;
        out[index] = value * weight[index] + bias[index];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, same_with_workers, values};
    use proptest::prelude::*;

    fn naive(x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Vec<f64> {
        let n = weight.len() as f64;
        x.chunks_exact(weight.len())
            .flat_map(|row| {
                let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
                let variance = row
                    .iter()
                    .map(|&v| (f64::from(v) - mean).powi(2))
                    .sum::<f64>()
                    / n;
                let affine = weight
                    .iter()
                    .zip(bias)
                    .map(|(&w, &b)| (f64::from(w), f64::from(b)));
                row.iter()
                    .zip(affine)
                    .map(|(&v, (w, b))| (f64::from(v) - mean) / (variance + eps).sqrt() * w + b)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn check(rows: usize, columns: usize, mean: f32, tolerance: f64) {
        let x: Vec<f32> = values(rows * columns, 4)
            .into_iter()
            .map(|v| v + mean)
            .collect();
        let (weight, bias) = (values(columns, 5), values(columns, 6));
        let mut out = vec![0.0; x.len()];
        layer_norm(&x, &weight, &bias, 1e-6, &mut out).unwrap();
        assert_close(&out, &naive(&x, &weight, &bias, 1e-6), tolerance);
    }

    proptest! {
        #[test]
        fn layer_norm_matches_the_naive_one(rows in 0usize..4, columns in 2usize..130) {
            check(rows, columns, 0.0, 3e-6);
        }
    }

    #[test]
    fn a_large_mean_does_not_cancel() {
        for columns in [7, 384, 768, 1023] {
            check(3, columns, 1e4, 1e-4);
            check(3, columns, -1e4, 1e-4);
        }
    }

    #[test]
    fn a_first_mean_that_is_far_off_is_corrected() {
        // Floats are 1/16 apart here, and a sum of 1,023 of them is off by more than the values' spread.
        check(3, 1023, 1e6, 1e-3);
        check(3, 1023, -1e6, 1e-3);
    }

    #[test]
    fn a_constant_row_gives_the_bias() {
        let mut out = [0.0; 5];
        layer_norm(
            &[3.7; 5],
            &[2.0; 5],
            &[1.0, 2.0, 3.0, 4.0, 5.0],
            1e-6,
            &mut out,
        )
        .unwrap();
        assert_close(&out, &[1.0, 2.0, 3.0, 4.0, 5.0], 1e-6);
        let mut out = [0.0];
        layer_norm(&[42.0], &[2.0], &[0.5], 1e-6, &mut out).unwrap();
        assert_eq!(out, [0.5]);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (x, weight, bias) = (values(701 * 384, 4), values(384, 5), values(384, 6));
        same_with_workers(|| {
            let mut out = vec![0.0; x.len()];
            layer_norm(&x, &weight, &bias, 1e-6, &mut out).unwrap();
            out
        });
    }

    #[test]
    fn wrong_lengths_are_errors() {
        for (x, weight, bias, out) in [(5, 2, 2, 5), (4, 2, 3, 4), (4, 2, 2, 3), (0, 0, 0, 0)] {
            let (x, weight, bias) = (vec![0.0; x], vec![0.0; weight], vec![0.0; bias]);
            let error = layer_norm(&x, &weight, &bias, 1e-6, &mut vec![0.0; out]).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
    }
}
