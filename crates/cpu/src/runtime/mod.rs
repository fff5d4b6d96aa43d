//! What kernels run on: vectors of four lanes, threads, and how lengths are cut into blocks.

pub(crate) mod blocks;
pub(crate) mod parallel;
#[allow(missing_docs, reason = "lanes: the names are the documentation")]
pub(crate) mod simd;
