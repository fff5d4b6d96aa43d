//! Scaled dot-product attention, fused: all heads and queries in one dispatch.

use std::fmt;

use bytemuck::NoUninit;
use vit_msn_tensor::{Dropout, Error, Result};

use crate::buffers::{Binding, GpuTensor, Stored};
use crate::context::Context;
use crate::kernels::columns::copy_columns;
use crate::kernels::dropout::{DROPOUT, Mask};
use crate::kernels::linear::reads_halves;
use crate::kernels::{ENOUGH_WORKGROUPS, cost};
use crate::pipelines::{Constants, Kernel};
use crate::profile::Cost;
use crate::stream::{Op, Stream};
use crate::weights::GpuLinear;

pub(crate) const PARAMS: &str = include_str!("params.wgsl");
pub(crate) const VEC4: &str = include_str!("../parts/qkv_vec4.wgsl");
pub(crate) const SCALAR: &str = include_str!("../parts/qkv_scalar.wgsl");
const ENABLE_F16: &str = include_str!("../parts/enable_f16.wgsl");
const STORED_F32: &str = include_str!("../parts/stored_f32.wgsl");
const STORED_F16: &str = include_str!("../parts/stored_f16.wgsl");
const TILED: &str = include_str!("tiled.wgsl");
const CONTEXT_VEC4: &str = include_str!("context_vec4.wgsl");
const CONTEXT_SCALAR: &str = include_str!("context_scalar.wgsl");
const TILE: &str = include_str!("tile.wgsl");
const DIRECT: &str = include_str!("direct.wgsl");
const EAGER: &str = include_str!("eager.wgsl");

const CONSTANTS: Constants = &[
    "DOWN",
    "ACROSS",
    "EACH",
    "HEAD_VECS",
    "QUERY_LOADS",
    "KEY_LOADS",
    "CHUNKS",
    "UNROLLED",
];

/// The kernels of fused attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tile {
    /// Directly from storage.
    Direct,
    /// Through workgroup memory.
    Staged(Staged),
}

/// The invocations of a workgroup: `down` groups of four queries by `across` groups of `each` keys per step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Staged {
    down: usize,
    across: usize,
    each: usize,
}

/// From most queries to fewest: more queries read keys and values less often, fewer give more workgroups. Steps have
/// equally many keys, so results have the same bits.
///
/// | queries | keys per step | invocations | workgroup memory for heads of 64 |
/// |---|---:|---:|---:|
/// | 32 | 16 | 64 | 15,872 |
/// | 16 | 16 | 64 | 10,752 |
const STAGED: [Staged; 2] = [
    Staged {
        down: 8,
        across: 8,
        each: 2,
    },
    Staged {
        down: 4,
        across: 16,
        each: 1,
    },
];

/// The widest heads that fit into WebGPU's 16 KiB of workgroup memory.
const MAX_STAGED: usize = 64;

impl Tile {
    /// Those that the device computes right, from most queries to fewest. Every device can read from storage directly.
    pub(crate) fn in_use(context: &Context, head_dim: usize) -> Vec<Self> {
        let staged = STAGED.map(Self::Staged).into_iter();
        let fits =
            |tile: &Self| !context.is_software() && head_dim <= MAX_STAGED && context.uses(tile);
        staged.filter(fits).chain([Self::Direct]).collect()
    }

    /// In the order in which they are tried: the chosen one, or else the one suggested by the shape, comes first.
    fn preferred(stream: &Stream, shape: &AttentionShape) -> Vec<Self> {
        let mut tiles = Self::in_use(stream.context(), shape.head_dim);
        let chosen = stream.tiles.of_attention(shape);
        let chosen = tiles.iter().position(|tile| Some(tile.id()) == chosen);
        let first = tiles.remove(chosen.unwrap_or_else(|| Self::choose(&tiles, shape)));
        tiles.insert(0, first);
        tiles
    }

