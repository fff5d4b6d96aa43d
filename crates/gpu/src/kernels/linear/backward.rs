//! The gradients of linear layers: two products by a tiled GEMM whose operands are in depth order.

use bytemuck::NoUninit;
use vit_msn_tensor::{Dtype, Error, Result, format_dims};

use crate::buffers::{Binding, GpuTensor};
use crate::kernels::cost;
use crate::kernels::sums::column_sums;
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};
use crate::weights::GpuLinear;

/// Rows and columns of a workgroup's results.
const SIDE: usize = 64;

macro_rules! module {
    ($right:literal) => {
        &[include_str!($right), include_str!("backward.wgsl")]
    };
}

const SCALAR: &[&str] = module!("../parts/weight_scalar.wgsl");
const F32: &[&str] = module!("../parts/weight_f32.wgsl");
const F16: &[&str] = module!("../parts/weight_f16.wgsl");
const BF16: &[&str] = module!("../parts/weight_bf16.wgsl");

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    rows: u32,
    columns: u32,
    depth: u32,
    offset: u32,
    row_stride: u32,
    depth_stride: u32,
}

/// grad · weight: the gradient of a linear layer without activation with respect to its input; grad `[..., outputs]`
/// to `[..., inputs]`.
///
/// # Errors
/// INVALID_ARGUMENT if the shape doesn't match or rows of the weight are missing, UNSUPPORTED for int8,
/// OUT_OF_MEMORY, ENGINE_DEAD.
pub fn linear_backward_input(
    stream: &mut Stream,
    grad: &GpuTensor,
    weights: &GpuLinear,
) -> Result<GpuTensor> {
    let sources = match weights.dtype() {
        Dtype::F32 => F32,
        Dtype::F16 => F16,
        Dtype::BF16 => BF16,
        Dtype::I8 => return Err(not_floating()),
    };
    weights.check_complete()?;
    let (rows, outputs) = grad.rows();
    if outputs != weights.out_features() {
        return Err(Error::InvalidArgument(format!(
            "The gradient of a linear layer of {} outputs can't be {}.",
            weights.out_features(),
            format_dims(grad.dims())
        )));
    }
    let inputs = weights.in_features();
    let mut dims = grad.dims().to_vec();
    dims.pop();
    dims.push(inputs);
    let y = stream.uninit(&dims)?;
    for part in weights.parts() {
        let params = Params {
            rows: rows as u32,
            columns: inputs as u32,
            depth: part.rows as u32,
            offset: part.start as u32,
            row_stride: outputs as u32,
            depth_stride: 1,
        };
        let constants = [0, u32::from(part.start > 0)];
        let operands = [grad.binding(), part.buffer.binding()];
        record(stream, sources, constants, params, operands, &y)?;
    }
    Ok(y)
}

pub(crate) fn not_floating() -> Error {
    Error::Unsupported(
        "An int8 layer can't be trained: load the model with a floating dtype.".to_string(),
    )
}

/// gradᵀ · x and the column sums of grad, the gradients of a linear layer's weight and bias: grad `[..., outputs]`
/// and x `[..., inputs]` to `[outputs, inputs]` and `[outputs]`.
///
/// # Errors
/// INVALID_ARGUMENT if the numbers of rows differ, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn linear_backward_weights(
    stream: &mut Stream,
    grad: &GpuTensor,
    x: &GpuTensor,
) -> Result<(GpuTensor, GpuTensor)> {
    let (rows, outputs) = grad.rows();
    let (x_rows, inputs) = x.rows();
    if rows != x_rows {
        return Err(Error::InvalidArgument(format!(
            "The gradient {} of a linear layer and its input {} must have the same rows.",
            format_dims(grad.dims()),
            format_dims(x.dims())
        )));
    }
    let weight = product(stream, Left::Columns(grad), x, [outputs, inputs, rows])?;
    let size = [rows, outputs, outputs];
    let bias = column_sums(stream, grad.binding(), size, &[outputs])?;
    Ok((weight, bias))
}

/// The left operand of a product of plain tensors, and its order of dimensions.
pub(crate) enum Left<'a> {
    /// `[rows, depth]`
    Rows(&'a GpuTensor),
    /// `[depth, rows]`
    Columns(&'a GpuTensor),
}

/// left · right, `[rows, columns]`, where right is `[depth, columns]`; the caller checks the sizes.
///
/// # Errors
/// UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub(crate) fn product(
    stream: &mut Stream,
    left: Left,
    right: &GpuTensor,
    [rows, columns, depth]: [usize; 3],
) -> Result<GpuTensor> {
    let y = stream.uninit(&[rows, columns])?;
    let (left, row_stride, depth_stride) = match left {
        Left::Rows(left) => (left, depth, 1),
        Left::Columns(left) => (left, 1, rows),
    };
    let params = Params {
        rows: rows as u32,
        columns: columns as u32,
        depth: depth as u32,
        offset: 0,
        row_stride: row_stride as u32,
        depth_stride: depth_stride as u32,
    };
    let sources = if columns.is_multiple_of(4) {
        F32
    } else {
        SCALAR
    };
    let constants = [u32::from(row_stride == 1), 0];
    let operands = [left.binding(), right.binding()];
    record(stream, sources, constants, params, operands, &y)?;
    Ok(y)
}

