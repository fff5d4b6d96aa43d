// layer_norm: y = (x − mean) / √(variance + eps) · weight + bias, over the last dimension
//
// Layout         x and y [rows, width], weight and bias [width]; row-major float32, y in the format of
//                parts/stored_*.wgsl.
// Preconditions  One workgroup per row, folded into two dimensions; layer_norm.rs checks the shapes and launches
//                them.
// Tile           LANES invocations walk a row together, so that reads coalesce. The row is read three times, twice
//                from cache: computing the variance from differences to the mean avoids the cancellation of E[x²] −
//                E[x]².

struct Params {
    rows: u32,
    width: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<Stored>;

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
    var total = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        total += x[first + i];
    }
    let mean = sum(total, lane) / f32(params.width);
    var squares = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        let difference = x[first + i] - mean;
        squares += difference * difference;
    }
    let variance = sum(squares, lane) / f32(params.width);
    // Not inverseSqrt, whose precision is up to the driver.
    let scale = 1.0 / sqrt(variance + params.eps);
    for (var i = lane; i < params.width; i += LANES) {
        y[first + i] = stored((x[first + i] - mean) * scale * weight[i] + bias[i]);
    }
}
