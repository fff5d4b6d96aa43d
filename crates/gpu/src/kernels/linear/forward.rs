//! Linear layers: a tiled GEMM whose epilogue applies bias, activation and residual.

use std::fmt;

use bytemuck::NoUninit;
use vit_msn_tensor::{Activation, Dtype, Error, Result, format_dims};

use crate::buffers::{Activations, GpuTensor, Stored, row_windows};
use crate::context::Context;
use crate::kernels::{LINE, cost, fold_rows};
use crate::pipelines::{Constants, Kernel};
use crate::profile::Cost;
use crate::stream::{Op, Stream};
use crate::tiles::{LayerShape, MAX_SIDE};
use crate::weights::GpuLinear;

const NAME: &str = "linear";

/// A module from its product's parts, the format of its result and its epilogue.
macro_rules! module {
    ($stored:literal, $store:literal; $($part:literal),+) => {
        &[
            $(include_str!($part),)+
            include_str!("../parts/activation.wgsl"),
            include_str!($stored),
            include_str!("linear.wgsl"),
            include_str!($store),
        ]
    };
}

/// The modules for each way of loading x and storing weights: direct, and staged for any number of outputs and for
/// multiples of four.
macro_rules! wide {
    ($x:literal, $($weight:literal),+) => {
        [
            module!("../parts/stored_f32.wgsl", "store_scalar.wgsl"; $x, $($weight,)+ "direct.wgsl"),
            module!(
                "../parts/stored_f32.wgsl", "store_scalar.wgsl";
                $x, "../parts/operand_f32.wgsl", $($weight,)+ "staged.wgsl"
            ),
            module!(
                "../parts/stored_f32.wgsl", "store_vec4.wgsl";
                $x, "../parts/operand_f32.wgsl", $($weight,)+ "staged.wgsl"
            ),
        ]
    };
}

/// The modules of [`Arithmetic::Half`], with the result stored as float32, for any number of outputs and for multiples
/// of four, or in the format that such a layer reads.
macro_rules! half {
    ($($x:literal),+) => {
        [
            half!("../parts/stored_f32.wgsl", "store_scalar.wgsl"; $($x),+),
            half!("../parts/stored_f32.wgsl", "store_vec4.wgsl"; $($x),+),
            half!("../parts/stored_f16.wgsl", "store_vec4.wgsl"; $($x),+),
        ]
    };
    ($stored:literal, $store:literal; $($x:literal),+) => {
        module!(
            $stored, $store;
            "../parts/enable_f16.wgsl",
            "../parts/operand_f16.wgsl",
            $($x,)+
            "../parts/weight_f16_native.wgsl",
            "staged.wgsl"
        )
    };
}

/// The modules of [`Arithmetic::Packed`], for any number of outputs and for multiples of four.
macro_rules! packed {
    ($bytes:literal) => {
        [
            packed!("store_scalar.wgsl"; $bytes),
            packed!("store_vec4.wgsl"; $bytes),
        ]
    };
    ($store:literal; $bytes:literal) => {
        module!(
            "../parts/stored_f32.wgsl", $store;
            $bytes, "../parts/scaled_outputs.wgsl", "packed.wgsl"
        )
    };
}

/// How x and the weight are multiplied. The final sums are float32. The last two require staged tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    /// As float32; weights are widened.
    Wide,
    /// As float16: for float16 weights, if the device supports float16 arithmetic.
    Half,
    /// As bytes, exactly: for int8 weights, with x quantised once, in blocks of 32 values of a row, if the device has dot
    /// products of four packed bytes.
    Packed,
}

impl Arithmetic {
    /// The narrowest that the device supports for a weight's storage type. Software adapters don't gain from narrow
    /// arithmetic.
    fn choose(context: &Context, dtype: Dtype) -> Self {
        match dtype {
            _ if context.is_software() => Self::Wide,
            Dtype::F16 if context.has(wgpu::Features::SHADER_F16) => Self::Half.or_wide(context),
            Dtype::I8 if context.has_packed_dot() => Self::Packed.or_wide(context),
            _ => Self::Wide,
        }
    }

    /// This one if the device computes it right with any tile.
    fn or_wide(self, context: &Context) -> Self {
        match Tile::candidates(context, self).is_empty() {
            true => Self::Wide,
            false => self,
        }
    }
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wide => "float32",
            Self::Half => "float16",
            Self::Packed => "int8",
        })
    }
}

/// How a layer is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Strategy {
    tile: Tile,
    arithmetic: Arithmetic,
}

impl Strategy {
    /// Those that this device uses, each with a storage type of weights for which it does.
    pub fn in_use(context: &Context) -> Vec<(Dtype, Self)> {
        let mut found = Vec::new();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::I8] {
            let arithmetic = Arithmetic::choose(context, dtype);
            if dtype == Dtype::F32 || arithmetic != Arithmetic::Wide {
                let tiles = Tile::candidates(context, arithmetic).into_iter();
                found.extend(tiles.map(|tile| (dtype, tile.by(arithmetic))));
            }
        }
        found
    }

    /// x · weightᵀ + bias by this strategy alone.
    pub fn compute(
        self,
        stream: &mut Stream,
        x: &GpuTensor,
        weights: &GpuLinear,
    ) -> Result<GpuTensor> {
        linear_with(stream, self, x, weights, Activation::Identity, None)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tile {}", self.arithmetic, self.tile.id())
    }
}

/// The formats of a layer's input and result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Forms {
    /// Whether the rows of x are whole vectors.
    vectors: bool,
    /// Whether they are whole vectors of bytes, packed in fours.
    sixteens: bool,
    /// Whether x is stored in this layer's format.
    x_halves: bool,
    /// Whether the rows of the result are whole vectors.
    y_vectors: bool,
    /// Whether the result is stored in the format of the layer that reads it.
    y_halves: bool,
}

