//! Tokens from patches: masking, the CLS token and positions.

use vit_msn_tensor::{Result, check_len};

/// The sizes of the token embeddings: `[batch, 1 + patches, width]`.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingShape {
    /// B
    pub batch: usize,
    /// The patches of a picture, without the CLS token.
    pub patches: usize,
    /// D
    pub width: usize,
}

/// Which patches are replaced by the mask token.
#[derive(Debug, Clone, Copy)]
pub struct PatchMask<'a> {
    /// `[B, patches]`: anything but 0 masks.
    pub masked: &'a [u8],
    /// `[D]`
    pub token: &'a [f32],
}

/// out `[B, 1 + patches, D]` = `[cls; patch or mask token] + positions`, with cls `[D]`, patches `[B, patches, D]`
/// and positions `[1 + patches, D]`. Errors: INVALID_ARGUMENT when lengths don't fit.
pub fn assemble_embeddings(
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
    let tokens = count.saturating_add(1);
    check_len(
        "The patch embeddings",
        patches.len(),
        &[batch, count, width],
    )?;
    check_len("The CLS token", cls.len(), &[width])?;
    check_len("The position embeddings", positions.len(), &[tokens, width])?;
    check_len("The embeddings", out.len(), &[batch, tokens, width])?;
    if let Some(mask) = mask {
        check_len("bool_masked_pos", mask.masked.len(), &[batch, count])?;
        check_len("The mask token", mask.token.len(), &[width])?;
    }
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
