//! The exported functions of the backends' `pretraining.rs`.

use vit_msn_tensor::{MsnLoss, MsnTargets};
use wasm_bindgen::prelude::*;

use crate::backend::with_engine;
use crate::error::JsResult;

/// Batch normalisation by the batch's statistics: [y, mean, unbiased variance].
#[wasm_bindgen]
pub fn batch_norm(x: u32, weight: u32, bias: u32, eps: f32) -> JsResult<Vec<u32>> {
    with_engine(|engine| engine.batch_norm(x, weight, bias, eps).map(Vec::from))
}

/// The gradients by [x, weight, bias].
#[wasm_bindgen]
pub fn batch_norm_backward(grad: u32, x: u32, weight: u32, eps: f32) -> JsResult<Vec<u32>> {
    with_engine(|engine| {
        engine
            .batch_norm_backward(grad, x, weight, eps)
            .map(Vec::from)
    })
}

/// Batch normalisation by given statistics.
#[wasm_bindgen]
pub fn batch_norm_inference(
    x: u32,
    weight: u32,
    bias: u32,
    mean: u32,
    variance: u32,
    eps: f32,
) -> JsResult<u32> {
    with_engine(|engine| engine.batch_norm_inference(x, [weight, bias, mean, variance], eps))
}

/// Cosine similarities with prototypes over a temperature.
#[wasm_bindgen]
pub fn prototype_logits(x: u32, prototypes: u32, temperature: f64) -> JsResult<u32> {
    with_engine(|engine| engine.prototype_logits(x, prototypes, temperature))
}

/// The gradients by [x, prototypes].
#[wasm_bindgen]
pub fn prototype_logits_backward(
    grad: u32,
    x: u32,
    prototypes: u32,
    temperature: f64,
) -> JsResult<Vec<u32>> {
    with_engine(|engine| {
        engine
            .prototype_logits_backward(grad, x, prototypes, temperature)
            .map(Vec::from)
    })
}

/// The rows of x, then those of y.
#[wasm_bindgen]
pub fn concat_rows(x: u32, y: u32) -> JsResult<u32> {
    with_engine(|engine| engine.concat_rows(x, y))
}

/// The first `rows` rows, and the others.
#[wasm_bindgen]
pub fn concat_rows_backward(grad: u32, rows: usize) -> JsResult<Vec<u32>> {
    with_engine(|engine| engine.concat_rows_backward(grad, rows).map(Vec::from))
}

/// MSN's targets from logits.
#[wasm_bindgen]
pub fn msn_targets(logits: u32, temperature: f64, sinkhorn_iterations: u32) -> JsResult<u32> {
    let options = MsnTargets {
        temperature,
        sinkhorn_iterations,
    };
    with_engine(|engine| engine.msn_targets(logits, options))
}

/// MSN's loss and its terms: [loss, cross-entropy, mean-entropy, entropy].
#[wasm_bindgen]
pub fn msn_loss(
    logits: u32,
    targets: u32,
    me_max_weight: f64,
    entropy_weight: f64,
) -> JsResult<u32> {
    let weights = MsnLoss {
        me_max_weight,
        entropy_weight,
    };
    with_engine(|engine| engine.msn_loss(logits, targets, weights))
}

/// The gradient of MSN's loss by the logits.
#[wasm_bindgen]
pub fn msn_loss_backward(
    logits: u32,
    targets: u32,
    me_max_weight: f64,
    entropy_weight: f64,
) -> JsResult<u32> {
    let weights = MsnLoss {
        me_max_weight,
        entropy_weight,
    };
    with_engine(|engine| engine.msn_loss_backward(logits, targets, weights))
}

/// target = momentum · target + (1 − momentum) · source.
#[wasm_bindgen]
pub fn ema(target: u32, source: u32, momentum: f64) -> JsResult<()> {
    with_engine(|engine| engine.ema(target, source, momentum))
}
