//! The linear layer with int8 weights: quantises each row of its input to 8 bits, multiplies integers, sums the
//! products exactly in int32, and scales the sums back to float32.
//!
//! Two kernels compute the same sums: [`bytes`] with the processor's dot product of bytes, where [`byte_dot()`]
//! finds an exact one, else [`words`] with SIMD128's dot product of int16.

mod byte_dot;
mod bytes;
mod bytes_microkernel;
mod panels;
mod quantise;
mod words;
mod words_microkernel;

use std::ops::Range;

use vit_msn_tensor::Result;

pub use byte_dot::{ByteDot, byte_dot};
pub(crate) use panels::QuantisedPanels;
use quantise::Precision;

use crate::linear::float::Product;
use crate::runtime::simd::F32x4;

/// Scales, biases and sums of weights are padded to whole multiples of this number of outputs, which each
/// kernel's panels divide.
pub(crate) const PADDED_OUTPUTS: usize = 16;

/// Some outputs of a layer, starting at a multiple of PADDED_OUTPUTS, and how the inputs are quantised for them.
struct Part {
    columns: Range<usize>,
    precision: Precision,
}

/// [`crate::linear()`] for int8 weights, after all lengths have been checked; `w` are the panels of the
/// product's weights.
pub(crate) fn multiply(product: &Product, w: &QuantisedPanels, out: &mut [f32]) -> Result<()> {
    let (inputs, outputs) = (product.w.in_features(), product.w.out_features());
    let values = first_value(inputs, outputs);
    let parts = [
        (0..values, Precision::Byte),
        (values..outputs, Precision::TwoBytes),
    ];
    for (columns, precision) in parts {
        if columns.is_empty() {
            continue;
        }
        let part = Part { columns, precision };
        // The constant lets the compiler remove the kernel from engines that can't run it.
        match w.dot() {
            Some(dot) if byte_dot::IS_AVAILABLE => bytes::multiply(product, w, dot, &part, out)?,
            _ => words::multiply(product, w, &part, out)?,
        }
    }
    Ok(())
}

/// The first of the outputs that need more than a byte's precision: attention's values, in a layer of queries, keys
/// and values.
///
/// Attention averages them over the tokens. What the tokens of an image have in common may be a hundredth of a
/// value, as small as a byte's step, and for CLS it can be all there is. Such a layer is recognised by having three
/// outputs for each input; the error of queries and keys, and of other layers, is within that of the weights.
fn first_value(inputs: usize, outputs: usize) -> usize {
    if outputs == 3 * inputs {
        2 * inputs / PADDED_OUTPUTS * PADDED_OUTPUTS
    } else {
        outputs
    }
}

/// `sum · (scale · row_scale) + bias`. Rounded in three steps on every level, so that all give the same bits.
#[inline(always)]
fn scaled(sums: F32x4, row_scale: F32x4, scale: F32x4, bias: F32x4) -> F32x4 {
    sums.mul(scale.mul(row_scale)).add(bias)
}

