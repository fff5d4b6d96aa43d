//! Batch normalisation with float64 statistics for each column.

use vit_msn_tensor::{Result, batch_rows, check_len, try_vec};

use crate::columns::{column_sums, column_sums_of};
use crate::elementwise::update_block;
use crate::runtime::parallel::for_each_block_of_rows;

/// The outputs of a batch norm.
pub struct BatchNormOutput<'a> {
    /// Rows of `columns`, like the input.
    pub y: &'a mut [f32],
    /// `[columns]`
    pub mean: &'a mut [f32],
    /// `[columns]`, unbiased.
    pub variance: &'a mut [f32],
}

/// The gradients of a batch norm.
pub struct BatchNormGradients<'a> {
    /// Rows of `columns`, like the input.
    pub x: &'a mut [f32],
    /// `[columns]`
    pub weight: &'a mut [f32],
    /// `[columns]`
    pub bias: &'a mut [f32],
}

/// y = (x − mean) / √(variance + eps) · weight + bias with each column's mean and biased variance.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match or there are fewer than two rows, OUT_OF_MEMORY.
pub fn batch_norm(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: BatchNormOutput,
) -> Result<()> {
    let columns = weight.len();
    let moments = Moments::of(x, columns)?;
    check_len("The mean of a batch norm", out.mean.len(), &[columns])?;
    check_len("The variance", out.variance.len(), &[columns])?;
    for (column, (mean, variance)) in moments.mean.iter().zip(&moments.variance).enumerate() {
        out.mean[column] = *mean as f32;
        out.variance[column] = *variance as f32;
    }
    batch_norm_inference(x, [weight, bias, out.mean, out.variance], eps, out.y)?;
    // Running statistics use the unbiased variance.
    let unbiased = moments.rows as f64 / (moments.rows as f64 - 1.0);
    for (out, variance) in out.variance.iter_mut().zip(&moments.variance) {
        *out = (variance * unbiased) as f32;
    }
    Ok(())
}

/// The same with given statistics: weight, bias, mean and variance.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match, OUT_OF_MEMORY.
pub fn batch_norm_inference(
    x: &[f32],
    [weight, bias, mean, variance]: [&[f32]; 4],
    eps: f32,
    out: &mut [f32],
) -> Result<()> {
    let columns = weight.len();
    let rows = x.len().checked_div(columns).unwrap_or(0);
    check_len("The input of a batch norm", x.len(), &[rows, columns])?;
    for values in [bias, mean, variance] {
        check_len("A parameter of a batch norm", values.len(), &[columns])?;
    }
    check_len("The result of a batch norm", out.len(), &[x.len()])?;
    let mut scale = try_vec(columns)?;
    for (column, scale) in scale.iter_mut().enumerate() {
        *scale = (f64::from(weight[column]) * factor(f64::from(variance[column]), eps)) as f32;
    }
    if columns == 0 {
        return Ok(());
    }
    for_each_block_of_rows(out, columns, x.len().saturating_mul(4), &|row, block| {
        let rows = x[row * columns..].chunks_exact(columns);
        for (out, x) in block.chunks_exact_mut(columns).zip(rows) {
            update_block(
                [out],
                [x, mean, &scale, bias],
                |_, [x, mean, scale, bias]| [x.sub(mean).mul_add(scale, bias)],
            );
        }
    });
    Ok(())
}

