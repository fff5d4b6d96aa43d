//! The engine's kernels on the CPU. Each is written once over four lanes ([`simd`]): SIMD128 on wasm32,
//! arrays natively, where the tests run. Sizes are checked at the door; no kernel panics on what it is given.
//!
//! Activations are contiguous row-major float32 slices; weights are [`PackedLinear`]: float32, half-width or int8.

mod activation;
mod attention;
mod dot_i8;
mod embeddings;
mod gemm;
mod interpolate;
mod layer_norm;
mod linear_i8;
mod loss;
mod pack;
mod parallel;
mod patch_embed;
mod pool;
mod quantise;
#[allow(missing_docs, reason = "lanes: the names are the documentation")]
mod simd;
mod softmax;
mod take_tokens;
#[cfg(test)]
mod test_support;

pub use attention::{AttentionShape, eager, sdpa};
pub use embeddings::{EmbeddingShape, PatchMask, assemble_embeddings};
pub use gemm::linear;
pub use interpolate::interpolate_positions;
pub use layer_norm::layer_norm;
pub use loss::{IGNORE_INDEX, bce_with_logits, cross_entropy, mse};
pub use pack::PackedLinear;
pub use parallel::{lose_worker, work};
pub use patch_embed::{PatchShape, patch_embed};
pub use pool::{pool_cls, pool_mean};
pub use softmax::softmax;
pub use take_tokens::{SelectionShape, take_tokens};
