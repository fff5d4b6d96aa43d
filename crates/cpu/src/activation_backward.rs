//! Activations of their own, and their gradients.

use vit_msn_tensor::{Activation, Result, check_len};

use crate::activation::{GELU_TAIL, activate_rows};
use crate::elementwise::{BLOCK, update};
use crate::runtime::parallel::{Rows, for_each_block_of_rows};
use crate::runtime::simd::{Exp, F32x4, constant, polynomial8};

/// What an element costs, in multiply-adds.
const WORK: usize = 16;

/// out = act(x). Errors: INVALID_ARGUMENT when the lengths differ.
pub fn activate(x: &[f32], act: Activation, out: &mut [f32]) -> Result<()> {
    check_len("The output of an activation", out.len(), &[x.len()])?;
    let work = x.len().saturating_mul(WORK);
    for_each_block_of_rows(out, 1, work, &|first, out| {
        let x = &x[first..][..out.len()];
        for (out, x) in out.chunks_mut(BLOCK).zip(x.chunks(BLOCK)) {
            out.copy_from_slice(x);
            let columns = out.len();
            activate_rows(act, Rows::new(out, columns).each(1, columns));
        }
    });
    Ok(())
}

/// out = grad · act′(x), where x is the activation's input. At 0 the derivative of relu is 0, as PyTorch's.
/// Errors: INVALID_ARGUMENT when the lengths differ.
pub fn activate_backward(grad: &[f32], x: &[f32], act: Activation, out: &mut [f32]) -> Result<()> {
    check_len("The gradient of an activation", grad.len(), &[x.len()])?;
    check_len("The gradient by its input", out.len(), &[x.len()])?;
    match act {
        Activation::Identity => out.copy_from_slice(grad),
        Activation::Gelu => {
            let gelu = GeluDerivative::new();
            scale_by(grad, x, out, |x| gelu.of(x));
        }
        Activation::Relu => {
            let (zero, one) = (F32x4::splat(0.0), F32x4::splat(1.0));
            scale_by(grad, x, out, |x| {
                // NaN stays NaN: x − x is 0 for every number but an infinity, which is capped.
                let nan_or_zero = x.min(one).max(zero.sub(one));
                zero.lt(x).select(one, nan_or_zero.sub(nan_or_zero))
            });
        }
        Activation::Silu => {
            let gate = GateDerivative::new();
            scale_by(grad, x, out, |x| gate.of(x, x, gate.exp.one));
        }
        Activation::GeluTanh => {
            let (gate, gelu) = (GateDerivative::new(), GeluTanhDerivative::new());
            scale_by(grad, x, out, |x| gelu.of(x, &gate));
        }
        Activation::QuickGelu => {
            let (gate, factor) = (GateDerivative::new(), constant(1.702));
            scale_by(grad, x, out, |x| gate.of(x, x.mul(factor), factor));
        }
    }
    Ok(())
}

fn scale_by(grad: &[f32], x: &[f32], out: &mut [f32], slope: impl Fn(F32x4) -> F32x4 + Sync) {
    update([out], [grad, x], WORK, &|_, [grad, x]| [grad.mul(slope(x))]);
}

/// The derivative of gelu, with its constants.
struct GeluDerivative {
    exp: Exp,
    bounds: [F32x4; 2],
    slope: F32x4,
    minus_half: F32x4,
    /// 1 / √(2π)
    density: F32x4,
    tail: [F32x4; 8],
}

impl GeluDerivative {
    #[inline(always)]
    fn new() -> Self {
        Self {
            exp: Exp::new(),
            bounds: [6.0, -6.0].map(constant),
            slope: constant(0.325),
            minus_half: constant(-0.5),
            density: constant(0.398_942_3),
            tail: GELU_TAIL.map(constant),
        }
    }

    /// Φ(x) + x·φ(x); Φ(−a) = e^(−a²/2)·r(1 / (1 + 0.325a)) as in the activation itself.
    #[inline(always)]
    fn of(&self, x: F32x4) -> F32x4 {
        let one = self.exp.one;
        // Beyond 6 either is its limit to within 1e-7.
        let x = x.min(self.bounds[0]).max(self.bounds[1]);
        let t = one.div(x.abs().mul_add(self.slope, one));
        let decay = self.exp.of_nonpositive(x.mul(x).mul(self.minus_half));
        let tail = decay.mul(polynomial8(t, self.tail));
        let cdf = x.lt(F32x4::splat(0.0)).select(tail, one.sub(tail));
        x.mul(decay).mul_add(self.density, cdf)
    }
}

/// The derivative of x·σ(2u) with 2u = x·(a + b·x²), as in the activation itself.
struct GeluTanhDerivative {
    bounds: [F32x4; 2],
    linear: F32x4,
    cubic: F32x4,
    three_cubic: F32x4,
}

impl GeluTanhDerivative {
    #[inline(always)]
    fn new() -> Self {
        let (linear, cubic) = (1.595_769_2, 1.595_769_2 * 0.044_715);
        Self {
            bounds: [10.0, -10.0].map(constant),
            linear: constant(linear),
            cubic: constant(cubic),
            three_cubic: constant(3.0 * cubic),
        }
    }