    /// The index of the tile with most queries that doesn't leave a large GPU idle, or else of the one with fewest.
    fn choose(tiles: &[Self], shape: &AttentionShape) -> usize {
        let is_busy = |tile: &Self| match tile {
            Self::Direct => false,
            Self::Staged(tile) => {
                shape.all_heads() * shape.tokens.div_ceil(tile.rows()) >= ENOUGH_WORKGROUPS
            }
        };
        // The last one reads from storage.
        let fewest = tiles.len().saturating_sub(2);
        tiles.iter().position(is_busy).unwrap_or(fewest)
    }

    /// Names the tile in choices, reports and caches: its queries, then the keys of each step.
    const fn id(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Staged(Staged { down: 8, .. }) => "32x16",
            Self::Staged(Staged { down: 4, .. }) => "16x16",
            Self::Staged(_) => panic!("a tile without a name"),
        }
    }

    /// Attention by this tile alone.
    pub(crate) fn compute(
        self,
        stream: &mut Stream,
        qkv: &GpuTensor,
        heads: usize,
    ) -> Result<GpuTensor> {
        attention_with(stream, self, qkv, &AttentionShape::of(qkv, heads)?)
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attention tile {}", self.id())
    }
}

/// The ids of the tiles that can compute attention of this shape with the same bits. The first is the default.
pub fn attention_tiles(stream: &Stream, shape: &AttentionShape) -> Vec<&'static str> {
    let mut tiles = Tile::in_use(stream.context(), shape.head_dim);
    let default = tiles.remove(Tile::choose(&tiles, shape));
    if default != Tile::Direct {
        tiles.pop();
    }
    tiles.insert(0, default);
    tiles.into_iter().map(Tile::id).collect()
}

/// From now on, computes attention of this shape with the tile of this id.
///
/// # Errors
/// INVALID_ARGUMENT for a tile that doesn't exist.
pub fn choose_attention_tile(stream: &mut Stream, shape: AttentionShape, id: &str) -> Result<()> {
    let ids = attention_tiles(stream, &shape);
    let Some(&id) = ids.iter().find(|&&tile| tile == id) else {
        return Err(Error::InvalidArgument(format!(
            "There is no tile {id} for attention here, only {ids:?}."
        )));
    };
    stream.tiles.choose_attention(shape, id);
    Ok(())
}

/// Computes attention of arbitrary data `times` times, for timing.
///
/// # Errors
/// As [`scaled_dot_product_attention`].
pub fn run_attention(stream: &mut Stream, shape: &AttentionShape, times: usize) -> Result<()> {
    let width = 3 * shape.heads * shape.head_dim;
    let qkv = stream.uninit(&[shape.batch, shape.tokens, width])?;
    for _ in 0..times {
        scaled_dot_product_attention(stream, &qkv, shape.heads)?;
    }
    Ok(())
}

/// Computes attention with the first tile that the driver accepts.
fn by_an_accepted_tile<T>(
    stream: &mut Stream,
    shape: &AttentionShape,
    mut compute: impl FnMut(&mut Stream, Tile) -> Result<T>,
) -> Result<T> {
    let mut refusal = None;
    for tile in Tile::preferred(stream, shape) {
        match compute(stream, tile) {
            Err(error @ Error::Unsupported(_)) => refusal = refusal.or(Some(error)),
            result => return result,
        }
    }
    Err(refusal
        .unwrap_or_else(|| Error::Unsupported("This GPU computes no attention.".to_string())))
}

impl Staged {
    /// Queries per workgroup.
    const fn rows(self) -> usize {
        4 * self.down
    }

    /// The values of [`CONSTANTS`].
    fn constants(self, head_dim: usize) -> [u32; 8] {
        let head_vecs = head_dim.div_ceil(4);
        let threads = self.down * self.across;
        let keys = self.each * self.across;
        [
            self.down,
            self.across,
            self.each,
            head_vecs,
            (self.rows() * head_vecs).div_ceil(threads),
            (keys * head_vecs).div_ceil(threads),
            head_vecs.div_ceil(self.across),
            if head_vecs.is_multiple_of(4) { 4 } else { 1 },
        ]
        .map(|value| value as u32)
    }
}

