//! The activations of the reference's `ACT2FN` that ViT configurations use.

use crate::simd::{F32x4, exp_nonpositive, map_in_place, polynomial8};
use vit_msn_tensor::{Error, Result};

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

    /// Replaces every value by its activation. NaN stays NaN; infinities give the limits.
    pub fn apply(self, values: &mut [f32]) {
        self.apply_rows(std::iter::once(values));
    }

    /// [`Activation::apply`] to each of `rows`.
    pub(crate) fn apply_rows<'a>(self, rows: impl Iterator<Item = &'a mut [f32]>) {
        match self {
            Self::Identity => {}
            Self::Gelu => map_rows(rows, gelu),
            Self::Relu => map_rows(rows, |x| x.max(F32x4::splat(0.0))),
            Self::Silu => map_rows(rows, |x| times_sigmoid(x, x)),
            Self::GeluTanh => map_rows(rows, gelu_tanh),
            Self::QuickGelu => {
                map_rows(rows, |x| times_sigmoid(x, x.mul(F32x4::splat(1.702))));
            }
        }
    }
}

#[inline(always)]
fn map_rows<'a>(rows: impl Iterator<Item = &'a mut [f32]>, op: impl Fn(F32x4) -> F32x4) {
    for row in rows {
        map_in_place(row, &op);
    }
}

/// x·Φ(x) = max(x, 0) − |x|·Φ(−|x|), where Φ(−a) = e^(−a²/2)·r(1 / (1 + 0.325a)): no large numbers cancel. Beyond
/// 6, where a·r is nearly constant, r's argument is held.
#[inline(always)]
fn gelu(x: F32x4) -> F32x4 {
    let one = F32x4::splat(1.0);
    let size = x.abs().min(F32x4::splat(6.0));
    let t = one.div(size.mul_add(F32x4::splat(0.325), one));
    // Minimax polynomial of r = ½·erfcx(a/√2) in t on a ∈ [0, 6], error 1.1e-8.
    const R: [f32; 8] = [
        -3.419_456_2e-4,
        1.348_339_6e-1,
        9.586_185e-2,
        2.396_032_3e-1,
        -1.859_047e-1,
        4.204_656_5e-1,
        -2.550_663e-1,
        5.054_825e-2,
    ];
    let decay = exp_nonpositive(x.mul(x).mul(F32x4::splat(-0.5)));
    x.max(F32x4::splat(0.0))
        .sub(size.mul(decay).mul(polynomial8(t, R)))
}

/// The tanh form is x·σ(2u), since ½(1 + tanh u) = σ(2u).
#[inline(always)]
fn gelu_tanh(x: F32x4) -> F32x4 {
    // 2·√(2/π), and the cubic term's share of it.
    let linear = F32x4::splat(1.595_769_2);
    let cubic = F32x4::splat(1.595_769_2 * 0.044_715);
    times_sigmoid(x, x.mul(x).mul_add(cubic, linear).mul(x))
}

/// x·σ(u), for u of x's sign.
#[inline(always)]
fn times_sigmoid(x: F32x4, u: F32x4) -> F32x4 {
    let (zero, one) = (F32x4::splat(0.0), F32x4::splat(1.0));
    // e^−|u| never overflows; σ(u) is 1 or e^−|u| over 1 + e^−|u|.
    let decay = exp_nonpositive(zero.sub(u.abs()));
    let numerator = u.lt(zero).select(decay, one);
    // Below −100 the result is as good as 0, while −∞ times it would be NaN.
    x.max(F32x4::splat(-100.0))
        .mul(numerator.div(decay.add(one)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Activation; 6] = [
        Activation::Identity,
        Activation::Gelu,
        Activation::Relu,
        Activation::Silu,
        Activation::GeluTanh,
        Activation::QuickGelu,
    ];

    /// erf by its series where that converges well, by its continued fraction beyond.
    fn erf(x: f64) -> f64 {
        let a = x.abs();
        let value = if a < 3.0 {
            let mut term = a;
            let mut sum = a;
            for n in 1..120 {
                term *= -a * a / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * 2.0 / std::f64::consts::PI.sqrt()
        } else {
            let fraction = (1..=60)
                .rev()
                .fold(a, |rest, k| a + f64::from(k) / 2.0 / rest);
            1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
        };
        value.copysign(x)
    }

    fn naive(act: Activation, x: f64) -> f64 {
        let sigmoid = |u: f64| 1.0 / (1.0 + (-u).exp());
        match act {
            Activation::Identity => x,
            Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
            Activation::Relu => x.max(0.0),
            Activation::Silu => x * sigmoid(x),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::QuickGelu => x * sigmoid(1.702 * x),
        }
    }

    #[test]
    fn the_tests_erf_is_right() {
        for (x, expected) in [
            (0.5, 0.520_499_877_813_046_5),
            (2.0, 0.995_322_265_018_952_7),
            (4.0, 0.999_999_984_582_742_1),
        ] {
            assert!((erf(x) - expected).abs() < 1e-14);
            assert!((erf(-x) + expected).abs() < 1e-14);
        }
    }

    #[test]
    fn every_activation_is_within_2e_7() {
        for act in ALL {
            let mut worst = 0.0f64;
            let inputs: Vec<f32> = (-200_000..=200_000)
                .map(|step| step as f32 * 1e-4)
                .collect();
            let mut outputs = inputs.clone();
            act.apply(&mut outputs);
            for (&x, &y) in inputs.iter().zip(&outputs) {
                // Beyond 1 the last bit of the result itself is worth more than 2e-7.
                let error =
                    (f64::from(y) - naive(act, f64::from(x))).abs() / f64::from(x.abs().max(1.0));
                worst = worst.max(error);
            }
            assert!(worst <= 2e-7, "{act:?}: {worst:e}");
        }
    }

    #[test]
    fn infinities_and_huge_values_give_the_limits() {
        for act in ALL.into_iter().skip(1) {
            let mut values = [
                f32::NEG_INFINITY,
                f32::MIN,
                -1e20,
                -100.0,
                0.0,
                1e20,
                f32::MAX,
                f32::INFINITY,
            ];
            act.apply(&mut values);
            let [a, b, c, d, zero, x, y, z] = values;
            assert!(
                [a, b, c, d, zero].iter().all(|v| v.abs() < 1e-25),
                "{act:?}"
            );
            assert_eq!([x, y, z], [1e20, f32::MAX, f32::INFINITY], "{act:?}");
        }
    }

    #[test]
    fn nan_stays_nan() {
        for act in ALL {
            let mut values = [1.0, f32::NAN, 2.0];
            act.apply(&mut values);
            assert!(
                !values[0].is_nan() && values[1].is_nan() && !values[2].is_nan(),
                "{act:?}"
            );
        }
    }

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
