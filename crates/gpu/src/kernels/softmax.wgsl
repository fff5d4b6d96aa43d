// softmax: y = exp(x − max) / Σ exp(x − max), over the last dimension
//
// Layout         x and y [rows, width]; row-major float32.
// Preconditions  One workgroup per row, folded into two dimensions; softmax.rs launches them.
// Tile           LANES invocations walk a row together, so that reads coalesce. Exponentials are computed twice
//                instead of being stored and read back.

struct Params {
    rows: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    let found = row_max_and_sum(first, 1.0, lane);
    for (var i = lane; i < params.width; i += LANES) {
        y[first + i] = exp(x[first + i] - found.x) / found.y;
    }
}
