// bytes_vec4: weights as bytes, for a number of inputs that is a multiple of sixteen

@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;

// Sixteen bytes of a row.
fn load_bytes(row: u32, part: u32) -> vec4<u32> {
    return weight[row * (params.inputs / 16u) + part];
}
