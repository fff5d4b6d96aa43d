//! The gradients of self-attention with respect to queries, keys and values.
//!
//! With S = scale · Q·Kᵀ, P = softmax(S) and O = P·V: dV = Pᵀ·dO, dP = dO·Vᵀ, dS = P ∘ (dP − D) with D =
//! rowsum(dO ∘ O) = rowsum(P ∘ dP), dQ = scale · dS·K and dK = scale · dSᵀ·Q (Dao et al., FlashAttention, 2022,
//! appendix B). Only one block of queries has its scores in memory at a time, so memory is linear in the number
//! of tokens, not quadratic.

use vit_msn_tensor::{Dropout, DropoutMask, Result, check_len, numel, try_vec};

use crate::attention::forward::AttentionShape;
use crate::dropout;
use crate::elementwise::update_block;
use crate::linear::microkernel::{Init, MR, NR, Panels};
use crate::linear::transpose::{pack_columns, transpose};
use crate::runtime::parallel::{DisjointSliceMut, Rows, for_each_task, threads_for};
use crate::runtime::simd::{F32x4, LANES, map_in_place};
use crate::softmax::softmax_rows;

/// Queries per block, in whole tiles.
const QUERY_BLOCK: usize = 102 / MR * MR;

/// The gradient of [`crate::scaled_dot_product_attention`] with respect to qkv `[B, N, 3·D]`; grad and context,
/// the op's output, are `[B, N, D]`. Recomputes the probabilities.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match, OUT_OF_MEMORY.
pub fn scaled_dot_product_attention_backward(
    grad: &[f32],
    qkv: &[f32],
    context: &[f32],
    shape: AttentionShape,
    out: &mut [f32],
) -> Result<()> {
    check(grad, qkv, shape, out)?;
    shape.check(qkv, context)?;
    for_each_head(grad, qkv, Saved::Context(context), shape, out)
}

/// The gradient of [`crate::eager_attention`] and, with `dropout`, of [`crate::eager_attention_dropout`] with
/// respect to qkv, computed from the probabilities `[B, heads, N, N]` that the op returned.
///
/// # Errors
/// Same as [`scaled_dot_product_attention_backward`].
pub fn eager_attention_backward(
    grad: &[f32],
    qkv: &[f32],
    probs: &[f32],
    shape: AttentionShape,
    dropout: Option<Dropout>,
    out: &mut [f32],
) -> Result<()> {
    check(grad, qkv, shape, out)?;
    check_len(
        "The probabilities of attention",
        probs.len(),
        &[shape.batch, shape.heads, shape.tokens, shape.tokens],
    )?;
    let mask = dropout.map(DropoutMask::new).transpose()?;
    for_each_head(grad, qkv, Saved::Probs(probs, mask.as_ref(), 0), shape, out)
}

fn check(grad: &[f32], qkv: &[f32], shape: AttentionShape, out: &[f32]) -> Result<()> {
    shape.check(qkv, grad)?;
    check_len("The gradient with respect to qkv", out.len(), &[qkv.len()])
}

/// What the forward op saved.
#[derive(Clone, Copy)]
enum Saved<'a> {
    Context(&'a [f32]),
    /// Probabilities before dropout, the dropout mask, and the index of the first probability.
    Probs(&'a [f32], Option<&'a DropoutMask>, usize),
}

