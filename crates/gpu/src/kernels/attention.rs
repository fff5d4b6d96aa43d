//! Scaled dot-product attention, fused: all heads and queries in one dispatch.

use bytemuck::NoUninit;
use vit_msn_tensor::{Error, Result};

use super::{ENOUGH_WORKGROUPS, cost};
use crate::buffers::{Binding, GpuTensor};
use crate::pipelines::{Constants, Kernel};
use crate::profile::Cost;
use crate::stream::{Op, Stream};

const TILE: &str = include_str!("attention_tile.wgsl");
const ATTENTION: Kernel = Kernel {
    name: "attention",
    sources: &[TILE, include_str!("attention.wgsl")],
    entry_point: "main",
};
const EAGER: Kernel = Kernel {
    name: "eager_attention",
    sources: &[TILE, include_str!("eager_attention.wgsl")],
    entry_point: "main",
};
const CONSTANTS: Constants = &["ROWS", "HEAD_VECS"];

/// The widest head whose tile fits into WebGPU's 16 KiB of workgroup memory.
const MAX_HEAD_DIM: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    tokens: u32,
    width: u32,
    head_dim: u32,
    scale: f32,
    heads: u32,
    first_head: u32,
}

/// The sizes of an attention.
struct Shape {
    batch: usize,
    tokens: usize,
    heads: usize,
    head_dim: usize,
}

impl Shape {
    fn of(qkv: &GpuTensor, heads: usize) -> Result<Self> {
        let [batch, tokens, width] = qkv.shape("qkv", ["batch", "tokens", "3·width"])?;
        let channels = heads
            .checked_mul(3)
            .filter(|&parts| parts > 0 && width.is_multiple_of(parts))
            .ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "qkv of width {width} can't be cut into queries, keys and values of {heads} heads."
                ))
            })?;
        let head_dim = width / channels;
        if head_dim > MAX_HEAD_DIM {
            return Err(Error::Unsupported(format!(
                "Attention on the GPU takes heads of {MAX_HEAD_DIM} values at most, and these have {head_dim}: use device \"wasm\"."
            )));
        }
        Ok(Self {
            batch,
            tokens,
            heads,
            head_dim,
        })
    }

    /// The heads of the whole batch.
    fn all_heads(&self) -> usize {
        self.batch * self.heads
    }

    fn result_dims(&self) -> [usize; 3] {
        [self.batch, self.tokens, self.heads * self.head_dim]
    }

    /// A workgroup reads its queries, and all keys and values; eager attention reads keys twice, and writes all
    /// probabilities.
    fn cost(&self, rows: usize, heads: usize, eager: bool) -> Cost {
        let [tokens, width, heads] = [self.tokens, self.head_dim, heads].map(|v| v as u64);
        let passes = if eager { 3 } else { 2 };
        let written = width + if eager { tokens } else { 0 };
        let walked = passes * tokens * tokens.div_ceil(rows as u64) * width;
        cost(
            heads * (tokens * (width + written) + walked),
            2 * passes * heads * tokens * tokens * width,
        )
    }

    /// The op for `heads` heads from `first_head` on, of which only the bindings are missing.
    fn record(
        &self,
        stream: &mut Stream,
        kernel: Kernel,
        (first_head, heads): (usize, usize),
        qkv: &GpuTensor,
        writes: &[Binding],
    ) -> Result<()> {
        let rows = rows(heads, self.tokens);
        stream.record(Op {
            kernel,
            constants: (CONSTANTS, &[rows as u32, self.head_dim.div_ceil(4) as u32]),
            uniforms: Params {
                tokens: self.tokens as u32,
                width: (self.heads * self.head_dim) as u32,
                head_dim: self.head_dim as u32,
                scale: 1.0 / (self.head_dim as f32).sqrt(),
                heads: self.heads as u32,
                first_head: first_head as u32,
            },
            reads: &[qkv.binding()],
            writes,
            workgroups: [self.tokens.div_ceil(rows), heads, 1],
            cost: self.cost(rows, heads, kernel == EAGER),
        })
    }
}

/// Attention of every head over all tokens, scores scaled by 1/√head_dim: qkv `[batch, tokens, 3·width]`, a token's
/// queries, then its keys, then its values, to `[batch, tokens, width]`.
/// Errors: INVALID_ARGUMENT when shapes don't fit, UNSUPPORTED for heads wider than 256, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn attention(stream: &mut Stream, qkv: &GpuTensor, heads: usize) -> Result<GpuTensor> {
    let shape = Shape::of(qkv, heads)?;
    let y = stream.uninit(&shape.result_dims())?;
    let all = (0, shape.all_heads());
    shape.record(stream, ATTENTION, all, qkv, &[y.binding()])?;
    Ok(y)
}

/// [`attention`] that also returns its probabilities `[batch, heads, tokens, tokens]`, in as many parts as the device's
/// bindings need. Errors: as [`attention`], and UNSUPPORTED where not even one head's fit.
pub fn eager_attention(
    stream: &mut Stream,
    qkv: &GpuTensor,
    heads: usize,
) -> Result<(GpuTensor, GpuTensor)> {
    let shape = Shape::of(qkv, heads)?;
    let y = stream.uninit(&shape.result_dims())?;
    let limits = stream.context().limits();
    let head_bytes = (shape.tokens as u64).saturating_pow(2).saturating_mul(4);
    let most = (limits.max_storage_buffer_binding_size / head_bytes)
        .clamp(1, limits.max_compute_workgroups_per_dimension.into()) as usize;
    let all = shape.all_heads();
    let dims = [shape.batch, heads, shape.tokens, shape.tokens];
    let probs = stream.uninit_parts(&dims, all, most)?;
    for (part, first) in probs.parts().iter().zip((0..all).step_by(most)) {
        let heads = (first, most.min(all - first));
        shape.record(stream, EAGER, heads, qkv, &[y.binding(), part.binding()])?;
    }
    Ok((y, probs))
}

