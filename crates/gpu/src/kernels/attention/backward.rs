//! The gradients of self-attention with respect to queries, keys and values: one pass for the statistics of the
//! queries, one over queries, one over keys.

use vit_msn_tensor::{Dropout, Result};

use super::forward::{AttentionShape, PARAMS, SCALAR, VEC4};
use crate::buffers::{Binding, GpuTensor};
use crate::kernels::cost;
use crate::kernels::dropout::{DROPOUT, Mask};
use crate::kernels::elementwise::check_same_shape;
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

const GRAD_VEC4: &str = include_str!("../parts/grad_vec4.wgsl");
const GRAD_SCALAR: &str = include_str!("../parts/grad_scalar.wgsl");
const BACKWARD: &str = include_str!("backward.wgsl");

/// Rows and channels per workgroup.
const ROWS: usize = 16;
const CHANNELS: usize = 64;

/// The gradient of [`crate::scaled_dot_product_attention`] with respect to qkv `[batch, tokens, 3·width]`. grad and
/// context, the op's result, are `[batch, tokens, width]`. Probabilities are recomputed, so memory grows linearly
/// with the tokens rather than quadratically.
///
/// # Errors
/// INVALID_ARGUMENT if shapes don't match, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn scaled_dot_product_attention_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    qkv: &GpuTensor,
    context: &GpuTensor,
    heads: usize,
) -> Result<GpuTensor> {
    check_same_shape(grad, context)?;
    let backward = Backward::new(stream, grad, qkv, heads)?;
    let all = (0, backward.shape.all_heads());
    backward.record(stream, Saved::Context, context.binding(), all)?;
    Ok(backward.y)
}

/// The gradient of [`crate::eager_attention`] or, with `dropout`, of [`crate::eager_attention_dropout`] with respect
/// to qkv, given the probabilities `[batch, heads, tokens, tokens]` that the op returned.
///
/// # Errors
/// As [`scaled_dot_product_attention_backward`].
pub fn eager_attention_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    qkv: &GpuTensor,
    probs: &GpuTensor,
    heads: usize,
    dropout: Option<Dropout>,
) -> Result<GpuTensor> {
    let mask = dropout.map(Mask::new).transpose()?;
    let backward = Backward::new(stream, grad, qkv, heads)?;
    let tokens = backward.shape.tokens;
    probs.expect(
        "The probabilities of attention",
        &[backward.shape.batch, heads, tokens, tokens],
    )?;
    let head_bytes = 4 * (tokens as u64).pow(2);
    let mut first = 0;
    for part in probs.parts() {
        let binding = part.binding();
        let count = (binding.bytes / head_bytes) as usize;
        backward.record(stream, Saved::Probs(mask), binding, (first, count))?;
        first += count;
    }
    Ok(backward.y)
}

/// The result saved by the forward op.
#[derive(Clone, Copy)]
enum Saved {
    Context,
    /// Probabilities before dropout, and the dropout mask.
    Probs(Option<Mask>),
}

struct Backward<'a> {
    shape: AttentionShape,
    grad: &'a GpuTensor,
    qkv: &'a GpuTensor,
    statistics: GpuTensor,
    /// The gradient.
    y: GpuTensor,
}

impl<'a> Backward<'a> {
    fn new(
        stream: &mut Stream,
        grad: &'a GpuTensor,
        qkv: &'a GpuTensor,
        heads: usize,
    ) -> Result<Self> {
        let shape = AttentionShape::of(qkv, heads)?;
        grad.expect("The gradient of attention", &shape.result_dims())?;
        Ok(Self {
            grad,
            qkv,
            statistics: stream.uninit(&[shape.all_heads(), shape.tokens, 4])?,
            y: stream.uninit(qkv.dims())?,
            shape,
        })
    }

