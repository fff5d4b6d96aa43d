//! Scaled dot-product attention, fused: all heads and queries in one dispatch.

use bytemuck::NoUninit;
use vit_msn_tensor::{Error, Result, format_dims};

use super::ENOUGH_WORKGROUPS;
use crate::buffers::GpuTensor;
use crate::pipelines::{Constants, Kernel};
use crate::stream::{Op, Stream};

const ATTENTION: Kernel = Kernel {
    name: "attention",
    source: include_str!("attention.wgsl"),
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
}

/// Attention of every head over all tokens, scores scaled by 1/√head_dim: qkv `[batch, tokens, 3·width]`, a token's
/// queries, then its keys, then its values, to `[batch, tokens, width]`.
/// Errors: INVALID_ARGUMENT when shapes don't fit, UNSUPPORTED for heads wider than 256, OUT_OF_MEMORY, DISPOSED.
pub fn attention(stream: &mut Stream, qkv: &GpuTensor, heads: usize) -> Result<GpuTensor> {
    let names = ["batch", "tokens", "3·width"];
    let [batch, tokens, columns] = qkv.shape("The input of attention", names)?;
    let head_dim = columns.checked_div(3 * heads).unwrap_or(0);
    if head_dim == 0 || head_dim * 3 * heads != columns {
        return Err(Error::InvalidArgument(format!(
            "Attention can't split {} into queries, keys and values of {heads} heads.",
            format_dims(qkv.dims())
        )));
    }
    if head_dim > MAX_HEAD_DIM {
        return Err(Error::Unsupported(format!(
            "Attention on the GPU takes heads of {MAX_HEAD_DIM} values at most, and these have {head_dim}: use device \"wasm\"."
        )));
    }
    let width = columns / 3;
    let y = stream.uninit(&[batch, tokens, width])?;
    let rows = rows(batch, heads, tokens);
    stream.record(Op {
        kernel: ATTENTION,
        constants: (CONSTANTS, &[rows as u32, head_dim.div_ceil(4) as u32]),
        uniforms: Params {
            tokens: tokens as u32,
            width: width as u32,
            head_dim: head_dim as u32,
            scale: 1.0 / (head_dim as f32).sqrt(),
        },
        tensors: &[qkv, &y],
        workgroups: [tokens.div_ceil(rows), heads, batch],
    })?;
    Ok(y)
}

/// Queries of a workgroup: more of them read the keys and values less often, fewer make more workgroups.
fn rows(batch: usize, heads: usize, tokens: usize) -> usize {
    if batch * heads * tokens.div_ceil(64) >= ENOUGH_WORKGROUPS {
        64
    } else {
        32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream, values};

    fn naive(qkv: &[f32], tokens: usize, heads: usize, head_dim: usize) -> Vec<f64> {
        let width = heads * head_dim;
        let at = |sample: usize, token: usize, which: usize, head: usize| {
            let start = ((sample * tokens + token) * 3 + which) * width + head * head_dim;
            &qkv[start..start + head_dim]
        };
        let mut y = vec![0.0; qkv.len() / 3];
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
                    for (y, &v) in y.iter_mut().zip(at(sample, other, 2, head)) {
                        *y += weight / total * f64::from(v);
                    }
                }
            }
        }
        y
    }

    fn check(stream: &mut Stream, [batch, tokens, heads, head_dim]: [usize; 4], size: f32) {
        let dims = [batch, tokens, 3 * heads * head_dim];
        let data = values(dims.iter().product(), 1);
        let qkv: Vec<f32> = data.iter().map(|v| size * v).collect();
        let qkv_gpu = stream.upload(&qkv, &dims).unwrap();
        let y = attention(stream, &qkv_gpu, heads).unwrap();
        assert_eq!(y.dims(), [batch, tokens, heads * head_dim]);
        assert_close(
            &read(stream, &y),
            &naive(&qkv, tokens, heads, head_dim),
            1e-5,
        );
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
        assert_eq!(rows(2, 22, 150), 64);
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
