//! Masked inference: the encoder processes only the visible patches.

use bytemuck::NoUninit;
use vit_msn_tensor::{Error, Result, check_len};

use super::{LINE, cost};
use crate::buffers::GpuTensor;
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

const TAKE_TOKENS: Kernel = Kernel {
    name: "take_tokens",
    sources: &[include_str!("take_tokens.wgsl")],
    entry_point: "main",
};

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    tokens: u32,
    width: u32,
}

/// The CLS token and the selected patches of each image, in the order of `patches` `[batch, visible]`, whose indices
/// start at the first patch: x `[batch, tokens, width]` to `[batch, 1 + visible, width]`.
///
/// # Errors
/// INVALID_ARGUMENT if lengths don't match or a patch doesn't exist, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn take_tokens(
    stream: &mut Stream,
    x: &GpuTensor,
    patches: &[u32],
    visible: usize,
) -> Result<GpuTensor> {
    let [batch, tokens, width] = x.shape("The tokens", ["batch", "tokens", "width"])?;
    if visible == 0 {
        return Err(Error::InvalidArgument(format!(
            "0 patches can't be taken from tokens of the shape [{batch}, {tokens}, {width}]: each size must be at least 1."
        )));
    }
    check_len("The chosen patches", patches.len(), &[batch, visible])?;
    if let Some(patch) = patches.iter().find(|&&patch| patch as usize >= tokens - 1) {
        return Err(Error::InvalidArgument(format!(
            "There is no patch {patch}: the number of patches is {}.",
            tokens - 1
        )));
    }
    let table = stream.upload_table(patches, "The chosen patches")?;
    let y = stream.uninit(&[batch, 1 + visible, width])?;
    stream.record(Op {
        kernel: TAKE_TOKENS,
        constants: (&[], &[]),
        uniforms: Params {
            tokens: tokens as u32,
            width: width as u32,
        },
        reads: &[x.binding(), table.binding()],
        writes: &[y.binding()],
        workgroups: [width.div_ceil(LINE), 1 + visible, batch],
        cost: cost(2 * y.len() as u64, 0),
    })?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{code, on_shapes, random, read, stream};

    #[test]
    fn cls_comes_first_and_patches_in_the_given_order() {
        let shapes = [1usize..4, 2usize..20, 1usize..20, 1usize..150];
        on_shapes(shapes, |stream, [batch, tokens, visible, width]| {
            let (x, x_gpu) = random(stream, &[batch, tokens, width], 1);
            let patches: Vec<u32> = (0..batch * visible)
                .map(|i| (i * 7 % (tokens - 1)) as u32)
                .collect();
            let y = take_tokens(stream, &x_gpu, &patches, visible).unwrap();
            assert_eq!(y.dims(), [batch, 1 + visible, width]);
            for (row, line) in read(stream, &y).chunks(width).enumerate() {
                let (sample, place) = (row / (1 + visible), row % (1 + visible));
                let token = match place {
                    0 => 0,
                    place => 1 + patches[sample * visible + place - 1] as usize,
                };
                assert_eq!(line, &x[(sample * tokens + token) * width..][..width]);
            }
        });
    }

    #[test]
    fn a_patch_that_does_not_exist_and_wrong_sizes_are_errors() {
        let Some(mut stream) = stream() else { return };
        let (_, x) = random(&mut stream, &[2, 4, 1], 1);
        let (_, flat) = random(&mut stream, &[2, 4], 1);
        let error = take_tokens(&mut stream, &x, &[0, 3, 0, 1], 2)
            .err()
            .unwrap();
        assert_eq!(
            error.to_string(),
            "There is no patch 3: the number of patches is 3."
        );
        let mut run =
            |x, patches: &[u32], visible| code(take_tokens(&mut stream, x, patches, visible));
        assert_eq!(run(&x, &[0; 3], 2), "INVALID_ARGUMENT");
        assert_eq!(run(&x, &[], 0), "INVALID_ARGUMENT");
        assert_eq!(run(&flat, &[0; 4], 2), "INVALID_ARGUMENT");
    }
}