    /// For `heads` heads starting at `first_head`.
    fn record(
        &self,
        stream: &mut Stream,
        kind: Saved,
        saved: Binding,
        (first_head, heads): (usize, usize),
    ) -> Result<()> {
        let (eager, mask) = match kind {
            Saved::Context => (0, None),
            Saved::Probs(mask) => (1, mask),
        };
        let drops = u32::from(mask.is_some());
        let rows = self.shape.tokens.div_ceil(ROWS);
        let channels = self.shape.head_dim.div_ceil(CHANNELS);
        let (grad, qkv) = (self.grad.binding(), self.qkv.binding());
        let statistics = self.statistics.binding();
        let given = [qkv, grad, saved, statistics.clone()];
        for (entry_point, by_keys, reads, write, channels) in [
            ("statistics_of_queries", 0, &given[..3], statistics, 1),
            ("gradients", 0, &given[..], self.y.binding(), channels),
            ("gradients", 1, &given[..], self.y.binding(), channels),
        ] {
            let products = heads * rows * channels * self.shape.tokens * self.shape.head_dim;
            stream.record(Op {
                kernel: self.kernel(entry_point),
                constants: (&["EAGER", "DROPS", "BY_KEYS"], &[eager, drops, by_keys]),
                uniforms: self.shape.params(first_head, mask.unwrap_or(Mask::NONE)),
                reads,
                writes: &[write],
                workgroups: [rows, heads, channels],
                // Scores, their gradients, and one or two sums: each workgroup reads keys and values, or queries and
                // gradients.
                cost: cost(2 * products as u64, (6 * ROWS * products) as u64),
            })?;
        }
        Ok(())
    }

