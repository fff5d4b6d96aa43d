//! The hyper-parameters of self-supervised pre-training, and checks of them and of shapes, which all backends share.

use crate::error::{Error, Result};
use crate::number::format_number;

/// How MSN's targets are computed.
#[derive(Debug, Clone, Copy)]
pub struct MsnTargets {
    /// Probabilities are raised to the power 1 / temperature. Above 0.
    pub temperature: f64,
    /// The number of times that columns, then rows, are normalised to equal sums; 0 for none.
    pub sinkhorn_iterations: u32,
}

/// The weights of the terms of MSN's loss, except for the cross-entropy, whose weight is 1.
#[derive(Debug, Clone, Copy)]
pub struct MsnLoss {
    /// λ of mean-entropy maximisation.
    pub me_max_weight: f64,
    /// The weight of the mean entropy of the anchors' probabilities.
    pub entropy_weight: f64,
}

impl MsnTargets {
    /// # Errors
    /// INVALID_ARGUMENT, naming the value that is out of range.
    pub fn check(&self) -> Result<()> {
        check_temperature(self.temperature)?;
        if self.sinkhorn_iterations <= 10_000 {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "Sinkhorn's iterations must be at most 10000, got {}.",
            self.sinkhorn_iterations
        )))
    }
}

impl MsnLoss {
    /// # Errors
    /// INVALID_ARGUMENT for a weight that isn't finite.
    pub fn check(&self) -> Result<()> {
        check_finite("me_max_weight", self.me_max_weight)?;
        check_finite("entropy_weight", self.entropy_weight)
    }
}

/// INVALID_ARGUMENT unless the logits of a softmax can be divided by `temperature`.
pub fn check_temperature(temperature: f64) -> Result<()> {
    if temperature.is_finite() && temperature > 0.0 {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "A temperature must be finite and above 0, got {}.",
        format_number(temperature)
    )))
}

/// INVALID_ARGUMENT unless `momentum` is in [0, 1].
pub fn check_momentum(momentum: f64) -> Result<()> {
    if (0.0..=1.0).contains(&momentum) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "The momentum of a moving average must be from 0 to 1, got {}.",
        format_number(momentum)
    )))
}

/// The number of rows of a batch norm's input of `len` values.
///
/// # Errors
/// INVALID_ARGUMENT unless they are whole rows, and at least two.
pub fn batch_rows(len: usize, columns: usize) -> Result<usize> {
    if columns == 0 || !len.is_multiple_of(columns) {
        return Err(Error::InvalidArgument(format!(
            "A batch norm of {columns} columns got {len} values, which isn't a whole number of rows."
        )));
    }
    let rows = len / columns;
    if rows >= 2 {
        return Ok(rows);
    }
    Err(Error::InvalidArgument(format!(
        "Batch normalisation needs at least two rows in training, got {rows}: use a larger batch."
    )))
}

/// The number of views per image: `anchors` over `targets`.
///
/// # Errors
/// INVALID_ARGUMENT unless that is a positive integer.
pub fn views_of(anchors: usize, targets: usize) -> Result<usize> {
    if anchors > 0 && targets > 0 && anchors.is_multiple_of(targets) {
        return Ok(anchors / targets);
    }
    Err(Error::InvalidArgument(format!(
        "{anchors} rows of anchors aren't a whole number of views of {targets} targets."
    )))
}

fn check_finite(name: &str, value: f64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "{name} must be finite, got {}.",
        format_number(value)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_named() {
        let message = |result: Result<()>| result.unwrap_err().to_string();
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(message(check_temperature(temperature)).contains("temperature"));
        }
        let targets = |sinkhorn_iterations| MsnTargets {
            temperature: 0.25,
            sinkhorn_iterations,
        };
        assert!(targets(3).check().is_ok());
        assert!(message(targets(u32::MAX).check()).contains("Sinkhorn"));
        let loss = |me_max_weight, entropy_weight| MsnLoss {
            me_max_weight,
            entropy_weight,
        };
        assert!(loss(1.0, 0.0).check().is_ok());
        assert!(message(loss(f64::NAN, 0.0).check()).contains("me_max_weight"));
        assert!(message(loss(1.0, f64::INFINITY).check()).contains("entropy_weight"));
        assert!(check_momentum(1.0).is_ok());
        assert!(message(check_momentum(1.5)).contains("from 0 to 1"));
    }

    #[test]
    fn rows_and_views_are_whole() {
        assert_eq!(batch_rows(6, 3).unwrap(), 2);
        assert_eq!(views_of(6, 3).unwrap(), 2);
        for (len, columns) in [(6, 0), (6, 4), (3, 3), (0, 3)] {
            assert_eq!(
                batch_rows(len, columns).unwrap_err().code(),
                "INVALID_ARGUMENT"
            );
        }
        for (anchors, targets) in [(5, 3), (0, 3), (3, 0), (2, 4)] {
            assert_eq!(
                views_of(anchors, targets).unwrap_err().code(),
                "INVALID_ARGUMENT"
            );
        }
    }
}
