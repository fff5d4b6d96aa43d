// attention: the kernels' parameters

struct Params {
    tokens: u32,
    width: u32,
    head_dim: u32,
    scale: f32,
    heads: u32,
    // The first head of the dispatch, counted across the whole batch.
    first_head: u32,
    // Dropout's keys; see parts/dropout.wgsl.
    keys: vec2<u32>,
    threshold: u32,
    survivor_scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;

const LOWEST: f32 = -3.4028234e38;
