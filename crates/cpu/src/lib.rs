//! The engine's CPU kernels. Each is written once on top of four lanes ([`runtime::simd`]): SIMD128 on wasm32,
//! arrays natively, where the tests run. Public functions check all sizes; no kernel panics on its input.
//!
//! Activations are contiguous row-major float32 slices. Weights are [`PackedLinear`]: float32, half-width or
//! int8.

mod activation;
mod attention;
mod backend;
mod batch_norm;
mod columns;
mod concat;
mod dropout;
mod elementwise;
mod embed_tokens;
mod interpolate;
mod layer_norm;
mod layer_norm_backward;
mod linear;
mod loss;
mod loss_backward;
mod msn;
mod optimiser;
mod patch_embed;
mod pool;
mod prototypes;
mod runtime;
mod softmax;
mod take_tokens;
#[cfg(test)]
mod test_support;

pub use activation::{activate, activate_backward};
pub use attention::{
    AttentionShape, eager_attention, eager_attention_backward, eager_attention_dropout,
    scaled_dot_product_attention, scaled_dot_product_attention_backward,
};
pub use backend::Cpu;
pub use batch_norm::{
    BatchNormGradients, BatchNormOutput, batch_norm, batch_norm_backward, batch_norm_inference,
};
pub use concat::{concat_rows, concat_rows_backward};
pub use dropout::dropout;
pub use elementwise::{accumulate, add, ema, sum_of_squares};
pub use embed_tokens::{
    EmbeddingGradients, EmbeddingShape, PatchMask, embed_tokens, embed_tokens_backward,
};
pub use interpolate::{interpolate_positions, interpolate_positions_backward};
pub use layer_norm::layer_norm;
pub use layer_norm_backward::{LayerNormGradients, layer_norm_backward};
pub use linear::{
    ByteDot, PackedLinear, byte_dot, linear, linear_backward_input, linear_backward_weights,
};
pub use loss::{IGNORE_INDEX, bce_with_logits, cross_entropy, cross_entropy_smoothed, mse_loss};
pub use loss_backward::{bce_with_logits_backward, cross_entropy_backward, mse_loss_backward};
pub use msn::{msn_loss, msn_loss_backward, msn_targets};
pub use optimiser::{adamw_step, lars_step, sgd_step};
pub use patch_embed::{PatchShape, patch_embed, patch_embed_backward};
pub use pool::{pool_cls, pool_cls_backward, pool_mean, pool_mean_backward};
pub use prototypes::{prototype_logits, prototype_logits_backward};
pub use runtime::parallel::{Worker, dismiss, epoch, mark_worker_lost, set_thread_per_core, work};
pub use softmax::softmax;
pub use take_tokens::{SelectionShape, take_tokens, take_tokens_backward};
pub use vit_msn_tensor::{AdamW, Lars, Sgd};
