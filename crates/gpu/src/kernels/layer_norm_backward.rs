//! The gradients of layer normalisation.

use bytemuck::NoUninit;
use vit_msn_tensor::Result;

use super::elementwise::check_same_shape;
use super::sums::column_sums;
use super::{LINE, REDUCE_CONSTANTS, cost, fold_rows, lanes, reducing};
use crate::buffers::GpuTensor;
use crate::context::Context;
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

/// Rows per partial sum: the kernel's BLOCK.
const BLOCK: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    rows: u32,
    width: u32,
    eps: f32,
}

/// The gradients of [`crate::layer_norm`].
pub struct LayerNormGradients {
    /// With respect to the input, of its shape.
    pub x: GpuTensor,
    /// With respect to the weight: `[width]`.
    pub weight: GpuTensor,
    /// With respect to the bias: `[width]`.
    pub bias: GpuTensor,
}

fn kernel(context: &Context, entry_point: &'static str) -> Kernel {
    Kernel {
        name: "layer_norm_backward",
        sources: reducing!(context, "layer_norm_backward.wgsl"),
        entry_point,
    }
}

/// The gradients of layer normalisation, given that of its output; grad and x `[..., width]`, weight `[width]`.
///
/// # Errors
/// INVALID_ARGUMENT if shapes don't match, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn layer_norm_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    x: &GpuTensor,
    weight: &GpuTensor,
    eps: f32,
) -> Result<LayerNormGradients> {
    check_same_shape(grad, x)?;
    let (rows, width) = x.rows();
    weight.expect("The weight of a layer norm", &[width])?;
    let by_x = stream.uninit(x.dims())?;
    let moments = stream.uninit(&[rows, 2])?;
    let lanes = lanes(stream.context());
    let uniforms = Params {
        rows: rows as u32,
        width: width as u32,
        eps,
    };
    stream.record(Op {
        kernel: kernel(stream.context(), "by_x"),
        constants: (REDUCE_CONSTANTS, &lanes),
        uniforms,
        reads: &[grad.binding(), x.binding(), weight.binding()],
        writes: &[by_x.binding(), moments.binding()],
        workgroups: fold_rows(rows),
        cost: cost(7 * x.len() as u64, 17 * x.len() as u64),
    })?;
    let blocks = rows.div_ceil(BLOCK);
    let sums = stream.uninit(&[blocks, width])?;
    stream.record(Op {
        kernel: kernel(stream.context(), "by_weight"),
        constants: (REDUCE_CONSTANTS, &lanes),
        uniforms,
        reads: &[grad.binding(), x.binding(), moments.binding()],
        writes: &[sums.binding()],
        workgroups: [width.div_ceil(LINE), blocks, 1],
        cost: cost(2 * x.len() as u64, 4 * x.len() as u64),
    })?;
    let by_weight = column_sums(stream, sums.binding(), [blocks, width, width], &[width])?;
    let by_bias = column_sums(stream, grad.binding(), [rows, width, width], &[width])?;
    Ok(LayerNormGradients {
        x: by_x,
        weight: by_weight,
        bias: by_bias,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream};

    /// The gradients of x, weight and bias, in float64.
    fn naive(grad: &[f32], x: &[f32], weight: &[f32], eps: f64) -> [Vec<f64>; 3] {
        let width = weight.len();
        let mut out = [vec![0.0; x.len()], vec![0.0; width], vec![0.0; width]];
        for (row, (x, grad)) in x.chunks(width).zip(grad.chunks(width)).enumerate() {
            let mean_of = |values: &[f64]| values.iter().sum::<f64>() / width as f64;
            let wide: Vec<f64> = x.iter().map(|&v| v.into()).collect();
            let mean = mean_of(&wide);
            let squares: Vec<f64> = wide.iter().map(|v| (v - mean).powi(2)).collect();
            let root = (mean_of(&squares) + eps).sqrt();
            let normalised: Vec<f64> = wide.iter().map(|v| (v - mean) / root).collect();
            let pairs = grad.iter().zip(weight);
            let scaled: Vec<f64> = pairs.map(|(&g, &w)| f64::from(g) * f64::from(w)).collect();
            let products: Vec<f64> = scaled.iter().zip(&normalised).map(|(g, n)| g * n).collect();
            let (shift, slope) = (mean_of(&scaled), mean_of(&products));
            for i in 0..width {
                out[0][row * width + i] = (scaled[i] - shift - normalised[i] * slope) / root;
                out[1][i] += f64::from(grad[i]) * normalised[i];
                out[2][i] += f64::from(grad[i]);
            }
        }
        out
    }

    #[test]
    fn odd_shapes_match_the_formulas() {
        let shapes = [1usize..150, 1usize..130];
        on_shapes(shapes, |stream, [rows, width]| {
            let (grad, grad_gpu) = random(stream, &[1, rows, width], 1);
            let (x, x_gpu) = random(stream, &[1, rows, width], 2);
            let (weight, weight_gpu) = random(stream, &[width], 3);
            let out = layer_norm_backward(stream, &grad_gpu, &x_gpu, &weight_gpu, 1e-2).unwrap();
            assert_eq!(out.x.dims(), [1, rows, width]);
            let [by_x, by_weight, by_bias] = naive(&grad, &x, &weight, f64::from(1e-2f32));
            assert_close(&read(stream, &out.x), &by_x, 2e-5);
            assert_close(&read(stream, &out.weight), &by_weight, 2e-5);
            assert_close(&read(stream, &out.bias), &by_bias, 1e-5);
        });
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let Some(mut stream) = stream() else { return };
        let mut tensor = |dims: &[usize]| random(&mut stream, dims, 1).1;
        let (x, other, weight) = (tensor(&[2, 5]), tensor(&[5, 2]), tensor(&[5]));
        let mut run = |grad, weight| {
            let result = layer_norm_backward(&mut stream, grad, &x, weight, 1e-6);
            code(result.map(|_| ()))
        };
        assert_eq!(run(&other, &weight), "INVALID_ARGUMENT");
        assert_eq!(run(&x, &x), "INVALID_ARGUMENT");
    }
}
