//! Linear layers: a tiled GEMM with bias, activation and residual in its epilogue.

use bytemuck::NoUninit;
use vit_msn_tensor::{Activation, Dtype, Error, Result, format_dims};

use super::ENOUGH_WORKGROUPS;
use crate::buffers::GpuTensor;
use crate::context::Context;
use crate::pipelines::{Constants, Kernel};
use crate::profile::Cost;
use crate::stream::{Op, Stream};
use crate::weights::GpuLinear;

const NAME: &str = "linear";

macro_rules! module {
    ($x:literal, $weight:literal, $product:literal) => {
        &[
            include_str!($x),
            include_str!($weight),
            include_str!("activation.wgsl"),
            include_str!("linear.wgsl"),
            include_str!($product),
        ]
    };
}

/// The modules for how x is loaded and how weights are stored, staged and direct.
macro_rules! modules {
    ($x:literal, $weight:literal) => {
        [
            module!($x, $weight, "linear_staged.wgsl"),
            module!($x, $weight, "linear_direct.wgsl"),
        ]
    };
}

/// The text of a module in parts.
fn sources(dtype: Dtype, vectors: bool, direct: bool) -> &'static [&'static str] {
    let both: [&'static [&'static str]; 2] = match (dtype, vectors) {
        (Dtype::F32, true) => modules!("x_vec4.wgsl", "weight_f32.wgsl"),
        (Dtype::F32, false) => modules!("x_scalar.wgsl", "weight_f32.wgsl"),
        (Dtype::F16, true) => modules!("x_vec4.wgsl", "weight_f16.wgsl"),
        (Dtype::F16, false) => modules!("x_scalar.wgsl", "weight_f16.wgsl"),
        (Dtype::BF16, true) => modules!("x_vec4.wgsl", "weight_bf16.wgsl"),
        (Dtype::BF16, false) => modules!("x_scalar.wgsl", "weight_bf16.wgsl"),
        (Dtype::I8, true) => modules!("x_vec4.wgsl", "weight_i8.wgsl"),
        (Dtype::I8, false) => modules!("x_scalar.wgsl", "weight_i8.wgsl"),
    };
    both[usize::from(direct)]
}

const CONSTANTS: Constants = &["ACTIVATION", "RESIDUAL", "THREADS", "EACH"];

/// How the results are cut into workgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tile {
    /// From storage, 32×32 results a workgroup of 16.
    Direct,
    /// Through workgroup memory: THREADS² invocations of EACH² results.
    Staged { threads: usize, each: usize },
}

/// From the largest down. One reads less memory (x and weight once for each tile's side), the next makes four times as
/// many workgroups.
///
/// | results | invocations | workgroup memory | FLOP for each byte read | registers of sums and weights |
/// |---|---:|---:|---:|---:|
/// | 128×128 | 256 | 8,256 | 32 | 96 |
/// | 64×64 | 64 | 8,320 | 16 | 96 |
/// | 32×32 | 64 | 4,224 | 8 | 32 |
const STAGED: [Tile; 3] = [
    Tile::Staged {
        threads: 16,
        each: 8,
    },
    Tile::Staged {
        threads: 8,
        each: 8,
    },
    Tile::Staged {
        threads: 8,
        each: 4,
    },
];

impl Tile {
    /// The largest that leaves no large GPU idle.
    fn choose(context: &Context, rows: usize, outputs: usize) -> Self {
        if context.is_software() {
            return Tile::Direct;
        }
        Self::choose_staged(rows, outputs)
    }

    fn choose_staged(rows: usize, outputs: usize) -> Self {
        let busy = |tile: &&Tile| {
            rows.div_ceil(tile.side()) * outputs.div_ceil(tile.side()) >= ENOUGH_WORKGROUPS
        };
        STAGED.iter().find(busy).copied().unwrap_or(STAGED[2])
    }

    /// Rows and columns of a workgroup's results.
    fn side(self) -> usize {
        match self {
            Tile::Direct => 32,
            Tile::Staged { threads, each } => threads * each,
        }
    }

    fn kernel(self, dtype: Dtype, inputs: usize) -> Kernel {
        Kernel {
            name: NAME,
            sources: sources(dtype, inputs.is_multiple_of(4), self == Tile::Direct),
            entry_point: "main",
        }
    }

    /// The values of the constants, of which the last two are the staged tile's.
    fn constants(self, activation: Activation, with_residual: bool) -> Vec<u32> {
        let mut values = vec![code_of(activation), u32::from(with_residual)];
        if let Tile::Staged { threads, each } = self {
            values.extend([threads as u32, each as u32]);
        }
        values
    }
}

/// The kernel's ACTIVATION.
pub(super) fn code_of(activation: Activation) -> u32 {
    match activation {
        Activation::Identity => 0,
        Activation::Gelu => 1,
        Activation::Relu => 2,
        Activation::Silu => 3,
        Activation::GeluTanh => 4,
        Activation::QuickGelu => 5,
    }
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
/// Errors: INVALID_ARGUMENT when shapes don't fit or the weight misses rows, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn linear(
    stream: &mut Stream,
    x: &GpuTensor,
    weights: &GpuLinear,
    activation: Activation,
    residual: Option<&GpuTensor>,
) -> Result<GpuTensor> {
    let tile = Tile::choose(stream.context(), x.rows().0, weights.out_features());
    linear_with(stream, tile, x, weights, activation, residual)
}

