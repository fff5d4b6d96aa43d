//! Sums over the columns of a matrix, accumulated in float64 in row order.

use vit_msn_tensor::{Result, try_vec};

use crate::runtime::parallel::{DisjointSliceMut, for_each_task, threads_for};

/// Columns per task: two cache lines of a row.
const COLUMNS: usize = 32;

/// The sums of the columns of `x`.
///
/// # Errors
/// OUT_OF_MEMORY.
pub(crate) fn column_sums(x: &[f32], columns: usize) -> Result<Vec<f64>> {
    column_sums_of(x.len() / columns, columns, &|index, _, sums| {
        for (sum, &x) in sums.iter_mut().zip(&x[index..]) {
            *sum += f64::from(x);
        }
    })
}

/// For each row and range of columns, calls `add(index of the first element, its column, the sums so far)`.
///
/// # Errors
/// OUT_OF_MEMORY.
pub(crate) fn column_sums_of(
    rows: usize,
    columns: usize,
    add: &(dyn Fn(usize, usize, &mut [f64]) + Sync),
) -> Result<Vec<f64>> {
    let mut sums = try_vec(columns)?;
    let parts = DisjointSliceMut::new(&mut sums);
    let threads = threads_for(rows.saturating_mul(columns).saturating_mul(4));
    for_each_task(threads, columns.div_ceil(COLUMNS), &|task| {
        let first = task.index * COLUMNS;
        let count = COLUMNS.min(columns - first);
        // SAFETY: each task has its own columns.
        let sums = unsafe { parts.get(first, count) };
        for row in 0..rows {
            add(row * columns + first, first, sums);
        }
    });
    Ok(sums)
}
