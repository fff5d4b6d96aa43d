//! Transposing blocks of matrices, four by four in registers, and packing their columns.

use crate::linear::microkernel::NR;
use crate::runtime::simd::{F32x4, LANES};

/// `target[column · target_stride + row] = source[row · source_stride + column]` for all `rows` and `columns`.
///
/// # Panics
/// If a slice is too short.
pub(crate) fn transpose(
    source: &[f32],
    source_stride: usize,
    rows: usize,
    columns: usize,
    target: &mut [f32],
    target_stride: usize,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(columns <= source_stride && rows <= target_stride);
    assert!(source.len() >= (rows - 1) * source_stride + columns);
    assert!(target.len() >= (columns - 1) * target_stride + rows);
    let (whole_rows, whole_columns) = (rows / LANES * LANES, columns / LANES * LANES);
    for row in (0..whole_rows).step_by(LANES) {
        for column in (0..whole_columns).step_by(LANES) {
            // SAFETY: the assertions ensure that row + 3 and column + 3 are inside both slices.
            unsafe {
                let source = source.as_ptr().add(row * source_stride + column);
                let target = target.as_mut_ptr().add(column * target_stride + row);
                transpose_4x4(source, source_stride, target, target_stride);
            }
        }
    }
    let mut copy = |row: usize, column: usize| {
        target[column * target_stride + row] = source[row * source_stride + column];
    };
    for row in 0..rows {
        let first = if row < whole_rows { whole_columns } else { 0 };
        (first..columns).for_each(|column| copy(row, column));
    }
}

/// Writes the first `width` values, at most NR, of rows `stride` apart into a panel with NR values per row; the
/// padding of a row isn't written.
///
/// # Panics
/// If a slice is too short.
pub(crate) fn pack_columns(source: &[f32], stride: usize, width: usize, panel: &mut [f32]) {
    let rows = panel.as_chunks_mut::<NR>().0.iter_mut();
    for (row, target) in rows.enumerate() {
        let source = &source[row * stride..];
        if width == NR {
            // The constant length compiles to a few loads and stores.
            target.copy_from_slice(&source[..NR]);
        } else {
            target[..width].copy_from_slice(&source[..width]);
        }
    }
}

/// # Safety
/// Four rows of four floats, a stride apart, must be readable at `source` and writable at `target`.
#[inline(always)]
unsafe fn transpose_4x4(
    source: *const f32,
    source_stride: usize,
    target: *mut f32,
    target_stride: usize,
) {
    // SAFETY: guaranteed by the caller; see `# Safety` above.
    unsafe {
        let rows = std::array::from_fn(|row| F32x4::load(source.add(row * source_stride)));
        for (column, lanes) in F32x4::transpose(rows).into_iter().enumerate() {
            lanes.store(target.add(column * target_stride));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::values;

    #[test]
    fn every_element_finds_its_place_and_no_other_is_touched() {
        for (rows, columns) in [(0, 3), (1, 1), (4, 4), (3, 5), (8, 12), (13, 7), (6, 17)] {
            let (source_stride, target_stride) = (columns + 2, rows + 3);
            let source = values(rows * source_stride, 1);
            let mut target = vec![9.0; columns * target_stride];
            transpose(
                &source,
                source_stride,
                rows,
                columns,
                &mut target,
                target_stride,
            );
            for (index, &value) in target.iter().enumerate() {
                let (column, row) = (index / target_stride, index % target_stride);
                let expected = if row < rows {
                    source[row * source_stride + column]
                } else {
                    9.0
                };
                assert_eq!(value, expected);
            }
        }
    }

    #[test]
    fn columns_are_packed_row_after_row() {
        let source = values(5 * 20, 2);
        for width in [1, NR - 1, NR] {
            let mut panel = vec![9.0; 5 * NR];
            pack_columns(&source[1..], 20, width, &mut panel);
            for (index, &value) in panel.iter().enumerate() {
                let (row, column) = (index / NR, index % NR);
                let expected = if column < width {
                    source[row * 20 + 1 + column]
                } else {
                    9.0
                };
                assert_eq!(value, expected);
            }
        }
    }
}
