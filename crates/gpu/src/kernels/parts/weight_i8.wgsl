// weight_i8: signed bytes, four values per word, lowest byte first.

@group(0) @binding(2) var<storage, read> weight: array<u32>;

fn load_weight(index: u32) -> vec4<f32> {
    let word = weight[index];
    // Each byte is shifted to the top, then back with sign extension.
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(word << 24u, word << 16u, word << 8u, word)) >> vec4<u32>(24u));
}