/// The gradients of [`batch_norm`]'s y. With x̂ the normalised x, those with respect to weight and bias are the
/// column sums of grad · x̂ and of grad, and the one with respect to x is (grad − mean(grad) − x̂ · mean(grad ·
/// x̂)) · weight / √(variance + eps).
///
/// # Errors
/// Same as [`batch_norm`].
pub fn batch_norm_backward(
    grad: &[f32],
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: BatchNormGradients,
) -> Result<()> {
    let columns = weight.len();
    let moments = Moments::of(x, columns)?;
    check_len("The gradient of a batch norm", grad.len(), &[x.len()])?;
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
    let Moments {
        rows,
        mean,
        variance,
    } = moments;
    let by_bias = column_sums(grad, columns)?;
    let centred = column_sums_of(rows, columns, &|index, column, sums| {
        let pairs = grad[index..].iter().zip(&x[index..]);
        for ((sum, mean), (&grad, &x)) in sums.iter_mut().zip(&mean[column..]).zip(pairs) {
            *sum += f64::from(grad) * (f64::from(x) - mean);
        }
    })?;
    let mut numbers = try_vec(4 * columns)?;
    let (means, rest) = numbers.split_at_mut(columns);
    let (shift, rest) = rest.split_at_mut(columns);
    let (slope, scale) = rest.split_at_mut(columns);
    for column in 0..columns {
        let factor = factor(variance[column], eps);
        let by_weight = centred[column] * factor;
        out.bias[column] = by_bias[column] as f32;
        out.weight[column] = by_weight as f32;
        means[column] = mean[column] as f32;
        shift[column] = (by_bias[column] / rows as f64) as f32;
        slope[column] = (by_weight * factor / rows as f64) as f32;
        scale[column] = (f64::from(weight[column]) * factor) as f32;
    }
    let numbers = [&*means, &*shift, &*slope, &*scale];
    for_each_block_of_rows(out.x, columns, x.len().saturating_mul(8), &|row, block| {
        let [x, grad] = [x, grad].map(|values| values[row * columns..].chunks_exact(columns));
        for (out, (x, grad)) in block.chunks_exact_mut(columns).zip(x.zip(grad)) {
            let [mean, shift, slope, scale] = numbers;
            update_block(
                [out],
                [x, grad, mean, shift, slope, scale],
                |_, [x, grad, mean, shift, slope, scale]| {
                    let along = x.sub(mean).mul(slope);
                    [grad.sub(shift).sub(along).mul(scale)]
                },
            );
        }
    });
    Ok(())
}

/// The statistics of each column.
struct Moments {
    rows: usize,
    mean: Vec<f64>,
    /// Biased.
    variance: Vec<f64>,
}

impl Moments {
    fn of(x: &[f32], columns: usize) -> Result<Self> {
        let rows = batch_rows(x.len(), columns)?;
        let mut mean = column_sums(x, columns)?;
        mean.iter_mut().for_each(|sum| *sum /= rows as f64);
        let mut variance = column_sums_of(rows, columns, &|index, column, sums| {
            for ((sum, mean), &x) in sums.iter_mut().zip(&mean[column..]).zip(&x[index..]) {
                *sum += (f64::from(x) - mean) * (f64::from(x) - mean);
            }
        })?;
        variance.iter_mut().for_each(|sum| *sum /= rows as f64);
        Ok(Self {
            rows,
            mean,
            variance,
        })
    }
}

