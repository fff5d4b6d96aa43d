//! Batch normalisation and its gradients.

use bytemuck::NoUninit;
use vit_msn_tensor::{Result, batch_rows};

use super::elementwise::check_same_shape;
use super::{LINE, cost, fold_rows};
use crate::buffers::{Binding, GpuTensor};
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    rows: u32,
    columns: u32,
    eps: f32,
}

/// The results of [`batch_norm`].
pub struct BatchNormOutput {
    /// The output, of the input's shape.
    pub y: GpuTensor,
    /// `[columns]`
    pub mean: GpuTensor,
    /// `[columns]`, the unbiased variance.
    pub variance: GpuTensor,
}

/// The gradients of [`batch_norm`].
pub struct BatchNormGradients {
    /// With respect to the input, of its shape.
    pub x: GpuTensor,
    /// With respect to the weight: `[columns]`.
    pub weight: GpuTensor,
    /// With respect to the bias: `[columns]`.
    pub bias: GpuTensor,
}

/// (x − mean) / √(variance + eps) · weight + bias with each column's mean and biased variance; x `[rows, columns]`,
/// weight and bias `[columns]`.
///
/// # Errors
/// INVALID_ARGUMENT if shapes don't match or there are fewer than two rows, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn batch_norm(
    stream: &mut Stream,
    x: &GpuTensor,
    weight: &GpuTensor,
    bias: &GpuTensor,
    eps: f32,
) -> Result<BatchNormOutput> {
    let params = check(x, weight, eps)?;
    batch_rows(x.len(), params.columns as usize)?;
    bias.expect("The bias of a batch norm", &[params.columns as usize])?;
    let (y, mean, variance) = (
        stream.uninit(x.dims())?,
        stream.uninit(weight.dims())?,
        stream.uninit(weight.dims())?,
    );
    let reads = [x.binding(), weight.binding(), bias.binding()];
    let writes = [y.binding(), mean.binding(), variance.binding()];
    record(stream, "forward", params, &reads, &writes)?;
    Ok(BatchNormOutput { y, mean, variance })
}

/// [`batch_norm`] with given statistics: weight, bias, mean and variance `[columns]`.
///
/// # Errors
/// As [`batch_norm`], except that one row suffices.
pub fn batch_norm_inference(
    stream: &mut Stream,
    x: &GpuTensor,
    given: [&GpuTensor; 4],
    eps: f32,
) -> Result<GpuTensor> {
    let params = check(x, given[0], eps)?;
    for parameter in given {
        parameter.expect("A parameter of a batch norm", &[params.columns as usize])?;
    }
    let y = stream.uninit(x.dims())?;
    let [weight, bias, mean, variance] = given.map(GpuTensor::binding);
    let reads = [x.binding(), weight, bias, mean, variance];
    record(stream, "inference", params, &reads, &[y.binding()])?;
    Ok(y)
}

/// The gradients of [`batch_norm`], given that of y; grad and x `[rows, columns]`, weight `[columns]`.
///
/// # Errors
/// As [`batch_norm`].
pub fn batch_norm_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    x: &GpuTensor,
    weight: &GpuTensor,
    eps: f32,
) -> Result<BatchNormGradients> {
    check_same_shape(grad, x)?;
    let params = check(x, weight, eps)?;
    batch_rows(x.len(), params.columns as usize)?;
    let (by_x, by_weight, by_bias) = (
        stream.uninit(x.dims())?,
        stream.uninit(weight.dims())?,
        stream.uninit(weight.dims())?,
    );
    let reads = [x.binding(), weight.binding(), grad.binding()];
    let writes = [by_x.binding(), by_weight.binding(), by_bias.binding()];
    record(stream, "backward", params, &reads, &writes)?;
    Ok(BatchNormGradients {
        x: by_x,
        weight: by_weight,
        bias: by_bias,
    })
}

fn check(x: &GpuTensor, weight: &GpuTensor, eps: f32) -> Result<Params> {
    let [rows, columns] = x.shape("The input of a batch norm", ["batch", "features"])?;
    weight.expect("The weight of a batch norm", &[columns])?;
    Ok(Params {
        rows: rows as u32,
        columns: columns as u32,
        eps,
    })
}

