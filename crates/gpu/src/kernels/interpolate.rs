//! Position embeddings for other image sizes.

use bytemuck::NoUninit;
use vit_msn_tensor::{Error, Result, bicubic_taps, numel};

use super::{LINE, cost, fold_rows};
use crate::buffers::GpuTensor;
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

const INTERPOLATE: Kernel = Kernel {
    name: "interpolate_positions",
    sources: &[include_str!("interpolate.wgsl")],
    entry_point: "main",
};

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    width: u32,
    columns: u32,
    new_rows: u32,
    new_columns: u32,
}

/// The four samples that one is interpolated from.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Taps {
    places: [u32; 4],
    weights: [f32; 4],
}

/// Interpolates positions `[1 + rows·columns, width]` to `[1, 1 + new_rows·new_columns, width]`: bicubic with
/// unaligned corners and clamped edges, like `torch.nn.functional.interpolate(mode="bicubic", size=…)`. The CLS
/// token's position is copied. Grids are (rows, columns).
///
/// # Errors
/// INVALID_ARGUMENT if a grid is empty or a length doesn't match, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn interpolate_positions(
    stream: &mut Stream,
    positions: &GpuTensor,
    grid: (usize, usize),
    new_grid: (usize, usize),
) -> Result<GpuTensor> {
    let (_, width) = positions.rows();
    let [cells, new_cells] = [numel(&[grid.0, grid.1])?, numel(&[new_grid.0, new_grid.1])?];
    if cells == 0 || new_cells == 0 {
        return Err(Error::InvalidArgument(format!(
            "Positions can't be interpolated from a grid of {}×{} to one of {}×{} at width {width}.",
            grid.0, grid.1, new_grid.0, new_grid.1
        )));
    }
    positions.expect("The position embeddings", &[cells.saturating_add(1), width])?;
    // Allocate the largest tensor first, so that a size that exceeds the device fails before its tables are built.
    let y = stream.uninit(&[1, new_cells.saturating_add(1), width])?;
    let taps: Vec<Taps> = (0..new_grid.0)
        .map(|row| taps(row, grid.0, new_grid.0))
        .chain((0..new_grid.1).map(|column| taps(column, grid.1, new_grid.1)))
        .collect();
    let table = stream.upload_table(&taps, "The interpolation weights")?;
    let [height, depth, _] = fold_rows(1 + new_cells);
    stream.record(Op {
        kernel: INTERPOLATE,
        constants: (&[], &[]),
        uniforms: Params {
            width: width as u32,
            columns: grid.1 as u32,
            new_rows: new_grid.0 as u32,
            new_columns: new_grid.1 as u32,
        },
        reads: &[positions.binding(), table.binding()],
        writes: &[y.binding()],
        workgroups: [width.div_ceil(LINE), height, depth],
        cost: cost(17 * y.len() as u64, 48 * y.len() as u64),
    })?;
    Ok(y)
}

fn taps(index: usize, len: usize, new_len: usize) -> Taps {
    let taps = bicubic_taps(index, len, new_len);
    Taps {
        places: taps.map(|(place, _)| place as u32),
        weights: taps.map(|(_, weight)| weight),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream};
    use vit_msn_tensor::testing::interpolate;

    #[test]
    fn odd_shapes_match_the_definition() {
        let shapes = ([1usize..9, 1usize..9], [1usize..14, 1usize..14], 1usize..70);
        on_shapes(
            shapes,
            |stream, ([rows, columns], [new_rows, new_columns], width)| {
                let (positions, positions_gpu) = random(stream, &[1, 1 + rows * columns, width], 1);
                let (grid, new) = ((rows, columns), (new_rows, new_columns));
                let y = interpolate_positions(stream, &positions_gpu, grid, new).unwrap();
                assert_eq!(y.dims(), [1, 1 + new_rows * new_columns, width]);
                let y = read(stream, &y);
                assert_eq!(y[..width], positions[..width]);
                assert_close(
                    &y[width..],
                    &interpolate(&positions[width..], grid, new, width),
                    1e-5,
                );
            },
        );
    }

    #[test]
    fn the_same_grid_is_exact() {
        let Some(mut stream) = stream() else { return };
        let (positions, positions_gpu) = random(&mut stream, &[13, 3], 1);
        let y = interpolate_positions(&mut stream, &positions_gpu, (3, 4), (3, 4)).unwrap();
        assert_eq!(read(&mut stream, &y), positions);
    }

    #[test]
    fn wrong_sizes_are_errors() {
        let Some(mut stream) = stream() else { return };
        let (_, positions) = random(&mut stream, &[5, 3], 1);
        for (grid, new) in [
            ((0, 2), (1, 1)),
            ((2, 2), (0, 1)),
            ((2, 3), (1, 1)),
            ((usize::MAX, 2), (1, 1)),
        ] {
            let result = interpolate_positions(&mut stream, &positions, grid, new);
            assert_eq!(code(result), "INVALID_ARGUMENT");
        }
        let result = interpolate_positions(&mut stream, &positions, (2, 2), (1 << 20, 1 << 20));
        assert_eq!(code(result), "UNSUPPORTED");
    }
}