/// Queries and channels per workgroup of the direct kernels.
const DIRECT_QUERIES: usize = 16;
const DIRECT_CHANNELS: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(crate) struct Params {
    tokens: u32,
    width: u32,
    head_dim: u32,
    scale: f32,
    heads: u32,
    first_head: u32,
    mask: Mask,
}

/// The dimensions of an attention op.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AttentionShape {
    /// Images.
    pub batch: usize,
    /// Tokens of each image.
    pub tokens: usize,
    /// Heads of each image.
    pub heads: usize,
    /// Channels of each head.
    pub head_dim: usize,
}

impl AttentionShape {
    pub(crate) fn of(qkv: &GpuTensor, heads: usize) -> Result<Self> {
        let [batch, tokens, width] = qkv.shape("qkv", ["batch", "tokens", "3·width"])?;
        let channels = heads
            .checked_mul(3)
            .filter(|&parts| parts > 0 && width.is_multiple_of(parts))
            .ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "qkv has width {width}, which isn't a multiple of 3 times {heads} heads."
                ))
            })?;
        let head_dim = width / channels;
        Ok(Self {
            batch,
            tokens,
            heads,
            head_dim,
        })
    }

    /// The number of heads in the whole batch.
    pub(crate) fn all_heads(&self) -> usize {
        self.batch * self.heads
    }

    pub(crate) fn result_dims(&self) -> [usize; 3] {
        [self.batch, self.tokens, self.heads * self.head_dim]
    }

    /// Each workgroup reads its queries and all keys and values. Direct workgroups read keys again for each 64
    /// channels; eager attention reads them twice and writes all probabilities.
    fn cost(&self, heads: usize, workgroups: [usize; 3], eager: bool) -> Cost {
        let [tokens, width, heads] = [self.tokens, self.head_dim, heads].map(|v| v as u64);
        let [groups, _, repeats] = workgroups.map(|v| v as u64);
        let passes = 1 + repeats * if eager { 2 } else { 1 };
        let written = width + if eager { tokens } else { 0 };
        cost(
            heads * (tokens * (width + written) + passes * groups * tokens * width),
            2 * passes * heads * tokens * tokens * width,
        )
    }

    pub(in crate::kernels) fn params(&self, first_head: usize, mask: Mask) -> Params {
        Params {
            tokens: self.tokens as u32,
            width: (self.heads * self.head_dim) as u32,
            head_dim: self.head_dim as u32,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            heads: self.heads as u32,
            first_head: first_head as u32,
            mask,
        }
    }

    fn direct_kernel(&self, eager: bool) -> Kernel {
        let sources: &'static [&'static str] = match (eager, self.head_dim.is_multiple_of(4)) {
            (false, true) => &[PARAMS, VEC4, TILE, DIRECT],
            (false, false) => &[PARAMS, SCALAR, TILE, DIRECT],
            (true, true) => &[PARAMS, VEC4, TILE, DROPOUT, EAGER],
            (true, false) => &[PARAMS, SCALAR, TILE, DROPOUT, EAGER],
        };
        Kernel {
            name: if eager {
                "eager_attention"
            } else {
                "scaled_dot_product_attention"
            },
            sources,
            entry_point: "main",
        }
    }

    /// For `heads` heads starting at `first_head`; eager if the writes include probabilities.
    fn record_direct(
        &self,
        stream: &mut Stream,
        (first_head, heads): (usize, usize),
        qkv: &GpuTensor,
        writes: &[Binding],
        mask: Option<Mask>,
    ) -> Result<()> {
        let eager = writes.len() > 1;
        let workgroups = [
            self.tokens.div_ceil(DIRECT_QUERIES),
            heads,
            self.head_dim.div_ceil(DIRECT_CHANNELS),
        ];
        stream.record(Op {
            kernel: self.direct_kernel(eager),
            constants: (&["DROPS"], &[u32::from(mask.is_some())]),
            uniforms: self.params(first_head, mask.unwrap_or(Mask::NONE)),
            reads: &[qkv.binding()],
            writes,
            workgroups,
            cost: self.cost(heads, workgroups, eager),
        })
    }

    fn staged_kernel(&self, halves: bool) -> Kernel {
        let vectors = self.head_dim.is_multiple_of(4);
        let sources: &'static [&'static str] = match (vectors, halves) {
            (true, false) => &[PARAMS, VEC4, STORED_F32, CONTEXT_VEC4, TILED],
            (false, false) => &[PARAMS, SCALAR, STORED_F32, CONTEXT_SCALAR, TILED],
            (true, true) => &[ENABLE_F16, PARAMS, VEC4, STORED_F16, CONTEXT_VEC4, TILED],
            (false, true) => &[
                ENABLE_F16,
                PARAMS,
                SCALAR,
                STORED_F16,
                CONTEXT_SCALAR,
                TILED,
            ],
        };
        Kernel {
            name: "scaled_dot_product_attention",
            sources,
            entry_point: "main",
        }
    }

    fn record_staged(
        &self,
        stream: &mut Stream,
        tile: Staged,
        qkv: &GpuTensor,
        (y, halves): (&GpuTensor, bool),
    ) -> Result<()> {
        let workgroups = [self.tokens.div_ceil(tile.rows()), self.all_heads(), 1];
        let mut cost = self.cost(self.all_heads(), workgroups, false);
        cost.bytes -= (4 * y.len() - y.byte_size()) as u64;
        stream.record(Op {
            kernel: self.staged_kernel(halves),
            constants: (CONSTANTS, &tile.constants(self.head_dim)),
            uniforms: self.params(0, Mask::NONE),
            reads: &[qkv.binding()],
            writes: &[y.binding()],
            workgroups,
            cost,
        })
    }
}