fn for_each_head(
    grad: &[f32],
    qkv: &[f32],
    saved: Saved,
    shape: AttentionShape,
    out: &mut [f32],
) -> Result<()> {
    if qkv.is_empty() {
        return Ok(());
    }
    let (tokens, width) = (shape.tokens, shape.width());
    let sample = tokens * width;
    let heads = shape.batch * shape.heads;
    let multiply_adds = (5 * sample).saturating_mul(shape.batch * tokens);
    let threads = threads_for(multiply_adds).min(heads);
    let mut heads_of_threads = (0..threads)
        .map(|_| Head::new(shape))
        .collect::<Result<Vec<_>>>()?;
    let (heads_of_threads, out) = (
        DisjointSliceMut::new(&mut heads_of_threads),
        DisjointSliceMut::new(out),
    );
    for_each_task(threads, heads, &|task| {
        // SAFETY: each thread has its own head.
        let head = &mut unsafe { heads_of_threads.get(task.thread, 1) }[0];
        let (batch, channel) = (
            task.index / shape.heads,
            task.index % shape.heads * shape.head_dim,
        );
        let first = batch * sample + channel;
        let (qkv, grad) = (&qkv[batch * 3 * sample + channel..], &grad[first..]);
        let saved = match saved {
            Saved::Context(context) => Saved::Context(&context[first..]),
            Saved::Probs(probs, mask, _) => {
                let first = task.index * tokens * tokens;
                Saved::Probs(&probs[first..], mask, first)
            }
        };
        // SAFETY: each task has its own channels of its sample's queries, keys and values.
        let out = [0, 1, 2].map(|part| unsafe {
            out.rows(batch * 3 * sample + part * width + channel, 3 * width)
        });
        head.run(grad, qkv, saved, out);
    });
    Ok(())
}

/// The operands of one head and the scratch memory of its thread.
struct Head {
    shape: AttentionShape,
    /// Panels of NR keys, ordered by channel and multiplied by the scale; the values likewise, unscaled.
    keys_by_channel: Vec<f32>,
    values_by_channel: Vec<f32>,
    /// Panels of NR channels, ordered by token.
    queries: Vec<f32>,
    keys: Vec<f32>,
    grads: Vec<f32>,
    /// [QUERY_BLOCK, N]
    probs: Vec<f32>,
    d_scores: Vec<f32>,
    /// [N, QUERY_BLOCK]
    transposed: Vec<f32>,
}

impl Head {
    fn new(shape: AttentionShape) -> Result<Self> {
        let AttentionShape {
            tokens, head_dim, ..
        } = shape;
        let by_channel = numel(&[tokens.next_multiple_of(NR), head_dim])?;
        let by_token = numel(&[head_dim.next_multiple_of(NR), tokens])?;
        let block = numel(&[QUERY_BLOCK.min(tokens), tokens])?;
        Ok(Self {
            shape,
            keys_by_channel: try_vec(by_channel)?,
            values_by_channel: try_vec(by_channel)?,
            queries: try_vec(by_token)?,
            keys: try_vec(by_token)?,
            grads: try_vec(by_token)?,
            probs: try_vec(block)?,
            d_scores: try_vec(block)?,
            transposed: try_vec(block)?,
        })
    }

