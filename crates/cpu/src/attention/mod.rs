//! Attention, fused and by its definition, and its gradients.

mod backward;
mod forward;

pub use backward::{eager_backward, sdpa_backward};
pub use forward::{AttentionShape, eager, eager_dropout, sdpa};
