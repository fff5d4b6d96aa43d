//! Self-attention on the output of one fused linear layer.
//!
//! Keys and values are packed once per head into the GEMM's panels. [`scaled_dot_product_attention`] iterates
//! over blocks of queries and keys with a running maximum and sum (Milakov and Gimelshein, 2018; Dao et al.,
//! FlashAttention, 2022), so its memory doesn't grow with the square of the tokens. [`eager_attention`]
//! materialises and returns the probabilities.

use std::ops::Range;

use vit_msn_tensor::{Dropout, DropoutMask, Error, Result, check_len, numel, try_vec};

use crate::dropout;
use crate::linear::microkernel::{Init, MR, NR, Panels, Tile};
use crate::runtime::parallel::{DisjointSliceMut, Rows, for_each_task, threads_for};
use crate::runtime::simd::{Exp, F32x4, LANES, map_in_place};
use crate::softmax::{exp_of_difference, largest, softmax_rows};

/// Queries multiplied by one block of keys and values before the next, so that the block stays in L2.
const QUERY_BLOCK: usize = 66 / MR * MR;
const KEY_BLOCK: usize = 256;
/// Stride of the scores of consecutive queries, chosen so that they map to different cache sets.
const SCORES_STRIDE: usize = KEY_BLOCK + 16;

/// The sizes of an attention: D = heads · head_dim.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// B
    pub batch: usize,
    /// N
    pub tokens: usize,
    /// The number of heads.
    pub heads: usize,
    /// The channels of each head.
    pub head_dim: usize,
}

impl AttentionShape {
    pub(crate) fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    pub(crate) fn check(&self, qkv: &[f32], out: &[f32]) -> Result<()> {
        if self.heads == 0 || self.head_dim == 0 {
            return Err(Error::InvalidArgument(
                "Attention needs at least one head of at least one channel.".to_string(),
            ));
        }
        let width = numel(&[self.heads, self.head_dim])?;
        numel(&[self.tokens, 3, width])?;
        check_len(
            "The input of attention",
            qkv.len(),
            &[self.batch, self.tokens, 3, width],
        )?;
        check_len(
            "The output of attention",
            out.len(),
            &[self.batch, self.tokens, width],
        )
    }
}

/// Fused attention without the N × N scores: qkv `[B, N, 3·D]` (queries, keys and values side by side) to out
/// `[B, N, D]`, scaled by head_dim^-½.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match, OUT_OF_MEMORY.
pub fn scaled_dot_product_attention(
    qkv: &[f32],
    shape: AttentionShape,
    out: &mut [f32],
) -> Result<()> {
    shape.check(qkv, out)?;
    let tokens = shape.tokens;
    for_each_head(qkv, shape, out, &|_, head, scores, qkv, mut out| {
        let exp = Exp::new();
        for query0 in (0..tokens).step_by(QUERY_BLOCK) {
            let query_end = tokens.min(query0 + QUERY_BLOCK);
            let mut state = [[(f32::NEG_INFINITY, 0.0); MR]; QUERY_BLOCK / MR];
            for key0 in (0..tokens).step_by(KEY_BLOCK) {
                let keys = key0..tokens.min(key0 + KEY_BLOCK);
                let padded = key0..keys.end.next_multiple_of(NR);
                for (query, state) in (query0..query_end).step_by(MR).zip(&mut state) {
                    let count = MR.min(query_end - query);
                    let q = &qkv[query * 3 * shape.width()..];
                    let mut out = out.skip(query);
                    let rows = &mut Rows::new(scores, SCORES_STRIDE);
                    head.score(q, count, padded.clone(), rows);
                    for (row, state) in state[..count].iter_mut().enumerate() {
                        let context = out.row(row, shape.head_dim);
                        let scores = rows.row(row, padded.len());
                        scores[keys.len()..].fill(f32::NEG_INFINITY);
                        update(&exp, scores, state, context, key0 > 0);
                    }
                    let weights = Tile {
                        values: scores,
                        stride: SCORES_STRIDE,
                        rows: count,
                    };
                    head.combine(weights, keys.clone(), &mut out);
                }
            }
            for (query, (_, sum)) in (query0..query_end).zip(state.as_flattened()) {
                let factor = F32x4::splat(1.0 / sum);
                map_in_place(out.skip(query).row(0, shape.head_dim), |v| v.mul(factor));
            }
        }
    })
}

/// Converts a row of scores to weights relative to the new running maximum, and rescales the earlier sums to
/// it.
fn update(
    exp: &Exp,
    row: &mut [f32],
    (maximum, sum): &mut (f32, f32),
    context: &mut [f32],
    continues: bool,
) {
    let new_maximum = maximum.max(largest(row));
    let new_sum = exp_of_difference(exp, row, new_maximum);
    if continues {
        let decay = (*maximum - new_maximum).exp();
        *sum = *sum * decay + new_sum;
        map_in_place(context, |v| v.mul(F32x4::splat(decay)));
    } else {
        *sum = new_sum;
    }
    *maximum = new_maximum;
}

