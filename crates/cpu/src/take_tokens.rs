//! Masked inference: the encoder receives only the visible patches.

use vit_msn_tensor::{Error, Result, check_len, numel};

/// The sizes of a selection: `[batch, tokens, width]` to `[batch, 1 + visible, width]`.
#[derive(Debug, Clone, Copy)]
pub struct SelectionShape {
    /// B
    pub batch: usize,
    /// N, including the CLS token.
    pub tokens: usize,
    /// K: the number of visible patches of each image.
    pub visible: usize,
    /// D
    pub width: usize,
}

impl SelectionShape {
    fn check(&self, x: &[f32], patches: &[u32], out: &[f32]) -> Result<()> {
        let Self {
            batch,
            tokens,
            visible,
            width,
        } = *self;
        if tokens == 0 || visible == 0 || width == 0 {
            return Err(Error::InvalidArgument(format!(
                "{visible} patches can't be taken from tokens of the shape [{batch}, {tokens}, {width}]: each size must be at least 1."
            )));
        }
        numel(&[tokens, width])?;
        numel(&[1 + visible, width])?;
        check_len("The tokens", x.len(), &[batch, tokens, width])?;
        check_len("The chosen patches", patches.len(), &[batch, visible])?;
        check_len("The chosen tokens", out.len(), &[batch, 1 + visible, width])?;
        if let Some(patch) = patches.iter().find(|&&patch| patch as usize >= tokens - 1) {
            return Err(Error::InvalidArgument(format!(
                "There is no patch {patch}: the number of patches is {}.",
                tokens - 1
            )));
        }
        Ok(())
    }
}

/// The CLS token and the chosen patches of each image, in the order of `patches` `[B, K]`, whose indices count
/// from the first patch: x `[B, N, D]` to out `[B, 1 + K, D]`. Masked Siamese Networks drop patches this way,
/// after positions are added (Assran et al., 2022).
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match or a patch doesn't exist.
pub fn take_tokens(
    x: &[f32],
    shape: SelectionShape,
    patches: &[u32],
    out: &mut [f32],
) -> Result<()> {
    shape.check(x, patches, out)?;
    let SelectionShape {
        tokens,
        visible,
        width,
        ..
    } = shape;
    let images = x.chunks_exact(tokens * width);
    let targets = out.chunks_exact_mut((1 + visible) * width);
    for ((image, target), patches) in images.zip(targets).zip(patches.chunks_exact(visible)) {
        let (cls, rows) = target.split_at_mut(width);
        cls.copy_from_slice(&image[..width]);
        for (row, &patch) in rows.chunks_exact_mut(width).zip(patches) {
            row.copy_from_slice(&image[(1 + patch as usize) * width..][..width]);
        }
    }
    Ok(())
}

/// The gradient of [`take_tokens`]: grad `[B, 1 + K, D]` to out `[B, N, D]`. It is zero for tokens that weren't
/// taken, and the sum for tokens taken more than once.
///
/// # Errors
/// Same as [`take_tokens`].
pub fn take_tokens_backward(
    grad: &[f32],
    shape: SelectionShape,
    patches: &[u32],
    out: &mut [f32],
) -> Result<()> {
    shape.check(out, patches, grad)?;
    let SelectionShape {
        tokens,
        visible,
        width,
        ..
    } = shape;
    out.fill(0.0);
    let images = out.chunks_exact_mut(tokens * width);
    let grads = grad.chunks_exact((1 + visible) * width);
    for ((image, grad), patches) in images.zip(grads).zip(patches.chunks_exact(visible)) {
        let (cls, rows) = grad.split_at(width);
        image[..width].copy_from_slice(cls);
        for (row, &patch) in rows.chunks_exact(width).zip(patches) {
            let target = &mut image[(1 + patch as usize) * width..][..width];
            for (sum, value) in target.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: SelectionShape = SelectionShape {
        batch: 2,
        tokens: 4,
        visible: 2,
        width: 1,
    };
    const X: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0];

    #[test]
    fn cls_comes_first_and_patches_in_the_given_order() {
        let mut out = [0.0; 6];
        take_tokens(&X, SHAPE, &[2, 0, 1, 2], &mut out).unwrap();
        assert_eq!(out, [0.0, 3.0, 1.0, 10.0, 12.0, 13.0]);
    }

    #[test]
    fn a_patch_that_does_not_exist_and_wrong_sizes_are_errors() {
        let mut out = [0.0; 6];
        let error = take_tokens(&X, SHAPE, &[0, 3, 0, 1], &mut out).unwrap_err();
        assert_eq!(
            error.to_string(),
            "There is no patch 3: the number of patches is 3."
        );
        for (shape, patches) in [
            (SHAPE, &[0, 1, 2][..]),
            (
                SelectionShape {
                    visible: 0,
                    ..SHAPE
                },
                &[],
            ),
            (SelectionShape { tokens: 3, ..SHAPE }, &[0, 1, 0, 1]),
            (
                SelectionShape {
                    width: usize::MAX,
                    ..SHAPE
                },
                &[0, 1, 0, 1],
            ),
        ] {
            let error = take_tokens(&X, shape, patches, &mut out).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
    }

    #[test]
    fn gradients_go_back_to_the_tokens_that_were_taken() {
        let mut out = [f32::NAN; 8];
        let grad = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        take_tokens_backward(&grad, SHAPE, &[2, 0, 1, 1], &mut out).unwrap();
        assert_eq!(out, [1.0, 3.0, 0.0, 2.0, 4.0, 0.0, 11.0, 0.0]);
        let error = take_tokens_backward(&grad, SHAPE, &[2, 0, 1, 3], &mut out).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
        let error = take_tokens_backward(&grad[1..], SHAPE, &[0; 4], &mut out).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
    }
}
