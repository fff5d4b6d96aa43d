//! int8 weights: signed bytes with one float32 scale per row.

use crate::{Error, Result, format_number};

/// The largest magnitude of a quantised weight.
const WEIGHT_LIMIT: f32 = 127.0;

/// The scale of a row of finite values, and the values in steps of that scale: the largest magnitude becomes 127.
pub fn quantise_row(values: &[f32]) -> (f32, impl Iterator<Item = i8>) {
    let largest = values
        .iter()
        .fold(0.0, |most: f32, value| most.max(value.abs()));
    // A row of zeros needs a scale, too, and a subnormal scale would have no finite inverse.
    let scale = (largest / WEIGHT_LIMIT).max(f32::MIN_POSITIVE);
    let factor = 1.0 / scale;
    let steps = values
        .iter()
        .map(move |value| (value * factor).round_ties_even() as i8);
    (scale, steps)
}

/// INVALID_CHECKPOINT unless a stored scale is finite and above 0.
pub fn check_scale(row: usize, scale: f32) -> Result<()> {
    if scale.is_finite() && scale > 0.0 {
        return Ok(());
    }
    Err(Error::InvalidCheckpoint(format!(
        "The scale of row {row} is {}, but scales are finite and above 0: the checkpoint is damaged.",
        format_number(scale.into())
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_within_half_a_step() {
        let values = [0.3, -1.0, 0.999, 1e-9];
        let (scale, steps) = quantise_row(&values);
        for (value, step) in values.iter().zip(steps) {
            assert!((value - f32::from(step) * scale).abs() <= 0.501 * scale);
        }
    }

    #[test]
    fn ties_round_to_even() {
        let (scale, steps) = quantise_row(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]);
        assert_eq!(scale, 1.0);
        assert_eq!(steps.collect::<Vec<_>>(), [127, 0, 2, 2, 0, -2]);
    }

    #[test]
    fn rows_of_zeros_and_subnormals_have_a_scale() {
        for row in [[0.0], [1e-45]] {
            let (scale, mut steps) = quantise_row(&row);
            assert!(check_scale(0, scale).is_ok());
            assert_eq!(steps.next(), Some(0));
        }
    }
}
