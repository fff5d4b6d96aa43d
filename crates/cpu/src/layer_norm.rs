//! Layer normalisation over the last dimension.

use vit_msn_tensor::{Error, Result, check_len};

use crate::simd::{F32x4, LANES};

/// `out = (x − mean) / √(variance + eps) · weight + bias` for each row of `weight.len()` values; the variance is
/// the biased one, as in PyTorch. Errors: INVALID_ARGUMENT when lengths don't fit.
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
            "A layer norm over {columns} values got {}, which are no whole rows.",
            x.len()
        )));
    }
    check_len("The bias of a layer norm", bias.len(), &[columns])?;
    check_len("The output of a layer norm", out.len(), &[x.len()])?;
    for (row, target) in x.chunks_exact(columns).zip(out.chunks_exact_mut(columns)) {
        let (mean, variance) = moments(row);
        let factor = 1.0 / (variance + eps).sqrt();
        normalise(row, mean, factor, weight, bias, target);
    }
    Ok(())
}

/// Mean and biased variance. The first sum only picks a shift near the mean; the moments of what remains don't
/// cancel, however large the mean.
fn moments(row: &[f32]) -> (f32, f32) {
    let count = row.len() as f32;
    let shift = sum_of(row, 0.0).0 / count;
    let (sum, squares) = sum_of(row, shift);
    let rest = sum / count;
    (shift + rest, (squares / count - rest * rest).max(0.0))
}

/// The sums of x − shift and of its square.
fn sum_of(row: &[f32], shift: f32) -> (f32, f32) {
    let (chunks, tail) = row.as_chunks::<LANES>();
    let shifts = F32x4::splat(shift);
    let mut sums = [F32x4::splat(0.0); 2];
    let mut squares = [F32x4::splat(0.0); 2];
    for (index, chunk) in chunks.iter().enumerate() {
        // SAFETY: the chunk is four floats.
        let value = unsafe { F32x4::load(chunk.as_ptr()) }.sub(shifts);
        sums[index % 2] = sums[index % 2].add(value);
        squares[index % 2] = value.mul_add(value, squares[index % 2]);
    }
    let (mut sum, mut square) = (sums[0].add(sums[1]).sum(), squares[0].add(squares[1]).sum());
    for value in tail {
        let value = value - shift;
        sum += value;
        square += value * value;
    }
    (sum, square)
}

fn normalise(row: &[f32], mean: f32, factor: f32, weight: &[f32], bias: &[f32], out: &mut [f32]) {
    let whole = row.len() / LANES * LANES;
    let (means, factors) = (F32x4::splat(mean), F32x4::splat(factor));
    for first in (0..whole).step_by(LANES) {
        let range = first..first + LANES;
        // SAFETY: each slice is four floats.
        unsafe {
            let value = F32x4::load(row[range.clone()].as_ptr())
                .sub(means)
                .mul(factors);
            let weights = F32x4::load(weight[range.clone()].as_ptr());
            let biases = F32x4::load(bias[range.clone()].as_ptr());
            value
                .mul_add(weights, biases)
                .store(out[range].as_mut_ptr());
        }
    }
    for index in whole..row.len() {
        out[index] = (row[index] - mean) * factor * weight[index] + bias[index];
    }
}
