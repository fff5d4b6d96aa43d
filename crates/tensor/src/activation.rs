//! The activations of the reference's `ACT2FN` that ViT configurations use.

use crate::{Error, Result};

/// An elementwise activation; `hidden_act` in config.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x
    Identity,
    /// x·Φ(x), with the exact normal distribution.
    Gelu,
    /// max(x, 0)
    Relu,
    /// x·σ(x)
    Silu,
    /// ½x(1 + tanh(√(2/π)(x + 0.044715x³))): the reference's `gelu_new` and `gelu_pytorch_tanh`.
    GeluTanh,
    /// x·σ(1.702x)
    QuickGelu,
}

impl Activation {
    /// Every activation.
    pub const ALL: [Self; 6] = [
        Self::Identity,
        Self::Gelu,
        Self::Relu,
        Self::Silu,
        Self::GeluTanh,
        Self::QuickGelu,
    ];

    /// The activation called `name` in config.json. Errors: INVALID_ARGUMENT naming the known ones.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "identity" => Ok(Self::Identity),
            "gelu" => Ok(Self::Gelu),
            "relu" => Ok(Self::Relu),
            "silu" => Ok(Self::Silu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Self::GeluTanh),
            "quick_gelu" => Ok(Self::QuickGelu),
            _ => Err(Error::InvalidArgument(format!(
                "Unknown activation {name:?}: use \"gelu\", \"relu\", \"silu\", \"gelu_new\", \"gelu_pytorch_tanh\" or \"quick_gelu\"."
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(Activation::from_name("gelu_new"), Ok(Activation::GeluTanh));
        assert_eq!(
            Activation::from_name("gelu_pytorch_tanh"),
            Ok(Activation::GeluTanh)
        );
        for (name, act) in [
            ("gelu", Activation::Gelu),
            ("relu", Activation::Relu),
            ("silu", Activation::Silu),
        ] {
            assert_eq!(Activation::from_name(name), Ok(act));
        }
        assert_eq!(
            Activation::from_name("quick_gelu"),
            Ok(Activation::QuickGelu)
        );
        assert!(
            Activation::from_name("mish")
                .unwrap_err()
                .to_string()
                .contains("mish")
        );
    }
}
