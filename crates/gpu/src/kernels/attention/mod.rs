//! Attention, fused and eager, and its gradients.

pub mod backward;
mod forward;

pub(crate) use forward::attention_variant;
pub use forward::{
    eager_attention, eager_attention_dropout, scaled_dot_product_attention,
    scaled_dot_product_attention_for,
};
