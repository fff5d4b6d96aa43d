// take_tokens: the CLS token and the selected patches of each image
//
// Layout         x [batch, tokens, width], patches [batch, visible] indexed from the first patch, y [batch, 1 +
//                visible, width]; row-major, float32 and u32.
// Preconditions  Workgroups: x over width, y over 1 + visible, z over the batch; take_tokens.rs checks the shapes and
//                that every patch exists.
// Tile           None: every value is copied once. 64 invocations handle adjacent values.

struct Params {
    tokens: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> patches: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    if id.x >= params.width {
        return;
    }
    var token = 0u;
    if id.y > 0u {
        token = 1u + patches[id.z * (groups.y - 1u) + id.y - 1u];
    }
    y[(id.z * groups.y + id.y) * params.width + id.x] = x[(id.z * params.tokens + token) * params.width + id.x];
}
