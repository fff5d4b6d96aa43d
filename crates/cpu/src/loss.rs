//! The reference's losses, summed in float64.

use vit_msn_tensor::{Error, Result, check_len, format_number};

/// The label that cross-entropy ignores.
pub const IGNORE_INDEX: i64 = -100;

/// The mean cross-entropy of logits `[labels.len(), classes]` over the labels other than [`IGNORE_INDEX`].
///
/// # Errors
/// INVALID_ARGUMENT naming a label that isn't a class, or when every label is ignored.
pub fn cross_entropy<L: Copy + Into<i64>>(
    logits: &[f32],
    classes: usize,
    labels: &[L],
) -> Result<f64> {
    cross_entropy_smoothed(logits, classes, labels, 0.0)
}

/// [`cross_entropy`] with label smoothing s as in PyTorch: the target is (1 − s)·one_hot + s / classes.
///
/// # Errors
/// Same as [`cross_entropy`], and INVALID_ARGUMENT for s outside [0, 1].
pub fn cross_entropy_smoothed<L: Copy + Into<i64>>(
    logits: &[f32],
    classes: usize,
    labels: &[L],
    smoothing: f64,
) -> Result<f64> {
    check_smoothing(smoothing)?;
    let mut sum = 0.0;
    let count = for_each_label(logits, classes, labels, |_, row, class| {
        let log_sum = LogSum::of(row);
        sum += (1.0 - smoothing) * log_sum.minus(row[class]);
        if smoothing > 0.0 {
            let others: f64 = row.iter().map(|&v| log_sum.minus(v)).sum();
            sum += smoothing / classes as f64 * others;
        }
    })?;
    mean(sum, count, "label that isn't ignored")
}

/// Calls `visit` with the index, the logits and the class of each label that isn't ignored. Returns their
/// number.
pub(crate) fn for_each_label<L: Copy + Into<i64>>(
    logits: &[f32],
    classes: usize,
    labels: &[L],
    mut visit: impl FnMut(usize, &[f32], usize),
) -> Result<usize> {
    check_len("The logits", logits.len(), &[labels.len(), classes])?;
    let mut count = 0;
    for (index, label) in labels.iter().map(|&label| label.into()).enumerate() {
        if label == IGNORE_INDEX {
            continue;
        }
        let class = usize::try_from(label).ok().filter(|&class| class < classes).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "Label {index} is {label}, but the model has {classes} classes: use 0 to {}, or {IGNORE_INDEX} to ignore it.",
                classes.saturating_sub(1)
            ))
        })?;
        visit(index, &logits[index * classes..][..classes], class);
        count += 1;
    }
    Ok(count)
}

pub(crate) fn check_smoothing(smoothing: f64) -> Result<()> {
    if (0.0..=1.0).contains(&smoothing) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "label_smoothing must be from 0 to 1, got {}.",
        format_number(smoothing)
    )))
}

/// ln Σ e^logit of a row, in two parts: the largest logit and the rest.
#[derive(Clone, Copy)]
pub(crate) struct LogSum {
    largest: f32,
    rest: f64,
}

impl LogSum {
    pub fn of(row: &[f32]) -> Self {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = row.iter().map(|&v| f64::from(v - largest).exp()).sum();
        Self {
            largest,
            rest: total.ln(),
        }
    }

    /// The negative log-probability of a logit.
    pub fn minus(self, logit: f32) -> f64 {
        self.rest + f64::from(self.largest) - f64::from(logit)
    }
}

/// The mean squared error.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths differ or are zero.
pub fn mse_loss(predictions: &[f32], targets: &[f32]) -> Result<f64> {
    check_len("The targets", targets.len(), &[predictions.len()])?;
    let sum = predictions
        .iter()
        .zip(targets)
        .map(|(&p, &t)| (f64::from(p) - f64::from(t)).powi(2))
        .sum();
    mean(sum, targets.len(), "targets")
}

/// The mean binary cross-entropy of logits with targets in 0..=1, computed without overflow as max(x, 0) − x·t
/// + ln(1 + e^−|x|).
///
/// # Errors
/// INVALID_ARGUMENT when the lengths differ or are zero.
pub fn bce_with_logits(logits: &[f32], targets: &[f32]) -> Result<f64> {
    check_len("The targets", targets.len(), &[logits.len()])?;
    let term = |(&x, &t): (&f32, &f32)| {
        let (x, t) = (f64::from(x), f64::from(t));
        x.max(0.0) - x * t + (-x.abs()).exp().ln_1p()
    };
    mean(
        logits.iter().zip(targets).map(term).sum(),
        targets.len(),
        "target",
    )
}

