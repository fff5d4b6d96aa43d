//! How this processor multiplies bytes.

/// How `i32x4.relaxed_dot_i8x16_i7x16_add_s` takes bytes of its second operand above 127, which relaxed SIMD
/// leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteDot {
    /// As unsigned, with exact sums: x86 with AVX-VNNI.
    Unsigned,
    /// As signed, with exact sums: arm64.
    Signed,
    /// Otherwise: x86 without AVX-VNNI saturates the sums of two products at 16 bits.
    Saturating,
    /// This engine was built without relaxed SIMD.
    Missing,
}

/// Whether the engine was built for a processor that may have an exact dot product. Natively, it is emulated.
pub(super) const IS_AVAILABLE: bool = cfg!(any(
    not(target_arch = "wasm32"),
    target_feature = "relaxed-simd"
));

impl ByteDot {
    /// The name that `engine_info` reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Signed => "signed",
            Self::Saturating => "saturating",
            Self::Missing => "none",
        }
    }

    /// Whether 8-bit weights and 8-bit activations can be multiplied.
    pub fn is_exact(self) -> bool {
        matches!(self, Self::Unsigned | Self::Signed)
    }

    /// What to subtract from an unsigned activation, so that it is in the range of the instruction's operand.
    pub(super) fn offset(self) -> u8 {
        if self == Self::Signed { 128 } else { 0 }
    }
}

/// Finds out by one call how the processor multiplies bytes.
pub fn byte_dot() -> ByteDot {
    imp::byte_dot()
}

#[cfg(all(target_arch = "wasm32", target_feature = "relaxed-simd"))]
mod imp {
    use core::arch::wasm32::*;
    use std::hint::black_box;

    use super::ByteDot;

    /// Weights and activations of four dot products with the largest results of each sign, for which saturated
    /// or wrapped intermediate sums differ.
    const WEIGHTS: [[i8; 4]; 4] = [[127; 4], [-128; 4], [-128; 4], [127, -128, -128, 127]];
    const ACTIVATIONS: [[u8; 4]; 4] = [[255; 4], [255; 4], [129; 4], [127, 129, 1, 255]];

    pub fn byte_dot() -> ByteDot {
        let (weights, activations) = (black_box(WEIGHTS), black_box(ACTIVATIONS));
        let mut sums = [0i32; 4];
        // SAFETY: each array is 16 bytes, and no load or store needs alignment.
        unsafe {
            let found = i32x4_relaxed_dot_i8x16_i7x16_add(
                v128_load(weights.as_ptr().cast()),
                v128_load(activations.as_ptr().cast()),
                i32x4_splat(0),
            );
            v128_store(sums.as_mut_ptr().cast(), found);
        }
        if sums == exact(|byte| i32::from(byte)) {
            ByteDot::Unsigned
        } else if sums == exact(|byte| i32::from(byte as i8)) {
            ByteDot::Signed
        } else {
            ByteDot::Saturating
        }
    }

    fn exact(value: impl Fn(u8) -> i32) -> [i32; 4] {
        std::array::from_fn(|lane| {
            let products = WEIGHTS[lane].iter().zip(ACTIVATIONS[lane]);
            products
                .map(|(&weight, byte)| i32::from(weight) * value(byte))
                .sum()
        })
    }
}

#[cfg(all(target_arch = "wasm32", not(target_feature = "relaxed-simd")))]
mod imp {
    pub fn byte_dot() -> super::ByteDot {
        super::ByteDot::Missing
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod imp {
    pub fn byte_dot() -> super::ByteDot {
        super::ByteDot::Unsigned
    }
}