/// Attention of every head over all tokens, with scores scaled by 1/√head_dim. qkv is `[batch, tokens, 3·width]`,
/// with a token's queries, then its keys, then its values; the result is `[batch, tokens, width]`.
///
/// # Errors
/// INVALID_ARGUMENT if shapes don't match, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn scaled_dot_product_attention(
    stream: &mut Stream,
    qkv: &GpuTensor,
    heads: usize,
) -> Result<GpuTensor> {
    let shape = AttentionShape::of(qkv, heads)?;
    by_an_accepted_tile(stream, &shape, |stream, tile| {
        attention_with(stream, tile, qkv, &shape)
    })
}

/// [`scaled_dot_product_attention`], with the result in the format that suits its only reader.
///
/// # Errors
/// As [`scaled_dot_product_attention`].
pub fn scaled_dot_product_attention_for(
    stream: &mut Stream,
    qkv: &GpuTensor,
    heads: usize,
    reader: Option<&GpuLinear>,
) -> Result<Stored> {
    let shape = AttentionShape::of(qkv, heads)?;
    let halves = reader.is_some_and(|layer| reads_halves(stream, layer));
    by_an_accepted_tile(stream, &shape, |stream, tile| match tile {
        Tile::Staged(tile) if halves && qkv.parts().len() == 1 => {
            let y = stream.uninit_for(&shape.result_dims(), true)?;
            shape.record_staged(stream, tile, qkv, (y.raw(), true))?;
            Ok(y)
        }
        _ => attention_with(stream, tile, qkv, &shape).map(Stored::Wide),
    })
}

fn attention_with(
    stream: &mut Stream,
    tile: Tile,
    qkv: &GpuTensor,
    shape: &AttentionShape,
) -> Result<GpuTensor> {
    if qkv.parts().len() > 1 {
        return attention_by_heads(stream, tile, qkv, shape);
    }
    let y = stream.uninit(&shape.result_dims())?;
    match tile {
        Tile::Direct => {
            let all = (0, shape.all_heads());
            shape.record_direct(stream, all, qkv, &[y.binding()], None)?;
        }
        Tile::Staged(tile) => shape.record_staged(stream, tile, qkv, (&y, false))?,
    }
    Ok(y)
}

