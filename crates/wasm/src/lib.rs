//! The JavaScript boundary: exported functions over handles, and errors that carry codes. One WebAssembly instance is
//! one engine; the facade starts an instance for each model and drops it to free all its memory.

#[cfg(not(feature = "gpu"))]
#[path = "cpu/mod.rs"]
mod backend;
#[cfg(feature = "gpu")]
#[path = "gpu/mod.rs"]
mod backend;
mod error;
mod handles;
mod pretraining_exports;
mod training_exports;

use std::panic;
use std::sync::Mutex;

#[cfg(not(feature = "gpu"))]
use vit_msn_tensor::Activation;
use vit_msn_tensor::Dtype;
use wasm_bindgen::prelude::*;

use crate::backend::with_engine;
use crate::error::JsResult;

/// The first panic of any thread: one that is lost makes the thread that waits for it panic too.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Keeps a panic's message for [`last_panic`]: the trap that follows reaches JavaScript without one.
#[wasm_bindgen(start)]
pub fn start() {
    panic::set_hook(Box::new(|info| {
        if let Ok(mut message) = PANIC.try_lock() {
            message.get_or_insert_with(|| info.to_string());
        }
    }));
}

/// The message of the panic that ended this instance.
#[wasm_bindgen]
pub fn last_panic() -> Option<String> {
    PANIC.try_lock().ok().and_then(|message| message.clone())
}

fn to_usize(dims: &[u32]) -> Vec<usize> {
    dims.iter().map(|&dim| dim as usize).collect()
}

/// Uploads float32 values.
#[wasm_bindgen]
pub fn tensor(data: Vec<f32>, dims: &[u32]) -> JsResult<u32> {
    with_engine(|engine| engine.tensor(data, &to_usize(dims)))
}

/// Uploads raw little-endian values of type `from`, rounded through `dtype`.
#[wasm_bindgen]
pub fn parameter(bytes: &[u8], from: &str, dtype: &str, dims: &[u32]) -> JsResult<u32> {
    with_engine(|engine| {
        engine.parameter(
            bytes,
            Dtype::from_name(from)?,
            Dtype::from_name(dtype)?,
            &to_usize(dims),
        )
    })
}

/// An empty linear layer.
#[wasm_bindgen]
pub fn linear_weights(
    out_features: usize,
    in_features: usize,
    dtype: &str,
    has_bias: bool,
) -> JsResult<u32> {
    with_engine(|engine| {
        engine.linear_weights(
            out_features,
            in_features,
            Dtype::from_name(dtype)?,
            has_bias,
        )
    })
}

/// Packs whole rows of a weight.
#[wasm_bindgen]
pub fn set_rows(weights: u32, row: usize, bytes: &[u8], from: &str) -> JsResult<()> {
    with_engine(|engine| engine.set_rows(weights, row, bytes, Dtype::from_name(from)?))
}

/// Packs rows that are quantised already: signed bytes, and each row's float32 scale.
#[wasm_bindgen]
pub fn set_quantised_rows(weights: u32, row: usize, bytes: &[u8], scales: &[u8]) -> JsResult<()> {
    with_engine(|engine| engine.set_quantised_rows(weights, row, bytes, scales))
}

/// Sets bias elements.
#[wasm_bindgen]
pub fn set_bias(weights: u32, offset: usize, bytes: &[u8], from: &str) -> JsResult<()> {
    with_engine(|engine| engine.set_bias(weights, offset, bytes, Dtype::from_name(from)?))
}

/// activation(x · weightᵀ + bias) + residual.
#[cfg(not(feature = "gpu"))]
#[wasm_bindgen]
pub fn linear(x: u32, weights: u32, activation: &str, residual: Option<u32>) -> JsResult<u32> {
    with_engine(|engine| engine.linear(x, weights, Activation::from_name(activation)?, residual))
}