    fn kernel(&self, entry_point: &'static str) -> Kernel {
        Kernel {
            name: "attention_backward",
            sources: if self.shape.head_dim.is_multiple_of(4) {
                &[PARAMS, VEC4, GRAD_VEC4, DROPOUT, BACKWARD]
            } else {
                &[PARAMS, SCALAR, GRAD_SCALAR, DROPOUT, BACKWARD]
            },
            entry_point,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream, values};
    use crate::{dropout, eager_attention, eager_attention_dropout, scaled_dot_product_attention};

    /// The formulas in float64, one element at a time.
    fn naive(
        grad: &[f32],
        qkv: &[f32],
        mask: Option<&[f32]>,
        [batch, tokens, heads, dim]: [usize; 4],
    ) -> (Vec<f64>, Vec<f64>) {
        let width = heads * dim;
        let scale = (dim as f64).sqrt().recip();
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| v.into()).collect() };
        let (grad, qkv) = (wide(grad), wide(qkv));
        let product = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
        let (mut out, mut context) = (vec![0.0; qkv.len()], vec![0.0; grad.len()]);
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            let at = |t: usize, part: usize| ((b * tokens + t) * 3 + part) * width + h * dim;
            let row = |t: usize, part: usize| &qkv[at(t, part)..][..dim];
            for i in 0..tokens {
                let token = (b * tokens + i) * width + h * dim;
                let grad = &grad[token..][..dim];
                let mask = |j: usize| {
                    let index = ((b * heads + h) * tokens + i) * tokens + j;
                    mask.map_or(1.0, |mask| f64::from(mask[index]))
                };
                let scores: Vec<f64> = (0..tokens)
                    .map(|j| scale * product(row(i, 0), row(j, 1)))
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let exps: Vec<f64> = scores.iter().map(|v| (v - largest).exp()).collect();
                let total: f64 = exps.iter().sum();
                let probs: Vec<f64> = exps.iter().map(|v| v / total).collect();
                let d_probs: Vec<f64> = (0..tokens)
                    .map(|j| mask(j) * product(grad, row(j, 2)))
                    .collect();
                let mean = product(&probs, &d_probs);
                for j in 0..tokens {
                    let d_score = scale * probs[j] * (d_probs[j] - mean);
                    for c in 0..dim {
                        out[at(i, 0) + c] += d_score * row(j, 1)[c];
                        out[at(j, 1) + c] += d_score * row(i, 0)[c];
                        out[at(j, 2) + c] += mask(j) * probs[j] * grad[c];
                        context[token + c] += mask(j) * probs[j] * row(j, 2)[c];
                    }
                }
            }
        }
        (out, context)
    }

    fn check(stream: &mut Stream, shape: [usize; 4], size: f32) {
        let [batch, tokens, heads, dim] = shape;
        let dims = [batch, tokens, 3 * heads * dim];
        let data = values(dims.iter().product(), 1);
        let qkv: Vec<f32> = data.iter().map(|v| size * v).collect();
        let qkv_gpu = stream.upload(&qkv, &dims).unwrap();
        let (grad, grad_gpu) = random(stream, &[batch, tokens, heads * dim], 2);
        let (expected, _) = naive(&grad, &qkv, None, shape);
        let tolerance = 1e-5 * f64::from(size * size).max(1.0);
        let context = scaled_dot_product_attention(stream, &qkv_gpu, heads).unwrap();
        let y = scaled_dot_product_attention_backward(stream, &grad_gpu, &qkv_gpu, &context, heads)
            .unwrap();
        assert_eq!(y.dims(), dims);
        assert_close(&read(stream, &y), &expected, tolerance);
        let (_, probs) = eager_attention(stream, &qkv_gpu, heads).unwrap();
        let y = eager_attention_backward(stream, &grad_gpu, &qkv_gpu, &probs, heads, None).unwrap();
        assert_close(&read(stream, &y), &expected, tolerance);
        let given = Dropout {
            probability: 0.3,
            seed: 7,
        };
        let ones = vec![1.0; batch * heads * tokens * tokens];
        let ones = stream
            .upload(&ones, &[batch, heads, tokens, tokens])
            .unwrap();
        let mask = dropout(stream, &ones, given).unwrap();
        let mask = read(stream, &mask);
        let (expected, expected_context) = naive(&grad, &qkv, Some(&mask), shape);
        let (context, probs) = eager_attention_dropout(stream, &qkv_gpu, heads, given).unwrap();
        assert_close(&read(stream, &context), &expected_context, tolerance);
        let given = Some(given);
        let y =
            eager_attention_backward(stream, &grad_gpu, &qkv_gpu, &probs, heads, given).unwrap();
        assert_close(&read(stream, &y), &expected, 2.0 * tolerance);
    }

    #[test]
    fn odd_shapes_match_the_formulas() {
        let shapes = [1usize..3, 1usize..90, 1usize..4, 1usize..30];
        on_shapes((shapes, 0.1f32..3.0), |stream, (shape, size)| {
            check(stream, shape, size)
        });
    }

    #[test]
    fn heads_cross_every_block_of_channels() {
        let Some(mut stream) = stream() else { return };
        for shape in [[1, 65, 1, 64], [1, 18, 2, 68], [1, 17, 1, 131]] {
            check(&mut stream, shape, 1.0);
        }
    }

    #[test]
    fn scores_that_exp_overflows_on_give_finite_gradients() {
        let Some(mut stream) = stream() else { return };
        let token = |sign: f32| [100.0, 100.0 * sign, sign];
        let qkv: Vec<f32> = (0..40)
            .flat_map(|i| token(if i < 30 { -1.0 } else { 1.0 }))
            .collect();
        let qkv_gpu = stream.upload(&qkv, &[1, 40, 3]).unwrap();
        let (grad, grad_gpu) = random(&mut stream, &[1, 40, 1], 2);
        let context = scaled_dot_product_attention(&mut stream, &qkv_gpu, 1).unwrap();
        let y =
            scaled_dot_product_attention_backward(&mut stream, &grad_gpu, &qkv_gpu, &context, 1)
                .unwrap();
        let (expected, _) = naive(&grad, &qkv, None, [1, 40, 1, 1]);
        assert_close(&read(&mut stream, &y), &expected, 1e-4);
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let Some(mut stream) = stream() else { return };
        let mut tensor = |dims: &[usize]| random(&mut stream, dims, 1).1;
        let (qkv, grad) = (tensor(&[1, 2, 12]), tensor(&[1, 2, 4]));
        let (short, probs) = (tensor(&[1, 1, 4]), tensor(&[1, 2, 2, 2]));
        let mut fused = |grad, qkv, context, heads| {
            code(scaled_dot_product_attention_backward(
                &mut stream,
                grad,
                qkv,
                context,
                heads,
            ))
        };
        assert_eq!(fused(&grad, &qkv, &short, 2), "INVALID_ARGUMENT");
        assert_eq!(fused(&short, &qkv, &short, 2), "INVALID_ARGUMENT");
        assert_eq!(fused(&grad, &grad, &grad, 2), "INVALID_ARGUMENT");
        assert_eq!(fused(&grad, &qkv, &grad, 0), "INVALID_ARGUMENT");
        let mut eager = |grad, qkv, probs, heads| {
            code(eager_attention_backward(
                &mut stream,
                grad,
                qkv,
                probs,
                heads,
                None,
            ))
        };
        assert_eq!(eager(&grad, &qkv, &short, 2), "INVALID_ARGUMENT");
        assert_eq!(eager(&grad, &qkv, &probs, 1), "INVALID_ARGUMENT");
        assert_eq!(eager(&short, &qkv, &probs, 2), "INVALID_ARGUMENT");
        let never = Dropout {
            probability: 2.0,
            seed: 0,
        };
        let result = eager_attention_dropout(&mut stream, &qkv, 2, never);
        assert_eq!(code(result.map(|_| ())), "INVALID_ARGUMENT");
        let given = Some(never);
        let result = eager_attention_backward(&mut stream, &grad, &qkv, &probs, 2, given);
        assert_eq!(code(result), "INVALID_ARGUMENT");
    }
}
