// concat: joins rows, and splits them
//
// Layout         x [first], other [count − first] and y [count], float32; cut: y [count] is x starting at `first`.
// Preconditions  Workgroups cover count, folded into two dimensions; concat.rs checks the shapes.
// Tile           None: every value is read once.

struct Params {
    count: u32,
    first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> other: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> piece: array<f32>;

@compute @workgroup_size(64)
fn join(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + lane;
    if i < params.first {
        y[i] = x[i];
    } else if i < params.count {
        y[i] = other[i - params.first];
    }
}

@compute @workgroup_size(64)
fn cut(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + lane;
    if i < params.count {
        piece[i] = x[params.first + i];
    }
}
