//! The hyper-parameters of optimiser steps, and their checks, which all backends share.

use crate::error::{Error, Result};
use crate::number::format_number;

/// The hyper-parameters of one step of AdamW.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// At least 0.
    pub learning_rate: f64,
    /// The decay of the running mean of the gradients, in [0, 1).
    pub beta1: f64,
    /// The decay of the running mean of their squares, in [0, 1).
    pub beta2: f64,
    /// Added to the square root of the second moment. At least 0.
    pub epsilon: f64,
    /// At least 0; decoupled.
    pub weight_decay: f64,
    /// The number of steps, including this one.
    pub step: u32,
    /// The factor by which gradients are multiplied first.
    pub gradient_scale: f64,
}

/// The hyper-parameters of one step of SGD.
#[derive(Debug, Clone, Copy)]
pub struct Sgd {
    /// At least 0.
    pub learning_rate: f64,
    /// In [0, 1].
    pub momentum: f64,
    /// At least 0; coupled.
    pub weight_decay: f64,
    /// Whether to use Nesterov momentum; `momentum` must then be above 0.
    pub nesterov: bool,
    /// Whether this is the first step, whose gradient fills the momentum buffer.
    pub first: bool,
    /// The factor by which gradients are multiplied first.
    pub gradient_scale: f64,
}

/// The hyper-parameters of one step of LARS.
#[derive(Debug, Clone, Copy)]
pub struct Lars {
    /// At least 0.
    pub learning_rate: f64,
    /// In [0, 1].
    pub momentum: f64,
    /// At least 0; coupled.
    pub weight_decay: f64,
    /// η, above 0.
    pub trust_coefficient: f64,
    /// At least 0.
    pub epsilon: f64,
    /// The factor by which gradients are multiplied first.
    pub gradient_scale: f64,
}

impl AdamW {
    /// # Errors
    /// INVALID_ARGUMENT, naming the hyper-parameter that is out of range.
    pub fn check(&self) -> Result<()> {
        check("learning_rate", self.learning_rate, f64::INFINITY)?;
        check("epsilon", self.epsilon, f64::INFINITY)?;
        check("weight_decay", self.weight_decay, f64::INFINITY)?;
        check("beta1", self.beta1, 1.0)?;
        check("beta2", self.beta2, 1.0)?;
        check_scale(self.gradient_scale)?;
        if self.step == 0 {
            return Err(Error::InvalidArgument(
                "AdamW counts steps from 1, got step 0.".to_string(),
            ));
        }
        Ok(())
    }
}

impl Sgd {
    /// # Errors
    /// INVALID_ARGUMENT, naming the hyper-parameter that is out of range; also for momentum without a buffer.
    pub fn check(&self, has_buffer: bool) -> Result<()> {
        check("learning_rate", self.learning_rate, f64::INFINITY)?;
        check("momentum", self.momentum, f64::INFINITY)?;
        check("weight_decay", self.weight_decay, f64::INFINITY)?;
        check_scale(self.gradient_scale)?;
        if self.momentum == 0.0 && self.nesterov {
            return Err(Error::InvalidArgument(
                "Nesterov momentum needs a momentum above 0.".to_string(),
            ));
        }
        if self.momentum > 0.0 && !has_buffer {
            return Err(Error::InvalidArgument(format!(
                "SGD with a momentum of {} needs a momentum buffer.",
                format_number(self.momentum)
            )));
        }
        Ok(())
    }
}

impl Lars {
    /// # Errors
    /// INVALID_ARGUMENT, naming the hyper-parameter that is out of range.
    pub fn check(&self) -> Result<()> {
        check("learning_rate", self.learning_rate, f64::INFINITY)?;
        check("momentum", self.momentum, f64::INFINITY)?;
        check("weight_decay", self.weight_decay, f64::INFINITY)?;
        check("trust_coefficient", self.trust_coefficient, f64::INFINITY)?;
        check("epsilon", self.epsilon, f64::INFINITY)?;
        check_scale(self.gradient_scale)
    }
}

/// INVALID_ARGUMENT unless `value` is at least 0 and below `end`.
fn check(name: &str, value: f64, end: f64) -> Result<()> {
    if value >= 0.0 && value < end {
        return Ok(());
    }
    let range = if end == f64::INFINITY {
        "finite and at least 0".to_string()
    } else {
        format!("at least 0 and below {}", format_number(end))
    };
    Err(Error::InvalidArgument(format!(
        "An optimiser's {name} must be {range}, got {}.",
        format_number(value)
    )))
}

fn check_scale(value: f64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "An optimiser's gradient_scale must be finite, got {}: check that the gradient's norm is finite.",
        format_number(value)
    )))
}
