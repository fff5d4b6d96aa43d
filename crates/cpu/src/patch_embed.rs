//! The patch embedding: a convolution whose stride equals its kernel size, so each patch is one row of a GEMM.

use vit_msn_tensor::{Activation, Error, Result, check_len, numel, try_vec};

use crate::linear::backward::linear_backward_weights;
use crate::linear::linear;
use crate::linear::packed::PackedLinear;
use crate::runtime::parallel::for_each_block_of_rows;

/// Number of patches laid out at a time.
const PATCH_BLOCK: usize = 256;

/// The sizes of images `[batch, channels, height, width]` and of the patches they are cut into.
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
    /// Rows and columns of the grid of patches. Pixels beyond the last whole patch are ignored, as in a
    /// convolution.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when no patch fits.
    pub fn grid(&self) -> Result<(usize, usize)> {
        let rows = self.height.checked_div(self.patch_height).unwrap_or(0);
        let columns = self.width.checked_div(self.patch_width).unwrap_or(0);
        if rows == 0 || columns == 0 {
            return Err(Error::InvalidArgument(format!(
                "An image of {}×{} pixels holds no patch of {}×{}.",
                self.height, self.width, self.patch_height, self.patch_width
            )));
        }
        Ok((rows, columns))
    }

    fn check_pixels(&self, pixels: &[f32]) -> Result<()> {
        check_len(
            "The image",
            pixels.len(),
            &[self.batch, self.channels, self.height, self.width],
        )
    }
}

/// Pixels `[B, C, H, W]` to patch embeddings `[B, rows · columns, out_features]`; the projection's weight
/// `[out_features, C, patch_height, patch_width]` is packed like a linear layer's.
///
/// # Errors
/// INVALID_ARGUMENT when the sizes don't match, OUT_OF_MEMORY.
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
    shape.check_pixels(pixels)?;
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
        copy_patches(pixels, shape, (rows, columns), block * PATCH_BLOCK, lines);
        linear(lines, w, Activation::Identity, None, target)?;
    }
    Ok(())
}

/// Copies one patch, ordered by channel, then pixel row, to match the layout of the projection's weight.
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

/// The gradients of [`patch_embed`] with respect to the projection's weight `[out_features, C · patch_height ·
/// patch_width]` and bias `[out_features]`, from grad `[B, rows · columns, out_features]`.
///
/// # Errors
/// INVALID_ARGUMENT when the sizes don't match, OUT_OF_MEMORY.
pub fn patch_embed_backward(
    grad: &[f32],
    pixels: &[f32],
    shape: PatchShape,
    weight: &mut [f32],
    bias: &mut [f32],
) -> Result<()> {
    let (rows, columns) = shape.grid()?;
    let depth = numel(&[shape.channels, shape.patch_height, shape.patch_width])?;
    shape.check_pixels(pixels)?;
    check_len(
        "The gradient of the patch embedding",
        grad.len(),
        &[shape.batch, rows, columns, bias.len()],
    )?;
    let mut lines = try_vec(numel(&[shape.batch, rows, columns, depth])?)?;
    copy_patches(pixels, shape, (rows, columns), 0, &mut lines);
    linear_backward_weights(grad, &lines, weight, bias)
}

