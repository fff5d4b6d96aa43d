// pool: one vector per image, the CLS token or the mean of the patches
//
// Layout         x [batch, tokens, width], y [batch, width]; row-major float32. Token 0 is CLS.
// Constants      MEAN  1 for the mean of tokens 1..., 0 for token 0
// Preconditions  Workgroups: x over width, y over the batch; pool.rs checks the shapes and that a mean has a patch,
//                and launches them.
// Tile           None: every value is read once. 64 invocations walk the tokens together, reading adjacent values.

struct Params {
    tokens: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.width {
        return;
    }
    let first = id.y * params.tokens * params.width + id.x;
    var value: f32;
    if MEAN == 1u {
        for (var token = 1u; token < params.tokens; token++) {
            value += x[first + token * params.width];
        }
        value /= f32(params.tokens - 1u);
    } else {
        value = x[first];
    }
    y[id.y * params.width + id.x] = value;
}