/// Attention that also returns its probabilities: qkv `[B, N, 3·D]` to probs `[B, heads, N, N]` and out `[B, N,
/// D]`.
///
/// # Errors
/// Same as [`scaled_dot_product_attention`].
pub fn eager_attention(
    qkv: &[f32],
    shape: AttentionShape,
    probs: &mut [f32],
    out: &mut [f32],
) -> Result<()> {
    eager_attention_dropout(qkv, shape, None, probs, out)
}

/// Like [`eager_attention`], but weights the values by the probabilities after dropout; `probs` receives those
/// before it. `dropped`, of the same size, is scratch memory for the dropped ones.
pub fn eager_attention_dropout(
    qkv: &[f32],
    shape: AttentionShape,
    dropout: Option<(Dropout, &mut [f32])>,
    probs: &mut [f32],
    out: &mut [f32],
) -> Result<()> {
    shape.check(qkv, out)?;
    let tokens = shape.tokens;
    let dims = [shape.batch, shape.heads, tokens, tokens];
    check_len("The probabilities of attention", probs.len(), &dims)?;
    if let Some((_, dropped)) = &dropout {
        check_len("The dropped probabilities", dropped.len(), &dims)?;
    }
    if probs.is_empty() {
        return Ok(());
    }
    let dropout = dropout
        .map(|(dropout, dropped)| Ok((DropoutMask::new(dropout)?, DisjointSliceMut::new(dropped))))
        .transpose()?;
    let probs = DisjointSliceMut::new(probs);
    for_each_head(qkv, shape, out, &|index, head, _, qkv, mut out| {
        let size = tokens * tokens;
        // SAFETY: each head has its own probabilities.
        let probs = unsafe { probs.get(index * size, size) };
        for query in (0..tokens).step_by(MR) {
            let count = MR.min(tokens - query);
            let q = &qkv[query * 3 * shape.width()..];
            let rows = &mut probs[query * tokens..][..count * tokens];
            let scores = &mut Rows::new(rows, tokens);
            head.score(q, count, 0..tokens, scores);
            softmax_rows(rows, tokens);
            let values = match &dropout {
                Some((mask, dropped)) => {
                    let first = index * size + query * tokens;
                    // SAFETY: each head has its own dropped probabilities, too.
                    let dropped = unsafe { dropped.get(first, rows.len()) };
                    dropout::apply(mask, rows, first as u32, dropped);
                    dropped
                }
                None => rows,
            };
            let weights = Tile {
                values,
                stride: tokens,
                rows: count,
            };
            head.combine(weights, 0..tokens, &mut out.skip(query));
        }
    })
}

/// The function run for one head. Its arguments: the head's index, its packed keys and values, the thread's
/// scores of a tile of queries, qkv starting at the head's first query, and the rows of its output.
type RunHead<'a> = dyn Fn(usize, &Head, &mut [f32], &[f32], Rows<f32>) + Sync + 'a;

/// Packs and runs each head of each sample.
fn for_each_head(qkv: &[f32], shape: AttentionShape, out: &mut [f32], run: &RunHead) -> Result<()> {
    if qkv.is_empty() {
        return Ok(());
    }
    let (width, sample) = (shape.width(), shape.tokens * shape.width());
    let heads = shape.batch * shape.heads;
    let threads = threads_for((2 * sample).saturating_mul(shape.batch * shape.tokens)).min(heads);
    let mut scratch = (0..threads)
        .map(|_| Ok((Head::new(shape)?, try_vec(MR * SCORES_STRIDE)?)))
        .collect::<Result<Vec<_>>>()?;
    let (scratch, out) = (
        DisjointSliceMut::new(&mut scratch),
        DisjointSliceMut::new(out),
    );
    for_each_task(threads, heads, &|task| {
        // SAFETY: each thread has its own scratch.
        let (head, scores) = &mut unsafe { scratch.get(task.thread, 1) }[0];
        let (batch, channel) = (
            task.index / shape.heads,
            task.index % shape.heads * shape.head_dim,
        );
        let qkv = &qkv[batch * 3 * sample..][..3 * sample][channel..];
        head.pack(qkv);
        // SAFETY: each task has its own channels of its sample's rows.
        let out = unsafe { out.rows(batch * sample + channel, width) };
        run(task.index, head, scores, qkv, out);
    });
    Ok(())
}

/// The packed keys and values of one head.
struct Head {
    shape: AttentionShape,
    /// Panels of NR keys, ordered by channel and multiplied by the scale.
    keys: Vec<f32>,
    /// Panels of NR channels, ordered by key.
    values: Vec<f32>,
}

