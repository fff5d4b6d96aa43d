// weight_f16: float16, two values per word, lower half first

@group(0) @binding(2) var<storage, read> weight: array<vec2<u32>>;

fn load_weight(index: u32) -> vec4<f32> {
    let words = weight[index];
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn scaled(sum: f32, column: u32) -> f32 {
    return sum;
}

fn scaled_four(sums: vec4<f32>, column: u32) -> vec4<f32> {
    return sums;
}