fn linear_with(
    stream: &mut Stream,
    tile: Tile,
    x: &GpuTensor,
    weights: &GpuLinear,
    activation: Activation,
    residual: Option<&GpuTensor>,
) -> Result<GpuTensor> {
    weights.check_complete()?;
    let (rows, inputs) = x.rows();
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
    let y = stream.uninit(&dims)?;
    let constants = tile.constants(activation, residual.is_some());
    let side = tile.side();
    for part in weights.parts() {
        stream.record(Op {
            kernel: tile.kernel(weights.dtype(), inputs),
            constants: (CONSTANTS, &constants),
            uniforms: Params {
                rows: rows as u32,
                inputs: inputs as u32,
                outputs: outputs as u32,
                first: part.start as u32,
                part: part.rows as u32,
            },
            reads: &[
                x.binding(),
                part.buffer.binding(),
                weights.scales().unwrap_or(weights.bias()).binding(),
                weights.bias().binding(),
                residual.unwrap_or(x).binding(),
            ],
            writes: &[y.binding()],
            workgroups: [part.rows.div_ceil(side), rows.div_ceil(side), 1],
            cost: cost_of(
                [rows, inputs, part.rows],
                side,
                weights.dtype(),
                residual.is_some(),
            ),
        })?;
    }
    Ok(y)
}

/// Each workgroup reads its rows of x and of the weight once.
fn cost_of(
    [rows, inputs, outputs]: [usize; 3],
    side: usize,
    dtype: Dtype,
    with_residual: bool,
) -> Cost {
    let times = |a: usize, b: usize| a as u64 * b as u64;
    let x = 4 * times(rows, inputs) * outputs.div_ceil(side) as u64;
    let weight = times(dtype.size() * outputs, inputs) * rows.div_ceil(side) as u64;
    let written = 4 * times(rows, outputs) * (1 + u64::from(with_residual));
    Cost {
        flop: 2 * times(rows, inputs) * outputs as u64,
        bytes: x + weight + written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        assert_close, code, context, layer, layer_of, on_shapes, random, read, stream, values,
    };
    use vit_msn_tensor::quantise_row;
    use vit_msn_tensor::testing::activation as activation_of;

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
            .map(|(product, bias)| activation_of(activation, product + bias))
            .collect()
    }

    fn check(
        stream: &mut Stream,
        [rows, inputs, outputs]: [usize; 3],
        activation: Activation,
        with_residual: bool,
        (dtype, tile): (Dtype, Tile),
    ) {
        let (x, x_gpu) = random(stream, &[rows, inputs], 1);
        let (residual, residual_gpu) = random(stream, &[rows, outputs], 4);
        let (weight, bias) = (values(outputs * inputs, 2), values(outputs, 3));
        let weights = layer_of(stream, &weight, &bias, dtype);
        let added = with_residual.then_some(&residual_gpu);
        let y = linear_with(stream, tile, &x_gpu, &weights, activation, added).unwrap();
        // The definition for what the storage type holds.
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
        assert_close(&read(stream, &y), &expected, 1e-5);
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

    const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8];

    #[test]
    fn odd_shapes_match_the_definition() {
        let shapes = [1usize..90, 1usize..80, 1usize..90];
        // Pipelines take longer to compile than to run here: each case takes one of few.
        on_shapes((shapes, 0usize..4), |stream, (shape, dtype)| {
            let tile = [Tile::Direct, STAGED[dtype % 3]][shape[0] % 2];
            let activation = Activation::ALL[dtype % 2];
            check(stream, shape, activation, dtype < 2, (DTYPES[dtype], tile));
        });
    }

    #[test]
    fn every_tile_has_its_edges_right() {
        let Some(mut stream) = stream() else { return };
        for tile in [Tile::Direct].into_iter().chain(STAGED) {
            for inputs in [19, 40] {
                let shape = [tile.side() + 3, inputs, 2 * tile.side() - 5];
                let kind = (Dtype::F32, tile);
                check(&mut stream, shape, Activation::Identity, true, kind);
            }
        }
    }

    #[test]
    fn large_products_take_large_tiles() {
        assert_eq!(Tile::choose_staged(8 * 197, 3072), STAGED[0]);
        assert_eq!(Tile::choose_staged(197, 2304), STAGED[1]);
        assert_eq!(Tile::choose_staged(1, 1000), STAGED[2]);
        let Some(context) = context() else { return };
        let direct = Tile::choose(&context, 197, 768) == Tile::Direct;
        assert_eq!(direct, context.is_software());
    }

    #[test]
    fn every_activation_matches_its_definition() {
        let Some(mut stream) = stream() else { return };
        let x: Vec<f32> = (-600..=600).map(|step| step as f32 * 0.01).collect();
        let x_gpu = stream.upload(&x, &[x.len(), 1]).unwrap();
        let one = layer(&mut stream, &[1.0], &[0.0]);
        for activation in Activation::ALL {
            let y = linear_with(&mut stream, STAGED[2], &x_gpu, &one, activation, None).unwrap();
            let expected: Vec<f64> = x
                .iter()
                .map(|&x| activation_of(activation, f64::from(x)))
                .collect();
            assert_close(&read(&mut stream, &y), &expected, 1e-6);
        }
    }

    #[test]
    fn huge_inputs_of_activations_give_the_limits() {
        let Some(mut stream) = stream() else { return };
        let x = stream
            .upload(&[-1e20, 1e20, -100.0, 100.0], &[4, 1])
            .unwrap();
        let one = layer(&mut stream, &[1.0], &[0.0]);
        for activation in &Activation::ALL[1..] {
            let y = linear_with(&mut stream, STAGED[2], &x, &one, *activation, None).unwrap();
            assert_close(&read(&mut stream, &y), &[0.0, 1e20, 0.0, 100.0], 1e-6);
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
