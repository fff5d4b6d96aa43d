// interpolate: bicubic interpolation of position embeddings to another grid; the CLS token's embedding is copied
//
// Layout         positions [1 + rows · columns, width], y [1 + new_rows · new_columns, width]; row-major float32.
//                taps: four source indices and their weights for each new row, then for each new column.
// Preconditions  Workgroups: x over width, y over the tokens of y, folded into y and z; interpolate.rs checks the
//                shapes and computes the taps with the reference's arithmetic.
// Tile           None: each written value reads 16, all from cache.

struct Params {
    width: u32,
    columns: u32,
    new_rows: u32,
    new_columns: u32,
}

struct Taps {
    places: vec4<u32>,
    weights: vec4<f32>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> positions: array<f32>;
@group(0) @binding(2) var<storage, read> taps: array<Taps>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let token = id.z * groups.y + id.y;
    if id.x >= params.width || token > params.new_rows * params.new_columns {
        return;
    }
    if token == 0u {
        y[id.x] = positions[id.x];
        return;
    }
    let vertical = taps[(token - 1u) / params.new_columns];
    let horizontal = taps[params.new_rows + (token - 1u) % params.new_columns];
    var value = 0.0;
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let source = 1u + vertical.places[i] * params.columns + horizontal.places[j];
            value += vertical.weights[i] * horizontal.weights[j] * positions[source * params.width + id.x];
        }
    }
    y[token * params.width + id.x] = value;
}