/// Attention for a qkv that is too large for one binding and therefore in parts of whole rows. The heads that fit
/// into a binding are copied next to each other, and their results are copied back into place.
fn attention_by_heads(
    stream: &mut Stream,
    tile: Tile,
    qkv: &GpuTensor,
    shape: &AttentionShape,
) -> Result<GpuTensor> {
    let (rows, head_dim) = (qkv.rows().0, shape.head_dim);
    let head_bytes = 12 * rows as u64 * head_dim as u64;
    let limit = stream.context().limits().max_storage_buffer_binding_size;
    let most = (limit / head_bytes).max(1) as usize;
    let y = stream.uninit_rows(&shape.result_dims())?;
    for first in (0..shape.heads).step_by(most) {
        let some = AttentionShape {
            heads: most.min(shape.heads - first),
            ..*shape
        };
        let columns = some.heads * head_dim;
        let packed = stream.uninit(&[shape.batch, shape.tokens, 3 * columns])?;
        for which in 0..3 {
            let from = (which * shape.heads + first) * head_dim;
            copy_columns(stream, (qkv, from), (&packed, which * columns), columns)?;
        }
        let context = attention_with(stream, tile, &packed, &some)?;
        copy_columns(stream, (&context, 0), (&y, first * head_dim), columns)?;
    }
    Ok(y)
}

/// [`scaled_dot_product_attention`] that also returns its probabilities `[batch, heads, tokens, tokens]`, in as many
/// parts as the device's binding size requires.
///
/// # Errors
/// As [`scaled_dot_product_attention`], and UNSUPPORTED if a single head's probabilities exceed a binding.
pub fn eager_attention(
    stream: &mut Stream,
    qkv: &GpuTensor,
    heads: usize,
) -> Result<(GpuTensor, GpuTensor)> {
    eager_with(stream, qkv, heads, None)
}

/// [`eager_attention`] with dropout of the probabilities. The returned ones are from before dropout. Elements are
/// numbered across all parts.
///
/// # Errors
/// As [`eager_attention`], and INVALID_ARGUMENT for a probability outside [0, 1].
pub fn eager_attention_dropout(
    stream: &mut Stream,
    qkv: &GpuTensor,
    heads: usize,
    dropout: Dropout,
) -> Result<(GpuTensor, GpuTensor)> {
    eager_with(stream, qkv, heads, Some(Mask::new(dropout)?))
}