/// The reciprocal of the standard deviation.
fn factor(variance: f64, eps: f32) -> f64 {
    1.0 / (variance + f64::from(eps)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, same_with_workers, values};
    use proptest::prelude::*;
    use vit_msn_tensor::testing::{self as definition, numeric_gradient, wide};

    fn run(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Result<[Vec<f32>; 3]> {
        let columns = weight.len();
        let [mut y, mut mean, mut variance] =
            [x.len(), columns, columns].map(|len| vec![f32::NAN; len]);
        let out = BatchNormOutput {
            y: &mut y,
            mean: &mut mean,
            variance: &mut variance,
        };
        batch_norm(x, weight, bias, eps, out)?;
        Ok([y, mean, variance])
    }

    fn back(grad: &[f32], x: &[f32], weight: &[f32], eps: f32) -> Result<[Vec<f32>; 3]> {
        let mut out = [x.len(), weight.len(), weight.len()].map(|len| vec![f32::NAN; len]);
        let [x_out, weight_out, bias_out] = &mut out;
        let gradients = BatchNormGradients {
            x: x_out,
            weight: weight_out,
            bias: bias_out,
        };
        batch_norm_backward(grad, x, weight, eps, gradients)?;
        Ok(out)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn values_are_those_of_the_definition(rows in 2usize..12, columns in 1usize..70, shift in -3.0f32..3.0) {
            let x: Vec<f32> = values(rows * columns, 1).into_iter().map(|v| v + shift).collect();
            let (weight, bias) = (values(columns, 2), values(columns, 3));
            let [y, mean, variance] = run(&x, &weight, &bias, 1e-3).unwrap();
            let [y_expected, mean_expected, biased] = definition::batch_norm(&wide(&x), &weight, &bias, 1e-3);
            assert_close(&y, &y_expected, 1e-5);
            assert_close(&mean, &mean_expected, 1e-6);
            let unbiased: Vec<f64> = biased.iter().map(|v| v * rows as f64 / (rows as f64 - 1.0)).collect();
            assert_close(&variance, &unbiased, 1e-6);
            let mut again = vec![f32::NAN; x.len()];
            let biased: Vec<f32> = biased.iter().map(|&v| v as f32).collect();
            batch_norm_inference(&x, [&weight, &bias, &mean, &biased], 1e-3, &mut again).unwrap();
            assert_close(&again, &y_expected, 1e-5);
        }

        #[test]
        fn gradients_match_finite_differences(rows in 2usize..7, columns in 1usize..9) {
            let x = values(rows * columns, 1);
            let (grad, weight, bias) = (values(x.len(), 2), values(columns, 3), vec![0.0; columns]);
            let along = |y: &[f64]| -> f64 { y.iter().zip(&grad).map(|(y, &g)| y * f64::from(g)).sum() };
            let [by_x, by_weight, by_bias] = back(&grad, &x, &weight, 0.1).unwrap();
            let expected = numeric_gradient(&wide(&x), 1e-5, |x| {
                along(&definition::batch_norm(x, &weight, &bias, f64::from(0.1f32))[0])
            });
            assert_close(&by_x, &expected, 1e-5);
            let ones = vec![1.0; columns];
            let [normalised, ..] = definition::batch_norm(&wide(&x), &ones, &bias, f64::from(0.1f32));
            let sums = |values: &dyn Fn(usize) -> f64| -> Vec<f64> {
                (0..columns).map(|c| (0..rows).map(|r| values(r * columns + c)).sum()).collect()
            };
            assert_close(&by_weight, &sums(&|i| f64::from(grad[i]) * normalised[i]), 1e-5);
            assert_close(&by_bias, &sums(&|i| f64::from(grad[i])), 1e-5);
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (x, grad) = (values(301 * 517, 4), values(301 * 517, 5));
        let weight = values(517, 6);
        same_with_workers(|| {
            let mut out = run(&x, &weight, &weight, 1e-5).unwrap().concat();
            out.extend(back(&grad, &x, &weight, 1e-5).unwrap().concat());
            out
        });
    }

    #[test]
    fn one_row_or_no_whole_rows_are_errors() {
        for (len, columns) in [(3, 3), (0, 3), (7, 3), (3, 0)] {
            let (x, weight) = (vec![0.0; len], vec![0.0; columns]);
            let codes = [
                run(&x, &weight, &weight, 1e-5).unwrap_err(),
                back(&x, &x, &weight, 1e-5).unwrap_err(),
            ];
            assert_eq!(codes.map(|error| error.code()), ["INVALID_ARGUMENT"; 2]);
        }
        let (x, weight) = ([0.0; 6], [0.0; 3]);
        assert!(run(&x, &weight, &weight[1..], 1e-5).is_err());
        assert!(back(&x[1..], &x, &weight, 1e-5).is_err());
        let given = [&weight[..], &weight, &weight[1..], &weight];
        assert!(batch_norm_inference(&x, given, 1e-5, &mut [0.0; 6]).is_err());
        batch_norm_inference(&[], [&[], &[], &[], &[]], 1e-5, &mut []).unwrap();
    }
}
