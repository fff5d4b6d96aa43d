// embed_tokens: y = [cls; patch or mask token] + positions
//
// Layout         patches [batch, patches, width], cls and mask_token [width], positions [1 + patches, width], mask
//                [batch, patches], y [batch, 1 + patches, width]; row-major float32.
// Constants      MASKED  1 substitutes mask_token where mask isn't 0; otherwise both bindings accept any tensor
// Preconditions  Workgroups: x over width, y over tokens, z over the batch; embed_tokens.rs checks the shapes and
//                launches them.
// Tile           None: every value is copied once. 64 invocations handle adjacent values.

struct Params {
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> patches: array<f32>;
@group(0) @binding(2) var<storage, read> cls: array<f32>;
@group(0) @binding(3) var<storage, read> positions: array<f32>;
@group(0) @binding(4) var<storage, read> mask: array<f32>;
@group(0) @binding(5) var<storage, read> mask_token: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    if id.x >= params.width {
        return;
    }
    let tokens = groups.y;
    var value: f32;
    if id.y == 0u {
        value = cls[id.x];
    } else {
        let patch_index = id.z * (tokens - 1u) + id.y - 1u;
        value = patches[patch_index * params.width + id.x];
        if MASKED == 1u {
            value = select(value, mask_token[id.x], mask[patch_index] != 0.0);
        }
    }
    y[(id.z * tokens + id.y) * params.width + id.x] = value + positions[id.y * params.width + id.x];
}
