//! Token embeddings of patches: masking, the CLS token and positions.

use vit_msn_tensor::{Result, check_len, try_vec};

/// The sizes of the token embeddings: `[batch, 1 + patches, width]`.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingShape {
    /// B
    pub batch: usize,
    /// Number of patches of an image, without the CLS token.
    pub patches: usize,
    /// D
    pub width: usize,
}

impl EmbeddingShape {
    fn tokens(self) -> usize {
        self.patches.saturating_add(1)
    }

    /// Checks the lengths of the patches, the CLS token and the positions, or of their gradients, and of the mask and
    /// its token. `prefix` precedes their names in errors.
    fn check(
        self,
        prefix: &str,
        [patches, cls, positions]: [&[f32]; 3],
        mask: Option<(&[u8], &[f32])>,
    ) -> Result<()> {
        let Self {
            batch,
            patches: count,
            width,
        } = self;
        let check = |name: &str, values: &[f32], dims: &[usize]| {
            check_len(&format!("{prefix} {name}"), values.len(), dims)
        };
        check("patch embeddings", patches, &[batch, count, width])?;
        check("CLS token", cls, &[width])?;
        check("position embeddings", positions, &[self.tokens(), width])?;
        if let Some((masked, token)) = mask {
            check_len("bool_masked_pos", masked.len(), &[batch, count])?;
            check("mask token", token, &[width])?;
        }
        Ok(())
    }
}

/// Which patches the mask token replaces.
#[derive(Debug, Clone, Copy)]
pub struct PatchMask<'a> {
    /// `[B, patches]`: a nonzero value masks the patch.
    pub masked: &'a [u8],
    /// `[D]`
    pub token: &'a [f32],
}

/// out `[B, 1 + patches, D]` = `[cls; patch or mask token] + positions`, with cls `[D]`, patches `[B, patches,
/// D]` and positions `[1 + patches, D]`.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match.
pub fn embed_tokens(
    patches: &[f32],
    shape: EmbeddingShape,
    cls: &[f32],
    positions: &[f32],
    mask: Option<PatchMask>,
    out: &mut [f32],
) -> Result<()> {
    let EmbeddingShape {
        batch,
        patches: count,
        width,
    } = shape;
    let tokens = shape.tokens();
    let masked = mask.map(|mask| (mask.masked, mask.token));
    shape.check("The", [patches, cls, positions], masked)?;
    check_len("The embeddings", out.len(), &[batch, tokens, width])?;
    if width == 0 {
        return Ok(());
    }
    for (row, target) in out.chunks_exact_mut(width).enumerate() {
        let (sample, token) = (row / tokens, row % tokens);
        let source = if token == 0 {
            cls
        } else {
            let patch = sample * count + token - 1;
            match mask {
                Some(mask) if mask.masked[patch] != 0 => mask.token,
                _ => &patches[patch * width..][..width],
            }
        };
        let position = &positions[token * width..][..width];
        for ((value, source), position) in target.iter_mut().zip(source).zip(position) {
            *value = source + position;
        }
    }
    Ok(())
}

/// The gradients of [`embed_tokens`], each of its operand's shape.
pub struct EmbeddingGradients<'a> {
    /// `[B, patches, D]`
    pub patches: &'a mut [f32],
    /// `[D]`
    pub cls: &'a mut [f32],
    /// `[1 + patches, D]`
    pub positions: &'a mut [f32],
    /// The mask `[B, patches]`, and the gradient `[D]` with respect to the mask token.
    pub mask: Option<(&'a [u8], &'a mut [f32])>,
}

