//! What every part of the engine agrees on: element types, shapes, tensors and errors.
//! No backend and no JavaScript: kernels live in `vit-msn-cpu`, the boundary in `vit-msn-wasm`.

mod activation;
mod dtype;
mod error;
mod shape;
mod tensor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use activation::Activation;
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use shape::{check_len, format_dims, numel};
pub use tensor::{Tensor, try_vec};
