//! The exported ops, once for all backends: they look up handles, compute, and give the result a handle.

use vit_msn_tensor::{
    Activation, AdamW, Backend, Dropout, Dtype, Lars, MsnLoss, MsnTargets, Pooling, Sgd,
};
use wasm_bindgen::prelude::*;

use crate::backend::{Engine, with_engine};
use crate::error::JsResult;

fn to_usize(dims: &[u32]) -> Vec<usize> {
    dims.iter().map(|&dim| dim as usize).collect()
}

/// Exports the ops of [`vit_msn_tensor::for_each_tensor_op`].
macro_rules! export {
    ($($(#[$doc:meta])* $op:ident($($tensor:ident),+ $(; $($value:ident: $type:ty),+)?);)+) => {$(
        $(#[$doc])*
        #[wasm_bindgen]
        pub fn $op($($tensor: u32,)+ $($($value: $type,)+)?) -> JsResult<u32> {
            with_engine(stringify!($op), |Engine { backend, handles }| {
                let [$($tensor),+] = handles.tensors([$($tensor),+])?;
                let made = backend.$op($($tensor,)+ $($($value,)+)?)?;
                handles.add_tensor(made)
            })
        }
    )+};
}

vit_msn_tensor::for_each_tensor_op!(export);

/// Uploads float32 values.
#[wasm_bindgen]
pub fn tensor(data: Vec<f32>, dims: &[u32]) -> JsResult<u32> {
    with_engine("tensor", |Engine { backend, handles }| {
        handles.add_tensor(backend.tensor(data, &to_usize(dims))?)
    })
}

/// Uploads raw little-endian values of type `from`, rounded through `dtype`.
#[wasm_bindgen]
pub fn parameter(bytes: &[u8], from: &str, dtype: &str, dims: &[u32]) -> JsResult<u32> {
    with_engine("parameter", |Engine { backend, handles }| {
        let (from, dtype) = (Dtype::from_name(from)?, Dtype::from_name(dtype)?);
        handles.add_tensor(backend.parameter(bytes, from, dtype, &to_usize(dims))?)
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
    with_engine("linear_weights", |Engine { backend, handles }| {
        let dtype = Dtype::from_name(dtype)?;
        handles.add_linear(backend.linear_weights(out_features, in_features, dtype, has_bias)?)
    })
}

/// Packs whole rows of a weight.
#[wasm_bindgen]
pub fn set_rows(weights: u32, row: usize, bytes: &[u8], from: &str) -> JsResult<()> {
    with_engine("set_rows", |Engine { backend, handles }| {
        let from = Dtype::from_name(from)?;
        backend.set_rows(handles.linear_mut(weights)?, row, bytes, from)
    })
}

/// Packs rows that are already quantised, from signed bytes and one float32 scale per row.
#[wasm_bindgen]
pub fn set_quantised_rows(weights: u32, row: usize, bytes: &[u8], scales: &[u8]) -> JsResult<()> {
    with_engine("set_quantised_rows", |Engine { backend, handles }| {
        backend.set_quantised_rows(handles.linear_mut(weights)?, row, bytes, scales)
    })
}

/// Sets bias elements.
#[wasm_bindgen]
pub fn set_bias(weights: u32, offset: usize, bytes: &[u8], from: &str) -> JsResult<()> {
    with_engine("set_bias", |Engine { backend, handles }| {
        let from = Dtype::from_name(from)?;
        backend.set_bias(handles.linear_mut(weights)?, offset, bytes, from)
    })
}

/// activation(x · weightᵀ + bias) + residual. Here and below, `reader` is the only layer that will read the result,
/// which may then have the form that this layer reads.
#[wasm_bindgen]
pub fn linear(
    x: u32,
    weights: u32,
    activation: &str,
    residual: Option<u32>,
    reader: Option<u32>,
) -> JsResult<u32> {
    with_engine("linear", |Engine { backend, handles }| {
        let activation = Activation::from_name(activation)?;
        let (x, weights) = (handles.input(x)?, handles.linear(weights)?);
        let residual = handles.optional_tensor(residual)?;
        let reader = handles.reader(reader)?;
        let y = backend.linear(x, weights, activation, residual, reader)?;
        handles.add_output(y)
    })
}

/// Layer normalisation over the last dimension.
#[wasm_bindgen]
pub fn layer_norm(x: u32, weight: u32, bias: u32, eps: f32, reader: Option<u32>) -> JsResult<u32> {
    with_engine("layer_norm", |Engine { backend, handles }| {
        let [x, weight, bias] = handles.tensors([x, weight, bias])?;
        let y = backend.layer_norm(x, weight, bias, eps, handles.reader(reader)?)?;
        handles.add_output(y)
    })
}

/// Fused attention.
#[wasm_bindgen]
pub fn scaled_dot_product_attention(
    qkv: u32,
    num_heads: usize,
    reader: Option<u32>,
) -> JsResult<u32> {
    with_engine("scaled_dot_product_attention", |engine| {
        let Engine { backend, handles } = engine;
        let (qkv, reader) = (handles.tensor(qkv)?, handles.reader(reader)?);
        let y = backend.scaled_dot_product_attention(qkv, num_heads, reader)?;
        handles.add_output(y)
    })
}

/// Unfused attention: [context, probabilities].
#[wasm_bindgen]
pub fn eager_attention(qkv: u32, num_heads: usize) -> JsResult<Vec<u32>> {
    with_engine("eager_attention", |Engine { backend, handles }| {
        let made = backend.eager_attention(handles.tensor(qkv)?, num_heads, None)?;
        handles.add_tensors(made)
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
    with_engine("eager_attention_dropout", |Engine { backend, handles }| {
        let dropout = Some(Dropout { probability, seed });
        let made = backend.eager_attention(handles.tensor(qkv)?, num_heads, dropout)?;
        handles.add_tensors(made)
    })
}

/// Pixels to patch embeddings.
#[wasm_bindgen]
pub fn patch_embed(
    pixel_values: u32,
    projection: u32,
    patch_height: usize,
    patch_width: usize,
) -> JsResult<u32> {
    with_engine("patch_embed", |Engine { backend, handles }| {
        let (pixels, projection) = (handles.tensor(pixel_values)?, handles.linear(projection)?);
        let y = backend.patch_embed(pixels, projection, (patch_height, patch_width))?;
        handles.add_tensor(y)
    })
}

/// Patch embeddings to tokens; `mask` and `mask_token` are given together or not at all.
#[wasm_bindgen]
pub fn embed_tokens(
    patches: u32,
    cls_token: u32,
    positions: u32,
    mask: Option<Vec<u8>>,
    mask_token: Option<u32>,
) -> JsResult<u32> {
    with_engine("embed_tokens", |Engine { backend, handles }| {
        let [patches, cls, positions] = handles.tensors([patches, cls_token, positions])?;
        let mask = mask.as_deref().zip(handles.optional_tensor(mask_token)?);
        let y = backend.embed_tokens(patches, cls, positions, mask)?;
        handles.add_tensor(y)
    })
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
    with_engine("interpolate_positions", |Engine { backend, handles }| {
        let (from, to) = ((from_height, from_width), (to_height, to_width));
        let y = backend.interpolate_positions(handles.tensor(positions)?, from, to)?;
        handles.add_tensor(y)
    })
}

/// One vector per image: "cls" or "mean".
#[wasm_bindgen]
pub fn pool(x: u32, kind: &str) -> JsResult<u32> {
    with_engine("pool", |Engine { backend, handles }| {
        let y = backend.pool(handles.tensor(x)?, Pooling::from_name(kind)?)?;
        handles.add_tensor(y)
    })
}

/// Mean cross-entropy.
#[wasm_bindgen]
pub fn cross_entropy(logits: u32, labels: &[i32]) -> JsResult<u32> {
    with_engine("cross_entropy", |Engine { backend, handles }| {
        let y = backend.cross_entropy(handles.tensor(logits)?, labels, 0.0)?;
        handles.add_tensor(y)
    })
}

/// Mean cross-entropy with label smoothing.
#[wasm_bindgen]
pub fn cross_entropy_smoothed(logits: u32, labels: &[i32], label_smoothing: f64) -> JsResult<u32> {
    with_engine("cross_entropy_smoothed", |Engine { backend, handles }| {
        let y = backend.cross_entropy(handles.tensor(logits)?, labels, label_smoothing)?;
        handles.add_tensor(y)
    })
}

/// Sets all parameters of a floating-point linear layer from tensors.
#[wasm_bindgen]
pub fn set_linear(weights: u32, weight: u32, bias: Option<u32>) -> JsResult<()> {
    with_engine("set_linear", |Engine { backend, handles }| {
        let Some(bias) = bias else {
            let (layer, [weight]) = handles.linear_mut_with(weights, [weight])?;
            return backend.set_linear(layer, weight, None);
        };
        let (layer, [weight, bias]) = handles.linear_mut_with(weights, [weight, bias])?;
        backend.set_linear(layer, weight, Some(bias))
    })
}

/// The weight of a floating-point linear layer as a tensor.
#[wasm_bindgen]
pub fn linear_weight(weights: u32) -> JsResult<u32> {
    with_engine("linear_weight", |Engine { backend, handles }| {
        let y = backend.linear_weight(handles.linear(weights)?)?;
        handles.add_tensor(y)
    })
}

/// The bias of a linear layer as a tensor.
#[wasm_bindgen]
pub fn linear_bias(weights: u32) -> JsResult<u32> {
    with_engine("linear_bias", |Engine { backend, handles }| {
        let y = backend.linear_bias(handles.linear(weights)?)?;
        handles.add_tensor(y)
    })
}

/// activation(x).
#[wasm_bindgen]
pub fn activate(x: u32, activation: &str) -> JsResult<u32> {
    with_engine("activate", |Engine { backend, handles }| {
        let y = backend.activate(handles.tensor(x)?, Activation::from_name(activation)?)?;
        handles.add_tensor(y)
    })
}

/// grad · activation′(x).
#[wasm_bindgen]
pub fn activate_backward(grad: u32, x: u32, activation: &str) -> JsResult<u32> {
    with_engine("activate_backward", |Engine { backend, handles }| {
        let activation = Activation::from_name(activation)?;
        let [grad, x] = handles.tensors([grad, x])?;
        let y = backend.activate_backward(grad, x, activation)?;
        handles.add_tensor(y)
    })
}

/// grad · weight.
#[wasm_bindgen]
pub fn linear_backward_input(grad: u32, weights: u32) -> JsResult<u32> {
    with_engine("linear_backward_input", |Engine { backend, handles }| {
        let (grad, weights) = (handles.tensor(grad)?, handles.linear(weights)?);
        let y = backend.linear_backward_input(grad, weights)?;
        handles.add_tensor(y)
    })
}

/// [gradᵀ · x, the column sums of grad].
#[wasm_bindgen]
pub fn linear_backward_weights(grad: u32, x: u32) -> JsResult<Vec<u32>> {
    with_engine("linear_backward_weights", |Engine { backend, handles }| {
        let [grad, x] = handles.tensors([grad, x])?;
        let made = backend.linear_backward_weights(grad, x)?;
        handles.add_tensors(made)
    })
}

/// The gradients with respect to [x, weight, bias].
#[wasm_bindgen]
pub fn layer_norm_backward(grad: u32, x: u32, weight: u32, eps: f32) -> JsResult<Vec<u32>> {
    with_engine("layer_norm_backward", |Engine { backend, handles }| {
        let [grad, x, weight] = handles.tensors([grad, x, weight])?;
        let made = backend.layer_norm_backward(grad, x, weight, eps)?;
        handles.add_tensors(made)
    })
}

/// The gradient of eager attention with respect to qkv; a probability of 0 means no dropout.
#[wasm_bindgen]
pub fn eager_attention_backward(
    grad: u32,
    qkv: u32,
    probs: u32,
    num_heads: usize,
    probability: f64,
    seed: u32,
) -> JsResult<u32> {
    with_engine("eager_attention_backward", |Engine { backend, handles }| {
        let dropout = (probability != 0.0).then_some(Dropout { probability, seed });
        let [grad, qkv, probs] = handles.tensors([grad, qkv, probs])?;
        let y = backend.eager_attention_backward(grad, qkv, probs, num_heads, dropout)?;
        handles.add_tensor(y)
    })
}

/// The gradients with respect to the patch projection's [weight, bias].
#[wasm_bindgen]
pub fn patch_embed_backward(
    grad: u32,
    pixel_values: u32,
    patch_height: usize,
    patch_width: usize,
) -> JsResult<Vec<u32>> {
    with_engine("patch_embed_backward", |Engine { backend, handles }| {
        let [grad, pixels] = handles.tensors([grad, pixel_values])?;
        let made = backend.patch_embed_backward(grad, pixels, (patch_height, patch_width))?;
        handles.add_tensors(made)
    })
}

/// The gradients with respect to [patches, CLS token, positions] and, if there is a mask, the mask token.
#[wasm_bindgen]
pub fn embed_tokens_backward(grad: u32, mask: Option<Vec<u8>>) -> JsResult<Vec<u32>> {
    with_engine("embed_tokens_backward", |Engine { backend, handles }| {
        let made = backend.embed_tokens_backward(handles.tensor(grad)?, mask.as_deref())?;
        handles.add_tensors(made)
    })
}

/// The gradient with respect to the original positions.
#[wasm_bindgen]
pub fn interpolate_positions_backward(
    grad: u32,
    from_height: usize,
    from_width: usize,
    to_height: usize,
    to_width: usize,
) -> JsResult<u32> {
    with_engine("interpolate_positions_backward", |engine| {
        let Engine { backend, handles } = engine;
        let (from, to) = ((from_height, from_width), (to_height, to_width));
        let y = backend.interpolate_positions_backward(handles.tensor(grad)?, from, to)?;
        handles.add_tensor(y)
    })
}

/// Spreads [B, D] back over [B, tokens, D].
#[wasm_bindgen]
pub fn pool_backward(grad: u32, kind: &str, tokens: usize) -> JsResult<u32> {
    with_engine("pool_backward", |Engine { backend, handles }| {
        let y = backend.pool_backward(handles.tensor(grad)?, Pooling::from_name(kind)?, tokens)?;
        handles.add_tensor(y)
    })
}

/// Dropout. Its gradient is the same op, applied to the gradient.
#[wasm_bindgen]
pub fn dropout(x: u32, probability: f64, seed: u32) -> JsResult<u32> {
    with_engine("dropout", |Engine { backend, handles }| {
        let y = backend.dropout(handles.tensor(x)?, Dropout { probability, seed })?;
        handles.add_tensor(y)
    })
}

/// target += scale · x.
#[wasm_bindgen]
pub fn accumulate(target: u32, x: u32, scale: f32) -> JsResult<()> {
    with_engine("accumulate", |Engine { backend, handles }| {
        let [target, x] = handles.tensors_mut([target, x])?;
        backend.accumulate(target, x, scale)
    })
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
    with_engine("adamw_step", |Engine { backend, handles }| {
        let [parameter, gradient, m, v] = handles.tensors_mut([parameter, gradient, m, v])?;
        backend.adamw_step(parameter, gradient, [m, v], options)
    })
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
    with_engine("sgd_step", |Engine { backend, handles }| {
        let Some(buffer) = buffer else {
            let [parameter, gradient] = handles.tensors_mut([parameter, gradient])?;
            return backend.sgd_step(parameter, gradient, None, options);
        };
        let [parameter, gradient, buffer] = handles.tensors_mut([parameter, gradient, buffer])?;
        backend.sgd_step(parameter, gradient, Some(buffer), options)
    })
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
    with_engine("lars_step", |Engine { backend, handles }| {
        let [parameter, gradient, buffer] = handles.tensors_mut([parameter, gradient, buffer])?;
        backend.lars_step(parameter, gradient, buffer, options)
    })
}

/// Batch normalisation with the batch's statistics: [y, mean, unbiased variance].
#[wasm_bindgen]
pub fn batch_norm(x: u32, weight: u32, bias: u32, eps: f32) -> JsResult<Vec<u32>> {
    with_engine("batch_norm", |Engine { backend, handles }| {
        let [x, weight, bias] = handles.tensors([x, weight, bias])?;
        let made = backend.batch_norm(x, weight, bias, eps)?;
        handles.add_tensors(made)
    })
}

/// The gradients with respect to [x, weight, bias].
#[wasm_bindgen]
pub fn batch_norm_backward(grad: u32, x: u32, weight: u32, eps: f32) -> JsResult<Vec<u32>> {
    with_engine("batch_norm_backward", |Engine { backend, handles }| {
        let [grad, x, weight] = handles.tensors([grad, x, weight])?;
        let made = backend.batch_norm_backward(grad, x, weight, eps)?;
        handles.add_tensors(made)
    })
}

/// Batch normalisation with given statistics.
#[wasm_bindgen]
pub fn batch_norm_inference(
    x: u32,
    weight: u32,
    bias: u32,
    mean: u32,
    variance: u32,
    eps: f32,
) -> JsResult<u32> {
    with_engine("batch_norm_inference", |Engine { backend, handles }| {
        let given = handles.tensors([weight, bias, mean, variance])?;
        let y = backend.batch_norm_inference(handles.tensor(x)?, given, eps)?;
        handles.add_tensor(y)
    })
}

/// The gradients with respect to [x, prototypes].
#[wasm_bindgen]
pub fn prototype_logits_backward(
    grad: u32,
    x: u32,
    prototypes: u32,
    temperature: f64,
) -> JsResult<Vec<u32>> {
    with_engine(
        "prototype_logits_backward",
        |Engine { backend, handles }| {
            let [grad, x, prototypes] = handles.tensors([grad, x, prototypes])?;
            let made = backend.prototype_logits_backward(grad, x, prototypes, temperature)?;
            handles.add_tensors(made)
        },
    )
}

/// Splits a gradient into its first `rows` rows and the rest.
#[wasm_bindgen]
pub fn concat_rows_backward(grad: u32, rows: usize) -> JsResult<Vec<u32>> {
    with_engine("concat_rows_backward", |Engine { backend, handles }| {
        let made = backend.concat_rows_backward(handles.tensor(grad)?, rows)?;
        handles.add_tensors(made)
    })
}

/// MSN's targets from logits.
#[wasm_bindgen]
pub fn msn_targets(logits: u32, temperature: f64, sinkhorn_iterations: u32) -> JsResult<u32> {
    let options = MsnTargets {
        temperature,
        sinkhorn_iterations,
    };
    with_engine("msn_targets", |Engine { backend, handles }| {
        let y = backend.msn_targets(handles.tensor(logits)?, options)?;
        handles.add_tensor(y)
    })
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
    with_engine("msn_loss", |Engine { backend, handles }| {
        let [logits, targets] = handles.tensors([logits, targets])?;
        let y = backend.msn_loss(logits, targets, weights)?;
        handles.add_tensor(y)
    })
}

/// The gradient of MSN's loss with respect to the logits.
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
    with_engine("msn_loss_backward", |Engine { backend, handles }| {
        let [logits, targets] = handles.tensors([logits, targets])?;
        let y = backend.msn_loss_backward(logits, targets, weights)?;
        handles.add_tensor(y)
    })
}

/// target = momentum · target + (1 − momentum) · source.
#[wasm_bindgen]
pub fn ema(target: u32, source: u32, momentum: f64) -> JsResult<()> {
    with_engine("ema", |Engine { backend, handles }| {
        let [target, source] = handles.tensors_mut([target, source])?;
        backend.ema(target, source, momentum)
    })
}

/// A tensor's shape.
#[wasm_bindgen]
pub fn dims(x: u32) -> JsResult<Vec<u32>> {
    with_engine("dims", |engine| {
        let dims = engine.handles.dims(x)?;
        Ok(dims.iter().map(|&dim| dim as u32).collect())
    })
}

/// Drops the object of a handle.
#[wasm_bindgen]
pub fn free(handle: u32) -> JsResult<()> {
    with_engine("free", |engine| engine.handles.free(handle))
}

/// The number of live handles and the bytes of their data.
#[wasm_bindgen]
pub fn live() -> JsResult<Vec<f64>> {
    with_engine("live", |engine| {
        let (handles, bytes) = engine.handles.live();
        Ok(vec![handles as f64, bytes])
    })
}
