// layer_norm_backward: the gradients of layer normalisation. With x̂ the normalised x and g = grad · weight, the
// gradient of x is (g − mean(g) − x̂ · mean(g · x̂)) / √(variance + eps), and that of weight is the sum of grad · x̂
// over rows.
//
// Layout         grad, x and y [rows, width], weight [width], moments [rows]: (mean, 1 / √(variance + eps)), sums
//                [blocks, width]; row-major float32.
// Preconditions  by_x: one workgroup per row, folded into two dimensions. by_weight: workgroups x over width, y over
//                blocks of BLOCK rows. layer_norm_backward.rs checks the shapes and adds up the blocks.
// Tile           LANES invocations walk a row together, as in layer_norm.wgsl.

struct Params {
    rows: u32,
    width: u32,
    eps: f32,
}

const BLOCK: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> grad: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read_write> moments: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> known_moments: array<vec2<f32>>;

@compute @workgroup_size(LANES)
fn by_x(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    let width = f32(params.width);
    var total = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        total += x[first + i];
    }
    let mean = sum(total, lane) / width;
    var squares = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        let difference = x[first + i] - mean;
        squares += difference * difference;
    }
    let scale = 1.0 / sqrt(sum(squares, lane) / width + params.eps);
    var scaled = 0.0;
    var products = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        let g = grad[first + i] * weight[i];
        scaled += g;
        products += g * ((x[first + i] - mean) * scale);
    }
    let mean_of_scaled = sum(scaled, lane) / width;
    let slope = sum(products, lane) / width;
    for (var i = lane; i < params.width; i += LANES) {
        let normalised = (x[first + i] - mean) * scale;
        y[first + i] = (grad[first + i] * weight[i] - mean_of_scaled - normalised * slope) * scale;
    }
    if lane == 0u {
        moments[row] = vec2<f32>(mean, scale);
    }
}

@compute @workgroup_size(64)
fn by_weight(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.width {
        return;
    }
    var total = 0.0;
    for (var row = id.y * BLOCK; row < min((id.y + 1u) * BLOCK, params.rows); row++) {
        let moment = known_moments[row];
        let index = row * params.width + id.x;
        total += grad[index] * ((x[index] - moment.x) * moment.y);
    }
    y[id.y * params.width + id.x] = total;
}
