//! Linear layers with float32, half-width and int8 weights, and their gradients.
//!
//! [`linear()`] is the only entry point. It selects the implementation: [`float`], [`strassen`] or [`int8`].
//! The first two are built on the [`microkernel`].

pub(crate) mod backward;
mod epilogue;
mod float;
pub(crate) mod int8;
pub(crate) mod microkernel;
pub(crate) mod packed;
mod strassen;
mod strassen_terms;
pub(crate) mod transpose;

use vit_msn_tensor::{Activation, Error, Result, check_len};

pub use backward::{linear_backward_input, linear_backward_weights};
pub use int8::{ByteDot, byte_dot};
pub use packed::PackedLinear;

use epilogue::Epilogue;
use float::Product;

/// `out = act(x · wᵀ + bias) + residual`, with x `[rows, in_features]`, out and residual `[rows,
/// out_features]`.
///
/// # Errors
/// INVALID_ARGUMENT when a length doesn't match or the weight is incomplete, OUT_OF_MEMORY.
pub fn linear(
    x: &[f32],
    w: &PackedLinear,
    act: Activation,
    residual: Option<&[f32]>,
    out: &mut [f32],
) -> Result<()> {
    w.check_complete()?;
    let (inputs, outputs) = (w.in_features(), w.out_features());
    let rows = x.len() / inputs;
    if !x.len().is_multiple_of(inputs) {
        return Err(Error::InvalidArgument(format!(
            "A linear layer with {inputs} inputs got {} values, which isn't a whole number of rows.",
            x.len()
        )));
    }
    check_len("The output of a linear layer", out.len(), &[rows, outputs])?;
    if let Some(residual) = residual {
        check_len(
            "The residual of a linear layer",
            residual.len(),
            &[rows, outputs],
        )?;
    }
    let epilogue = Epilogue {
        outputs,
        act,
        is_rough: w.quantised().is_some(),
        residual,
    };
    let product = Product { x, w, epilogue };
    if let Some(quantised) = w.quantised() {
        int8::multiply(&product, quantised, out)
    } else if strassen::is_profitable(rows, inputs, outputs) {
        strassen::multiply(&product, out)
    } else {
        float::multiply(&product, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::activate_in_place;
    use crate::linear::microkernel::{KC, MC};
    use crate::test_support::{assert_close, naive_product, packed, same_with_workers, values};
    use proptest::prelude::*;
    use vit_msn_tensor::Dtype;

    fn check(m: usize, k: usize, n: usize, dtype: Dtype) {
        let x = values(m * k, 3);
        let (w, weight, bias) = packed(n, k, dtype, 11);
        let mut out = vec![f32::NAN; m * n];
        linear(&x, &w, Activation::Identity, None, &mut out).unwrap();
        // float32 sums of k products of values below 1.
        assert_close(
            &out,
            &naive_product(&x, &weight, &bias, k),
            1e-7 * (k as f64).max(4.0),
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn linear_matches_the_naive_product(m in 0usize..20, k in 1usize..70, n in 1usize..70, half in 0..3) {
            check(m, k, n, [Dtype::F32, Dtype::F16, Dtype::BF16][half as usize]);
        }
    }

    #[test]
    fn linear_crosses_every_block() {
        for (m, k, n) in [
            (1, 1, 1),
            (MC + 3, 5, 17),
            (3, 2 * KC + 1, 33),
            (2, KC + 1, 16),
            (MC + 1, KC + 7, 15),
        ] {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                check(m, k, n, dtype);
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        for (m, k, n) in [(197, 2 * KC + 8, 70), (MC + 21, 96, 384), (2, 768, 1000)] {
            let x = values(m * k, 3);
            let residual = values(m * n, 4);
            for dtype in [Dtype::F32, Dtype::F16] {
                let (w, weight, bias) = packed(n, k, dtype, 11);
                let run = |act, residual| {
                    let mut out = vec![f32::NAN; m * n];
                    linear(&x, &w, act, residual, &mut out).unwrap();
                    out
                };
                let out = same_with_workers(|| run(Activation::Identity, None));
                assert_close(&out, &naive_product(&x, &weight, &bias, k), 1e-7 * k as f64);
                same_with_workers(|| run(Activation::Gelu, Some(&residual)));
            }
        }
    }

    #[test]
    fn activation_comes_before_the_residual() {
        // Two blocks of inputs: the epilogue must run once, after the second.
        let (m, k, n) = (5, KC + 9, 21);
        let x = values(m * k, 1);
        let residual = values(m * n, 2);
        let (w, weight, bias) = packed(n, k, Dtype::F32, 5);
        for act in [Activation::Identity, Activation::Gelu, Activation::Relu] {
            let mut out = vec![0.0; m * n];
            linear(&x, &w, act, Some(&residual), &mut out).unwrap();
            let mut activated: Vec<f32> = naive_product(&x, &weight, &bias, k)
                .into_iter()
                .map(|v| v as f32)
                .collect();
            activate_in_place(act, &mut activated);
            let expected: Vec<f64> = activated
                .iter()
                .zip(&residual)
                .map(|(&a, &r)| f64::from(a) + f64::from(r))
                .collect();
            assert_close(&out, &expected, 3e-5);
        }
    }

    #[test]
    fn without_a_bias_the_sums_start_at_zero() {
        let mut w = PackedLinear::new(1, 2, Dtype::F32, false).unwrap();
        w.set_rows(0, Dtype::F32, &Dtype::F32.encode(&[2.0, 3.0]).unwrap())
            .unwrap();
        let mut out = [f32::NAN];
        linear(&[10.0, 1.0], &w, Activation::Identity, None, &mut out).unwrap();
        assert_eq!(out, [23.0]);
    }

    #[test]
    fn wrong_lengths_and_incomplete_weights_are_errors() {
        let (w, ..) = packed(3, 4, Dtype::F32, 0);
        let act = Activation::Identity;
        let lengths = [(7, None, 6), (8, None, 5), (8, Some(5), 6)];
        for (x, residual, out) in lengths {
            let residual = residual.map(|len| vec![0.0; len]);
            let error = linear(
                &vec![0.0; x],
                &w,
                act,
                residual.as_deref(),
                &mut vec![0.0; out],
            )
            .unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
        let empty = PackedLinear::new(3, 4, Dtype::F32, false).unwrap();
        assert!(
            linear(&[0.0; 4], &empty, act, None, &mut [0.0; 3])
                .unwrap_err()
                .to_string()
                .contains("never set")
        );
    }

    #[test]
    fn nan_reaches_only_its_own_row() {
        let (w, ..) = packed(17, 4, Dtype::F32, 0);
        let mut x = values(12, 1);
        x[5] = f32::NAN;
        let mut out = vec![0.0; 3 * 17];
        linear(&x, &w, Activation::Gelu, None, &mut out).unwrap();
        for (index, value) in out.iter().enumerate() {
            assert_eq!(value.is_nan(), index / 17 == 1);
        }
    }
}
