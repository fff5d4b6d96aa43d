//! Code shared by the kernels with dropout.

use bytemuck::NoUninit;
use vit_msn_tensor::{Dropout, DropoutMask, Result};

/// The generator in WGSL.
pub(super) const DROPOUT: &str = include_str!("parts/dropout.wgsl");

/// A [`DropoutMask`] as part of a kernel's uniforms.
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

    /// # Errors
    /// INVALID_ARGUMENT for a probability outside [0, 1].
    pub fn new(dropout: Dropout) -> Result<Self> {
        let DropoutMask {
            keys,
            threshold,
            scale,
        } = DropoutMask::new(dropout)?;
        Ok(Self {
            keys,
            threshold,
            scale,
        })
    }
}