    /// `grad`, `qkv` and the saved tensor start at the head's first element; `out` holds the rows of the
    /// gradients with respect to its queries, keys and values.
    fn run(&mut self, grad: &[f32], qkv: &[f32], saved: Saved, out: [Rows<f32>; 3]) {
        self.pack(grad, qkv);
        let AttentionShape {
            tokens, head_dim, ..
        } = self.shape;
        let width = self.shape.width();
        let [mut by_queries, mut by_keys, mut by_values] = out;
        for query0 in (0..tokens).step_by(QUERY_BLOCK) {
            let queries = QUERY_BLOCK.min(tokens - query0);
            let block = queries * tokens;
            let (q, grad) = (&qkv[query0 * 3 * width..], &grad[query0 * width..]);
            let start = if query0 == 0 {
                Init::Zero
            } else {
                Init::Accumulate
            };
            let by_key = Product {
                rows: queries,
                depth: head_dim,
                columns: tokens,
                panel_depth: head_dim,
            };
            match saved {
                Saved::Probs(saved, ..) => {
                    self.probs[..block].copy_from_slice(&saved[query0 * tokens..][..block]);
                }
                Saved::Context(_) => {
                    let scores = &mut Rows::new(&mut self.probs, tokens);
                    by_key.run(q, 3 * width, &self.keys_by_channel, Init::Zero, scores);
                    softmax_rows(&mut self.probs[..block], tokens);
                }
            }
            let by_channel = Product {
                rows: tokens,
                depth: queries,
                columns: head_dim,
                panel_depth: tokens,
            };
            let mask = match saved {
                Saved::Probs(_, mask, first) => {
                    mask.map(|mask| (mask, (first + query0 * tokens) as u32))
                }
                Saved::Context(_) => None,
            };
            let weights = match mask {
                Some((mask, first)) => {
                    dropout::apply(
                        mask,
                        &self.probs[..block],
                        first,
                        &mut self.d_scores[..block],
                    );
                    &self.d_scores
                }
                None => &self.probs,
            };
            transpose(
                weights,
                tokens,
                queries,
                tokens,
                &mut self.transposed,
                queries,
            );
            let panels = &self.grads[query0 * NR..];
            by_channel.run(&self.transposed, queries, panels, start, &mut by_values);

            let d_scores = &mut Rows::new(&mut self.d_scores, tokens);
            by_key.run(grad, width, &self.values_by_channel, Init::Zero, d_scores);
            if let Some((mask, first)) = mask {
                // The gradient of dropout is dropout with the same mask.
                dropout::apply(
                    mask,
                    &self.d_scores[..block],
                    first,
                    &mut self.transposed[..block],
                );
                self.d_scores[..block].copy_from_slice(&self.transposed[..block]);
            }
            self.convert_to_score_gradients(queries, |query, probs, d_scores| match saved {
                Saved::Probs(..) => dot(probs, d_scores),
                Saved::Context(context) => {
                    let context = &context[(query0 + query) * width..][..head_dim];
                    dot(&grad[query * width..][..head_dim], context)
                }
            });
            let by_query = Product {
                rows: queries,
                depth: tokens,
                columns: head_dim,
                panel_depth: tokens,
            };
            let target = &mut by_queries.skip(query0);
            by_query.run(&self.d_scores, tokens, &self.keys, Init::Zero, target);
            transpose(
                &self.d_scores,
                tokens,
                queries,
                tokens,
                &mut self.transposed,
                queries,
            );
            let panels = &self.queries[query0 * NR..];
            by_channel.run(&self.transposed, queries, panels, start, &mut by_keys);
        }
    }

    /// Packs a head; the padding of the last panels stays zero.
    fn pack(&mut self, grad: &[f32], qkv: &[f32]) {
        let AttentionShape {
            tokens, head_dim, ..
        } = self.shape;
        let width = self.shape.width();
        let (keys, values) = (&qkv[width..], &qkv[2 * width..]);
        for first in (0..tokens).step_by(NR) {
            let count = NR.min(tokens - first);
            for (source, panels) in [
                (keys, &mut self.keys_by_channel),
                (values, &mut self.values_by_channel),
            ] {
                let source = &source[first * 3 * width..];
                let panel = &mut panels[first * head_dim..];
                transpose(source, 3 * width, count, head_dim, panel, NR);
            }
        }
        let scale = F32x4::splat((head_dim as f32).sqrt().recip());
        map_in_place(&mut self.keys_by_channel, |key| key.mul(scale));
        for first in (0..head_dim).step_by(NR) {
            let count = NR.min(head_dim - first);
            for (source, stride, panels) in [
                (qkv, 3 * width, &mut self.queries),
                (keys, 3 * width, &mut self.keys),
                (grad, width, &mut self.grads),
            ] {
                let panel = &mut panels[first * tokens..][..tokens * NR];
                pack_columns(&source[first..], stride, count, panel);
            }
        }
    }

    /// Converts the gradients with respect to probabilities to scale times those with respect to scores: P ∘
    /// (dP − D); `total` returns a query's D.
    fn convert_to_score_gradients(
        &mut self,
        queries: usize,
        total: impl Fn(usize, &[f32], &[f32]) -> f32,
    ) {
        let tokens = self.shape.tokens;
        let scale = F32x4::splat(self.scale());
        let rows = self.d_scores.chunks_exact_mut(tokens).take(queries);
        for (query, (d_scores, probs)) in rows.zip(self.probs.chunks_exact(tokens)).enumerate() {
            let total = F32x4::splat(total(query, probs, d_scores));
            update_block([d_scores], [probs], |[d_score], [prob]| {
                [d_score.sub(total).mul(prob.mul(scale))]
            });
        }
    }

