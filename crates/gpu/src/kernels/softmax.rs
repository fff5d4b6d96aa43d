//! Softmax over the last dimension.

use bytemuck::NoUninit;
use vit_msn_tensor::Result;

use super::{REDUCE_CONSTANTS, cost, fold_rows, lanes, reducing};
use crate::buffers::GpuTensor;
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    rows: u32,
    width: u32,
}

/// Softmax over the last dimension.
///
/// # Errors
/// UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn softmax(stream: &mut Stream, x: &GpuTensor) -> Result<GpuTensor> {
    let (rows, width) = x.rows();
    let y = stream.uninit(x.dims())?;
    let lanes = lanes(stream.context());
    stream.record(Op {
        kernel: Kernel {
            name: "softmax",
            sources: reducing!(stream.context(), "parts/row_softmax.wgsl", "softmax.wgsl"),
            entry_point: "main",
        },
        constants: (REDUCE_CONSTANTS, &lanes),
        uniforms: Params {
            rows: rows as u32,
            width: width as u32,
        },
        reads: &[x.binding()],
        writes: &[y.binding()],
        workgroups: fold_rows(rows),
        cost: cost(x.len() as u64 * 4, x.len() as u64 * 5),
    })?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, on_shapes, read, values};

    fn naive(x: &[f32], width: usize) -> Vec<f64> {
        x.chunks(width)
            .flat_map(|row| {
                let highest = row.iter().copied().fold(f32::MIN, f32::max);
                let exp = move |v: f32| (f64::from(v) - f64::from(highest)).exp();
                let total: f64 = row.iter().map(|&v| exp(v)).sum();
                row.iter().map(move |&v| exp(v) / total)
            })
            .collect()
    }

    #[test]
    fn odd_shapes_match_the_definition() {
        on_shapes(
            ([1usize..40, 1usize..300], -200f32..200.0),
            |stream, ([rows, width], shift)| {
                // A shift only matters to an exp that would overflow.
                let data = values(rows * width, 1);
                let x: Vec<f32> = data.iter().map(|v| 10.0 * v + shift).collect();
                let x_gpu = stream.upload(&x, &[rows, width]).unwrap();
                let y = softmax(stream, &x_gpu).unwrap();
                assert_close(&read(stream, &y), &naive(&x, width), 1e-5);
            },
        );
    }
}
