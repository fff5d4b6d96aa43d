//! Position embeddings for pictures of another size.

use vit_msn_tensor::{Error, Result, check_len, numel};

/// The cubic kernel's parameter, as in PyTorch and OpenCV (Keys, 1981, uses −0.5).
const A: f32 = -0.75;

/// Interpolates positions `[1 + rows·columns, width]` to out `[1 + new_rows·new_columns, width]`: bicubic with
/// corners unaligned and edges repeated, as `torch.nn.functional.interpolate(mode="bicubic", size=…)`; the CLS
/// token's position is copied. Grids are (rows, columns).
/// Errors: INVALID_ARGUMENT when a grid is empty or a length doesn't fit.
pub fn interpolate_positions(
    positions: &[f32],
    grid: (usize, usize),
    new_grid: (usize, usize),
    width: usize,
    out: &mut [f32],
) -> Result<()> {
    let [cells, new_cells] = [numel(&[grid.0, grid.1])?, numel(&[new_grid.0, new_grid.1])?];
    if cells == 0 || new_cells == 0 || width == 0 {
        return Err(Error::InvalidArgument(format!(
            "Positions can't be interpolated from a grid of {}×{} to one of {}×{} at width {width}.",
            grid.0, grid.1, new_grid.0, new_grid.1
        )));
    }
    check_len(
        "The position embeddings",
        positions.len(),
        &[cells.saturating_add(1), width],
    )?;
    check_len(
        "The interpolated positions",
        out.len(),
        &[new_cells.saturating_add(1), width],
    )?;
    let (cls, source) = positions.split_at(width);
    let (out_cls, out_cells) = out.split_at_mut(width);
    out_cls.copy_from_slice(cls);
    for (cell, target) in out_cells.chunks_exact_mut(width).enumerate() {
        let vertical = taps(cell / new_grid.1, grid.0, new_grid.0);
        let horizontal = taps(cell % new_grid.1, grid.1, new_grid.1);
        target.fill(0.0);
        for (row, row_weight) in vertical {
            for (column, column_weight) in horizontal {
                let weight = row_weight * column_weight;
                let values = &source[(row * grid.1 + column) * width..][..width];
                for (target, value) in target.iter_mut().zip(values) {
                    *target += weight * value;
                }
            }
        }
    }
    Ok(())
}

/// The four source indices and weights of output index `index` along one axis.
fn taps(index: usize, len: usize, new_len: usize) -> [(usize, f32); 4] {
    // float32, as PyTorch computes it: the same pictures get the same weights.
    let place = len as f32 / new_len as f32 * (index as f32 + 0.5) - 0.5;
    let first = place.floor();
    let t = place - first;
    let weights = [outer(t + 1.0), inner(t), inner(1.0 - t), outer(2.0 - t)];
    std::array::from_fn(|tap| {
        let wanted = first as i64 + tap as i64 - 1;
        (wanted.clamp(0, len as i64 - 1) as usize, weights[tap])
    })
}

/// The kernel within one sample of its centre.
fn inner(x: f32) -> f32 {
    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
}

/// The kernel between one and two samples from its centre.
fn outer(x: f32) -> f32 {
    ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
}
