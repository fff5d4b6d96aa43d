//! Dropout's generator: that which the CPU's `dropout.rs` documents, so that engines drop the same.

use bytemuck::NoUninit;
use vit_msn_tensor::{Dropout, Error, Result};

/// What the kernels that drop share.
pub(super) const DROPOUT: &str = include_str!("parts/dropout.wgsl");

/// What kernels need of it.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct Mask {
    keys: [u32; 2],
    threshold: u32,
    scale: f32,
}

impl Mask {
    /// Drops nothing.
    pub const NONE: Mask = Mask {
        keys: [0; 2],
        threshold: 0,
        scale: 1.0,
    };

    /// Errors: INVALID_ARGUMENT for a probability outside [0, 1].
    pub fn new(dropout: Dropout) -> Result<Self> {
        let Dropout { probability, seed } = dropout;
        if !(0.0..=1.0).contains(&probability) {
            return Err(Error::InvalidArgument(format!(
                "A dropout probability must be from 0 to 1, got {probability}."
            )));
        }
        Ok(Self {
            keys: [hash(seed), hash(seed ^ 0x9e37_79b9)],
            // The cast saturates.
            threshold: (probability * 4_294_967_296.0) as u32,
            scale: if probability < 1.0 {
                (1.0 / (1.0 - probability)) as f32
            } else {
                0.0
            },
        })
    }
}

/// lowbias32
fn hash(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}
