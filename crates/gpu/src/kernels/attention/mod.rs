//! Attention, fused and eager, and its gradients.

pub mod backward;
mod forward;

pub(crate) use forward::Tile;
pub use forward::{
    AttentionShape, attention_tiles, choose_attention_tile, eager_attention,
    eager_attention_dropout, run_attention, scaled_dot_product_attention,
    scaled_dot_product_attention_for,
};
