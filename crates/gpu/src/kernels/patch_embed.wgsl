// patch_embed: gathers images patch by patch, so that the projection is a linear layer
//
// Layout         pixels [batch, channels, height, width]; y [batch, patches, channels · patch_height · patch_width],
//                the values of a patch in the order of the projection's weight; row-major float32.
// Preconditions  Workgroups: x over a patch's values, y over patches, z over the batch; patch_embed.rs checks the
//                shapes and launches them. Pixels past the last whole patch are ignored.
// Tile           None: every value is copied once. 64 invocations write adjacent values and read runs of patch_width.

struct Params {
    channels: u32,
    height: u32,
    width: u32,
    patch_height: u32,
    patch_width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> pixels: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let depth = params.channels * params.patch_height * params.patch_width;
    if id.x >= depth {
        return;
    }
    let columns = params.width / params.patch_width;
    let line = id.x / params.patch_width;
    let channel = line / params.patch_height;
    let row = id.y / columns * params.patch_height + line % params.patch_height;
    let column = id.y % columns * params.patch_width + id.x % params.patch_width;
    let plane = id.z * params.channels + channel;
    y[(id.z * groups.y + id.y) * depth + id.x] = pixels[(plane * params.height + row) * params.width + column];
}
