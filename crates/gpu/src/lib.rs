//! The engine's GPU kernels: WGSL on wgpu, natively (Vulkan, Metal, Direct3D 12) and on the browser's WebGPU.
//!
//! A [`Context`] is a device whose faults it turns into errors. A [`Stream`] records ops, submits them together and
//! reads results back. Each op is one file in `kernels/`, next to its `.wgsl`. Tensors are float32, row-major and
//! contiguous, and stay on the device until [`Stream::read`]. A result that only one linear layer reads may be
//! [`GpuHalves`]. The weights of linear layers ([`GpuLinear`]) may be half that width, or bytes. Each op checks sizes
//! on entry, and every kernel runs within WebGPU's default limits: 16 KiB of workgroup memory, 256 invocations, 8
//! storage buffers.

mod backend;
mod buffers;
mod context;
mod kernels;
mod pipelines;
mod profile;
mod self_test;
mod stream;
mod template;
#[cfg(test)]
mod test_support;
mod tiles;
mod weights;

pub use buffers::{Activations, GpuHalves, GpuTensor, Memory, Stored};
pub use context::{Context, ContextOptions, RequestedLimits};
pub use kernels::attention::backward::{
    eager_attention_backward, scaled_dot_product_attention_backward,
};
pub use kernels::attention::{
    AttentionShape, attention_tiles, choose_attention_tile, eager_attention,
    eager_attention_dropout, run_attention, scaled_dot_product_attention,
    scaled_dot_product_attention_for,
};
pub use kernels::batch_norm::{
    BatchNormGradients, BatchNormOutput, batch_norm, batch_norm_backward, batch_norm_inference,
};
pub use kernels::concat::{concat_rows, concat_rows_backward};
pub use kernels::elementwise::{
    accumulate, activate, activate_backward, add, bce_with_logits_backward, dropout, ema,
    mse_loss_backward,
};
pub use kernels::embed_tokens::{TokenMask, embed_tokens};
pub use kernels::image::{Axis, GpuImage, ImagePlan, empty_pixels, preprocess};
pub use kernels::interpolate::interpolate_positions;
pub use kernels::layer_norm::{layer_norm, layer_norm_for};
pub use kernels::layer_norm_backward::{LayerNormGradients, layer_norm_backward};
pub use kernels::linear::backward::{linear_backward_input, linear_backward_weights};
pub use kernels::linear::parameters::{linear_bias, linear_weight, set_linear};
pub use kernels::linear::{choose_linear_tile, linear, linear_for, linear_tiles, run_linear};
pub use kernels::loss::{
    bce_with_logits, cross_entropy, cross_entropy_backward, cross_entropy_smoothed, mse_loss,
};
pub use kernels::msn::{msn_loss, msn_loss_backward, msn_targets};
pub use kernels::optimiser::{adamw_step, lars_step, sgd_step};
pub use kernels::patch_embed::{patch_embed, patch_embed_backward};
pub use kernels::pool::pool;
pub use kernels::prototypes::{prototype_logits, prototype_logits_backward};
pub use kernels::softmax::softmax;
pub use kernels::sums::sum_of_squares;
pub use kernels::take_tokens::take_tokens;
pub use kernels::tokens_backward::{
    EmbeddingGradients, embed_tokens_backward, interpolate_positions_backward, pool_backward,
    take_tokens_backward,
};
pub use pipelines::Module;
pub use profile::OpProfile;
pub use self_test::{plan_self_test, self_test};
pub use stream::Stream;
pub use tiles::LayerShape;
pub use vit_msn_tensor::Pooling;
pub use weights::GpuLinear;
