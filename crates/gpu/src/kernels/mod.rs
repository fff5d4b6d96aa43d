//! The ops. Each is a host function that checks shapes and chooses tiles, next to the WGSL that it runs.

pub mod attention;
pub mod batch_norm;
pub mod columns;
pub mod concat;
pub mod dropout;
pub mod elementwise;
pub mod embed_tokens;
pub mod image;
pub mod interpolate;
pub mod layer_norm;
pub mod layer_norm_backward;
pub mod linear;
pub mod loss;
pub mod msn;
pub mod optimiser;
pub mod patch_embed;
pub mod pool;
pub mod prototypes;
pub mod softmax;
pub mod sums;
pub mod take_tokens;
pub mod tokens_backward;

use crate::context::Context;
use crate::pipelines::Constants;
use crate::profile::Cost;

/// With fewer workgroups a large GPU idles, so ops with a choice use smaller tiles.
const ENOUGH_WORKGROUPS: usize = 128;

/// Workgroup size of the element-wise kernels: two warps or one wavefront.
const LINE: usize = 64;

/// Reductions over a workgroup, with barriers only and with subgroups.
const REDUCE: &str = include_str!("parts/reduce.wgsl");
const REDUCE_SUBGROUPS: &str = include_str!("parts/reduce_subgroups.wgsl");
const REDUCE_CONSTANTS: Constants = &["LANES"];

/// The sources of a kernel with a reduction, for a device.
macro_rules! reducing {
    ($context:expr, $($kernel:literal),+) => {
        if $context.has_subgroups() {
            &[
                crate::pipelines::ENABLE_SUBGROUPS,
                crate::kernels::REDUCE_SUBGROUPS,
                $(include_str!($kernel),)+
            ] as &'static [&'static str]
        } else {
            &[crate::kernels::REDUCE, $(include_str!($kernel),)+]
        }
    };
}
use reducing;

/// The value of the reductions' constant LANES: invocations per workgroup.
fn lanes(context: &Context) -> [u32; 1] {
    [if context.is_software() { 8 } else { 64 }]
}

/// The cost of moving `floats` float32 values and performing `flop` operations.
fn cost(floats: u64, flop: u64) -> Cost {
    Cost {
        flop,
        bytes: 4 * floats,
    }
}

/// Maximum number of workgroups per dimension, from WebGPU's default limits.
const WIDEST: usize = 65535;

/// Workgroups for `count` rows, folded into two dimensions. Kernels check their row against the number of rows.
fn fold_rows(count: usize) -> [usize; 3] {
    [count.min(WIDEST), count.div_ceil(WIDEST), 1]
}
