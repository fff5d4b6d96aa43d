//! The reference's losses, summed in float64.

use vit_msn_tensor::{Error, Result, check_len};

/// The label that cross-entropy leaves out.
pub const IGNORE_INDEX: i64 = -100;

/// The mean cross-entropy of logits `[labels.len(), classes]` over the labels that aren't [`IGNORE_INDEX`].
/// Errors: INVALID_ARGUMENT naming a label that is no class, or when every label is ignored.
pub fn cross_entropy<L: Copy + Into<i64>>(
    logits: &[f32],
    classes: usize,
    labels: &[L],
) -> Result<f64> {
    check_len("The logits", logits.len(), &[labels.len(), classes])?;
    let (mut sum, mut count) = (0.0, 0usize);
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
        let row = &logits[index * classes..][..classes];
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = row.iter().map(|&v| f64::from(v - largest).exp()).sum();
        sum += total.ln() + f64::from(largest) - f64::from(row[class]);
        count += 1;
    }
    mean(sum, count, "labels that aren't ignored")
}

/// The mean squared error. Errors: INVALID_ARGUMENT when the lengths differ or are zero.
pub fn mse(predictions: &[f32], targets: &[f32]) -> Result<f64> {
    check_len("The targets", targets.len(), &[predictions.len()])?;
    let sum = predictions
        .iter()
        .zip(targets)
        .map(|(&p, &t)| (f64::from(p) - f64::from(t)).powi(2))
        .sum();
    mean(sum, targets.len(), "targets")
}

/// The mean binary cross-entropy of logits with targets in 0..=1, computed without overflow as
/// max(x, 0) − x·t + ln(1 + e^−|x|). Errors: INVALID_ARGUMENT when the lengths differ or are zero.
pub fn bce_with_logits(logits: &[f32], targets: &[f32]) -> Result<f64> {
    check_len("The targets", targets.len(), &[logits.len()])?;
    let term = |(&x, &t): (&f32, &f32)| {
        let (x, t) = (f64::from(x), f64::from(t));
        x.max(0.0) - x * t + (-x.abs()).exp().ln_1p()
    };
    mean(
        logits.iter().zip(targets).map(term).sum(),
        targets.len(),
        "targets",
    )
}

fn mean(sum: f64, count: usize, what: &str) -> Result<f64> {
    if count == 0 {
        return Err(Error::InvalidArgument(format!(
            "A loss needs at least one of the {what}."
        )));
    }
    Ok(sum / count as f64)
}
