//! Layer normalisation over the last dimension.

use bytemuck::NoUninit;
use vit_msn_tensor::Result;

use super::linear::reads_halves;
use super::{REDUCE_CONSTANTS, fold_rows, lanes, reducing};
use crate::buffers::{GpuTensor, Stored};
use crate::pipelines::Kernel;
use crate::profile::Cost;
use crate::stream::{Op, Stream};
use crate::weights::GpuLinear;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    rows: u32,
    width: u32,
    eps: f32,
}

/// Normalises x over its last dimension, then scales it by weight `[width]` and shifts it by bias `[width]`.
///
/// # Errors
/// INVALID_ARGUMENT if shapes don't match, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn layer_norm(
    stream: &mut Stream,
    x: &GpuTensor,
    weight: &GpuTensor,
    bias: &GpuTensor,
    eps: f32,
) -> Result<GpuTensor> {
    let y = stream.uninit(x.dims())?;
    normalise(stream, x, weight, bias, eps, (&y, false))?;
    Ok(y)
}

/// [`layer_norm`], with the result in the format that suits its only reader.
///
/// # Errors
/// As [`layer_norm`].
pub fn layer_norm_for(
    stream: &mut Stream,
    x: &GpuTensor,
    weight: &GpuTensor,
    bias: &GpuTensor,
    eps: f32,
    reader: Option<&GpuLinear>,
) -> Result<Stored> {
    let halves = reader.is_some_and(|layer| reads_halves(stream, layer));
    if !halves {
        return layer_norm(stream, x, weight, bias, eps).map(Stored::Wide);
    }
    let y = stream.uninit_for(x.dims(), true)?;
    normalise(stream, x, weight, bias, eps, (y.raw(), true))?;
    Ok(y)
}

fn normalise(
    stream: &mut Stream,
    x: &GpuTensor,
    weight: &GpuTensor,
    bias: &GpuTensor,
    eps: f32,
    (y, halves): (&GpuTensor, bool),
) -> Result<()> {
    let (rows, width) = x.rows();
    weight.expect("The weight of a layer norm", &[width])?;
    bias.expect("The bias of a layer norm", &[width])?;
    let lanes = lanes(stream.context());
    stream.record(Op {
        kernel: Kernel {
            name: "layer_norm",
            sources: if halves {
                reducing!(
                    stream.context(),
                    "parts/enable_f16.wgsl",
                    "parts/stored_f16.wgsl",
                    "layer_norm.wgsl"
                )
            } else {
                reducing!(stream.context(), "parts/stored_f32.wgsl", "layer_norm.wgsl")
            },
            entry_point: "main",
        },
        constants: (REDUCE_CONSTANTS, &lanes),
        uniforms: Params {
            rows: rows as u32,
            width: width as u32,
            eps,
        },
        reads: &[x.binding(), weight.binding(), bias.binding()],
        writes: &[y.binding()],
        workgroups: fold_rows(rows),
        cost: Cost {
            bytes: (4 * 5 * x.len() + y.byte_size()) as u64,
            flop: 8 * x.len() as u64,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        assert_close, code, full_stream, layer_of, on_shapes, random, read, stream, values,
    };
    use crate::{linear, linear_for};
    use vit_msn_tensor::{Activation, Dtype};

    fn naive(x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Vec<f64> {
        let width = weight.len() as f64;
        x.chunks(weight.len())
            .flat_map(|row| {
                let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / width;
                let square = |&v: &f32| (f64::from(v) - mean).powi(2);
                let scale = 1.0 / (row.iter().map(square).sum::<f64>() / width + eps).sqrt();
                row.iter().zip(weight).zip(bias).map(move |((&v, &w), &b)| {
                    (f64::from(v) - mean) * scale * f64::from(w) + f64::from(b)
                })
            })
            .collect()
    }

    #[test]
    fn odd_shapes_match_the_definition() {
        on_shapes([1usize..40, 1usize..400], |stream, [rows, width]| {
            // Far from zero, where computing the variance as E[x²] − E[x]² would lose digits.
            let x: Vec<f32> = values(rows * width, 1).iter().map(|v| v + 10.0).collect();
            let x_gpu = stream.upload(&x, &[rows, width]).unwrap();
            let (weight, weight_gpu) = random(stream, &[width], 2);
            let (bias, bias_gpu) = random(stream, &[width], 3);
            let y = layer_norm(stream, &x_gpu, &weight_gpu, &bias_gpu, 1e-3).unwrap();
            assert_close(&read(stream, &y), &naive(&x, &weight, &bias, 1e-3), 1e-4);
        });
    }

    #[test]
    fn more_rows_than_one_dimension_of_workgroups() {
        let Some(mut stream) = stream() else { return };
        let (x, x_gpu) = random(&mut stream, &[2, 35_000, 3], 1);
        let (weight, weight_gpu) = random(&mut stream, &[3], 2);
        let (bias, bias_gpu) = random(&mut stream, &[3], 3);
        let y = layer_norm(&mut stream, &x_gpu, &weight_gpu, &bias_gpu, 1e-3).unwrap();
        assert_eq!(y.dims(), [2, 35_000, 3]);
        assert_close(
            &read(&mut stream, &y),
            &naive(&x, &weight, &bias, 1e-3),
            1e-4,
        );
    }

    #[test]
    fn what_is_kept_for_a_layer_gives_it_the_same_bits() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        let (_, x) = random(&mut stream, &[2, 9, 40], 1);
        let (_, weight) = random(&mut stream, &[40], 2);
        let (_, bias) = random(&mut stream, &[40], 3);
        for dtype in [Dtype::F16, Dtype::F32] {
            let reader = layer_of(&mut stream, &values(7 * 40, 4), &[0.5; 7], dtype);
            let wide = layer_norm(&mut stream, &x, &weight, &bias, 1e-6).unwrap();
            let expected = linear(&mut stream, &wide, &reader, Activation::Identity, None);
            let stored =
                layer_norm_for(&mut stream, &x, &weight, &bias, 1e-6, Some(&reader)).unwrap();
            assert_eq!(stored.is_halves(), reads_halves(&stream, &reader));
            let identity = Activation::Identity;
            let y = linear_for(&mut stream, (&stored).into(), &reader, identity, None, None);
            let (y, expected) = (y.unwrap(), expected.unwrap());
            assert_eq!(read(&mut stream, y.raw()), read(&mut stream, &expected));
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let Some(mut stream) = stream() else { return };
        let mut tensor = |dims: &[usize]| random(&mut stream, dims, 1).1;
        let (x, right, wrong) = (tensor(&[2, 5]), tensor(&[5]), tensor(&[4]));
        let mut run = |weight, bias| code(layer_norm(&mut stream, &x, weight, bias, 1e-6));
        assert_eq!(run(&wrong, &right), "INVALID_ARGUMENT");
        assert_eq!(run(&right, &wrong), "INVALID_ARGUMENT");
    }
}
