//! One optimiser step, in place. Hyper-parameters are float64, as in JavaScript and PyTorch; whatever is the
//! same for all elements is computed in float64 and rounded once.

use vit_msn_tensor::{AdamW, Lars, Result, Sgd, check_len};

use crate::elementwise::{sum_of_squares, update};
use crate::runtime::simd::F32x4;

/// One step of AdamW (Loshchilov and Hutter, 2019) as in `torch.optim.AdamW`, with the moments `m` and `v` zero
/// before the first step: w ← w·(1 − lr·λ); m ← m + (1 − β₁)(g − m); v ← β₂·v + (1 − β₂)·g²; w ← w − lr / (1 −
/// β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε).
///
/// # Errors
/// INVALID_ARGUMENT for lengths that differ or a hyper-parameter out of range.
pub fn adamw_step(
    parameter: &mut [f32],
    gradient: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    options: AdamW,
) -> Result<()> {
    check_same("gradient", gradient, parameter)?;
    check_same("first moment", m, parameter)?;
    check_same("second moment", v, parameter)?;
    options.check()?;
    let AdamW { beta1, beta2, .. } = options;
    let power = |beta: f64| 1.0 - beta.powf(f64::from(options.step));
    let splat = |value: f64| F32x4::splat(value as f32);
    let scale = splat(options.gradient_scale);
    let shrinkage = splat(1.0 - options.learning_rate * options.weight_decay);
    let (new_share, decay, square_share) = (splat(1.0 - beta1), splat(beta2), splat(1.0 - beta2));
    let root_correction = splat(power(beta2).sqrt().recip());
    let epsilon = splat(options.epsilon);
    let step_size = splat(options.learning_rate / power(beta1));
    update(
        [parameter, m, v],
        [gradient],
        8,
        &|[w, m, v], [gradient]| {
            let g = gradient.mul(scale);
            let m = g.sub(m).mul_add(new_share, m);
            let v = v.mul(decay).add(g.mul(g).mul(square_share));
            let root = v.sqrt().mul_add(root_correction, epsilon);
            [w.mul(shrinkage).sub(step_size.mul(m).div(root)), m, v]
        },
    );
    Ok(())
}

/// One step of stochastic gradient descent as in `torch.optim.SGD` with dampening 0: g ← g + λ·w; if the
/// momentum μ isn't 0, b ← μ·b + g (b ← g in the first step) and g ← b or, with Nesterov momentum, g + μ·b; w ←
/// w − lr·g. `momentum` may be None if μ is 0.
///
/// # Errors
/// INVALID_ARGUMENT for lengths that differ or a hyper-parameter out of range.
pub fn sgd_step(
    parameter: &mut [f32],
    gradient: &[f32],
    momentum: Option<&mut [f32]>,
    options: Sgd,
) -> Result<()> {
    check_same("gradient", gradient, parameter)?;
    options.check(momentum.is_some())?;
    let splat = |value: f64| F32x4::splat(value as f32);
    let (scale, decay) = (splat(options.gradient_scale), splat(options.weight_decay));
    let rate = splat(-options.learning_rate);
    let Some(buffer) = momentum.filter(|_| options.momentum > 0.0) else {
        update([parameter], [gradient], 2, &|[w], [gradient]| {
            let g = w.mul_add(decay, gradient.mul(scale));
            [g.mul_add(rate, w)]
        });
        return Ok(());
    };
    check_same("momentum buffer", buffer, parameter)?;
    let factor = splat(options.momentum);
    let retained = if options.first { splat(0.0) } else { factor };
    let (own, ahead) = if options.nesterov {
        (splat(1.0), factor)
    } else {
        (splat(0.0), splat(1.0))
    };
    update(
        [parameter, buffer],
        [gradient],
        4,
        &|[w, buffer], [gradient]| {
            let g = w.mul_add(decay, gradient.mul(scale));
            let buffer = buffer.mul_add(retained, g);
            let direction = buffer.mul_add(ahead, g.mul(own));
            [direction.mul_add(rate, w), buffer]
        },
    );
    Ok(())
}

/// One step of LARS (You, Gitman and Ginsburg, 2017, equations 5 and 6) on SGD with momentum, with the ε and
/// the exceptions of NVIDIA apex's LARC: q = η·‖w‖ / (‖g‖ + λ·‖w‖ + ε); b ← μ·b + q·(g + λ·w); w ← w − lr·b. If
/// either norm is 0, b ← μ·b + g. `momentum` is zero before the first step.
///
/// # Errors
/// INVALID_ARGUMENT for lengths that differ or a hyper-parameter out of range, OUT_OF_MEMORY.
pub fn lars_step(
    parameter: &mut [f32],
    gradient: &[f32],
    momentum: &mut [f32],
    options: Lars,
) -> Result<()> {
    check_same("gradient", gradient, parameter)?;
    check_same("momentum buffer", momentum, parameter)?;
    options.check()?;
    let norm = sum_of_squares(parameter)?.sqrt();
    let gradient_norm = sum_of_squares(gradient)?.sqrt() * options.gradient_scale.abs();
    let (trust, weight_decay) = if norm > 0.0 && gradient_norm > 0.0 {
        let scale = gradient_norm + options.weight_decay * norm + options.epsilon;
        (
            options.trust_coefficient * norm / scale,
            options.weight_decay,
        )
    } else {
        (1.0, 0.0)
    };
    let splat = |value: f64| F32x4::splat(value as f32);
    let (scale, decay) = (
        splat(trust * options.gradient_scale),
        splat(trust * weight_decay),
    );
    let (retained, rate) = (splat(options.momentum), splat(-options.learning_rate));
    update(
        [parameter, momentum],
        [gradient],
        4,
        &|[w, buffer], [gradient]| {
            let g = w.mul_add(decay, gradient.mul(scale));
            let buffer = buffer.mul_add(retained, g);
            [buffer.mul_add(rate, w), buffer]
        },
    );
    Ok(())
}

