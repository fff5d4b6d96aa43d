//! The gradients of the ops that move tokens. Each result gathers what a scatter would add to it: the host lists the
//! contributions to every target, so that there are no atomics and sums have a fixed order.

use bytemuck::NoUninit;
use vit_msn_tensor::{Error, Pooling, Result, bicubic_taps, check_len, numel};

use super::sums::column_sums;
use super::{LINE, cost, fold_rows};
use crate::buffers::{Binding, GpuTensor};
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    tokens: u32,
    width: u32,
    taken: u32,
    columns: u32,
    new_columns: u32,
}

/// One contribution to a target.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Entry {
    place: u32,
    weight: f32,
}

/// The entries of all targets in sequence, and the start and end of each target's entries.
#[derive(Default)]
struct Table {
    spans: Vec<[u32; 2]>,
    entries: Vec<Entry>,
}

impl Table {
    /// Appends `targets` targets; `pairs` holds target indices with their entries.
    fn add(&mut self, targets: usize, pairs: &[(u32, Entry)]) {
        let base = self.spans.len();
        let mut next = self.entries.len() as u32;
        let mut counts = vec![0; targets];
        for (target, _) in pairs {
            counts[*target as usize] += 1;
        }
        for count in counts {
            self.spans.push([next, next]);
            next += count;
        }
        let empty = Entry {
            place: 0,
            weight: 0.0,
        };
        self.entries.resize(next as usize, empty);
        for &(target, entry) in pairs {
            let end = &mut self.spans[base + target as usize][1];
            self.entries[*end as usize] = entry;
            *end += 1;
        }
    }
}

/// The gradients of [`crate::embed_tokens`].
pub struct EmbeddingGradients {
    /// `[batch, patches, width]`, zero for masked patches.
    pub patches: GpuTensor,
    /// `[1, 1, width]`
    pub cls: GpuTensor,
    /// `[1, 1 + patches, width]`
    pub positions: GpuTensor,
    /// `[1, 1, width]`, if there was a mask.
    pub mask_token: Option<GpuTensor>,
}

/// The gradients of [`crate::embed_tokens`], given grad `[batch, 1 + patches, width]`. Those of masked patches are
/// added to the mask token's. `masked` is `[batch, patches]`; any non-zero value masks.
///
/// # Errors
/// INVALID_ARGUMENT if shapes don't match or there is no patch, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn embed_tokens_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    masked: Option<&GpuTensor>,
) -> Result<EmbeddingGradients> {
    let names = ["batch", "tokens", "width"];
    let [batch, tokens, width] = grad.shape("The gradient of the tokens", names)?;
    let count = tokens - 1;
    if let Some(masked) = masked {
        masked.expect("bool_masked_pos", &[batch, count])?;
    }
    let patches = stream.uninit(&[batch, count, width])?;
    let mode = u32::from(masked.is_some());
    embed(stream, grad, masked, mode, &patches)?;
    let mask_token = masked
        .map(|masked| {
            let covered = stream.uninit(&[batch, count, width])?;
            embed(stream, grad, Some(masked), 2, &covered)?;
            let size = [batch * count, width, width];
            column_sums(stream, covered.binding(), size, &[1, 1, width])
        })
        .transpose()?;
    let all = tokens * width;
    Ok(EmbeddingGradients {
        patches,
        cls: column_sums(stream, grad.binding(), [batch, all, width], &[1, 1, width])?,
        positions: column_sums(
            stream,
            grad.binding(),
            [batch, all, all],
            &[1, tokens, width],
        )?,
        mask_token,
    })
}

fn embed(
    stream: &mut Stream,
    grad: &GpuTensor,
    masked: Option<&GpuTensor>,
    mode: u32,
    y: &GpuTensor,
) -> Result<()> {
    let dims = grad.dims();
    let params = params_of(dims[1], dims[2]);
    let reads = [grad.binding(), masked.unwrap_or(grad).binding()];
    let workgroups = [dims[2].div_ceil(LINE), dims[1] - 1, dims[0]];
    record(stream, "embed", mode, params, &reads, y, workgroups)
}

