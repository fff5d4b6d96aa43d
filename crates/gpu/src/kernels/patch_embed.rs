//! The patch embedding: a convolution whose stride is its kernel, as a gather and a linear layer.

use bytemuck::NoUninit;
use vit_msn_tensor::{Activation, Error, Result};

use super::linear::linear;
use super::{LINE, cost};
use crate::buffers::GpuTensor;
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};
use crate::weights::GpuLinear;

const PATCH_EMBED: Kernel = Kernel {
    name: "patch_embed",
    sources: &[include_str!("patch_embed.wgsl")],
    entry_point: "main",
};

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    channels: u32,
    height: u32,
    width: u32,
    patch_height: u32,
    patch_width: u32,
}

/// The patch projection: pixels `[batch, channels, height, width]` and the weight of a convolution `[outputs, channels,
/// patch_height, patch_width]`, flattened into a linear layer's, to `[batch, patches, outputs]`, patches row by row.
/// `patch` is (height, width). Pixels beyond the last whole patch are left out, as by a convolution.
/// Errors: INVALID_ARGUMENT when shapes don't fit or no patch does, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn patch_embed(
    stream: &mut Stream,
    pixels: &GpuTensor,
    projection: &GpuLinear,
    patch: (usize, usize),
) -> Result<GpuTensor> {
    let names = ["batch", "channels", "height", "width"];
    let [batch, channels, height, width] = pixels.shape("The picture", names)?;
    let (patch_height, patch_width) = patch;
    let rows = height.checked_div(patch_height).unwrap_or(0);
    let columns = width.checked_div(patch_width).unwrap_or(0);
    if rows == 0 || columns == 0 {
        return Err(Error::InvalidArgument(format!(
            "A picture of {height}×{width} pixels holds no patch of {patch_height}×{patch_width}."
        )));
    }
    let patches = rows * columns;
    let depth = channels * patch_height * patch_width;
    if depth != projection.in_features() {
        return Err(Error::InvalidArgument(format!(
            "Patches of {channels}×{patch_height}×{patch_width} have {depth} values, but the projection takes {}.",
            projection.in_features()
        )));
    }
    let gathered = stream.uninit(&[batch, patches, depth])?;
    stream.record(Op {
        kernel: PATCH_EMBED,
        constants: (&[], &[]),
        uniforms: Params {
            channels: channels as u32,
            height: height as u32,
            width: width as u32,
            patch_height: patch_height as u32,
            patch_width: patch_width as u32,
        },
        reads: &[pixels.binding()],
        writes: &[gathered.binding()],
        workgroups: [depth.div_ceil(LINE), patches, batch],
        cost: cost(2 * gathered.len() as u64, 0),
    })?;
    linear(stream, &gathered, projection, Activation::Identity, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, layer, on_shapes, random, read, stream, values};

    /// The convolution by its definition.
    fn naive(
        pixels: &[f32],
        [batch, channels, height, width]: [usize; 4],
        weight: &[f32],
        [patch_height, patch_width]: [usize; 2],
        bias: &[f32],
    ) -> Vec<f64> {
        let (rows, columns) = (height / patch_height, width / patch_width);
        let value = |sample, row, column, output| -> f64 {
            let kernel = &weight[output * weight.len() / bias.len()..];
            let products = (0..channels * patch_height * patch_width).map(|index| {
                let (line, j) = (index / patch_width, index % patch_width);
                let (channel, i) = (line / patch_height, line % patch_height);
                let line = (sample * channels + channel) * height + row * patch_height + i;
                let pixel = pixels[line * width + column * patch_width + j];
                f64::from(pixel) * f64::from(kernel[index])
            });
            f64::from(bias[output]) + products.sum::<f64>()
        };
        (0..batch * rows * columns * bias.len())
            .map(|index| {
                let (patch, output) = (index / bias.len(), index % bias.len());
                let (line, column) = (patch / columns, patch % columns);
                value(line / rows, line % rows, column, output)
            })
            .collect()
    }

    #[test]
    fn odd_shapes_match_the_convolution() {
        let shapes = (
            [1usize..3, 1usize..4],
            [1usize..9, 1usize..9],
            [0usize..20, 0usize..20],
            1usize..30,
        );
        on_shapes(
            shapes,
            |stream, ([batch, channels], patch, extra, outputs)| {
                let size = [batch, channels, patch[0] + extra[0], patch[1] + extra[1]];
                let (pixels, pixels_gpu) = random(stream, &size, 1);
                let weight = values(outputs * channels * patch[0] * patch[1], 2);
                let bias = values(outputs, 3);
                let projection = layer(stream, &weight, &bias);
                let y = patch_embed(stream, &pixels_gpu, &projection, patch.into()).unwrap();
                let patches = (size[2] / patch[0]) * (size[3] / patch[1]);
                assert_eq!(y.dims(), [batch, patches, outputs]);
                let expected = naive(&pixels, size, &weight, patch, &bias);
                assert_close(&read(stream, &y), &expected, 1e-5);
            },
        );
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let Some(mut stream) = stream() else { return };
        let (_, pixels) = random(&mut stream, &[1, 3, 8, 8], 1);
        let (_, flat) = random(&mut stream, &[3, 8, 8], 1);
        let projection = layer(&mut stream, &[1.0; 24], &[0.0; 2]);
        let mut run = |pixels, patch| code(patch_embed(&mut stream, pixels, &projection, patch));
        for patch in [(9, 1), (1, 9), (0, 2), (2, 3)] {
            assert_eq!(run(&pixels, patch), "INVALID_ARGUMENT");
        }
        assert_eq!(run(&flat, (2, 2)), "INVALID_ARGUMENT");
    }
}
