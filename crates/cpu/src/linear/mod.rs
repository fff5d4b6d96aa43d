//! Linear layers: float32, half-width and int8 weights, and their gradients.

pub(crate) mod backward;
mod int8;
mod int8_microkernel;
mod int8_panels;
pub(crate) mod microkernel;
pub(crate) mod packed;
mod strassen;
mod strassen_terms;
pub(crate) mod transpose;

pub use backward::{linear_backward_input, linear_backward_weights};
pub use microkernel::linear;
pub use packed::PackedLinear;
