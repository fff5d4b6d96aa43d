//! The patch embedding: a convolution whose stride is its kernel, so each patch is one row of a GEMM.

use vit_msn_tensor::{Error, Result, check_len, numel, try_vec};

use crate::activation::Activation;
use crate::gemm::linear;
use crate::pack::PackedLinear;

/// Patches that are laid out at a time.
const PATCH_BLOCK: usize = 256;

/// The sizes of pictures `[batch, channels, height, width]` and of the patches they are cut into.
#[derive(Debug, Clone, Copy)]
pub struct PatchShape {
    /// B
    pub batch: usize,
    /// C
    pub channels: usize,
    /// H, in pixels.
    pub height: usize,
    /// W, in pixels.
    pub width: usize,
    /// The patch's height, in pixels.
    pub patch_height: usize,
    /// The patch's width, in pixels.
    pub patch_width: usize,
}

impl PatchShape {
    /// Rows and columns of the grid of patches; pixels beyond the last whole patch are left out, as by a
    /// convolution. Errors: INVALID_ARGUMENT when no patch fits.
    pub fn grid(&self) -> Result<(usize, usize)> {
        let rows = self.height.checked_div(self.patch_height).unwrap_or(0);
        let columns = self.width.checked_div(self.patch_width).unwrap_or(0);
        if rows == 0 || columns == 0 {
            return Err(Error::InvalidArgument(format!(
                "A picture of {}×{} pixels holds no patch of {}×{}.",
                self.height, self.width, self.patch_height, self.patch_width
            )));
        }
        Ok((rows, columns))
    }
}

/// Pixels `[B, C, H, W]` to patch embeddings `[B, rows · columns, out_features]`, with the projection's weight
/// `[out_features, C, patch_height, patch_width]` packed as a linear layer's.
/// Errors: INVALID_ARGUMENT when sizes don't fit, OUT_OF_MEMORY.
pub fn patch_embed(
    pixels: &[f32],
    shape: PatchShape,
    w: &PackedLinear,
    out: &mut [f32],
) -> Result<()> {
    let (rows, columns) = shape.grid()?;
    let depth = numel(&[shape.channels, shape.patch_height, shape.patch_width])?;
    if depth != w.in_features() {
        return Err(Error::InvalidArgument(format!(
            "Patches of {}×{}×{} have {depth} values, but the projection takes {}.",
            shape.channels,
            shape.patch_height,
            shape.patch_width,
            w.in_features()
        )));
    }
    check_len(
        "The picture",
        pixels.len(),
        &[shape.batch, shape.channels, shape.height, shape.width],
    )?;
    check_len(
        "The patch embedding",
        out.len(),
        &[shape.batch, rows, columns, w.out_features()],
    )?;
    let patches = numel(&[shape.batch, rows, columns])?;
    let mut scratch = try_vec(numel(&[PATCH_BLOCK.min(patches), depth])?)?;
    for (block, target) in out
        .chunks_mut(PATCH_BLOCK.saturating_mul(w.out_features()))
        .enumerate()
    {
        let lines = &mut scratch[..target.len() / w.out_features() * depth];
        for (offset, line) in lines.chunks_exact_mut(depth).enumerate() {
            let patch = block * PATCH_BLOCK + offset;
            let (sample, cell) = (patch / (rows * columns), patch % (rows * columns));
            copy_patch(pixels, shape, sample, cell / columns, cell % columns, line);
        }
        linear(lines, w, Activation::Identity, None, target)?;
    }
    Ok(())
}

/// Copies one patch, channel after channel and line after line, as the projection's weight is laid out.
fn copy_patch(
    pixels: &[f32],
    shape: PatchShape,
    sample: usize,
    row: usize,
    column: usize,
    out: &mut [f32],
) {
    for (index, line) in out.chunks_exact_mut(shape.patch_width).enumerate() {
        let (channel, y) = (index / shape.patch_height, index % shape.patch_height);
        let plane = sample * shape.channels + channel;
        let first = (plane * shape.height + row * shape.patch_height + y) * shape.width
            + column * shape.patch_width;
        line.copy_from_slice(&pixels[first..first + shape.patch_width]);
    }
}
