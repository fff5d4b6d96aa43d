//! What every part of the engine shares: element types, shapes, tensors, errors and the trait `Backend`.
//! There is no backend and no JavaScript here: kernels are in `vit-msn-cpu` and `vit-msn-gpu`, the boundary is in
//! `vit-msn-wasm`.

mod activation;
mod backend;
mod bicubic;
mod dropout;
mod dtype;
mod error;
mod linear_parameters;
mod number;
mod optimiser;
mod pretraining;
mod quantise;
mod shape;
mod tensor;
mod tensor_ops;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use activation::Activation;
pub use backend::{Backend, Grid, Pooling};
pub use bicubic::bicubic_taps;
pub use dropout::{Dropout, DropoutMask};
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use linear_parameters::LinearParameters;
pub use number::format_number;
pub use optimiser::{AdamW, Lars, Sgd};
pub use pretraining::{
    MsnLoss, MsnTargets, batch_rows, check_momentum, check_temperature, views_of,
};
pub use quantise::{check_scale, quantise_row};
pub use shape::{check_len, format_dims, numel};
pub use tensor::{Tensor, try_vec};
