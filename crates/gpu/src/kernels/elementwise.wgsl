// elementwise: ops that compute one result per element of their operands
//
// Layout         x, other and y [count] (in place: only y); float32.
// Constants      ACTIVATION  as in parts/activation.wgsl
// Preconditions  Workgroups cover count, folded into two dimensions; elementwise.rs checks the lengths.
// Tile           None: every value is read once.

struct Params {
    count: u32,
    // The op's factor: accumulate's scale, 1 / count of a mean, or the source's share.
    scale: f32,
    // Dropout's keys.
    keys: vec2<u32>,
    threshold: u32,
    survivor_scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> other: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> sum_so_far: array<f32>;

fn index_of(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return (group.y * groups.x + group.x) * 64u + lane;
}

@compute @workgroup_size(64)
fn apply_activation(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = index_of(group, groups, lane);
    if i < params.count {
        y[i] = activate(x[i]);
    }
}

// x is the gradient, other the activation's input.
@compute @workgroup_size(64)
fn activate_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = index_of(group, groups, lane);
    if i < params.count {
        y[i] = x[i] * derivative(other[i]);
    }
}

@compute @workgroup_size(64)
fn add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = index_of(group, groups, lane);
    if i < params.count {
        y[i] = x[i] + other[i];
    }
}

@compute @workgroup_size(64)
fn accumulate(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = index_of(group, groups, lane);
    if i < params.count {
        sum_so_far[i] += params.scale * x[i];
    }
}

@compute @workgroup_size(64)
fn ema(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = index_of(group, groups, lane);
    if i < params.count {
        // Starts from the nearer end, so that a share of 0 or 1 is exact.
        let way = x[i] - sum_so_far[i];
        let from_source = x[i] - (1.0 - params.scale) * way;
        sum_so_far[i] = select(from_source, sum_so_far[i] + params.scale * way, params.scale < 0.5);
    }
}

@compute @workgroup_size(64)
fn mse_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = index_of(group, groups, lane);
    if i < params.count {
        y[i] = 2.0 * (x[i] - other[i]) * params.scale;
    }
}

@compute @workgroup_size(64)
fn bce_with_logits_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = index_of(group, groups, lane);
    if i < params.count {
        y[i] = (sigmoid(x[i]) - other[i]) * params.scale;
    }
}

@compute @workgroup_size(64)
fn dropout(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = index_of(group, groups, lane);
    if i < params.count {
        let factor = dropout_factors(vec4<u32>(i), params.keys, params.threshold, params.survivor_scale).x;
        y[i] = select(x[i] * factor, 0.0, factor == 0.0);
    }
}