/// The gradient of [`crate::take_tokens`]: grad `[batch, 1 + visible, width]` to `[batch, tokens, width]`. Tokens
/// that weren't taken get zero; a token that was taken twice gets the sum.
///
/// # Errors
/// As [`crate::take_tokens`].
pub fn take_tokens_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    patches: &[u32],
    visible: usize,
    tokens: usize,
) -> Result<GpuTensor> {
    let what = "The gradient of the tokens";
    let [batch, _, width] = grad.shape(what, ["batch", "tokens", "width"])?;
    if visible == 0 || tokens == 0 {
        return Err(Error::InvalidArgument(format!(
            "{visible} patches can't be taken from tokens of the shape [{batch}, {tokens}, {width}]: each size must be at least 1."
        )));
    }
    grad.expect(what, &[batch, visible.saturating_add(1), width])?;
    check_len("The chosen patches", patches.len(), &[batch, visible])?;
    if let Some(patch) = patches.iter().find(|&&patch| patch as usize >= tokens - 1) {
        return Err(Error::InvalidArgument(format!(
            "There is no patch {patch}: the number of patches is {}.",
            tokens - 1
        )));
    }
    // Allocate the largest tensor first, so that a size that exceeds the device fails before its tables are built.
    let y = stream.uninit(&[batch, tokens, width])?;
    let mut table = Table::default();
    for patches in patches.chunks_exact(visible) {
        let taken = std::iter::once(0).chain(patches.iter().map(|&patch| 1 + patch));
        let pairs: Vec<_> = (0..)
            .zip(taken)
            .map(|(place, token)| (token, whole(place)))
            .collect();
        table.add(tokens, &pairs);
    }
    let params = Params {
        taken: 1 + visible as u32,
        ..params_of(tokens, width)
    };
    let workgroups = [width.div_ceil(LINE), tokens, batch];
    gather(stream, "take", params, grad, &table, &y, workgroups)?;
    Ok(y)
}

fn whole(place: u32) -> Entry {
    Entry { place, weight: 1.0 }
}

/// The gradient of [`crate::pool`]: grad `[batch, width]` to `[batch, tokens, width]`.
///
/// # Errors
/// INVALID_ARGUMENT for another rank or the mean of zero patches, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn pool_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    pooling: Pooling,
    tokens: usize,
) -> Result<GpuTensor> {
    let [batch, width] = grad.shape("The gradient of pooling", ["batch", "width"])?;
    let needed = 1 + usize::from(pooling == Pooling::Mean);
    if tokens < needed {
        return Err(Error::InvalidArgument(format!(
            "Pooling needs at least {needed} tokens of at least one channel, but got [{batch}, {tokens}, {width}]."
        )));
    }
    let y = stream.uninit(&[batch, tokens, width])?;
    let params = params_of(tokens, width);
    let workgroups = [width.div_ceil(LINE), tokens, batch];
    let reads = [grad.binding()];
    record(
        stream,
        "pool",
        pooling as u32,
        params,
        &reads,
        &y,
        workgroups,
    )?;
    Ok(y)
}

/// The gradient of [`crate::interpolate_positions`], its transpose: grad `[1 + new_rows·new_columns, width]` to `[1,
/// 1 + rows·columns, width]`.
///
/// # Errors
/// As [`crate::interpolate_positions`].
pub fn interpolate_positions_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    grid: (usize, usize),
    new_grid: (usize, usize),
) -> Result<GpuTensor> {
    let (_, width) = grad.rows();
    let [cells, new_cells] = [numel(&[grid.0, grid.1])?, numel(&[new_grid.0, new_grid.1])?];
    if cells == 0 || new_cells == 0 {
        return Err(Error::InvalidArgument(format!(
            "Positions can't be interpolated from a grid of {}×{} to one of {}×{} at width {width}.",
            grid.0, grid.1, new_grid.0, new_grid.1
        )));
    }
    let new_tokens = new_cells.saturating_add(1);
    grad.expect("The interpolated positions", &[new_tokens, width])?;
    let tokens = cells.saturating_add(1);
    let y = stream.uninit(&[1, tokens, width])?;
    let mut table = Table::default();
    for (len, new_len) in [(grid.0, new_grid.0), (grid.1, new_grid.1)] {
        table.add(len, &transposed_taps(len, new_len));
    }
    let params = Params {
        taken: grid.0 as u32,
        columns: grid.1 as u32,
        new_columns: new_grid.1 as u32,
        ..params_of(tokens, width)
    };
    let [height, depth, _] = fold_rows(tokens);
    let workgroups = [width.div_ceil(LINE), height, depth];
    gather(stream, "interpolate", params, grad, &table, &y, workgroups)?;
    Ok(y)
}

