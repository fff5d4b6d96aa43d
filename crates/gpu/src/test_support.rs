//! Code shared by the kernels' tests. Without a GPU adapter they report that they are skipped; with
//! VIT_MSN_REQUIRE_GPU=1 they fail.

use std::future::Future;
use std::rc::Rc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
pub use vit_msn_tensor::testing::{assert_close, values};
use vit_msn_tensor::{Dtype, Result};

use crate::{Context, ContextOptions, GpuLinear, GpuTensor, RequestedLimits, Stream};

/// A separate device for this test; software adapters are allowed.
pub fn context() -> Option<Context> {
    context_with(RequestedLimits::WebGpu)
}

pub fn context_with(limits: RequestedLimits) -> Option<Context> {
    let options = ContextOptions {
        allow_software: true,
        limits,
    };
    match pollster::block_on(Context::new(options)) {
        Ok(context) => Some(context),
        Err(error) if std::env::var_os("VIT_MSN_REQUIRE_GPU").is_some_and(|v| v == "1") => {
            panic!("{error}")
        }
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// A device that refuses bindings of more than `most` bytes.
pub fn context_binding(most: u64) -> Option<Context> {
    let mut context = context()?;
    context.lower_binding_size(most);
    Some(context)
}

pub fn stream() -> Option<Stream> {
    Some(stream_on(context()?))
}

/// A stream on a device with everything the adapter supports, with the GPU kernels.
pub fn full_stream() -> Option<Stream> {
    let context = context_with(RequestedLimits::Adapter)?;
    Some(stream_on(context.as_a_gpu()))
}

pub fn stream_on(context: Context) -> Stream {
    Stream::new(Rc::new(context)).unwrap()
}

pub fn read(stream: &mut Stream, tensor: &GpuTensor) -> Vec<f32> {
    wait(stream.read(tensor))
}

/// The result of a readback that must succeed.
pub fn wait<T>(pending: Result<impl Future<Output = Result<T>>>) -> T {
    pollster::block_on(pending.unwrap()).unwrap()
}

/// A complete layer of float32 weights `[bias.len(), …]`.
pub fn layer(stream: &mut Stream, weight: &[f32], bias: &[f32]) -> GpuLinear {
    layer_of(stream, weight, bias, Dtype::F32)
}

/// A complete layer in any storage type.
pub fn layer_of(stream: &mut Stream, weight: &[f32], bias: &[f32], dtype: Dtype) -> GpuLinear {
    let (outputs, inputs) = (bias.len(), weight.len() / bias.len());
    let mut layer = GpuLinear::new(stream, outputs, inputs, dtype, true).unwrap();
    let bytes = |values: &[f32]| Dtype::F32.encode(values).unwrap();
    layer
        .set_rows(stream, 0, Dtype::F32, &bytes(weight))
        .unwrap();
    layer.set_bias(stream, 0, Dtype::F32, &bytes(bias)).unwrap();
    layer
}

/// Runs `test` on a few shapes, since software adapters are slow: on a device with WebGPU's default limits and no
/// features, and on one with everything the adapter supports and the GPU kernels.
pub fn on_shapes<S: Strategy>(shapes: S, test: impl Fn(&mut Stream, S::Value)) {
    for stream in [stream(), full_stream()].into_iter().flatten() {
        let stream = std::cell::RefCell::new(stream);
        let config = Config {
            failure_persistence: None,
            ..Config::with_cases(12)
        };
        TestRunner::new(config)
            .run(&shapes, |shape| {
                test(&mut stream.borrow_mut(), shape);
                Ok(())
            })
            .unwrap();
    }
}

/// [`values`] of this shape, on the host and on the device.
pub fn random(stream: &mut Stream, dims: &[usize], seed: u64) -> (Vec<f32>, GpuTensor) {
    let data = values(dims.iter().product(), seed);
    let tensor = stream.upload(&data, dims).unwrap();
    (data, tensor)
}

/// The error code of an op that must fail.
pub fn code<T>(result: Result<T>) -> &'static str {
    result.err().expect("an error").code()
}
