//! The patch embedding: a convolution whose stride equals its kernel size, as a gather and a linear layer.

use bytemuck::NoUninit;
use vit_msn_tensor::{Activation, Error, Result};

use super::linear::backward::linear_backward_weights;
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

/// The patch projection: pixels `[batch, channels, height, width]` and a convolution's weight `[outputs, channels,
/// patch_height, patch_width]`, flattened into that of a linear layer, to `[batch, patches, outputs]`, patches in
/// row-major order. `patch` is (height, width). Pixels past the last whole patch are ignored, as in a convolution.
///
/// # Errors
/// INVALID_ARGUMENT if shapes don't match or no patch fits, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn patch_embed(
    stream: &mut Stream,
    pixels: &GpuTensor,
    projection: &GpuLinear,
    patch: (usize, usize),
) -> Result<GpuTensor> {
    let [batch, patches, depth] = patches_of(pixels, patch)?;
    if depth != projection.in_features() {
        return Err(Error::InvalidArgument(format!(
            "Patches of {}×{}×{} have {depth} values, but the projection takes {}.",
            pixels.dims()[1],
            patch.0,
            patch.1,
            projection.in_features()
        )));
    }
    let gathered = gather(stream, pixels, patch, [batch, patches, depth])?;
    linear(stream, &gathered, projection, Activation::Identity, None)
}

/// The gradients of [`patch_embed`] with respect to the projection's weight `[outputs, channels · patch_height ·
/// patch_width]` and bias `[outputs]`, given grad `[batch, patches, outputs]`.
///
/// # Errors
/// As [`patch_embed`].
pub fn patch_embed_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    pixels: &GpuTensor,
    patch: (usize, usize),
) -> Result<(GpuTensor, GpuTensor)> {
    let size = patches_of(pixels, patch)?;
    let names = ["batch", "patches", "outputs"];
    let what = "The gradient of the patch embedding";
    let [_, _, outputs] = grad.shape(what, names)?;
    grad.expect(what, &[size[0], size[1], outputs])?;
    let gathered = gather(stream, pixels, patch, size)?;
    linear_backward_weights(stream, grad, &gathered)
}

/// [batch, patches, values of a patch].
fn patches_of(pixels: &GpuTensor, patch: (usize, usize)) -> Result<[usize; 3]> {
    let names = ["batch", "channels", "height", "width"];
    let [batch, channels, height, width] = pixels.shape("The image", names)?;
    let (patch_height, patch_width) = patch;
    let rows = height.checked_div(patch_height).unwrap_or(0);
    let columns = width.checked_div(patch_width).unwrap_or(0);
    if rows == 0 || columns == 0 {
        return Err(Error::InvalidArgument(format!(
            "An image of {height}×{width} pixels holds no patch of {patch_height}×{patch_width}."
        )));
    }
    Ok([batch, rows * columns, channels * patch_height * patch_width])
}

/// The image in patch order.
fn gather(
    stream: &mut Stream,
    pixels: &GpuTensor,
    (patch_height, patch_width): (usize, usize),
    [batch, patches, depth]: [usize; 3],
) -> Result<GpuTensor> {
    let gathered = stream.uninit(&[batch, patches, depth])?;
    stream.record(Op {
        kernel: PATCH_EMBED,
        constants: (&[], &[]),
        uniforms: Params {
            channels: pixels.dims()[1] as u32,
            height: pixels.dims()[2] as u32,
            width: pixels.dims()[3] as u32,
            patch_height: patch_height as u32,
            patch_width: patch_width as u32,
        },
        reads: &[pixels.binding()],
        writes: &[gathered.binding()],
        workgroups: [depth.div_ceil(LINE), patches, batch],
        cost: cost(2 * gathered.len() as u64, 0),
    })?;
    Ok(gathered)
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
                // The op is linear in the weight: <grad, y - bias> equals <gradient of the weight, weight>.
                let (grad, grad_gpu) = random(stream, y.dims(), 4);
                let (by_weight, by_bias) =
                    patch_embed_backward(stream, &grad_gpu, &pixels_gpu, patch.into()).unwrap();
                assert_eq!(by_weight.dims(), [outputs, weight.len() / outputs]);
                let dot = |x: &[f32], y: &[f64]| -> f64 {
                    x.iter().zip(y).map(|(&x, &y)| f64::from(x) * y).sum()
                };
                let by_weight = read(stream, &by_weight);
                let by_bias = read(stream, &by_bias);
                let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
                let found = dot(&by_weight, &wide(&weight)) + dot(&by_bias, &wide(&bias));
                let wanted = dot(&grad, &expected);
                assert!((found - wanted).abs() < 1e-4 * (1.0 + grad.len() as f64).sqrt());
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
        let (_, grad) = random(&mut stream, &[1, 15, 2], 1);
        for patch in [(2, 2), (9, 1)] {
            let result = patch_embed_backward(&mut stream, &grad, &pixels, patch);
            assert_eq!(code(result.map(|_| ())), "INVALID_ARGUMENT");
        }
    }
}
