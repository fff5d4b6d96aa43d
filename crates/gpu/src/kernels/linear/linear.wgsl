// linear: y = activation(x · weightᵀ + bias) + residual. What the tiles share; the product is staged.wgsl's,
// direct.wgsl's or, of bytes, packed.wgsl's.
//
// Layout         x [rows, inputs], bias [outputs], residual and y [rows, outputs]; row-major float32, but for x by
//                parts/x_halves.wgsl and y by parts/stored_f16.wgsl. A part of the weight [part, inputs] from output `first` on, each
//                row padded with zeros to a multiple of four: parts/x_*.wgsl
//                and parts/weight_*.wgsl load four values of a row, parts/operand_*.wgsl multiplies them.
// Constants      ACTIVATION  that of parts/activation.wgsl
//                RESIDUAL    1 adds the residual; else its binding holds any tensor
// Preconditions  parts/x_vec4.wgsl needs inputs to be a multiple of 4. forward.rs checks the shapes, and covers the part's columns
//                of y with workgroups: x over outputs, y over rows.

struct Params {
    rows: u32,
    inputs: u32,
    outputs: u32,
    // The part's first output and how many it has.
    first: u32,
    part: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> residual: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<Stored>;

// Stores the result of a sum of products, unless it lies beyond the end.
fn store(sum: f32, row: u32, part_column: u32) {
    if row < params.rows && part_column < params.part {
        let column = params.first + part_column;
        let index = row * params.outputs + column;
        var value = activate(scaled(sum, column) + bias[column]);
        if RESIDUAL == 1u {
            value += residual[index];
        }
        y[index] = stored(value);
    }
}
