//! The gradients of self-attention by queries, keys and values: one pass for the queries' statistics, one over queries,
//! one over keys.

use vit_msn_tensor::Result;

use super::attention::{PARAMS, SCALAR, Shape, VEC4};
use super::cost;
use super::elementwise::check_same_shape;
use crate::buffers::{Binding, GpuTensor};
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

const GRAD_VEC4: &str = include_str!("grad_vec4.wgsl");
const GRAD_SCALAR: &str = include_str!("grad_scalar.wgsl");
const BACKWARD: &str = include_str!("attention_backward.wgsl");

/// Rows and channels of a workgroup.
const ROWS: usize = 16;
const CHANNELS: usize = 64;

/// The gradient of [`crate::attention`] by qkv `[batch, tokens, 3·width]`; grad and context, which the op returned, are
/// `[batch, tokens, width]`. Probabilities are computed again, and memory grows with the tokens, not their square.
/// Errors: INVALID_ARGUMENT when shapes don't fit, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn attention_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    qkv: &GpuTensor,
    context: &GpuTensor,
    heads: usize,
) -> Result<GpuTensor> {
    check_same_shape(grad, context)?;
    let backward = Backward::new(stream, grad, qkv, heads)?;
    let all = (0, backward.shape.all_heads());
    backward.record(stream, false, context.binding(), all)?;
    Ok(backward.y)
}

/// The gradient of [`crate::eager_attention`] by qkv, from the probabilities `[batch, heads, tokens, tokens]` that the op
/// returned. Errors: as [`attention_backward`].
pub fn eager_attention_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    qkv: &GpuTensor,
    probs: &GpuTensor,
    heads: usize,
) -> Result<GpuTensor> {
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
        backward.record(stream, true, binding, (first, count))?;
        first += count;
    }
    Ok(backward.y)
}

struct Backward<'a> {
    shape: Shape,
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
        let shape = Shape::of(qkv, heads)?;
        grad.expect("The gradient of attention", &shape.result_dims())?;
        Ok(Self {
            grad,
            qkv,
            statistics: stream.uninit(&[shape.all_heads(), shape.tokens, 4])?,
            y: stream.uninit(qkv.dims())?,
            shape,
        })
    }

    /// For `heads` heads from `first_head` on.
    fn record(
        &self,
        stream: &mut Stream,
        eager: bool,
        saved: Binding,
        (first_head, heads): (usize, usize),
    ) -> Result<()> {
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
                constants: (&["EAGER", "BY_KEYS"], &[u32::from(eager), by_keys]),
                uniforms: self.shape.params(first_head),
                reads,
                writes: &[write],
                workgroups: [rows, heads, channels],
                // Scores, slopes, and a sum or two: each workgroup reads keys and values, or queries and gradients.
                cost: cost(2 * products as u64, (6 * ROWS * products) as u64),
            })?;
        }
        Ok(())
    }

    fn kernel(&self, entry_point: &'static str) -> Kernel {
        Kernel {
            name: "attention_backward",
            sources: if self.shape.head_dim.is_multiple_of(4) {
                &[PARAMS, VEC4, GRAD_VEC4, BACKWARD]
            } else {
                &[PARAMS, SCALAR, GRAD_SCALAR, BACKWARD]
            },
            entry_point,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream, values};
    use crate::{attention, eager_attention};

    /// The formulas in float64, element by element.
    fn naive(grad: &[f32], qkv: &[f32], [batch, tokens, heads, dim]: [usize; 4]) -> Vec<f64> {
        let width = heads * dim;
        let scale = (dim as f64).sqrt().recip();
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| v.into()).collect() };
        let (grad, qkv) = (wide(grad), wide(qkv));
        let product = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
        let mut out = vec![0.0; qkv.len()];
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            let at = |t: usize, part: usize| ((b * tokens + t) * 3 + part) * width + h * dim;
            let row = |t: usize, part: usize| &qkv[at(t, part)..][..dim];
            for i in 0..tokens {
                let grad = &grad[(b * tokens + i) * width + h * dim..][..dim];
                let scores: Vec<f64> = (0..tokens)
                    .map(|j| scale * product(row(i, 0), row(j, 1)))
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let exps: Vec<f64> = scores.iter().map(|v| (v - largest).exp()).collect();
                let total: f64 = exps.iter().sum();
                let probs: Vec<f64> = exps.iter().map(|v| v / total).collect();
                let slopes: Vec<f64> = (0..tokens).map(|j| product(grad, row(j, 2))).collect();
                let mean = product(&probs, &slopes);
                for j in 0..tokens {
                    let slope = scale * probs[j] * (slopes[j] - mean);
                    for c in 0..dim {
                        out[at(i, 0) + c] += slope * row(j, 1)[c];
                        out[at(j, 1) + c] += slope * row(i, 0)[c];
                        out[at(j, 2) + c] += probs[j] * grad[c];
                    }
                }
            }
        }
        out
    }

    fn check(stream: &mut Stream, shape: [usize; 4], size: f32) {
        let [batch, tokens, heads, dim] = shape;
        let dims = [batch, tokens, 3 * heads * dim];
        let data = values(dims.iter().product(), 1);
        let qkv: Vec<f32> = data.iter().map(|v| size * v).collect();
        let qkv_gpu = stream.upload(&qkv, &dims).unwrap();
        let (grad, grad_gpu) = random(stream, &[batch, tokens, heads * dim], 2);
        let expected = naive(&grad, &qkv, shape);
        let tolerance = 1e-5 * f64::from(size * size).max(1.0);
        let context = attention(stream, &qkv_gpu, heads).unwrap();
        let y = attention_backward(stream, &grad_gpu, &qkv_gpu, &context, heads).unwrap();
        assert_eq!(y.dims(), dims);
        assert_close(&read(stream, &y), &expected, tolerance);
        let (_, probs) = eager_attention(stream, &qkv_gpu, heads).unwrap();
        let y = eager_attention_backward(stream, &grad_gpu, &qkv_gpu, &probs, heads).unwrap();
        assert_close(&read(stream, &y), &expected, tolerance);
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
        let context = attention(&mut stream, &qkv_gpu, 1).unwrap();
        let y = attention_backward(&mut stream, &grad_gpu, &qkv_gpu, &context, 1).unwrap();
        let expected = naive(&grad, &qkv, [1, 40, 1, 1]);
        assert_close(&read(&mut stream, &y), &expected, 1e-4);
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let Some(mut stream) = stream() else { return };
        let mut tensor = |dims: &[usize]| random(&mut stream, dims, 1).1;
        let (qkv, grad) = (tensor(&[1, 2, 12]), tensor(&[1, 2, 4]));
        let (short, probs) = (tensor(&[1, 1, 4]), tensor(&[1, 2, 2, 2]));
        let mut fused = |grad, qkv, context, heads| {
            code(attention_backward(&mut stream, grad, qkv, context, heads))
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
            ))
        };
        assert_eq!(eager(&grad, &qkv, &short, 2), "INVALID_ARGUMENT");
        assert_eq!(eager(&grad, &qkv, &probs, 1), "INVALID_ARGUMENT");
        assert_eq!(eager(&short, &qkv, &probs, 2), "INVALID_ARGUMENT");
    }
}
