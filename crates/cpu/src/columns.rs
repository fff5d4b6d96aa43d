//! Sums down the columns of a matrix.

use std::array::from_fn;

use vit_msn_tensor::{Result, try_vec};

use crate::parallel::{Parts, for_each_task, threads_for};

/// Columns of a task: two cache lines of a row.
const COLUMNS: usize = 32;

/// For each column the sums, over the rows in their order and in float64, of what `terms` says of an element's index and
/// column. Errors: OUT_OF_MEMORY.
pub(crate) fn column_sums<const N: usize>(
    rows: usize,
    columns: usize,
    terms: &(impl Fn(usize, usize) -> [f64; N] + Sync),
) -> Result<[Vec<f64>; N]> {
    let mut out = [const { Vec::new() }; N];
    for sums in &mut out {
        *sums = try_vec(columns)?;
    }
    let parts = out.each_mut().map(|sums| Parts::new(sums));
    let threads = threads_for(rows.saturating_mul(columns).saturating_mul(4));
    for_each_task(threads, columns.div_ceil(COLUMNS), &|task| {
        let first = task.index * COLUMNS;
        let count = COLUMNS.min(columns - first);
        // SAFETY: each task has its own columns.
        let mut sums: [&mut [f64]; N] = from_fn(|n| unsafe { parts[n].get(first, count) });
        for row in 0..rows {
            for place in 0..count {
                let column = first + place;
                let terms = terms(row * columns + column, column);
                for (sums, term) in sums.iter_mut().zip(terms) {
                    sums[place] += term;
                }
            }
        }
    });
    Ok(out)
}
