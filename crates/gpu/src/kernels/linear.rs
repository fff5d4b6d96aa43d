//! Linear layers: a tiled GEMM with bias, activation and residual in its epilogue.

use bytemuck::NoUninit;
use vit_msn_tensor::{Activation, Error, Result, format_dims};

use super::ENOUGH_WORKGROUPS;
use crate::buffers::GpuTensor;
use crate::pipelines::{Constants, Kernel};
use crate::stream::{Op, Stream};

const VEC4: Kernel = Kernel {
    name: "linear",
    source: include_str!("linear.wgsl"),
    entry_point: "main_vec4",
};
const SCALAR: Kernel = Kernel {
    entry_point: "main_scalar",
    ..VEC4
};
const CONSTANTS: Constants = &["THREADS", "ACTIVATION", "RESIDUAL"];

/// The kernel's ACTIVATION.
fn code_of(activation: Activation) -> u32 {
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
}

/// activation(x · weightᵀ + bias) + residual: x `[..., inputs]`, weight `[outputs, inputs]` (a convolution's further
/// dimensions count as one), bias `[outputs]`, residual and result `[..., outputs]`.
/// Errors: INVALID_ARGUMENT when shapes don't fit, UNSUPPORTED, OUT_OF_MEMORY, DISPOSED.
pub fn linear(
    stream: &mut Stream,
    x: &GpuTensor,
    weight: &GpuTensor,
    bias: &GpuTensor,
    activation: Activation,
    residual: Option<&GpuTensor>,
) -> Result<GpuTensor> {
    let (rows, inputs) = x.rows();
    let outputs = outputs(weight, inputs)?;
    bias.expect("The bias of a linear layer", &[outputs])?;
    let mut dims = x.dims().to_vec();
    dims.pop();
    dims.push(outputs);
    if let Some(residual) = residual {
        residual.expect("The residual of a linear layer", &dims)?;
    }
    let y = stream.uninit(&dims)?;
    let threads = threads(rows, outputs);
    stream.record(Op {
        kernel: if inputs.is_multiple_of(4) {
            VEC4
        } else {
            SCALAR
        },
        constants: (
            CONSTANTS,
            &[
                threads as u32,
                code_of(activation),
                u32::from(residual.is_some()),
            ],
        ),
        uniforms: Params {
            rows: rows as u32,
            inputs: inputs as u32,
            outputs: outputs as u32,
        },
        tensors: &[x, weight, bias, residual.unwrap_or(x), &y],
        workgroups: [outputs.div_ceil(4 * threads), rows.div_ceil(4 * threads), 1],
    })?;
    Ok(y)
}

fn outputs(weight: &GpuTensor, inputs: usize) -> Result<usize> {
    match weight.dims() {
        [outputs, rest @ ..] if !rest.is_empty() && outputs * inputs == weight.len() => {
            Ok(*outputs)
        }
        dims => Err(Error::InvalidArgument(format!(
            "A linear layer whose weight is {} can't take rows of {inputs} values.",
            format_dims(dims)
        ))),
    }
}

/// The workgroup's side: tiles of 64×64 reuse more, tiles of 32×32 make four times as many workgroups.
fn threads(rows: usize, outputs: usize) -> usize {
    let large_tiles = rows.div_ceil(64) * outputs.div_ceil(64);
    if large_tiles >= ENOUGH_WORKGROUPS {
        16
    } else {
        8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream, values};
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
    ) {
        let (x, x_gpu) = random(stream, &[rows, inputs], 1);
        let (weight, weight_gpu) = random(stream, &[outputs, inputs], 2);
        let (bias, bias_gpu) = random(stream, &[outputs], 3);
        let (residual, residual_gpu) = random(stream, &[rows, outputs], 4);
        let added = with_residual.then_some(&residual_gpu);
        let y = linear(stream, &x_gpu, &weight_gpu, &bias_gpu, activation, added).unwrap();
        let mut expected = naive(&x, &weight, &bias, activation);
        if with_residual {
            for (value, &residual) in expected.iter_mut().zip(&residual) {
                *value += f64::from(residual);
            }
        }
        assert_eq!(y.dims(), [rows, outputs]);
        assert_close(&read(stream, &y), &expected, 1e-5);
    }

    #[test]
    fn odd_shapes_match_the_definition() {
        let shapes = ([1usize..90, 1usize..80, 1usize..90], 0usize..6, 0..2);
        on_shapes(shapes, |stream, (shape, activation, residual)| {
            check(stream, shape, Activation::ALL[activation], residual == 1);
        });
    }

    #[test]
    fn large_tiles_match_the_definition() {
        let Some(mut stream) = stream() else { return };
        for inputs in [19, 32] {
            let shape = [8 * 64 - 5, inputs, 16 * 64 - 3];
            assert_eq!(threads(shape[0], shape[2]), 16);
            check(&mut stream, shape, Activation::Identity, true);
        }
    }

    #[test]
    fn every_activation_matches_its_definition() {
        let Some(mut stream) = stream() else { return };
        let x: Vec<f32> = (-600..=600).map(|step| step as f32 * 0.01).collect();
        let x_gpu = stream.upload(&x, &[x.len(), 1]).unwrap();
        let (one, zero) = (
            stream.upload(&[1.0], &[1, 1]).unwrap(),
            stream.upload(&[0.0], &[1]).unwrap(),
        );
        for activation in Activation::ALL {
            let y = linear(&mut stream, &x_gpu, &one, &zero, activation, None).unwrap();
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
        let (one, zero) = (
            stream.upload(&[1.0], &[1, 1]).unwrap(),
            stream.upload(&[0.0], &[1]).unwrap(),
        );
        for activation in &Activation::ALL[1..] {
            let y = linear(&mut stream, &x, &one, &zero, *activation, None).unwrap();
            assert_close(&read(&mut stream, &y), &[0.0, 1e20, 0.0, 100.0], 1e-6);
        }
    }

    #[test]
    fn leading_dimensions_stay() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&values(2 * 3 * 4, 1), &[2, 3, 4]).unwrap();
        let (_, weight) = random(&mut stream, &[5, 2, 2, 1], 2);
        let (_, bias) = random(&mut stream, &[5], 3);
        let y = linear(&mut stream, &x, &weight, &bias, Activation::Identity, None).unwrap();
        assert_eq!(y.dims(), [2, 3, 5]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let Some(mut stream) = stream() else { return };
        let mut tensor = |dims: &[usize]| random(&mut stream, dims, 1).1;
        let (x, weight, bias) = (tensor(&[3, 4]), tensor(&[5, 4]), tensor(&[5]));
        let (narrow, short, flat) = (tensor(&[5, 3]), tensor(&[4]), tensor(&[20]));
        let mut run = |weight, bias, residual| {
            code(linear(
                &mut stream,
                &x,
                weight,
                bias,
                Activation::Gelu,
                residual,
            ))
        };
        assert_eq!(run(&narrow, &bias, None), "INVALID_ARGUMENT");
        assert_eq!(run(&flat, &bias, None), "INVALID_ARGUMENT");
        assert_eq!(run(&weight, &short, None), "INVALID_ARGUMENT");
        assert_eq!(run(&weight, &bias, Some(&x)), "INVALID_ARGUMENT");
    }
}
