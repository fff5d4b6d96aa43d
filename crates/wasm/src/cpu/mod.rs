//! The CPU's engine, and the exports that only it has: threads, and values that are there as soon as they are asked for.

mod engine;
mod pretraining;
mod training;

use std::cell::RefCell;

pub use vit_msn_cpu::PackedLinear as LinearWeights;
pub use vit_msn_tensor::Tensor;
use vit_msn_tensor::{Dtype, Result};
use wasm_bindgen::prelude::*;

use self::engine::Engine;
use crate::error::{JsResult, to_js};

thread_local! {
    static ENGINE: RefCell<Engine> = RefCell::default();
}

/// Runs an op on this instance's engine.
pub fn with_engine<T>(op: impl FnOnce(&mut Engine) -> Result<T>) -> JsResult<T> {
    ENGINE.with_borrow_mut(op).map_err(to_js)
}

/// What SIMD this binary was built for: "simd128" or "relaxed".
#[wasm_bindgen]
pub fn simd_level() -> String {
    let is_relaxed = cfg!(target_feature = "relaxed-simd");
    if is_relaxed { "relaxed" } else { "simd128" }.to_string()
}

/// Gives the calling thread, a Worker with an instance on the same memory, to the engine, until it is dismissed.
#[wasm_bindgen]
pub fn work() {
    vit_msn_cpu::work();
}

/// Says whether each thread has a core of its own, so that it may look longer for work before it sleeps.
#[wasm_bindgen(js_name = have_cores)]
pub fn set_thread_per_core(enabled: bool) {
    vit_msn_cpu::set_thread_per_core(enabled);
}

/// Sends all Workers away, so that each can end by itself.
#[wasm_bindgen]
pub fn dismiss_workers() {
    vit_msn_cpu::dismiss();
}

/// Says that a Worker trapped, so that nobody waits for it.
#[wasm_bindgen(js_name = lose_worker)]
pub fn mark_worker_lost() {
    vit_msn_cpu::mark_worker_lost();
}

/// A parameter's values as raw little-endian values of `dtype`.
#[wasm_bindgen]
pub fn parameter_bytes(parameter: u32, dtype: &str) -> JsResult<Vec<u8>> {
    with_engine(|engine| Dtype::from_name(dtype)?.encode(engine.handles.tensor(parameter)?.data()))
}

/// The float32 scales of int8 rows.
#[wasm_bindgen]
pub fn get_scales(weights: u32, row: usize, rows: usize) -> JsResult<Vec<u8>> {
    with_engine(|engine| engine.handles.linear(weights)?.get_scales(row, rows))
}

/// Rows of a weight as raw values of its storage type.
#[wasm_bindgen]
pub fn get_rows(weights: u32, row: usize, rows: usize) -> JsResult<Vec<u8>> {
    with_engine(|engine| engine.handles.linear(weights)?.get_rows(row, rows))
}

/// Bias elements as raw values of the storage type, float32 beside int8 weights.
#[wasm_bindgen]
pub fn get_bias(weights: u32, offset: usize, count: usize) -> JsResult<Vec<u8>> {
    with_engine(|engine| engine.get_bias(weights, offset, count))
}

/// A copy of a tensor's values.
#[wasm_bindgen]
pub fn read(x: u32) -> JsResult<Vec<f32>> {
    with_engine(|engine| engine.read(x))
}
