//! Dropout's options, which all backends take.

/// What is to be dropped: the probability of each element, and the seed.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// From 0 to 1.
    pub probability: f64,
    /// Decides which.
    pub seed: u32,
}
