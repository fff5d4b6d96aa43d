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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, values};
    use proptest::prelude::*;

    /// The kernel and the grid by their definition, in float64.
    fn naive(
        source: &[f32],
        (rows, columns): (usize, usize),
        (new_rows, new_columns): (usize, usize),
        width: usize,
    ) -> Vec<f64> {
        let kernel = |x: f64| match x.abs() {
            x if x <= 1.0 => 1.25 * x.powi(3) - 2.25 * x.powi(2) + 1.0,
            x if x < 2.0 => -0.75 * (x.powi(3) - 5.0 * x.powi(2) + 8.0 * x - 4.0),
            _ => 0.0,
        };
        let place = |index: usize, len: usize, new_len: usize| {
            (index as f64 + 0.5) * len as f64 / new_len as f64 - 0.5
        };
        let mut out = Vec::new();
        for (y, x) in (0..new_rows).flat_map(|y| (0..new_columns).map(move |x| (y, x))) {
            let (py, px) = (place(y, rows, new_rows), place(x, columns, new_columns));
            for channel in 0..width {
                let mut sum = 0.0;
                for (dy, dx) in (-1..=2).flat_map(|dy| (-1..=2).map(move |dx| (dy, dx))) {
                    let (sy, sx) = (py.floor() as i64 + dy, px.floor() as i64 + dx);
                    let weight = kernel(py - sy as f64) * kernel(px - sx as f64);
                    let (cy, cx) = (
                        sy.clamp(0, rows as i64 - 1),
                        sx.clamp(0, columns as i64 - 1),
                    );
                    sum += weight
                        * f64::from(
                            source[(cy as usize * columns + cx as usize) * width + channel],
                        );
                }
                out.push(sum);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn positions_match_the_definition(grid in (1usize..9, 1usize..9), new in (1usize..14, 1usize..14), width in 1usize..6) {
            let positions = values((1 + grid.0 * grid.1) * width, 41);
            let mut out = vec![f32::NAN; (1 + new.0 * new.1) * width];
            interpolate_positions(&positions, grid, new, width, &mut out).unwrap();
            prop_assert_eq!(&out[..width], &positions[..width]);
            assert_close(&out[width..], &naive(&positions[width..], grid, new, width), 1e-5);
        }
    }

    #[test]
    fn the_same_grid_is_exact() {
        let positions = values(13 * 3, 42);
        let mut out = vec![0.0; 13 * 3];
        interpolate_positions(&positions, (3, 4), (3, 4), 3, &mut out).unwrap();
        assert_eq!(out, positions);
    }

    #[test]
    fn wrong_sizes_are_errors() {
        let run = |grid, new, width, len: usize, out: usize| {
            interpolate_positions(&vec![0.0; len], grid, new, width, &mut vec![0.0; out])
        };
        run((2, 2), (1, 1), 3, 15, 6).unwrap();
        for (grid, new, width, len, out) in [
            ((0, 2), (1, 1), 3, 3, 6),
            ((2, 2), (0, 1), 3, 15, 3),
            ((2, 2), (1, 1), 0, 0, 0),
            ((2, 2), (1, 1), 3, 14, 6),
            ((2, 2), (1, 1), 3, 15, 7),
            ((usize::MAX, 2), (1, 1), 3, 15, 6),
        ] {
            assert_eq!(
                run(grid, new, width, len, out).unwrap_err().code(),
                "INVALID_ARGUMENT"
            );
        }
    }
}