fn check_same(what: &str, values: &[f32], parameter: &[f32]) -> Result<()> {
    check_len(&format!("The {what}"), values.len(), &[parameter.len()])
}

// `test/suite/optimizers.test.ts` compares all of them with PyTorch's, step by step.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, same_with_workers, values};

    const ADAMW: AdamW = AdamW {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weight_decay: 0.5,
        step: 1,
        gradient_scale: 2.0,
    };
    const SGD: Sgd = Sgd {
        learning_rate: 0.1,
        momentum: 0.9,
        weight_decay: 0.0,
        nesterov: false,
        first: true,
        gradient_scale: 1.0,
    };
    const LARS: Lars = Lars {
        learning_rate: 0.5,
        momentum: 0.0,
        weight_decay: 0.0,
        trust_coefficient: 0.01,
        epsilon: 0.0,
        gradient_scale: 3.0,
    };

    #[test]
    fn the_first_step_of_adamw_is_of_the_learning_rate() {
        let mut w = [2.0, -1.0, 0.5];
        let (mut m, mut v) = ([0.0; 3], [0.0; 3]);
        adamw_step(&mut w, &[3.0, -1e-3, 0.0], &mut m, &mut v, ADAMW).unwrap();
        assert_close(&w, &[2.0 * 0.95 - 0.1, -0.95 + 0.1, 0.5 * 0.95], 1e-5);
        assert_close(&m, &[0.6, -2e-4, 0.0], 1e-6);
        assert_close(&v, &[0.36, 4e-8, 0.0], 1e-6);
    }

    #[test]
    fn momentum_is_what_the_first_gradient_leaves() {
        let (mut w, mut buffer) = ([1.0, 1.0], [f32::MAX; 2]);
        // The values of an unwritten buffer don't matter, as long as they are finite.
        sgd_step(&mut w, &[1.0, -1.0], Some(&mut buffer), SGD).unwrap();
        assert_eq!(buffer, [1.0, -1.0]);
        let next = Sgd {
            first: false,
            ..SGD
        };
        sgd_step(&mut w, &[0.0, 0.0], Some(&mut buffer), next).unwrap();
        assert_close(&w, &[0.81, 1.19], 1e-6);
    }

    #[test]
    fn the_step_of_lars_follows_the_norms() {
        let (mut w, mut buffer) = ([3.0, 4.0], [0.0; 2]);
        // ‖w‖ = 5, so the step has length 0.5 · 0.01 · 5, whatever the gradient's norm.
        lars_step(&mut w, &[0.0, 1e-3], &mut buffer, LARS).unwrap();
        assert_close(&w, &[3.0, 4.0 - 0.025], 1e-6);
        let (mut w, mut buffer) = ([0.0, 0.0], [0.0; 2]);
        lars_step(&mut w, &[0.0, 2.0], &mut buffer, LARS).unwrap();
        assert_eq!(w, [0.0, -3.0]);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (start, gradient) = (values(200_003, 1), values(200_003, 2));
        same_with_workers(|| {
            let [mut a, mut b, mut c] = [0, 1, 2].map(|_| start.clone());
            let mut states = [0, 1, 2, 3].map(|_| vec![0.0; start.len()]);
            let [m, v, x, y] = &mut states;
            adamw_step(&mut a, &gradient, m, v, ADAMW).unwrap();
            sgd_step(&mut b, &gradient, Some(x), SGD).unwrap();
            lars_step(&mut c, &gradient, y, LARS).unwrap();
            [a, b, c].concat()
        });
    }

    #[test]
    fn what_is_out_of_range_is_an_error_and_changes_nothing() {
        let codes = |result: Result<()>| assert_eq!(result.unwrap_err().code(), "INVALID_ARGUMENT");
        let (mut w, mut m, mut v) = ([1.0], [0.0], [0.0]);
        for options in [
            AdamW { step: 0, ..ADAMW },
            AdamW {
                beta1: 1.0,
                ..ADAMW
            },
            AdamW {
                beta2: -0.1,
                ..ADAMW
            },
            AdamW {
                epsilon: f64::NAN,
                ..ADAMW
            },
            AdamW {
                learning_rate: -1.0,
                ..ADAMW
            },
            AdamW {
                weight_decay: f64::INFINITY,
                ..ADAMW
            },
            AdamW {
                gradient_scale: f64::NAN,
                ..ADAMW
            },
        ] {
            codes(adamw_step(&mut w, &[1.0], &mut m, &mut v, options));
        }
        codes(adamw_step(&mut w, &[1.0, 2.0], &mut m, &mut v, ADAMW));
        codes(adamw_step(&mut w, &[1.0], &mut [0.0; 2], &mut v, ADAMW));
        codes(sgd_step(&mut w, &[1.0], None, SGD));
        let still = Sgd {
            momentum: 0.0,
            nesterov: true,
            ..SGD
        };
        codes(sgd_step(&mut w, &[1.0], None, still));
        codes(lars_step(&mut w, &[1.0], &mut [], LARS));
        let backwards = Lars {
            trust_coefficient: -1.0,
            ..LARS
        };
        codes(lars_step(&mut w, &[1.0], &mut m, backwards));
        assert_eq!(w, [1.0]);
    }
}