impl Head {
    fn new(shape: AttentionShape) -> Result<Self> {
        let keys = try_vec(numel(&[shape.tokens.next_multiple_of(NR), shape.head_dim])?)?;
        let values = try_vec(numel(&[shape.head_dim.next_multiple_of(NR), shape.tokens])?)?;
        Ok(Self {
            shape,
            keys,
            values,
        })
    }

    /// Packs the keys and values of the head whose first query is at the start of `qkv`. The padding of the
    /// last panels stays zero.
    fn pack(&mut self, qkv: &[f32]) {
        let AttentionShape {
            tokens, head_dim, ..
        } = self.shape;
        let width = self.shape.width();
        let scale = (head_dim as f32).sqrt().recip();
        let rows = || qkv.chunks(3 * width).take(tokens);
        for (token, row) in rows().enumerate() {
            for (index, channels) in row[2 * width..][..head_dim].chunks(NR).enumerate() {
                self.values[(index * tokens + token) * NR..][..channels.len()]
                    .copy_from_slice(channels);
            }
        }
        for first in (0..tokens).step_by(LANES) {
            let panel = &mut self.keys[first / NR * NR * head_dim..][..NR * head_dim];
            let count = LANES.min(tokens - first);
            let keys = std::array::from_fn(|key| {
                &qkv[(first + key.min(count - 1)) * 3 * width + width..][..head_dim]
            });
            pack_keys(keys, count, scale, panel, first % NR);
        }
    }

    /// scores[query, key] = scale · q · k for the first `count` queries of `q` and a range of keys that starts
    /// at a multiple of NR; the scores of padding in the last panel are zero.
    fn score(&self, q: &[f32], count: usize, keys: Range<usize>, scores: &mut Rows<f32>) {
        let depth = self.shape.head_dim;
        let queries = Tile {
            values: q,
            stride: 3 * self.shape.width(),
            rows: count,
        };
        let panels = Panels {
            values: &self.keys[keys.start * depth..],
            stride: NR * depth,
            depth,
        };
        panels.multiply(queries, keys.len(), Init::Zero, scores);
    }

    /// out[query, channel] += Σ weights[query, key] · v, starting from zero for the first block.
    fn combine(&self, weights: Tile, keys: Range<usize>, out: &mut Rows<f32>) {
        let AttentionShape {
            tokens, head_dim, ..
        } = self.shape;
        let start = if keys.start == 0 {
            Init::Zero
        } else {
            Init::Accumulate
        };
        let panels = Panels {
            values: &self.values[keys.start * NR..],
            stride: tokens * NR,
            depth: keys.len(),
        };
        panels.multiply(weights, head_dim, start, out);
    }
}

