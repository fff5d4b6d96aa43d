//! The exported functions of the backends' `training.rs`.

use vit_msn_tensor::{Activation, AdamW, Dropout, Lars, Sgd};
use wasm_bindgen::prelude::*;

use crate::backend::with_engine;
use crate::error::JsResult;

/// Sets the whole of a floating linear layer from tensors.
#[wasm_bindgen]
pub fn set_linear(weights: u32, weight: u32, bias: Option<u32>) -> JsResult<()> {
    with_engine(|engine| engine.set_linear(weights, weight, bias))
}

/// The weight of a floating linear layer as a tensor.
#[wasm_bindgen]
pub fn linear_weight(weights: u32) -> JsResult<u32> {
    with_engine(|engine| engine.linear_weight(weights))
}

/// The bias of a linear layer as a tensor.
#[wasm_bindgen]
pub fn linear_bias(weights: u32) -> JsResult<u32> {
    with_engine(|engine| engine.linear_bias(weights))
}

/// activation(x).
#[wasm_bindgen]
pub fn activate(x: u32, activation: &str) -> JsResult<u32> {
    with_engine(|engine| engine.activate(x, Activation::from_name(activation)?))
}

/// grad · activation′(x).
#[wasm_bindgen]
pub fn activate_backward(grad: u32, x: u32, activation: &str) -> JsResult<u32> {
    with_engine(|engine| engine.activate_backward(grad, x, Activation::from_name(activation)?))
}

/// grad · weight.
#[wasm_bindgen]
pub fn linear_backward_input(grad: u32, weights: u32) -> JsResult<u32> {
    with_engine(|engine| engine.linear_backward_input(grad, weights))
}

/// [gradᵀ · x, the column sums of grad].
#[wasm_bindgen]
pub fn linear_backward_weights(grad: u32, x: u32) -> JsResult<Vec<u32>> {
    with_engine(|engine| engine.linear_backward_weights(grad, x).map(Vec::from))
}

/// The gradients by [x, weight, bias].
#[wasm_bindgen]
pub fn layer_norm_backward(grad: u32, x: u32, weight: u32, eps: f32) -> JsResult<Vec<u32>> {
    with_engine(|engine| {
        engine
            .layer_norm_backward(grad, x, weight, eps)
            .map(Vec::from)
    })
}

/// The gradient of fused attention by qkv.
#[wasm_bindgen]
pub fn scaled_dot_product_attention_backward(
    grad: u32,
    qkv: u32,
    context: u32,
    num_heads: usize,
) -> JsResult<u32> {
    with_engine(|engine| {
        engine.scaled_dot_product_attention_backward(grad, qkv, context, num_heads)
    })
}

/// Eager attention with dropout: [context, probabilities before dropout].
#[wasm_bindgen]
pub fn eager_attention_dropout(
    qkv: u32,
    num_heads: usize,
    probability: f64,
    seed: u32,
) -> JsResult<Vec<u32>> {
    let dropout = Dropout { probability, seed };
    with_engine(|engine| {
        engine
            .eager_attention_dropout(qkv, num_heads, Some(dropout))
            .map(|(context, probs)| vec![context, probs])
    })
}

/// The gradient of eager attention by qkv; a probability of 0 is no dropout.
#[wasm_bindgen]
pub fn eager_attention_backward(
    grad: u32,
    qkv: u32,
    probs: u32,
    num_heads: usize,
    probability: f64,
    seed: u32,
) -> JsResult<u32> {
    let dropout = (probability != 0.0).then_some(Dropout { probability, seed });
    with_engine(|engine| engine.eager_attention_backward(grad, qkv, probs, num_heads, dropout))
}

/// The gradients by the patch projection's [weight, bias].
#[wasm_bindgen]
pub fn patch_embed_backward(
    grad: u32,
    pixel_values: u32,
    patch_height: usize,
    patch_width: usize,
) -> JsResult<Vec<u32>> {
    with_engine(|engine| {
        engine
            .patch_embed_backward(grad, pixel_values, (patch_height, patch_width))
            .map(Vec::from)
    })
}

/// The gradients by [patches, CLS token, positions] and, where there is a mask, the mask token.
#[wasm_bindgen]
pub fn embed_tokens_backward(grad: u32, mask: Option<Vec<u8>>) -> JsResult<Vec<u32>> {
    with_engine(|engine| engine.embed_tokens_backward(grad, mask.as_deref()))
}

/// [B, 1 + visible, D] back into [B, tokens, D].
#[wasm_bindgen]
pub fn take_tokens_backward(
    grad: u32,
    patches: &[u32],
    visible: usize,
    tokens: usize,
) -> JsResult<u32> {
    with_engine(|engine| engine.take_tokens_backward(grad, patches, visible, tokens))
}

