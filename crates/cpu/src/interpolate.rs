//! Position embeddings for images of a different size.

use vit_msn_tensor::{Error, Result, bicubic_taps, check_len, numel};

/// Interpolates positions `[1 + rows·columns, width]` to out `[1 + new_rows·new_columns, width]`. Bicubic with
/// unaligned corners and replicated edges, like `torch.nn.functional.interpolate(mode="bicubic", size=…)`; the
/// CLS token's position is copied. Grids are (rows, columns).
///
/// # Errors
/// INVALID_ARGUMENT when a grid is empty or a length doesn't match.
pub fn interpolate_positions(
    positions: &[f32],
    grid: (usize, usize),
    new_grid: (usize, usize),
    width: usize,
    out: &mut [f32],
) -> Result<()> {
    check(positions, grid, new_grid, width, out)?;
    let (cls, source) = positions.split_at(width);
    let (out_cls, out_cells) = out.split_at_mut(width);
    out_cls.copy_from_slice(cls);
    for (cell, target) in out_cells.chunks_exact_mut(width).enumerate() {
        target.fill(0.0);
        for_each_tap(cell, grid, new_grid, |source_cell, weight| {
            let values = &source[source_cell * width..][..width];
            for (target, value) in target.iter_mut().zip(values) {
                *target += weight * value;
            }
        });
    }
    Ok(())
}

/// The gradient of [`interpolate_positions`], which is its transpose: grad `[1 + new_rows·new_columns, width]`
/// to out `[1 + rows·columns, width]`.
///
/// # Errors
/// Same as [`interpolate_positions`].
pub fn interpolate_positions_backward(
    grad: &[f32],
    grid: (usize, usize),
    new_grid: (usize, usize),
    width: usize,
    out: &mut [f32],
) -> Result<()> {
    check(out, grid, new_grid, width, grad)?;
    let (cls, cells) = grad.split_at(width);
    let (out_cls, out_cells) = out.split_at_mut(width);
    out_cls.copy_from_slice(cls);
    out_cells.fill(0.0);
    for (cell, grad) in cells.chunks_exact(width).enumerate() {
        for_each_tap(cell, grid, new_grid, |source, weight| {
            let target = &mut out_cells[source * width..][..width];
            for (target, value) in target.iter_mut().zip(grad) {
                *target += weight * value;
            }
        });
    }
    Ok(())
}

/// Checks that both grids have cells and that the lengths match them; INVALID_ARGUMENT otherwise.
fn check(
    positions: &[f32],
    grid: (usize, usize),
    new_grid: (usize, usize),
    width: usize,
    interpolated: &[f32],
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
        interpolated.len(),
        &[new_cells.saturating_add(1), width],
    )
}

/// Calls `visit` with each of the sixteen cells of `grid` that contribute to a cell of `new_grid`, and its
/// weight.
fn for_each_tap(
    cell: usize,
    grid: (usize, usize),
    new_grid: (usize, usize),
    mut visit: impl FnMut(usize, f32),
) {
    let vertical = bicubic_taps(cell / new_grid.1, grid.0, new_grid.0);
    let horizontal = bicubic_taps(cell % new_grid.1, grid.1, new_grid.1);
    for (row, row_weight) in vertical {
        for (column, column_weight) in horizontal {
            visit(row * grid.1 + column, row_weight * column_weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, values};
    use proptest::prelude::*;
    use vit_msn_tensor::testing::interpolate;

    proptest! {
        #[test]
        fn positions_match_the_definition(grid in (1usize..9, 1usize..9), new in (1usize..14, 1usize..14), width in 1usize..6) {
            let positions = values((1 + grid.0 * grid.1) * width, 41);
            let mut out = vec![f32::NAN; (1 + new.0 * new.1) * width];
            interpolate_positions(&positions, grid, new, width, &mut out).unwrap();
            prop_assert_eq!(&out[..width], &positions[..width]);
            assert_close(&out[width..], &interpolate(&positions[width..], grid, new, width), 1e-5);
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

    proptest! {
        #[test]
        fn the_gradient_is_the_transpose(grid in (1usize..7, 1usize..7), new in (1usize..9, 1usize..9), width in 1usize..4) {
            let (cells, new_cells) = (1 + grid.0 * grid.1, 1 + new.0 * new.1);
            let (positions, grad) = (values(cells * width, 43), values(new_cells * width, 44));
            let (mut forward, mut backward) = (vec![f32::NAN; new_cells * width], vec![f32::NAN; cells * width]);
            interpolate_positions(&positions, grid, new, width, &mut forward).unwrap();
            interpolate_positions_backward(&grad, grid, new, width, &mut backward).unwrap();
            // ⟨grad, A·x⟩ = ⟨Aᵀ·grad, x⟩
            let dot = |x: &[f32], y: &[f32]| -> f64 { x.iter().zip(y).map(|(x, y)| f64::from(x * y)).sum() };
            prop_assert!((dot(&grad, &forward) - dot(&backward, &positions)).abs() < 1e-4);
        }
    }

    #[test]
    fn wrong_sizes_of_gradients_are_errors() {
        for (len, out) in [(5, 15), (6, 14)] {
            let error = interpolate_positions_backward(
                &vec![0.0; len],
                (2, 2),
                (1, 1),
                3,
                &mut vec![0.0; out],
            );
            assert_eq!(error.unwrap_err().code(), "INVALID_ARGUMENT");
        }
    }
}
