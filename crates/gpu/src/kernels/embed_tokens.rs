//! Tokens from patches: masking, the CLS token and positions.

use bytemuck::NoUninit;
use vit_msn_tensor::Result;

use super::{LINE, cost};
use crate::buffers::GpuTensor;
use crate::pipelines::{Constants, Kernel};
use crate::stream::{Op, Stream};

const EMBED_TOKENS: Kernel = Kernel {
    name: "embed_tokens",
    sources: &[include_str!("embed_tokens.wgsl")],
    entry_point: "main",
};
const CONSTANTS: Constants = &["MASKED"];

/// Which patches are replaced by the mask token.
#[derive(Clone, Copy)]
pub struct TokenMask<'a> {
    /// `[batch, patches]`; any non-zero value masks.
    pub masked: &'a GpuTensor,
    /// `[width]`
    pub token: &'a GpuTensor,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    width: u32,
}

/// `[cls; patches] + positions`: patches `[batch, patches, width]`, cls `[width]`, positions `[1 + patches, width]`
/// to `[batch, 1 + patches, width]`. Where the mask is non-zero, the mask token replaces the patch before positions
/// are added.
///
/// # Errors
/// INVALID_ARGUMENT if shapes don't match, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn embed_tokens(
    stream: &mut Stream,
    patches: &GpuTensor,
    cls: &GpuTensor,
    positions: &GpuTensor,
    mask: Option<TokenMask>,
) -> Result<GpuTensor> {
    let names = ["batch", "patches", "width"];
    let [batch, count, width] = patches.shape("The patch embeddings", names)?;
    cls.expect("The CLS token", &[width])?;
    positions.expect("The position embeddings", &[1 + count, width])?;
    if let Some(mask) = mask {
        mask.masked.expect("bool_masked_pos", &[batch, count])?;
        mask.token.expect("The mask token", &[width])?;
    }
    let y = stream.uninit(&[batch, 1 + count, width])?;
    let (masked, token) = mask.map_or((patches, cls), |mask| (mask.masked, mask.token));
    stream.record(Op {
        kernel: EMBED_TOKENS,
        constants: (CONSTANTS, &[u32::from(mask.is_some())]),
        uniforms: Params {
            width: width as u32,
        },
        reads: &[
            patches.binding(),
            cls.binding(),
            positions.binding(),
            masked.binding(),
            token.binding(),
        ],
        writes: &[y.binding()],
        workgroups: [width.div_ceil(LINE), 1 + count, batch],
        cost: cost(3 * y.len() as u64, y.len() as u64),
    })?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{code, on_shapes, random, read, stream};

    #[test]
    fn odd_shapes_match_the_definition() {
        let shapes = ([1usize..4, 1usize..20, 1usize..150], 0..2);
        on_shapes(shapes, |stream, ([batch, count, width], masks)| {
            let (patches, patches_gpu) = random(stream, &[batch, count, width], 1);
            let (cls, cls_gpu) = random(stream, &[width], 2);
            let (positions, positions_gpu) = random(stream, &[1 + count, width], 3);
            let (token, token_gpu) = random(stream, &[width], 4);
            let masked: Vec<f32> = (0..batch * count).map(|i| (i % 3 / 2) as f32).collect();
            let masked_gpu = stream.upload(&masked, &[batch, count]).unwrap();
            let mask = (masks == 1).then_some(TokenMask {
                masked: &masked_gpu,
                token: &token_gpu,
            });
            let y = embed_tokens(stream, &patches_gpu, &cls_gpu, &positions_gpu, mask).unwrap();
            assert_eq!(y.dims(), [batch, 1 + count, width]);
            for (index, &value) in read(stream, &y).iter().enumerate() {
                let (row, column) = (index / width, index % width);
                let (sample, position) = (row / (1 + count), row % (1 + count));
                let source = if position == 0 {
                    cls[column]
                } else {
                    let patch = sample * count + position - 1;
                    if masks == 1 && masked[patch] != 0.0 {
                        token[column]
                    } else {
                        patches[patch * width + column]
                    }
                };
                assert_eq!(value, source + positions[position * width + column]);
            }
        });
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let Some(mut stream) = stream() else { return };
        let mut tensor = |dims: &[usize]| random(&mut stream, dims, 1).1;
        let (patches, cls, positions) = (tensor(&[1, 4, 3]), tensor(&[3]), tensor(&[5, 3]));
        let (short, masked) = (tensor(&[4, 3]), tensor(&[1, 4]));
        let mask = Some(TokenMask {
            masked: &masked,
            token: &masked,
        });
        let mut run = |patches, cls, positions, mask| {
            code(embed_tokens(&mut stream, patches, cls, positions, mask))
        };
        assert_eq!(run(&short, &cls, &positions, None), "INVALID_ARGUMENT");
        assert_eq!(run(&patches, &masked, &positions, None), "INVALID_ARGUMENT");
        assert_eq!(run(&patches, &cls, &short, None), "INVALID_ARGUMENT");
        assert_eq!(run(&patches, &cls, &positions, mask), "INVALID_ARGUMENT");
    }
}
