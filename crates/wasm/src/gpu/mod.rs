//! WebGPU's engine, and the exports that only it has: a device to open and to give back, and values that come later.

mod engine;
mod pretraining;
mod training;

use std::cell::RefCell;
use std::future::Future;

use js_sys::{Float32Array, Float64Array, Promise, Uint8Array};
use vit_msn_gpu::{Context, ContextOptions, LayerShape, RequestedLimits};
pub use vit_msn_gpu::{GpuLinear as LinearWeights, GpuTensor as Tensor};
use vit_msn_tensor::{Dtype, Error, Result};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;

use self::engine::Engine;
use crate::error::{JsResult, to_js};

thread_local! {
    static ENGINE: RefCell<Option<Engine>> = const { RefCell::new(None) };
}

/// Runs an op on this instance's engine.
pub fn with_engine<T>(op: impl FnOnce(&mut Engine) -> Result<T>) -> JsResult<T> {
    ENGINE
        .with_borrow_mut(|engine| op(engine.as_mut().ok_or_else(not_open)?))
        .map_err(to_js)
}

fn not_open() -> Error {
    Error::InvalidArgument("This engine has no device: open() comes first.".to_string())
}

/// Opens the device that the facade chose and lays before this instance as its `navigator.gpu`. Whether it has subgroups,
/// the facade must say.
#[wasm_bindgen]
pub async fn open(subgroups: bool) -> JsResult<()> {
    let options = ContextOptions {
        allow_software: true,
        limits: RequestedLimits::Adapter,
    };
    let mut context = Context::new(options).await.map_err(to_js)?;
    if subgroups {
        context = context.with_subgroups();
    }
    let engine = Engine::new(context).map_err(to_js)?;
    ENGINE.set(Some(engine));
    Ok(())
}

/// Frees every buffer. The device itself stays the facade's.
#[wasm_bindgen]
pub fn close() {
    ENGINE.take();
}

/// Hands what was recorded to the device.
#[wasm_bindgen]
pub fn submit() -> JsResult<()> {
    with_engine(Engine::submit)
}

/// Resolves once the device has accepted all calls so far; rejects with what it refused.
#[wasm_bindgen(unchecked_return_type = "Promise<void>")]
pub fn settle() -> JsResult<Promise> {
    promise(Engine::settle, |()| Ok(JsValue::UNDEFINED))
}

/// The outputs and inputs of a linear layer.
#[wasm_bindgen]
pub fn linear_sizes(weights: u32) -> JsResult<Vec<u32>> {
    with_engine(|engine| engine.linear_sizes(weights))
}

/// The type that a linear layer's weight is kept in.
#[wasm_bindgen]
pub fn linear_dtype(weights: u32) -> JsResult<String> {
    with_engine(|engine| engine.linear_dtype(weights))
}

/// The sides of the tiles that can compute such a layer, first the one that is taken unless another is chosen.
#[wasm_bindgen]
pub fn linear_tiles(rows: usize, inputs: usize, outputs: usize, dtype: &str) -> JsResult<Vec<u32>> {
    with_engine(|engine| Ok(engine.linear_tiles(shape(rows, inputs, outputs, dtype)?)))
}

/// Computes such layers by the tile of this side from here on.
#[wasm_bindgen]
pub fn choose_linear_tile(
    rows: usize,
    inputs: usize,
    outputs: usize,
    dtype: &str,
    side: usize,
) -> JsResult<()> {
    with_engine(|engine| engine.choose_linear_tile(shape(rows, inputs, outputs, dtype)?, side))
}

/// Computes a layer for its time alone.
#[wasm_bindgen]
pub fn run_linear(weights: u32, rows: usize, times: usize) -> JsResult<()> {
    with_engine(|engine| engine.run_linear(weights, rows, times))
}

fn shape(rows: usize, inputs: usize, outputs: usize, dtype: &str) -> Result<LayerShape> {
    let dtype = Dtype::from_name(dtype)?;
    Ok(LayerShape {
        rows,
        inputs,
        outputs,
        dtype,
    })
}

/// Kernels recorded so far.
#[wasm_bindgen]
pub fn dispatches() -> JsResult<f64> {
    with_engine(|engine| Ok(engine.dispatches() as f64))
}

/// Times every kernel from here on.
#[wasm_bindgen]
pub fn start_profile() -> JsResult<()> {
    with_engine(Engine::start_profile)
}

/// Nanoseconds of each kernel since the start of the profile; NaN where the device has no clock.
#[wasm_bindgen(unchecked_return_type = "Promise<Float64Array>")]
pub fn finish_profile() -> JsResult<Promise> {
    promise(Engine::finish_profile, |times| {
        Ok(Float64Array::from(&*times).into())
    })
}

/// Bytes that the device has reserved for this engine's tensors.
#[wasm_bindgen]
pub fn reserved() -> JsResult<f64> {
    with_engine(|engine| Ok(engine.reserved() as f64))
}

/// A copy of a tensor's values.
#[wasm_bindgen(unchecked_return_type = "Promise<Float32Array>")]
pub fn read(x: u32) -> JsResult<Promise> {
    promise(
        |engine| engine.read(x),
        |values| Ok(Float32Array::from(&*values).into()),
    )
}

/// A parameter's values as raw little-endian values of `dtype`.
#[wasm_bindgen(unchecked_return_type = "Promise<Uint8Array>")]
pub fn parameter_bytes(parameter: u32, dtype: &str) -> JsResult<Promise> {
    let dtype = Dtype::from_name(dtype).map_err(to_js)?;
    promise(
        |engine| engine.read(parameter),
        move |values| bytes(&dtype.encode(&values)?),
    )
}

/// Rows of a weight as raw values of its storage type.
#[wasm_bindgen(unchecked_return_type = "Promise<Uint8Array>")]
pub fn get_rows(weights: u32, row: usize, rows: usize) -> JsResult<Promise> {
    promise(
        |engine| engine.get_rows(weights, row, rows),
        |rows| bytes(&rows),
    )
}

/// The float32 scales of int8 rows.
#[wasm_bindgen(unchecked_return_type = "Promise<Uint8Array>")]
pub fn get_scales(weights: u32, row: usize, rows: usize) -> JsResult<Promise> {
    promise(
        |engine| engine.get_scales(weights, row, rows),
        |scales| bytes(&scales),
    )
}

/// Bias elements as raw values of the storage type, float32 beside int8 weights.
#[wasm_bindgen(unchecked_return_type = "Promise<Uint8Array>")]
pub fn get_bias(weights: u32, offset: usize, count: usize) -> JsResult<Promise> {
    promise(
        |engine| engine.get_bias(weights, offset, count),
        |bias| bytes(&bias),
    )
}

/// Starts a copy now, so that what it copies may be freed at once, and promises its result.
fn promise<T, F>(
    start: impl FnOnce(&mut Engine) -> Result<F>,
    to_value: impl FnOnce(T) -> Result<JsValue> + 'static,
) -> JsResult<Promise>
where
    F: Future<Output = Result<T>> + 'static,
{
    let pending = with_engine(start)?;
    Ok(future_to_promise(async move {
        pending.await.and_then(to_value).map_err(to_js)
    }))
}

fn bytes(values: &[u8]) -> Result<JsValue> {
    Ok(Uint8Array::from(values).into())
}
