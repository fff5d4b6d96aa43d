//! The activations of the reference's `ACT2FN` that have no parameters.

use crate::{Error, Result};

/// Declares the activations, each with its names in config.json and in the engine's API.
macro_rules! activations {
    ($($(#[$doc:meta])* $variant:ident = $($name:literal)|+,)+) => {
        /// An elementwise activation; `hidden_act` in config.json.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Activation {
            $($(#[$doc])* $variant,)+
        }

        impl Activation {
            /// Every activation.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Every name; an activation may have several.
            const NAMES: &[(&str, Self)] = &[$($(($name, Self::$variant)),+),+];
        }
    };
}

// In the order of the codes in activation.wgsl.
activations! {
    /// x
    Identity = "identity",
    /// x·Φ(x), with Φ the exact normal cumulative distribution function.
    Gelu = "gelu",
    /// max(x, 0)
    Relu = "relu",
    /// x·σ(x)
    Silu = "silu",
    /// ½x(1 + tanh(√(2/π)(x + 0.044715x³)))
    GeluTanh = "gelu_new" | "gelu_pytorch_tanh",
    /// x·σ(1.702x)
    QuickGelu = "quick_gelu",
    /// min(max(x, 0), 6)
    Relu6 = "relu6",
    /// x, or 0.01x where x is negative.
    LeakyRelu = "leaky_relu",
    /// max(x, 0)²
    Relu2 = "relu2",
    /// tanh(x)
    Tanh = "tanh",
    /// σ(x)
    Sigmoid = "sigmoid",
    /// x·tanh(ln(1 + eˣ))
    Mish = "mish",
    /// Gelu, but at most 10.
    Gelu10 = "gelu_10",
    /// ½(1 + erf((x − 0.707107) / (0.282095·√2)))
    Laplace = "laplace",
}

impl Activation {
    /// The mean of laplace.
    #[allow(clippy::approx_constant, reason = "the reference's digits")]
    pub const LAPLACE_MEAN: f64 = 0.707_107;
    /// The standard deviation of laplace.
    pub const LAPLACE_DEVIATION: f64 = 0.282_095;

    /// The activation called `name` in config.json.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, listing the known names.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|&(_, activation)| activation).ok_or_else(|| {
            let names: Vec<_> = Self::NAMES.iter().map(|(known, _)| *known).collect();
            Error::InvalidArgument(format!(
                "Unknown activation {name:?}: use one of {}.",
                names.join(", ")
            ))
        })
    }

    /// Its value of the kernels' constant ACTIVATION.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The activation of `x`, computed from its definition.
    #[cfg(any(test, feature = "testing"))]
    pub fn definition(self, x: f64) -> f64 {
        use crate::testing::erf;
        use std::f64::consts::{PI, SQRT_2};
        let sigmoid = |u: f64| 1.0 / (1.0 + (-u).exp());
        let normal = |u: f64| 0.5 * (1.0 + erf(u / SQRT_2));
        match self {
            Self::Identity => x,
            Self::Gelu => x * normal(x),
            Self::Relu => x.max(0.0),
            Self::Silu => x * sigmoid(x),
            Self::GeluTanh => {
                let inner = (2.0 / PI).sqrt() * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Self::QuickGelu => x * sigmoid(1.702 * x),
            Self::Relu6 => x.clamp(0.0, 6.0),
            Self::LeakyRelu => x.max(0.01 * x),
            Self::Relu2 => x.max(0.0).powi(2),
            Self::Tanh => x.tanh(),
            Self::Sigmoid => sigmoid(x),
            // ln(1 + eˣ) without overflow.
            Self::Mish => x * (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh(),
            Self::Gelu10 => (x * normal(x)).min(10.0),
            Self::Laplace => normal((x - Self::LAPLACE_MEAN) / Self::LAPLACE_DEVIATION),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, act) in [
            ("gelu", Activation::Gelu),
            ("relu", Activation::Relu),
            ("silu", Activation::Silu),
            ("gelu_new", Activation::GeluTanh),
            ("gelu_pytorch_tanh", Activation::GeluTanh),
            ("quick_gelu", Activation::QuickGelu),
            ("relu6", Activation::Relu6),
            ("mish", Activation::Mish),
        ] {
            assert_eq!(Activation::from_name(name), Ok(act));
        }
        let message = Activation::from_name("prelu").unwrap_err().to_string();
        assert!(message.contains("\"prelu\"") && message.contains("relu, silu"));
    }

    #[test]
    fn codes_count_from_zero() {
        let codes: Vec<_> = Activation::ALL.iter().map(|act| act.code()).collect();
        assert_eq!(codes, (0..Activation::ALL.len() as u32).collect::<Vec<_>>());
    }

    /// Values from torch 2.
    #[test]
    fn definitions_are_the_references() {
        for (act, x, expected) in [
            (Activation::Gelu, 1.0, 0.841_344_746),
            (Activation::GeluTanh, 1.0, 0.841_191_991),
            (Activation::Relu6, 7.0, 6.0),
            (Activation::LeakyRelu, -2.0, -0.02),
            (Activation::Relu2, 3.0, 9.0),
            (Activation::Tanh, 0.5, 0.462_117_157),
            (Activation::Sigmoid, -1.0, 0.268_941_421),
            (Activation::Mish, 1.0, 0.865_098_388),
            (Activation::Gelu10, 11.0, 10.0),
            (Activation::Laplace, Activation::LAPLACE_MEAN, 0.5),
        ] {
            assert!((act.definition(x) - expected).abs() < 1e-8, "{act:?}");
        }
    }
}
