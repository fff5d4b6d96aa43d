// optimiser: one in-place step, with the formulas and the order of operations of crates/cpu/src/optimiser.rs
//
// Layout         gradient, parameter and states [count]; norms [1], sums of squares; float32.
// Preconditions  Workgroups cover count, folded into two dimensions; optimiser.rs checks lengths and hyper-parameters
//                and computes the values shared by all elements.
// Tile           None: every value is read once.

struct Params {
    count: u32,
    // The factor applied to gradients.
    scale: f32,
    // adamw: the factor applied to the parameter. sgd, lars: the coupled weight decay.
    decay: f32,
    rate: f32,
    // adamw: 1 − β₁. sgd, lars: the factor applied to the buffer.
    first: f32,
    // adamw: β₂. sgd: the buffer's share of the direction. lars: the trust coefficient.
    second: f32,
    // adamw: 1 − β₂. sgd: the gradient's share.
    third: f32,
    // adamw: 1 / √(1 − β₂ᵗ).
    correction: f32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> parameter: array<f32>;
@group(0) @binding(3) var<storage, read_write> state: array<f32>;
@group(0) @binding(4) var<storage, read_write> squares: array<f32>;
@group(0) @binding(2) var<storage, read> parameter_norm: array<f32>;
@group(0) @binding(3) var<storage, read> gradient_norm: array<f32>;
@group(0) @binding(4) var<storage, read_write> lars_parameter: array<f32>;
@group(0) @binding(5) var<storage, read_write> lars_state: array<f32>;

fn index_of(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return (group.y * groups.x + group.x) * 64u + lane;
}

@compute @workgroup_size(64)
fn adamw_step(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = index_of(group, groups, lane);
    if i < params.count {
        let g = gradient[i] * params.scale;
        let m = state[i] + (g - state[i]) * params.first;
        let v = squares[i] * params.second + g * g * params.third;
        let root = sqrt(v) * params.correction + params.epsilon;
        parameter[i] = parameter[i] * params.decay - params.rate * m / root;
        state[i] = m;
        squares[i] = v;
    }
}

@compute @workgroup_size(64)
fn sgd_step(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = index_of(group, groups, lane);
    if i < params.count {
        let g = gradient[i] * params.scale + parameter[i] * params.decay;
        let buffer = state[i] * params.first + g;
        parameter[i] -= params.rate * (buffer * params.second + g * params.third);
        state[i] = buffer;
    }
}

@compute @workgroup_size(64)
fn plain_sgd_step(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = index_of(group, groups, lane);
    if i < params.count {
        parameter[i] -= params.rate * (gradient[i] * params.scale + parameter[i] * params.decay);
    }
}

@compute @workgroup_size(64)
fn lars_step(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = index_of(group, groups, lane);
    let norm = sqrt(parameter_norm[0]);
    let other = sqrt(gradient_norm[0]) * abs(params.scale);
    var trust = 1.0;
    var decay = 0.0;
    if norm > 0.0 && other > 0.0 {
        trust = params.second * norm / (other + params.decay * norm + params.epsilon);
        decay = params.decay;
    }
    if i < params.count {
        let g = trust * (gradient[i] * params.scale + lars_parameter[i] * decay);
        let buffer = lars_state[i] * params.first + g;
        lars_parameter[i] -= params.rate * buffer;
        lars_state[i] = buffer;
    }
}
