// linear_quantise: the rows of x as signed bytes, for packed.wgsl
//
// Layout         words [rows, stride]: a row's bytes, four a word, lowest first, padded with zeros to a multiple of 64
//                values; then its scales, of 32 values each, as the bits of float32; then padding to whole vectors of
//                four words. parts/x_*.wgsl load four values of a row.
// Preconditions  One invocation per scale. forward.rs checks the shapes.
// Precision      The largest magnitude of 32 values of a row maps to 127.

struct Params {
    rows: u32,
    inputs: u32,
    // Scales, and words, per row.
    blocks: u32,
    stride: u32,
    // Invocations per row of workgroups.
    across: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read_write> words: array<u32>;

// Zero past the end.
fn values_at(row: u32, part: u32) -> vec4<f32> {
    if 4u * part < params.inputs {
        return load_x(row, part);
    }
    return vec4<f32>();
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let block = id.y * params.across + id.x;
    let row = block / params.blocks;
    if row >= params.rows {
        return;
    }
    let column = block % params.blocks;
    var sizes = vec4<f32>();
#for i in 8
    let v$i = values_at(row, 8u * column + $iu);
    sizes = max(sizes, abs(v$i));
#end
    let size = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
    // Magnitudes this small may count as zero and have no finite inverse.
    let steps = select(0.0, 127.0 / size, size > 1e-30);
    let start = row * params.stride;
    words[start + 8u * params.blocks + column] = bitcast<u32>(size / 127.0);
#for i in 8
    words[start + 8u * column + $iu] = pack4xI8(vec4<i32>(round(steps * v$i)));
#end
}
