//! Fused and eager attention, and their gradients.

mod backward;
mod forward;

pub use backward::{eager_attention_backward, scaled_dot_product_attention_backward};
pub use forward::{
    AttentionShape, eager_attention, eager_attention_dropout, scaled_dot_product_attention,
};
