//! The gradients of layer normalisation.

use vit_msn_tensor::{Error, Result, check_len, numel, try_vec};

use crate::elementwise::update_block;
use crate::layer_norm::Moments;
use crate::runtime::parallel::{DisjointSliceMut, for_each_task, threads_for};
use crate::runtime::simd::F32x4;

/// Rows whose gradients with respect to weight and bias are summed in float32 before they are added in float64.
/// Fixed, so that the sums don't depend on the number of threads.
const ROW_BLOCK: usize = 32;

/// The gradients of a layer norm.
pub struct LayerNormGradients<'a> {
    /// Rows of `columns`, like the input.
    pub x: &'a mut [f32],
    /// `[columns]`
    pub weight: &'a mut [f32],
    /// `[columns]`
    pub bias: &'a mut [f32],
}

/// The gradients of `(x − mean) / √(variance + eps) · weight + bias`, from the gradient of its output. With x̂
/// the normalised x and g = grad · weight, the gradient with respect to x is (g − mean(g) − x̂ · mean(g · x̂))
/// / √(variance + eps).
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match, OUT_OF_MEMORY.
pub fn layer_norm_backward(
    grad: &[f32],
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: LayerNormGradients,
) -> Result<()> {
    let columns = weight.len();
    if columns == 0 || !x.len().is_multiple_of(columns) {
        return Err(Error::InvalidArgument(format!(
            "A layer norm over {columns} values got {}, which isn't a whole number of rows.",
            x.len()
        )));
    }
    check_len("The gradient of a layer norm", grad.len(), &[x.len()])?;
    check_len(
        "The gradient with respect to the input",
        out.x.len(),
        &[x.len()],
    )?;
    check_len(
        "The gradient with respect to the weight",
        out.weight.len(),
        &[columns],
    )?;
    check_len(
        "The gradient with respect to the bias",
        out.bias.len(),
        &[columns],
    )?;
    let blocks = (x.len() / columns).div_ceil(ROW_BLOCK);
    let mut sums = try_vec(numel(&[blocks, 2, columns])?)?;
    let (out_x, parts) = (
        DisjointSliceMut::new(out.x),
        DisjointSliceMut::new(&mut sums),
    );
    let block = ROW_BLOCK * columns;
    for_each_task(threads_for(x.len().saturating_mul(8)), blocks, &|task| {
        let first = task.index * block;
        let count = block.min(x.len() - first);
        // SAFETY: each task has its own rows and sums.
        let (out, sums) = unsafe {
            (
                out_x.get(first, count),
                parts.get(task.index * 2 * columns, 2 * columns),
            )
        };
        let (by_weight, by_bias) = sums.split_at_mut(columns);
        let rows = x[first..].chunks_exact(columns);
        let grads = grad[first..].chunks_exact(columns);
        for ((row, grad), out) in rows.zip(grads).zip(out.chunks_exact_mut(columns)) {
            row_backward(row, grad, weight, eps, [out, by_weight, by_bias]);
        }
    });
    for column in 0..columns {
        let sum = |offset: usize| -> f64 {
            let values = sums.iter().skip(offset + column).step_by(2 * columns);
            values.map(|&value| f64::from(value)).sum()
        };
        out.weight[column] = sum(0) as f32;
        out.bias[column] = sum(columns) as f32;
    }
    Ok(())
}

