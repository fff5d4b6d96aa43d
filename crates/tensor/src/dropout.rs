//! Dropout with a counter-based generator: which elements are dropped depends only on the seed and their index, so that
//! every backend drops the same ones.
//!
//! Element `i` is dropped where `hash(hash(i ^ hash(seed)) ^ hash(seed ^ 0x9e3779b9))` is below
//! `min(⌊probability · 2³²⌋, 2³² − 1)`. All numbers are unsigned 32-bit integers, and `hash` is lowbias32 (C. Wellons,
//! "Prospecting for hash functions", 2018):
//! `x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16`.
//! Other elements are multiplied by `1 / (1 − probability)` (by 0 if the probability is 1).

use crate::{Error, Result, format_number};

/// The parameters of dropout.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// The probability that an element is dropped, in [0, 1].
    pub probability: f64,
    /// Decides which elements are dropped.
    pub seed: u32,
}

/// Which elements are dropped, in the form that kernels use.
#[derive(Clone, Copy, Debug)]
pub struct DropoutMask {
    /// The hashes of the seed.
    pub keys: [u32; 2],
    /// An element whose hash is below this is dropped.
    pub threshold: u32,
    /// The factor of all other elements.
    pub scale: f32,
}

impl DropoutMask {
    /// The mask of a seed and a probability.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a probability outside [0, 1].
    pub fn new(dropout: Dropout) -> Result<Self> {
        let Dropout { probability, seed } = dropout;
        if !(0.0..=1.0).contains(&probability) {
            return Err(Error::InvalidArgument(format!(
                "A dropout probability must be from 0 to 1, got {}.",
                format_number(probability)
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

    /// Whether element `index` is dropped.
    #[inline(always)]
    pub fn drops(&self, index: u32) -> bool {
        hash(hash(index ^ self.keys[0]) ^ self.keys[1]) < self.threshold
    }
}

/// lowbias32
#[inline(always)]
fn hash(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}