/// The samples of the old axis that each sample of the new one was interpolated from, and their weights.
fn transposed_taps(len: usize, new_len: usize) -> Vec<(u32, Entry)> {
    let taps_of = |index: usize| {
        bicubic_taps(index, len, new_len).map(|(source, weight)| {
            let entry = Entry {
                place: index as u32,
                weight,
            };
            (source as u32, entry)
        })
    };
    (0..new_len).flat_map(taps_of).collect()
}

fn params_of(tokens: usize, width: usize) -> Params {
    Params {
        tokens: tokens as u32,
        width: width as u32,
        taken: 0,
        columns: 0,
        new_columns: 0,
    }
}

fn gather(
    stream: &mut Stream,
    entry_point: &'static str,
    params: Params,
    grad: &GpuTensor,
    table: &Table,
    y: &GpuTensor,
    workgroups: [usize; 3],
) -> Result<()> {
    let spans = stream.upload_table(&table.spans, "The table of gradient positions")?;
    let entries = stream.upload_table(&table.entries, "The table of gradient weights")?;
    let reads = [grad.binding(), spans.binding(), entries.binding()];
    record(stream, entry_point, 0, params, &reads, y, workgroups)
}

fn record(
    stream: &mut Stream,
    entry_point: &'static str,
    mode: u32,
    params: Params,
    reads: &[Binding],
    y: &GpuTensor,
    workgroups: [usize; 3],
) -> Result<()> {
    stream.record(Op {
        kernel: Kernel {
            name: "tokens_backward",
            sources: &[include_str!("tokens_backward.wgsl")],
            entry_point,
        },
        constants: (&["MODE"], &[mode]),
        uniforms: params,
        reads,
        writes: &[y.binding()],
        workgroups,
        cost: cost(2 * y.len() as u64, 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream};
    use crate::{interpolate_positions, pool, take_tokens};

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&v| v.into()).collect()
    }

    #[test]
    fn what_is_masked_goes_to_the_mask_token() {
        let shapes = [1usize..4, 1usize..80, 1usize..90];
        on_shapes(shapes, |stream, [batch, count, width]| {
            let tokens = 1 + count;
            let (grad, grad_gpu) = random(stream, &[batch, tokens, width], 1);
            let masked: Vec<f32> = (0..batch * count).map(|i| f32::from(i % 3 == 1)).collect();
            let masked_gpu = stream.upload(&masked, &[batch, count]).unwrap();
            let mut patches = vec![0.0; batch * count * width];
            let (mut positions, mut token) = (vec![0.0; tokens * width], vec![0.0; width]);
            for (row, grad) in grad.chunks(width).enumerate() {
                let (sample, place) = (row / tokens, row % tokens);
                for (i, &g) in grad.iter().enumerate() {
                    positions[place * width + i] += f64::from(g);
                    if place > 0 {
                        let patch = sample * count + place - 1;
                        if masked[patch] == 0.0 {
                            patches[patch * width + i] = f64::from(g);
                        } else {
                            token[i] += f64::from(g);
                        }
                    }
                }
            }
            let out = embed_tokens_backward(stream, &grad_gpu, Some(&masked_gpu)).unwrap();
            assert_eq!(out.positions.dims(), [1, tokens, width]);
            assert_close(&read(stream, &out.patches), &patches, 0.0);
            assert_close(&read(stream, &out.positions), &positions, 1e-6);
            assert_close(&read(stream, &out.cls), &positions[..width], 1e-6);
            let by_token = out.mask_token.unwrap();
            assert_eq!(by_token.dims(), [1, 1, width]);
            assert_close(&read(stream, &by_token), &token, 1e-5);
            let out = embed_tokens_backward(stream, &grad_gpu, None).unwrap();
            assert!(out.mask_token.is_none());
            let unmasked: Vec<f64> = grad
                .chunks(tokens * width)
                .flat_map(|sample| wide(&sample[width..]))
                .collect();
            assert_close(&read(stream, &out.patches), &unmasked, 0.0);
        });
    }

    /// `<grad, op(x)> = <op_backward(grad), x>` for a linear op.
    fn check_transpose(stream: &mut Stream, [grad, y, back, x]: [&GpuTensor; 4]) {
        let mut dot = |a: &GpuTensor, b: &GpuTensor| -> f64 {
            let (a, b) = (wide(&read(stream, a)), wide(&read(stream, b)));
            a.iter().zip(&b).map(|(a, b)| a * b).sum()
        };
        let (forward, backward) = (dot(grad, y), dot(back, x));
        let size = (1.0 + x.len() as f64).sqrt();
        assert!(
            (forward - backward).abs() < 1e-5 * size,
            "{forward}, {backward}"
        );
    }

    #[test]
    fn gradients_are_the_transposes_of_the_ops() {
        let shapes = ([1usize..4, 2usize..20, 1usize..20], 1usize..150);
        on_shapes(shapes, |stream, ([batch, tokens, visible], width)| {
            let (_, x) = random(stream, &[batch, tokens, width], 1);
            let patches: Vec<u32> = (0..batch * visible)
                .map(|i| (i * 7 % (tokens - 1)) as u32)
                .collect();
            let (_, grad) = random(stream, &[batch, 1 + visible, width], 2);
            let y = take_tokens(stream, &x, &patches, visible).unwrap();
            let back = take_tokens_backward(stream, &grad, &patches, visible, tokens).unwrap();
            assert_eq!(back.dims(), x.dims());
            check_transpose(stream, [&grad, &y, &back, &x]);
            let (_, grad) = random(stream, &[batch, width], 3);
            for pooling in [Pooling::Cls, Pooling::Mean] {
                let y = pool(stream, &x, pooling).unwrap();
                let back = pool_backward(stream, &grad, pooling, tokens).unwrap();
                assert_eq!(back.dims(), x.dims());
                check_transpose(stream, [&grad, &y, &back, &x]);
            }
        });
    }

    #[test]
    fn interpolation_goes_back_by_its_transpose() {
        let shapes = ([1usize..9, 1usize..9], [1usize..14, 1usize..14], 1usize..70);
        on_shapes(shapes, |stream, (from, to, width)| {
            let (grid, new) = (from.into(), to.into());
            let (_, x) = random(stream, &[1, 1 + from[0] * from[1], width], 1);
            let (_, grad) = random(stream, &[1, 1 + to[0] * to[1], width], 2);
            let y = interpolate_positions(stream, &x, grid, new).unwrap();
            let back = interpolate_positions_backward(stream, &grad, grid, new).unwrap();
            assert_eq!(back.dims(), x.dims());
            check_transpose(stream, [&grad, &y, &back, &x]);
        });
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let Some(mut stream) = stream() else { return };
        let (_, grad) = random(&mut stream, &[2, 3, 4], 1);
        let (_, flat) = random(&mut stream, &[2, 4], 1);
        let result = embed_tokens_backward(&mut stream, &flat, None);
        assert_eq!(code(result.map(|_| ())), "INVALID_ARGUMENT");
        let result = embed_tokens_backward(&mut stream, &grad, Some(&grad));
        assert_eq!(code(result.map(|_| ())), "INVALID_ARGUMENT");
        for (patches, visible, tokens) in [
            (&[0u32, 1, 2, 4][..], 2, 5),
            (&[0; 3], 2, 5),
            (&[], 0, 5),
            (&[0; 4], 2, 0),
            (&[0; 6], 3, 5),
        ] {
            let result = take_tokens_backward(&mut stream, &grad, patches, visible, tokens);
            assert_eq!(code(result), "INVALID_ARGUMENT");
        }
        let result = pool_backward(&mut stream, &flat, Pooling::Mean, 1);
        assert_eq!(code(result), "INVALID_ARGUMENT");
        for (grid, new) in [
            ((0, 2), (1, 1)),
            ((2, 2), (2, 3)),
            ((usize::MAX, 2), (1, 1)),
        ] {
            let result = interpolate_positions_backward(&mut stream, &grad, grid, new);
            assert_eq!(code(result), "INVALID_ARGUMENT");
        }
    }
}
