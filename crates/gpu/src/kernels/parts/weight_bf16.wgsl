// weight_bf16: bfloat16, the upper half of float32, two values per word, lower half first

@group(0) @binding(2) var<storage, read> weight: array<vec2<u32>>;

fn load_weight(index: u32) -> vec4<f32> {
    let words = weight[index];
    return bitcast<vec4<f32>>(vec4<u32>(words.x << 16u, words.x & 0xffff0000u, words.y << 16u, words.y & 0xffff0000u));
}

fn scaled(sum: f32, column: u32) -> f32 {
    return sum;
}

fn scaled_four(sums: vec4<f32>, column: u32) -> vec4<f32> {
    return sums;
}
