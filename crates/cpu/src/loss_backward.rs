//! The gradients of the losses with respect to the model's outputs.

use vit_msn_tensor::{Error, Result, check_len};

use crate::loss::{LogSum, check_smoothing, for_each_label, mean};

/// The gradient of [`crate::cross_entropy_smoothed`] with respect to the logits, (softmax − target) / count; 0
/// for the rows of ignored labels.
///
/// # Errors
/// Same as [`crate::cross_entropy_smoothed`].
pub fn cross_entropy_backward<L: Copy + Into<i64>>(
    logits: &[f32],
    classes: usize,
    labels: &[L],
    smoothing: f64,
    out: &mut [f32],
) -> Result<()> {
    check_smoothing(smoothing)?;
    check_len(
        "The gradient with respect to the logits",
        out.len(),
        &[logits.len()],
    )?;
    let count = for_each_label(logits, classes, labels, |_, _, _| {})?;
    let share = mean(1.0, count, "label that isn't ignored")?;
    out.fill(0.0);
    for_each_label(logits, classes, labels, |index, row, class| {
        let log_sum = LogSum::of(row);
        let targets = &mut out[index * classes..][..classes];
        for (other, (target, &logit)) in targets.iter_mut().zip(row).enumerate() {
            let one_hot = if other == class { 1.0 - smoothing } else { 0.0 };
            let wanted = one_hot + smoothing / classes as f64;
            *target = (share * ((-log_sum.minus(logit)).exp() - wanted)) as f32;
        }
    })?;
    Ok(())
}

/// The gradient of [`crate::mse_loss`] with respect to its predictions, 2·(p − t) / count.
///
/// # Errors
/// Same as [`crate::mse_loss`].
pub fn mse_loss_backward(predictions: &[f32], targets: &[f32], out: &mut [f32]) -> Result<()> {
    for_each_pair(predictions, targets, out, |p, t| 2.0 * (p - t))
}

/// The gradient of [`crate::bce_with_logits`] with respect to the logits, (σ(x) − t) / count.
///
/// # Errors
/// Same as [`crate::bce_with_logits`].
pub fn bce_with_logits_backward(logits: &[f32], targets: &[f32], out: &mut [f32]) -> Result<()> {
    for_each_pair(logits, targets, out, |x, t| 1.0 / (1.0 + (-x).exp()) - t)
}

fn for_each_pair(
    values: &[f32],
    targets: &[f32],
    out: &mut [f32],
    slope: impl Fn(f64, f64) -> f64,
) -> Result<()> {
    check_len("The targets", targets.len(), &[values.len()])?;
    check_len("The gradient of a loss", out.len(), &[values.len()])?;
    if values.is_empty() {
        return Err(Error::InvalidArgument(
            "A loss needs at least one target.".to_string(),
        ));
    }
    let count = values.len() as f64;
    for (out, (&value, &target)) in out.iter_mut().zip(values.iter().zip(targets)) {
        *out = (slope(f64::from(value), f64::from(target)) / count) as f32;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, values};
    use crate::{IGNORE_INDEX, bce_with_logits, cross_entropy_smoothed, mse_loss};
    use proptest::prelude::*;

    /// Central differences of a loss on float32 values. A step of 2⁻⁷ and values with few significant bits are
    /// added exactly.
    fn differences(values: &[f32], loss: impl Fn(&[f32]) -> f64) -> Vec<f64> {
        let step = 1.0 / 128.0;
        (0..values.len())
            .map(|index| {
                let at = |offset: f32| {
                    let mut moved = values.to_vec();
                    moved[index] += offset;
                    loss(&moved)
                };
                (at(step) - at(-step)) / f64::from(2.0 * step)
            })
            .collect()
    }

    fn short_values(count: usize, seed: u64) -> Vec<f32> {
        let short = |v: f32| (v * 512.0).round() / 128.0;
        values(count, seed).into_iter().map(short).collect()
    }

    proptest! {
        #[test]
        fn cross_entropy_matches_finite_differences(
            batch in 1usize..6, classes in 1usize..9, smoothing in 0.0f64..1.0, ignored in 0usize..8,
        ) {
            let logits = short_values(batch * classes, 1);
            let mut labels: Vec<i64> = (0..batch).map(|b| (b * 7 % classes) as i64).collect();
            if batch > 1 && ignored < batch {
                labels[ignored] = IGNORE_INDEX;
            }
            let mut out = vec![f32::NAN; logits.len()];
            cross_entropy_backward(&logits, classes, &labels, smoothing, &mut out).unwrap();
            let loss = |logits: &[f32]| cross_entropy_smoothed(logits, classes, &labels, smoothing).unwrap();
            assert_close(&out, &differences(&logits, loss), 2e-5);
            if batch > 1 && ignored < batch {
                prop_assert!(out[ignored * classes..][..classes].iter().all(|&v| v == 0.0));
            }
        }

        #[test]
        fn other_losses_match_finite_differences(count in 1usize..30) {
            let (x, t) = (short_values(count, 2), short_values(count, 3));
            let mut out = vec![f32::NAN; count];
            mse_loss_backward(&x, &t, &mut out).unwrap();
            assert_close(&out, &differences(&x, |x| mse_loss(x, &t).unwrap()), 1e-6);
            bce_with_logits_backward(&x, &t, &mut out).unwrap();
            assert_close(&out, &differences(&x, |x| bce_with_logits(x, &t).unwrap()), 2e-5);
        }
    }

    #[test]
    fn huge_logits_give_finite_gradients() {
        let mut out = [f32::NAN; 2];
        cross_entropy_backward(&[1e30, -1e30], 2, &[1i32], 0.0, &mut out).unwrap();
        assert_eq!(out, [1.0, -1.0]);
        bce_with_logits_backward(&[1e30, -1e30], &[0.0, 1.0], &mut out).unwrap();
        assert_eq!(out, [0.5, -0.5]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let mut out = [0.0; 4];
        for (labels, smoothing) in [([0, 2], 0.0), ([-100, -100], 0.0), ([0, 1], 1.5)] {
            let error =
                cross_entropy_backward(&[0.0; 4], 2, &labels, smoothing, &mut out).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
        let error = cross_entropy_backward(&[0.0; 4], 2, &[0, 1], 0.0, &mut out[..3]).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
        for (x, t, out) in [(2, 1, 2), (2, 2, 1), (0, 0, 0)] {
            let error =
                mse_loss_backward(&vec![0.0; x], &vec![0.0; t], &mut vec![0.0; out]).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
    }
}
