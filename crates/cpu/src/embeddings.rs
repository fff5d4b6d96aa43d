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
        assemble_embeddings(&PATCHES, SHAPE, &CLS, &POSITIONS, None, &mut out).unwrap();
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
        assemble_embeddings(&PATCHES, SHAPE, &CLS, &POSITIONS, Some(mask), &mut out).unwrap();
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
            assemble_embeddings(
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
}