/// Writes the first `count` of four keys, times `scale`, into the columns of a panel, starting at `column`.
fn pack_keys(keys: [&[f32]; LANES], count: usize, scale: f32, panel: &mut [f32], column: usize) {
    let whole = if count == LANES {
        keys[0].len() / LANES * LANES
    } else {
        0
    };
    for channel in (0..whole).step_by(LANES) {
        // SAFETY: the slices are four floats each.
        unsafe {
            let rows = keys.map(|key| F32x4::load(key[channel..channel + LANES].as_ptr()));
            for (offset, values) in F32x4::transpose(rows).into_iter().enumerate() {
                let target = &mut panel[(channel + offset) * NR + column..][..LANES];
                values.mul(F32x4::splat(scale)).store(target.as_mut_ptr());
            }
        }
    }
    for (offset, key) in keys[..count].iter().enumerate() {
        for (channel, value) in key.iter().enumerate().skip(whole) {
            panel[channel * NR + column + offset] = value * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, same_with_workers, values};
    use proptest::prelude::*;

    fn naive(qkv: &[f32], shape: AttentionShape) -> (Vec<f64>, Vec<f64>) {
        let AttentionShape {
            batch,
            tokens,
            heads,
            head_dim,
        } = shape;
        let width = heads * head_dim;
        let at = |b: usize, t: usize, part: usize, h: usize, c: usize| {
            f64::from(qkv[((b * tokens + t) * 3 + part) * width + h * head_dim + c])
        };
        let mut probs = vec![0.0; batch * heads * tokens * tokens];
        let mut out = vec![0.0; batch * tokens * width];
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            for q in 0..tokens {
                let row = &mut probs[((b * heads + h) * tokens + q) * tokens..][..tokens];
                for (k, value) in row.iter_mut().enumerate() {
                    let dot: f64 = (0..head_dim)
                        .map(|c| at(b, q, 0, h, c) * at(b, k, 1, h, c))
                        .sum();
                    *value = dot / (head_dim as f64).sqrt();
                }
                let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                row.iter_mut().for_each(|v| *v = (*v - largest).exp());
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|v| *v /= sum);
                for c in 0..head_dim {
                    out[(b * tokens + q) * width + h * head_dim + c] = row
                        .iter()
                        .enumerate()
                        .map(|(k, p)| p * at(b, k, 2, h, c))
                        .sum();
                }
            }
        }
        (probs, out)
    }

    fn check(shape: AttentionShape, scale: f32) {
        let AttentionShape {
            batch,
            tokens,
            heads,
            ..
        } = shape;
        let size = batch * tokens * shape.width();
        let qkv: Vec<f32> = values(3 * size, 21)
            .into_iter()
            .map(|v| v * scale)
            .collect();
        let (expected_probs, expected) = naive(&qkv, shape);
        let mut out = vec![f32::NAN; size];
        scaled_dot_product_attention(&qkv, shape, &mut out).unwrap();
        let tolerance = 2e-6 * f64::from(scale * scale).max(1.0);
        assert_close(&out, &expected, tolerance);
        let mut out = vec![f32::NAN; size];
        let mut probs = vec![f32::NAN; batch * heads * tokens * tokens];
        eager_attention(&qkv, shape, &mut probs, &mut out).unwrap();
        assert_close(&out, &expected, tolerance);
        assert_close(&probs, &expected_probs, tolerance);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(80))]

        #[test]
        fn attention_matches_the_naive_one(
            batch in 0usize..3, tokens in 0usize..50, heads in 1usize..4, head_dim in 1usize..40, scale in 0.1f32..6.0,
        ) {
            check(AttentionShape { batch, tokens, heads, head_dim }, scale);
        }
    }

    #[test]
    fn streaming_crosses_blocks_of_queries_and_keys() {
        for (tokens, head_dim) in [
            (KEY_BLOCK, 12),
            (KEY_BLOCK + 1, 7),
            // Several panels of values, the last of them whole and not.
            (KEY_BLOCK + 1, 24),
            (KEY_BLOCK + 1, 35),
            (2 * KEY_BLOCK + 37, 64),
            (QUERY_BLOCK, 1),
        ] {
            check(
                AttentionShape {
                    batch: 1,
                    tokens,
                    heads: 2,
                    head_dim,
                },
                3.0,
            );
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let shape = AttentionShape {
            batch: 2,
            tokens: 197,
            heads: 6,
            head_dim: 20,
        };
        let qkv = values(3 * 2 * 197 * 120, 21);
        same_with_workers(|| {
            let mut out = vec![f32::NAN; 2 * 197 * 120];
            scaled_dot_product_attention(&qkv, shape, &mut out).unwrap();
            out
        });
        same_with_workers(|| {
            let mut out = vec![f32::NAN; 2 * 197 * 120];
            let mut probs = vec![f32::NAN; 2 * 6 * 197 * 197];
            eager_attention(&qkv, shape, &mut probs, &mut out).unwrap();
            [out, probs].concat()
        });
    }

    #[test]
    fn a_maximum_that_moves_between_blocks_is_rescaled() {
        // The last key's score is far above all earlier ones: everything summed before it must vanish.
        let (tokens, shape) = (
            KEY_BLOCK + 2,
            AttentionShape {
                batch: 1,
                tokens: KEY_BLOCK + 2,
                heads: 1,
                head_dim: 1,
            },
        );
        let mut qkv: Vec<f32> = (0..tokens)
            .flat_map(|t| [1.0, t as f32 * 0.01, t as f32])
            .collect();
        qkv[3 * tokens - 2] = 500.0;
        let mut out = vec![0.0; tokens];
        scaled_dot_product_attention(&qkv, shape, &mut out).unwrap();
        assert_eq!(out, vec![(tokens - 1) as f32; tokens]);
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let shape = AttentionShape {
            batch: 1,
            tokens: 2,
            heads: 2,
            head_dim: 3,
        };
        assert_eq!(
            scaled_dot_product_attention(&[0.0; 35], shape, &mut [0.0; 12])
                .unwrap_err()
                .code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            scaled_dot_product_attention(&[0.0; 36], shape, &mut [0.0; 11])
                .unwrap_err()
                .code(),
            "INVALID_ARGUMENT"
        );
        let error = eager_attention(&[0.0; 36], shape, &mut [0.0; 7], &mut [0.0; 12]).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
        for (tokens, heads, head_dim) in
            [(2, 0, 3), (2, 2, 0), (usize::MAX, 1, 1), (2, usize::MAX, 2)]
        {
            let shape = AttentionShape {
                batch: 0,
                tokens,
                heads,
                head_dim,
            };
            assert_eq!(
                scaled_dot_product_attention(&[], shape, &mut [])
                    .unwrap_err()
                    .code(),
                "INVALID_ARGUMENT"
            );
        }
    }
}