/// Lays out patches, starting at `first`, each as a row of `lines`.
fn copy_patches(
    pixels: &[f32],
    shape: PatchShape,
    (rows, columns): (usize, usize),
    first: usize,
    lines: &mut [f32],
) {
    let depth = shape.channels * shape.patch_height * shape.patch_width;
    let work = lines.len().saturating_mul(4);
    for_each_block_of_rows(lines, depth, work, &|row0, lines| {
        for (offset, line) in lines.chunks_exact_mut(depth).enumerate() {
            let patch = first + row0 + offset;
            let (sample, cell) = (patch / (rows * columns), patch % (rows * columns));
            copy_patch(pixels, shape, sample, cell / columns, cell % columns, line);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, packed, same_with_workers, values};
    use proptest::prelude::*;
    use vit_msn_tensor::Dtype;

    /// A convolution with stride = kernel, by its definition.
    fn naive(pixels: &[f32], s: PatchShape, weight: &[f32], bias: &[f32]) -> Vec<f64> {
        let (rows, columns) = s.grid().unwrap();
        let mut out = Vec::new();
        for b in 0..s.batch {
            for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
                for (d, &bias) in bias.iter().enumerate() {
                    let mut sum = f64::from(bias);
                    for (c, y, x) in (0..s.channels).flat_map(|c| {
                        (0..s.patch_height)
                            .flat_map(move |y| (0..s.patch_width).map(move |x| (c, y, x)))
                    }) {
                        let line = (b * s.channels + c) * s.height + row * s.patch_height + y;
                        let pixel = pixels[line * s.width + column * s.patch_width + x];
                        let w =
                            weight[((d * s.channels + c) * s.patch_height + y) * s.patch_width + x];
                        sum += f64::from(pixel) * f64::from(w);
                    }
                    out.push(sum);
                }
            }
        }
        out
    }

    fn check(shape: PatchShape, width: usize) {
        let pixels = values(
            shape.batch * shape.channels * shape.height * shape.width,
            31,
        );
        let depth = shape.channels * shape.patch_height * shape.patch_width;
        let (w, weight, bias) = packed(width, depth, Dtype::F32, 32);
        let expected = naive(&pixels, shape, &weight, &bias);
        let mut out = vec![f32::NAN; expected.len()];
        patch_embed(&pixels, shape, &w, &mut out).unwrap();
        assert_close(&out, &expected, 1e-5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(80))]

        #[test]
        fn patches_match_the_convolution(
            batch in 0usize..3, channels in 1usize..4, (ph, pw) in (1usize..6, 1usize..6),
            (rows, columns) in (1usize..5, 1usize..5), (extra_h, extra_w) in (0usize..5, 0usize..5), width in 1usize..20,
        ) {
            let shape = PatchShape {
                batch, channels, patch_height: ph, patch_width: pw,
                height: ph * rows + extra_h % ph, width: pw * columns + extra_w % pw,
            };
            check(shape, width);
        }
    }

    #[test]
    fn patches_cross_blocks() {
        check(
            PatchShape {
                batch: 2,
                channels: 3,
                height: 34,
                width: 30,
                patch_height: 2,
                patch_width: 2,
            },
            5,
        );
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let shape = PatchShape {
            batch: 2,
            channels: 3,
            height: 224,
            width: 224,
            patch_height: 16,
            patch_width: 16,
        };
        let pixels = values(2 * 3 * 224 * 224, 31);
        let (w, ..) = packed(20, 768, Dtype::F32, 32);
        same_with_workers(|| {
            let mut out = vec![f32::NAN; 2 * 196 * 20];
            patch_embed(&pixels, shape, &w, &mut out).unwrap();
            out
        });
    }

    #[test]
    fn wrong_sizes_are_errors() {
        let (w, ..) = packed(4, 12, Dtype::F32, 1);
        let good = PatchShape {
            batch: 1,
            channels: 3,
            height: 4,
            width: 4,
            patch_height: 2,
            patch_width: 2,
        };
        let wrong = [
            PatchShape { height: 1, ..good },
            PatchShape {
                patch_width: 0,
                ..good
            },
            PatchShape {
                channels: 2,
                ..good
            },
            PatchShape { batch: 2, ..good },
            PatchShape {
                channels: usize::MAX,
                ..good
            },
        ];
        for shape in wrong {
            let error = patch_embed(&[0.0; 48], shape, &w, &mut [0.0; 16]).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT", "{shape:?}");
        }
        assert_eq!(
            patch_embed(&[0.0; 48], good, &w, &mut [0.0; 15])
                .unwrap_err()
                .code(),
            "INVALID_ARGUMENT"
        );
        patch_embed(&[0.0; 48], good, &w, &mut [0.0; 16]).unwrap();
    }

    #[test]
    fn gradients_are_those_of_the_convolution() {
        let shape = PatchShape {
            batch: 3,
            channels: 2,
            height: 7,
            width: 11,
            patch_height: 2,
            patch_width: 3,
        };
        let (width, depth, patches) = (5, 12, 9);
        let pixels = values(3 * 2 * 7 * 11, 1);
        let grad = values(3 * patches * width, 2);
        let (mut weight, mut bias) = (vec![f32::NAN; width * depth], vec![f32::NAN; width]);
        patch_embed_backward(&grad, &pixels, shape, &mut weight, &mut bias).unwrap();
        // The op is linear in each parameter: its gradient is the contribution of one unit of the parameter,
        // times grad.
        let dot =
            |out: Vec<f64>| -> f64 { out.iter().zip(&grad).map(|(o, &g)| o * f64::from(g)).sum() };
        let unit = |len: usize, index: usize| -> Vec<f32> {
            (0..len).map(|i| f32::from(i == index)).collect()
        };
        let by_weight: Vec<f64> = (0..width * depth)
            .map(|index| {
                dot(naive(
                    &pixels,
                    shape,
                    &unit(width * depth, index),
                    &vec![0.0; width],
                ))
            })
            .collect();
        assert_close(&weight, &by_weight, 1e-5);
        let by_bias: Vec<f64> = (0..width)
            .map(|index| {
                dot(naive(
                    &pixels,
                    shape,
                    &vec![0.0; width * depth],
                    &unit(width, index),
                ))
            })
            .collect();
        assert_close(&bias, &by_bias, 1e-5);
        for (grad, pixels, weight, bias) in [
            (134, 462, 60, 5),
            (135, 461, 60, 5),
            (135, 462, 59, 5),
            (135, 462, 60, 4),
        ] {
            let error = patch_embed_backward(
                &vec![0.0; grad],
                &vec![0.0; pixels],
                shape,
                &mut vec![0.0; weight],
                &mut vec![0.0; bias],
            );
            assert_eq!(error.unwrap_err().code(), "INVALID_ARGUMENT");
        }
    }
}
