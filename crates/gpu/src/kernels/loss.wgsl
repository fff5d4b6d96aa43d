// loss: the mean losses of classification and regression, and cross-entropy's gradient
//
// Layout         x [rows, width] (logits or predictions), target [rows, width] or, for classes, labels [rows] as i32;
//                y [1], a gradient [rows, width]. Row-major float32.
// Preconditions  One workgroup, or one per row for the gradient; loss.rs checks the shapes and that labels are
//                classes or −100, and counts those that are classes.
// Tile           LANES invocations walk a row, or all elements, together, reading adjacent values. Losses are small
//                compared with the model.

struct Params {
    rows: u32,
    width: u32,
    // The divisor of the sum.
    count: f32,
    // Label smoothing: the share of the target spread over all classes.
    smoothing: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> target_values: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<i32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(LANES)
fn cross_entropy(@builtin(local_invocation_index) lane: u32) {
    var total = 0.0;
    for (var row = 0u; row < params.rows; row++) {
        let first = row * params.width;
        let found = row_max_and_sum(first, 1.0, lane);
        let highest = found.x;
        // −100 is ignored.
        let label = labels[row];
        let logit = x[first + u32(max(label, 0))];
        let rest = log(found.y);
        var loss = (1.0 - params.smoothing) * (rest + (highest - logit));
        if params.smoothing > 0.0 {
            var others = 0.0;
            for (var i = lane; i < params.width; i += LANES) {
                others += rest + (highest - x[first + i]);
            }
            loss += params.smoothing / f32(params.width) * sum(others, lane);
        }
        total += select(loss, 0.0, label < 0);
    }
    if lane == 0u {
        y[0] = total / params.count;
    }
}

// (softmax − target) / count, one workgroup per row.
@compute @workgroup_size(LANES)
fn cross_entropy_backward(
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
    let label = labels[row];
    for (var i = lane; i < params.width; i += LANES) {
        let one_hot = select(0.0, 1.0 - params.smoothing, i32(i) == label);
        let wanted = one_hot + params.smoothing / f32(params.width);
        let gradient = (exp(x[first + i] - found.x) / found.y - wanted) / params.count;
        y[first + i] = select(gradient, 0.0, label < 0);
    }
}

@compute @workgroup_size(LANES)
fn mse_loss(@builtin(local_invocation_index) lane: u32) {
    var total = 0.0;
    for (var i = lane; i < params.rows * params.width; i += LANES) {
        let difference = x[i] - target_values[i];
        total += difference * difference;
    }
    total = sum(total, lane);
    if lane == 0u {
        y[0] = total / params.count;
    }
}

// max(x, 0) − x·t + ln(1 + e^−|x|), which doesn't overflow.
@compute @workgroup_size(LANES)
fn bce_with_logits(@builtin(local_invocation_index) lane: u32) {
    var total = 0.0;
    for (var i = lane; i < params.rows * params.width; i += LANES) {
        total += max(x[i], 0.0) - x[i] * target_values[i] + log(1.0 + exp(-abs(x[i])));
    }
    total = sum(total, lane);
    if lane == 0u {
        y[0] = total / params.count;
    }
}