/// The gradients with respect to the operands of [`embed_tokens`], from grad `[B, 1 + patches, D]`. The
/// gradients of masked patches go to the mask token instead.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match, OUT_OF_MEMORY.
pub fn embed_tokens_backward(
    grad: &[f32],
    shape: EmbeddingShape,
    out: EmbeddingGradients,
) -> Result<()> {
    let EmbeddingShape {
        batch,
        patches: count,
        width,
    } = shape;
    let tokens = shape.tokens();
    check_len(
        "The gradient of the embeddings",
        grad.len(),
        &[batch, tokens, width],
    )?;
    let mask = out.mask.as_ref().map(|(masked, token)| (*masked, &**token));
    shape.check(
        "The gradient with respect to the",
        [out.patches, out.cls, out.positions],
        mask,
    )?;
    if width == 0 {
        return Ok(());
    }
    out.positions.fill(0.0);
    // float64, since it sums over all masked patches of all images.
    let mut mask_sum = try_vec::<f64>(width)?;
    let masked = mask.map(|(masked, _)| masked);
    for (row, grad) in grad.chunks_exact(width).enumerate() {
        let (sample, token) = (row / tokens, row % tokens);
        let position = &mut out.positions[token * width..][..width];
        for (sum, value) in position.iter_mut().zip(grad) {
            *sum += value;
        }
        if token == 0 {
            continue;
        }
        let patch = sample * count + token - 1;
        let target = &mut out.patches[patch * width..][..width];
        if masked.is_some_and(|masked| masked[patch] != 0) {
            target.fill(0.0);
            for (sum, &value) in mask_sum.iter_mut().zip(grad) {
                *sum += f64::from(value);
            }
        } else {
            target.copy_from_slice(grad);
        }
    }
    // The CLS token and its position are added to the same outputs, so their gradients are equal.
    out.cls.copy_from_slice(&out.positions[..width]);
    if let Some((_, token)) = out.mask {
        for (target, sum) in token.iter_mut().zip(mask_sum) {
            *target = sum as f32;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: EmbeddingShape = EmbeddingShape {
        batch: 2,
        patches: 2,
        width: 2,
    };
    const PATCHES: [f32; 8] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    const CLS: [f32; 2] = [-1.0, -2.0];
    const POSITIONS: [f32; 6] = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0];

    #[test]
    fn cls_comes_first_and_positions_are_added() {
        let mut out = [0.0; 12];
        embed_tokens(&PATCHES, SHAPE, &CLS, &POSITIONS, None, &mut out).unwrap();
        assert_eq!(
            out,
            [
                9.0, 18.0, 31.0, 42.0, 53.0, 64.0, 9.0, 18.0, 35.0, 46.0, 57.0, 68.0
            ]
        );
    }

    #[test]
    fn the_mask_token_replaces_masked_patches() {
        let mut out = [0.0; 12];
        let mask = PatchMask {
            masked: &[0, 1, 1, 0],
            token: &[100.0, 200.0],
        };
        embed_tokens(&PATCHES, SHAPE, &CLS, &POSITIONS, Some(mask), &mut out).unwrap();
        assert_eq!(
            out,
            [
                9.0, 18.0, 31.0, 42.0, 150.0, 260.0, 9.0, 18.0, 130.0, 240.0, 57.0, 68.0
            ]
        );
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let run = |patches: usize,
                   cls: usize,
                   positions: usize,
                   masked: usize,
                   token: usize,
                   out: usize| {
            let zeros = [0.0; 20];
            let mask = PatchMask {
                masked: &[0; 9][..masked],
                token: &zeros[..token],
            };
            let mut target = vec![0.0; out];
            embed_tokens(
                &zeros[..patches],
                SHAPE,
                &zeros[..cls],
                &zeros[..positions],
                Some(mask),
                &mut target,
            )
        };
        run(8, 2, 6, 4, 2, 12).unwrap();
        for [a, b, c, d, e, f] in [
            [7, 2, 6, 4, 2, 12],
            [8, 1, 6, 4, 2, 12],
            [8, 2, 5, 4, 2, 12],
            [8, 2, 6, 5, 2, 12],
            [8, 2, 6, 4, 3, 12],
            [8, 2, 6, 4, 2, 11],
        ] {
            assert_eq!(
                run(a, b, c, d, e, f).unwrap_err().code(),
                "INVALID_ARGUMENT"
            );
        }
    }

    #[test]
    fn gradients_go_to_what_was_put_together() {
        let grad: Vec<f32> = (1..=12).map(|v| v as f32).collect();
        let [mut patches, mut cls] = [vec![f32::NAN; 8], vec![f32::NAN; 2]];
        let [mut positions, mut token] = [vec![f32::NAN; 6], vec![f32::NAN; 2]];
        let mut run = |masked: Option<&[u8]>| {
            let out = EmbeddingGradients {
                patches: &mut patches,
                cls: &mut cls,
                positions: &mut positions,
                mask: masked.map(|masked| (masked, &mut token[..])),
            };
            embed_tokens_backward(&grad, SHAPE, out).unwrap();
            [
                patches.clone(),
                cls.clone(),
                positions.clone(),
                token.clone(),
            ]
        };
        let [patches, cls, positions, _] = run(None);
        assert_eq!(patches, [3.0, 4.0, 5.0, 6.0, 9.0, 10.0, 11.0, 12.0]);
        assert_eq!(cls, [8.0, 10.0]);
        assert_eq!(positions, [8.0, 10.0, 12.0, 14.0, 16.0, 18.0]);
        let [patches, _, same, token] = run(Some(&[0, 1, 1, 0]));
        assert_eq!(patches, [3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 11.0, 12.0]);
        assert_eq!(token, [14.0, 16.0]);
        assert_eq!(same, positions);
    }

    #[test]
    fn wrong_lengths_of_gradients_are_errors() {
        for [grad, patches, cls, positions, masked, token] in [
            [11, 8, 2, 6, 4, 2],
            [12, 7, 2, 6, 4, 2],
            [12, 8, 1, 6, 4, 2],
            [12, 8, 2, 5, 4, 2],
            [12, 8, 2, 6, 3, 2],
            [12, 8, 2, 6, 4, 1],
        ] {
            let out = EmbeddingGradients {
                patches: &mut vec![0.0; patches],
                cls: &mut vec![0.0; cls],
                positions: &mut vec![0.0; positions],
                mask: Some((&vec![0; masked], &mut vec![0.0; token])),
            };
            let error = embed_tokens_backward(&vec![0.0; grad], SHAPE, out).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
    }
}
