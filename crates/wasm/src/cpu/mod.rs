//! The CPU engine and its own exports: threads, and synchronous copies of values.

use std::cell::RefCell;
use std::time::Duration;

use vit_msn_cpu::Worker;
pub use vit_msn_cpu::{Cpu as Device, PackedLinear as LinearWeights};
pub use vit_msn_tensor::Tensor;
use vit_msn_tensor::{Dtype, Error, Result, try_vec};
use wasm_bindgen::prelude::*;

use crate::error::{JsResult, to_js};
use crate::handles::Handles;

/// Everything that one WebAssembly instance holds.
#[derive(Default)]
pub struct Engine {
    pub backend: Device,
    pub handles: Handles,
}

thread_local! {
    static ENGINE: RefCell<Engine> = RefCell::default();
}

/// Runs an op on this instance's engine. Only devices use the op's name.
pub fn with_engine<T>(_: &str, op: impl FnOnce(&mut Engine) -> Result<T>) -> JsResult<T> {
    ENGINE.with_borrow_mut(op).map_err(to_js)
}

/// The SIMD level that this binary was built for: "simd128", "relaxed" or "relaxed-wide".
#[wasm_bindgen]
pub fn simd_level() -> String {
    if cfg!(feature = "wide") {
        "relaxed-wide"
    } else if cfg!(target_feature = "relaxed-simd") {
        "relaxed"
    } else {
        "simd128"
    }
    .to_string()
}

/// How this processor's dot product takes bytes: "unsigned", "signed", "saturating", or "none" without relaxed SIMD.
#[wasm_bindgen]
pub fn byte_dot() -> String {
    vit_msn_cpu::byte_dot().name().to_string()
}

thread_local! {
    /// This thread's membership, if it is a worker.
    static WORKER: RefCell<Option<Worker>> = RefCell::default();
}

/// Lends the calling thread to the engine. It is a Worker with an instance on the same memory. Returns nothing once
/// the workers are dismissed. If `patience` is given and nothing is to be done for that number of milliseconds, it
/// returns the value at `epoch_address`; the Worker then waits for another value there and calls this again.
#[wasm_bindgen]
pub fn work(patience: Option<u32>) -> Option<u32> {
    let patience = patience.map(|time| Duration::from_millis(time.into()));
    WORKER.with_borrow_mut(|worker| worker.get_or_insert_with(Worker::join).work(patience))
}

/// Where the value is that changes with each job of the workers.
#[wasm_bindgen]
pub fn epoch_address() -> usize {
    vit_msn_cpu::epoch().as_ptr() as usize
}

/// Sets whether each thread has its own core and may therefore spin longer before it sleeps.
#[wasm_bindgen]
pub fn set_thread_per_core(enabled: bool) {
    vit_msn_cpu::set_thread_per_core(enabled);
}

/// Makes `work` return in all Workers, so that each can end by itself.
#[wasm_bindgen]
pub fn dismiss_workers() {
    vit_msn_cpu::dismiss();
}

/// Marks a Worker as lost after a trap, so that no thread waits for it.
#[wasm_bindgen]
pub fn mark_worker_lost() {
    vit_msn_cpu::mark_worker_lost();
}

/// A parameter's values as raw little-endian values of `dtype`.
#[wasm_bindgen]
pub fn parameter_bytes(parameter: u32, dtype: &str) -> JsResult<Vec<u8>> {
    with_engine("parameter_bytes", |engine| {
        Dtype::from_name(dtype)?.encode(engine.handles.tensor(parameter)?.data())
    })
}

/// The float32 scales of int8 rows.
#[wasm_bindgen]
pub fn get_scales(weights: u32, row: usize, rows: usize) -> JsResult<Vec<u8>> {
    with_engine("get_scales", |engine| {
        engine.handles.linear(weights)?.get_scales(row, rows)
    })
}

/// Rows of a weight as raw values of its storage type.
#[wasm_bindgen]
pub fn get_rows(weights: u32, row: usize, rows: usize) -> JsResult<Vec<u8>> {
    with_engine("get_rows", |engine| {
        engine.handles.linear(weights)?.get_rows(row, rows)
    })
}

/// Bias elements as raw values of the storage type, float32 for int8 weights.
#[wasm_bindgen]
pub fn get_bias(weights: u32, offset: usize, count: usize) -> JsResult<Vec<u8>> {
    with_engine("get_bias", |engine| {
        bias_elements(engine.handles.linear(weights)?, offset, count)
    })
}

fn bias_elements(weights: &LinearWeights, offset: usize, count: usize) -> Result<Vec<u8>> {
    let bytes = weights.get_bias()?.unwrap_or_default();
    let size = weights.bias_dtype().size();
    let end = offset.checked_add(count);
    let range = offset
        .checked_mul(size)
        .zip(end.and_then(|end| end.checked_mul(size)));
    let part = range.and_then(|(start, end)| bytes.get(start..end));
    part.map(<[u8]>::to_vec).ok_or_else(|| {
        Error::InvalidArgument(format!(
            "The bias has no elements {offset} to {offset} + {count}."
        ))
    })
}

/// A copy of a tensor's values.
#[wasm_bindgen]
pub fn read(x: u32) -> JsResult<Vec<f32>> {
    with_engine("read", |engine| {
        let data = engine.handles.tensor(x)?.data();
        let mut copy = try_vec(data.len())?;
        copy.copy_from_slice(data);
        Ok(copy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bias_slices_are_checked() {
        let weights = LinearWeights::new(3, 2, Dtype::F32, true).unwrap();
        assert_eq!(bias_elements(&weights, 1, 2).unwrap().len(), 8);
        for offset in [2, usize::MAX] {
            let error = bias_elements(&weights, offset, 2).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
    }
}
