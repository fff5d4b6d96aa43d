// linear: y = activation(x · weightᵀ + bias) + residual. This file has the code that all tiles share; the product
// itself is in staged.wgsl, direct.wgsl or, for bytes, packed.wgsl, and store_*.wgsl has the rest.
//
// Layout         x [rows, inputs], bias [outputs], residual and y [rows, outputs]; row-major float32, except for x
//                with parts/x_halves.wgsl and y with parts/stored_f16.wgsl. One part of the weight [part, inputs],
//                starting at output `first`, each row zero-padded to a multiple of four: parts/x_*.wgsl and
//                parts/weight_*.wgsl load four values of a row, parts/operand_*.wgsl multiplies them.
// Constants      ACTIVATION  as in parts/activation.wgsl
//                RESIDUAL    1 adds the residual; otherwise its binding accepts any tensor
// Preconditions  parts/x_vec4.wgsl requires inputs to be a multiple of 4. forward.rs checks the shapes, and covers
//                the part's columns of y with workgroups: x over outputs, y over rows.

struct Params {
    rows: u32,
    inputs: u32,
    outputs: u32,
    // The part's first output and its number of outputs.
    first: u32,
    part: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