/// Computes the gradient with respect to one row of x, and adds the row's share of those with respect to weight
/// and bias to their sums.
fn row_backward(
    row: &[f32],
    grad: &[f32],
    weight: &[f32],
    eps: f32,
    [out, by_weight, by_bias]: [&mut [f32]; 3],
) {
    let moments = Moments::of(row);
    let factor = 1.0 / (moments.variance + eps).sqrt();
    let [shift, rest, factors] = [moments.shift, moments.rest, factor].map(F32x4::splat);
    let mut sums = [F32x4::splat(0.0); 2];
    update_block(
        [&mut *out, by_weight, by_bias],
        [row, grad, weight],
        |[_, by_weight, by_bias], [x, grad, weight]| {
            let normalised = x.sub(shift).sub(rest).mul(factors);
            let scaled = grad.mul(weight);
            sums[0] = sums[0].add(scaled);
            sums[1] = scaled.mul_add(normalised, sums[1]);
            let by_weight = grad.mul_add(normalised, by_weight);
            [normalised, by_weight, by_bias.add(grad)]
        },
    );
    let [mean, slope] = sums.map(|sum| F32x4::splat(sum.sum() / row.len() as f32));
    update_block([out], [grad, weight], |[normalised], [grad, weight]| {
        let rest = grad.mul(weight).sub(mean).sub(normalised.mul(slope));
        [rest.mul(factors)]
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, same_with_workers, values};
    use proptest::prelude::*;

    struct Naive {
        x: Vec<f64>,
        weight: Vec<f64>,
        bias: Vec<f64>,
    }

    /// Σ grad · layer_norm(x), whose gradients are under test.
    fn loss(grad: &[f32], x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> f64 {
        let n = weight.len();
        let row_loss = |(row, grad): (&[f64], &[f32])| {
            let mean = row.iter().sum::<f64>() / n as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
            let factor = 1.0 / (variance + eps).sqrt();
            (0..n)
                .map(|c| f64::from(grad[c]) * ((row[c] - mean) * factor * weight[c] + bias[c]))
                .sum::<f64>()
        };
        x.chunks_exact(n)
            .zip(grad.chunks_exact(n))
            .map(row_loss)
            .sum()
    }

    /// Central differences of the loss in float64.
    fn naive(grad: &[f32], x: &[f32], weight: &[f32], eps: f64) -> Naive {
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let parameters = [wide(x), wide(weight), vec![0.5; weight.len()]];
        let gradient = |which: usize| -> Vec<f64> {
            let step = 1e-5;
            (0..parameters[which].len())
                .map(|index| {
                    let at = |offset: f64| {
                        let mut moved = parameters.clone();
                        moved[which][index] += offset;
                        loss(grad, &moved[0], &moved[1], &moved[2], eps)
                    };
                    (at(step) - at(-step)) / (2.0 * step)
                })
                .collect()
        };
        Naive {
            x: gradient(0),
            weight: gradient(1),
            bias: gradient(2),
        }
    }

    fn run(grad: &[f32], x: &[f32], weight: &[f32], eps: f32) -> [Vec<f32>; 3] {
        let columns = weight.len();
        let mut out = [
            vec![f32::NAN; x.len()],
            vec![f32::NAN; columns],
            vec![f32::NAN; columns],
        ];
        let [x_out, weight_out, bias_out] = &mut out;
        let gradients = LayerNormGradients {
            x: x_out,
            weight: weight_out,
            bias: bias_out,
        };
        layer_norm_backward(grad, x, weight, eps, gradients).unwrap();
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn gradients_match_finite_differences(rows in 0usize..5, columns in 1usize..22, mean in -3.0f32..3.0) {
            let x: Vec<f32> = values(rows * columns, 1).into_iter().map(|v| v + mean).collect();
            let (grad, weight) = (values(rows * columns, 2), values(columns, 3));
            let expected = naive(&grad, &x, &weight, 0.1);
            let [by_x, by_weight, by_bias] = run(&grad, &x, &weight, 0.1);
            assert_close(&by_x, &expected.x, 1e-5);
            assert_close(&by_weight, &expected.weight, 1e-5);
            assert_close(&by_bias, &expected.bias, 1e-5);
        }
    }

    #[test]
    fn sums_cross_blocks_of_rows() {
        let (rows, columns) = (2 * ROW_BLOCK + 3, 5);
        let x = values(rows * columns, 1);
        let (grad, weight) = (values(rows * columns, 2), values(columns, 3));
        let expected = naive(&grad, &x, &weight, 1e-2);
        let [by_x, by_weight, by_bias] = run(&grad, &x, &weight, 1e-2);
        assert_close(&by_x, &expected.x, 1e-5);
        assert_close(&by_weight, &expected.weight, 1e-5);
        assert_close(&by_bias, &expected.bias, 1e-5);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (x, grad, weight) = (values(701 * 384, 4), values(701 * 384, 5), values(384, 6));
        same_with_workers(|| run(&grad, &x, &weight, 1e-6).concat());
    }

    #[test]
    fn wrong_lengths_are_errors() {
        for (grad, x, weight, out) in [
            (5, 5, 2, [5, 2, 2]),
            (3, 4, 2, [4, 2, 2]),
            (4, 4, 2, [3, 2, 2]),
            (4, 4, 2, [4, 1, 2]),
            (4, 4, 2, [4, 2, 1]),
            (0, 0, 0, [0, 0, 0]),
        ] {
            let [mut a, mut b, mut c] = out.map(|len| vec![0.0; len]);
            let out = LayerNormGradients {
                x: &mut a,
                weight: &mut b,
                bias: &mut c,
            };
            let (grad, x, weight) = (vec![0.0; grad], vec![0.0; x], vec![0.0; weight]);
            let error = layer_norm_backward(&grad, &x, &weight, 1e-6, out).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
    }
}
