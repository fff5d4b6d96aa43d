//! Attention, fused and by its definition, and its gradients.

pub mod backward;
mod forward;

pub use forward::{attention, attention_for, eager_attention, eager_attention_dropout};
