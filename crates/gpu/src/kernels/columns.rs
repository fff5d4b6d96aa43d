//! Copies columns between tensors with the same number of rows.

use bytemuck::NoUninit;
use vit_msn_tensor::Result;

use super::{LINE, WIDEST, cost, fold_rows};
use crate::buffers::{GpuTensor, row_windows};
use crate::pipelines::{Constants, Kernel};
use crate::stream::{Op, Stream};

const COLUMNS: Kernel = Kernel {
    name: "copy_columns",
    sources: &[include_str!("columns.wgsl")],
    entry_point: "main",
};
const CONSTANTS: Constants = &["LINE", "WIDEST"];

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    rows: u32,
    columns: u32,
    from_width: u32,
    from_first: u32,
    to_width: u32,
    to_first: u32,
}

/// Copies `columns` adjacent columns of x into y, each starting at its own first column. Both have the same number of
/// rows, in parts of any size.
///
/// # Errors
/// UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub(super) fn copy_columns(
    stream: &mut Stream,
    (x, from_first): (&GpuTensor, usize),
    (y, to_first): (&GpuTensor, usize),
    columns: usize,
) -> Result<()> {
    for window in row_windows(&[x, y]) {
        let [rows, folds, _] = fold_rows(window.len());
        stream.record(Op {
            kernel: COLUMNS,
            constants: (CONSTANTS, &[LINE as u32, WIDEST as u32]),
            uniforms: Params {
                rows: window.len() as u32,
                columns: columns as u32,
                from_width: x.rows().1 as u32,
                from_first: from_first as u32,
                to_width: y.rows().1 as u32,
                to_first: to_first as u32,
            },
            reads: &[x.window(&window)],
            writes: &[y.window(&window)],
            workgroups: [columns.div_ceil(LINE), rows, folds],
            cost: cost(2 * (window.len() * columns) as u64, 0),
        })?;
    }
    Ok(())
}