/// The sources of a module.
fn sources(
    dtype: Dtype,
    arithmetic: Arithmetic,
    forms: Forms,
    direct: bool,
) -> &'static [&'static str] {
    let vectors = forms.vectors;
    if arithmetic == Arithmetic::Half {
        let three: [&'static [&'static str]; 3] = match (forms.x_halves, vectors) {
            (true, _) => half!("../parts/x_halves.wgsl"),
            (false, true) => half!("../parts/x_vec4.wgsl", "../parts/rounded_f16.wgsl"),
            (false, false) => half!("../parts/x_scalar.wgsl", "../parts/rounded_f16.wgsl"),
        };
        return three[usize::from(forms.y_vectors) + usize::from(forms.y_halves)];
    }
    if arithmetic == Arithmetic::Packed {
        let two: [&'static [&'static str]; 2] = if forms.sixteens {
            packed!("bytes_vec4.wgsl")
        } else {
            packed!("bytes_scalar.wgsl")
        };
        return two[usize::from(forms.y_vectors)];
    }
    let three: [&'static [&'static str]; 3] = match (dtype, vectors) {
        (Dtype::F32, true) => wide!("../parts/x_vec4.wgsl", "../parts/weight_f32.wgsl"),
        (Dtype::F32, false) => wide!("../parts/x_scalar.wgsl", "../parts/weight_f32.wgsl"),
        (Dtype::F16, true) => wide!("../parts/x_vec4.wgsl", "../parts/weight_f16.wgsl"),
        (Dtype::F16, false) => wide!("../parts/x_scalar.wgsl", "../parts/weight_f16.wgsl"),
        (Dtype::BF16, true) => wide!("../parts/x_vec4.wgsl", "../parts/weight_bf16.wgsl"),
        (Dtype::BF16, false) => wide!("../parts/x_scalar.wgsl", "../parts/weight_bf16.wgsl"),
        (Dtype::I8, true) => wide!(
            "../parts/x_vec4.wgsl",
            "../parts/weight_i8.wgsl",
            "../parts/scaled_outputs.wgsl"
        ),
        (Dtype::I8, false) => wide!(
            "../parts/x_scalar.wgsl",
            "../parts/weight_i8.wgsl",
            "../parts/scaled_outputs.wgsl"
        ),
    };
    match direct {
        true => three[0],
        false => three[1 + usize::from(forms.y_vectors)],
    }
}

const CONSTANTS: Constants = &[
    "ACTIVATION",
    "RESIDUAL",
    "THREADS",
    "EACH",
    "DEPTH_VECS",
    "RAGGED",
];

/// How the results are divided into workgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tile {
    /// Directly from storage, 32×32 results per workgroup of 16.
    Direct,
    /// Through workgroup memory: THREADS² invocations of EACH² results.
    Staged { threads: usize, each: usize },
}

/// From largest to smallest. Larger tiles read less memory (x and weight once per side of a tile), and more results per
/// invocation read less workgroup memory; the others give more invocations.
///
/// | results | invocations | results of each | workgroup memory | in float16 | FLOP per byte read | registers of sums and weights |
/// |---|---:|---:|---:|---:|---:|---:|
/// | 128×128 | 256 | 8×8 | 8,256 | 4,128 | 32 | 96 |
/// | 64×64 | 64 | 8×8 | 8,320 | 4,160 | 16 | 96 |
/// | 64×64 | 256 | 4×4 | 8,320 | 4,160 | 16 | 32 |
/// | 32×32 | 64 | 4×4 | 4,224 | 2,112 | 8 | 32 |
const STAGED: [Tile; 4] = [
    Tile::Staged {
        threads: 16,
        each: 8,
    },
    Tile::Staged {
        threads: 8,
        each: 8,
    },
    Tile::Staged {
        threads: 16,
        each: 4,
    },
    Tile::Staged {
        threads: 8,
        each: 4,
    },
];

/// Invocations that occupy a large GPU: 500 schedulers with two warps each. A smaller GPU gains nothing from more.
const ENOUGH_INVOCATIONS: usize = 32_768;

/// Maximum side of an invocation's results on GPUs with few registers per invocation, where 8×8 results spill.
const FEW_REGISTERS_EACH: usize = 4;

/// [`STAGED`] for bytes.
///
/// | results | invocations | workgroup memory | operations per byte read | registers of sums and operands |
/// |---|---:|---:|---:|---:|
/// | 64×64 | 256 | 8,832 | 32 | 80 |
/// | 32×32 | 64 | 4,480 | 16 | 80 |
const PACKED: [Tile; 2] = [
    Tile::Staged {
        threads: 16,
        each: 4,
    },
    Tile::Staged {
        threads: 8,
        each: 4,
    },
];

const fn fit_parts(tiles: &[Tile]) -> bool {
    let mut index = 0;
    while index < tiles.len() {
        if !MAX_SIDE.is_multiple_of(tiles[index].side()) {
            return false;
        }
        index += 1;
    }
    true
}
const _: () = assert!(fit_parts(&STAGED) && fit_parts(&PACKED) && fit_parts(&[Tile::Direct]));

impl Tile {
    /// The tiles that support this arithmetic and that the device computes right, from largest to smallest.
    fn candidates(context: &Context, arithmetic: Arithmetic) -> Vec<Self> {
        let all: &[Self] = match arithmetic {
            Arithmetic::Packed => &PACKED,
            _ if context.is_software() => &[Self::Direct],
            _ => &STAGED,
        };
        let most = match context.has_few_registers() {
            true => FEW_REGISTERS_EACH,
            false => usize::MAX,
        };
        let fits = |tile: &&Self| tile.each() <= most && context.uses(tile.by(arithmetic));
        all.iter().filter(fits).copied().collect()
    }

    /// The tiles for a layer in the order in which they are tried: the chosen one, or else the one suggested by the
    /// layer's size, the smaller ones and then the larger ones.
    fn preferred(stream: &Stream, shape: LayerShape, arithmetic: Arithmetic) -> Vec<Self> {
        let mut tiles = Self::candidates(stream.context(), arithmetic);
        let chosen = stream.tiles.of(shape);
        let chosen = tiles.iter().position(|tile| Some(tile.id()) == chosen);
        let first = chosen.unwrap_or_else(|| Self::choose(&tiles, shape.rows, shape.outputs));
        let larger = tiles.drain(..first).rev().collect::<Vec<_>>();
        tiles.extend(larger);
        tiles
    }

    /// The index of the largest that doesn't leave a large GPU idle, or else of the smallest.
    fn choose(candidates: &[Self], rows: usize, outputs: usize) -> usize {
        let is_busy = |tile: &Self| {
            let workgroups = rows.div_ceil(tile.side()) * outputs.div_ceil(tile.side());
            workgroups * tile.invocations() >= ENOUGH_INVOCATIONS
        };
        let smallest = candidates.len().saturating_sub(1);
        candidates.iter().position(is_busy).unwrap_or(smallest)
    }

