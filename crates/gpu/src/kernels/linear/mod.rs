//! Linear layers, their gradients, and the training of their parameters.

pub mod backward;
mod forward;
pub mod parameters;

pub(crate) use forward::{Strategy, reads_halves};
pub use forward::{choose_linear_tile, linear, linear_for, linear_tiles, run_linear};