fn record(
    stream: &mut Stream,
    entry_point: &'static str,
    params: Params,
    reads: &[Binding],
    writes: &[Binding],
) -> Result<()> {
    let columns = params.columns as usize;
    let count = params.rows as usize * columns;
    let workgroups = match entry_point {
        "inference" => fold_rows(count.div_ceil(LINE)),
        _ => [columns.div_ceil(LINE), 1, 1],
    };
    stream.record(Op {
        kernel: Kernel {
            name: "batch_norm",
            sources: &[include_str!("batch_norm.wgsl")],
            entry_point,
        },
        constants: (&[], &[]),
        uniforms: params,
        reads,
        writes,
        workgroups,
        cost: cost(5 * count as u64, 10 * count as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream};
    use vit_msn_tensor::testing::{self as definition, numeric_gradient, wide};

    #[test]
    fn odd_shapes_match_the_definition() {
        on_shapes([2usize..200, 1usize..90], |stream, [rows, columns]| {
            let (x, x_gpu) = random(stream, &[rows, columns], 1);
            let (weight, weight_gpu) = random(stream, &[columns], 2);
            let (bias, bias_gpu) = random(stream, &[columns], 3);
            let out = batch_norm(stream, &x_gpu, &weight_gpu, &bias_gpu, 1e-3).unwrap();
            let [y, mean, variance] = definition::batch_norm(&wide(&x), &weight, &bias, 1e-3);
            assert_close(&read(stream, &out.y), &y, 2e-5);
            assert_close(&read(stream, &out.mean), &mean, 1e-6);
            let unbiased: Vec<f64> = variance
                .iter()
                .map(|v| v * rows as f64 / (rows as f64 - 1.0))
                .collect();
            assert_close(&read(stream, &out.variance), &unbiased, 2e-6);
            let biased: Vec<f32> = variance.iter().map(|&v| v as f32).collect();
            let biased = stream.upload(&biased, &[columns]).unwrap();
            let given = [&weight_gpu, &bias_gpu, &out.mean, &biased];
            let again = batch_norm_inference(stream, &x_gpu, given, 1e-3).unwrap();
            assert_close(&read(stream, &again), &y, 2e-5);
        });
    }

    #[test]
    fn gradients_match_finite_differences() {
        on_shapes([2usize..70, 1usize..6], |stream, [rows, columns]| {
            let (x, x_gpu) = random(stream, &[rows, columns], 1);
            let (grad, grad_gpu) = random(stream, &[rows, columns], 2);
            let (weight, weight_gpu) = random(stream, &[columns], 3);
            let out = batch_norm_backward(stream, &grad_gpu, &x_gpu, &weight_gpu, 0.1).unwrap();
            let (zeros, ones) = (vec![0.0; columns], vec![1.0; columns]);
            let eps = f64::from(0.1f32);
            let loss = |x: &[f64]| -> f64 {
                let [y, ..] = definition::batch_norm(x, &weight, &zeros, eps);
                y.iter().zip(&grad).map(|(y, &g)| y * f64::from(g)).sum()
            };
            let expected = numeric_gradient(&wide(&x), 1e-5, loss);
            assert_close(&read(stream, &out.x), &expected, 2e-5);
            let [normalised, ..] = definition::batch_norm(&wide(&x), &ones, &zeros, eps);
            let (mut by_weight, mut by_bias) = (vec![0.0; columns], vec![0.0; columns]);
            for (index, &g) in grad.iter().enumerate() {
                by_weight[index % columns] += f64::from(g) * normalised[index];
                by_bias[index % columns] += f64::from(g);
            }
            assert_close(&read(stream, &out.weight), &by_weight, 2e-5);
            assert_close(&read(stream, &out.bias), &by_bias, 1e-5);
        });
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let Some(mut stream) = stream() else { return };
        let mut tensor = |dims: &[usize]| random(&mut stream, dims, 1).1;
        let (x, row, weight) = (tensor(&[2, 5]), tensor(&[1, 5]), tensor(&[5]));
        let (other, cube) = (tensor(&[4]), tensor(&[1, 2, 5]));
        let stream = &mut stream;
        let mut forward =
            |x, weight, bias| code(batch_norm(stream, x, weight, bias, 1e-5).map(|_| ()));
        assert_eq!(forward(&row, &weight, &weight), "INVALID_ARGUMENT");
        assert_eq!(forward(&cube, &weight, &weight), "INVALID_ARGUMENT");
        assert_eq!(forward(&x, &other, &weight), "INVALID_ARGUMENT");
        assert_eq!(forward(&x, &weight, &other), "INVALID_ARGUMENT");
        let mut backward =
            |grad, x, weight| code(batch_norm_backward(stream, grad, x, weight, 1e-5).map(|_| ()));
        assert_eq!(backward(&row, &x, &weight), "INVALID_ARGUMENT");
        assert_eq!(backward(&row, &row, &weight), "INVALID_ARGUMENT");
        let given = [&weight, &weight, &other, &weight];
        let result = batch_norm_inference(stream, &x, given, 1e-5);
        assert_eq!(code(result), "INVALID_ARGUMENT");
    }
}