    const fn by(self, arithmetic: Arithmetic) -> Strategy {
        Strategy {
            tile: self,
            arithmetic,
        }
    }

    /// Names the tile in choices, reports and caches: its results, then those of each invocation.
    const fn id(self) -> &'static str {
        match self {
            Tile::Direct => "direct",
            Tile::Staged {
                threads: 16,
                each: 8,
            } => "128x128/8x8",
            Tile::Staged {
                threads: 8,
                each: 8,
            } => "64x64/8x8",
            Tile::Staged {
                threads: 16,
                each: 4,
            } => "64x64/4x4",
            Tile::Staged {
                threads: 8,
                each: 4,
            } => "32x32/4x4",
            Tile::Staged { .. } => panic!("a tile without a name"),
        }
    }

    /// Rows and columns of an invocation's results; 0 where they don't use up registers.
    const fn each(self) -> usize {
        match self {
            Tile::Direct => 0,
            Tile::Staged { each, .. } => each,
        }
    }

    /// Invocations per workgroup.
    const fn invocations(self) -> usize {
        match self {
            Tile::Direct => 16,
            Tile::Staged { threads, .. } => threads * threads,
        }
    }

    /// Rows and columns of a workgroup's results.
    const fn side(self) -> usize {
        match self {
            Tile::Direct => 32,
            Tile::Staged { threads, each } => threads * each,
        }
    }

    fn kernel(self, dtype: Dtype, arithmetic: Arithmetic, forms: Forms) -> Kernel {
        Kernel {
            name: NAME,
            sources: sources(dtype, arithmetic, forms, self == Tile::Direct),
            entry_point: "main",
        }
    }

    /// The values of the constants. All but the first two belong to the staged tile.
    fn constants(self, activation: Activation, with_residual: bool, inputs: usize) -> Vec<u32> {
        let mut values = vec![activation.code(), u32::from(with_residual)];
        if let Tile::Staged { threads, each } = self {
            // A depth of 16, or 8 for the tile that would exceed 16 KiB.
            let depth_vecs = if threads * each > 64 { 2 } else { 4 };
            let is_ragged = !inputs.is_multiple_of(4 * depth_vecs);
            values.extend([threads, each, depth_vecs, usize::from(is_ragged)].map(|v| v as u32));
        }
        values
    }
}

/// The ids of the tiles that can compute a layer. The first is the default.
pub fn linear_tiles(stream: &Stream, shape: LayerShape) -> Vec<&'static str> {
    let arithmetic = Arithmetic::choose(stream.context(), shape.dtype);
    let mut tiles = Tile::candidates(stream.context(), arithmetic);
    let default = tiles.remove(Tile::choose(&tiles, shape.rows, shape.outputs));
    tiles.insert(0, default);
    tiles.into_iter().map(Tile::id).collect()
}

/// From now on, computes layers of this shape with the tile of this id.
///
/// # Errors
/// INVALID_ARGUMENT for a tile that doesn't exist.
pub fn choose_linear_tile(stream: &mut Stream, shape: LayerShape, id: &str) -> Result<()> {
    let ids = linear_tiles(stream, shape);
    let Some(&id) = ids.iter().find(|&&tile| tile == id) else {
        return Err(Error::InvalidArgument(format!(
            "There is no tile {id} for {} layers here, only {ids:?}.",
            shape.dtype.name()
        )));
    };
    stream.tiles.choose(shape, id);
    Ok(())
}

/// Computes a layer `times` times for `rows` rows of arbitrary data, for timing.
///
/// # Errors
/// As [`linear`].
pub fn run_linear(
    stream: &mut Stream,
    weights: &GpuLinear,
    rows: usize,
    times: usize,
) -> Result<()> {
    let dims = [rows, weights.in_features()];
    let x = if reads_halves(stream, weights) {
        stream.uninit_for(&dims, true)?
    } else {
        Stored::Wide(stream.uninit(&dims)?)
    };
    for _ in 0..times {
        linear_for(
            stream,
            (&x).into(),
            weights,
            Activation::Identity,
            None,
            None,
        )?;
    }
    Ok(())
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    rows: u32,
    inputs: u32,
    outputs: u32,
    first: u32,
    part: u32,
}

/// activation(x · weightᵀ + bias) + residual: x `[..., inputs]`, residual and result `[..., outputs]`.
///
/// # Errors
/// INVALID_ARGUMENT if shapes don't match or rows of the weight are missing, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn linear(
    stream: &mut Stream,
    x: &GpuTensor,
    weights: &GpuLinear,
    activation: Activation,
    residual: Option<&GpuTensor>,
) -> Result<GpuTensor> {
    let rows = x.rows().0;
    by_an_accepted_tile(stream, rows, weights, |stream, by| {
        linear_with(stream, by, x, weights, activation, residual)
    })
}

/// [`linear`] for any tensor or a result stored for this layer. The result is in the format that suits its only
/// reader.
///
/// # Errors
/// As [`linear`], and INVALID_ARGUMENT for a result stored for another kind of layer.
pub fn linear_for(
    stream: &mut Stream,
    x: Activations<'_>,
    weights: &GpuLinear,
    activation: Activation,
    residual: Option<&GpuTensor>,
    reader: Option<&GpuLinear>,
) -> Result<Stored> {
    let rows = x.raw().rows().0;
    by_an_accepted_tile(stream, rows, weights, |stream, by| {
        // The same arithmetic reads and writes that format.
        let halves = by.arithmetic == Arithmetic::Half
            && reader.is_some_and(|next| reads_halves(stream, next));
        linear_into(stream, by, x, weights, activation, residual, halves)
    })
}

/// Whether a layer multiplies in float16 and reads whole vectors. Results that only it reads are then stored in its
/// format.
pub(crate) fn reads_halves(stream: &Stream, weights: &GpuLinear) -> bool {
    let arithmetic = Arithmetic::choose(stream.context(), weights.dtype());
    arithmetic == Arithmetic::Half && weights.in_features().is_multiple_of(4)
}