/// # Safety
/// `sums` must be readable for as many integers as a vector has lanes.
#[inline(always)]
unsafe fn to_float(sums: *const i32) -> F32x4 {
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    // SAFETY: guaranteed by the caller; v128.load accepts any alignment.
    unsafe {
        use core::arch::wasm32::{f32x4_convert_i32x4, v128_load};
        F32x4(f32x4_convert_i32x4(v128_load(sums.cast())))
    }
    #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
    // SAFETY: guaranteed by the caller; the array is four floats.
    unsafe {
        let floats = sums
            .cast::<[i32; crate::runtime::simd::LANES]>()
            .read_unaligned()
            .map(|sum| sum as f32);
        F32x4::load(floats.as_ptr())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vit_msn_tensor::{Activation, Dtype};

    use super::*;
    use crate::activation::{activate_in_place, activate_rows_with_rough_gelu};
    use crate::runtime::parallel::Rows;
    use crate::test_support::{same_with_workers, values};
    use crate::{PackedLinear, linear};

    /// One dot product of each kernel and form.
    const DOTS: [ByteDot; 3] = [ByteDot::Unsigned, ByteDot::Signed, ByteDot::Saturating];

    fn floats(bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / 4];
        Dtype::F32.decode(bytes, &mut values).unwrap();
        values
    }

    fn encoded(values: &[f32]) -> Vec<u8> {
        Dtype::F32.encode(values).unwrap()
    }

    fn packed(n: usize, k: usize, dot: ByteDot) -> PackedLinear {
        let mut w = PackedLinear::quantised_for(dot, n, k);
        w.set_rows(0, Dtype::F32, &encoded(&values(n * k, 5)))
            .unwrap();
        w.set_bias(0, Dtype::F32, &encoded(&values(n, 6))).unwrap();
        w
    }

    /// Layers of the same weights for every dot product, with the most negative weight too, as other programs
    /// may have saved it.
    fn packed_extremes(n: usize, k: usize) -> [PackedLinear; 3] {
        let bytes: Vec<u8> = (0..n * k).map(|i| [127, 128, 129][i % 5 % 3]).collect();
        DOTS.map(|dot| {
            let mut w = PackedLinear::quantised_for(dot, n, k);
            let scales = encoded(&vec![0.5; n]);
            w.set_quantised_rows(0, &bytes, &scales).unwrap();
            w.set_bias(0, Dtype::F32, &encoded(&vec![0.0; n])).unwrap();
            w
        })
    }

    fn run(x: &[f32], w: &PackedLinear) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.len() / w.in_features() * w.out_features()];
        linear(x, w, Activation::Identity, None, &mut out).unwrap();
        out
    }

    /// The definition, with the kernels' rounding: x ≈ (q − zero) · scale, with 254 steps from a row's smallest
    /// value to its largest.
    fn naive(x: &[f32], w: &PackedLinear) -> Vec<f32> {
        let (n, k) = (w.out_features(), w.in_features());
        let weight = w.get_rows(0, n).unwrap();
        let scales = floats(&w.get_scales(0, n).unwrap());
        let bias = floats(&w.get_bias().unwrap().unwrap());
        let mut out = Vec::new();
        for x in x.chunks_exact(k) {
            let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(low, high), &value| {
                (low.min(value), high.max(value))
            });
            for (column, weights) in weight.chunks_exact(k).enumerate() {
                // Attention's values have 16 times as many.
                let unit = if column < first_value(k, n) { 1 } else { 16 };
                let steps = 254.0 * unit as f32;
                let row_scale = (high / steps - low / steps).max(1e-32);
                let quantise = |value: f32| (value * (1.0 / row_scale)).round_ties_even() as i64;
                let most = 255 * unit - 1 + quantise(low);
                let products = x
                    .iter()
                    .zip(weights)
                    .map(|(&a, &b)| quantise(a).min(most) * i64::from(b as i8));
                let sum = i32::try_from(products.sum::<i64>()).unwrap() as f32;
                out.push(sum * (scales[column] * row_scale) + bias[column]);
            }
        }
        out
    }

    fn check(m: usize, k: usize, n: usize, seed: u64) {
        // Skewed, as the output of GELU is.
        let x: Vec<f32> = values(m * k, seed).iter().map(|v| v + 0.3).collect();
        for dot in DOTS {
            let w = packed(n, k, dot);
            assert_eq!(run(&x, &w), naive(&x, &w), "{m}×{k}×{n}, {dot:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn every_bit_is_the_definitions(
            m in 0usize..20, k in 1usize..70, n in 1usize..70, seed in any::<u64>()
        ) {
            check(m, k, n, seed);
        }
    }

    #[test]
    fn every_bit_is_the_definitions_across_blocks() {
        for (m, k, n) in [
            (1, 1, 1),
            (90, 8000, 17),
            (333, 1000, 5),
            (2, 30_000, 3),
            (words::MIN_ROWS - 1, 32, 32),
            (words::MIN_ROWS, 2 * words::MAX_TERM_DEPTH + 16, 32),
            (words::MIN_ROWS + 5, 64, 27),
            (bytes::MAX_ROWS + 9, 96, 80),
            (197, 384, 1152),
            (50, 24, 72),
            (7, 2000, 6000),
        ] {
            check(m, k, n, 3);
        }
    }

    #[test]
    fn values_of_attention_are_more_precise() {
        assert_eq!(first_value(384, 1152), 768);
        assert_eq!(first_value(24, 72), 48);
        assert_eq!(first_value(12, 36), 16);
        assert_eq!(first_value(384, 1536), 1536);
        let (m, k) = (50, 64);
        let x = values(m * k, 1);
        let (full, ..) = crate::test_support::packed(3 * k, k, Dtype::F32, 5);
        let (exact, found) = (run(&x, &full), run(&x, &packed(3 * k, k, ByteDot::Signed)));
        // The weights' error too, which only an average over rows reduces: that of the inputs.
        let error = |columns: Range<usize>| {
            let rows = exact.chunks_exact(3 * k).zip(found.chunks_exact(3 * k));
            let errors = rows.flat_map(|(a, b)| {
                let columns = a[columns.clone()].iter().zip(&b[columns.clone()]);
                columns.map(|(a, b)| (a - b).powi(2)).collect::<Vec<_>>()
            });
            errors.sum::<f32>() / columns.len() as f32
        };
        assert!(error(2 * k..3 * k) < 0.8 * error(0..2 * k));
    }

    #[test]
    fn the_largest_sums_are_exact() {
        // Rows of the two ends of the range only, for the most inputs that have all steps, and beyond.
        for k in [16, 65_793, 65_794, quantise::MAX_DEPTH] {
            let x: Vec<f32> = [[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [0.0, 1.0]]
                .iter()
                .flat_map(|pair| pair.iter().copied().cycle().take(k))
                .collect();
            let [first, rest @ ..] = packed_extremes(2, k).map(|w| run(&x, &w));
            let bytes = packed_extremes(2, k)[0].get_rows(0, 2).unwrap();
            for (x, found) in x.chunks_exact(k).zip(first.chunks_exact(2)) {
                for (weights, &found) in bytes.chunks_exact(k).zip(found) {
                    let products = x.iter().zip(weights);
                    let exact: f64 = products
                        .map(|(&a, &b)| f64::from(a) * f64::from(b as i8))
                        .sum();
                    assert!((f64::from(found) - exact / 2.0).abs() <= 1e-2 * k as f64);
                }
            }
            assert!(rest.iter().all(|out| *out == first), "{k}");
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (m, k, n) = (197, 768, 270);
        let (x, w) = (values(m * k, 1), DOTS.map(|dot| packed(n, k, dot)));
        for w in &w {
            assert_eq!(same_with_workers(|| run(&x, w)), run(&x, w));
        }
    }

    #[test]
    fn activation_comes_before_the_residual() {
        let (m, k, n) = (7, 40, 21);
        let (x, residual) = (values(m * k, 1), values(m * n, 2));
        for w in DOTS.map(|dot| packed(n, k, dot)) {
            for act in [Activation::Identity, Activation::Gelu, Activation::Relu] {
                let mut expected = naive(&x, &w);
                if act == Activation::Gelu {
                    let columns = expected.len();
                    let rows = &mut Rows::new(&mut expected, columns);
                    activate_rows_with_rough_gelu(rows, 1, columns);
                } else {
                    activate_in_place(act, &mut expected);
                }
                for (value, residual) in expected.iter_mut().zip(&residual) {
                    *value += residual;
                }
                let mut out = vec![0.0; m * n];
                linear(&x, &w, act, Some(&residual), &mut out).unwrap();
                assert_eq!(out, expected);
            }
        }
    }

    #[test]
    fn results_are_near_those_of_float32() {
        let (m, k, n) = (9, 384, 33);
        let x = values(m * k, 1);
        let (full, ..) = crate::test_support::packed(n, k, Dtype::F32, 5);
        let (exact, quantised) = (run(&x, &full), run(&x, &packed(n, k, ByteDot::Unsigned)));
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
        let error = square(&mut exact.iter().zip(&quantised).map(|(a, b)| a - b));
        // Weights and values are rounded to 1/127 of the row's largest: half a per cent of the signal each.
        assert!(error.sqrt() <= 0.012 * square(&mut exact.iter().copied()).sqrt());
    }

    #[test]
    fn what_is_not_finite_reaches_only_its_own_row() {
        for w in DOTS.map(|dot| packed(17, 4, dot)) {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = values(12, 1);
                x[5] = bad;
                let mut out = vec![0.0; 3 * 17];
                linear(&x, &w, Activation::Gelu, None, &mut out).unwrap();
                for (index, value) in out.iter().enumerate() {
                    assert_eq!(value.is_nan(), index / 17 == 1);
                }
            }
        }
    }
}