/// Layer normalisation of the last dimension.
#[cfg(not(feature = "gpu"))]
#[wasm_bindgen]
pub fn layer_norm(x: u32, weight: u32, bias: u32, eps: f32) -> JsResult<u32> {
    with_engine(|engine| engine.layer_norm(x, weight, bias, eps))
}

/// Fused attention.
#[cfg(not(feature = "gpu"))]
#[wasm_bindgen]
pub fn scaled_dot_product_attention(qkv: u32, num_heads: usize) -> JsResult<u32> {
    with_engine(|engine| engine.scaled_dot_product_attention(qkv, num_heads))
}

/// Attention by its definition: [context, probabilities].
#[wasm_bindgen]
pub fn eager_attention(qkv: u32, num_heads: usize) -> JsResult<Vec<u32>> {
    with_engine(|engine| {
        engine
            .eager_attention(qkv, num_heads)
            .map(|(context, probs)| vec![context, probs])
    })
}

/// Pictures to patch embeddings.
#[wasm_bindgen]
pub fn patch_embed(
    pixel_values: u32,
    projection: u32,
    patch_height: usize,
    patch_width: usize,
) -> JsResult<u32> {
    with_engine(|engine| engine.patch_embed(pixel_values, projection, (patch_height, patch_width)))
}

/// Patch embeddings to tokens; `mask` and `mask_token` come together.
#[wasm_bindgen]
pub fn embed_tokens(
    patches: u32,
    cls_token: u32,
    positions: u32,
    mask: Option<Vec<u8>>,
    mask_token: Option<u32>,
) -> JsResult<u32> {
    with_engine(|engine| engine.embed_tokens(patches, cls_token, positions, mask.zip(mask_token)))
}

/// The CLS token and `visible` chosen patches of each picture.
#[wasm_bindgen]
pub fn take_tokens(x: u32, patches: &[u32], visible: usize) -> JsResult<u32> {
    with_engine(|engine| engine.take_tokens(x, patches, visible))
}

/// Position encodings for another grid.
#[wasm_bindgen]
pub fn interpolate_positions(
    positions: u32,
    from_height: usize,
    from_width: usize,
    to_height: usize,
    to_width: usize,
) -> JsResult<u32> {
    with_engine(|engine| {
        engine.interpolate_positions(positions, (from_height, from_width), (to_height, to_width))
    })
}

/// One vector a picture: "cls" or "mean".
#[wasm_bindgen]
pub fn pool(x: u32, kind: &str) -> JsResult<u32> {
    with_engine(|engine| engine.pool(x, kind))
}

/// Mean cross-entropy.
#[wasm_bindgen]
pub fn cross_entropy(logits: u32, labels: &[i32]) -> JsResult<u32> {
    with_engine(|engine| engine.cross_entropy(logits, labels))
}

/// Mean squared error.
#[wasm_bindgen]
pub fn mse_loss(x: u32, target: u32) -> JsResult<u32> {
    with_engine(|engine| engine.mse_loss(x, target))
}

/// Mean binary cross-entropy with logits.
#[wasm_bindgen]
pub fn bce_with_logits(logits: u32, target: u32) -> JsResult<u32> {
    with_engine(|engine| engine.bce_with_logits(logits, target))
}

/// A tensor's shape.
#[wasm_bindgen]
pub fn dims(x: u32) -> JsResult<Vec<u32>> {
    with_engine(|engine| {
        let dims = engine.handles.dims(x)?;
        Ok(dims.iter().map(|&dim| dim as u32).collect())
    })
}

/// Drops what a handle stands for.
#[wasm_bindgen]
pub fn free(handle: u32) -> JsResult<()> {
    with_engine(|engine| engine.handles.free(handle))
}

/// [live handles, bytes of their data].
#[wasm_bindgen]
pub fn live() -> JsResult<Vec<f64>> {
    with_engine(|engine| {
        let (handles, bytes) = engine.handles.live();
        Ok(vec![handles as f64, bytes])
    })
}
