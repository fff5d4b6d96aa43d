// batch_norm: (x − mean) / √(variance + eps) · weight + bias with each column's statistics or given ones, and its
// gradients
//
// Layout         x, grad and y [rows, columns]; weight, bias, mean and variance [columns]; row-major float32.
// Preconditions  forward and backward: one invocation per column; batch_norm.rs checks that there are at least two
//                rows. inference: one invocation per element, folded into two dimensions.
// Tile           Adjacent invocations read adjacent columns, row by row. Sums are taken over blocks of 64 rows: no
//                atomics, and the rounding error grows slowly with the number of rows.

struct Params {
    rows: u32,
    columns: u32,
    eps: f32,
}

const BLOCK: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;

// forward and inference
@group(0) @binding(3) var<storage, read> bias: array<f32>;
// forward
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read_write> mean: array<f32>;
@group(0) @binding(6) var<storage, read_write> variance: array<f32>;
// inference
@group(0) @binding(4) var<storage, read> known_mean: array<f32>;
@group(0) @binding(5) var<storage, read> known_variance: array<f32>;
@group(0) @binding(6) var<storage, read_write> normalised: array<f32>;
// backward
@group(0) @binding(3) var<storage, read> grad: array<f32>;
@group(0) @binding(4) var<storage, read_write> by_x: array<f32>;
@group(0) @binding(5) var<storage, read_write> by_weight: array<f32>;
@group(0) @binding(6) var<storage, read_write> by_bias: array<f32>;

// The mean and the biased variance of a column.
fn moments(column: u32) -> vec2<f32> {
    var total = 0.0;
    for (var first = 0u; first < params.rows; first += BLOCK) {
        var part = 0.0;
        for (var row = first; row < min(first + BLOCK, params.rows); row++) {
            part += x[row * params.columns + column];
        }
        total += part;
    }
    let middle = total / f32(params.rows);
    var squares = 0.0;
    for (var first = 0u; first < params.rows; first += BLOCK) {
        var part = 0.0;
        for (var row = first; row < min(first + BLOCK, params.rows); row++) {
            let difference = x[row * params.columns + column] - middle;
            part += difference * difference;
        }
        squares += part;
    }
    return vec2<f32>(middle, squares / f32(params.rows));
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    if column >= params.columns {
        return;
    }
    let found = moments(column);
    let scale = weight[column] / sqrt(found.y + params.eps);
    for (var row = 0u; row < params.rows; row++) {
        let index = row * params.columns + column;
        y[index] = (x[index] - found.x) * scale + bias[column];
    }
    mean[column] = found.x;
    // Running statistics use the unbiased variance.
    variance[column] = found.y * f32(params.rows) / (f32(params.rows) - 1.0);
}

@compute @workgroup_size(64)
fn inference(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + lane;
    if index < params.rows * params.columns {
        let column = index % params.columns;
        let scale = weight[column] / sqrt(known_variance[column] + params.eps);
        normalised[index] = (x[index] - known_mean[column]) * scale + bias[column];
    }
}

// With x̂ the normalised x: by_x is (grad − mean(grad) − x̂ · mean(grad · x̂)) · weight / √(variance + eps).
@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    if column >= params.columns {
        return;
    }
    let found = moments(column);
    let factor = 1.0 / sqrt(found.y + params.eps);
    var sums = vec2<f32>();
    for (var first = 0u; first < params.rows; first += BLOCK) {
        var part = vec2<f32>();
        for (var row = first; row < min(first + BLOCK, params.rows); row++) {
            let index = row * params.columns + column;
            part += grad[index] * vec2<f32>(1.0, (x[index] - found.x) * factor);
        }
        sums += part;
    }
    by_bias[column] = sums.x;
    by_weight[column] = sums.y;
    let means = sums / f32(params.rows);
    for (var row = 0u; row < params.rows; row++) {
        let index = row * params.columns + column;
        let rest = grad[index] - means.x - (x[index] - found.x) * factor * means.y;
        by_x[index] = rest * weight[column] * factor;
    }
}