/// Computes a layer with the first tile that the driver accepts.
fn by_an_accepted_tile<T>(
    stream: &mut Stream,
    rows: usize,
    weights: &GpuLinear,
    mut compute: impl FnMut(&mut Stream, Strategy) -> Result<T>,
) -> Result<T> {
    let arithmetic = Arithmetic::choose(stream.context(), weights.dtype());
    let mut refusal = None;
    for tile in Tile::preferred(stream, weights.layer_shape(rows), arithmetic) {
        match compute(stream, tile.by(arithmetic)) {
            Err(error @ Error::Unsupported(_)) => refusal = refusal.or(Some(error)),
            result => return result,
        }
    }
    Err(refusal
        .unwrap_or_else(|| Error::Unsupported(format!("This GPU computes no {NAME} layers."))))
}

fn linear_with(
    stream: &mut Stream,
    by: Strategy,
    x: &GpuTensor,
    weights: &GpuLinear,
    activation: Activation,
    residual: Option<&GpuTensor>,
) -> Result<GpuTensor> {
    let x = Activations::Wide(x);
    match linear_into(stream, by, x, weights, activation, residual, false)? {
        Stored::Wide(y) => Ok(y),
        Stored::Halves(_) => unreachable!("nobody asked for halves"),
    }
}

fn linear_into(
    stream: &mut Stream,
    Strategy { tile, arithmetic }: Strategy,
    x: Activations<'_>,
    weights: &GpuLinear,
    activation: Activation,
    residual: Option<&GpuTensor>,
    halves: bool,
) -> Result<Stored> {
    weights.check_complete()?;
    let (x_halves, x) = (x.are_halves(), x.raw());
    if x_halves && !reads_halves(stream, weights) {
        return Err(Error::InvalidArgument(format!(
            "A tensor {} was stored for a float16 linear layer, and a {} layer can't read it.",
            format_dims(x.dims()),
            weights.dtype().name()
        )));
    }
    let (_, inputs) = x.rows();
    if inputs != weights.in_features() {
        return Err(Error::InvalidArgument(format!(
            "A linear layer of {} inputs can't take {}.",
            weights.in_features(),
            format_dims(x.dims())
        )));
    }
    let outputs = weights.out_features();
    let mut dims = x.dims().to_vec();
    dims.pop();
    dims.push(outputs);
    if let Some(residual) = residual {
        residual.expect("The residual of a linear layer", &dims)?;
    }
    let stored = stream.uninit_for(&dims, halves)?;
    let y = stored.raw();
    let forms = Forms {
        vectors: inputs.is_multiple_of(4),
        sixteens: inputs.is_multiple_of(16),
        x_halves,
        y_vectors: outputs.is_multiple_of(4),
        y_halves: halves,
    };
    let constants = tile.constants(activation, residual.is_some(), inputs);
    let side = tile.side();
    let bytes = match arithmetic {
        Arithmetic::Packed => Some(quantise(stream, x)?),
        _ => None,
    };
    let x = bytes.as_ref().unwrap_or(x);
    let windows = row_windows(&[x, y, residual.unwrap_or(y)]);
    let parts = windows
        .iter()
        .flat_map(|window| weights.parts().iter().map(move |part| (window, part)));
    for (window, part) in parts {
        stream.record(Op {
            kernel: tile.kernel(weights.dtype(), arithmetic, forms),
            constants: (CONSTANTS, &constants),
            uniforms: Params {
                rows: window.len() as u32,
                inputs: inputs as u32,
                outputs: outputs as u32,
                first: part.start as u32,
                part: part.rows as u32,
            },
            reads: &[
                x.window(window),
                part.buffer.binding(),
                weights.scales().unwrap_or(weights.bias()).binding(),
                weights.bias().binding(),
                residual.map_or(weights.bias().binding(), |added| added.window(window)),
            ],
            writes: &[y.window(window)],
            workgroups: [part.rows.div_ceil(side), window.len().div_ceil(side), 1],
            cost: cost_of(
                [window.len(), inputs, part.rows],
                side,
                (x.byte_size() / x.rows().0, weights.dtype()),
                halves,
                residual.is_some(),
            ),
        })?;
    }
    Ok(stored)
}

/// The values that share a scale in [`Arithmetic::Packed`], and the values that packed.wgsl reads at a time.
const BLOCK: usize = 32;
const STEP: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct QuantiseParams {
    rows: u32,
    inputs: u32,
    blocks: u32,
    stride: u32,
    across: u32,
}

/// The rows of x as bytes and their scales, once for all workgroups that read them: see quantise.wgsl.
fn quantise(stream: &mut Stream, x: &GpuTensor) -> Result<GpuTensor> {
    let (rows, inputs) = x.rows();
    let blocks = inputs.div_ceil(STEP) * (STEP / BLOCK);
    let stride = 8 * blocks + blocks.next_multiple_of(4);
    let bytes = stream.uninit_rows(&[rows, stride])?;
    for window in row_windows(&[x, &bytes]) {
        let [across, down, _] = fold_rows((window.len() * blocks).div_ceil(LINE));
        stream.record(Op {
            kernel: Kernel {
                name: "linear_quantise",
                sources: if inputs.is_multiple_of(4) {
                    &[
                        include_str!("../parts/x_vec4.wgsl"),
                        include_str!("quantise.wgsl"),
                    ]
                } else {
                    &[
                        include_str!("../parts/x_scalar.wgsl"),
                        include_str!("quantise.wgsl"),
                    ]
                },
                entry_point: "main",
            },
            constants: (&[], &[]),
            uniforms: QuantiseParams {
                rows: window.len() as u32,
                inputs: inputs as u32,
                blocks: blocks as u32,
                stride: stride as u32,
                across: (across * LINE) as u32,
            },
            reads: &[x.window(&window)],
            writes: &[bytes.window(&window)],
            workgroups: [across, down, 1],
            cost: cost((window.len() * (inputs + stride)) as u64, 0),
        })?;
    }
    Ok(bytes)
}