fn eager_with(
    stream: &mut Stream,
    qkv: &GpuTensor,
    heads: usize,
    mask: Option<Mask>,
) -> Result<(GpuTensor, GpuTensor)> {
    let shape = AttentionShape::of(qkv, heads)?;
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
        shape.record_direct(stream, heads, qkv, &[y.binding(), part.binding()], mask)?;
    }
    Ok((y, probs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        assert_close, code, context_binding, full_stream, layer, layer_of, on_shapes, random, read,
        stream, stream_on, values,
    };
    use crate::{linear, linear_for};
    use proptest::prelude::*;
    use vit_msn_tensor::{Activation, Dtype};

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

    /// All that support heads of this size.
    fn tiles(head_dim: usize) -> Vec<Tile> {
        let fits = |_: &Staged| head_dim <= MAX_STAGED;
        let staged = STAGED.into_iter().filter(fits).map(Tile::Staged);
        [Tile::Direct].into_iter().chain(staged).collect()
    }

    fn check(stream: &mut Stream, [batch, tokens, heads, head_dim]: [usize; 4], size: f32) {
        let dims = [batch, tokens, 3 * heads * head_dim];
        let data = values(dims.iter().product(), 1);
        let qkv: Vec<f32> = data.iter().map(|v| size * v).collect();
        let qkv_gpu = stream.upload(&qkv, &dims).unwrap();
        let (expected, expected_probs) = naive(&qkv, tokens, heads, head_dim);
        let shape = AttentionShape::of(&qkv_gpu, heads).unwrap();
        for tile in tiles(head_dim) {
            let y = attention_with(stream, tile, &qkv_gpu, &shape).unwrap();
            assert_eq!(y.dims(), [batch, tokens, heads * head_dim]);
            assert_close(&read(stream, &y), &expected, 1e-5);
        }
        let (y, probs) = eager_attention(stream, &qkv_gpu, heads).unwrap();
        assert_eq!(probs.dims(), [batch, heads, tokens, tokens]);
        assert_close(&read(stream, &y), &expected, 1e-5);
        assert_close(&read(stream, &probs), &expected_probs, 1e-5);
    }

    #[test]
    fn odd_shapes_match_the_definition() {
        // Few head sizes: each compiles its own pipelines, which takes longer than all runs together.
        let head_dims = prop::sample::select(vec![1usize, 4, 10, 33]);
        let shapes = ([1usize..3, 1usize..100, 1usize..4], head_dims, 0.1f32..3.0);
        on_shapes(
            shapes,
            |stream, ([batch, tokens, heads], head_dim, size)| {
                check(stream, [batch, tokens, heads, head_dim], size);
            },
        );
    }

    #[test]
    fn qkv_larger_than_a_binding_goes_by_heads() {
        let (batch, tokens, heads, head_dim) = (1, 200, 3, 8);
        // Fits 64 rows of qkv, or all rows of one head.
        let Some(context) = context_binding(64 * 4 * 72 + 1000) else {
            return;
        };
        let mut stream = stream_on(context);
        let dims = [batch, tokens, 3 * heads * head_dim];
        // qkv comes from a linear layer, as in a model.
        let (x, x_gpu) = random(&mut stream, &[batch, tokens, 4], 1);
        let weight = values(4 * dims[2], 2);
        let layer = layer(&mut stream, &weight, &vec![0.0; dims[2]]);
        let qkv = linear(&mut stream, &x_gpu, &layer, Activation::Identity, None).unwrap();
        let products = |row: &[f32], column: &[f32]| -> f32 {
            row.iter().zip(column).map(|(a, b)| a * b).sum()
        };
        let host: Vec<f32> = x
            .chunks(4)
            .flat_map(|row| weight.chunks(4).map(move |column| products(row, column)))
            .collect();
        let (expected, _) = naive(&host, tokens, heads, head_dim);
        assert_eq!(qkv.dims(), dims);
        assert_eq!(qkv.parts().len(), 4);
        let shape = AttentionShape::of(&qkv, heads).unwrap();
        for tile in tiles(head_dim) {
            let y = attention_with(&mut stream, tile, &qkv, &shape).unwrap();
            assert_close(&read(&mut stream, &y), &expected, 1e-5);
        }
        let error = eager_attention(&mut stream, &qkv, heads);
        assert_eq!(code(error), "UNSUPPORTED");
    }

    #[test]
    fn what_is_kept_for_a_layer_gives_it_the_same_bits() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        for (heads, head_dim) in [(2, 8), (4, 5)] {
            let width = heads * head_dim;
            let (_, qkv) = random(&mut stream, &[2, 19, 3 * width], 1);
            let shape = AttentionShape::of(&qkv, heads).unwrap();
            let reader = layer_of(&mut stream, &values(7 * width, 2), &[0.5; 7], Dtype::F16);
            let identity = Activation::Identity;
            let wide = scaled_dot_product_attention(&mut stream, &qkv, heads).unwrap();
            let expected = linear(&mut stream, &wide, &reader, identity, None).unwrap();
            let stored =
                scaled_dot_product_attention_for(&mut stream, &qkv, heads, Some(&reader)).unwrap();
            assert_eq!(stored.is_halves(), reads_halves(&stream, &reader));
            assert_eq!(stored.raw().dims(), shape.result_dims());
            let y = linear_for(&mut stream, (&stored).into(), &reader, identity, None, None);
            assert_eq!(
                read(&mut stream, y.unwrap().raw()),
                read(&mut stream, &expected)
            );
        }
    }

    #[test]
    fn the_widest_heads_fit() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        for head_dim in [MAX_STAGED - 1, MAX_STAGED] {
            check(&mut stream, [1, 33, 1, head_dim], 1.0);
        }
    }

    #[test]
    fn heads_wider_than_the_staged_tile_fit() {
        let Some(mut stream) = stream() else { return };
        check(&mut stream, [1, 18, 1, MAX_STAGED + 3], 1.0);
    }

    /// The tile that the shape suggests on GPUs.
    fn chosen(heads: usize, tokens: usize) -> &'static str {
        let [many, few] = STAGED.map(Tile::Staged);
        let tiles = [many, few, Tile::Direct];
        let shape = AttentionShape {
            batch: 1,
            tokens,
            heads,
            head_dim: 64,
        };
        tiles[Tile::choose(&tiles, &shape)].id()
    }

    #[test]
    fn a_chosen_tile_is_taken() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        let shape = AttentionShape {
            batch: 1,
            tokens: 20,
            heads: 2,
            head_dim: 8,
        };
        assert_eq!(attention_tiles(&stream, &shape), ["16x16", "32x16"]);
        for id in ["32x16", "16x16"] {
            choose_attention_tile(&mut stream, shape, id).unwrap();
            assert_eq!(Tile::preferred(&stream, &shape)[0].id(), id);
            run_attention(&mut stream, &shape, 2).unwrap();
        }
        let refused = choose_attention_tile(&mut stream, shape, "direct");
        assert_eq!(code(refused), "INVALID_ARGUMENT");
        let wide = AttentionShape {
            head_dim: MAX_STAGED + 1,
            ..shape
        };
        assert_eq!(attention_tiles(&stream, &wide), ["direct"]);
    }

    #[test]
    fn a_refused_tile_is_replaced_by_the_next() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        let (_, qkv) = random(&mut stream, &[1, 20, 48], 1);
        let before = scaled_dot_product_attention(&mut stream, &qkv, 2).unwrap();
        let expected = read(&mut stream, &before);
        for label in stream.pipeline_labels() {
            stream.context().refuse(&label);
        }
        let after = scaled_dot_product_attention(&mut stream, &qkv, 2).unwrap();
        assert_eq!(read(&mut stream, &after), expected);
        assert_eq!(stream.pipeline_labels().len(), 2);
    }

    #[test]
    fn many_heads_take_more_queries_per_workgroup() {
        assert_eq!(chosen(2 * 22, 150), "32x16");
        assert_eq!(chosen(20, 197), "32x16");
        assert_eq!(chosen(6, 197), "16x16");
    }

    /// A query's scores, weights and sums are computed in the same order.
    #[test]
    fn tiles_give_the_same_bits() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        for (tokens, head_dim) in [(50, 64), (33, 10)] {
            let (_, qkv) = random(&mut stream, &[1, tokens, 6 * head_dim], 1);
            let shape = AttentionShape::of(&qkv, 2).unwrap();
            let results = STAGED.map(|tile| {
                let y = attention_with(&mut stream, Tile::Staged(tile), &qkv, &shape);
                read(&mut stream, &y.unwrap())
            });
            assert_eq!(results[0], results[1]);
        }
    }

    #[test]
    fn scores_that_exp_overflows_on_stay_finite() {
        let Some(mut stream) = stream() else { return };
        // Scores of ±10,000: the softmax puts all weight on the keys that the query points to.
        let token = |sign: f32| [100.0, 100.0 * sign, sign];
        let qkv: Vec<f32> = (0..40)
            .flat_map(|i| token(if i < 30 { -1.0 } else { 1.0 }))
            .collect();
        let qkv = stream.upload(&qkv, &[1, 40, 3]).unwrap();
        let y = scaled_dot_product_attention(&mut stream, &qkv, 1).unwrap();
        assert_close(&read(&mut stream, &y), &[1.0; 40], 1e-6);
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let Some(mut stream) = stream() else { return };
        let (_, qkv) = random(&mut stream, &[1, 2, 12], 1);
        let (_, flat) = random(&mut stream, &[2, 12], 1);
        assert_eq!(
            code(scaled_dot_product_attention(&mut stream, &qkv, 0)),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            code(scaled_dot_product_attention(&mut stream, &qkv, 3)),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            code(scaled_dot_product_attention(&mut stream, &qkv, 8)),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            code(scaled_dot_product_attention(&mut stream, &flat, 1)),
            "INVALID_ARGUMENT"
        );
    }
}
