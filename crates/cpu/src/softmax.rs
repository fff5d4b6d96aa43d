//! Softmax over rows.

use vit_msn_tensor::{Error, Result};

use crate::simd::{F32x4, LANES, exp, map_in_place};

/// Replaces each row of `columns` values by its softmax; the largest value is subtracted first, so that no
/// exponential overflows. Errors: INVALID_ARGUMENT when `x` is no whole rows.
pub fn softmax(x: &mut [f32], columns: usize) -> Result<()> {
    if columns == 0 || !x.len().is_multiple_of(columns) {
        return Err(Error::InvalidArgument(format!(
            "{} values are no whole rows of {columns}.",
            x.len()
        )));
    }
    for row in x.chunks_exact_mut(columns) {
        let sum = exp_of_difference(row, largest(row));
        let factor = F32x4::splat(1.0 / sum);
        map_in_place(row, |v| v.mul(factor));
    }
    Ok(())
}

/// The largest value of a row; −∞ for none.
pub(crate) fn largest(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let lanes = chunks
        .iter()
        .fold(F32x4::splat(f32::NEG_INFINITY), |best, chunk| {
            // SAFETY: the chunk is four floats.
            best.max(unsafe { F32x4::load(chunk.as_ptr()) })
        });
    rest.iter().copied().fold(lanes.largest(), f32::max)
}

/// Replaces each value by e^(value − shift) and returns the sum of the results.
pub(crate) fn exp_of_difference(row: &mut [f32], shift: f32) -> f32 {
    let shift = F32x4::splat(shift);
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let mut sum = F32x4::splat(0.0);
    for chunk in chunks {
        // SAFETY: the chunk is four floats.
        unsafe {
            let value = exp(F32x4::load(chunk.as_ptr()).sub(shift));
            value.store(chunk.as_mut_ptr());
            sum = sum.add(value);
        }
    }
    map_in_place(rest, |v| exp(v.sub(shift)));
    sum.sum() + rest.iter().sum::<f32>()
}
