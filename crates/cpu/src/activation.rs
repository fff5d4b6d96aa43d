//! The activations of the reference's `ACT2FN` that ViT configurations use.

use crate::runtime::simd::{Exp, F32x4, constant, map_in_place, polynomial8};
use vit_msn_tensor::Activation;

/// Replaces every value of `rows` by its activation. NaN stays NaN; infinities give the limits.
pub(crate) fn activate_rows<'a>(act: Activation, rows: impl Iterator<Item = &'a mut [f32]>) {
    match act {
        Activation::Identity => {}
        Activation::Gelu => {
            let gelu = Gelu::new();
            map_rows(rows, |x| gelu.of(x));
        }
        Activation::Relu => map_rows(rows, |x| x.max(F32x4::splat(0.0))),
        Activation::Silu => {
            let gate = Gate::new();
            map_rows(rows, |x| gate.of(x, x));
        }
        Activation::GeluTanh => {
            let (gate, gelu) = (Gate::new(), GeluTanh::new());
            map_rows(rows, |x| gate.of(x, gelu.argument(x)));
        }
        Activation::QuickGelu => {
            let (gate, slope) = (Gate::new(), constant(1.702));
            map_rows(rows, |x| gate.of(x, x.mul(slope)));
        }
    }
}

/// [`activate_rows`] of one row.
#[cfg(test)]
pub(crate) fn activate(act: Activation, values: &mut [f32]) {
    activate_rows(act, std::iter::once(values));
}

#[inline(always)]
fn map_rows<'a>(rows: impl Iterator<Item = &'a mut [f32]>, op: impl Fn(F32x4) -> F32x4) {
    for row in rows {
        map_in_place(row, &op);
    }
}

/// Minimax polynomial of r = ½·erfcx(a/√2) in t on a ∈ [0, 6], error 1.1e-8.
pub(crate) const GELU_TAIL: [f32; 8] = [
    -3.419_456_2e-4,
    1.348_339_6e-1,
    9.586_185e-2,
    2.396_032_3e-1,
    -1.859_047e-1,
    4.204_656_5e-1,
    -2.550_663e-1,
    5.054_825e-2,
];

/// GELU with its constants.
struct Gelu {
    exp: Exp,
    largest: F32x4,
    slope: F32x4,
    minus_half: F32x4,
    r: [F32x4; 8],
}

impl Gelu {
    #[inline(always)]
    fn new() -> Self {
        Self {
            exp: Exp::new(),
            largest: constant(6.0),
            slope: constant(0.325),
            minus_half: constant(-0.5),
            r: GELU_TAIL.map(constant),
        }
    }

    /// x·Φ(x) = max(x, 0) − |x|·Φ(−|x|), where Φ(−a) = e^(−a²/2)·r(t), t = 1 / (1 + 0.325a): no large numbers cancel.
    /// Beyond 6, where a·r is nearly constant, r's argument is held.
    #[inline(always)]
    fn of(&self, x: F32x4) -> F32x4 {
        let one = self.exp.one;
        let size = x.abs().min(self.largest);
        let t = one.div(size.mul_add(self.slope, one));
        let decay = self.exp.of_nonpositive(x.mul(x).mul(self.minus_half));
        x.max(F32x4::splat(0.0))
            .sub(size.mul(decay).mul(polynomial8(t, self.r)))
    }
}

/// The tanh form is x·σ(2u), since ½(1 + tanh u) = σ(2u).
struct GeluTanh {
    linear: F32x4,
    cubic: F32x4,
}

impl GeluTanh {
    #[inline(always)]
    fn new() -> Self {
        // 2·√(2/π), and the cubic term's share of it.
        Self {
            linear: constant(1.595_769_2),
            cubic: constant(1.595_769_2 * 0.044_715),
        }
    }

    /// 2u
    #[inline(always)]
    fn argument(&self, x: F32x4) -> F32x4 {
        x.mul(x).mul_add(self.cubic, self.linear).mul(x)
    }
}

/// x·σ(u) with its constants.
struct Gate {
    exp: Exp,
    lowest: F32x4,
}

impl Gate {
    #[inline(always)]
    fn new() -> Self {
        // Below −100 the result is as good as 0, while −∞ times it would be NaN.
        Self {
            exp: Exp::new(),
            lowest: constant(-100.0),
        }
    }

    /// x·σ(u), for u of x's sign.
    #[inline(always)]
    fn of(&self, x: F32x4, u: F32x4) -> F32x4 {
        let (zero, one) = (F32x4::splat(0.0), self.exp.one);
        // e^−|u| never overflows; σ(u) is 1 or e^−|u| over 1 + e^−|u|.
        let decay = self.exp.of_nonpositive(zero.sub(u.abs()));
        let numerator = u.lt(zero).select(decay, one);
        x.max(self.lowest).mul(numerator.div(decay.add(one)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vit_msn_tensor::testing::activation;

    #[test]
    fn every_activation_is_within_2e_7() {
        for act in Activation::ALL {
            let mut worst = 0.0f64;
            let inputs: Vec<f32> = (-200_000..=200_000)
                .map(|step| step as f32 * 1e-4)
                .collect();
            let mut outputs = inputs.clone();
            activate(act, &mut outputs);
            for (&x, &y) in inputs.iter().zip(&outputs) {
                // Beyond 1 the last bit of the result itself is worth more than 2e-7.
                let error = (f64::from(y) - activation(act, f64::from(x))).abs()
                    / f64::from(x.abs().max(1.0));
                worst = worst.max(error);
            }
            assert!(worst <= 2e-7, "{act:?}: {worst:e}");
        }
    }

    #[test]
    fn infinities_and_huge_values_give_the_limits() {
        for act in Activation::ALL.into_iter().skip(1) {
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
            activate(act, &mut values);
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
        for act in Activation::ALL {
            let mut values = [1.0, f32::NAN, 2.0];
            activate(act, &mut values);
            assert!(
                !values[0].is_nan() && values[1].is_nan() && !values[2].is_nan(),
                "{act:?}"
            );
        }
    }
}