    #[inline(always)]
    fn of(&self, x: F32x4, gate: &GateDerivative) -> F32x4 {
        // Beyond 10 either is its limit, while x³ might overflow.
        let x = x.min(self.bounds[0]).max(self.bounds[1]);
        let square = x.mul(x);
        let inner = square.mul_add(self.cubic, self.linear).mul(x);
        let inner_derivative = square.mul_add(self.three_cubic, self.linear);
        gate.of(x, inner, inner_derivative)
    }
}

/// The derivative of x·σ(u), with its constants.
struct GateDerivative {
    exp: Exp,
    bounds: [F32x4; 2],
}

impl GateDerivative {
    #[inline(always)]
    fn new() -> Self {
        Self {
            exp: Exp::new(),
            bounds: [100.0, -100.0].map(constant),
        }
    }

    /// σ(u) + x·σ(u)·σ(−u)·u′, for u of x's sign.
    #[inline(always)]
    fn of(&self, x: F32x4, u: F32x4, u_derivative: F32x4) -> F32x4 {
        let (zero, one) = (F32x4::splat(0.0), self.exp.one);
        // e^−|u| never overflows. σ(|u|) and σ(−|u|):
        let decay = self.exp.of_nonpositive(zero.sub(u.abs()));
        let large = one.div(decay.add(one));
        let small = decay.mul(large);
        let sigmoid = u.lt(zero).select(small, large);
        // Beyond 100 the product is as good as 0, while ∞ times it would not be.
        let x = x.min(self.bounds[0]).max(self.bounds[1]);
        x.mul(u_derivative).mul(small.mul(large)).add(sigmoid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{same_with_workers, values};
    use vit_msn_tensor::testing::activation;

    fn slope(act: Activation, x: f64) -> f64 {
        let step = 1e-5;
        (activation(act, x + step) - activation(act, x - step)) / (2.0 * step)
    }

    #[test]
    fn every_derivative_is_the_activations() {
        for act in Activation::ALL {
            // Not on relu's corner.
            let x: Vec<f32> = (-20_000..20_000).map(|v| (v as f32 + 0.5) * 1e-3).collect();
            let mut out = vec![f32::NAN; x.len()];
            activate_backward(&vec![2.0; x.len()], &x, act, &mut out).unwrap();
            for (&x, &actual) in x.iter().zip(&out) {
                let expected = 2.0 * slope(act, f64::from(x));
                let error = (f64::from(actual) - expected).abs();
                assert!(
                    error <= 1e-6,
                    "{act:?} at {x}: {actual} instead of {expected}"
                );
            }
        }
    }

    #[test]
    fn limits_and_nan() {
        for act in Activation::ALL.into_iter().skip(1) {
            let x = [
                f32::NEG_INFINITY,
                f32::MIN,
                -1e20,
                -200.0,
                200.0,
                1e20,
                f32::MAX,
                f32::INFINITY,
                f32::NAN,
            ];
            let mut out = [0.0; 9];
            activate_backward(&[1.0; 9], &x, act, &mut out).unwrap();
            assert!(out[..4].iter().all(|v| v.abs() < 1e-6), "{act:?}: {out:?}");
            assert!(
                out[4..8].iter().all(|v| (v - 1.0).abs() < 1e-6),
                "{act:?}: {out:?}"
            );
            assert!(out[8].is_nan(), "{act:?}");
        }
    }

    #[test]
    fn relu_is_flat_at_zero() {
        let mut out = [f32::NAN; 3];
        activate_backward(&[5.0; 3], &[-0.0, 0.0, 1e-30], Activation::Relu, &mut out).unwrap();
        assert_eq!(out, [0.0, 0.0, 5.0]);
    }

    #[test]
    fn an_activation_of_its_own_is_the_fused_one() {
        for len in [0, 1, 5, 40_001] {
            let x = values(len, 3);
            for act in Activation::ALL {
                let mut expected = x.clone();
                crate::activation::activate(act, &mut expected);
                let mut out = vec![f32::NAN; len];
                activate(&x, act, &mut out).unwrap();
                assert_eq!(out, expected);
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (x, grad) = (values(70_001, 4), values(70_001, 5));
        for act in [Activation::Gelu, Activation::Silu] {
            same_with_workers(|| {
                let mut out = vec![0.0; x.len()];
                let mut slopes = vec![0.0; x.len()];
                activate(&x, act, &mut out).unwrap();
                activate_backward(&grad, &x, act, &mut slopes).unwrap();
                [out, slopes].concat()
            });
        }
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let act = Activation::Gelu;
        for (grad, x, out) in [(2, 3, 3), (3, 3, 4)] {
            let error =
                activate_backward(&vec![0.0; grad], &vec![0.0; x], act, &mut vec![0.0; out]);
            assert_eq!(error.unwrap_err().code(), "INVALID_ARGUMENT");
        }
        let error = activate(&[0.0; 2], act, &mut [0.0; 3]).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
    }
}