/// The gradient by the positions that were interpolated.
#[wasm_bindgen]
pub fn interpolate_positions_backward(
    grad: u32,
    from_height: usize,
    from_width: usize,
    to_height: usize,
    to_width: usize,
) -> JsResult<u32> {
    with_engine(|engine| {
        engine.interpolate_positions_backward(
            grad,
            (from_height, from_width),
            (to_height, to_width),
        )
    })
}

/// [B, D] back into [B, tokens, D].
#[wasm_bindgen]
pub fn pool_backward(grad: u32, kind: &str, tokens: usize) -> JsResult<u32> {
    with_engine(|engine| engine.pool_backward(grad, kind, tokens))
}

/// Mean cross-entropy with label smoothing.
#[wasm_bindgen]
pub fn cross_entropy_smoothed(logits: u32, labels: &[i32], label_smoothing: f64) -> JsResult<u32> {
    with_engine(|engine| engine.cross_entropy_smoothed(logits, labels, label_smoothing))
}

/// The gradient of cross-entropy by the logits.
#[wasm_bindgen]
pub fn cross_entropy_backward(logits: u32, labels: &[i32], label_smoothing: f64) -> JsResult<u32> {
    with_engine(|engine| engine.cross_entropy_backward(logits, labels, label_smoothing))
}

/// The gradient of the mean squared error.
#[wasm_bindgen]
pub fn mse_loss_backward(x: u32, target: u32) -> JsResult<u32> {
    with_engine(|engine| engine.mse_loss_backward(x, target))
}

/// The gradient of the binary cross-entropy with logits.
#[wasm_bindgen]
pub fn bce_with_logits_backward(logits: u32, target: u32) -> JsResult<u32> {
    with_engine(|engine| engine.bce_with_logits_backward(logits, target))
}

/// Dropout.
#[wasm_bindgen]
pub fn dropout(x: u32, probability: f64, seed: u32) -> JsResult<u32> {
    with_engine(|engine| engine.dropout(x, Dropout { probability, seed }))
}

/// x + y.
#[wasm_bindgen]
pub fn add(x: u32, y: u32) -> JsResult<u32> {
    with_engine(|engine| engine.add(x, y))
}

/// target += scale · x.
#[wasm_bindgen]
pub fn accumulate(target: u32, x: u32, scale: f32) -> JsResult<()> {
    with_engine(|engine| engine.accumulate(target, x, scale))
}

/// The sum of squares.
#[wasm_bindgen]
pub fn sum_of_squares(x: u32) -> JsResult<u32> {
    with_engine(|engine| engine.sum_of_squares(x))
}

/// One step of AdamW.
#[wasm_bindgen]
#[allow(
    clippy::too_many_arguments,
    reason = "numbers cross the boundary one by one"
)]
pub fn adamw_step(
    parameter: u32,
    gradient: u32,
    m: u32,
    v: u32,
    learning_rate: f64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    step: u32,
    gradient_scale: f64,
) -> JsResult<()> {
    let options = AdamW {
        learning_rate,
        beta1,
        beta2,
        epsilon,
        weight_decay,
        step,
        gradient_scale,
    };
    with_engine(|engine| engine.adamw_step([parameter, gradient, m, v], options))
}

/// One step of SGD.
#[wasm_bindgen]
#[allow(
    clippy::too_many_arguments,
    reason = "numbers cross the boundary one by one"
)]
pub fn sgd_step(
    parameter: u32,
    gradient: u32,
    buffer: Option<u32>,
    learning_rate: f64,
    momentum: f64,
    weight_decay: f64,
    nesterov: bool,
    first: bool,
    gradient_scale: f64,
) -> JsResult<()> {
    let options = Sgd {
        learning_rate,
        momentum,
        weight_decay,
        nesterov,
        first,
        gradient_scale,
    };
    with_engine(|engine| engine.sgd_step(parameter, gradient, buffer, options))
}

/// One step of LARS.
#[wasm_bindgen]
#[allow(
    clippy::too_many_arguments,
    reason = "numbers cross the boundary one by one"
)]
pub fn lars_step(
    parameter: u32,
    gradient: u32,
    buffer: u32,
    learning_rate: f64,
    momentum: f64,
    weight_decay: f64,
    trust_coefficient: f64,
    epsilon: f64,
    gradient_scale: f64,
) -> JsResult<()> {
    let options = Lars {
        learning_rate,
        momentum,
        weight_decay,
        trust_coefficient,
        epsilon,
        gradient_scale,
    };
    with_engine(|engine| engine.lars_step([parameter, gradient, buffer], options))
}
