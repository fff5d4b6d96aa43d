//! Sums over columns and over all elements, without atomics, so that every run gives the same bits.

use bytemuck::NoUninit;
use vit_msn_tensor::Result;

use super::{LINE, REDUCE_CONSTANTS, cost, fold_rows, lanes, reducing};
use crate::buffers::{Binding, GpuTensor};
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

/// Rows summed by one invocation: the kernel's BLOCK.
const BLOCK: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    rows: u32,
    columns: u32,
    stride: u32,
}

/// The sums of the first `columns` columns of x `[rows, stride]`, as a tensor of shape `dims`.
///
/// # Errors
/// UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub(super) fn column_sums(
    stream: &mut Stream,
    x: Binding,
    [rows, stride, columns]: [usize; 3],
    dims: &[usize],
) -> Result<GpuTensor> {
    let blocks = rows.div_ceil(BLOCK);
    let y = if blocks == 1 {
        stream.uninit(dims)?
    } else {
        stream.uninit(&[blocks, columns])?
    };
    let params = Params {
        rows: rows as u32,
        columns: columns as u32,
        stride: stride as u32,
    };
    let workgroups = [columns.div_ceil(LINE), blocks, 1];
    record(stream, "column_sums", x, &y, params, workgroups)?;
    if blocks == 1 {
        return Ok(y);
    }
    column_sums(stream, y.binding(), [blocks, columns, columns], dims)
}

/// The sum of squares of all elements, as `[1]`: pairwise in float32, in a fixed order.
///
/// # Errors
/// UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn sum_of_squares(stream: &mut Stream, x: &GpuTensor) -> Result<GpuTensor> {
    let blocks = x
        .len()
        .div_ceil(BLOCK * lanes(stream.context())[0] as usize);
    let y = stream.uninit(&[blocks])?;
    let params = Params {
        rows: x.len() as u32,
        columns: 1,
        stride: 1,
    };
    let workgroups = fold_rows(blocks);
    record(stream, "squares", x.binding(), &y, params, workgroups)?;
    column_sums(stream, y.binding(), [blocks, 1, 1], &[1])
}

fn record(
    stream: &mut Stream,
    name: &'static str,
    x: Binding,
    y: &GpuTensor,
    params: Params,
    workgroups: [usize; 3],
) -> Result<()> {
    let lanes = lanes(stream.context());
    let read = u64::from(params.rows) * u64::from(params.columns);
    stream.record(Op {
        kernel: Kernel {
            name,
            sources: reducing!(stream.context(), "sums.wgsl"),
            entry_point: name,
        },
        constants: (REDUCE_CONSTANTS, &lanes),
        uniforms: params,
        reads: &[x],
        writes: &[y.binding()],
        workgroups,
        cost: cost(read + y.len() as u64, 2 * read),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, on_shapes, random, read, stream};

    #[test]
    fn columns_of_odd_shapes_are_summed() {
        on_shapes(
            [1usize..200, 1usize..90, 0usize..5],
            |stream, [rows, columns, rest]| {
                let stride = columns + rest;
                let (x, x_gpu) = random(stream, &[rows, stride], 1);
                let size = [rows, stride, columns];
                let y = column_sums(stream, x_gpu.binding(), size, &[1, columns]).unwrap();
                assert_eq!(y.dims(), [1, columns]);
                let sum = |c: usize| {
                    x.iter()
                        .skip(c)
                        .step_by(stride)
                        .map(|&v| f64::from(v))
                        .sum()
                };
                let expected: Vec<f64> = (0..columns).map(sum).collect();
                assert_close(&read(stream, &y), &expected, 1e-5);
            },
        );
    }

    #[test]
    fn sums_cross_every_block() {
        let Some(mut stream) = stream() else { return };
        for count in [1, 7, 64, 511, 513, 4096, 4097, 300_001] {
            let (x, x_gpu) = random(&mut stream, &[count], 3);
            let y = sum_of_squares(&mut stream, &x_gpu).unwrap();
            let expected: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
            assert_close(&read(&mut stream, &y), &[expected], 1e-6);
            let size = [count, 1, 1];
            let y = column_sums(&mut stream, x_gpu.binding(), size, &[1]).unwrap();
            let expected: f64 = x.iter().map(|&v| f64::from(v)).sum();
            assert_close(&read(&mut stream, &y), &[expected], 1e-4);
        }
    }
}