/// Each workgroup reads its rows of x, of `row_bytes`, and of the weight once.
fn cost_of(
    [rows, inputs, outputs]: [usize; 3],
    side: usize,
    (row_bytes, dtype): (usize, Dtype),
    y_halves: bool,
    with_residual: bool,
) -> Cost {
    let times = |a: usize, b: usize| a as u64 * b as u64;
    let x = times(rows, row_bytes) * outputs.div_ceil(side) as u64;
    let weight = times(dtype.size() * outputs, inputs) * rows.div_ceil(side) as u64;
    let added = if with_residual { 4 } else { 0 };
    let written = (if y_halves { 2 } else { 4 } + added) * times(rows, outputs);
    Cost {
        flop: 2 * times(rows, inputs) * outputs as u64,
        bytes: x + weight + written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestedLimits;
    use crate::test_support::{
        assert_close, code, context_binding, context_with, full_stream, layer, layer_of, on_shapes,
        random, read, stream, stream_on, values,
    };
    use vit_msn_tensor::quantise_row;

    fn naive(x: &[f32], weight: &[f32], bias: &[f32], activation: Activation) -> Vec<f64> {
        let inputs = weight.len() / bias.len();
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter()
                .zip(b)
                .map(|(&a, &b)| f64::from(a) * f64::from(b))
                .sum()
        };
        x.chunks(inputs)
            .flat_map(|row| {
                weight
                    .chunks(inputs)
                    .zip(bias)
                    .map(move |(column, &bias)| (dot(row, column), f64::from(bias)))
            })
            .map(|(product, bias)| activation.definition(product + bias))
            .collect()
    }

    fn check(
        stream: &mut Stream,
        [rows, inputs, outputs]: [usize; 3],
        activation: Activation,
        with_residual: bool,
        (dtype, by): (Dtype, Strategy),
    ) {
        let (x, x_gpu) = random(stream, &[rows, inputs], 1);
        let (residual, residual_gpu) = random(stream, &[rows, outputs], 4);
        let (weight, bias) = (values(outputs * inputs, 2), values(outputs, 3));
        let weights = layer_of(stream, &weight, &bias, dtype);
        let added = with_residual.then_some(&residual_gpu);
        let y = linear_with(stream, by, &x_gpu, &weights, activation, added).unwrap();
        // The definition, with the values that the storage type can represent.
        let bias: Vec<_> = bias.iter().map(|&v| dtype.round(v)).collect();
        let weight: Vec<_> = weight
            .chunks(inputs)
            .flat_map(|row| stored(row, dtype))
            .collect();
        let mut expected = naive(&x, &weight, &bias, activation);
        if with_residual {
            for (value, &residual) in expected.iter_mut().zip(&residual) {
                *value += f64::from(residual);
            }
        }
        assert_eq!(y.dims(), [rows, outputs]);
        assert_close(&read(stream, &y), &expected, tolerance(by.arithmetic));
    }

    /// For x and weights in [−1, 1]: x loses up to 2⁻¹¹ of itself as float16, and 1 / 254 of the block's maximum as
    /// bytes.
    fn tolerance(arithmetic: Arithmetic) -> f64 {
        match arithmetic {
            Arithmetic::Wide => 1e-5,
            Arithmetic::Half => 2e-3,
            Arithmetic::Packed => 4e-2,
        }
    }

    fn stored(row: &[f32], dtype: Dtype) -> Vec<f32> {
        match dtype {
            Dtype::I8 => {
                let (scale, steps) = quantise_row(row);
                steps.map(|step| f32::from(step) * scale).collect()
            }
            dtype => row.iter().map(|&v| dtype.round(v)).collect(),
        }
    }

    const WIDE: Strategy = STAGED[3].by(Arithmetic::Wide);

    const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8];

    /// All strategies for a layer of this type that the device supports.
    fn ways(context: &Context, dtype: Dtype) -> Vec<Strategy> {
        let wide = [Tile::Direct].into_iter().chain(STAGED);
        let halves: &[Tile] = match dtype {
            Dtype::F16 if context.has(wgpu::Features::SHADER_F16) => &STAGED,
            _ => &[],
        };
        let packed: &[Tile] = match dtype {
            Dtype::I8 if context.has_packed_dot() => &PACKED,
            _ => &[],
        };
        wide.map(|tile| tile.by(Arithmetic::Wide))
            .chain(halves.iter().map(|&tile| tile.by(Arithmetic::Half)))
            .chain(packed.iter().map(|&tile| tile.by(Arithmetic::Packed)))
            .collect()
    }

    #[test]
    fn rows_beyond_a_binding_match_the_definition() {
        let (rows, inputs, outputs) = (200, 12, 40);
        // Fits 64 rows of the result, 256 of the input.
        let Some(context) = context_binding(64 * 4 * 48) else {
            return;
        };
        let mut stream = stream_on(context);
        let (x, x_gpu) = random(&mut stream, &[rows, inputs], 1);
        let (weight, bias) = (values(outputs * inputs, 2), values(outputs, 3));
        let up = layer(&mut stream, &weight, &bias);
        let (back, back_bias) = (values(inputs * outputs, 4), values(inputs, 5));
        let down = layer(&mut stream, &back, &back_bias);
        let middle = naive(&x, &weight, &bias, Activation::Gelu);
        let middle_values: Vec<f32> = middle.iter().map(|&v| v as f32).collect();
        let mut expected = naive(&middle_values, &back, &back_bias, Activation::Identity);
        for (value, &residual) in expected.iter_mut().zip(&x) {
            *value += f64::from(residual);
        }
        for tile in [Tile::Direct, STAGED[3]].map(|tile| tile.by(Arithmetic::Wide)) {
            let gelu = Activation::Gelu;
            let y = linear_with(&mut stream, tile, &x_gpu, &up, gelu, None).unwrap();
            assert_eq!((y.dims(), y.parts().len()), (&[rows, outputs][..], 4));
            assert_close(&read(&mut stream, &y), &middle, 1e-5);
            let identity = Activation::Identity;
            let z = linear_with(&mut stream, tile, &y, &down, identity, Some(&x_gpu)).unwrap();
            assert_close(&read(&mut stream, &z), &expected, 1e-5);
        }
    }

    #[test]
    fn odd_shapes_match_the_definition() {
        let shapes = [1usize..90, 1usize..80, 1usize..90];
        // Pipelines take longer to compile than to run here, so each case uses one of a few.
        on_shapes((shapes, 0usize..4), |stream, (shape, dtype)| {
            let ways = ways(stream.context(), DTYPES[dtype]);
            let by = [ways[0], ways[ways.len() - 1]][shape[0] % 2];
            let activation = Activation::ALL[dtype % 2];
            check(stream, shape, activation, dtype < 2, (DTYPES[dtype], by));
        });
    }

    #[test]
    fn every_tile_has_its_edges_right() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        for dtype in DTYPES {
            for by in ways(stream.context(), dtype) {
                if by.arithmetic == Arithmetic::Wide && dtype != Dtype::F32 {
                    continue;
                }
                for inputs in [19, 40] {
                    let side = by.tile.side();
                    let shape = [side + 3, inputs, 2 * side - 5];
                    check(&mut stream, shape, Activation::Identity, true, (dtype, by));
                }
            }
        }
    }

    /// A result sums over the depth in the same order for every tile.
    #[test]
    fn tiles_give_the_same_bits() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        for (dtype, inputs) in [(Dtype::F32, 100), (Dtype::F16, 70), (Dtype::I8, 101)] {
            let (_, x) = random(&mut stream, &[37, inputs], 1);
            let weights = layer_of(&mut stream, &values(41 * inputs, 2), &[0.5; 41], dtype);
            let arithmetic = Arithmetic::choose(stream.context(), dtype);
            let mut results = Vec::new();
            for tile in Tile::candidates(stream.context(), arithmetic) {
                let by = tile.by(arithmetic);
                let y = linear_with(&mut stream, by, &x, &weights, Activation::Identity, None);
                results.push(read(&mut stream, &y.unwrap()));
            }
            assert!(results.len() > 1);
            assert!(results.iter().all(|y| *y == results[0]), "{dtype:?}");
        }
    }

    #[test]
    fn a_chosen_tile_is_taken() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        let weights = layer_of(&mut stream, &[0.5; 40 * 8], &[0.0; 40], Dtype::F32);
        let shape = weights.layer_shape(50);
        let ids = ["32x32/4x4", "128x128/8x8", "64x64/8x8", "64x64/4x4"];
        assert_eq!(linear_tiles(&stream, shape), ids);
        let first =
            |stream: &Stream, shape| Tile::preferred(stream, shape, Arithmetic::Wide)[0].id();
        for id in ids {
            choose_linear_tile(&mut stream, shape, id).unwrap();
            assert_eq!(first(&stream, shape), id);
            run_linear(&mut stream, &weights, 50, 2).unwrap();
        }
        let other = LayerShape { rows: 51, ..shape };
        assert_eq!(first(&stream, other), "32x32/4x4");
        let refused = choose_linear_tile(&mut stream, shape, "48x48/4x4");
        assert_eq!(code(refused), "INVALID_ARGUMENT");
        // Software adapters have a single tile.
        let Some(stream) = stream_of_software() else {
            return;
        };
        assert_eq!(linear_tiles(&stream, shape), ["direct"]);
    }

    /// A stream with the kernels of a software adapter, if the adapter is one.
    fn stream_of_software() -> Option<Stream> {
        stream().filter(|stream| stream.context().is_software())
    }

    #[test]
    fn inputs_far_apart_keep_their_digits_as_bytes() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        // Rows that differ by factors of 10,000, zeros, and values without a finite inverse.
        let sizes = [1.0, 1e4, 1e-4, 0.0, 1e-38];
        let data = values(5 * 64, 1);
        let x: Vec<f32> = (data.iter().enumerate())
            .map(|(i, v)| v * sizes[i / 64])
            .collect();
        let x_gpu = stream.upload(&x, &[5, 64]).unwrap();
        let weight = values(3 * 64, 2);
        let weights = layer_of(&mut stream, &weight, &[0.0; 3], Dtype::I8);
        let by = PACKED[1].by(Arithmetic::Packed);
        let y = linear_with(
            &mut stream,
            by,
            &x_gpu,
            &weights,
            Activation::Identity,
            None,
        )
        .unwrap();
        let expected = naive(&x, &weight, &[0.0; 3], Activation::Identity);
        for ((row, y), expected) in
            (read(&mut stream, &y).chunks(3).enumerate()).zip(expected.chunks(3))
        {
            for (&y, &expected) in y.iter().zip(expected) {
                let error = (f64::from(y) - expected).abs();
                assert!(
                    error <= 0.1 * f64::from(sizes[row]) + 1e-30,
                    "{row}: {y} for {expected}"
                );
            }
        }
    }

    #[test]
    fn float16_inputs_beyond_its_range_count_as_the_largest() {
        let Some(mut stream) = halves_stream() else {
            return;
        };
        let by = STAGED[3].by(Arithmetic::Half);
        let x = stream.upload(&[1e5, 6e4, -1e9, 1e5], &[1, 4]).unwrap();
        let weights = layer_of(&mut stream, &[2.0; 4], &[0.0], Dtype::F16);
        let y = linear_with(&mut stream, by, &x, &weights, Activation::Identity, None).unwrap();
        assert_close(&read(&mut stream, &y), &[2.0 * (65504.0 + 6e4)], 1e-6);
    }

    /// Rounding x loses up to 2⁻¹¹ of it. A GPU may count operands below 2⁻¹⁴ as zero, which loses less than 2⁻¹⁴ of
    /// either. Products are exact, and each of the float32 sums loses up to 2⁻²⁴ of itself.
    #[test]
    fn float16_errors_have_a_bound_even_if_a_gpu_flushes_subnormals() {
        let (rows, inputs, outputs) = (40, 384, 36);
        let flush = |v: f32| if v.abs() < 2f32.powi(-14) { 0.0 } else { v };
        for size in [30.0, 1.0, 0.1, 1e-3] {
            let x: Vec<f32> = (values(rows * inputs, 1).iter())
                .map(|v| v * size)
                .collect();
            let weight: Vec<f32> = (values(outputs * inputs, 2).iter())
                .map(|v| Dtype::F16.round(0.04 * v))
                .collect();
            let exact = naive(&x, &weight, &vec![0.0; outputs], Activation::Identity);
            let bound: Vec<f64> = x
                .chunks(inputs)
                .flat_map(|x| weight.chunks(inputs).map(move |w| loss(x, w)))
                .collect();
            let check = |y: &[f32], how: &str| {
                for ((&y, &exact), &bound) in y.iter().zip(&exact).zip(&bound) {
                    let error = (f64::from(y) - exact).abs();
                    assert!(error <= bound, "{how}, {size}: {y} for {exact} ± {bound}");
                }
                // Typical errors are far smaller: relative to the results, less than float16 itself has.
                let power =
                    |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
                let errors = power(&mut y.iter().zip(&exact).map(|(&y, &e)| f64::from(y) - e));
                let relative = (errors / power(&mut exact.iter().copied())).sqrt();
                let most = if size < 0.01 { 2e-2 } else { 7e-4 };
                assert!(relative < most, "{how}, {size}: {relative}");
            };
            let simulate = |change: &dyn Fn(f32) -> f32| -> Vec<f32> {
                let half = |v: &f32| change(Dtype::F16.round(*v));
                let (x, weight): (Vec<_>, Vec<_>) = (
                    x.iter().map(half).collect(),
                    weight.iter().map(half).collect(),
                );
                let sum = |x: &[f32], w: &[f32]| {
                    x.iter()
                        .zip(w)
                        .fold(0.0f32, |sum, (&x, &w)| x.mul_add(w, sum))
                };
                let rows = x.chunks(inputs);
                rows.flat_map(|x| weight.chunks(inputs).map(move |w| sum(x, w)))
                    .collect()
            };
            check(&simulate(&|v| v), "simulated");
            check(&simulate(&flush), "simulated with flushing");
            let Some(mut stream) = halves_stream() else {
                continue;
            };
            let x = stream.upload(&x, &[rows, inputs]).unwrap();
            let weights = layer_of(&mut stream, &weight, &vec![0.0; outputs], Dtype::F16);
            for tile in STAGED {
                let by = tile.by(Arithmetic::Half);
                let y = linear_with(&mut stream, by, &x, &weights, Activation::Identity, None);
                check(&read(&mut stream, &y.unwrap()), "on the device");
            }
        }
    }

    /// The most that a float16 layer's result may deviate: see the test above.
    fn loss(x: &[f32], weight: &[f32]) -> f64 {
        let flushed = 2f64.powi(-14);
        let rounded = 2f64.powi(-11) + x.len() as f64 * 2f64.powi(-24);
        let products = x.iter().zip(weight).map(|(&x, &w)| {
            let (x, w) = (f64::from(x).abs(), f64::from(w).abs());
            x * w * rounded + flushed * (x + w)
        });
        1.01 * products.sum::<f64>()
    }

    /// A stream whose float16 layers compute in float16.
    fn halves_stream() -> Option<Stream> {
        full_stream().filter(|stream| stream.context().has(wgpu::Features::SHADER_F16))
    }

    #[test]
    fn what_is_kept_for_a_layer_gives_it_the_same_bits() {
        let Some(mut stream) = halves_stream() else {
            return;
        };
        for [rows, inputs, middle, outputs] in [[37, 40, 44, 19], [130, 19, 36, 70]] {
            let (_, x) = random(&mut stream, &[rows, inputs], 1);
            let (_, residual) = random(&mut stream, &[rows, outputs], 2);
            let half = Dtype::F16;
            let (first, second) = (values(middle * inputs, 3), values(outputs * middle, 4));
            let up = layer_of(&mut stream, &first, &vec![0.5; middle], half);
            let down = layer_of(&mut stream, &second, &vec![0.25; outputs], half);
            let (gelu, identity) = (Activation::Gelu, Activation::Identity);
            let wide = linear(&mut stream, &x, &up, gelu, None).unwrap();
            let expected = linear(&mut stream, &wide, &down, identity, Some(&residual)).unwrap();
            let x = Activations::Wide(&x);
            let stored = linear_for(&mut stream, x, &up, gelu, None, Some(&down)).unwrap();
            assert!(stored.is_halves());
            assert_eq!(stored.raw().dims(), wide.dims());
            assert_eq!(2 * stored.raw().byte_size(), wide.byte_size());
            let added = Some(&residual);
            let y = linear_for(&mut stream, (&stored).into(), &down, identity, added, None);
            let Ok(Stored::Wide(y)) = y else {
                panic!("a result without a reader is float32")
            };
            assert_eq!(read(&mut stream, &y), read(&mut stream, &expected));
        }
    }

    #[test]
    fn what_is_kept_goes_beyond_a_binding() {
        let Some(mut context) = context_with(RequestedLimits::Adapter) else {
            return;
        };
        // Fits 64 rows of float32, 128 rows of stored results.
        context.lower_binding_size(64 * 4 * 48);
        let mut stream = stream_on(context.as_a_gpu());
        let (_, x) = random(&mut stream, &[200, 12], 1);
        let up = layer_of(&mut stream, &values(48 * 12, 2), &[0.5; 48], Dtype::F16);
        let down = layer_of(&mut stream, &values(40 * 48, 3), &[0.5; 40], Dtype::F16);
        let (gelu, identity) = (Activation::Gelu, Activation::Identity);
        let wide = linear(&mut stream, &x, &up, gelu, None).unwrap();
        let expected = linear(&mut stream, &wide, &down, identity, None).unwrap();
        let x = Activations::Wide(&x);
        let stored = linear_for(&mut stream, x, &up, gelu, None, Some(&down)).unwrap();
        let parts = if stored.is_halves() { 2 } else { 4 };
        assert_eq!([wide.parts().len(), stored.raw().parts().len()], [4, parts]);
        let y = linear_for(&mut stream, (&stored).into(), &down, identity, None, None).unwrap();
        assert_eq!(read(&mut stream, y.raw()), read(&mut stream, &expected));
    }

    #[test]
    fn only_layers_that_multiply_so_have_something_kept() {
        let Some(mut stream) = halves_stream() else {
            return;
        };
        let (_, x) = random(&mut stream, &[5, 8], 1);
        let mut made = |outputs: usize, inputs: usize, dtype| {
            let (weight, bias) = (values(outputs * inputs, 2), vec![0.5; outputs]);
            layer_of(&mut stream, &weight, &bias, dtype)
        };
        let (half, whole) = (made(4, 12, Dtype::F16), made(4, 12, Dtype::F32));
        let (up, wide_up) = (made(12, 8, Dtype::F16), made(12, 8, Dtype::F32));
        let (odd_up, odd) = (made(13, 8, Dtype::F16), made(4, 13, Dtype::F16));
        let identity = Activation::Identity;
        let mut keep = |layer: &GpuLinear, reader: &GpuLinear| {
            let x = Activations::Wide(&x);
            linear_for(&mut stream, x, layer, identity, None, Some(reader)).unwrap()
        };
        let stored = keep(&up, &half);
        assert!(stored.is_halves());
        assert!(!keep(&up, &whole).is_halves());
        assert!(!keep(&wide_up, &half).is_halves());
        // The rows aren't whole vectors.
        assert!(!keep(&odd_up, &odd).is_halves());
        let refused = linear_for(&mut stream, (&stored).into(), &whole, identity, None, None);
        assert_eq!(code(refused), "INVALID_ARGUMENT");
    }

    #[test]
    fn large_products_take_large_tiles() {
        let staged = |rows, outputs| STAGED[Tile::choose(&STAGED, rows, outputs)].id();
        assert_eq!(staged(16 * 197, 3072), "128x128/8x8");
        assert_eq!(staged(2 * 197, 3072), "64x64/4x4");
        assert_eq!(staged(197, 2304), "64x64/4x4");
        assert_eq!(staged(197, 384), "32x32/4x4");
        assert_eq!(staged(1, 1000), "32x32/4x4");
        assert_eq!(Tile::choose(&PACKED, 197, 2304), 0);
        assert_eq!(Tile::choose(&PACKED, 197, 384), 1);
        let Some(stream) = full_stream() else { return };
        let arithmetic = |dtype| Arithmetic::choose(stream.context(), dtype);
        assert_eq!(arithmetic(Dtype::F32), Arithmetic::Wide);
        assert_eq!(arithmetic(Dtype::I8), Arithmetic::Packed);
        let has_halves = stream.context().has(wgpu::Features::SHADER_F16);
        assert_eq!(arithmetic(Dtype::F16) == Arithmetic::Half, has_halves);
    }

    #[test]
    fn gpus_with_few_registers_compute_few_results_per_invocation() {
        let Some(context) = context_with(RequestedLimits::Adapter) else {
            return;
        };
        let stream = stream_on(context.as_a_gpu().with_few_registers());
        for (_, by) in Strategy::in_use(stream.context()) {
            assert!(by.tile.each() <= 4, "{by}");
        }
        let shape = LayerShape {
            rows: 16 * 197,
            inputs: 768,
            outputs: 3072,
            dtype: Dtype::F32,
        };
        assert_eq!(linear_tiles(&stream, shape), ["64x64/4x4", "32x32/4x4"]);
    }

    #[test]
    fn a_refused_tile_is_replaced_by_the_next() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        let shape = LayerShape {
            rows: 40,
            inputs: 8,
            outputs: 70,
            dtype: Dtype::F32,
        };
        let (_, x) = random(&mut stream, &[shape.rows, shape.inputs], 1);
        let weights = layer(&mut stream, &values(8 * 70, 2), &values(70, 3));
        let y = |stream: &mut Stream| {
            let y = linear(stream, &x, &weights, Activation::Gelu, None).unwrap();
            read(stream, &y)
        };
        let expected = y(&mut stream);
        let ids = linear_tiles(&stream, shape);
        assert_eq!(ids[0], "32x32/4x4");
        for label in stream.pipeline_labels() {
            stream.context().refuse(&label);
        }
        // The smallest was refused, so it is the next larger one.
        let before = stream.pipeline_labels().len();
        assert_eq!(y(&mut stream), expected);
        assert_eq!(stream.pipeline_labels().len(), before + 1);
    }

    #[test]
    fn every_activation_matches_its_definition() {
        let Some(mut stream) = stream() else { return };
        let x: Vec<f32> = (-600..=600).map(|step| step as f32 * 0.01).collect();
        let x_gpu = stream.upload(&x, &[x.len(), 1]).unwrap();
        let one = layer(&mut stream, &[1.0], &[0.0]);
        for &activation in Activation::ALL {
            let y = linear_with(&mut stream, WIDE, &x_gpu, &one, activation, None).unwrap();
            let expected: Vec<f64> = x
                .iter()
                .map(|&x| activation.definition(f64::from(x)))
                .collect();
            assert_close(&read(&mut stream, &y), &expected, 1e-6);
        }
    }

    #[test]
    fn huge_inputs_of_activations_give_the_limits() {
        let Some(mut stream) = stream() else { return };
        let values = [-1e20, 1e20, -100.0, 100.0];
        let x = stream.upload(&values, &[4, 1]).unwrap();
        let one = layer(&mut stream, &[1.0], &[0.0]);
        for &activation in Activation::ALL {
            if activation == Activation::Relu2 {
                // Its square overflows float32.
                continue;
            }
            let y = linear_with(&mut stream, WIDE, &x, &one, activation, None).unwrap();
            let expected = values.map(|x| activation.definition(f64::from(x)));
            assert_close(&read(&mut stream, &y), &expected, 1e-6);
        }
    }

    #[test]
    fn leading_dimensions_stay_and_a_layer_may_have_no_bias() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[1.0; 24], &[2, 3, 4]).unwrap();
        let mut weights = GpuLinear::new(&mut stream, 1, 4, Dtype::F32, false).unwrap();
        let row = Dtype::F32.encode(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        weights.set_rows(&mut stream, 0, Dtype::F32, &row).unwrap();
        let y = linear(&mut stream, &x, &weights, Activation::Identity, None).unwrap();
        assert_eq!(y.dims(), [2, 3, 1]);
        assert_eq!(read(&mut stream, &y), [10.0; 6]);
    }

    #[test]
    fn shapes_that_do_not_fit_and_missing_rows_are_errors() {
        let Some(mut stream) = stream() else { return };
        let (_, x) = random(&mut stream, &[3, 4], 1);
        let whole = layer(&mut stream, &[1.0; 20], &[0.0; 5]);
        let narrow = layer(&mut stream, &[1.0; 15], &[0.0; 5]);
        let empty = GpuLinear::new(&mut stream, 5, 4, Dtype::F32, true).unwrap();
        let mut run =
            |weights, residual| code(linear(&mut stream, &x, weights, Activation::Gelu, residual));
        assert_eq!(run(&narrow, None), "INVALID_ARGUMENT");
        assert_eq!(run(&empty, None), "INVALID_ARGUMENT");
        assert_eq!(run(&whole, Some(&x)), "INVALID_ARGUMENT");
    }
}
