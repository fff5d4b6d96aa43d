//! The runtime of the kernels: vectors of four lanes, threads, and division of lengths into blocks.

pub(crate) mod blocks;
pub(crate) mod parallel;
#[allow(missing_docs, reason = "lanes: the names are the documentation")]
pub(crate) mod simd;