/// Queries of a workgroup: more of them read the keys and values less often, fewer make more workgroups.
fn rows(heads: usize, tokens: usize) -> usize {
    if heads * tokens.div_ceil(64) >= ENOUGH_WORKGROUPS {
        64
    } else {
        32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream, values};

    /// (context, probabilities)
    fn naive(qkv: &[f32], tokens: usize, heads: usize, head_dim: usize) -> (Vec<f64>, Vec<f64>) {
        let width = heads * head_dim;
        let at = |sample: usize, token: usize, which: usize, head: usize| {
            let start = ((sample * tokens + token) * 3 + which) * width + head * head_dim;
            &qkv[start..start + head_dim]
        };
        let mut y = vec![0.0; qkv.len() / 3];
        let mut probs = vec![0.0; qkv.len() / 3 / width * heads * tokens];
        for (row, y) in y.chunks_mut(width).enumerate() {
            let (sample, token) = (row / tokens, row % tokens);
            for (head, y) in y.chunks_mut(head_dim).enumerate() {
                let query = at(sample, token, 0, head);
                let weights: Vec<f64> = (0..tokens)
                    .map(|other| {
                        let key = at(sample, other, 1, head);
                        let products = query.iter().zip(key);
                        let dot: f64 = products.map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                        (dot / (head_dim as f64).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for (other, weight) in weights.iter().enumerate() {
                    let map = (sample * heads + head) * tokens + token;
                    probs[map * tokens + other] = weight / total;
                    for (y, &v) in y.iter_mut().zip(at(sample, other, 2, head)) {
                        *y += weight / total * f64::from(v);
                    }
                }
            }
        }
        (y, probs)
    }

    fn check(stream: &mut Stream, [batch, tokens, heads, head_dim]: [usize; 4], size: f32) {
        let dims = [batch, tokens, 3 * heads * head_dim];
        let data = values(dims.iter().product(), 1);
        let qkv: Vec<f32> = data.iter().map(|v| size * v).collect();
        let qkv_gpu = stream.upload(&qkv, &dims).unwrap();
        let (expected, expected_probs) = naive(&qkv, tokens, heads, head_dim);
        let y = attention(stream, &qkv_gpu, heads).unwrap();
        assert_eq!(y.dims(), [batch, tokens, heads * head_dim]);
        assert_close(&read(stream, &y), &expected, 1e-5);
        let (y, probs) = eager_attention(stream, &qkv_gpu, heads).unwrap();
        assert_eq!(probs.dims(), [batch, heads, tokens, tokens]);
        assert_close(&read(stream, &y), &expected, 1e-5);
        assert_close(&read(stream, &probs), &expected_probs, 1e-5);
    }

    #[test]
    fn odd_shapes_match_the_definition() {
        let shapes = [1usize..3, 1usize..100, 1usize..4, 1usize..40];
        on_shapes((shapes, 0.1f32..3.0), |stream, (shape, size)| {
            check(stream, shape, size)
        });
    }

    #[test]
    fn the_widest_heads_fit() {
        let Some(mut stream) = stream() else { return };
        check(&mut stream, [1, 33, 1, MAX_HEAD_DIM], 1.0);
    }

    #[test]
    fn large_workgroups_match_the_definition() {
        let Some(mut stream) = stream() else { return };
        assert_eq!(rows(2 * 22, 150), 64);
        check(&mut stream, [2, 150, 22, 4], 1.0);
    }

    #[test]
    fn scores_that_exp_overflows_on_stay_finite() {
        let Some(mut stream) = stream() else { return };
        // Scores of ±10,000: the softmax is all on the keys that the query points to.
        let token = |sign: f32| [100.0, 100.0 * sign, sign];
        let qkv: Vec<f32> = (0..40)
            .flat_map(|i| token(if i < 30 { -1.0 } else { 1.0 }))
            .collect();
        let qkv = stream.upload(&qkv, &[1, 40, 3]).unwrap();
        let y = attention(&mut stream, &qkv, 1).unwrap();
        assert_close(&read(&mut stream, &y), &[1.0; 40], 1e-6);
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let Some(mut stream) = stream() else { return };
        let (_, qkv) = random(&mut stream, &[1, 2, 12], 1);
        let (_, flat) = random(&mut stream, &[2, 12], 1);
        let (_, wide) = random(&mut stream, &[1, 1, 3 * (MAX_HEAD_DIM + 1)], 1);
        assert_eq!(code(attention(&mut stream, &qkv, 0)), "INVALID_ARGUMENT");
        assert_eq!(code(attention(&mut stream, &qkv, 3)), "INVALID_ARGUMENT");
        assert_eq!(code(attention(&mut stream, &qkv, 8)), "INVALID_ARGUMENT");
        assert_eq!(code(attention(&mut stream, &flat, 1)), "INVALID_ARGUMENT");
        assert_eq!(code(attention(&mut stream, &wide, 1)), "UNSUPPORTED");
    }
}
