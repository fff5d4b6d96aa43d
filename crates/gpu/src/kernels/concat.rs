//! Joining the rows of two matrices.

use bytemuck::NoUninit;
use vit_msn_tensor::{Error, Result};

use super::{LINE, cost, fold_rows};
use crate::buffers::{Binding, GpuTensor};
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    count: u32,
    first: u32,
}

/// The rows of x `[M, width]`, then those of y `[N, width]`.
///
/// # Errors
/// INVALID_ARGUMENT if the widths differ, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn concat_rows(stream: &mut Stream, x: &GpuTensor, y: &GpuTensor) -> Result<GpuTensor> {
    let [rows, width] = x.shape("The rows to join", ["rows", "width"])?;
    let [more, other_width] = y.shape("The rows to join", ["rows", "width"])?;
    if width != other_width {
        return Err(Error::InvalidArgument(format!(
            "Rows of {width} values and rows of {other_width} values can't be joined: they must have the same width."
        )));
    }
    let joined = stream.uninit(&[rows + more, width])?;
    let reads = [x.binding(), y.binding()];
    record(stream, "join", [joined.len(), x.len()], &reads, &joined)?;
    Ok(joined)
}

/// Splits grad after its first `rows` rows: the gradients of the two joined matrices.
///
/// # Errors
/// INVALID_ARGUMENT if there are too few rows, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn concat_rows_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    rows: usize,
) -> Result<[GpuTensor; 2]> {
    let [all, width] = grad.shape("The gradient of joined rows", ["rows", "width"])?;
    let rest = all.checked_sub(rows).ok_or_else(|| {
        Error::InvalidArgument(format!(
            "A gradient of {all} joined rows can't be split after {rows} rows."
        ))
    })?;
    let mut cut = |first: usize, rows: usize| {
        let part = stream.uninit(&[rows, width])?;
        record(stream, "cut", [part.len(), first], &[grad.binding()], &part)?;
        Ok(part)
    };
    Ok([cut(0, rows)?, cut(rows * width, rest)?])
}

fn record(
    stream: &mut Stream,
    entry_point: &'static str,
    [count, first]: [usize; 2],
    reads: &[Binding],
    y: &GpuTensor,
) -> Result<()> {
    stream.record(Op {
        kernel: Kernel {
            name: "concat",
            sources: &[include_str!("concat.wgsl")],
            entry_point,
        },
        constants: (&[], &[]),
        uniforms: Params {
            count: count as u32,
            first: first as u32,
        },
        reads,
        writes: &[y.binding()],
        workgroups: fold_rows(count.div_ceil(LINE)),
        cost: cost(2 * count as u64, 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{code, on_shapes, random, read, stream};

    #[test]
    fn rows_are_joined_and_cut_apart() {
        on_shapes(
            [1usize..30, 1usize..30, 1usize..20],
            |stream, [rows, more, width]| {
                let (x, x_gpu) = random(stream, &[rows, width], 1);
                let (y, y_gpu) = random(stream, &[more, width], 2);
                let joined = concat_rows(stream, &x_gpu, &y_gpu).unwrap();
                assert_eq!(joined.dims(), [rows + more, width]);
                assert_eq!(read(stream, &joined), [x.clone(), y.clone()].concat());
                let [first, rest] = concat_rows_backward(stream, &joined, rows).unwrap();
                assert_eq!((read(stream, &first), read(stream, &rest)), (x, y));
            },
        );
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let Some(mut stream) = stream() else { return };
        let (_, x) = random(&mut stream, &[2, 3], 1);
        let (_, y) = random(&mut stream, &[3, 2], 1);
        assert_eq!(code(concat_rows(&mut stream, &x, &y)), "INVALID_ARGUMENT");
        let result = concat_rows_backward(&mut stream, &x, 3);
        assert_eq!(code(result.map(|_| ())), "INVALID_ARGUMENT");
    }
}
