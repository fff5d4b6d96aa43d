//! Pooling: one vector per image.

use vit_msn_tensor::{Error, Result, check_len, numel};

/// The CLS token: x `[batch, tokens, width]` to out `[batch, width]`.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match or there is no token.
pub fn pool_cls(
    x: &[f32],
    batch: usize,
    tokens: usize,
    width: usize,
    out: &mut [f32],
) -> Result<()> {
    check(x, batch, tokens, width, out, 1)?;
    for (sample, target) in x
        .chunks_exact(tokens * width)
        .zip(out.chunks_exact_mut(width))
    {
        target.copy_from_slice(&sample[..width]);
    }
    Ok(())
}

/// The mean of the patches, without the CLS token: x `[batch, tokens, width]` to out `[batch, width]`.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match or there is no patch.
pub fn pool_mean(
    x: &[f32],
    batch: usize,
    tokens: usize,
    width: usize,
    out: &mut [f32],
) -> Result<()> {
    check(x, batch, tokens, width, out, 2)?;
    for (sample, target) in x
        .chunks_exact(tokens * width)
        .zip(out.chunks_exact_mut(width))
    {
        target.fill(0.0);
        for token in sample.chunks_exact(width).skip(1) {
            for (sum, value) in target.iter_mut().zip(token) {
                *sum += value;
            }
        }
        for value in target {
            *value /= (tokens - 1) as f32;
        }
    }
    Ok(())
}

fn check(
    x: &[f32],
    batch: usize,
    tokens: usize,
    width: usize,
    out: &[f32],
    needed: usize,
) -> Result<()> {
    if tokens < needed || width == 0 {
        return Err(Error::InvalidArgument(format!(
            "Pooling needs at least {needed} tokens of at least one channel, but got [{batch}, {tokens}, {width}]."
        )));
    }
    numel(&[tokens, width])?;
    check_len("The input of pooling", x.len(), &[batch, tokens, width])?;
    check_len("The output of pooling", out.len(), &[batch, width])
}

/// The gradient of [`pool_cls`]: grad `[batch, width]` to out `[batch, tokens, width]`.
///
/// # Errors
/// Same as [`pool_cls`].
pub fn pool_cls_backward(
    grad: &[f32],
    batch: usize,
    tokens: usize,
    width: usize,
    out: &mut [f32],
) -> Result<()> {
    check(out, batch, tokens, width, grad, 1)?;
    for (sample, grad) in samples(out, tokens, width).zip(grad.chunks_exact(width)) {
        let (cls, patches) = sample.split_at_mut(width);
        cls.copy_from_slice(grad);
        patches.fill(0.0);
    }
    Ok(())
}

/// The gradient of [`pool_mean`]: grad `[batch, width]` to out `[batch, tokens, width]`.
///
/// # Errors
/// Same as [`pool_mean`].
pub fn pool_mean_backward(
    grad: &[f32],
    batch: usize,
    tokens: usize,
    width: usize,
    out: &mut [f32],
) -> Result<()> {
    check(out, batch, tokens, width, grad, 2)?;
    for (sample, grad) in samples(out, tokens, width).zip(grad.chunks_exact(width)) {
        let (cls, patches) = sample.split_at_mut(width);
        cls.fill(0.0);
        for token in patches.chunks_exact_mut(width) {
            for (target, grad) in token.iter_mut().zip(grad) {
                *target = grad / (tokens - 1) as f32;
            }
        }
    }
    Ok(())
}

fn samples(out: &mut [f32], tokens: usize, width: usize) -> impl Iterator<Item = &mut [f32]> {
    out.chunks_exact_mut(tokens * width)
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: [f32; 12] = [
        1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0,
    ];

    #[test]
    fn cls_is_the_first_token() {
        let mut out = [0.0; 4];
        pool_cls(&X, 2, 3, 2, &mut out).unwrap();
        assert_eq!(out, [1.0, 2.0, -1.0, -2.0]);
    }

    #[test]
    fn the_mean_leaves_cls_out() {
        let mut out = [0.0; 4];
        pool_mean(&X, 2, 3, 2, &mut out).unwrap();
        assert_eq!(out, [4.0, 5.0, -4.0, -5.0]);
    }

    #[test]
    fn wrong_sizes_are_errors() {
        let mut out = [0.0; 4];
        assert_eq!(
            pool_mean(&X[..4], 2, 1, 2, &mut out).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            pool_cls(&X[..11], 2, 3, 2, &mut out).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            pool_cls(&X, 2, 3, 2, &mut out[..3]).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            pool_cls(&[], 0, usize::MAX, 2, &mut []).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
        pool_cls(&[], 0, 3, 2, &mut []).unwrap();
    }

    #[test]
    fn gradients_go_where_values_came_from() {
        let (grad, mut out) = ([1.0, 2.0, 3.0, 4.0], [f32::NAN; 12]);
        pool_cls_backward(&grad, 2, 3, 2, &mut out).unwrap();
        assert_eq!(
            out,
            [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]
        );
        pool_mean_backward(&grad, 2, 3, 2, &mut out).unwrap();
        assert_eq!(
            out,
            [0.0, 0.0, 0.5, 1.0, 0.5, 1.0, 0.0, 0.0, 1.5, 2.0, 1.5, 2.0]
        );
        let error = pool_mean_backward(&grad, 2, 1, 2, &mut out[..4]).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
        let error = pool_cls_backward(&grad[..3], 2, 3, 2, &mut out).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
    }
}