    fn scale(&self) -> f32 {
        (self.shape.head_dim as f32).sqrt().recip()
    }
}

/// A product of rows with packed panels; it may use only `depth` of the panels' `panel_depth` rows.
struct Product {
    rows: usize,
    depth: usize,
    columns: usize,
    panel_depth: usize,
}

impl Product {
    #[inline(never)]
    fn run(&self, a: &[f32], a_stride: usize, panels: &[f32], start: Init, out: &mut Rows<f32>) {
        let panels = Panels {
            values: panels,
            stride: self.panel_depth * NR,
            depth: self.depth,
        };
        panels.multiply_rows(a, a_stride, self.rows, self.columns, start, out);
    }
}

fn dot(x: &[f32], y: &[f32]) -> f32 {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let lanes = x.iter().zip(y).fold(F32x4::splat(0.0), |sum, (x, y)| {
        // SAFETY: each chunk is four floats.
        unsafe { F32x4::load(x.as_ptr()).mul_add(F32x4::load(y.as_ptr()), sum) }
    });
    let rest: f32 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    lanes.sum() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, same_with_workers, values};
    use crate::{eager_attention, eager_attention_dropout, scaled_dot_product_attention};
    use proptest::prelude::*;

    /// The rows of one head's queries, keys or values (`part`), in float64.
    fn head(qkv: &[f64], s: AttentionShape, b: usize, h: usize, part: usize) -> Vec<&[f64]> {
        let width = s.width();
        let first = |t: usize| ((b * s.tokens + t) * 3 + part) * width + h * s.head_dim;
        (0..s.tokens)
            .map(|t| &qkv[first(t)..][..s.head_dim])
            .collect()
    }

    fn product(x: &[f64], y: &[f64]) -> f64 {
        x.iter().zip(y).map(|(x, y)| x * y).sum()
    }

    fn naive_probs(queries: &[&[f64]], keys: &[&[f64]]) -> Vec<Vec<f64>> {
        let scale = keys
            .first()
            .map_or(1.0, |key| (key.len() as f64).sqrt().recip());
        let softmax = |query: &&[f64]| {
            let scores: Vec<f64> = keys.iter().map(|key| scale * product(query, key)).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<f64> = scores.iter().map(|v| (v - largest).exp()).collect();
            let sum: f64 = exps.iter().sum();
            exps.into_iter().map(|v| v / sum).collect()
        };
        queries.iter().map(softmax).collect()
    }

    /// Σ grad · attention(qkv), whose gradient is under test.
    fn loss(grad: &[f32], qkv: &[f64], s: AttentionShape) -> f64 {
        let mut sum = 0.0;
        for (b, h) in (0..s.batch).flat_map(|b| (0..s.heads).map(move |h| (b, h))) {
            let [q, k, v] = [0, 1, 2].map(|part| head(qkv, s, b, h, part));
            for (token, probs) in naive_probs(&q, &k).iter().enumerate() {
                for channel in 0..s.head_dim {
                    let out: f64 = probs.iter().zip(&v).map(|(p, v)| p * v[channel]).sum();
                    let first = (b * s.tokens + token) * s.width() + h * s.head_dim;
                    sum += f64::from(grad[first + channel]) * out;
                }
            }
        }
        sum
    }

    /// The formulas above in float64, element by element.
    fn naive(grad: &[f32], qkv: &[f32], s: AttentionShape) -> Vec<f64> {
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let (grad, qkv) = (wide(grad), wide(qkv));
        let scale = (s.head_dim as f64).sqrt().recip();
        let mut out = vec![0.0; qkv.len()];
        for (b, h) in (0..s.batch).flat_map(|b| (0..s.heads).map(move |h| (b, h))) {
            let [q, k, v] = [0, 1, 2].map(|part| head(&qkv, s, b, h, part));
            let at = |t: usize, part: usize| {
                ((b * s.tokens + t) * 3 + part) * s.width() + h * s.head_dim
            };
            for (i, probs) in naive_probs(&q, &k).iter().enumerate() {
                let grad = &grad[(b * s.tokens + i) * s.width() + h * s.head_dim..][..s.head_dim];
                let d_scores: Vec<f64> = v.iter().map(|value| product(grad, value)).collect();
                let total = product(probs, &d_scores);
                for j in 0..s.tokens {
                    let d_score = scale * probs[j] * (d_scores[j] - total);
                    for c in 0..s.head_dim {
                        out[at(i, 0) + c] += d_score * k[j][c];
                        out[at(j, 1) + c] += d_score * q[i][c];
                        out[at(j, 2) + c] += probs[j] * grad[c];
                    }
                }
            }
        }
        out
    }

    fn shape(batch: usize, tokens: usize, heads: usize, head_dim: usize) -> AttentionShape {
        AttentionShape {
            batch,
            tokens,
            heads,
            head_dim,
        }
    }

    /// The gradients computed by both ops.
    fn run(grad: &[f32], qkv: &[f32], s: AttentionShape) -> [Vec<f32>; 2] {
        let mut context = vec![f32::NAN; grad.len()];
        let mut fused = vec![f32::NAN; qkv.len()];
        scaled_dot_product_attention(qkv, s, &mut context).unwrap();
        scaled_dot_product_attention_backward(grad, qkv, &context, s, &mut fused).unwrap();
        let mut probs = vec![f32::NAN; s.batch * s.heads * s.tokens * s.tokens];
        let mut by_definition = vec![f32::NAN; qkv.len()];
        eager_attention(qkv, s, &mut probs, &mut context).unwrap();
        eager_attention_backward(grad, qkv, &probs, s, None, &mut by_definition).unwrap();
        [fused, by_definition]
    }

    fn check(s: AttentionShape, scale: f32) {
        let size = s.batch * s.tokens * s.width();
        let qkv: Vec<f32> = values(3 * size, 1).into_iter().map(|v| v * scale).collect();
        let grad = values(size, 2);
        let expected = naive(&grad, &qkv, s);
        for actual in run(&grad, &qkv, s) {
            assert_close(&actual, &expected, 1e-5 * f64::from(scale * scale).max(1.0));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn gradients_match_the_formulas(
            batch in 0usize..3, tokens in 1usize..60, heads in 1usize..4, head_dim in 1usize..36, scale in 0.1f32..4.0,
        ) {
            check(shape(batch, tokens, heads, head_dim), scale);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        #[test]
        fn the_formulas_match_finite_differences(tokens in 1usize..8, heads in 1usize..3, head_dim in 1usize..6) {
            let s = shape(1, tokens, heads, head_dim);
            let (grad, qkv) = (values(tokens * s.width(), 3), values(3 * tokens * s.width(), 4));
            let wide: Vec<f64> = qkv.iter().map(|&v| f64::from(v)).collect();
            let step = 1e-5;
            for (index, expected) in naive(&grad, &qkv, s).into_iter().enumerate() {
                let at = |offset: f64| {
                    let mut moved = wide.clone();
                    moved[index] += offset;
                    loss(&grad, &moved, s)
                };
                let d_score = (at(step) - at(-step)) / (2.0 * step);
                prop_assert!((d_score - expected).abs() < 1e-8, "{index}: {d_score}, {expected}");
            }
        }
    }

    #[test]
    fn gradients_cross_blocks_of_queries() {
        for (tokens, head_dim) in [
            (QUERY_BLOCK, 8),
            (QUERY_BLOCK + 1, 7),
            (3 * QUERY_BLOCK + 5, 64),
            (0, 3),
        ] {
            check(shape(1, tokens, 2, head_dim), 2.0);
        }
    }

    /// The context of eager_attention with dropout, and its gradient with respect to qkv.
    fn run_dropout(
        grad: &[f32],
        qkv: &[f32],
        s: AttentionShape,
        dropout: Dropout,
    ) -> [Vec<f32>; 2] {
        let size = s.batch * s.heads * s.tokens * s.tokens;
        let (mut probs, mut dropped) = (vec![f32::NAN; size], vec![f32::NAN; size]);
        let mut context = vec![f32::NAN; grad.len()];
        let mut gradient = vec![f32::NAN; qkv.len()];
        let given = Some((dropout, &mut dropped[..]));
        eager_attention_dropout(qkv, s, given, &mut probs, &mut context).unwrap();
        eager_attention_backward(grad, qkv, &probs, s, Some(dropout), &mut gradient).unwrap();
        [context, gradient]
    }

    #[test]
    fn dropout_of_no_probability_is_none() {
        let none = Dropout {
            probability: 0.0,
            seed: 7,
        };
        for (tokens, head_dim) in [(1, 1), (5, 3), (QUERY_BLOCK + 3, 7)] {
            let s = shape(2, tokens, 2, head_dim);
            let size = s.batch * s.tokens * s.width();
            let (grad, qkv) = (values(size, 2), values(3 * size, 1));
            let [_, expected] = run(&grad, &qkv, s);
            assert_eq!(run_dropout(&grad, &qkv, s, none)[1], expected);
        }
    }

    #[test]
    fn gradients_under_dropout_match_finite_differences() {
        let dropout = Dropout {
            probability: 0.4,
            seed: 3,
        };
        // The second case spans several blocks of queries.
        for (tokens, head_dim) in [(6, 5), (QUERY_BLOCK + 2, 2)] {
            let s = shape(1, tokens, 2, head_dim);
            let size = tokens * s.width();
            let (grad, qkv) = (values(size, 3), values(3 * size, 4));
            let [_, gradient] = run_dropout(&grad, &qkv, s, dropout);
            let loss = |qkv: &[f32]| -> f64 {
                let [context, _] = run_dropout(&grad, qkv, s, dropout);
                let products = context.iter().zip(&grad);
                products.map(|(&c, &g)| f64::from(c) * f64::from(g)).sum()
            };
            let step = 1e-2;
            for index in (0..qkv.len()).step_by(1 + qkv.len() / 40) {
                let at = |offset: f32| {
                    let mut moved = qkv.clone();
                    moved[index] += offset;
                    loss(&moved)
                };
                let d_score = (at(step) - at(-step)) / f64::from(2.0 * step);
                let actual = f64::from(gradient[index]);
                assert!(
                    (d_score - actual).abs() < 2e-3,
                    "{index}: {d_score}, {actual}"
                );
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit_under_dropout() {
        let s = shape(2, 97, 6, 20);
        let (grad, qkv) = (values(2 * 97 * 120, 5), values(3 * 2 * 97 * 120, 6));
        let dropout = Dropout {
            probability: 0.1,
            seed: 1,
        };
        same_with_workers(|| run_dropout(&grad, &qkv, s, dropout).concat());
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let s = shape(2, 197, 6, 20);
        let (grad, qkv) = (values(2 * 197 * 120, 5), values(3 * 2 * 197 * 120, 6));
        same_with_workers(|| run(&grad, &qkv, s).concat());
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let s = shape(1, 2, 2, 3);
        for (grad, qkv, context, out) in [
            (11, 36, 12, 36),
            (12, 35, 12, 36),
            (12, 36, 11, 36),
            (12, 36, 12, 35),
        ] {
            let [grad, qkv, context, mut out] = [grad, qkv, context, out].map(|len| vec![0.0; len]);
            let error = scaled_dot_product_attention_backward(&grad, &qkv, &context, s, &mut out)
                .unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
        let error =
            eager_attention_backward(&[0.0; 12], &[0.0; 36], &[0.0; 7], s, None, &mut [0.0; 36])
                .unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
        let none = shape(1, 2, 0, 3);
        let error = eager_attention_backward(&[], &[], &[], none, None, &mut []).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
    }
}
