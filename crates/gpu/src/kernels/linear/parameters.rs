//! Converts the parameters of linear layers to plain tensors, which optimisers update, and back into the GEMM's
//! layout.

use bytemuck::NoUninit;
use vit_msn_tensor::{Dtype, Error, Result};

use crate::buffers::{Binding, GpuTensor};
use crate::kernels::linear::backward::not_floating;
use crate::kernels::{LINE, cost, fold_rows};
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};
use crate::weights::GpuLinear;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    first: u32,
    rows: u32,
    inputs: u32,
}

/// Sets all parameters of a floating-point layer from plain tensors, weight `[out_features, in_features]` and bias
/// `[out_features]`. The device rounds them to the storage type; values beyond its range become infinite.
///
/// # Errors
/// INVALID_ARGUMENT if shapes don't match or the layer has no bias, UNSUPPORTED for int8, ENGINE_DEAD.
pub fn set_linear(
    stream: &mut Stream,
    layer: &mut GpuLinear,
    weight: &GpuTensor,
    bias: Option<&GpuTensor>,
) -> Result<()> {
    let format = format_of(layer)?;
    let (outputs, inputs) = (layer.out_features(), layer.in_features());
    weight.expect("The weight", &[outputs, inputs])?;
    if let Some(bias) = bias {
        bias.expect("The bias", &[outputs])?;
        if !layer.has_bias() {
            return Err(no_bias());
        }
    }
    for part in layer.parts() {
        let params = Params {
            first: part.start as u32,
            rows: part.rows as u32,
            inputs: inputs as u32,
        };
        let (source, target) = (weight.binding(), part.buffer.binding());
        record(stream, "pack", format, params, source, target)?;
    }
    if let Some(bias) = bias {
        let (source, target) = (bias.binding(), layer.bias().binding());
        let params = row_of(outputs);
        record(stream, "round_bias", format, params, source, target)?;
    }
    layer.mark_set(bias.is_some());
    Ok(())
}

/// The whole weight of a floating-point layer as a plain tensor `[out_features, in_features]`.
///
/// # Errors
/// UNSUPPORTED for int8, INVALID_ARGUMENT if rows were never set, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn linear_weight(stream: &mut Stream, layer: &GpuLinear) -> Result<GpuTensor> {
    let format = format_of(layer)?;
    layer.check_complete()?;
    let y = stream.uninit(&[layer.out_features(), layer.in_features()])?;
    for part in layer.parts() {
        let params = Params {
            first: part.start as u32,
            rows: part.rows as u32,
            inputs: layer.in_features() as u32,
        };
        let source = part.buffer.binding();
        record(stream, "unpack", format, params, source, y.binding())?;
    }
    Ok(y)
}

/// The bias of a layer as a plain tensor `[out_features]`.
///
/// # Errors
/// INVALID_ARGUMENT if there is none or elements were never set, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn linear_bias(stream: &mut Stream, layer: &GpuLinear) -> Result<GpuTensor> {
    if !layer.has_bias() {
        return Err(no_bias());
    }
    layer.check_complete()?;
    let y = stream.uninit(&[layer.out_features()])?;
    let params = row_of(layer.out_features());
    let source = layer.bias().binding();
    // The bias is stored as float32.
    record(stream, "round_bias", 0, params, source, y.binding())?;
    Ok(y)
}

fn no_bias() -> Error {
    Error::InvalidArgument("This linear layer has no bias.".to_string())
}

/// The kernel's FORMAT.
fn format_of(layer: &GpuLinear) -> Result<u32> {
    match layer.dtype() {
        Dtype::F32 => Ok(0),
        Dtype::F16 => Ok(1),
        Dtype::BF16 => Ok(2),
        Dtype::I8 => Err(not_floating()),
    }
}

fn row_of(inputs: usize) -> Params {
    Params {
        first: 0,
        rows: 1,
        inputs: inputs as u32,
    }
}

fn record(
    stream: &mut Stream,
    entry_point: &'static str,
    format: u32,
    params: Params,
    source: Binding,
    target: Binding,
) -> Result<()> {
    let (rows, inputs) = (params.rows as usize, params.inputs as usize);
    let invocations = match entry_point {
        "round_bias" => inputs,
        _ => rows * inputs.div_ceil(4),
    };
    stream.record(Op {
        kernel: Kernel {
            name: "parameters",
            sources: &[include_str!("parameters.wgsl")],
            entry_point,
        },
        constants: (&["FORMAT"], &[format]),
        uniforms: params,
        reads: &[source],
        writes: &[target],
        workgroups: fold_rows(invocations.div_ceil(LINE)),
        cost: cost(2 * (rows * inputs) as u64, 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{code, layer_of, on_shapes, read, stream, values};

    /// The values rounded to the storage type.
    fn through(dtype: Dtype, values: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; values.len()];
        dtype
            .decode(&dtype.encode(values).unwrap(), &mut out)
            .unwrap();
        out
    }

    #[test]
    fn a_layer_that_is_set_gives_back_what_it_was_set_to() {
        on_shapes(
            ([1usize..70, 1usize..90], 0usize..3),
            |stream, ([outputs, inputs], dtype)| {
                let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][dtype];
                let mut layer = GpuLinear::new(stream, outputs, inputs, dtype, true).unwrap();
                // All magnitudes, including subnormal float16 values.
                let weight: Vec<f32> = values(outputs * inputs, 1)
                    .iter()
                    .enumerate()
                    .map(|(i, v)| v * 2f32.powi((i % 40) as i32 - 28))
                    .collect();
                let bias = values(outputs, 2);
                let weight_gpu = stream.upload(&weight, &[outputs, inputs]).unwrap();
                let bias_gpu = stream.upload(&bias, &[outputs]).unwrap();
                set_linear(stream, &mut layer, &weight_gpu, Some(&bias_gpu)).unwrap();
                let (by_weight, by_bias) = (
                    linear_weight(stream, &layer).unwrap(),
                    linear_bias(stream, &layer).unwrap(),
                );
                assert_eq!(by_weight.dims(), [outputs, inputs]);
                assert_eq!(read(stream, &by_weight), through(dtype, &weight));
                assert_eq!(read(stream, &by_bias), through(dtype, &bias));
                // Loading the same values from a checkpoint gives the same layer.
                let loaded = layer_of(stream, &weight, &bias, dtype);
                let again = linear_weight(stream, &loaded).unwrap();
                assert_eq!(read(stream, &again), through(dtype, &weight));
            },
        );
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let Some(mut stream) = stream() else { return };
        let stream = &mut stream;
        let mut layer = GpuLinear::new(stream, 5, 3, Dtype::F32, false).unwrap();
        let quantised = GpuLinear::new(stream, 5, 3, Dtype::I8, false).unwrap();
        let weight = stream.upload(&[1.0; 15], &[5, 3]).unwrap();
        let bias = stream.upload(&[1.0; 5], &[5]).unwrap();
        assert_eq!(code(linear_weight(stream, &layer)), "INVALID_ARGUMENT");
        assert_eq!(code(linear_bias(stream, &layer)), "INVALID_ARGUMENT");
        assert_eq!(code(linear_weight(stream, &quantised)), "UNSUPPORTED");
        let result = set_linear(stream, &mut layer, &bias, None);
        assert_eq!(code(result), "INVALID_ARGUMENT");
        let result = set_linear(stream, &mut layer, &weight, Some(&bias));
        assert_eq!(code(result), "INVALID_ARGUMENT");
        set_linear(stream, &mut layer, &weight, None).unwrap();
        assert!(linear_weight(stream, &layer).is_ok());
    }
}