fn record(
    stream: &mut Stream,
    sources: &'static [&'static str],
    constants: [u32; 2],
    params: Params,
    operands: [Binding; 2],
    y: &GpuTensor,
) -> Result<()> {
    let [rows, columns, depth] = [params.rows, params.columns, params.depth].map(|v| v as usize);
    let [across, down] = [columns.div_ceil(SIDE), rows.div_ceil(SIDE)];
    let read = depth * (rows * across + columns * down);
    stream.record(Op {
        kernel: Kernel {
            name: "linear_backward",
            sources,
            entry_point: "main",
        },
        constants: (&["TRANSPOSED", "ACCUMULATE"], &constants),
        uniforms: params,
        reads: &operands,
        writes: &[y.binding()],
        workgroups: [across, down, 1],
        cost: cost((read + y.len()) as u64, 2 * (y.len() * depth) as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        assert_close, code, layer_of, on_shapes, random, read, stream, values,
    };

    /// `Σₖ a(k, i) · b(k, j)` for each i and j, in float64.
    fn naive(
        (rows, columns, depth): (usize, usize, usize),
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
    ) -> Vec<f64> {
        (0..rows * columns)
            .map(|index| {
                let (i, j) = (index / columns, index % columns);
                let products = (0..depth).map(|k| f64::from(a(k, i)) * f64::from(b(k, j)));
                products.sum()
            })
            .collect()
    }

    fn check(stream: &mut Stream, [m, k, n]: [usize; 3], dtype: Dtype) {
        // Sixteenths are exact in every dtype.
        let weight: Vec<f32> = values(n * k, 5)
            .iter()
            .map(|v| (v * 16.0).round() / 16.0)
            .collect();
        let layer = layer_of(stream, &weight, &vec![0.0; n], dtype);
        let (grad, grad_gpu) = random(stream, &[1, m, n], 6);
        let (x, x_gpu) = random(stream, &[1, m, k], 7);
        let y = linear_backward_input(stream, &grad_gpu, &layer).unwrap();
        assert_eq!(y.dims(), [1, m, k]);
        let expected = naive((m, k, n), |o, r| grad[r * n + o], |o, i| weight[o * k + i]);
        assert_close(&read(stream, &y), &expected, 2e-7 * (n as f64 + 4.0));
        let (by_weight, by_bias) = linear_backward_weights(stream, &grad_gpu, &x_gpu).unwrap();
        assert_eq!(by_weight.dims(), [n, k]);
        assert_eq!(by_bias.dims(), [n]);
        let expected = naive((n, k, m), |r, o| grad[r * n + o], |r, i| x[r * k + i]);
        let tolerance = 2e-7 * (m as f64 + 4.0);
        assert_close(&read(stream, &by_weight), &expected, tolerance);
        let expected = naive((1, n, m), |_, _| 1.0, |r, o| grad[r * n + o]);
        assert_close(&read(stream, &by_bias), &expected, tolerance);
    }

    #[test]
    fn gradients_of_odd_shapes_are_the_products() {
        on_shapes(
            ([1usize..150, 1usize..80, 1usize..80], 0usize..3),
            |stream, (shape, dtype)| {
                check(stream, shape, [Dtype::F32, Dtype::F16, Dtype::BF16][dtype]);
            },
        );
    }

    #[test]
    fn gradients_cross_every_block() {
        let Some(mut stream) = stream() else { return };
        for shape in [[1, 1, 1], [300, 17, 33], [65, 64, 129], [3, 5, 200]] {
            check(&mut stream, shape, Dtype::F32);
        }
    }

    #[test]
    fn the_bits_are_the_same_on_every_run() {
        let Some(mut stream) = stream() else { return };
        let (_, grad) = random(&mut stream, &[197, 70], 1);
        let (_, x) = random(&mut stream, &[197, 66], 2);
        let mut run = || {
            let (weight, bias) = linear_backward_weights(&mut stream, &grad, &x).unwrap();
            (read(&mut stream, &weight), read(&mut stream, &bias))
        };
        assert_eq!(run(), run());
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let Some(mut stream) = stream() else { return };
        let (_, grad) = random(&mut stream, &[2, 3], 1);
        let (_, x) = random(&mut stream, &[3, 4], 1);
        let mut layer = |outputs, dtype| {
            let (weight, bias) = (vec![1.0; outputs * 4], vec![0.0; outputs]);
            layer_of(&mut stream, &weight, &bias, dtype)
        };
        let (wide, quantised) = (layer(4, Dtype::F32), layer(3, Dtype::I8));
        let empty = GpuLinear::new(&mut stream, 3, 4, Dtype::F32, false).unwrap();
        let mut run = |layer| code(linear_backward_input(&mut stream, &grad, layer));
        assert_eq!(run(&wide), "INVALID_ARGUMENT");
        assert_eq!(run(&empty), "INVALID_ARGUMENT");
        assert_eq!(run(&quantised), "UNSUPPORTED");
        let result = linear_backward_weights(&mut stream, &grad, &x);
        assert_eq!(code(result.map(|_| ())), "INVALID_ARGUMENT");
    }
}