pub(crate) fn mean(sum: f64, count: usize, what: &str) -> Result<f64> {
    if count == 0 {
        return Err(Error::InvalidArgument(format!(
            "A loss needs at least one {what}."
        )));
    }
    Ok(sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::values;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cross_entropy_is_minus_the_mean_log_softmax(batch in 1usize..6, classes in 1usize..20) {
            let logits = values(batch * classes, 51);
            let labels: Vec<i32> = (0..batch).map(|b| (b * 7 % classes) as i32).collect();
            let expected: f64 = logits.chunks(classes).zip(&labels).map(|(row, &label)| {
                let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
                -(f64::from(row[label as usize]).exp() / sum).ln() / batch as f64
            }).sum();
            prop_assert!((cross_entropy(&logits, classes, &labels).unwrap() - expected).abs() < 1e-6);
        }

        #[test]
        fn bce_is_the_binary_entropy(x in -20.0f32..20.0, t in 0.0f32..1.0) {
            let (p, y) = (1.0 / (1.0 + (-f64::from(x)).exp()), f64::from(t));
            let expected = -(y * p.ln() + (1.0 - y) * (1.0 - p).ln());
            prop_assert!((bce_with_logits(&[x], &[t]).unwrap() - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn ignored_labels_do_not_count() {
        let logits = [0.0, 1.0, 50.0, -50.0, 0.5, 0.5];
        let all = cross_entropy(&[0.0, 1.0, 0.5, 0.5], 2, &[1i64, 0]).unwrap();
        assert_eq!(
            cross_entropy(&logits, 2, &[1i64, IGNORE_INDEX, 0]).unwrap(),
            all
        );
        let error = cross_entropy(&logits, 2, &[IGNORE_INDEX; 3]).unwrap_err();
        assert!(error.to_string().contains("isn't ignored"), "{error}");
    }

    #[test]
    fn a_label_that_is_no_class_is_named() {
        for label in [2i64, -1, i64::MAX, i64::MIN] {
            let message = cross_entropy(&[0.0; 4], 2, &[0, label])
                .unwrap_err()
                .to_string();
            assert!(
                message.starts_with(&format!("Label 1 is {label}, but the model has 2 classes")),
                "{message}"
            );
        }
    }

    #[test]
    fn huge_logits_give_finite_losses() {
        assert_eq!(cross_entropy(&[1e30, -1e30], 2, &[0i32]).unwrap(), 0.0);
        assert_eq!(bce_with_logits(&[1e30, -1e30], &[1.0, 0.0]).unwrap(), 0.0);
        assert!((cross_entropy(&[1e4, 0.0], 2, &[1i32]).unwrap() - 1e4).abs() < 1e-9);
    }

    #[test]
    fn mse_is_the_mean_of_squares() {
        assert_eq!(mse_loss(&[1.0, 5.0], &[3.0, 4.0]).unwrap(), 2.5);
    }

    #[test]
    fn wrong_lengths_are_errors() {
        assert_eq!(
            mse_loss(&[1.0], &[]).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(mse_loss(&[], &[]).unwrap_err().code(), "INVALID_ARGUMENT");
        assert_eq!(
            bce_with_logits(&[1.0], &[1.0, 0.0]).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            cross_entropy(&[1.0], 2, &[0i32]).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
    }

    #[test]
    fn smoothing_mixes_in_the_mean_over_classes() {
        let (logits, classes, labels) = (values(4 * 5, 3), 5, [1i32, -100, 0, 4]);
        let plain = |labels: &[i32]| cross_entropy(&logits, classes, labels).unwrap();
        let own = plain(&labels);
        let over_classes: f64 = (0..5).map(|c| plain(&[c, -100, c, c])).sum::<f64>() / 5.0;
        for smoothing in [0.0, 0.1, 1.0] {
            let expected = (1.0 - smoothing) * own + smoothing * over_classes;
            let actual = cross_entropy_smoothed(&logits, classes, &labels, smoothing).unwrap();
            assert!((actual - expected).abs() < 1e-12);
        }
        for smoothing in [-0.1, 1.1, f64::NAN] {
            let error = cross_entropy_smoothed(&logits, classes, &labels, smoothing).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
    }
}
